"""Claims come in, resting executions come out: what a worker calls for every job it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from cachetools import LRUCache

from stackd.core.budget import Budget, Share
from stackd.core.errors import (
    LeaseLostError,
    OverloadedError,
    StackdError,
    StoreBusyError,
    StoreCorruptError,
    StoreFailedError,
    StoreFullError,
    first_error,
)
from stackd.core.json import LARGE
from stackd.queue import verbs
from stackd.queue.job import Complete, Discard, Fail, Job, JobState, RetryPolicy, Snooze
from stackd.queue.processes import Watch
from stackd.runtime import canary
from stackd.runtime.canary import CanaryClaim
from stackd.runtime.run import Run
from stackd.runtime.tools import STORE_RETRY, Tools
from stackd.runtime.versions import Versions
from stackd.store.connection import Tx
from stackd.workflows import executions, why
from stackd.workflows.executions import ExecutionRow

ROOM_PATIENCE = 2.0  # seconds a large execution waits in a worker's slot for room in memory
WEIGHTS_KEPT = 1000  # an input of ten megabytes takes 70 ms to be weighed, and may wait many times
ROOM_RETRY = 1.0  # seconds until it is offered again; meanwhile others have the slot

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claimed job with its execution."""

    job: Job
    row: ExecutionRow

    @property
    def is_fresh(self) -> bool:
        """Whether nothing can stand in the journal yet."""
        return self.job.fence == 1 and self.row.wakes == 0


def claim(
    tx: Tx, *, owner: str, limit: int, lease: float, now: float
) -> list[Claimed | CanaryClaim]:
    """Claim up to `limit` jobs and mark their executions running, in one transaction.

    A job whose execution is already over is discarded here.
    """
    jobs = verbs.claim(tx, owner=owner, limit=limit, lease=lease, now=now)
    seqs = [int(job.subject or 0) for job in jobs if job.kind == executions.JOB_KIND]
    rows = executions.begin(tx, seqs, now=now) if seqs else {}
    found: list[Claimed | CanaryClaim] = []
    for job in jobs:
        if job.kind == canary.KIND:
            found.append(CanaryClaim(job))
            continue
        row = rows.get(int(job.subject or 0))
        if row is None:
            verbs.settle(
                tx, job, Discard("execution.over"), now=now, policy=RetryPolicy(), roll=0.0
            )
            continue
        found.append(Claimed(job, row))
    return found


def rescue(tx: Tx, *, me: str, watch: Watch, now: float, anew: bool = False) -> int:
    """Take back the claims of dead processes; how many.

    Executions that died too often fail, and those whose cancel was asked for are cancelled.

    Args:
        anew: the worker of process `me` has just begun and runs nothing: what an earlier one of the same
            process still held when it crashed comes back too.
    """
    owners = verbs.dead_owners(tx, me=me, watch=watch) + ([me] if anew else [])
    taken = verbs.rescue(tx, owners=owners, now=now)
    for job in taken:
        if isinstance(job.subject, int) and (name := executions.id_of(tx, job.subject)):
            words = "the process that ran it died; another goes on where it was"
            why.note(tx, "job.rescued", name, words, now=now)
        if job.discarded and isinstance(job.subject, int):
            executions.fail_abandoned(
                tx,
                job.subject,
                code="job.crash_loop",
                message=f"the process that ran this died {job.rescues} times",
                now=now,
            )
        elif isinstance(job.subject, int):
            executions.cancel_if_asked(tx, job.subject, now=now)
    return len(taken)


class WorkflowRuntime:
    """Runs claimed executions; knows which are running, so that one can be cancelled or interrupted.

    `memory`: what the values of large executions share.
    """

    def __init__(
        self, tools: Tools, versions: Versions, *, memory: Budget, roll: Callable[[], float]
    ) -> None:
        self._tools = tools
        self._versions = versions
        self._memory = memory
        self._roll = roll
        self._runs: set[Run] = set()
        self._weights: LRUCache[int, int] = LRUCache(WEIGHTS_KEPT)  # of inputs, which never change

    claim = staticmethod(claim)

    rescue = staticmethod(rescue)

    async def execute(self, claimed: Claimed | CanaryClaim) -> None:
        """Run one claim until its execution rests and its job is settled.

        A lost lease ends it silently: the newer claim goes on. An error of the runtime itself fails the
        attempt, and with the last attempt the execution. Called in a task of its own: the ids it binds to
        log lines stay bound.

        Raises:
            StoreFailedError, StoreCorruptError: the store has stopped; the process must end.
        """
        if isinstance(claimed, CanaryClaim):
            await self._settle(claimed.job, Complete(), "")
            return
        job, row = claimed.job, claimed.row
        structlog.contextvars.bind_contextvars(
            execution_id=row.id, workflow_id=row.workflow_id, job_id=job.id
        )
        try:
            graph = await self._versions.graph(row.workflow_id, row.version)
            run = Run(self._tools, self._versions, graph, job, row)
            await self._run(run, claimed, graph.order)
        except OverloadedError:
            await self._settle(job, Snooze(ROOM_RETRY), "no room in memory for its data")
        except LeaseLostError:
            _log.warning("a newer claim owns this execution; ended here", fence=job.fence)
        except (StoreFailedError, StoreCorruptError):
            raise
        except (StoreBusyError, StoreFullError) as error:
            _log.warning("given back; the store is busy", reason=error.message)
            await self._settle(job, Snooze(STORE_RETRY), error.message)
        except Exception as error:  # noqa: BLE001  # a fault of ours must not take the worker down
            _log.exception("the run failed", attempt=job.attempt + 1)
            cause = first_error(error)
            await self._settle(job, Fail(type(cause).__name__), _words(cause))

    async def _weight(self, claimed: Claimed, keys: Sequence[str]) -> int:
        """Bytes of memory that its values will take; 0 if they are small enough not to be counted.

        Args:
            keys: of the node runs that are read at first, which those inside of loops are not.
        """
        store, seq = self._tools.store, claimed.row.seq
        if claimed.is_fresh and claimed.row.input_bytes <= LARGE:
            return 0
        size = self._weights.get(seq)
        if size is None:
            size = await store.read(lambda tx: executions.input_weight(tx, seq))
            self._weights[seq] = size
        if not claimed.is_fresh:
            size += executions.OUTPUT_WEIGHT * await store.read(
                lambda tx: executions.outputs_bytes(tx, seq, keys)
            )
        return size if size > LARGE else 0

    async def _run(self, run: Run, claimed: Claimed, keys: Sequence[str]) -> None:
        self._runs.add(run)
        try:
            size = await self._weight(claimed, keys)
            with Share(self._memory) as share:
                await share.obtain(size, patience=ROOM_PATIENCE)
                await run.execute(share)
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

    def wake(self, seq: int) -> None:
        """Let the run of the execution, if it is here, look for waits that have ended."""
        for run in tuple(self._runs):
            if run.seq == seq:
                run.wake()

    def waiting(self) -> dict[int, int]:
        """Executions that run here and also wait for something, with the wakes they have seen."""
        return {run.seq: run.wakes for run in self._runs if run.is_waiting}

    async def _settle(self, job: Job, outcome: Complete | Fail | Snooze, message: str) -> None:
        """End the claim, however long the store is busy or full."""
        now = self._tools.clock.time()

        def change(tx: Tx) -> None:
            state = verbs.settle(
                tx, job, outcome, now=now, policy=self._tools.job_retry, roll=self._roll()
            )
            if state is JobState.DISCARDED and isinstance(job.subject, int):
                executions.fail_abandoned(
                    tx, job.subject, code="job.failed", message=message, now=now
                )
            elif state is not None and isinstance(job.subject, int):
                code = "job.retried" if isinstance(outcome, Fail) else "job.given_back"
                if name := executions.id_of(tx, job.subject):
                    why.note(tx, code, name, f"it is offered again: {message}", now=now)
                executions.cancel_if_asked(tx, job.subject, now=now)

        while True:
            try:
                return await self._tools.store.write(change)
            except (StoreBusyError, StoreFullError) as error:
                _log.warning("waiting for the store", reason=error.message)
            await self._tools.clock.sleep(STORE_RETRY)


def _words(error: BaseException) -> str:
    return (
        error.message
        if isinstance(error, StackdError)
        else f"internal error ({type(error).__name__})"
    )
