"""Keeps the queue whole: takes back claims of the dead, mends what does not fit together, forgets what has expired.

Also keeps disk space aside for a full disk, and gives back what the store needs no more.

Schedules and polled triggers will be started from here.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
import structlog
from anyio.abc import TaskStatus

from stackd.core.clock import Clock
from stackd.core.errors import StoreBusyError, StoreFullError
from stackd.core.process import ProcessIdentity
from stackd.integrations import circuits
from stackd.queue import processes, verbs
from stackd.queue.processes import SILENT_LEASES, Watch
from stackd.runtime.blobs import BlobFolder
from stackd.runtime.workflow_runtime import rescue
from stackd.store import space
from stackd.store.connection import Tx
from stackd.store.database import Database
from stackd.supervisor.service import Pulse
from stackd.workflows import executions, why
from stackd.workflows.reconciliation import Reconciliation
from stackd.workflows.retention import Retention

PRUNE_BATCH = 500  # rows per transaction: small steps never hold up the writer
PRUNE_BATCHES = 20  # per round; the rest follows in the next
BLOB_BATCH = 50  # blobs per transaction: their files are removed in it
AFTER_SLEEP = (
    60.0  # seconds without a collection: after hours of sleep, what was put before is not old yet
)
BLOB_GRACE = 3600.0  # seconds a blob is kept that nothing refers to yet, or any more
JOBS_KEPT = 900.0  # seconds an ended job stays visible; the execution is the history

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Done:
    """What one round did: jobs taken back; dedupe keys, finished jobs, blobs and stray files removed."""

    rescued: int
    keys: int
    jobs: int
    blobs: int = 0
    files: int = 0


class Scheduler:
    """One round every `interval` seconds, the first at once."""

    name = "scheduler"

    def __init__(
        self,
        *,
        store: Database,
        blobs: BlobFolder,
        clock: Clock,
        identity: ProcessIdentity,
        lease: float,
        interval: float,
        pulse: Pulse,
        reconciliation: Reconciliation,
        retention: Retention,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._identity = identity
        self._watch = Watch(clock, patience=SILENT_LEASES * lease)
        self._interval = interval
        self._pulse = pulse
        self._reconciliation = reconciliation
        self._retention = retention
        self._clocks_apart = clock.time() - clock.monotonic()
        self._slept_at = -math.inf  # by the monotonic clock
        self._working = anyio.CancelScope()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        has_begun = False
        with self._working:
            await self._round_or_warn()
            task_status.started()
            has_begun = True
            while True:
                await self._clock.sleep(self._interval)
                await self._round_or_warn()
        if not has_begun:  # drained during the first round
            task_status.started()

    def drain(self) -> None:
        self._working.cancel()

    async def _round_or_warn(self) -> None:
        try:
            await self.round()
            self._pulse.beat()
        except (StoreBusyError, StoreFullError) as error:
            self._pulse.waits(error.message)
            _log.warning("upkeep waits", reason=error.message)

    async def round(self) -> Done:
        """One round of upkeep."""
        now = self._clock.time()

        def take_back(tx: Tx) -> int:
            processes.beat(tx, self._identity, now=now)
            verbs.fill_all_places(tx)
            return rescue(tx, me=self._identity.id, watch=self._watch, now=now)

        rescued = await self._store.write(take_back, durable=False)
        if rescued:
            _log.info("took back jobs of dead processes", jobs=rescued)
        await self._reconciliation.round(beat=self._pulse.beat)
        await self._retention.round(beat=self._pulse.beat)
        unused_since = now - (math.inf if self._has_just_slept(now) else BLOB_GRACE)
        keys = await self._prune(lambda tx, some: executions.prune_keys(tx, now=now, limit=some))
        await self._prune(lambda tx, some: why.prune(tx, now=now, limit=some))
        await self._prune(lambda tx, some: circuits.prune(tx, now=now, limit=some))
        jobs = await self._prune(
            lambda tx, some: verbs.prune(tx, before=now - JOBS_KEPT, limit=some)
        )
        blobs = await self._in_batches(
            lambda some: self._blobs.collect(before=unused_since, limit=some), batch=BLOB_BATCH
        )
        await space.shrink(self._store, beat=self._pulse.beat)
        await self._store.keep_reserve()
        files = await self._blobs.sweep(before=unused_since)
        return Done(rescued, keys, jobs, blobs, files)

    def _has_just_slept(self, now: float) -> bool:
        """Whether the machine has slept a while ago, or its clock was set: only then the two clocks move apart."""
        monotonic = self._clock.monotonic()
        if abs(now - monotonic - self._clocks_apart) > 1.0:
            self._clocks_apart = now - monotonic
            self._slept_at = monotonic
        return monotonic - self._slept_at < AFTER_SLEEP

    async def _prune(self, change: Callable[[Tx, int], int]) -> int:
        return await self._in_batches(
            lambda some: self._store.write(lambda tx: change(tx, some), durable=False),
            batch=PRUNE_BATCH,
        )

    async def _in_batches(self, step: Callable[[int], Awaitable[int]], *, batch: int) -> int:
        """Repeat `step`, for a batch each time, until nothing is left or the round's share is done; how many are gone."""
        gone = 0
        for _ in range(PRUNE_BATCHES):
            some = await step(batch)
            self._pulse.beat()
            gone += some
            if some < batch:
                break
        return gone
