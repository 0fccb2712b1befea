"""The verbs of the queue, a file for each thought; `job_queue` is their one face.

    enqueueing   requests -> jobs, durably          leasing      jobs -> who does them
    settling     how those end                      late_results what the media store refused first
    reclaiming   what died with its daemon          by_hand      cancel, start again, forget
    shared       what all of these need

Every verb is one transaction. Whoever leaves `processing` shows a lease, and the statement is
guarded by its fence; whatever a client must hear of is written to the outbox in the same
transaction.
"""
