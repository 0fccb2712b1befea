-- Events that the broker has not confirmed yet, written in the transaction that caused them.
-- A row is owned by the daemon that wrote it, so that two daemons on one file never publish it
-- both; rows of a dead daemon are adopted.
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    owner TEXT NOT NULL,
    topic TEXT NOT NULL CHECK (length(topic) > 0),
    payload TEXT NOT NULL,
    correlation_data TEXT,
    created_at INTEGER NOT NULL,
    -- Set while a refused event waits for its next try; it never holds up the others.
    run_at INTEGER,
    attempt INTEGER NOT NULL DEFAULT 0 CHECK (attempt >= 0)
) STRICT;

CREATE INDEX outbox_ready ON outbox (owner, id) WHERE run_at IS NULL;
CREATE INDEX outbox_delayed ON outbox (run_at) WHERE run_at IS NOT NULL;
