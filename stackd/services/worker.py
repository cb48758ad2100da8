"""Runs jobs: claims what is due, executes it, until drained.

Killed in the middle, a job keeps its claim; another process, or the next start, takes it back and goes on
from the journal.
"""

from __future__ import annotations

import anyio
import structlog
from anyio.abc import TaskStatus

from stackd.core.clock import Clock
from stackd.core.errors import StoreBusyError, StoreFullError
from stackd.core.events import Event, EventBus
from stackd.queue import verbs
from stackd.queue.job import JobEnqueued, JobSettled
from stackd.runtime.workflow_runtime import Claimed, WorkflowRuntime, claim, rescue
from stackd.store.database import Database
from stackd.workflows import executions
from stackd.workflows.executions import CancelRequested

POLL = 1.0  # seconds between looks for what other processes enqueued or asked to cancel
CLAIM_BATCH = 50  # jobs per claim: bounds how long one claim holds the writer
STORE_RETRY = 0.5  # seconds to wait when the store is locked or full


class Worker:
    """At most `slots` executions at a time. Used once: a restart builds a new Worker."""

    name = "worker"

    def __init__(
        self,
        *,
        store: Database,
        runtime: WorkflowRuntime,
        events: EventBus,
        clock: Clock,
        owner: str,
        slots: int,
        lease: float,
        lease_renew: float,
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._events = events
        self._clock = clock
        self._owner = owner
        self._slots = slots
        self._lease = lease
        self._lease_renew = lease_renew
        self._free = slots
        self._wake = anyio.Event()
        self._claiming = anyio.CancelScope()
        self._log = structlog.get_logger(__name__)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        unsubscribe = self._events.subscribe(self._hear)
        try:
            async with anyio.create_task_group() as upkeep:
                upkeep.start_soon(self._renew_forever)
                upkeep.start_soon(self._watch_cancels)
                await self._rescue()
                async with anyio.create_task_group() as attempts:
                    with self._claiming:
                        task_status.started()
                        while True:
                            await self._claim_round(attempts)
                # Leases beat until the last attempt has ended.
                upkeep.cancel_scope.cancel()
        finally:
            unsubscribe()

    def drain(self) -> None:
        """Claim no more; `run` returns when the attempts in hand have ended."""
        self._claiming.cancel()

    def _hear(self, event: Event) -> None:
        match event:
            case JobEnqueued() | JobSettled():
                self._wake.set()
            case CancelRequested(seq):
                self._runtime.cancel(seq)
            case _:
                pass

    async def _claim_round(self, attempts: anyio.abc.TaskGroup) -> None:
        self._wake = anyio.Event()
        try:
            claimed = await self._claim()
        except (StoreBusyError, StoreFullError) as error:
            self._log.warning("claiming is paused", reason=error.message)
            await self._clock.sleep(STORE_RETRY)
            return
        for one in claimed:
            self._free -= 1
            attempts.start_soon(self._attempt, one)
        if self._free and len(claimed) < min(CLAIM_BATCH, self._free + len(claimed)):
            await self._wait_for_work()
        elif not self._free:
            await self._wake.wait()

    async def _claim(self) -> list[Claimed]:
        limit = min(self._free, CLAIM_BATCH)
        now = self._clock.time()
        with anyio.CancelScope(shield=True):  # what was committed must be run, drain or not
            claimed = await self._store.write(
                lambda tx: claim(tx, owner=self._owner, limit=limit, lease=self._lease, now=now),
                durable=False,
            )
        return claimed  # noqa: RET504  # a cancel scope could swallow a return inside it

    async def _wait_for_work(self) -> None:
        """Return when something was enqueued here, is due, or a poll finds another process's job."""
        while not self._wake.is_set():
            due = await self._next_due()
            if due is not None and due <= self._clock.time() and not self._wake.is_set():
                return
            wait = POLL if due is None else min(POLL, due - self._clock.time())
            with anyio.move_on_after(max(wait, 0.001)):
                await self._wake.wait()

    async def _next_due(self) -> float | None:
        now = self._clock.time()
        return await self._store.read(lambda tx: verbs.next_due(tx, now=now))

    async def _attempt(self, claimed: Claimed) -> None:
        try:
            await self._runtime.execute(claimed)
        finally:
            self._free += 1
            self._wake.set()

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

    async def _rescue(self) -> None:
        now = self._clock.time()
        taken = await self._store.write(
            lambda tx: rescue(tx, me=self._owner, lease=self._lease, now=now)
        )
        if taken:
            self._log.info("took back jobs of dead processes", jobs=taken)

    async def _watch_cancels(self) -> None:
        """See cancels that other processes asked for, within `POLL` seconds."""
        while True:
            await self._clock.sleep(POLL)
            if self._runtime.running:
                for seq in await self._store.read(executions.cancel_requests):
                    self._runtime.cancel(seq)
