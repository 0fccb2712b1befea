"""Every SQL statement of the queue by name; the contract tests hold their plans to the indexes."""

# Statuses are literals: a bound one would keep SQLite from the partial indexes.
FIND = "SELECT * FROM jobs WHERE job_id = ?"
FIND_JOBS = "SELECT * FROM jobs WHERE job_id IN (SELECT value FROM json_each(?))"
FIND_PAIRS = """
SELECT jobs.* FROM json_each(?) AS pair CROSS JOIN jobs
WHERE jobs.media_store_id = pair.value ->> 0 AND jobs.task_type = pair.value ->> 1
  AND jobs.status IN ('pending', 'processing', 'completed')
"""
INSERT = """
INSERT INTO jobs (job_id, task_type, media_store_id, priority, rank, created_at, expires_at,
                  request_id, reply_to, correlation_data, seq)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6,
       value ->> 7, value ->> 8, value ->> 9, 1
FROM json_each(?)
"""
# A newer job of the pair takes over: an older result is no longer delivered.
SUPERSEDE_SYNC = """
UPDATE jobs SET run_at = NULL WHERE id IN (
    SELECT jobs.id FROM json_each(?) AS pair CROSS JOIN jobs
    WHERE jobs.media_store_id = pair.value ->> 0 AND jobs.task_type = pair.value ->> 1
      AND jobs.status = 'sync_failed' AND jobs.run_at IS NOT NULL)
"""
COUNT_EVENTS = """
UPDATE jobs SET seq = seq + (told.value ->> 1) FROM json_each(?) AS told
WHERE jobs.job_id = told.value ->> 0
"""
ANNOUNCE = """
INSERT INTO outbox (owner, created_at, topic, payload, correlation_data)
VALUES (?, ?, ?, ?, ?)
"""
PROMOTE = """
UPDATE jobs SET run_at = NULL WHERE status = 'pending' AND run_at IS NOT NULL AND run_at <= ?
"""
# A paused task type gives no rows, and costs the same however many wait: a condition on each row
# would walk them all. A pause is no part of a job's wait for a dependency.
LEASE = """
UPDATE jobs SET status = 'processing', attempt = attempt + 1, fence = fence + 1, seq = seq + 1,
                worker = ?1, started_at = ?2, lease_until = ?3,
                waiting_since = iif(waiting_since < (
                    SELECT coalesce(resumed_at, until) FROM pauses
                    WHERE pauses.task_type = jobs.task_type), NULL, waiting_since)
WHERE id IN (SELECT id FROM jobs
             WHERE status = 'pending' AND run_at IS NULL AND lost = 0 AND task_type = ?4
             ORDER BY rank, id
             LIMIT iif(EXISTS (SELECT 1 FROM pauses
                               WHERE pauses.task_type = ?4 AND resumed_at IS NULL
                                 AND (until IS NULL OR until > ?2)), 0, ?5))
RETURNING *
"""
NEXT_RANK = """
SELECT rank FROM jobs WHERE status = 'pending' AND run_at IS NULL AND lost = 0 AND task_type = ?
ORDER BY rank, id LIMIT 1
"""
# What nobody rings for: a job's moment, and the end of a pause.
NEXT_MOMENT = """
SELECT min(moment) FROM (
    SELECT min(run_at) AS moment FROM jobs WHERE status = 'pending' AND run_at IS NOT NULL
    UNION ALL SELECT min(until) FROM pauses WHERE resumed_at IS NULL AND until > ?) AS moments
"""
LEASE_SUSPECT = """
UPDATE jobs SET status = 'processing', attempt = attempt + 1, fence = fence + 1, seq = seq + 1,
                worker = ?1, started_at = ?2, lease_until = ?3,
                waiting_since = iif(waiting_since < (
                    SELECT coalesce(resumed_at, until) FROM pauses
                    WHERE pauses.task_type = jobs.task_type), NULL, waiting_since)
WHERE id = (SELECT id FROM jobs
            WHERE status = 'pending' AND run_at IS NULL AND lost > 0
              AND task_type IN (SELECT value FROM json_each(?4))
              AND task_type NOT IN (SELECT task_type FROM pauses
                                    WHERE resumed_at IS NULL AND (until IS NULL OR until > ?2))
            ORDER BY rank, id LIMIT 1)
RETURNING *
"""
HAS_SUSPECT = """
SELECT 1 FROM jobs WHERE status = 'pending' AND run_at IS NULL AND lost > 0
  AND task_type IN (SELECT value FROM json_each(?1))
  AND task_type NOT IN (SELECT task_type FROM pauses
                        WHERE resumed_at IS NULL AND (until IS NULL OR until > ?2)) LIMIT 1
"""
RENEW = """
UPDATE jobs SET lease_until = ? FROM json_each(?) AS held
WHERE jobs.job_id = held.value ->> 0 AND jobs.status = 'processing'
  AND jobs.fence = held.value ->> 1
RETURNING job_id
"""
# Only what the lease cannot know comes back. A row is a list, in the order of `Settlement.to_row`.
SETTLE = """
UPDATE jobs SET status = new.value ->> 2, completed_at = new.value ->> 3,
    run_at = new.value ->> 4, attempt = max(0, attempt - (new.value ->> 5)),
    lost = lost + (new.value ->> 6), worker = NULL, lease_until = NULL,
    error_code = new.value ->> 7, error_message = new.value ->> 8,
    result = coalesce(new.value ->> 9, result),
    sync_attempt = sync_attempt + (new.value ->> 10),
    waiting_since = CASE WHEN new.value ->> 11 THEN coalesce(waiting_since, ?1) END,
    seq = seq + (new.value ->> 12)
FROM json_each(?2) AS new
WHERE jobs.job_id = new.value ->> 0 AND jobs.status = 'processing'
  AND jobs.fence = new.value ->> 1
RETURNING job_id, fence, attempt, lost, sync_attempt, waiting_since, seq
"""
# The same for a single row, in half the time: no table is made of the new values first.
SETTLE_ONE = """
UPDATE jobs SET status = ?4, completed_at = ?5,
    run_at = ?6, attempt = CASE WHEN attempt > ?7 THEN attempt - ?7 ELSE 0 END,
    lost = lost + ?8, worker = NULL, lease_until = NULL,
    error_code = ?9, error_message = ?10,
    result = coalesce(?11, result),
    sync_attempt = sync_attempt + ?12,
    waiting_since = CASE WHEN ?13 <> 0 THEN coalesce(waiting_since, ?1) END,
    seq = seq + ?14
WHERE job_id = ?2 AND status = 'processing' AND fence = ?3
RETURNING job_id, fence, attempt, lost, sync_attempt, waiting_since, seq
"""
# A moment farther ahead than any that we set was set by a clock that has gone back since.
HASTEN_JOBS = """
UPDATE jobs SET run_at = ?1 WHERE status = 'pending' AND run_at IS NOT NULL AND run_at > ?2
"""
HASTEN_SYNCS = """
UPDATE jobs SET run_at = ?1 WHERE status = 'sync_failed' AND run_at IS NOT NULL AND run_at > ?2
"""
HASTEN_EVENTS = "UPDATE outbox SET run_at = ?1 WHERE run_at IS NOT NULL AND run_at > ?2"
SHORTEN_LEASES = "UPDATE jobs SET lease_until = ?1 WHERE status = 'processing' AND lease_until > ?2"
FIND_EXPIRED = "SELECT * FROM jobs WHERE status = 'processing' AND lease_until < ?"
FIND_WORKERS = "SELECT DISTINCT worker FROM jobs WHERE status = 'processing'"
# From owner to owner through the index, however many events each has; refused ones are few.
_OWNERS = """RECURSIVE owners (owner) AS (
    SELECT min(owner) FROM outbox WHERE run_at IS NULL
    UNION ALL
    SELECT (SELECT min(outbox.owner) FROM outbox
            WHERE run_at IS NULL AND outbox.owner > owners.owner)
    FROM owners WHERE owners.owner IS NOT NULL)
"""
FIND_OWNERS = f"""
WITH {_OWNERS}SELECT owner FROM owners WHERE owner IS NOT NULL
UNION
SELECT owner FROM outbox WHERE run_at IS NOT NULL
"""  # noqa: S608 - literals
FIND_HELD_BY = """
SELECT * FROM jobs WHERE status = 'processing' AND worker IN (SELECT value FROM json_each(?))
"""
# The same; whose events are old is known at the first that is.
FIND_OLD_OWNERS = f"""
WITH {_OWNERS}SELECT owner FROM owners
WHERE owner <> ?1 AND (SELECT 1 FROM outbox WHERE outbox.owner = owners.owner
                       AND run_at IS NULL AND created_at < ?2 LIMIT 1) IS NOT NULL
UNION
SELECT owner FROM outbox WHERE run_at IS NOT NULL AND owner <> ?1 AND created_at < ?2
"""  # noqa: S608 - literals
# The oldest first and a few at a time: after a broker was away for long there may be millions.
ADOPT = """
UPDATE outbox SET owner = ?1 WHERE id IN (
    SELECT id FROM outbox WHERE owner = ?2 AND run_at IS NULL ORDER BY id LIMIT ?3)
"""
ADOPT_DELAYED = "UPDATE outbox SET owner = ? WHERE owner = ? AND run_at IS NOT NULL"
CANCEL = """
UPDATE jobs SET status = 'error', completed_at = ?, run_at = NULL, error_code = 'cancelled',
                error_message = 'cancelled: the job was cancelled before it began', seq = seq + 2
WHERE job_id = ? AND status = 'pending' RETURNING *
"""
REQUEUE = """
UPDATE jobs SET status = 'pending', completed_at = NULL, run_at = NULL, attempt = 0, lost = 0,
                sync_attempt = 0, waiting_since = NULL, error_code = NULL, error_message = NULL,
                expires_at = NULL, seq = seq + 1
WHERE job_id = ? AND status IN ('error', 'sync_failed') RETURNING *
"""
# Its keyset follows the index jobs_failed, so that each batch begins where the last one ended.
FIND_FAILED = """
SELECT id, completed_at, status FROM jobs
WHERE status IN ('error', 'sync_failed') AND error_code = ?1 AND task_type = ?2
  AND (completed_at, status, id) > (?3, ?4, ?5) AND completed_at <= ?6
ORDER BY completed_at, status, id LIMIT ?7
"""
# Rows for whose pair a newer job stands are left as they are.
REQUEUE_ALL = """
UPDATE OR IGNORE jobs SET
    status = 'pending', completed_at = NULL, run_at = NULL, attempt = 0, lost = 0,
    sync_attempt = 0, waiting_since = NULL, error_code = NULL, error_message = NULL,
    expires_at = NULL, seq = seq + 1
WHERE id IN (SELECT value FROM json_each(?)) AND status IN ('error', 'sync_failed') RETURNING *
"""
# In two parts, each with an index of its own.
IS_OF_MEDIA = """id IN (
    SELECT id FROM jobs WHERE media_store_id = ?
      AND status IN ('pending', 'processing', 'completed')
    UNION ALL
    SELECT id FROM jobs WHERE media_store_id = ? AND status IN ('error', 'sync_failed'))"""
FIND_MEDIA = f"SELECT * FROM jobs WHERE {IS_OF_MEDIA} ORDER BY id"  # noqa: S608 - two literals
NEWEST_ROW = "SELECT max(id) FROM jobs"
FIND_ROW = "SELECT id FROM jobs WHERE job_id = ?"
# Older than a row, by status: `+id` keeps a planner from walking the table down from that row.
STANDS_PENDING = """
SELECT id FROM jobs WHERE status = 'pending' AND run_at IS NULL AND lost = 0 AND +id < ?
UNION ALL
SELECT id FROM jobs WHERE status = 'pending' AND run_at IS NULL AND lost > 0 AND +id < ?
UNION ALL
SELECT id FROM jobs WHERE status = 'pending' AND run_at IS NOT NULL AND +id < ?
"""
STANDS_PROCESSING = "SELECT id FROM jobs WHERE status = 'processing' AND +id < ?"
STANDS_IN_ERROR = """
SELECT id FROM jobs WHERE status IN ('error', 'sync_failed') AND status = 'error' AND +id < ?
"""
STANDS_IN_SYNC_FAILED = """
SELECT id FROM jobs WHERE status IN ('error', 'sync_failed') AND status = 'sync_failed'
  AND +id < ?
"""
FORGET_ALL = """
DELETE FROM jobs WHERE job_id IN (SELECT value FROM json_each(?)) AND completed_at IS NOT NULL
"""
FORGET = "DELETE FROM jobs WHERE job_id = ? AND completed_at IS NOT NULL"
DROP = "DELETE FROM jobs WHERE job_id = ?"
DUE_SYNC = """
SELECT * FROM jobs WHERE status = 'sync_failed' AND run_at IS NOT NULL AND run_at <= ?
  AND task_type IN (SELECT value FROM json_each(?))
ORDER BY run_at LIMIT ?
"""
# Daemons on one queue see the same results due; and of one that was seen before, a newer job of the
# pair may have taken over since.
CLAIM_SYNC = """
UPDATE jobs SET run_at = ?
WHERE job_id = ? AND status = 'sync_failed' AND run_at IS NOT NULL AND run_at <= ?
"""
HEAL = """
UPDATE jobs SET status = 'completed', run_at = NULL, error_code = NULL, error_message = NULL,
                completed_at = ?, seq = seq + 1
WHERE job_id = ? AND status = 'sync_failed' AND run_at IS NOT NULL RETURNING *
"""
DELAY_SYNC = """
UPDATE jobs SET run_at = ?, sync_attempt = sync_attempt + 1, error_code = ?, error_message = ?
WHERE job_id = ? AND status = 'sync_failed' AND run_at IS NOT NULL
"""
COUNT_PENDING = """
SELECT (SELECT count(*) FROM (SELECT 1 FROM jobs
            WHERE status = 'pending' AND run_at IS NULL AND lost = 0 LIMIT ?1) AS ready)
     + (SELECT count(*) FROM (SELECT 1 FROM jobs
            WHERE status = 'pending' AND run_at IS NOT NULL LIMIT ?1) AS delayed)
     + (SELECT count(*) FROM (SELECT 1 FROM jobs
            WHERE status = 'pending' AND run_at IS NULL AND lost > 0 LIMIT ?1) AS suspect)
"""
# Rows are numbered as they come: the smallest id is the oldest, and stands in every index.
COUNT_LIVE = """
WITH ready AS MATERIALIZED (
        SELECT count(*) AS number, min(id) AS oldest FROM jobs
        WHERE status = 'pending' AND run_at IS NULL AND lost = 0),
    delayed AS MATERIALIZED (
        SELECT count(*) AS number, min(id) AS oldest FROM jobs
        WHERE status = 'pending' AND run_at IS NOT NULL),
    suspect AS MATERIALIZED (
        SELECT count(*) AS number, min(id) AS oldest FROM jobs
        WHERE status = 'pending' AND run_at IS NULL AND lost > 0)
SELECT ready.number + delayed.number + suspect.number AS pending,
       delayed.number AS delayed,
       (SELECT count(*) FROM jobs WHERE status = 'processing') AS processing,
       (SELECT count(*) FROM jobs WHERE status = 'sync_failed' AND run_at IS NOT NULL)
           AS undelivered,
       (SELECT min(created_at) FROM jobs
        WHERE id IN (ready.oldest, delayed.oldest, suspect.oldest)) AS oldest_pending,
       (SELECT count(*) FROM outbox) AS outbox,
       (SELECT created_at FROM outbox ORDER BY id LIMIT 1) AS oldest_event
FROM ready, delayed, suspect
"""
# Task types one by one: the many stand in an index by task type, the others are few.
COUNT_TASKS = """
SELECT task.value AS task_type,
       (SELECT count(*) FROM jobs WHERE status = 'pending' AND run_at IS NULL AND lost = 0
           AND task_type = task.value)
     + (SELECT count(*) FROM jobs WHERE status = 'pending' AND run_at IS NOT NULL
           AND task_type = task.value)
     + (SELECT count(*) FROM jobs WHERE status = 'pending' AND run_at IS NULL AND lost > 0
           AND task_type = task.value) AS pending,
       (SELECT count(*) FROM jobs WHERE status = 'processing' AND task_type = task.value)
           AS processing,
       pauses.task_type IS NOT NULL AS is_paused,
       pauses.until AS paused_until
FROM json_each(?1) AS task LEFT JOIN pauses
  ON pauses.task_type = task.value AND resumed_at IS NULL AND (until IS NULL OR until > ?2)
"""
PAUSE = """
INSERT INTO pauses (task_type, paused_at, until) VALUES (?1, ?2, ?3)
ON CONFLICT (task_type) DO UPDATE SET
    paused_at = iif(resumed_at IS NULL AND (until IS NULL OR until > ?2), paused_at, ?2),
    until = ?3, resumed_at = NULL
"""
RESUME = """
UPDATE pauses SET resumed_at = ?2
WHERE task_type = ?1 AND resumed_at IS NULL AND (until IS NULL OR until > ?2)
"""
FIND_PAUSES = """
SELECT * FROM pauses WHERE resumed_at IS NULL AND (until IS NULL OR until > ?)
"""
LATEST = "SELECT * FROM jobs WHERE completed_at IS NOT NULL ORDER BY completed_at DESC LIMIT ?"
COUNT_FAILURES = """
SELECT error_code, task_type, count(*) AS number, max(completed_at) AS latest
FROM jobs WHERE status IN ('error', 'sync_failed') GROUP BY error_code, task_type
"""
# Its own line, since the message is no part of the index that counts.
FAILURE_TOLD = """
SELECT error_message, media_store_id FROM jobs
WHERE status IN ('error', 'sync_failed') AND error_code IS ?1 AND task_type = ?2
ORDER BY completed_at DESC LIMIT 1
"""
PRUNE = """
DELETE FROM jobs WHERE id IN (
    SELECT id FROM jobs WHERE completed_at IS NOT NULL AND completed_at < ?
      AND NOT (status = 'sync_failed' AND run_at IS NOT NULL)
    ORDER BY completed_at LIMIT ?)
"""
