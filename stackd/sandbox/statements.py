"""The SQL of code nodes that have broken a rule."""

_NODE = "workflow_id, version, node, violations, since, quarantined_at, reason"

GET_CODE_NODE = f"""
SELECT {_NODE} FROM code_nodes WHERE workflow_id = ? AND version = ? AND node = ?"""  # noqa: S608  # constants
PUT_CODE_NODE = f"""
INSERT INTO code_nodes ({_NODE}) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (workflow_id, version, node) DO UPDATE SET
    violations = excluded.violations, since = excluded.since,
    quarantined_at = coalesce(quarantined_at, excluded.quarantined_at), reason = excluded.reason"""  # noqa: S608
FORGET_CODE_NODE = """
DELETE FROM code_nodes
WHERE workflow_id = ? AND version = ? AND node = ? AND quarantined_at IS NULL"""
LIST_QUARANTINED = f"""
SELECT {_NODE} FROM code_nodes WHERE quarantined_at IS NOT NULL
ORDER BY workflow_id, version, node"""  # noqa: S608
RELEASE_CODE_NODES = """
DELETE FROM code_nodes WHERE workflow_id = ? AND quarantined_at IS NOT NULL"""
RELEASE_CODE_NODE = """
DELETE FROM code_nodes WHERE workflow_id = ? AND node = ? AND quarantined_at IS NOT NULL"""
