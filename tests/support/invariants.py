"""What must never stand in the file, between any two transactions, however the processes that write it end."""

from __future__ import annotations

import sqlite3

from stackd.queue.job import PROBATION

# An execution that a run holds or shall take up has exactly one live job; one that rests has none, and waits
# for a timer, for a person, or is over.
WRONG_AT_ANY_TIME = {
    "queued or running without a live job": """
SELECT id, status FROM executions e WHERE status IN ('queued', 'running')
AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.subject = e.seq AND j.finished_at IS NULL)""",
    "a live job without an execution that is queued or running": """
SELECT j.id, j.state, e.id, e.status FROM jobs j LEFT JOIN executions e ON e.seq = j.subject
WHERE j.kind = 'execution.run' AND j.finished_at IS NULL AND (e.seq IS NULL OR e.status NOT IN ('queued', 'running'))""",
    "two live jobs of one execution": """
SELECT subject, count(*) FROM jobs WHERE finished_at IS NULL GROUP BY kind, subject HAVING count(*) > 1""",
    "waiting for nothing": """
SELECT id FROM executions e WHERE status = 'waiting'
AND NOT EXISTS (SELECT 1 FROM timers t WHERE t.execution = e.seq AND t.state = 'pending')""",
    "at rest, with a node that could go on": """
SELECT e.id, n.key FROM executions e JOIN node_runs n ON n.execution = e.seq
WHERE e.status IN ('waiting', 'uncertain') AND n.status IN ('pending', 'running')""",
    "a wait without a timer": """
SELECT execution, key FROM node_runs WHERE status = 'waiting'
EXCEPT SELECT execution, key FROM timers WHERE state = 'pending'""",
    "a timer without a wait": """
SELECT execution, key FROM timers WHERE state = 'pending'
EXCEPT SELECT execution, key FROM node_runs WHERE status = 'waiting'""",
    "to be cancelled, and nobody's": """
SELECT id, status FROM executions e WHERE cancel_requested = 1
AND status NOT IN ('completed', 'failed', 'cancelled')
AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.subject = e.seq AND j.state = 'running')""",
    "over, with something open": """
SELECT e.id, e.status, n.key, n.status FROM executions e JOIN node_runs n ON n.execution = e.seq
WHERE (e.status = 'completed' AND n.status IN ('pending', 'running', 'waiting', 'uncertain'))
   OR (e.status IN ('failed', 'cancelled') AND n.status IN ('pending', 'running', 'waiting'))""",
    "over, with a timer": """
SELECT e.id, t.key FROM executions e JOIN timers t ON t.execution = e.seq
WHERE e.status IN ('completed', 'failed', 'cancelled') AND t.state = 'pending'""",
    "two jobs on probation in one process": f"""
SELECT owner, count(*) FROM jobs WHERE state = 'running' AND rescues >= {PROBATION}
GROUP BY owner HAVING count(*) > 1""",
    "a job set aside beside a free place": """
SELECT b.id FROM jobs b WHERE b.state = 'available' AND b.blocked = 1
AND (b.concurrency_limit IS NULL OR b.concurrency_limit > (
    SELECT count(*) FROM jobs o WHERE o.concurrency_key = b.concurrency_key
    AND (o.state = 'running' OR (o.state = 'available' AND o.blocked = 0))))""",
}
# So long as nobody lowers a limit below what runs already.
TOO_MANY_AT_ONCE = """
SELECT concurrency_key, count(*) AS running, min(concurrency_limit) AS places FROM jobs
WHERE state = 'running' AND concurrency_limit IS NOT NULL GROUP BY concurrency_key
HAVING running > places"""


def check(raw: sqlite3.Connection) -> None:
    for what, query in WRONG_AT_ANY_TIME.items():
        found = raw.execute(query).fetchall()
        assert not found, f"{what}: {found}"
