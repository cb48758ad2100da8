-- A call to the link of a node run that does not wait yet. It is kept until the node does.
CREATE TABLE early_calls (
    execution INTEGER NOT NULL REFERENCES executions (seq) ON DELETE CASCADE,
    key TEXT NOT NULL,            -- of the node run
    output BLOB NOT NULL,         -- what the node will give
    PRIMARY KEY (execution, key)
) WITHOUT ROWID;
