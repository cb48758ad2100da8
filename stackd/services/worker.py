"""Runs jobs: claims what is due, executes it, until drained.

Killed in the middle, a job keeps its claim; another process, or the next start, takes it back and goes on
from the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Protocol

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from stackd.core.clock import Clock
from stackd.core.errors import StoreBusyError, StoreFullError
from stackd.core.events import Event, EventBus
from stackd.queue import verbs
from stackd.queue.job import (
    LIVE,
    JobEnqueued,
    JobRescued,
    JobSettled,
    JobUnblocked,
    QueueResumed,
)
from stackd.queue.processes import SILENT_LEASES, Watch
from stackd.store.connection import Tx
from stackd.store.database import Database
from stackd.supervisor.service import Pulse
from stackd.workflows import executions
from stackd.workflows.executions import CallEnded, CancelRequested, TimerFired
from stackd.workflows.resume import NodeResumed

POLL = 1.0  # seconds between looks for what other processes enqueued or asked to cancel
CLAIM_BATCH = 50  # jobs per claim: bounds how long one claim holds the writer
STORE_RETRY = 0.5  # seconds to wait when the store is locked or full


class Runtime(Protocol):
    """What runs the jobs. A claim is whatever `claim` returns and `execute` takes."""

    def claim(self, tx: Tx, *, owner: str, limit: int, lease: float, now: float) -> list[Any]:
        """Claim up to `limit` jobs; fewer when there are no more, or some needed no run."""

    async def execute(self, claimed: Any) -> None:
        """Run one claim and settle it."""

    def rescue(self, tx: Tx, *, me: str, watch: Watch, now: float, anew: bool = False) -> int:
        """Take back the claims of dead processes, and of `me` if it begins `anew`; how many."""

    def cancel(self, seq: int) -> None:
        """Cancel the execution `seq` if it runs here."""

    def wake(self, seq: int) -> None:
        """Let the execution `seq`, if it runs here, look for waits that have ended."""

    def waiting(self) -> dict[int, int]:
        """Executions that run here and also wait, with the wakes they have seen."""

    @property
    def running(self) -> int:
        """How many executions run here."""


class Worker:
    """At most `slots` executions at a time. Used once: a restart builds a new Worker."""

    name = "worker"

    def __init__(
        self,
        *,
        store: Database,
        runtime: Runtime,
        events: EventBus,
        clock: Clock,
        owner: str,
        slots: int,
        lease: float,
        lease_renew: float,
        pulse: Pulse,
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._events = events
        self._clock = clock
        self._owner = owner
        self._lease = lease
        self._lease_renew = lease_renew
        self._pulse = pulse
        self._watch = Watch(clock, patience=SILENT_LEASES * lease)
        self._free = slots
        self._parked: list[asyncio.Future[Any]] = []  # tasks that wait for a claim to run
        self._slot_freed = anyio.Event()
        self._work_came = anyio.Event()
        self._claiming = anyio.CancelScope()
        self._log = structlog.get_logger(__name__)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        unsubscribers = (
            self._events.subscribe(
                self._hear_work, JobEnqueued, JobUnblocked, JobRescued, QueueResumed
            ),
            self._events.subscribe(self._hear_settled, JobSettled),
            self._events.subscribe(
                self._hear_execution, CancelRequested, TimerFired, CallEnded, NodeResumed
            ),
        )
        try:
            async with anyio.create_task_group() as upkeep:
                upkeep.start_soon(self._renew_forever)
                upkeep.start_soon(self._watch_executions)
                await self._begin()
                async with anyio.create_task_group() as attempts:
                    with self._claiming:
                        task_status.started()
                        # Claims are shielded, so that a drain during one is seen only here.
                        while not self._claiming.cancel_called:
                            await self._claim_round(attempts)
                    for parked in self._parked:
                        if not parked.done():
                            parked.set_result(None)
                # Leases beat until the last attempt has ended.
                upkeep.cancel_scope.cancel()
        finally:
            for unsubscribe in unsubscribers:
                unsubscribe()

    def drain(self) -> None:
        """Claim no more; `run` returns when the attempts in hand have ended."""
        self._claiming.cancel()

    def _hear_work(self, _: Event) -> None:
        self._work_came.set()

    def _hear_settled(self, event: Event) -> None:
        if isinstance(event, JobSettled) and event.state in LIVE:  # due again, perhaps soon
            self._work_came.set()

    def _hear_execution(self, event: Event) -> None:
        match event:
            case CancelRequested():
                self._runtime.cancel(event.execution)
            case TimerFired() | CallEnded() | NodeResumed():
                self._runtime.wake(event.execution)
            case _:
                pass

    async def _claim_round(self, attempts: TaskGroup) -> None:
        """Fill the free slots, then return once there is a slot and something to claim."""
        self._work_came = anyio.Event()
        try:
            due = await self._claim(attempts)
            self._pulse.beat()
            await self._wait_for_work(due)
        except (StoreBusyError, StoreFullError) as error:
            self._pulse.waits(error.message)
            self._log.warning("claiming is paused", reason=error.message)
            await self._clock.sleep(STORE_RETRY)
            return
        while not self._free:
            self._pulse.beat()
            self._slot_freed = anyio.Event()
            await self._clock.wait(self._slot_freed, POLL)

    async def _claim(self, attempts: TaskGroup) -> float | None:
        """Claim and start what is due now; when the next job is due, as `verbs.next_due` says."""
        limit, now = min(self._free, CLAIM_BATCH), self._clock.time()

        def change(tx: Tx) -> tuple[list[Any], float | None]:
            claimed = self._runtime.claim(
                tx, owner=self._owner, limit=limit, lease=self._lease, now=now
            )
            if len(claimed) == limit:
                return claimed, now
            return claimed, verbs.next_due(tx, now=now, owner=self._owner)

        with anyio.CancelScope(shield=True):  # what was committed must be run, drain or not
            claimed, next_due = await self._store.write(change, durable=False)
            for one in claimed:
                self._free -= 1
                self._begin_attempt(one, attempts)
        return next_due

    async def _wait_for_work(self, due: float | None) -> None:
        """Return when something was enqueued here, is due, or a poll finds another process's job."""
        while not self._work_came.is_set():
            now = self._clock.time()
            if due is not None and due <= now:
                return
            wait = POLL if due is None else min(POLL, due - now)
            if await self._clock.wait(self._work_came, wait):
                return
            due = await self._store.read(
                lambda tx: verbs.next_due(tx, now=self._clock.time(), owner=self._owner)
            )
            self._pulse.beat()

    def _begin_attempt(self, claimed: Any, attempts: TaskGroup) -> None:
        """Give the claim to a task that has just run another, else to a new one: starting one takes longer."""
        while self._parked:
            parked = self._parked.pop()
            if not parked.done():  # else it was cancelled with this worker
                parked.set_result(claimed)
                return
        attempts.start_soon(self._attempt_one_by_one, claimed)

    async def _attempt_one_by_one(self, claimed: Any) -> None:
        while claimed is not None:
            try:
                await self._runtime.execute(claimed)
            finally:
                self._free += 1
                self._slot_freed.set()
            if self._claiming.cancel_called:
                return
            parked = asyncio.get_running_loop().create_future()
            self._parked.append(parked)
            claimed = await parked

    async def _renew_forever(self) -> None:
        while True:
            await self._clock.sleep(self._lease_renew)
            try:
                await self._renew()
                await self._rescue()
            except (StoreBusyError, StoreFullError) as error:
                self._log.warning("leases could not be renewed", reason=error.message)

    async def _renew(self) -> None:
        now = self._clock.time()
        await self._store.write(
            lambda tx: verbs.renew(tx, owner=self._owner, lease=self._lease, now=now),
            durable=False,
        )

    async def _begin(self) -> None:
        while True:
            try:
                return await self._rescue(anew=True)
            except (StoreBusyError, StoreFullError) as error:
                self._pulse.waits(error.message)
                self._log.warning("the worker waits for the store", reason=error.message)
            await self._clock.sleep(STORE_RETRY)

    async def _rescue(self, *, anew: bool = False) -> None:
        """Take back what dead processes hold; `anew`: also what a crashed worker of this process left."""
        now = self._clock.time()
        taken = await self._store.write(
            lambda tx: self._runtime.rescue(
                tx, me=self._owner, watch=self._watch, now=now, anew=anew
            )
        )
        if taken:
            self._log.info("took back jobs of dead processes", jobs=taken)

    async def _watch_executions(self) -> None:
        """See what other processes did to executions that run here, within `POLL` seconds."""
        while True:
            await self._clock.sleep(POLL)
            if not self._runtime.running:
                continue
            with contextlib.suppress(StoreBusyError):  # the next look is near
                for seq in await self._store.read(executions.cancel_requests):
                    self._runtime.cancel(seq)
                for seq in await self._woken():
                    self._runtime.wake(seq)

    async def _woken(self) -> list[int]:
        waiting = self._runtime.waiting()
        return await self._store.read(lambda tx: executions.woken(tx, waiting)) if waiting else []
