-- The failed jobs of a picture; its others stand in jobs_pair. As jobs_failed, it costs claims and
-- completions nothing.
CREATE INDEX jobs_failed_media ON jobs (media_store_id) WHERE status IN ('error', 'sync_failed');
