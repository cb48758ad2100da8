-- Code nodes that have broken a rule, by the version of their workflow: what is told of one, and whether it rests.
CREATE TABLE code_nodes (
    workflow_id TEXT NOT NULL REFERENCES workflows (id) ON DELETE CASCADE,
    version INTEGER NOT NULL,
    node TEXT NOT NULL,
    violations INTEGER NOT NULL,  -- runs that broke a rule since then
    since REAL NOT NULL,
    quarantined_at REAL,          -- it runs no more until a person says so
    reason BLOB NOT NULL,         -- JSON: what it did last
    PRIMARY KEY (workflow_id, version, node)
) WITHOUT ROWID;
