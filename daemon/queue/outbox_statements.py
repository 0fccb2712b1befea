"""The outbox relay's SQL by name; the contract tests hold its plans to the indexes."""

NEXT = "SELECT * FROM outbox WHERE owner = ? AND run_at IS NULL AND id > ? ORDER BY id LIMIT ?"
HAS_DUE = "SELECT 1 FROM outbox WHERE run_at IS NOT NULL AND run_at <= ? LIMIT 1"
# By the moment too: a PostgreSQL that dies may forget its latest ids, and give them out again while
# a confirmation is still under way.
SHORTEN = "UPDATE outbox SET payload = ? WHERE id = ? AND created_at = ?"
CONFIRM = """
DELETE FROM outbox
WHERE (id, created_at) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))
"""
PROMOTE = "UPDATE outbox SET run_at = NULL WHERE run_at IS NOT NULL AND run_at <= ?"
DELAY = """
UPDATE outbox SET run_at = delayed.value ->> 1, attempt = attempt + 1 FROM json_each(?) AS delayed
WHERE outbox.id = delayed.value ->> 0 AND outbox.created_at = delayed.value ->> 2
"""
