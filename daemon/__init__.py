"""The process: intake, queue, worker, outbox. This docstring is the map.

    __main__     picks the sub-command, exit codes      app      opens everything; it, its three
    cli/         the sub-commands, one file each                 below, cli/ and doctor/ alone
    doctor/      looks at everything, changes nothing            see handlers/
    backup/      what a backup is made of
    http_doors, health_checks, readings   app's: REST and the other APIs; what health looks at;
                                          what the metrics read of all parts
    intake       what came -> a job in the queue        outbox  events -> broker, until confirmed
    hang_ups     which event a broker hangs up on
    worker/      leases jobs, has them handled, delivers and settles
    queue/       the jobs, their verbs, SQLite and PostgreSQL under them
    mqtt/        the link to the broker, and what is said on it besides jobs
    fleet/       what several daemons know of each other
    upkeep/      audits, scrubs, removals: queue and vectors agree
    health       what the daemon says of itself         live    events for who watches the console
    pause_watch  notices pauses, tells them             stop_signals   SIGTERM and SIGINT
    metrics      the only file that knows Prometheus    logs
    handler      what a task type must do               identity  which process, whether it lives

    events, requests            the wire's shapes: pure
    wire/        all of the wire as models: documentation and oracle   asyncapi   MQTT's contract
    command_line what the commands' parsers share: help, examples, guesses
    settings/    what can be configured, a file for each subject; environment reads it
    jobs, topics, stage, stored_filter, bell, urgency, clock_steps, noted_file, cores, counts,
    errors, holes, redaction, program, spans, spelling, wall_clock:
                 small tools

Imports go downward only, row by row; `handlers` may import cores, errors, holes, jobs,
redaction, settings, stage, stored_filter, urgency and wall_clock; app's http_doors opens
`http_shim`. tests/unit/test_architecture.py holds the tree to this.
"""
