"""A store as it is after a long time: fills one for `stackd bench`, with history and with work that waits."""

from __future__ import annotations

from typing import Final

from stackd.store.connection import Tx

WORKFLOWS: Final = 100
BATCH: Final = 20_000  # executions per transaction

_NUMBERS = "WITH RECURSIVE n (i) AS (SELECT ? UNION ALL SELECT i + 1 FROM n WHERE i < ?)"

ADD_WORKFLOWS = f"""
INSERT INTO workflows {_NUMBERS} SELECT 'w' || i, 'w' || i, 1, 1, NULL, 0, 0 FROM n"""  # noqa: S608  # constants
ADD_VERSIONS = f"""
INSERT INTO workflow_versions {_NUMBERS} SELECT 'w' || i, 1, 'x', x'7b7d', 0 FROM n"""  # noqa: S608
ADD_FINISHED = f"""
INSERT INTO executions (id, workflow_id, version, status, trigger_type, trigger_node, input, output,
                        created_at, started_at, finished_at)
{_NUMBERS}
SELECT printf('%026d', i), 'w' || (i % {WORKFLOWS}), 1,
       CASE WHEN i % 100 = 0 THEN 'failed' ELSE 'completed' END, 'trigger.time.manual', 'start',
       x'7b226e223a317d', x'7b2276223a317d', i, i, i FROM n"""  # noqa: S608
ADD_NODE_RUNS = f"""
INSERT INTO node_runs (execution, key, type, status, attempt, effect, started_at, finished_at, output)
{_NUMBERS}
SELECT i, 'start', 'trigger.time.manual', 'completed', 1, 'read', i, i, NULL FROM n"""  # noqa: S608
ADD_QUEUED = f"""
INSERT INTO executions (id, workflow_id, version, status, trigger_type, trigger_node, input, created_at)
{_NUMBERS}
SELECT printf('%026d', i), 'w' || (i % {WORKFLOWS}), 1, 'queued', 'trigger.time.manual', 'start',
       x'7b226e223a317d', i FROM n"""  # noqa: S608
ADD_JOBS = f"""
INSERT INTO jobs (kind, subject, state, priority, due_at, created_at)
{_NUMBERS} SELECT 'execution.run', i, 'available', 0, i, i FROM n"""  # noqa: S608


def add_workflows(tx: Tx) -> None:
    """Workflows for the executions to come."""
    tx.execute(ADD_WORKFLOWS, (0, WORKFLOWS - 1))
    tx.execute(ADD_VERSIONS, (0, WORKFLOWS - 1))


def add_finished(tx: Tx, *, first: int, last: int) -> None:
    """Executions that have ended, one in a hundred of them failed, numbered from `first` to `last`."""
    tx.execute(ADD_FINISHED, (first, last))
    tx.execute(ADD_NODE_RUNS, (first, last))


def add_queued(tx: Tx, *, first: int, last: int) -> None:
    """Executions that wait for a worker, with their jobs."""
    tx.execute(ADD_QUEUED, (first, last))
    tx.execute(ADD_JOBS, (first, last))
