-- The queue. One row a job; CHECKs make illegal rows impossible, partial indexes keep each hot
-- statement away from finished rows. Times are epoch milliseconds. Never edited once released.
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL UNIQUE CHECK (length(job_id) = 36),
    task_type TEXT NOT NULL CHECK (length(task_type) BETWEEN 1 AND 64),
    media_store_id INTEGER NOT NULL CHECK (media_store_id >= 0),
    priority INTEGER NOT NULL CHECK (priority BETWEEN 0 AND 10),
    -- created_at minus what the priority is worth: its order never changes, so nothing ages rows.
    rank INTEGER NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'processing', 'completed', 'error', 'sync_failed')),
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    completed_at INTEGER,
    expires_at INTEGER,
    -- Set while the job must not be leased yet; emptied when that moment has come.
    run_at INTEGER,
    attempt INTEGER NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    -- Rises with every lease and is never lowered: the proof that a settle is not a zombie's.
    fence INTEGER NOT NULL DEFAULT 0 CHECK (fence >= 0),
    lost INTEGER NOT NULL DEFAULT 0 CHECK (lost >= 0),
    worker TEXT,
    lease_until INTEGER,
    waiting_since INTEGER,
    -- Number of the latest event, counted in the transaction that writes the event.
    seq INTEGER NOT NULL DEFAULT 0 CHECK (seq >= 0),
    request_id TEXT,
    reply_to TEXT,
    correlation_data TEXT,
    error_code TEXT,
    error_message TEXT,
    result TEXT CHECK (result IS NULL OR json_valid(result)),
    sync_attempt INTEGER NOT NULL DEFAULT 0 CHECK (sync_attempt >= 0),
    CHECK ((status = 'processing') = (lease_until IS NOT NULL)),
    CHECK ((status = 'processing') = (worker IS NOT NULL)),
    CHECK ((status IN ('completed', 'error', 'sync_failed')) = (completed_at IS NOT NULL)),
    CHECK (status NOT IN ('completed', 'sync_failed') OR result IS NOT NULL),
    CHECK (status NOT IN ('error', 'sync_failed') OR error_message IS NOT NULL)
) STRICT;

-- One live or completed job for a picture and task type: the 409 rule.
CREATE UNIQUE INDEX jobs_pair ON jobs (media_store_id, task_type)
    WHERE status IN ('pending', 'processing', 'completed');
-- What may be leased now, in order; jobs that lost a lease stand apart, since they run alone.
CREATE INDEX jobs_ready ON jobs (task_type, rank, id)
    WHERE status = 'pending' AND run_at IS NULL AND lost = 0;
CREATE INDEX jobs_suspect ON jobs (rank, id)
    WHERE status = 'pending' AND run_at IS NULL AND lost > 0;
-- What waits for its moment.
CREATE INDEX jobs_delayed ON jobs (run_at) WHERE status = 'pending' AND run_at IS NOT NULL;
-- What somebody holds.
CREATE INDEX jobs_leased ON jobs (lease_until) WHERE status = 'processing';
-- Results the media store did not take yet; run_at is the next try, empty = given up.
CREATE INDEX jobs_unsynced ON jobs (run_at) WHERE status = 'sync_failed' AND run_at IS NOT NULL;
-- The same by pair, for a newer job that takes over.
CREATE INDEX jobs_unsynced_pair ON jobs (media_store_id, task_type)
    WHERE status = 'sync_failed' AND run_at IS NOT NULL;
-- What pruning may remove, oldest first.
CREATE INDEX jobs_finished ON jobs (completed_at) WHERE completed_at IS NOT NULL;
