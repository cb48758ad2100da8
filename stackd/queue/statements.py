"""The SQL of jobs and of the processes that own them. Stored forms exist only here.

The 5 of `rescues < 5` is `job.PROBATION`; it stands in the indexes too, so that it cannot be a parameter.
"""

ENQUEUE = """
INSERT INTO jobs (kind, subject, state, priority, due_at, payload, dedupe_key,
                  concurrency_key, concurrency_limit, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (subject, kind) WHERE finished_at IS NULL DO NOTHING
ON CONFLICT (dedupe_key) WHERE dedupe_key IS NOT NULL AND finished_at IS NULL DO NOTHING
RETURNING id"""

COUNT_LIVE = "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE finished_at IS NULL LIMIT ?)"

PROMOTE_DUE = """
UPDATE jobs SET state = 'available', blocked = 0
WHERE id IN (SELECT id FROM jobs WHERE state IN ('scheduled', 'retryable') AND due_at <= ?
             ORDER BY due_at LIMIT ?)"""

_CLAIMED = """
RETURNING id, kind, subject, payload, fence, attempt, rescues, priority, due_at,
          concurrency_key, concurrency_limit"""
CLAIM = f"""
UPDATE jobs SET state = 'running', fence = fence + 1, owner = ?, leased_until = ?
WHERE id IN (SELECT id FROM jobs WHERE state = 'available' AND blocked = 0 AND rescues < 5
             ORDER BY priority DESC, due_at, id LIMIT ?){_CLAIMED}"""  # noqa: S608  # constants
CLAIM_ON_PROBATION = f"""
UPDATE jobs SET state = 'running', fence = fence + 1, owner = ?, leased_until = ?
WHERE id = ?{_CLAIMED}"""  # noqa: S608  # constants
FIRST_ON_PROBATION = """
SELECT id, kind, subject FROM jobs WHERE state = 'available' AND blocked = 0 AND rescues >= 5
ORDER BY rescues, due_at, id LIMIT 1"""
RUNS_ON_PROBATION = """
SELECT 1 FROM jobs WHERE owner = ? AND state = 'running' AND rescues >= 5 LIMIT 1"""

COUNT_RUNNING_OF_KEY = "SELECT count(*) FROM jobs WHERE concurrency_key = ? AND state = 'running'"

BLOCK = """
UPDATE jobs SET state = 'available', blocked = 1, owner = NULL, leased_until = NULL
WHERE id = ? AND fence = ? AND state = 'running'"""

FIRST_BLOCKED = """
SELECT concurrency_limit FROM jobs WHERE concurrency_key = ? AND state = 'available' AND blocked = 1
ORDER BY priority DESC, due_at, id LIMIT 1"""

COUNT_OFFERED_OF_KEY = """
SELECT count(*) FROM jobs WHERE concurrency_key = ? AND state = 'available' AND blocked = 0"""

UNBLOCK = """
UPDATE jobs SET blocked = 0
WHERE id IN (SELECT id FROM jobs WHERE concurrency_key = ? AND state = 'available' AND blocked = 1
             ORDER BY priority DESC, due_at, id LIMIT ?)
RETURNING id, kind, subject"""

BLOCKED_KEYS = """
SELECT DISTINCT concurrency_key FROM jobs
WHERE concurrency_key IS NOT NULL AND state = 'available' AND blocked = 1"""

CHANGE_LIMIT = """
UPDATE jobs SET concurrency_limit = ?
WHERE finished_at IS NULL AND concurrency_key = ? AND concurrency_limit IS NOT ?"""

GIVE_KEY = """
UPDATE jobs SET concurrency_key = ?
WHERE finished_at IS NULL AND kind = ? AND subject IN (SELECT value FROM json_each(?))"""

RENEW = "UPDATE jobs SET leased_until = ? WHERE owner = ? AND state = 'running'"

HOLDS = "SELECT 1 FROM jobs WHERE id = ? AND fence = ? AND state = 'running'"

SETTLE = """
UPDATE jobs SET state = ?, attempt = ?, due_at = coalesce(?, due_at), error = ?, owner = NULL,
                leased_until = NULL, finished_at = ?
WHERE id = ? AND fence = ? AND concurrency_key IS ? AND state = 'running'"""
KEY_OF_CLAIM = "SELECT concurrency_key FROM jobs WHERE id = ? AND fence = ? AND state = 'running'"

CANCEL_PENDING = """
UPDATE jobs SET state = 'cancelled', finished_at = ?
WHERE kind = ? AND subject = ? AND finished_at IS NULL AND state <> 'running'
RETURNING id, fence, concurrency_key"""

DISCARD = """
UPDATE jobs SET state = 'discarded', error = ?, owner = NULL, leased_until = NULL, finished_at = ?
WHERE id = ? AND finished_at IS NULL RETURNING kind, subject, fence, concurrency_key"""
OFFER_AGAIN = """
UPDATE jobs SET state = 'available', blocked = 0, owner = NULL, leased_until = NULL
WHERE id = ? AND state = 'running' AND owner IS NULL RETURNING kind, subject, rescues, concurrency_key"""

RUNNING_OWNERS = """
SELECT DISTINCT jobs.owner, processes.boot_id, processes.pid_namespace, processes.pid,
       processes.start_ticks, processes.heartbeat_at
FROM jobs LEFT JOIN processes ON processes.id = jobs.owner
WHERE jobs.state = 'running'"""

RESCUE = """
UPDATE jobs SET state = CASE WHEN rescues + 1 > ? THEN 'discarded' ELSE 'available' END,
                rescues = rescues + 1, blocked = 0, owner = NULL, leased_until = NULL,
                error = CASE WHEN rescues + 1 > ? THEN 'job.crash_loop' ELSE error END,
                finished_at = CASE WHEN rescues + 1 > ? THEN ? END
WHERE id IN (SELECT id FROM jobs WHERE owner = ? AND state = 'running' LIMIT ?)
RETURNING id, kind, subject, state, rescues, concurrency_key"""

PRUNE = """
DELETE FROM jobs WHERE id IN (
    SELECT id FROM jobs WHERE finished_at < ? ORDER BY finished_at LIMIT ?)"""

NEXT_DUE = "SELECT min(due_at) FROM jobs WHERE state IN ('scheduled', 'retryable')"

HAS_AVAILABLE = """
SELECT 1 FROM jobs WHERE state = 'available' AND blocked = 0 AND rescues < 5 LIMIT 1"""

COUNT_LIVE_BY_STATE = "SELECT state, count(*) FROM jobs WHERE finished_at IS NULL GROUP BY state"
COUNT_ENDED_BY_STATE = """
SELECT state, count(*) FROM jobs WHERE finished_at IS NOT NULL AND kind NOT LIKE 'stackd.%' GROUP BY state"""

OLDEST_AVAILABLE = """
SELECT min(due_at) FROM (
    SELECT min(due_at) AS due_at FROM jobs WHERE state = 'available' AND blocked = 0 AND rescues < 5
    UNION ALL
    SELECT min(due_at) FROM jobs WHERE state = 'available' AND blocked = 0 AND rescues >= 5)"""

JOB_IS_LIVE = "SELECT 1 FROM jobs WHERE kind = ? AND subject = ? AND finished_at IS NULL"

SET_CONTROL = "INSERT INTO queue_control VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
GET_CONTROL = "SELECT value FROM queue_control WHERE name = ?"

REGISTER_PROCESS = """
INSERT INTO processes (id, role, boot_id, pid_namespace, pid, start_ticks, started_at, heartbeat_at, resolved)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    role = excluded.role, heartbeat_at = excluded.heartbeat_at, resolved = excluded.resolved"""
BEAT = "UPDATE processes SET heartbeat_at = ? WHERE id = ?"
FORGET_PROCESS = "DELETE FROM processes WHERE id = ?"
SILENT_PROCESSES = """
SELECT id, boot_id, pid_namespace, pid, start_ticks FROM processes WHERE heartbeat_at < ?
AND NOT EXISTS (SELECT 1 FROM jobs WHERE owner = processes.id AND state = 'running')"""
LIST_PROCESSES = """
SELECT role, boot_id, pid_namespace, pid, start_ticks, started_at, heartbeat_at, resolved FROM processes
ORDER BY started_at"""
