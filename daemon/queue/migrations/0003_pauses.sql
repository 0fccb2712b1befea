-- Task types that are not leased for now, by hand: every daemon on the file obeys. A row stays
-- when its pause is over, to tell when that was.
CREATE TABLE pauses (
    task_type TEXT NOT NULL PRIMARY KEY CHECK (length(task_type) BETWEEN 1 AND 64),
    paused_at INTEGER NOT NULL,
    -- When it ends by itself; empty = it does not.
    until INTEGER,
    -- When somebody ended it; empty = nobody did.
    resumed_at INTEGER
) STRICT, WITHOUT ROWID;
