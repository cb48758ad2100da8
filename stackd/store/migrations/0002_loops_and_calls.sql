-- What finished iterations of a loop gave, until the loop has ended: a run that goes on needs no more of them.
CREATE TABLE loop_items (
    execution INTEGER NOT NULL REFERENCES executions (seq) ON DELETE CASCADE,
    key TEXT NOT NULL,            -- of the loop's node run
    item INTEGER NOT NULL,
    output BLOB,
    PRIMARY KEY (execution, key, item)
) WITHOUT ROWID;

-- An execution that another one started. parent_key: the node run that waits for its end; NULL: nobody does.
ALTER TABLE executions ADD COLUMN parent INTEGER;
ALTER TABLE executions ADD COLUMN parent_key TEXT;
ALTER TABLE executions ADD COLUMN depth INTEGER NOT NULL DEFAULT 0;
CREATE INDEX executions_parent ON executions (parent) WHERE parent IS NOT NULL;

-- Lists of what needs a person's eye, by workflow. What completes never enters it, so that it costs nothing there.
CREATE INDEX executions_noticed ON executions (workflow_id, status, seq)
    WHERE status IN ('waiting', 'failed', 'cancelled', 'uncertain');

-- The completed ones, newest first, also behind a hundred thousand that are queued.
CREATE INDEX executions_completed ON executions (seq) WHERE status = 'completed';
