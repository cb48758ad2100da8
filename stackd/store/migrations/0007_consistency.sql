-- What looks for things that do not fit together finds the few that are open among the many that have ended.
CREATE INDEX node_runs_open ON node_runs (execution, key) WHERE status IN ('pending', 'running', 'waiting');
CREATE INDEX executions_to_cancel ON executions (seq) WHERE cancel_requested = 1 AND finished_at IS NULL;

-- What the process found where all of one store must agree, as JSON; NULL: it has not said.
ALTER TABLE processes ADD COLUMN resolved TEXT;
