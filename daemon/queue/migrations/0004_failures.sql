-- What failed, by its code: counted and asked for again however many jobs went well. A row enters
-- and leaves it with its failure only, so that claims and completions cost what they did.
CREATE INDEX jobs_failed ON jobs (error_code, task_type, completed_at, status)
    WHERE status IN ('error', 'sync_failed');
