"""The worker: leases jobs, has handlers run them, delivers results and settles.

    worker           leases jobs; running_jobs: those under way; room: how many more may be leased
    attempt          handle -> deliver -> settle
    delivery         results the media store refused
    retry            whether an error is retried: pure
    lease_keeper     renews this daemon's leases, takes back expired ones of others
    cancellation     cancels over MQTT
    progress         how far running jobs are
    metered_handler  measures a handler
    watchdog         ends a process in which a model or the event loop hangs

What a task type must do is in daemon.handler; nothing here knows a model.
"""
