"""What must never stand in the file, between any two transactions, however the processes that write it end."""

from __future__ import annotations

import sqlite3

from stackd.queue.job import PROBATION

_CALL = """SELECT parent, parent_key FROM executions
WHERE parent_key IS NOT NULL AND status NOT IN ('completed', 'failed', 'cancelled')"""
_INSIDE = "i.execution = l.execution AND i.key > l.key || '[' AND i.key < l.key || '\\'"
_PROGRESS = "CAST(l.metadata AS TEXT)"

# An execution that a run holds or shall take up has exactly one live job; one that rests has none, and waits
# for a timer, for an execution it called, for a person, or is over.
WRONG_AT_ANY_TIME = {
    "queued or running without a live job": """
SELECT id, status FROM executions e WHERE status IN ('queued', 'running')
AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.subject = e.seq AND j.finished_at IS NULL)""",
    "a live job without an execution that is queued or running": """
SELECT j.id, j.state, e.id, e.status FROM jobs j LEFT JOIN executions e ON e.seq = j.subject
WHERE j.kind = 'execution.run' AND j.finished_at IS NULL AND (e.seq IS NULL OR e.status NOT IN ('queued', 'running'))""",
    "two live jobs of one execution": """
SELECT subject, count(*) FROM jobs WHERE finished_at IS NULL GROUP BY kind, subject HAVING count(*) > 1""",
    "waiting for nothing": f"""
SELECT id FROM executions e WHERE status = 'waiting'
AND NOT EXISTS (SELECT 1 FROM timers t WHERE t.execution = e.seq AND t.state = 'pending')
AND seq NOT IN (SELECT parent FROM ({_CALL}))""",
    "at rest, with a node that could go on": """
SELECT e.id, n.key FROM executions e JOIN node_runs n ON n.execution = e.seq
WHERE e.status IN ('waiting', 'uncertain') AND n.status IN ('pending', 'running') AND n.type <> 'logic.foreach'""",
    "a wait without a timer or a call": f"""
SELECT execution, key FROM node_runs WHERE status = 'waiting'
EXCEPT SELECT execution, key FROM timers WHERE state = 'pending' EXCEPT {_CALL}""",
    "a call that nobody waits for and nobody cancels": f"""
{_CALL} AND cancel_requested = 0 EXCEPT SELECT execution, key FROM node_runs WHERE status = 'waiting'""",
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
WRONG_WITH_LOOPS = {
    "a loop whose outputs are counted wrongly": f"""
SELECT execution, key, inside_bytes FROM node_runs l WHERE type = 'logic.foreach' AND instr(key, '[') = 0
AND inside_bytes <> (SELECT coalesce(sum(length(output)), 0) FROM node_runs i WHERE {_INSIDE})""",
    "a loop that is not where it says": f"""
SELECT execution, key, {_PROGRESS} FROM node_runs l
WHERE type = 'logic.foreach' AND status = 'running' AND (
    SELECT (count(*), 2 + coalesce(sum(coalesce(length(output), 0) + 1), 0))
        <> (coalesce({_PROGRESS} ->> 'done', 0), coalesce({_PROGRESS} ->> 'bytes', 2))
    OR sum(item IN (SELECT value FROM json_each({_PROGRESS}, '$.open'))) > 0
    FROM loop_items i WHERE i.execution = l.execution AND i.key = l.key)""",
    "a loop that has completed and keeps what is needed no more": """
SELECT l.execution, l.key FROM node_runs l JOIN loop_items i ON i.execution = l.execution AND i.key = l.key
WHERE l.status = 'completed'""",
}
# So long as nobody lowers a limit below what runs already.
TOO_MANY_AT_ONCE = """
SELECT concurrency_key, count(*) AS running, min(concurrency_limit) AS places FROM jobs
WHERE state = 'running' AND concurrency_limit IS NOT NULL GROUP BY concurrency_key
HAVING running > places"""


def check(raw: sqlite3.Connection) -> None:
    _check(raw, WRONG_AT_ANY_TIME)
    check_loops(raw)


def check_loops(raw: sqlite3.Connection) -> None:
    _check(raw, WRONG_WITH_LOOPS)


def _check(raw: sqlite3.Connection, wrong: dict[str, str]) -> None:
    for what, query in wrong.items():
        found = raw.execute(query).fetchall()
        assert not found, f"{what}: {found}"
