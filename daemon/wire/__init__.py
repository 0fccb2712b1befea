"""The wire formats, described once as pydantic models; the contracts are generated from them.

    schema      the base of the models, the words they share, and JSON Schema out of them
    codes       every stable code, and what it means
    results     what each task type makes of a picture
    job         a job as everybody sees it
    requests    what may be asked over MQTT
    events      what is said of a job, and of a request that became none
    worker      what a daemon says of itself on its retained topics
    home        what Home Assistant is told of a daemon
    channels    the topics that carry it all

The models of what goes out are documentation and the tests' oracle: the daemon writes its JSON
without them, and the acceptance tests hold what it really sent to them.
"""
