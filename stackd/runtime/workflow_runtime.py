"""Claims come in, resting executions come out: what a worker calls for every job it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from stackd.core.errors import (
    LeaseLostError,
    StackdError,
    StoreCorruptError,
    StoreFailedError,
    first_error,
)
from stackd.queue import verbs
from stackd.queue.job import Discard, Fail, Job, JobState, RetryPolicy
from stackd.runtime.run import Run, Tools
from stackd.runtime.versions import Versions
from stackd.store.connection import Tx
from stackd.workflows import executions
from stackd.workflows.executions import ExecutionRow, NodeRow

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claimed job with its execution and the journal of that."""

    job: Job
    row: ExecutionRow
    nodes: list[NodeRow]


def claim(tx: Tx, *, owner: str, limit: int, lease: float, now: float) -> list[Claimed]:
    """Claim up to `limit` jobs and mark their executions running, in one transaction.

    A job whose execution is already over is discarded here.
    """
    jobs = verbs.claim(tx, owner=owner, limit=limit, lease=lease, now=now)
    rows = executions.begin(tx, [int(job.subject or 0) for job in jobs], now=now) if jobs else {}
    found = []
    for job in jobs:
        row = rows.get(int(job.subject or 0))
        if row is None:
            verbs.settle(
                tx, job, Discard("execution.over"), now=now, policy=RetryPolicy(), roll=0.0
            )
            continue
        is_fresh = job.fence == 1 and row.wakes == 0
        found.append(Claimed(job, row, [] if is_fresh else executions.node_rows(tx, row.seq)))
    return found


def rescue(tx: Tx, *, me: str, lease: float, now: float, anew: bool = False) -> int:
    """Take back the claims of dead processes; executions that died too often fail. How many were taken.

    Args:
        anew: the worker of process `me` has just begun and runs nothing: what an earlier one of the same
            process still held when it crashed comes back too.
    """
    owners = verbs.dead_owners(tx, me=me, lease=lease, now=now) + ([me] if anew else [])
    taken = verbs.rescue(tx, owners=owners, now=now)
    for job in taken:
        if job.discarded and isinstance(job.subject, int):
            executions.fail_abandoned(
                tx,
                job.subject,
                code="job.crash_loop",
                message=f"the process that ran this died {job.rescues} times",
                now=now,
            )
    return len(taken)


class WorkflowRuntime:
    """Runs claimed executions; knows which are running, so that one can be cancelled or interrupted."""

    def __init__(self, tools: Tools, versions: Versions, *, roll: Callable[[], float]) -> None:
        self._tools = tools
        self._versions = versions
        self._roll = roll
        self._runs: set[Run] = set()

    claim = staticmethod(claim)

    rescue = staticmethod(rescue)

    async def execute(self, claimed: Claimed) -> None:
        """Run one claim until its execution rests and its job is settled.

        A lost lease ends it silently: the newer claim goes on. An error of the runtime itself fails the
        attempt, and with the last attempt the execution. Called in a task of its own: the ids it binds to
        log lines stay bound.

        Raises:
            StoreFailedError, StoreCorruptError: the store has stopped; the process must end.
        """
        job, row = claimed.job, claimed.row
        structlog.contextvars.bind_contextvars(
            execution_id=row.id, workflow_id=row.workflow_id, job_id=job.id
        )
        try:
            graph = await self._versions.graph(row.workflow_id, row.version)
            await self._run(Run(self._tools, graph, job, row, claimed.nodes))
        except LeaseLostError:
            _log.warning("a newer claim owns this execution; ended here", fence=job.fence)
        except (StoreFailedError, StoreCorruptError):
            raise
        except Exception as error:  # noqa: BLE001  # a fault of ours must not take the worker down
            _log.exception("the run failed", attempt=job.attempt + 1)
            cause = first_error(error)
            await self._fail(job, type(cause).__name__, _words(cause))

    async def _run(self, run: Run) -> None:
        self._runs.add(run)
        try:
            await run.execute()
        finally:
            self._runs.discard(run)

    def cancel(self, seq: int) -> None:
        """Cancel the execution if it runs here. A run that lost its claim may stand beside its successor."""
        for run in tuple(self._runs):
            if run.seq == seq:
                run.cancel()

    def interrupt_all(self) -> None:
        """Give every running execution back to the queue, to be continued elsewhere."""
        for run in tuple(self._runs):
            run.interrupt()

    @property
    def running(self) -> int:
        return len(self._runs)

    async def _fail(self, job: Job, error: str, message: str) -> None:
        now = self._tools.clock.time()

        def change(tx: Tx) -> None:
            state = verbs.settle(
                tx, job, Fail(error), now=now, policy=self._tools.job_retry, roll=self._roll()
            )
            if state is JobState.DISCARDED and isinstance(job.subject, int):
                executions.fail_abandoned(
                    tx, job.subject, code="job.failed", message=message, now=now
                )

        await self._tools.store.write(change)


def _words(error: BaseException) -> str:
    return (
        error.message
        if isinstance(error, StackdError)
        else f"internal error ({type(error).__name__})"
    )
