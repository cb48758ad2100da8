-- What becomes of a credential in use: who renews its tokens, why nobody can any more, and what its last test said.
ALTER TABLE credentials ADD COLUMN renewing_until REAL;  -- of who renews them now; it is told by that moment
ALTER TABLE credentials ADD COLUMN reconnect TEXT;       -- why the far side takes it no more; until it is changed
ALTER TABLE credentials ADD COLUMN tested_at REAL;
ALTER TABLE credentials ADD COLUMN test BLOB;            -- JSON: what the last test said

-- Credentials that stand in a node of a document: there is only their id, which what they are gives them.
CREATE TABLE inline_credentials (
    workflow_id TEXT NOT NULL REFERENCES workflows (id) ON DELETE CASCADE,
    id TEXT NOT NULL,
    data_key BLOB NOT NULL,       -- what they are sealed under, sealed under the key key_version
    key_version INTEGER NOT NULL REFERENCES vault_keys (version),
    sealed BLOB NOT NULL,         -- JSON: field and text
    created_at REAL NOT NULL,
    PRIMARY KEY (workflow_id, id)
) WITHOUT ROWID;
CREATE INDEX inline_credentials_key ON inline_credentials (key_version);
