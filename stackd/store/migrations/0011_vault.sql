-- The keys that data keys are sealed under. None of them stands here: each is derived from the master key and its salt.
CREATE TABLE vault_keys (
    version INTEGER PRIMARY KEY,
    state TEXT NOT NULL,          -- active, rotating, retired
    salt BLOB NOT NULL,
    proof BLOB NOT NULL,          -- by which a master key is known again
    created_at REAL NOT NULL
);
CREATE UNIQUE INDEX vault_keys_active ON vault_keys (state) WHERE state = 'active';

CREATE TABLE credentials (
    id TEXT PRIMARY KEY,
    connector TEXT NOT NULL,
    auth TEXT,
    public BLOB NOT NULL,         -- JSON: the fields that are no secret, each a text
    data_key BLOB NOT NULL,       -- what its secrets are sealed under, sealed under the key key_version
    key_version INTEGER NOT NULL REFERENCES vault_keys (version),
    version INTEGER NOT NULL,     -- grows by one at each change
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX credentials_key ON credentials (key_version);

CREATE TABLE sealed_fields (
    credential TEXT NOT NULL REFERENCES credentials (id),
    name TEXT NOT NULL,
    sealed BLOB NOT NULL,
    PRIMARY KEY (credential, name)
);
