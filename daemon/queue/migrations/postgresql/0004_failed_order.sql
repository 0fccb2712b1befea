-- With its id an index holds the failed jobs in the very order in which they are asked for again.
-- Without it rows of one moment had to be sorted, and the planner, weighing that sort, walked over
-- all finished jobs by time instead.
DROP INDEX jobs_failed;
CREATE INDEX jobs_failed ON jobs (error_code, task_type, completed_at, status, id)
    WHERE status IN ('error', 'sync_failed');
