"""The SQL of workflows, their versions and webhooks, and of executions, node runs and timers."""

from functools import cache

from stackd.queue.job import MAX_RESCUES

# Workflows and versions

GET_WORKFLOW = """
SELECT w.id, w.name, w.version, w.active, w.created_at, w.updated_at, v.content_hash
FROM workflows w JOIN workflow_versions v ON v.workflow_id = w.id AND v.version = w.version
WHERE w.id = ?"""

LIST_WORKFLOWS = """
SELECT w.id, w.name, w.version, w.active, w.created_at, w.updated_at, v.content_hash
FROM workflows w JOIN workflow_versions v ON v.workflow_id = w.id AND v.version = w.version
WHERE w.id > ? ORDER BY w.id LIMIT ?"""

INSERT_WORKFLOW = "INSERT INTO workflows VALUES (?, ?, ?, ?, ?, ?, ?)"
MOVE_WORKFLOW = """
UPDATE workflows SET name = ?, version = ?, concurrency = ?, updated_at = ? WHERE id = ?"""
SET_ACTIVE = "UPDATE workflows SET active = ?, updated_at = ? WHERE id = ? AND active <> ?"
CURRENT_VERSION = "SELECT version, active, concurrency FROM workflows WHERE id = ?"

FIND_VERSION = "SELECT version FROM workflow_versions WHERE workflow_id = ? AND content_hash = ?"
NEWEST_VERSION = """
SELECT max(coalesce((SELECT max(version) FROM workflow_versions WHERE workflow_id = ?), 0),
           coalesce((SELECT version FROM deleted_workflows WHERE id = ?), 0))"""
INSERT_VERSION = "INSERT INTO workflow_versions VALUES (?, ?, ?, ?, ?)"
GET_VERSION = """
SELECT version, created_at, content_hash FROM workflow_versions WHERE workflow_id = ? AND version = ?"""
LIST_VERSIONS = """
SELECT version, created_at, content_hash FROM workflow_versions
WHERE workflow_id = ? AND version < ? ORDER BY version DESC LIMIT ?"""
GET_DOCUMENT = "SELECT document FROM workflow_versions WHERE workflow_id = ? AND version = ?"

# Deleting a workflow: first what may be much, a part at a time; the workflow takes the rest with it.

OPEN_OF_WORKFLOW = """
SELECT id, status FROM executions WHERE workflow_id = ?
AND status IN ('queued', 'running', 'waiting', 'uncertain') AND status <> 'completed' LIMIT ?"""
EXECUTIONS_OF_WORKFLOW = """
SELECT seq FROM executions WHERE workflow_id = ? AND seq > ? ORDER BY seq LIMIT ?"""
DROP_KEYS_OF_WORKFLOW = """
DELETE FROM dedupe_keys WHERE (workflow_id, trigger_node, trigger_type, key) IN
    (SELECT workflow_id, trigger_node, trigger_type, key FROM dedupe_keys WHERE workflow_id = ? LIMIT ?)"""
DROP_OTHER_VERSIONS = """
DELETE FROM workflow_versions WHERE workflow_id = ? AND version IN
    (SELECT version FROM workflow_versions WHERE workflow_id = ? AND version <> ? ORDER BY version LIMIT ?)"""
KEEP_NEWEST_VERSION = """
INSERT INTO deleted_workflows VALUES (?, ?)
ON CONFLICT (id) DO UPDATE SET version = max(version, excluded.version)"""
DROP_WORKFLOW = "DELETE FROM workflows WHERE id = ?"

# Webhooks

UNBIND_WEBHOOKS = "UPDATE webhooks SET bound = 0 WHERE workflow_id = ?"
DROP_UNBOUND_PATHS = "DELETE FROM webhooks WHERE workflow_id = ? AND bound = 0 AND generated = 0"
WEBHOOK_OWNER = "SELECT workflow_id, node_id, bound FROM webhooks WHERE path = ?"
GENERATED_WEBHOOK = (
    "SELECT path FROM webhooks WHERE workflow_id = ? AND node_id = ? AND generated = 1"
)
BIND_WEBHOOK = """
INSERT INTO webhooks (path, workflow_id, node_id, generated, bound) VALUES (?, ?, ?, ?, 1)
ON CONFLICT (path) DO UPDATE SET bound = 1, node_id = excluded.node_id"""
LIST_WEBHOOKS = (
    "SELECT node_id, path FROM webhooks WHERE workflow_id = ? AND bound = 1 ORDER BY node_id"
)
LIST_WEBHOOKS_BETWEEN = """
SELECT workflow_id, node_id, path FROM webhooks WHERE workflow_id BETWEEN ? AND ? AND bound = 1
ORDER BY workflow_id, node_id"""
RESOLVE_WEBHOOK = """
SELECT h.workflow_id, h.node_id, w.version, w.active
FROM webhooks h JOIN workflows w ON w.id = h.workflow_id WHERE h.path = ? AND h.bound = 1"""

# Dedupe

FIND_DEDUPE = """
SELECT execution_id FROM dedupe_keys
WHERE workflow_id = ? AND trigger_node = ? AND trigger_type = ? AND key = ? AND expires_at > ?"""
PUT_DEDUPE = """
INSERT INTO dedupe_keys (workflow_id, trigger_node, trigger_type, key, execution_id, expires_at)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (workflow_id, trigger_node, trigger_type, key) DO UPDATE SET
    execution_id = excluded.execution_id, expires_at = excluded.expires_at"""
PRUNE_DEDUPE = """
DELETE FROM dedupe_keys WHERE (workflow_id, trigger_node, trigger_type, key) IN
    (SELECT workflow_id, trigger_node, trigger_type, key FROM dedupe_keys
     WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)"""

# Executions

INSERT_EXECUTION = """
INSERT INTO executions (id, workflow_id, version, status, trigger_type, trigger_node, input, created_at,
                        parent, parent_key, depth)
VALUES (?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?)"""

# A large input is left where it is: whoever needs it reads it apart, and counts with its size.
SMALL_INPUT = 64 * 1024  # bytes
_COLUMNS = f"""
seq, id, workflow_id, version, status, trigger_type, trigger_node,
CASE WHEN length(input) <= {SMALL_INPUT} THEN input END, length(input), output, error,
wakes, cancel_requested, created_at, started_at, finished_at, parent, parent_key, depth"""
_EXECUTION = f"SELECT {_COLUMNS} FROM executions "  # noqa: S608  # constants
GET_EXECUTION = _EXECUTION + "WHERE id = ?"
GET_EXECUTION_BY_SEQ = _EXECUTION + "WHERE seq = ?"
GET_STATUS = "SELECT status FROM executions WHERE id = ?"
HAS_INPUT = "SELECT input = CAST(? AS BLOB) FROM executions WHERE id = ?"
IS_WAITING = "SELECT 1 FROM executions WHERE seq = ? AND status = 'waiting'"
GET_INPUT = "SELECT input FROM executions WHERE seq = ?"
WEIGH_INPUT = """
SELECT n, n - length(CAST(replace(input, '{', '') AS BLOB)), n - length(CAST(replace(input, '[', '') AS BLOB)),
       n - length(CAST(replace(input, ',', '') AS BLOB))
FROM (SELECT input, length(input) AS n FROM executions WHERE seq = ?)"""
COUNT_TEXT = """
SELECT 2 * length(input) + coalesce(length(output), 0)
       + (SELECT coalesce(sum(length(n.output)), 0) FROM node_runs n WHERE n.execution = e.seq)
FROM executions e WHERE id = ?"""
COUNT_OUTPUTS_OF = """
SELECT coalesce(sum(length(output)), 0) FROM node_runs
WHERE execution = ? AND key IN (SELECT value FROM json_each(?))"""
COUNT_OUTPUTS_INSIDE = """
SELECT coalesce(sum(inside_bytes), 0) FROM node_runs
WHERE execution = ? AND key IN (SELECT value FROM json_each(?))"""
NAMES_OF_EXECUTION = "SELECT id, workflow_id FROM executions WHERE seq = ?"
CALLED = """
SELECT id FROM executions WHERE parent = ? AND parent_key = ?
AND status IN ('queued', 'running', 'waiting', 'uncertain')"""
ALL_CALLED = """
SELECT id FROM executions WHERE parent = ? AND parent_key IS NOT NULL
AND status IN ('queued', 'running', 'waiting', 'uncertain')"""

_SUMMARY = """
SELECT seq, id, workflow_id, version, status, trigger_type, trigger_node, error,
       created_at, started_at, finished_at FROM executions """
LIST_EXECUTIONS = _SUMMARY + "WHERE seq < ? ORDER BY seq DESC LIMIT ?"
LIST_EXECUTIONS_OF_WORKFLOW = (
    _SUMMARY + "WHERE workflow_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?"
)
# "status <> 'completed'" lets SQLite use the small index of those; the completed are most of all rows.
LIST_EXECUTIONS_BY_STATUS = (
    _SUMMARY + "WHERE status = ? AND status <> 'completed' AND seq < ? ORDER BY seq DESC LIMIT ?"
)
LIST_COMPLETED = _SUMMARY + "WHERE status = 'completed' AND seq < ? ORDER BY seq DESC LIMIT ?"
LIST_EXECUTIONS_OF_WORKFLOW_BY_STATUS = (
    _SUMMARY + "WHERE workflow_id = ? AND status = ? AND status <> 'completed' AND seq < ? "
    "ORDER BY seq DESC LIMIT ?"
)
# The list of states is that of the index executions_noticed, without which one in a million is looked for.
NOTICED = ("waiting", "failed", "cancelled", "uncertain")
LIST_NOTICED_OF_WORKFLOW = (
    _SUMMARY
    + f"WHERE workflow_id = ? AND status = ? AND status IN {NOTICED} AND seq < ? "
    + "ORDER BY seq DESC LIMIT ?"
)
LIST_COMPLETED_OF_WORKFLOW = (
    _SUMMARY
    + "WHERE workflow_id = ? AND status = 'completed' AND seq < ? ORDER BY seq DESC LIMIT ?"
)

BEGIN_EXECUTIONS = f"""
UPDATE executions SET status = 'running', started_at = coalesce(started_at, ?)
WHERE seq IN (SELECT value FROM json_each(?)) AND status IN ('queued', 'running')
RETURNING {_COLUMNS}"""  # noqa: S608  # constants
LIVE_EXECUTIONS_OF = """
SELECT seq FROM executions
WHERE status IN ('queued', 'running') AND status <> 'completed' AND workflow_id = ?"""
LOOK_AT_EXECUTION = "SELECT wakes, cancel_requested, status FROM executions WHERE seq = ?"
PARK_EXECUTION = """
UPDATE executions SET status = 'waiting' WHERE seq = ? AND status = 'running' AND wakes = ?"""
END_EXECUTION = """
UPDATE executions SET status = ?, output = ?, error = ?, finished_at = ?
WHERE seq = ? AND status IN ('queued', 'running', 'waiting', 'uncertain')"""
WAKE_EXECUTION = "UPDATE executions SET wakes = wakes + 1 WHERE seq = ?"
REQUEUE_EXECUTION = """
UPDATE executions SET status = 'queued' WHERE seq = ? AND status IN ('running', 'waiting', 'uncertain')"""
REQUEST_CANCEL = """
UPDATE executions SET cancel_requested = 1, wakes = wakes + 1
WHERE seq = ? AND status IN ('queued', 'running', 'waiting', 'uncertain')"""
CANCEL_REQUESTS = """
SELECT seq FROM executions
WHERE status = 'running' AND status <> 'completed' AND cancel_requested = 1"""
WAKES_OF = "SELECT seq, wakes FROM executions WHERE seq IN (SELECT value FROM json_each(?))"
CONCURRENCY_OF = """
SELECT w.id, w.concurrency FROM executions e JOIN workflows w ON w.id = e.workflow_id WHERE e.seq = ?"""

# Node runs

_NODE = """
SELECT key, type, status, attempt, effect, idempotency_key, input_hash, started_at, finished_at,
       output, error, metadata FROM node_runs """
NODE_RUNS = _NODE + "WHERE execution = ? ORDER BY started_at, key"
# Of very many those that say most: what is in no loop, then what did not simply complete.
MOST_TELLING_NODE_RUNS = (
    _NODE + "WHERE execution = ? "
    "ORDER BY instr(key, '[') > 0, status IN ('completed', 'skipped'), started_at, key LIMIT ?"
)
NODE_RUNS_OF = _NODE + "WHERE execution = ? AND key IN (SELECT value FROM json_each(?))"  # noqa: S608
NODE_RUNS_AFTER = _NODE + "WHERE execution = ? AND key > ? ORDER BY key LIMIT ?"
OPEN_NODE_RUNS_BETWEEN = (
    _NODE + "WHERE execution = ? AND key > ? AND key < ? "
    "AND status IN ('pending', 'running', 'waiting', 'uncertain')"
)
UNCERTAIN_NODE_RUNS = _NODE + "WHERE execution = ? AND status = 'uncertain'"
NODE_RUNS_PER_PUT = 16


@cache
def put_node_runs(count: int) -> str:
    """Puts `count` node runs: one statement for all costs one hand-over of the interpreter lock, not `count`."""
    rows = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"] * count)
    return f"""
INSERT INTO node_runs (execution, key, type, status, attempt, effect, idempotency_key, input_hash,
                       started_at, finished_at, output, error, metadata)
VALUES {rows}
ON CONFLICT (execution, key) DO UPDATE SET
    status = excluded.status, attempt = excluded.attempt, effect = excluded.effect,
    idempotency_key = excluded.idempotency_key, input_hash = excluded.input_hash,
    started_at = excluded.started_at, finished_at = excluded.finished_at,
    output = excluded.output, error = excluded.error, metadata = excluded.metadata"""  # noqa: S608


MOVE_NODE_RUN = """
UPDATE node_runs SET status = ?, output = ?, error = ?, finished_at = ?, metadata = ?, input_hash = NULL
WHERE execution = ? AND key = ? AND status = ?"""
FINISH_WAITING_NODE = """
UPDATE node_runs SET status = 'completed', output = ?, finished_at = ?
WHERE execution = ? AND key = ? AND status = 'waiting' RETURNING type, started_at"""
FAIL_WAITING_NODE = """
UPDATE node_runs SET status = 'failed', error = ?, finished_at = ?
WHERE execution = ? AND key = ? AND status = 'waiting' RETURNING type, started_at"""
SKIP_WAITING_NODE = """
UPDATE node_runs SET status = 'skipped', finished_at = ?
WHERE execution = ? AND key = ? AND status IN ('waiting', 'pending') RETURNING type, started_at"""
REOPEN_WAITING_NODE = """
UPDATE node_runs SET status = 'pending' WHERE execution = ? AND key = ? AND status = 'waiting'"""
END_OPEN_NODES = """
UPDATE node_runs SET status = CASE WHEN status = 'running' AND effect = 'unsafe' THEN 'uncertain'
                                   WHEN status = 'uncertain' THEN 'uncertain' ELSE 'skipped' END,
                     finished_at = ?
WHERE execution = ? AND status IN ('pending', 'running', 'waiting', 'uncertain')"""

FAILED_KEYS = "SELECT key FROM node_runs WHERE execution = ? AND status = 'failed'"
REOPEN_NODES = """
UPDATE node_runs SET status = 'pending', attempt = min(attempt, 1), output = NULL, error = NULL,
                     finished_at = NULL, metadata = NULL
WHERE execution = ? AND key IN (SELECT value FROM json_each(?))"""
# A node run that was skipped because it is disabled, or because a person said so, stays so.
_IS_NOT_MEANT = """(metadata IS NULL OR instr(metadata, '"disabled"') = 0 AND instr(metadata, '"resolved"') = 0)"""
REOPEN_CUT_OFF_NODES = f"""
UPDATE node_runs SET status = 'pending', attempt = 1, finished_at = NULL, metadata = NULL
WHERE execution = ? AND status = 'skipped' AND attempt > 0 AND {_IS_NOT_MEANT}"""  # noqa: S608  # constants
DROP_SKIPPED_NODES = f"""
DELETE FROM node_runs WHERE execution = ? AND status = 'skipped' AND {_IS_NOT_MEANT}"""  # noqa: S608
DROP_NODES_BETWEEN = "DELETE FROM node_runs WHERE execution = ? AND key > ? AND key < ?"
REOPEN_EXECUTION = """
UPDATE executions SET status = 'queued', output = NULL, error = NULL, cancel_requested = 0,
                      started_at = NULL, finished_at = NULL
WHERE seq = ? AND status IN ('failed', 'cancelled', 'completed')"""

# Loops

ADD_BYTES_INSIDE = """
UPDATE node_runs SET inside_bytes = inside_bytes + ? WHERE execution = ? AND key = ?"""
NO_BYTES_INSIDE = "UPDATE node_runs SET inside_bytes = 0 WHERE execution = ? AND key = ?"
PUT_LOOP_ITEM = "INSERT OR REPLACE INTO loop_items VALUES (?, ?, ?, ?)"
LOOP_ITEMS = "SELECT item, output FROM loop_items WHERE execution = ? AND key = ?"
LOOP_ITEM_BYTES = (
    "SELECT item, coalesce(length(output), 0) FROM loop_items WHERE execution = ? AND key = ?"
)
DROP_LOOP_ITEMS = "DELETE FROM loop_items WHERE execution = ? AND key = ?"
DROP_FIRST_LOOP_ITEMS = "DELETE FROM loop_items WHERE execution = ? AND key = ? AND item < ?"
DROP_LOOP_ITEMS_BETWEEN = "DELETE FROM loop_items WHERE execution = ? AND key > ? AND key < ?"

# Timers

INSERT_TIMER = """
INSERT INTO timers (execution, key, due_at, state, output) VALUES (?, ?, ?, 'pending', ?)
ON CONFLICT (execution, key) WHERE state = 'pending' DO NOTHING"""
DUE_TIMERS = """
SELECT id, execution, key, output FROM timers WHERE state = 'pending' AND due_at <= ?
ORDER BY due_at LIMIT ?"""
FIRE_TIMER = "UPDATE timers SET state = 'fired', fired_at = ? WHERE id = ? AND state = 'pending'"
CANCEL_TIMERS = "UPDATE timers SET state = 'cancelled' WHERE execution = ? AND state = 'pending'"
CANCEL_TIMER = """
UPDATE timers SET state = 'cancelled' WHERE execution = ? AND key = ? AND state = 'pending'"""
NEXT_TIMER = "SELECT min(due_at) FROM timers WHERE state = 'pending'"

# Calls to links

KEEP_EARLY_CALL = """
INSERT INTO early_calls (execution, key, output) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"""
EARLY_CALL = "SELECT output FROM early_calls WHERE execution = ? AND key = ?"
DROP_EARLY_CALLS = """
DELETE FROM early_calls WHERE execution = ? AND key IN (SELECT value FROM json_each(?))"""
DROP_EARLY_CALLS_BETWEEN = "DELETE FROM early_calls WHERE execution = ? AND key > ? AND key < ?"

# Why

COUNT_WHY = """
UPDATE why SET count = count + ?, last_at = ? WHERE id = (
    SELECT id FROM (SELECT id, code, message, last_at FROM why WHERE subject = ? ORDER BY id DESC LIMIT 20)
    WHERE code = ? AND message = ? AND last_at >= ? LIMIT 1)"""
INSERT_WHY = (
    "INSERT INTO why (code, subject, message, first_at, last_at, count) VALUES (?, ?, ?, ?, ?, ?)"
)
WHY_OF = """
SELECT code, message, first_at, last_at, count FROM why WHERE subject = ? ORDER BY id DESC LIMIT ?"""
PRUNE_WHY = (
    "DELETE FROM why WHERE id IN (SELECT id FROM why WHERE last_at < ? ORDER BY last_at LIMIT ?)"
)
PRUNE_WHY_BEYOND = "DELETE FROM why WHERE id <= (SELECT max(id) FROM why) - ?"
JOB_OF_EXECUTION = """
SELECT state, due_at, blocked, concurrency_limit, concurrency_key, rescues, error FROM jobs
WHERE kind = 'execution.run' AND subject = ? AND finished_at IS NULL"""
JOBS_AHEAD = """
SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 'available' AND blocked = 0 AND rescues < 5
                      AND due_at < ? LIMIT ?)"""
OWNER_OF_EXECUTION = """
SELECT p.role, p.pid, p.heartbeat_at, j.rescues FROM jobs j JOIN processes p ON p.id = j.owner
WHERE j.kind = 'execution.run' AND j.subject = ? AND j.finished_at IS NULL"""
TIMER_OF = "SELECT due_at FROM timers WHERE execution = ? AND key = ? AND state = 'pending'"

# History. An execution that somebody waits for goes with who does; "parent_key IS NULL" are the others.

COUNT_HISTORY = "SELECT executions FROM history WHERE one = 1"
OLDEST_ENDED = """
SELECT seq FROM executions WHERE finished_at IS NOT NULL AND parent_key IS NULL AND finished_at < ?
ORDER BY finished_at LIMIT ?"""
# What parts of an execution take: a row for each, no more than so many of a kind.
WEIGH_PARTS = """
SELECT * FROM (
    SELECT coalesce(length(output), 0) + coalesce(length(error), 0) + coalesce(length(metadata), 0)
    FROM node_runs WHERE execution = ? LIMIT ?)
UNION ALL SELECT * FROM (SELECT coalesce(length(output), 0) FROM loop_items WHERE execution = ? LIMIT ?)
UNION ALL SELECT * FROM (SELECT length(output) FROM timers WHERE execution = ? LIMIT ?)
UNION ALL SELECT * FROM (SELECT length(output) FROM early_calls WHERE execution = ? LIMIT ?)
UNION ALL SELECT * FROM (SELECT 0 FROM blob_refs WHERE execution = ? LIMIT ?)"""
WEIGH_EXECUTION = """
SELECT length(input) + coalesce(length(output), 0) + coalesce(length(error), 0)
FROM executions WHERE seq = ? AND finished_at IS NOT NULL"""
STARTED_BY = """
SELECT seq, finished_at IS NOT NULL AND parent_key IS NOT NULL FROM executions
WHERE parent = ? AND seq > ? ORDER BY seq LIMIT ?"""
LET_GO = "UPDATE executions SET parent = NULL, parent_key = NULL WHERE seq = ?"
DROP_EXECUTIONS = """
DELETE FROM executions WHERE seq IN (SELECT value FROM json_each(?)) AND finished_at IS NOT NULL"""

# Of some executions those that have ended and go by themselves.
BY_THEMSELVES = """
SELECT e.seq, e.finished_at FROM json_each(?) CROSS JOIN executions e ON e.seq = value
WHERE e.finished_at IS NOT NULL AND e.parent_key IS NULL"""
COUNT_WITH_CALLED = """
WITH RECURSIVE counted (seq) AS (
    SELECT value FROM json_each(?)
    UNION
    SELECT e.seq FROM counted CROSS JOIN executions e ON e.parent = counted.seq
    WHERE e.parent_key IS NOT NULL AND e.finished_at IS NOT NULL)
SELECT count(*) FROM counted"""

BEGIN_GOING = "INSERT INTO going (execution) VALUES (?) ON CONFLICT DO NOTHING"
GOING = "SELECT execution FROM going ORDER BY execution LIMIT ?"
IS_GOING = "SELECT 1 FROM going WHERE execution = ?"

# The parts of one execution in order, each with what it takes, and how all up to one of them are removed.
NODE_RUN_PARTS = """
SELECT key, coalesce(length(output), 0) + coalesce(length(error), 0) + coalesce(length(metadata), 0)
FROM node_runs WHERE execution = ? ORDER BY key LIMIT ?"""
DROP_NODE_RUN_PARTS = "DELETE FROM node_runs WHERE execution = ? AND key <= ?"
LOOP_ITEM_PARTS = """
SELECT key, item, coalesce(length(output), 0) FROM loop_items WHERE execution = ? ORDER BY key, item LIMIT ?"""
DROP_LOOP_ITEM_PARTS = "DELETE FROM loop_items WHERE execution = ? AND (key, item) <= (?, ?)"
TIMER_PARTS = "SELECT id, length(output) FROM timers WHERE execution = ? ORDER BY id LIMIT ?"
DROP_TIMER_PARTS = "DELETE FROM timers WHERE execution = ? AND id <= ?"
EARLY_CALL_PARTS = (
    "SELECT key, length(output) FROM early_calls WHERE execution = ? ORDER BY key LIMIT ?"
)
DROP_EARLY_CALL_PARTS = "DELETE FROM early_calls WHERE execution = ? AND key <= ?"
BLOB_REF_PARTS = "SELECT blob, 0 FROM blob_refs WHERE execution = ? ORDER BY blob LIMIT ?"
DROP_BLOB_REF_PARTS = "DELETE FROM blob_refs WHERE execution = ? AND blob <= ?"
PARTS = (
    (NODE_RUN_PARTS, DROP_NODE_RUN_PARTS),
    (LOOP_ITEM_PARTS, DROP_LOOP_ITEM_PARTS),
    (TIMER_PARTS, DROP_TIMER_PARTS),
    (EARLY_CALL_PARTS, DROP_EARLY_CALL_PARTS),
    (BLOB_REF_PARTS, DROP_BLOB_REF_PARTS),
)

# Blobs

RENEW_BLOB = "UPDATE blobs SET created_at = ?, puts = puts + 1 WHERE id = ?"
INSERT_BLOB = "INSERT INTO blobs (id, bytes, created_at) VALUES (?, ?, ?)"
DELETE_BLOB = "DELETE FROM blobs WHERE id = ? AND refs = 0"
REFER_TO_BLOBS = """
INSERT OR IGNORE INTO blob_refs (blob, execution)
SELECT b.id, ? FROM json_each(?) CROSS JOIN blobs b ON b.id = value"""
KNOWN_BLOBS = "SELECT b.id FROM json_each(?) CROSS JOIN blobs b ON b.id = value"
UNUSED_BLOBS = """
SELECT id FROM blobs WHERE refs = 0 AND created_at < ? ORDER BY created_at LIMIT ?"""
BLOBS_PUT_ONCE = """
SELECT b.id FROM json_each(?) CROSS JOIN blobs b ON b.id = value WHERE b.refs = 0 AND b.puts = 1"""
BLOB_TOTALS = "SELECT count, bytes FROM blob_totals WHERE one = 1"

# Consistency (consistency.py says what each finds). Each looks at what is live only, gives the number of an
# execution and its name for people first, and takes the numbers between which it looks: all, or one.
# +seq is seq without its affinity: with it, SQLite would not look up a subject, which has none, in its index.

_FINAL = "('completed', 'failed', 'cancelled')"
_LIVE_JOB = "j.kind = 'execution.run' AND j.finished_at IS NULL"
_HAS_JOB = f"EXISTS (SELECT 1 FROM jobs j WHERE j.subject = +e.seq AND {_LIVE_JOB})"  # noqa: S608  # constants, here and below
_HAS_TIMER = """
EXISTS (SELECT 1 FROM timers t WHERE t.execution = n.execution AND t.key = n.key AND t.state = 'pending')"""
_OPEN_NODE = "n.status IN ('pending', 'running', 'waiting')"  # as the index says it
_OPEN_NODES = f"""
FROM node_runs n INDEXED BY node_runs_open CROSS JOIN executions e ON e.seq = n.execution
WHERE {_OPEN_NODE} AND n.execution BETWEEN ? AND ?"""
_AWAITED = f"""
{_OPEN_NODES} AND n.status = 'waiting' AND e.status NOT IN {_FINAL} AND NOT {_HAS_TIMER}"""
# The execution that a waiting node run says it has started.
_CALLED = """
iif(n.type = 'action.workflow.run' AND json_valid(CAST(n.metadata AS TEXT)),
    json_extract(CAST(n.metadata AS TEXT), '$.executionId'), NULL)"""
_IS_CALLED = f"c.id = {_CALLED} AND c.parent = n.execution AND c.parent_key = n.key"

FIND_WITHOUT_JOB = f"""
SELECT e.seq, e.id FROM executions e
WHERE e.status IN ('queued', 'running') AND e.status <> 'completed' AND e.seq BETWEEN ? AND ?
AND NOT {_HAS_JOB}"""  # noqa: S608
FIND_JOB_ALONE = f"""
SELECT j.subject, 'job ' || j.id, j.id FROM jobs j
WHERE {_LIVE_JOB} AND j.subject BETWEEN ? AND ?
AND NOT EXISTS (SELECT 1 FROM executions e WHERE e.seq = j.subject)"""  # noqa: S608
FIND_JOB_OF_ENDED = f"""
SELECT e.seq, e.id, j.id FROM jobs j CROSS JOIN executions e ON e.seq = j.subject
WHERE {_LIVE_JOB} AND j.subject BETWEEN ? AND ? AND e.status IN {_FINAL}"""  # noqa: S608
FIND_JOB_OF_RESTING = f"""
SELECT e.seq, e.id, iif(j.state = 'running', 'running', 'queued')
FROM executions e CROSS JOIN jobs j ON j.subject = +e.seq
WHERE e.status IN ('waiting', 'uncertain') AND e.status <> 'completed' AND e.seq BETWEEN ? AND ? AND {_LIVE_JOB}"""  # noqa: S608
FIND_CLAIM_OF_QUEUED = """
SELECT e.seq, e.id, 'running' FROM jobs j INDEXED BY jobs_running CROSS JOIN executions e ON e.seq = j.subject
WHERE j.state = 'running' AND j.kind = 'execution.run' AND j.subject BETWEEN ? AND ? AND e.status = 'queued'"""
FIND_ENDED_AND_LIVE = f"""
SELECT j.subject, 'job ' || j.id, j.id FROM jobs j
WHERE {_LIVE_JOB} AND j.subject BETWEEN ? AND ? AND j.state IN ('completed', 'cancelled', 'discarded')"""  # noqa: S608
FIND_CLAIM_BY_NOBODY = """
SELECT j.subject, 'job ' || j.id, j.id FROM jobs j
WHERE j.state = 'running' AND j.owner IS NULL AND j.kind = 'execution.run' AND j.subject BETWEEN ? AND ?"""
FIND_ODD_COUNTS = f"""
SELECT j.subject, 'job ' || j.id FROM jobs j
WHERE {_LIVE_JOB} AND j.subject BETWEEN ? AND ?
AND (j.rescues NOT BETWEEN 0 AND {MAX_RESCUES} OR j.attempt < 0 OR j.fence < 0)"""  # noqa: S608
CLAIMS_OF = """
SELECT subject, 'job ' || id, fence FROM jobs WHERE owner = ? AND state = 'running' AND leased_until < ?"""

FIND_NOTHING_AWAITED = f"""
SELECT e.seq, e.id FROM executions e
WHERE e.status = 'waiting' AND e.status <> 'completed' AND e.seq BETWEEN ? AND ? AND NOT {_HAS_JOB}
AND NOT EXISTS (SELECT 1 FROM node_runs n INDEXED BY node_runs_open
                WHERE n.execution = e.seq AND {_OPEN_NODE} AND n.status = 'waiting')"""  # noqa: S608
FIND_NODE_LEFT = f"""
SELECT e.seq, e.id {_OPEN_NODES} AND n.status <> 'waiting' AND n.type <> 'logic.foreach'
AND e.status = 'waiting' AND NOT {_HAS_JOB} GROUP BY n.execution"""
FIND_NOTHING_UNCERTAIN = f"""
SELECT e.seq, e.id FROM executions e
WHERE e.status = 'uncertain' AND e.status <> 'completed' AND e.seq BETWEEN ? AND ? AND NOT {_HAS_JOB}
AND NOT EXISTS (SELECT 1 FROM node_runs n WHERE n.execution = e.seq AND n.status = 'uncertain')"""  # noqa: S608
FIND_WAIT_ENDLESS = f"""
SELECT e.seq, e.id || ':' || n.key, n.key, n.type, n.metadata {_AWAITED} AND {_CALLED} IS NULL"""
FIND_CALL_UNHEARD = f"""
SELECT e.seq, e.id || ':' || n.key, c.seq
FROM node_runs n INDEXED BY node_runs_open CROSS JOIN executions e ON e.seq = n.execution
CROSS JOIN executions c ON {_IS_CALLED}
WHERE {_OPEN_NODE} AND n.execution BETWEEN ? AND ? AND n.status = 'waiting' AND e.status NOT IN {_FINAL}
AND c.status IN {_FINAL}"""  # noqa: S608
FIND_CALL_LOST = f"""
SELECT e.seq, e.id || ':' || n.key, n.key {_AWAITED} AND {_CALLED} IS NOT NULL
AND NOT EXISTS (SELECT 1 FROM executions c WHERE {_IS_CALLED})"""  # noqa: S608
FIND_OPEN_AFTER_END = f"""
SELECT e.seq, e.id {_OPEN_NODES} AND e.status IN {_FINAL} GROUP BY n.execution"""
FIND_CANCEL_UNHEARD = f"""
SELECT e.seq, e.id FROM executions e INDEXED BY executions_to_cancel
WHERE e.cancel_requested = 1 AND e.finished_at IS NULL AND e.seq BETWEEN ? AND ? AND e.status NOT IN {_FINAL}
AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.subject = +e.seq AND {_LIVE_JOB} AND j.state = 'running')"""  # noqa: S608

FIND_TIMER_ALONE = f"""
SELECT t.execution, coalesce(e.id, 'execution ' || t.execution) || ':' || t.key, t.id
FROM timers t INDEXED BY timers_pending LEFT JOIN executions e ON e.seq = t.execution
WHERE t.state = 'pending' AND t.execution BETWEEN ? AND ?
AND (e.seq IS NULL OR e.status IN {_FINAL} OR (t.key <> '' AND NOT EXISTS (
    SELECT 1 FROM node_runs n WHERE n.execution = t.execution AND n.key = t.key AND n.status = 'waiting')))"""  # noqa: S608
FIND_TIMERS_OVERDUE = """
SELECT t.execution, e.id || ':' || t.key, t.id FROM timers t JOIN executions e ON e.seq = t.execution
WHERE t.state = 'pending' AND t.due_at < ? ORDER BY t.due_at LIMIT ?"""


def first(statement: str, rows: int) -> str:
    """Gives no more than the first `rows` of what `statement` finds."""
    return f"{statement} LIMIT {rows}"


def counted(statement: str) -> str:
    """Gives how many rows `statement` finds."""
    return f"SELECT count(*) FROM ({statement})"  # noqa: S608  # a constant


TAKE_UP = """
UPDATE executions SET status = ?, wakes = wakes + 1 WHERE seq = ? AND status IN ('queued', 'waiting', 'uncertain')"""
DROP_TIMER = "UPDATE timers SET state = 'cancelled' WHERE id = ? AND state = 'pending'"
