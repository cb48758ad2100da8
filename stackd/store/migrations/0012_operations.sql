-- What is known of the operations of connectors: how they went, which rest, and whose turn it is.
CREATE TABLE operation_evidence (
    connector TEXT NOT NULL,
    operation TEXT NOT NULL,      -- an action, by its normal id
    calls INTEGER NOT NULL,       -- tries, whatever became of them
    failures INTEGER NOT NULL,
    fallbacks INTEGER NOT NULL,   -- tries by generic HTTP in place of a handler
    last_success_at REAL,
    last_failure_at REAL,
    last_failure BLOB,            -- JSON: code and message
    PRIMARY KEY (connector, operation)
) WITHOUT ROWID;

-- Operations that failed last time, by credential ('' without one). One that is not here is well.
CREATE TABLE circuits (
    connector TEXT NOT NULL,
    operation TEXT NOT NULL,
    credential TEXT NOT NULL,
    failures INTEGER NOT NULL,    -- in a row
    open_until REAL,              -- it rests until then; NULL: it is asked for
    probe_until REAL,             -- one tries whether it is well again, and is believed to until then
    failure BLOB NOT NULL,        -- the last one, as JSON: code and message
    failed_at REAL NOT NULL,
    PRIMARY KEY (connector, operation, credential)
) WITHOUT ROWID;

-- Declared limits that count something now.
CREATE TABLE rate_limits (
    bucket BLOB PRIMARY KEY,      -- a digest of what is limited
    free_at REAL NOT NULL,        -- when all that was granted is made up for
    queue_until REAL NOT NULL,    -- the turn after the last one that was put off
    seen_at REAL NOT NULL,        -- the clock at the last change: it may be set back
    idle_at REAL NOT NULL         -- from then on the row says nothing
) WITHOUT ROWID;
CREATE INDEX rate_limits_idle ON rate_limits (idle_at);
