"""The queue: its interface, its verbs, the SQL, and the two engines under it.

    job_queue    the queue's interface                  job_reader  looks, changes nothing
    verbs/       the verbs, each one transaction; a file for each group
    admission    accepted, known already, or refused    settlement  how leases end
    job_listing  pages of jobs, and where one begins
    job_batches  many jobs at a time, by hand           audit_findings  what can be wrong
    pauses       task types that are not leased         installation  which queue this is
    roles        who reads requests for all             job_ledger  jobs <-> pictures, in bulk
    announcer    events into the outbox                 job_rows    rows <-> jobs
    backend      what the verbs need of an engine       engine  opens what the URL names
    statements, outbox_statements   all SQL by name
    database     SQLite                                 sqlite_writer  its transactions, many in a
                                                        commit
    postgresql/  the other engine
    migration    the schema's steps, in migrations/     schema   which a file went through

Elsewhere only what reads a queue at rest knows SQL: doctor, backup, migrate.
"""
