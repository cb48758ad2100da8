"""The SQL of evidence, circuits and rate limits."""

_EVIDENCE = "connector, operation, calls, failures, fallbacks, last_success_at, last_failure_at, last_failure"
_CIRCUIT = "connector, operation, credential, failures, open_until, probe_until, failure, failed_at"

PUT_EVIDENCE = f"""
INSERT INTO operation_evidence ({_EVIDENCE}) VALUES (?, ?, 1, ?, ?, ?, ?, ?)
ON CONFLICT (connector, operation) DO UPDATE SET
    calls = calls + 1,
    failures = failures + excluded.failures,
    fallbacks = fallbacks + excluded.fallbacks,
    last_success_at = max(coalesce(excluded.last_success_at, last_success_at),
                          coalesce(last_success_at, excluded.last_success_at)),
    last_failure = coalesce(excluded.last_failure, last_failure),
    last_failure_at = coalesce(excluded.last_failure_at, last_failure_at)"""  # noqa: S608  # constants
LIST_EVIDENCE = f"""
SELECT {_EVIDENCE} FROM operation_evidence
WHERE (connector, operation) > (?, ?) ORDER BY connector, operation LIMIT ?"""  # noqa: S608
LIST_EVIDENCE_OF = f"""
SELECT {_EVIDENCE} FROM operation_evidence
WHERE connector = ? AND operation > ? ORDER BY operation LIMIT ?"""  # noqa: S608

LIST_CIRCUITS = f"SELECT {_CIRCUIT} FROM circuits"  # noqa: S608
PUT_CIRCUIT = f"""
INSERT INTO circuits ({_CIRCUIT}) VALUES (?, ?, ?, 1, NULL, NULL, ?, ?)
ON CONFLICT (connector, operation, credential) DO UPDATE SET
    failures = failures + 1,
    open_until = CASE WHEN failures + 1 >= ? THEN excluded.failed_at + ? END,
    probe_until = NULL,
    failure = excluded.failure,
    failed_at = excluded.failed_at"""  # noqa: S608
PROBE_CIRCUIT = """
UPDATE circuits SET probe_until = ?
WHERE connector = ? AND operation = ? AND credential = ?
  AND NOT (open_until > ? AND open_until <= ?)
  AND NOT (coalesce(probe_until, 0) > ? AND coalesce(probe_until, 0) <= ?)"""
END_PROBE = """
UPDATE circuits SET probe_until = NULL WHERE connector = ? AND operation = ? AND credential = ?"""
CLOSE_CIRCUIT = "DELETE FROM circuits WHERE connector = ? AND operation = ? AND credential = ?"
CLOSE_CIRCUITS_OF = "DELETE FROM circuits WHERE connector = ?"
CLOSE_CIRCUITS_OF_OPERATION = "DELETE FROM circuits WHERE connector = ? AND operation = ?"
FORGET_OLD_CIRCUITS = """
DELETE FROM circuits WHERE (connector, operation, credential) IN (
    SELECT connector, operation, credential FROM circuits WHERE failed_at < ? LIMIT ?)"""

GET_RATE_LIMIT = "SELECT free_at, queue_until, seen_at FROM rate_limits WHERE bucket = ?"
PUT_RATE_LIMIT = """
INSERT INTO rate_limits (bucket, free_at, queue_until, seen_at, idle_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (bucket) DO UPDATE SET
    free_at = excluded.free_at, queue_until = excluded.queue_until,
    seen_at = excluded.seen_at, idle_at = excluded.idle_at"""
DROP_IDLE_RATE_LIMITS = """
DELETE FROM rate_limits WHERE bucket IN (
    SELECT bucket FROM rate_limits WHERE idle_at < ? ORDER BY idle_at LIMIT ?)"""
