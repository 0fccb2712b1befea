-- Who reads requests for all: each role is one lasting session at the broker, held by one daemon at
-- a time under a lease. Its row outlives its owner, so that a survivor takes over what waits there.
CREATE TABLE intake_roles (
    name TEXT NOT NULL PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 64),
    -- Process that holds it; empty = nobody does.
    owner TEXT,
    -- When the lease ends; where nobody holds it, when it was given back.
    lease_until INTEGER NOT NULL,
    -- Rises with every owner and is never lowered: the proof that it is still ours.
    fence INTEGER NOT NULL DEFAULT 0 CHECK (fence >= 0),
    -- When its session first stood at the broker, and requests began to wait there.
    opened_at INTEGER
) STRICT, WITHOUT ROWID;

-- The daemons among which the roles are spread.
CREATE TABLE intake_members (
    worker TEXT NOT NULL PRIMARY KEY CHECK (length(worker) > 0),
    seen_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
