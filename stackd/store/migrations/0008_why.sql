-- Why something was skipped, delayed, refused, sent back or given up; what happens often is counted in one row.
CREATE TABLE why (
    id INTEGER PRIMARY KEY,
    code TEXT NOT NULL,
    subject TEXT NOT NULL,        -- what it is about: an execution, a workflow, or `queue`
    message TEXT NOT NULL,
    first_at REAL NOT NULL,
    last_at REAL NOT NULL,
    count INTEGER NOT NULL
);
CREATE INDEX why_subject ON why (subject, id);
CREATE INDEX why_last ON why (last_at);
