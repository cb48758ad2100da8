"""What must never stand in the file, between any two transactions, however the processes that write it end."""

from __future__ import annotations

import sqlite3

from stackd.queue.job import PROBATION
from stackd.store.connection import Tx
from stackd.workflows import consistency

_INSIDE = "i.execution = l.execution AND i.key > l.key || '[' AND i.key < l.key || '\\'"
_PROGRESS = "CAST(l.metadata AS TEXT)"

# Beside what `queue check` knows: what an index forbids, what is nothing to mend, and what may be elsewhere but is
# not in the workflows of these tests, which have no time limit.
WRONG_AT_ANY_TIME = {
    "two live jobs of one execution": """
SELECT subject, count(*) FROM jobs WHERE finished_at IS NULL GROUP BY kind, subject HAVING count(*) > 1""",
    "uncertain, with a node that could go on": """
SELECT e.id, n.key FROM executions e JOIN node_runs n ON n.execution = e.seq
WHERE e.status = 'uncertain' AND n.status IN ('pending', 'running') AND n.type <> 'logic.foreach'""",
    "a call that nobody waits for and nobody cancels": """
SELECT parent, parent_key FROM executions
WHERE parent_key IS NOT NULL AND status NOT IN ('completed', 'failed', 'cancelled') AND cancel_requested = 0
EXCEPT SELECT execution, key FROM node_runs WHERE status = 'waiting'""",
    "completed, with something uncertain": """
SELECT e.id, n.key FROM executions e JOIN node_runs n ON n.execution = e.seq
WHERE e.status = 'completed' AND n.status = 'uncertain'""",
    "two jobs on probation in one process": f"""
SELECT owner, count(*) FROM jobs WHERE state = 'running' AND rescues >= {PROBATION}
GROUP BY owner HAVING count(*) > 1""",
    "a job without a limit set aside": """
SELECT id FROM jobs WHERE state = 'available' AND blocked = 1 AND concurrency_limit IS NULL""",
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
    assert consistency.findings(Tx(raw), now=0.0) == []
    _check(raw, WRONG_AT_ANY_TIME)
    check_loops(raw)


def check_loops(raw: sqlite3.Connection) -> None:
    _check(raw, WRONG_WITH_LOOPS)


def _check(raw: sqlite3.Connection, wrong: dict[str, str]) -> None:
    for what, query in wrong.items():
        found = raw.execute(query).fetchall()
        assert not found, f"{what}: {found}"
