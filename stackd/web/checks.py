"""What is checked before this process is called ready: the parts of its work that can be tried out."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Final

import anyio

from stackd.core.aside import Aside
from stackd.core.clock import Clock
from stackd.core.errors import StoreError
from stackd.core.events import Event, EventBus
from stackd.core.process import ProcessIdentity
from stackd.queue import processes, verbs
from stackd.queue.job import JobSettled, JobState
from stackd.runtime import canary
from stackd.sandbox.sandbox import Sandbox
from stackd.store.connection import Tx
from stackd.store.database import Database
from stackd.supervisor.lag import LoopLag
from stackd.supervisor.supervisor import Supervisor
from stackd.web.readiness import GOOD, Found, Readiness, Status, fail, warn
from stackd.workflows import executions
from stackd.workflows.reconciliation import Reconciliation

WRITE_LIMIT: Final = 1.0  # seconds a commit may take before the store counts as not working
WRITE_FRESH: Final = 5.0  # seconds a commit stays good as evidence: probes cause no storm of syncs
SPACE_LOW: Final = 128 * 1024 * 1024  # free bytes
INODES_LOW: Final = 1000
# Seconds; how late the loop may be, 99 times of 100 in the last ten.
LAG_WARN, LAG_FAIL = 0.25, 2.0
JUMP: Final = 5.0  # seconds by which the wall clock may move against the other
JUMP_TOLD: Final = 60.0  # seconds
TIMER_LATE: Final = 15.0  # seconds a due timer may wait
WORK_FRESH: Final = 30.0  # seconds a job that ended stays good as evidence
REPLACED_AFTER: Final = (
    60.0  # seconds in which a worker with free places took no job; then it gives way to another
)
DAMAGED: Final = "restore a backup; until then what is read may be wrong or missing"
WORK_WITHIN: Final = 0.8  # seconds until the canary should have ended; less than a check may take


class Checks:
    """The checks of one process; `into` puts them into its `Readiness`."""

    def __init__(
        self,
        *,
        store: Database,
        supervisor: Supervisor,
        clock: Clock,
        events: EventBus,
        identity: ProcessIdentity,
        lag: LoopLag,
        state_dir: Path,
        reconciliation: Reconciliation,
        slots: int,
        sandbox: Sandbox | None = None,
    ) -> None:
        self._store = store
        self._supervisor = supervisor
        self._clock = clock
        self._identity = identity
        self._lag = lag
        self._state_dir = state_dir
        self._reconciliation = reconciliation
        self._worked_at = -WORK_FRESH
        self._waits_since: float | None = None  # by the monotonic clock; a canary does
        self._has_worker = False
        self._slots = slots
        self._sandbox = sandbox
        self._statvfs = Aside(lambda: os.statvfs(state_dir))
        self._apart = clock.time() - clock.monotonic()
        self._jumped_at, self._jump = -JUMP_TOLD, 0.0
        events.subscribe(self._hear, JobSettled)

    def _hear(self, _: Event) -> None:
        self._worked_at = self._clock.monotonic()

    def into(self, readiness: Readiness, *, services: Collection[str]) -> None:
        """Add those that concern a process with these services: the API's answers for all of the work."""
        self._has_worker = "worker" in services
        readiness.add("goes_on", glance=self._draining, is_lasting=False)
        readiness.add("store.write", self._write, glance=self._written)
        readiness.add("store.space", glance=self._spent)
        readiness.add("disk", self._disk)
        if not {"api", "worker"}.isdisjoint(services):
            readiness.add("queue.work", self._work, glance=self._worked)
        if "scheduler" in services:  # which reconciles, and whose process looks through the store
            readiness.add("store.integrity", glance=self._whole)
            readiness.add("queue.consistency", glance=self._consistent)
        if not {"api", "timers"}.isdisjoint(services):
            readiness.add("timers", self._timers)
        if self._sandbox is not None:
            readiness.add("sandbox", glance=partial(_isolated, self._sandbox))
        readiness.add("loop", glance=self._late)
        readiness.add("clock", glance=self._clock_jumped)

    def _draining(self) -> Found | None:
        return fail("it was asked to stop") if self._supervisor.is_draining else None

    # -- the store

    def _written(self) -> Found | None:
        """A commit of the last seconds says it, whoever made it."""
        store = self._store
        refused = store.failure or store.refusal
        if refused is not None:
            return fail(refused.message)
        if store.is_behind(WRITE_LIMIT):
            return fail(f"no commit within {WRITE_LIMIT:g} s")
        is_fresh = self._clock.monotonic() - store.synced_at <= WRITE_FRESH
        return GOOD if is_fresh else None

    async def _write(self) -> Found:
        """Commit and sync. It is a heartbeat: where nothing changes, SQLite writes nothing."""
        now = self._clock.time()
        try:
            with anyio.move_on_after(WRITE_LIMIT) as in_time:
                await self._store.write(lambda tx: processes.beat(tx, self._identity, now=now))
        except StoreError as error:
            return fail(error.message, at_once=True)
        if in_time.cancelled_caught:
            return fail(f"no commit within {WRITE_LIMIT:g} s", at_once=True)
        return Found(GOOD.status, at_once=True)

    def _spent(self) -> Found | None:
        if self._store.reserve.is_spent:
            return fail("the disk is full; nothing new is taken in")
        return None

    def _whole(self) -> Found:
        """Looked through after an end that was not clean, and when somebody asks."""
        integrity = self._store.integrity
        last = integrity.last
        if last is None and integrity.is_looking:
            return warn("the file is being looked through")
        if last is None:
            trouble = integrity.trouble
            return GOOD if trouble is None else warn(f"it could not be looked through: {trouble}")
        age = self._clock.monotonic() - last.at
        if last.problems:
            words = f"SQLite finds the file damaged: {last.problems[0]}; {DAMAGED}"
            return Found(Status.FAIL, words, age=age)
        return Found(Status.PASS, age=age)

    async def _disk(self) -> Found:
        """A warning only: what is full is told by who is refused there."""
        disk = await self._statvfs.result()
        free = disk.f_bavail * disk.f_frsize
        if free < SPACE_LOW:
            return warn(f"{free // 1024**2} MiB free at {self._state_dir}")
        if disk.f_files and disk.f_favail < INODES_LOW:  # some file systems count none
            return warn(f"{disk.f_favail} inodes free at {self._state_dir}")
        return GOOD

    # -- the work

    def _worked(self) -> Found | None:
        return GOOD if self._clock.monotonic() - self._worked_at <= WORK_FRESH else None

    async def _work(self) -> Found:
        """Let a job that does nothing be claimed, run and settled, by whichever process runs a worker."""
        now = self._clock.time()

        def look(tx: Tx) -> tuple[bool, int, bool, float | None]:
            return (
                verbs.is_paused(tx), _workers(tx, now), _on_its_way(tx), verbs.next_due(tx, now=now),
            )  # fmt: skip

        is_paused, workers, is_under_way, due = await self._store.read(look)
        if is_paused:
            self._waits_since = None
            return warn("the queue is paused")
        if not workers:  # it is no fault while there is nothing to do
            self._waits_since = None
            words = "no process runs a worker"
            return warn(words) if due is None or due > now else fail(words)
        if not is_under_way:
            self._waits_since = None
            await self._store.write(lambda tx: canary.send(tx, now=now), durable=False)
        if self._waits_since is None:  # it may have been sent by somebody else, or long ago
            self._waits_since = self._clock.monotonic()
        give_up_at = self._clock.monotonic() + WORK_WITHIN
        while await self._store.read(_on_its_way):
            if self._clock.monotonic() >= give_up_at:
                return await self._has_not_worked(workers)
            await self._clock.sleep(0.02)
        self._waits_since = None
        self._worked_at = self._clock.monotonic()
        return GOOD

    async def _has_not_worked(self, workers: int) -> Found:
        """The job still waits. That is no fault where every place is taken, or was a moment ago."""
        running = (await self._store.read(verbs.live_counts))[JobState.RUNNING]
        since = self._waits_since
        waited = 0.0 if since is None else self._clock.monotonic() - since
        if running >= workers * self._slots:
            return warn(f"all {running} places are taken")
        if waited < WORK_FRESH:
            return warn(f"a job waits for {waited:.0f} s")
        if self._has_worker and waited >= REPLACED_AFTER:
            self._waits_since = None
            self._supervisor.restart("worker", f"has taken no job for {waited:.0f} s")
        return fail(f"no worker has taken a job for {waited:.0f} s")

    def _consistent(self) -> Found:
        last = self._reconciliation.last
        if last is None:
            return fail("the store was not looked through yet")
        age = max(self._clock.time() - last.at, 0.0)
        if last.is_sound:
            return Found(Status.PASS, age=age)
        told = ", ".join(f"{found.code} ({found.count})" for found in last.left)
        words = f"does not fit together: {told}; see `stackd queue check`"
        return Found(Status.FAIL, words, age=age)

    async def _timers(self) -> Found:
        now = self._clock.time()
        late = await self._store.read(lambda tx: executions.oldest_due(tx, now=now))
        return GOOD if late < TIMER_LATE else fail(f"a timer is due for {late:.0f} s")

    # -- the process

    def _late(self) -> Found | None:
        late = self._lag.over(10.0).p99
        if late < LAG_WARN:
            return None
        words = f"the event loop is up to {late * 1000:.0f} ms late"
        return fail(words) if late > LAG_FAIL else warn(words)

    def _clock_jumped(self) -> Found | None:
        """The wall clock moved against the other: it was set, or the machine has slept."""
        now = self._clock.monotonic()
        apart = self._clock.time() - now
        if abs(apart - self._apart) > JUMP:
            self._jump, self._jumped_at = apart - self._apart, now
        self._apart = apart
        if now - self._jumped_at > JUMP_TOLD:
            return None
        return warn(f"the clock moved by {self._jump:+.0f} s")


def _isolated(sandbox: Sandbox) -> Found:
    """How well code is isolated. Where that is not well enough, code nodes fail and all else goes on: a warning."""
    reason = sandbox.problem()
    return Found(Status.PASS if reason is None else Status.WARN, reason, details=sandbox.told())


def _workers(tx: Tx, now: float) -> int:
    """How many processes live that run a worker."""
    return sum(row.works and processes.may_live(row, now=now) for row in processes.listed(tx))


def _on_its_way(tx: Tx) -> bool:
    return verbs.is_live(tx, kind=canary.KIND, subject=canary.KIND)
