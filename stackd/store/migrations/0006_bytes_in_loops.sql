-- Of a loop that stands in no other: how long the outputs of all node runs inside of it are, as JSON texts. Counted
-- as they are written, so that a wake need not add them up.
ALTER TABLE node_runs ADD COLUMN inside_bytes INTEGER NOT NULL DEFAULT 0;
UPDATE node_runs SET inside_bytes = (
    SELECT coalesce(sum(length(i.output)), 0) FROM node_runs i
    WHERE i.execution = node_runs.execution AND i.key > node_runs.key || '[' AND i.key < node_runs.key || '\'
)
WHERE type = 'logic.foreach' AND instr(key, '[') = 0;
