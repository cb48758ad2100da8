-- Instants are epoch seconds (REAL), documents and values are UTF-8 JSON.

CREATE TABLE processes (
    id TEXT PRIMARY KEY,          -- boot id, pid namespace, pid, start time: one run of one process
    role TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    pid_namespace INTEGER NOT NULL,
    pid INTEGER NOT NULL,
    start_ticks INTEGER NOT NULL,
    started_at REAL NOT NULL,
    heartbeat_at REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE queue_control (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    subject,                      -- what the job is about: at most one live job per kind and subject
    state TEXT NOT NULL CHECK (state IN
        ('scheduled', 'available', 'running', 'retryable', 'completed', 'cancelled', 'discarded')),
    priority INTEGER NOT NULL,    -- higher first
    due_at REAL NOT NULL,
    payload BLOB,
    dedupe_key TEXT,
    concurrency_key TEXT,
    concurrency_limit INTEGER,
    blocked INTEGER NOT NULL DEFAULT 0,   -- its concurrency key had no free place when last looked at
    fence INTEGER NOT NULL DEFAULT 0,     -- grows at every claim, never falls
    attempt INTEGER NOT NULL DEFAULT 0,   -- failures of the runtime itself
    rescues INTEGER NOT NULL DEFAULT 0,   -- times taken back from a dead process
    owner TEXT,                   -- processes.id while running
    leased_until REAL,
    error TEXT,
    created_at REAL NOT NULL,
    finished_at REAL
);
-- A job is live until it has ended. Naming the end, not the states, spares these two a rewrite per claim.
CREATE UNIQUE INDEX jobs_live_subject ON jobs (subject, kind) WHERE finished_at IS NULL;
CREATE UNIQUE INDEX jobs_live_dedupe ON jobs (dedupe_key)
    WHERE dedupe_key IS NOT NULL AND finished_at IS NULL;
-- Jobs on probation (queue/job.py) are claimed apart from the others, those first that were rescued least.
CREATE INDEX jobs_available ON jobs (priority DESC, due_at, id)
    WHERE state = 'available' AND blocked = 0 AND rescues < 5;
CREATE INDEX jobs_on_probation ON jobs (rescues, due_at, id)
    WHERE state = 'available' AND blocked = 0 AND rescues >= 5;
CREATE INDEX jobs_due ON jobs (due_at) WHERE state IN ('scheduled', 'retryable');
CREATE INDEX jobs_running ON jobs (owner) WHERE state = 'running';
CREATE INDEX jobs_finished ON jobs (finished_at, state) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_waiting ON jobs (concurrency_key, blocked, priority DESC, due_at, id)
    WHERE concurrency_key IS NOT NULL AND state = 'available';
CREATE INDEX jobs_running_key ON jobs (concurrency_key)
    WHERE concurrency_key IS NOT NULL AND state = 'running';

CREATE TABLE workflows (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,     -- the current one; executions keep the version they began with
    active INTEGER NOT NULL,
    concurrency INTEGER,          -- executions that may run at once; NULL: no bound of its own
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE workflow_versions (
    workflow_id TEXT NOT NULL REFERENCES workflows (id) ON DELETE CASCADE,
    version INTEGER NOT NULL,
    content_hash TEXT NOT NULL,
    document BLOB NOT NULL,
    created_at REAL NOT NULL,
    PRIMARY KEY (workflow_id, version),
    UNIQUE (workflow_id, content_hash)
);

CREATE TABLE webhooks (
    path TEXT PRIMARY KEY,
    workflow_id TEXT NOT NULL REFERENCES workflows (id) ON DELETE CASCADE,
    node_id TEXT NOT NULL,
    generated INTEGER NOT NULL,   -- 1: a random path, kept for good; 0: params.path
    bound INTEGER NOT NULL,       -- 1: the current version answers on it
    UNIQUE (workflow_id, node_id, generated)
) WITHOUT ROWID;

CREATE TABLE executions (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    workflow_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN
        ('queued', 'running', 'waiting', 'completed', 'failed', 'cancelled', 'uncertain')),
    trigger_type TEXT NOT NULL,
    trigger_node TEXT NOT NULL,
    input BLOB NOT NULL,
    output BLOB,
    error BLOB,
    wakes INTEGER NOT NULL DEFAULT 0,     -- grows whenever something happened that a run must look at
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    FOREIGN KEY (workflow_id, version) REFERENCES workflow_versions (workflow_id, version)
);
CREATE INDEX executions_workflow ON executions (workflow_id, seq);
CREATE INDEX executions_open ON executions (status, seq) WHERE status <> 'completed';

CREATE TABLE node_runs (
    execution INTEGER NOT NULL REFERENCES executions (seq) ON DELETE CASCADE,
    key TEXT NOT NULL,            -- the node id; inside a loop: loop[3].price
    type TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN
        ('pending', 'running', 'waiting', 'completed', 'failed', 'skipped', 'uncertain')),
    attempt INTEGER NOT NULL,
    effect TEXT NOT NULL,
    idempotency_key TEXT,
    input_hash BLOB,
    started_at REAL,              -- also what now() answers in this node run
    finished_at REAL,
    output BLOB,
    error BLOB,
    metadata BLOB,
    PRIMARY KEY (execution, key)
) WITHOUT ROWID;

CREATE TABLE timers (
    id INTEGER PRIMARY KEY,
    execution INTEGER NOT NULL REFERENCES executions (seq) ON DELETE CASCADE,
    key TEXT NOT NULL,
    due_at REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'fired', 'cancelled')),
    output BLOB NOT NULL,         -- what the waiting node run completes with
    fired_at REAL
);
CREATE UNIQUE INDEX timers_pending ON timers (execution, key) WHERE state = 'pending';
CREATE INDEX timers_due ON timers (due_at) WHERE state = 'pending';
CREATE INDEX timers_execution ON timers (execution);

CREATE TABLE dedupe_keys (
    workflow_id TEXT NOT NULL REFERENCES workflows (id) ON DELETE CASCADE,
    trigger_node TEXT NOT NULL,
    trigger_type TEXT NOT NULL,   -- a delivery and a run by hand that begin at one node are two things
    key TEXT NOT NULL,
    execution_id TEXT NOT NULL,
    expires_at REAL NOT NULL,
    PRIMARY KEY (workflow_id, trigger_node, trigger_type, key)
) WITHOUT ROWID;
CREATE INDEX dedupe_expiry ON dedupe_keys (expires_at);
