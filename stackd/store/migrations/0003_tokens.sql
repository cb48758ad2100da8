CREATE TABLE tokens (
    id TEXT PRIMARY KEY,          -- sorts by the time it was made
    name TEXT NOT NULL,
    scopes TEXT NOT NULL,         -- names with a space between
    secret_hash BLOB NOT NULL,    -- SHA-256; the secret itself is nowhere
    created_at REAL NOT NULL,
    last_used_at REAL,            -- to the minute
    expires_at REAL,
    revoked_at REAL
) WITHOUT ROWID;
