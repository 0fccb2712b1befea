"""The queue's SQL in PostgreSQL's dialect, by the text that it has in SQLite's.

Only what differs stands here; what both understand is used as it is, with its parameters numbered.
Three things make the difference: lists come as jsonb, rows are locked when they are looked up to
be changed, and what many daemons look for at once passes over rows that another has locked.
An id list is made an array first (`= ANY (ARRAY(...))`): from a join on rows whose number it cannot
know, the planner may turn to reading the whole table.
"""

import re
from functools import cache

from daemon.queue import outbox_statements as outbox
from daemon.queue import statements as sql

_TASK_TYPES = "SELECT jsonb_array_elements_text({}::jsonb)"
# The time of the lease in microseconds: a server that dies may lose a lease, and with a mere
# count, two holders would show the same fence.
_NEXT_FENCE = "greatest(fence + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)"
_LEASED = f"""
UPDATE jobs SET status = 'processing', attempt = attempt + 1, fence = {_NEXT_FENCE}, seq = seq + 1,
                worker = $1, started_at = $2, lease_until = $3,
                waiting_since = CASE WHEN waiting_since < (
                    SELECT coalesce(resumed_at, until) FROM pauses
                    WHERE pauses.task_type = jobs.task_type) THEN NULL ELSE waiting_since END
"""  # noqa: S608 - literals
_PAUSED = "resumed_at IS NULL AND (until IS NULL OR until > $2)"

TEXTS: dict[str, str] = {
    sql.FIND_JOBS: """
        SELECT * FROM jobs
        WHERE job_id = ANY (ARRAY(SELECT jsonb_array_elements_text($1::jsonb)))
        ORDER BY id FOR UPDATE
    """,
    sql.FIND_PAIRS: """
        SELECT jobs.* FROM jsonb_array_elements($1::jsonb) AS pair JOIN jobs
          ON jobs.media_store_id = (pair.value ->> 0)::bigint AND jobs.task_type = pair.value ->> 1
        WHERE jobs.status IN ('pending', 'processing', 'completed')
        ORDER BY jobs.id FOR UPDATE OF jobs
    """,
    # Numbered as they come; written in the order of their pairs, so that two daemons which insert
    # the same pairs wait for each other in one direction only.
    sql.INSERT: """
        WITH asked AS MATERIALIZED (
            SELECT nextval('jobs_id_seq') AS id, value FROM jsonb_array_elements($1::jsonb))
        INSERT INTO jobs (id, job_id, task_type, media_store_id, priority, rank, created_at,
                          expires_at, request_id, reply_to, correlation_data, seq)
        SELECT id, value ->> 0, value ->> 1, (value ->> 2)::bigint, (value ->> 3)::integer,
               (value ->> 4)::bigint, (value ->> 5)::bigint, (value ->> 6)::bigint,
               value ->> 7, value ->> 8, value ->> 9, 1
        FROM asked ORDER BY (value ->> 2)::bigint, value ->> 1
    """,
    sql.SUPERSEDE_SYNC: """
        UPDATE jobs SET run_at = NULL FROM jsonb_array_elements($1::jsonb) AS pair
        WHERE jobs.media_store_id = (pair.value ->> 0)::bigint
          AND jobs.task_type = pair.value ->> 1
          AND jobs.status = 'sync_failed' AND jobs.run_at IS NOT NULL
    """,
    sql.COUNT_EVENTS: """
        UPDATE jobs SET seq = seq + (told.value ->> 1)::integer
        FROM jsonb_array_elements($1::jsonb) AS told WHERE jobs.job_id = told.value ->> 0
    """,
    sql.PROMOTE: """
        UPDATE jobs SET run_at = NULL WHERE id = ANY (ARRAY(
            SELECT id FROM jobs WHERE status = 'pending' AND run_at IS NOT NULL AND run_at <= $1
            FOR UPDATE SKIP LOCKED))
    """,
    sql.LEASE: f"""{_LEASED}
        WHERE id = ANY (ARRAY(
            SELECT id FROM jobs
            WHERE status = 'pending' AND run_at IS NULL AND lost = 0 AND task_type = $4
            ORDER BY rank, id
            LIMIT CASE WHEN EXISTS (SELECT 1 FROM pauses
                                    WHERE pauses.task_type = $4 AND {_PAUSED})
                       THEN 0 ELSE $5::bigint END
            FOR UPDATE SKIP LOCKED))
        RETURNING *
    """,  # noqa: S608 - literals
    sql.LEASE_SUSPECT: f"""{_LEASED}
        WHERE id = ANY (ARRAY(
            SELECT id FROM jobs
            WHERE status = 'pending' AND run_at IS NULL AND lost > 0
              AND task_type IN ({_TASK_TYPES.format("$4")})
              AND task_type NOT IN (SELECT task_type FROM pauses WHERE {_PAUSED})
            ORDER BY rank, id LIMIT 1
            FOR UPDATE OF jobs SKIP LOCKED))
        RETURNING *
    """,  # noqa: S608 - literals
    sql.HAS_SUSPECT: f"""
        SELECT 1 FROM jobs WHERE status = 'pending' AND run_at IS NULL AND lost > 0
          AND task_type IN ({_TASK_TYPES.format("$1")})
          AND task_type NOT IN (SELECT task_type FROM pauses WHERE {_PAUSED}) LIMIT 1
    """,  # noqa: S608 - literals
    sql.RENEW: """
        UPDATE jobs SET lease_until = $1 FROM jsonb_array_elements($2::jsonb) AS held
        WHERE jobs.job_id = held.value ->> 0 AND jobs.status = 'processing'
          AND jobs.fence = (held.value ->> 1)::bigint
        RETURNING job_id
    """,
    sql.SETTLE: """
        UPDATE jobs SET status = new.value ->> 2, completed_at = (new.value ->> 3)::bigint,
            run_at = (new.value ->> 4)::bigint,
            attempt = greatest(0, jobs.attempt - (new.value ->> 5)::integer),
            lost = jobs.lost + (new.value ->> 6)::integer, worker = NULL, lease_until = NULL,
            error_code = new.value ->> 7, error_message = new.value ->> 8,
            result = coalesce(new.value ->> 9, jobs.result),
            sync_attempt = jobs.sync_attempt + (new.value ->> 10)::integer,
            waiting_since = CASE WHEN (new.value ->> 11)::integer <> 0
                                 THEN coalesce(jobs.waiting_since, $1::bigint) END,
            seq = jobs.seq + (new.value ->> 12)::integer
        FROM jsonb_array_elements($2::jsonb) AS new
        WHERE jobs.job_id = new.value ->> 0 AND jobs.status = 'processing'
          AND jobs.fence = (new.value ->> 1)::bigint
        RETURNING jobs.job_id, jobs.fence, jobs.attempt, jobs.lost, jobs.sync_attempt,
                  jobs.waiting_since, jobs.seq
    """,
    # Locked, so that a renewal waits and then finds its lease gone, or is seen; whoever else
    # reclaims passes over them.
    sql.FIND_EXPIRED: """
        SELECT * FROM jobs WHERE status = 'processing' AND lease_until < $1
        FOR UPDATE SKIP LOCKED
    """,
    sql.FIND_HELD_BY: """
        SELECT * FROM jobs WHERE status = 'processing'
          AND worker = ANY (ARRAY(SELECT jsonb_array_elements_text($1::jsonb)))
        FOR UPDATE SKIP LOCKED
    """,
    # The owner once more: what another daemon took over meanwhile, and we waited for, is its own.
    sql.ADOPT: """
        UPDATE outbox SET owner = $1 WHERE owner = $2 AND id = ANY (ARRAY(
            SELECT id FROM outbox WHERE owner = $2 AND run_at IS NULL ORDER BY id LIMIT $3))
    """,
    # Of several jobs of one pair the oldest starts again, as with UPDATE OR IGNORE.
    sql.REQUEUE_ALL: """
        WITH failed AS MATERIALIZED (
            SELECT id, media_store_id, task_type FROM jobs
            WHERE id = ANY (ARRAY(SELECT jsonb_array_elements_text($1::jsonb)::bigint))
              AND status IN ('error', 'sync_failed')
            FOR UPDATE)
        UPDATE jobs SET
            status = 'pending', completed_at = NULL, run_at = NULL, attempt = 0, lost = 0,
            sync_attempt = 0, waiting_since = NULL, error_code = NULL, error_message = NULL,
            expires_at = NULL, seq = seq + 1
        WHERE id = ANY (ARRAY(
            SELECT min(failed.id) FROM failed
            WHERE NOT EXISTS (
                SELECT 1 FROM jobs AS rival
                WHERE rival.media_store_id = failed.media_store_id
                  AND rival.task_type = failed.task_type
                  AND rival.status IN ('pending', 'processing', 'completed'))
            GROUP BY failed.media_store_id, failed.task_type))
        RETURNING *
    """,
    sql.FORGET_ALL: """
        DELETE FROM jobs WHERE completed_at IS NOT NULL
          AND job_id = ANY (ARRAY(SELECT jsonb_array_elements_text($1::jsonb)))
    """,
    sql.DUE_SYNC: f"""
        SELECT * FROM jobs WHERE status = 'sync_failed' AND run_at IS NOT NULL AND run_at <= $1
          AND task_type IN ({_TASK_TYPES.format("$2")})
        ORDER BY run_at LIMIT $3
    """,  # noqa: S608 - literals
    sql.COUNT_TASKS: """
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
        FROM jsonb_array_elements_text($1::jsonb) AS task(value) LEFT JOIN pauses
          ON pauses.task_type = task.value AND resumed_at IS NULL AND (until IS NULL OR until > $2)
    """,
    sql.PAUSE: """
        INSERT INTO pauses (task_type, paused_at, until) VALUES ($1, $2, $3)
        ON CONFLICT (task_type) DO UPDATE SET
            paused_at = CASE WHEN pauses.resumed_at IS NULL
                              AND (pauses.until IS NULL OR pauses.until > $2)
                             THEN pauses.paused_at ELSE $2 END,
            until = $3, resumed_at = NULL
    """,
    # In two parts: an index is no help to IS NOT DISTINCT FROM.
    sql.FAILURE_TOLD: """
        SELECT error_message, media_store_id FROM (
            (SELECT error_message, media_store_id FROM jobs
             WHERE status IN ('error', 'sync_failed') AND error_code = $1 AND task_type = $2
             ORDER BY completed_at DESC LIMIT 1)
            UNION ALL
            (SELECT error_message, media_store_id FROM jobs
             WHERE status IN ('error', 'sync_failed') AND error_code IS NULL AND $1::text IS NULL
               AND task_type = $2
             ORDER BY completed_at DESC LIMIT 1)) AS told
    """,
    sql.PRUNE: """
        DELETE FROM jobs WHERE id = ANY (ARRAY(
            SELECT id FROM jobs WHERE completed_at IS NOT NULL AND completed_at < $1
              AND NOT (status = 'sync_failed' AND run_at IS NOT NULL)
            ORDER BY completed_at LIMIT $2
            FOR UPDATE SKIP LOCKED))
    """,
    outbox.CONFIRM: """
        DELETE FROM outbox
        WHERE id = ANY (ARRAY(SELECT (told ->> 0)::bigint
                              FROM jsonb_array_elements($1::jsonb) AS told))
          AND (id, created_at) IN (SELECT (told ->> 0)::bigint, (told ->> 1)::bigint
                                   FROM jsonb_array_elements($1::jsonb) AS told)
    """,
    outbox.DELAY: """
        UPDATE outbox SET run_at = (delayed.value ->> 1)::bigint, attempt = attempt + 1
        FROM jsonb_array_elements($1::jsonb) AS delayed
        WHERE outbox.id = (delayed.value ->> 0)::bigint
          AND outbox.created_at = (delayed.value ->> 2)::bigint
    """,
}
_PARAMETER = re.compile(r"\?(\d*)")


@cache
def text_of(statement: str) -> str:
    """Return a statement of the verbs as PostgreSQL takes it."""
    return TEXTS.get(statement) or _numbered(statement)


def _numbered(statement: str) -> str:
    """Return it with `$1` for `?1`, and `$n` for the nth bare `?`."""
    bare = 0

    def number(found: re.Match[str]) -> str:
        nonlocal bare
        bare += 1
        return f"${found[1] or bare}"

    return _PARAMETER.sub(number, statement)
