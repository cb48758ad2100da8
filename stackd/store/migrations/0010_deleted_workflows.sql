-- How far the versions of a deleted workflow had come: those of one with the same id go on from there, so that a
-- version is never two things.
CREATE TABLE deleted_workflows (
    id TEXT PRIMARY KEY,
    version INTEGER NOT NULL
) WITHOUT ROWID;
