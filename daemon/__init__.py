"""The process: intake, queue, worker, outbox. This docstring is the map.

    __main__     picks the sub-command, exit codes      app      opens everything; it, its three
    cli/         the sub-commands, one file each                 below, cli/ and doctor/ alone
    doctor/      looks at everything, changes nothing            see handlers/
    backup/      what a backup is made of
    http_doors, health_checks, readings   app's: REST and the other doors; what health looks at;
                                          what the metrics read of all parts
    inbox        a message over MQTT -> who it is for   stop_signals   SIGTERM and SIGINT
    intake       what came -> a job in the queue        worker   leases jobs: running_jobs,
    attempt      handle -> deliver -> settle            delivery results the media store refused
    lease_keeper renews ours, takes back others'        pruning  jobs that ended long ago go
    outbox       events -> broker, until confirmed      health   what the daemon says of itself
    cancellation a cancel -> the job's end              progress how far running jobs are
    removal      all of a picture goes                  live     events for who watches the console
    audit        completed jobs beside stored vectors, over the job_ledger, slice by slice:
                 audit_slice; audit_examination: a picture's; audit_findings: what is wrong
    scrub          asks anew for vectors that went with a machine: last_life (this one),
                   server_watch (that of the vectors' server)
    home_assistant announces this daemon there, obeys its switches
    worker_topics  what this daemon is, how busy it is  pause_watch  notices pauses, tells them
    watchdog     ends a process in which a model or the loop hangs

    job_queue    the face of the queue                  job_reader  looks, changes nothing
    verbs/       the verbs, each one transaction; a file for each thought
    admission    accepted, known already, or refused    settlement  how leases end
    job_batches  many jobs at a time, by hand
    pauses       task types that are not leased         installation  which queue this is
    roles, role_keeper  who reads requests for all      company     the next two and these:
    workers      all daemons at the broker              wakes       calls them when jobs wait
    announcer    events into the outbox                 job_rows    rows <-> jobs
    queue_backend what the verbs need of an engine      statements  all SQL by name
    database     SQLite: one door to the file           queue_engine  opens what the URL names
    sqlite_writer  its transactions, many in a commit
    postgresql/  the other engine                       outbox_statements
    mqtt         the link to the broker; mqtt_client (the only file that imports gmqtt),
                 mqtt_reception, mqtt_sender, mqtt_vendor: one connection of it     broker_tls, logs
    presence     what the availability says
    metrics      the only file that knows Prometheus
    handler      what a task type must do               metered_handler  measures one that does
    migration    the schema's steps, in migrations/     schema   which a file went through
    identity     who a process is, and whether it lives   room   how many more may be leased

    events, requests, retry     the wire's shapes, and an error's fate: pure
    home_discovery              what Home Assistant is told: pure
    wire/        all of the wire as models: documentation and oracle   asyncapi   MQTT's contract
    command_line what the commands' parsers share: help, examples, guesses
    settings/    what can be configured, a file for each thought; environment reads it
    jobs, topics, stage, stored_filter, bell, urgency, clock_steps, noted_file, cores, errors,
    holes, redaction, program, spans, spelling, wall_clock:
                 small tools

Imports go downward only, row by row; `handlers` may import cores, errors, holes, jobs,
redaction, settings, stage, stored_filter, urgency and wall_clock; app's http_doors opens
`http_shim`. tests/unit/test_architecture.py holds the tree to this.
"""
