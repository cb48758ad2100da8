"""What the scheduler and the timers do in a round, and when the rounds come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs
from support.blobs import content_of
from support.held import held
from support.runs import LEASE, World
from support.watched import WatchedClock, WatchedStore

from stackd.core.clock import SystemClock
from stackd.core.errors import NotFoundError, StackdError, StoreBusyError, StoreFullError
from stackd.core.events import Event, EventBus
from stackd.core.process import ProcessIdentity, current_process
from stackd.queue import processes, verbs
from stackd.queue.job import Complete, JobRescued, NewJob, RetryPolicy
from stackd.runtime.blobs import BlobFolder, BlobLimits
from stackd.services.scheduler import (
    AFTER_SLEEP,
    BLOB_BATCH,
    BLOB_GRACE,
    JOBS_KEPT,
    PRUNE_BATCH,
    PRUNE_BATCHES,
    Done,
    Scheduler,
)
from stackd.services.timers import STORE_RETRY, Timers
from stackd.store.connection import Tx
from stackd.store.database import Database, open_database
from stackd.supervisor.service import Pulse, Service
from stackd.workflows import blobs, executions
from stackd.workflows.executions import NewExecution, NodeRow, NodeStatus, TimerFired
from stackd.workflows.reconciliation import Reconciliation
from stackd.workflows.retention import Bounds, Retention

THIS_PROCESS = current_process()  # read here: a test may not block its loop
INTERVAL = 5.0
BATCH = 2
WITHIN = 5.0  # seconds of real time after which a test that hangs fails
TROUBLES = [StoreBusyError("locked"), StoreFullError("no space left")]

WAITING = """
id: waiting
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: a, type: transform.data.set, params: {values: {v: 1}}}
edges: [{from: start, to: a}]
"""


class Site:
    """A world in which no worker runs. Time stands still unless the test moves it."""

    def __init__(self, database: Database) -> None:
        self.world = World(database)
        self.clock = self.world.clock = WatchedClock()
        self.store = self.world.store = WatchedStore(database)  # type: ignore[assignment]
        self.blobs = BlobFolder(
            database.path.with_name("blobs"),
            self.store,  # type: ignore[arg-type]
            clock=self.clock,
            limits=BlobLimits(one=2**20, all=2**24),
        )
        self.bounds = Bounds()
        self.fired: list[tuple[float, int]] = []  # (when, execution)
        database.events.subscribe(self._hear, TimerFired)

    def _hear(self, event: Event) -> None:
        assert isinstance(event, TimerFired)
        self.fired.append((self.clock.time(), event.execution))

    def scheduler(self, identity: ProcessIdentity = THIS_PROCESS) -> Scheduler:
        return Scheduler(
            store=self.store,  # type: ignore[arg-type]
            blobs=self.blobs,
            clock=self.clock,
            identity=identity,
            lease=LEASE,
            interval=INTERVAL,
            pulse=Pulse(self.clock),
            reconciliation=Reconciliation(self.store, self.clock),  # type: ignore[arg-type]
            retention=Retention(self.store, self.clock, self.bounds),  # type: ignore[arg-type]
        )

    def timers(self, store: Any = None, *, batch: int = BATCH) -> Timers:
        store = store or self.store
        return Timers(
            store=store,
            events=store.events,
            clock=self.clock,
            interval=INTERVAL,
            batch=batch,
            pulse=Pulse(self.clock),
        )

    @asynccontextmanager
    async def working(self, *services: Service) -> AsyncIterator[None]:
        """The services run beside the block, are drained at its end, and must then end."""
        with anyio.fail_after(WITHIN):
            async with anyio.create_task_group() as tasks:
                for service in services:
                    await tasks.start(
                        lambda *, task_status, service=service: service.run(task_status=task_status)
                    )
                yield
                for service in services:
                    service.drain()

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.store.quiet()

    async def write(self, change: Callable[[Tx], Any]) -> Any:
        return await self.store.write(change)

    async def rows(self, sql: str) -> list[Any]:
        return await self.store.read(lambda tx: tx.rows(sql))

    async def wait_for(self, *seconds: float) -> list[int]:
        """Executions, each of which waits for a timer that is due in so many seconds; their numbers."""
        now = self.clock.time()
        ids = [await self.world.start("waiting") for _ in seconds]
        rows = [await self.world.row(execution_id) for execution_id in ids]

        def park(tx: Tx) -> None:
            for job in verbs.claim(tx, owner="me", limit=len(ids), lease=LEASE, now=now):
                verbs.settle(tx, job, Complete(), now=now, policy=RetryPolicy(), roll=0.0)
            executions.begin(tx, [row.seq for row in rows], now=now)
            for row, wait in zip(rows, seconds, strict=True):
                executions.put_nodes(tx, row.seq, [waiting_node(now)])
                executions.add_timer(tx, row, "pause", due_at=now + wait, output=b"1")
                executions.park(tx, row)

        await self.write(park)
        return [row.seq for row in rows]

    async def timer_states(self) -> dict[int, str]:
        return dict(await self.rows("SELECT execution, state FROM timers"))


def waiting_node(now: float) -> NodeRow:
    return NodeRow(
        "pause", "action.time.delay", NodeStatus.WAITING, 1, "read",
        None, None, now, None, None, None, None,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def log() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines  # type: ignore[misc]


@pytest.fixture
async def site(database: Database) -> Site:
    site = Site(database)
    await site.world.load(WAITING)
    return site


@pytest.fixture
async def elsewhere(database: Database) -> AsyncIterator[Database]:
    """Another process's handle on the same file: its events are not heard here."""
    async with held(
        open_database(database.path, clock=SystemClock(), events=EventBus(), readers=1)
    ) as opened:
        yield opened


# -- the scheduler


async def test_the_first_round_is_over_when_the_scheduler_has_started(site: Site) -> None:
    await site.world.start("waiting")
    await site.world.claim("gone")  # no process table knows this owner: it is dead

    async with site.working(site.scheduler()):
        assert await site.rows("SELECT state FROM jobs") == [("available",)]


async def test_rounds_come_at_the_interval_and_not_between(site: Site) -> None:
    before = site.store.writes
    async with site.working(site.scheduler()):
        await site.store.quiet()
        writes_per_round = site.store.writes - before
        for number in range(1, 5):
            await site.pass_time(INTERVAL - 1)
            assert site.store.writes - before == number * writes_per_round
            await site.pass_time(1.0)
            await site.clock.someone_sleeps()
            assert site.store.writes - before == (number + 1) * writes_per_round

    assert site.clock.asked == [INTERVAL] * 5


async def test_a_round_takes_back_jobs_of_the_dead_and_of_nobody_else(site: Site) -> None:
    now = site.clock.time()
    me = replace(THIS_PROCESS, start_ticks=1)  # no such process: only that it is me spares its jobs
    reborn = replace(THIS_PROCESS, start_ticks=2)  # its pid belongs to another by now
    other_boot = replace(THIS_PROCESS, boot_id="another boot")
    owners = {
        "mine": me.id, "alive": THIS_PROCESS.id, "reborn": reborn.id,
        "other boot": other_boot.id, "unknown": "unknown",
    }  # fmt: skip

    def prepare(tx: Tx) -> None:
        for identity in (me, THIS_PROCESS, reborn, other_boot):
            processes.register(tx, identity, role="worker", now=now)
        for kind, owner in owners.items():
            verbs.enqueue(tx, [NewJob(kind)], now=now)
            verbs.claim(tx, owner=owner, limit=1, lease=LEASE, now=now)

    await site.write(prepare)

    done = await site.scheduler(me).round()

    assert done == Done(rescued=3, keys=0, jobs=0)
    assert dict(await site.rows("SELECT kind, state FROM jobs")) == {
        "mine": "running", "alive": "running",
        "reborn": "available", "other boot": "available", "unknown": "available",
    }  # fmt: skip
    assert sum(isinstance(event, JobRescued) for event in site.world.seen) == 3


async def test_a_silent_process_is_dead_after_three_leases_and_not_before(site: Site) -> None:
    me, other = replace(THIS_PROCESS, start_ticks=1), THIS_PROCESS  # alive, but it will not beat

    def prepare(tx: Tx) -> None:
        processes.register(tx, other, role="worker", now=site.clock.time())
        verbs.enqueue(tx, [NewJob("its own")], now=site.clock.time())
        verbs.claim(tx, owner=other.id, limit=1, lease=LEASE, now=site.clock.time())

    await site.write(prepare)
    scheduler = site.scheduler(me)

    assert (await scheduler.round()).rescued == 0
    for _ in range(2):
        site.clock.advance(1.5 * LEASE - 0.5)
        assert (await scheduler.round()).rescued == 0
    site.clock.advance(1.0)
    assert (await scheduler.round()).rescued == 1


async def test_every_round_is_a_heartbeat(site: Site) -> None:
    await site.write(
        lambda tx: processes.register(tx, THIS_PROCESS, role="stack", now=site.clock.time())
    )
    async with site.working(site.scheduler()):
        await site.store.quiet()
        await site.pass_time(INTERVAL)
        (row,) = await site.store.read(processes.listed)
        assert row.heartbeat_at == site.clock.time()


async def test_a_round_forgets_keys_whose_window_has_passed(site: Site) -> None:
    now = site.clock.time()
    new = NewExecution("waiting", 1, "trigger.webhook.inbound", "hook", b"null", None)

    def remember(tx: Tx) -> None:
        for key, window in [("past", 10.0), ("now", 20.0), ("later", 20.5)]:
            executions.remember_key(tx, new, key=key, execution_id="e", now=now, window=window)

    await site.write(remember)

    site.clock.advance(20.0)
    assert (await site.scheduler().round()).keys == 2
    assert await site.rows("SELECT key FROM dedupe_keys") == [("later",)]


async def test_a_round_forgets_jobs_that_ended_long_ago_and_keeps_live_ones(site: Site) -> None:
    now = site.clock.time()

    def prepare(tx: Tx) -> None:
        verbs.enqueue(tx, [NewJob("done"), NewJob("live"), NewJob("held")], now=now)
        (done,) = verbs.claim(tx, owner="me", limit=1, lease=LEASE, now=now)
        verbs.settle(tx, done, Complete(), now=now, policy=RetryPolicy(), roll=0.0)

    await site.write(prepare)

    site.clock.advance(JOBS_KEPT)
    assert (await site.scheduler().round()).jobs == 0
    site.clock.advance(1.0)
    assert (await site.scheduler().round()).jobs == 1
    assert {kind for (kind,) in await site.rows("SELECT kind FROM jobs")} == {"live", "held"}


async def test_forgetting_goes_in_batches_and_leaves_the_rest_to_the_next_round(
    site: Site,
) -> None:
    share, rest = PRUNE_BATCH * PRUNE_BATCHES, 7
    await site.write(
        lambda tx: tx.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO dedupe_keys SELECT 'waiting', 'hook', 't', 'k' || i, 'e', 1.0 FROM n",
            (share + rest,),
        )
    )
    scheduler = site.scheduler()

    assert (await scheduler.round()).keys == share
    assert (await scheduler.round()).keys == rest
    assert (await scheduler.round()).keys == 0


@pytest.mark.parametrize("error", TROUBLES, ids=["busy", "full"])
async def test_the_scheduler_survives_a_store_that_is(
    site: Site, error: StackdError, log: Any
) -> None:
    site.store.failing_writes.append(error)
    async with site.working(site.scheduler()):  # started all the same
        await site.store.quiet()
        await site.world.start("waiting")
        await site.world.claim("gone")
        await site.pass_time(INTERVAL)
        assert await site.rows("SELECT state FROM jobs") == [("available",)]

    assert [line["reason"] for line in log if line["log_level"] == "warning"] == [error.message]


# -- the timers


async def test_a_timer_fires_when_it_is_due_and_not_before(site: Site) -> None:
    due = INTERVAL / 4
    async with site.working(site.timers()):
        await site.store.quiet()
        (seq,) = await site.wait_for(due)
        await site.store.quiet()
        await site.pass_time(due / 2)
        assert site.fired == []
        await site.pass_time(due / 2)

    assert site.fired == [(site.clock.time(), seq)]
    assert await site.timer_states() == {seq: "fired"}
    assert await site.rows("SELECT status, output FROM node_runs") == [("completed", b"1")]
    assert await site.rows("SELECT state FROM jobs WHERE finished_at IS NULL") == [("available",)]


async def test_a_timer_set_for_sooner_than_the_one_waited_for_is_not_late(site: Site) -> None:
    async with site.working(site.timers()):
        (later,) = await site.wait_for(4.0)
        await site.store.quiet()
        (sooner,) = await site.wait_for(1.0)
        await site.store.quiet()
        start = site.clock.time()
        for _ in range(8):
            await site.pass_time(0.5)

    assert site.fired == [(start + 1.0, sooner), (start + 4.0, later)]


async def test_a_timer_far_off_fires_on_time_after_many_looks(site: Site) -> None:
    due_at = site.clock.time() + 4.5 * INTERVAL
    (seq,) = await site.wait_for(4.5 * INTERVAL)
    async with site.working(site.timers()):
        await site.store.quiet()
        for _ in range(10):
            await site.pass_time(INTERVAL / 2)

    assert site.fired == [(due_at, seq)]


async def test_a_timer_another_process_set_fires_within_the_interval(
    site: Site, elsewhere: Database
) -> None:
    (seq,) = await site.wait_for(10 * INTERVAL)
    async with site.working(site.timers()):
        await site.store.quiet()
        due_at = site.clock.time() + 1.0
        await elsewhere.write(lambda tx: tx.execute("UPDATE timers SET due_at = ?", (due_at,)))
        await site.pass_time(1.0)
        assert site.fired == []  # nobody told it
        await site.pass_time(INTERVAL - 1.0)

    assert [execution for _, execution in site.fired] == [seq]


async def test_a_timer_set_while_the_timers_look_is_not_late(site: Site) -> None:
    await site.wait_for(1.0)
    set_meanwhile: list[int] = []

    async def set_another() -> None:
        site.store.after_read = None
        set_meanwhile.extend(await site.wait_for(1.0))

    async with site.working(site.timers()):
        await site.store.quiet()
        site.clock.advance(1.0)
        while not site.fired:
            await anyio.lowlevel.checkpoint()
        site.store.after_read = set_another  # it has looked: no timer is left; now one is
        await site.store.quiet()
        due_at = site.clock.time() + 1.0
        await site.pass_time(1.0)

    assert site.fired[1:] == [(due_at, set_meanwhile[0])]


async def test_timers_that_are_due_fire_batch_by_batch_without_waiting(site: Site) -> None:
    await site.wait_for(*[1.0] * (2 * BATCH + 1))
    timers = site.timers()
    assert await timers.fire_due() == 0

    site.clock.advance(1.0)

    assert [await timers.fire_due() for _ in range(4)] == [BATCH, BATCH, 1, 0]


async def test_many_due_timers_all_fire_in_one_go_the_oldest_first(site: Site) -> None:
    waits = [3.0, 1.0, 2.0, 5.0, 4.0]
    numbers = await site.wait_for(*waits)
    async with site.working(site.timers()):
        await site.store.quiet()
        await site.pass_time(10.0)

    assert [seq for _, seq in site.fired] == [
        seq for _, seq in sorted(zip(waits, numbers, strict=True))
    ]


async def test_each_batch_is_one_transaction(site: Site) -> None:
    await site.wait_for(*[1.0] * (2 * BATCH))
    writes = site.store.writes
    async with site.working(site.timers()):
        await site.store.quiet()
        await site.pass_time(1.0)

    assert site.store.writes - writes == 2
    assert len(site.fired) == 2 * BATCH


async def test_two_processes_fire_each_timer_once(site: Site, elsewhere: Database) -> None:
    count = 10
    heard: list[int] = []
    elsewhere.events.subscribe(lambda event: heard.append(event.execution), TimerFired)  # type: ignore[attr-defined]
    numbers = await site.wait_for(*[1.0] * count)
    other = WatchedStore(elsewhere)
    async with site.working(site.timers(), site.timers(other)):
        await site.store.quiet()
        await other.quiet()
        site.clock.advance(1.0)
        await site.store.quiet()
        await other.quiet()
        await site.store.quiet()

    assert sorted([seq for _, seq in site.fired] + heard) == sorted(numbers)
    assert await site.rows("SELECT DISTINCT wakes FROM executions") == [(1,)]


async def test_a_timer_that_fired_does_not_fire_again_after_a_restart(site: Site) -> None:
    await site.wait_for(1.0)
    site.clock.advance(1.0)
    for _ in range(2):
        async with site.working(site.timers()):
            await site.store.quiet()

    assert len(site.fired) == 1


async def test_a_timer_of_a_cancelled_execution_does_not_fire(site: Site) -> None:
    (seq,) = await site.wait_for(1.0)
    ((execution_id,),) = await site.rows("SELECT id FROM executions")
    await site.world.cancel(execution_id)
    async with site.working(site.timers()):
        await site.store.quiet()
        await site.pass_time(1.0)

    assert site.fired == []
    assert await site.timer_states() == {seq: "cancelled"}


@pytest.mark.parametrize("error", TROUBLES, ids=["busy", "full"])
@pytest.mark.parametrize("where", ["failing_reads", "failing_writes"])
async def test_timers_wait_for_a_store_that_is_in_trouble_and_then_fire(
    site: Site, error: StackdError, where: str, log: Any
) -> None:
    (seq,) = await site.wait_for(1.0)
    async with site.working(site.timers()):
        await site.store.quiet()
        failing = getattr(site.store, where)
        failing.extend([error, error])
        await site.pass_time(1.0)
        assert len(failing) == 1  # tried once, then waited
        assert site.fired == []
        for _ in range(2):
            await site.pass_time(STORE_RETRY)

    assert [execution for _, execution in site.fired] == [seq]
    assert min(site.clock.asked) >= STORE_RETRY
    assert [line["reason"] for line in log if line["log_level"] == "warning"] == [error.message] * 2


async def test_idle_timers_look_once_per_interval(site: Site) -> None:
    async with site.working(site.timers()):
        await site.store.quiet()
        reads, writes = site.store.reads, site.store.writes
        for _ in range(10):
            await site.pass_time(INTERVAL)

    assert site.clock.asked == [INTERVAL] * 11
    assert site.store.reads - reads <= 2 * 10
    assert site.store.writes == writes


async def test_drained_timers_fire_nothing_more(site: Site) -> None:
    await site.wait_for(1.0)
    async with site.working(site.timers()):
        await site.store.quiet()
    await site.pass_time(1.0)

    assert site.fired == []


async def test_a_round_removes_blobs_that_nothing_has_referred_to_for_an_hour(site: Site) -> None:
    used, unused = await site.blobs.put(b"used"), await site.blobs.put(b"unused")
    await site.world.start("waiting", {"$blob": used})
    scheduler = site.scheduler()

    site.clock.advance(BLOB_GRACE)
    assert (await scheduler.round()).blobs == 0
    site.clock.advance(1.0)
    assert (await scheduler.round()).blobs == 1
    assert await content_of(site.blobs, used) == b"used"
    with pytest.raises(NotFoundError):
        await content_of(site.blobs, unused)


async def test_after_a_sleep_of_the_machine_blobs_are_given_time_to_be_referred_to(
    site: Site,
) -> None:
    blob_id = await site.blobs.put(b"about to be referred to")
    scheduler = site.scheduler()
    slept = 8 * BLOB_GRACE
    site.clock.time = lambda: site.clock.monotonic() + slept  # type: ignore[method-assign]

    assert (await scheduler.round()).blobs == 0
    site.clock.advance(AFTER_SLEEP - 1)
    assert (await scheduler.round()).blobs == 0
    await site.world.start("waiting", {"$blob": blob_id})
    site.clock.advance(1)
    assert (await scheduler.round()).blobs == 0
    assert await content_of(site.blobs, blob_id)


async def test_a_round_removes_a_share_of_many_blobs_and_the_next_goes_on(site: Site) -> None:
    many = BLOB_BATCH * PRUNE_BATCHES + 1
    ids = [f"{number:064x}" for number in range(many)]
    now = site.clock.time()

    def change(tx: Tx) -> None:
        for blob_id in ids:
            blobs.note(tx, blob_id, 1, now=now, limit=many)

    await site.store.write(change)
    site.clock.advance(BLOB_GRACE + 1)

    assert [(await site.scheduler().round()).blobs for _ in range(3)] == [many - 1, 1, 0]
