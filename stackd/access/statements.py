"""The SQL of tokens."""

_TOKEN = "id, name, scopes, created_at, last_used_at, expires_at, revoked_at"

GET_TOKEN = f"SELECT {_TOKEN} FROM tokens WHERE id = ?"  # noqa: S608  # constants
GET_TOKEN_WITH_HASH = f"SELECT secret_hash, {_TOKEN} FROM tokens WHERE id = ?"  # noqa: S608
LIST_TOKENS = f"SELECT {_TOKEN} FROM tokens WHERE id < ? ORDER BY id DESC LIMIT ?"  # noqa: S608
INSERT_TOKEN = """
INSERT INTO tokens (id, name, scopes, secret_hash, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)"""
REVOKE_TOKEN = "UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL"
NOTE_USE = """
UPDATE tokens SET last_used_at = ? WHERE id = ? AND (last_used_at IS NULL OR last_used_at <= ?)"""
COUNT_USABLE_TOKENS = """
SELECT count(*) FROM tokens WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)"""
DROP_ENDED_TOKENS = """
DELETE FROM tokens WHERE min(ifnull(revoked_at, expires_at), ifnull(expires_at, revoked_at)) <= ?"""
