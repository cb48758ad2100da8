"""The SQL of keys and credentials."""

_KEY = "version, state, salt, proof"
_CREDENTIAL = (
    "id, connector, auth, public, version, created_at, updated_at, reconnect, tested_at, test"
)

HAS_KEYS = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'vault_keys'"
LIST_KEYS = f"SELECT {_KEY} FROM vault_keys ORDER BY version"  # noqa: S608  # constants
GET_KEY = f"SELECT {_KEY} FROM vault_keys WHERE version = ?"  # noqa: S608
GET_ACTIVE_KEY = f"SELECT {_KEY} FROM vault_keys WHERE state = 'active'"  # noqa: S608
INSERT_KEY = (
    "INSERT INTO vault_keys (version, state, salt, proof, created_at) VALUES (?, ?, ?, ?, ?)"
)

RETIRE_KEY = "UPDATE vault_keys SET state = 'retired' WHERE version = ?"

SEALED_UNDER = "SELECT id FROM credentials WHERE key_version = ?"
INLINE_UNDER = "SELECT workflow_id FROM inline_credentials WHERE key_version = ?"
DELETE_INLINE_UNDER = "DELETE FROM inline_credentials WHERE key_version = ?"

GET_CREDENTIAL = f"SELECT {_CREDENTIAL} FROM credentials WHERE id = ?"  # noqa: S608
LIST_CREDENTIALS = f"SELECT {_CREDENTIAL} FROM credentials WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608
LIST_CONNECTORS = "SELECT connector, tested_at FROM credentials"
COUNT_CREDENTIALS = "SELECT count(*) FROM credentials"
INSERT_CREDENTIAL = """
INSERT INTO credentials
    (id, connector, auth, public, data_key, key_version, version, created_at, updated_at)
VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?) ON CONFLICT DO NOTHING"""
CHANGE_CREDENTIAL = """
UPDATE credentials SET auth = ?, public = ?, version = version + 1, updated_at = max(updated_at, ?),
    reconnect = NULL
WHERE id = ? AND version = ?"""
CLAIM_RENEWAL = """
UPDATE credentials SET renewing_until = ?, renewing_by = ?
WHERE id = ? AND version = ? AND reconnect IS NULL
    AND (renewing_until IS NULL OR renewing_until NOT BETWEEN ? AND ?)"""
GET_RENEWAL = """
SELECT renewing_until, renewing_by FROM credentials WHERE id = ? AND renewing_by IS NOT NULL"""
RELEASE_RENEWAL = """
UPDATE credentials SET renewing_until = NULL, renewing_by = NULL WHERE id = ? AND renewing_until = ?"""
RECORD_TEST = "UPDATE credentials SET tested_at = ?, test = ? WHERE id = ?"
DISCONNECT = """
UPDATE credentials SET reconnect = ?, renewing_until = NULL, renewing_by = NULL
WHERE id = ? AND version = ? AND reconnect IS NULL"""
DELETE_CREDENTIAL = "DELETE FROM credentials WHERE id = ?"

GET_DATA_KEY = "SELECT data_key, key_version, public FROM credentials WHERE id = ?"
CHANGE_DATA_KEY = "UPDATE credentials SET data_key = ?, key_version = ? WHERE id = ?"

NAME_SEALED = """
SELECT credential, name FROM sealed_fields WHERE credential BETWEEN ? AND ? ORDER BY credential, name"""
GET_SEALED = "SELECT name, sealed FROM sealed_fields WHERE credential = ?"
PUT_SEALED = """
INSERT INTO sealed_fields (credential, name, sealed) VALUES (?, ?, ?)
ON CONFLICT (credential, name) DO UPDATE SET sealed = excluded.sealed"""
DELETE_SEALED = "DELETE FROM sealed_fields WHERE credential = ? AND name = ?"
DELETE_ALL_SEALED = "DELETE FROM sealed_fields WHERE credential = ?"

GET_INLINE = """
SELECT data_key, key_version, sealed FROM inline_credentials WHERE workflow_id = ? AND id = ?"""
INSERT_INLINE = """
INSERT INTO inline_credentials (workflow_id, id, data_key, key_version, sealed, created_at)
VALUES (?, ?, ?, ?, ?, ?)"""
