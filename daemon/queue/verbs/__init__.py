"""The queue's verbs, a file for each group; `job_queue` combines them into one class.

    enqueueing   requests -> jobs, durably          leasing      which daemon runs a job
    settling     how a lease ends                   late_results what the media store refused first
    reclaiming   what dead daemons left behind      by_hand      cancel, start again, forget
    shared       what all of these need

Every verb is one transaction. A job leaves `processing` only by a statement that is guarded by its
lease's fence; the events that clients must get are written to the outbox in the same transaction.
"""
