"""`doctor`: looks at everything inferd depends on, with the daemon's settings, and changes nothing.

    checks         the checks in their order and time limits
    configuration  settings, data folder, disk        broker    reach, limits, who is online
    permissions    what the broker lets us and strangers do
    running        the daemon's own word: /health     queue_file, queue_server  the database,
                                                      read-only
    waiting        why jobs wait                      vectors, qdrant   embedded, and on a server
    media_store    pictures' home                     models    files, loading    device  what runs

    runner         runs a check in a thread of its own, which may hang
    process        the daemon's on this machine: what it was started with, what differs
    facts          what one check found out and a later one needs
    line           the only file here that knows paho       web     one short HTTP question
    findings       one line of the report; secrets end here    mends   what several propose

A check is a function from facts to findings, each said as soon as it is known. Checks import the
heavy libraries themselves, when they run.
"""
