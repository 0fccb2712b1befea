"""The process: intake, queue, worker, outbox. This docstring is the map.

    layer 3   __main__ -> app, settings, logs
              app      -> everything below, handlers/ and http_shim/; it alone sees both sides
    layer 2   worker   -> job_queue, retry, stage      (knows handlers only as a Protocol)
              intake   -> job_queue, requests, topics
              outbox   -> job_queue                     (publishes through a Protocol)
    layer 1   job_queue -> database, events             mqtt -> errors      one vendor each
    layer 0   jobs, requests, events, topics, retry, stage, settings, errors: no I/O

Imports go downward only; `handlers` may import jobs, errors and stage; nothing imports
`http_shim` but app. tests/unit/test_architecture.py holds the tree to this.
"""
