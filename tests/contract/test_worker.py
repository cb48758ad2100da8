"""When the worker claims, how much, what it does about failures, and what it leaves behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs
from support.held import held
from support.runs import LEASE, World
from support.watched import WatchedClock, WatchedStore

from stackd.core.clock import SystemClock
from stackd.core.errors import StackdError, StoreBusyError, StoreError, StoreFullError
from stackd.core.events import Event, EventBus
from stackd.core.json import dumps, loads
from stackd.http.message import Request, Response
from stackd.queue import verbs
from stackd.queue.job import JobClaimed, JobRescued, JobSettled
from stackd.services.worker import CLAIM_BATCH, POLL, STORE_RETRY, Worker
from stackd.store.connection import Tx
from stackd.store.database import Database, open_database
from stackd.supervisor.service import Pulse
from stackd.testing import ok
from stackd.workflows import executions
from stackd.workflows.executions import (
    CallEnded,
    ExecutionFinished,
    ExecutionStatus,
    NewExecution,
    TimerFired,
)
from stackd.workflows.resume import NodeResumed

ME = "me"
RENEW = 15.0
WITHIN = 5.0  # seconds of real time after which a test that hangs fails

PURE = """
id: pure
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: a, type: transform.data.set, params: {values: {v: 1}}}
edges: [{from: start, to: a}]
"""
ONE_AT_A_TIME = PURE.replace("id: pure", "id: one\nconcurrency: 1")
CALLING = """
id: calling
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: a, type: action.http.request, params: {url: "http://far.example/a", timeoutMs: 600000}}
edges: [{from: start, to: a}]
"""


class Site:
    """A world with a worker in it. Time stands still unless the test moves it."""

    def __init__(self, database: Database) -> None:
        self.world = World(database)
        self.clock = self.world.clock = WatchedClock()
        self.store = self.world.store = WatchedStore(database)  # type: ignore[assignment]
        self.world.runtime = self.world.process()
        self.running = 0
        self.most_running = 0
        self.claims: list[tuple[float, int]] = []  # (when, job)
        self.rests: dict[str, str] = {}
        self._moved = anyio.Event()
        database.events.subscribe(self._hear)

    def _hear(self, event: Event) -> None:
        match event:
            case JobClaimed():
                self.claims.append((self.clock.time(), event.job_id))
                self.running += 1
                self.most_running = max(self.running, self.most_running)
            case JobSettled():
                self.running -= 1
            case ExecutionFinished():
                self.rests[event.execution_id] = event.status
            case _:
                pass
        self._moved.set()

    def worker(self, *, slots: int = 4) -> Worker:
        return Worker(
            store=self.store,  # type: ignore[arg-type]
            runtime=self.world.runtime,
            events=self.world.store.events,
            clock=self.clock,
            owner=ME,
            slots=slots,
            lease=LEASE,
            lease_renew=RENEW,
            pulse=Pulse(self.clock),
        )

    @asynccontextmanager
    async def working(
        self, worker: Worker | None = None, *, slots: int = 4
    ) -> AsyncIterator[Worker]:
        """The worker runs beside the block, is drained at its end, and must then end."""
        worker = worker or self.worker(slots=slots)
        with anyio.fail_after(WITHIN):
            async with anyio.create_task_group() as tasks:
                await tasks.start(lambda *, task_status: worker.run(task_status=task_status))
                yield worker
                worker.drain()

    async def started(self, *, count: int = 1, due_at: float | None = None) -> list[str]:
        """Executions of the workflow that was loaded last, durable and queued."""
        new = NewExecution(
            workflow_id=self.loaded,
            version=1,
            trigger_type="trigger.time.manual",
            trigger_node="start",
            input=dumps(None),
            concurrency=1 if self.loaded == "one" else None,
        )

        def change(tx: Tx) -> list[str]:
            ids = [executions.start(tx, new, now=self.clock.time()) for _ in range(count)]
            if due_at is not None:
                tx.execute("UPDATE jobs SET state = 'scheduled', due_at = ?", (due_at,))
            return ids

        return await self.store.write(change)

    async def load(self, text: str) -> None:
        self.loaded = await self.world.load(text)

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Wait for events until `is_true`."""
        while not is_true():
            self._moved = anyio.Event()
            await self._moved.wait()

    async def rested(self, *ids: str) -> None:
        await self.until(lambda: set(ids) <= set(self.rests))

    async def settled(self, count: int) -> None:
        await self.until(lambda: self._count(JobSettled) >= count)

    def _count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.world.seen)

    async def job(self, execution_id: str) -> dict[str, Any]:
        names = ("state", "attempt", "owner", "leased_until", "due_at", "error")
        seq = (await self.world.row(execution_id)).seq
        rows = await self.store.read(
            lambda tx: tx.rows(f"SELECT {', '.join(names)} FROM jobs WHERE subject = ?", (seq,))
        )
        return dict(zip(names, rows[-1], strict=True))

    async def counts(self) -> dict[str, int]:
        now = self.clock.time()
        status = await self.store.read(lambda tx: verbs.status(tx, now=now))
        return {state: count for state, count in status.counts.items() if count}


def gated(gate: anyio.Event) -> Callable[[Request], Awaitable[Response]]:
    async def respond(_: Request) -> Response:
        await gate.wait()
        return ok()

    return respond


@pytest.fixture(autouse=True)
def log() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines  # type: ignore[misc]


@pytest.fixture
def site(database: Database) -> Site:
    return Site(database)


@pytest.fixture
async def elsewhere(database: Database) -> AsyncIterator[Database]:
    """Another process's handle on the same file: its events are not heard here."""
    async with held(
        open_database(database.path, clock=SystemClock(), events=EventBus(), readers=1)
    ) as opened:
        yield opened


# -- when it claims


async def test_what_is_enqueued_here_is_claimed_at_once(site: Site) -> None:
    await site.load(PURE)
    async with site.working():
        await site.store.quiet()
        before = site.clock.time()
        for _ in range(3):
            (started,) = await site.started()
            await site.rested(started)

    assert site.clock.time() == before
    assert set(site.rests.values()) == {"completed"}


async def test_what_waited_before_the_start_is_claimed_at_once(site: Site) -> None:
    await site.load(PURE)
    started = await site.started(count=10)

    async with site.working():
        await site.rested(*started)


@pytest.mark.parametrize("polls", [0.5, 0.75, 1.0, 2.5])
async def test_what_is_due_later_is_claimed_when_it_is_due_and_not_before(
    site: Site, polls: float
) -> None:
    await site.load(PURE)
    due_at = site.clock.time() + polls * POLL
    (started,) = await site.started(due_at=due_at)
    async with site.working():
        await site.store.quiet()
        while site.clock.time() < due_at:
            assert site.claims == []
            site.clock.advance(POLL / 4)
            await site.store.quiet()
        await site.rested(started)

    assert [at for at, _ in site.claims] == [due_at]


async def test_what_another_process_enqueued_is_claimed_within_the_poll(
    site: Site, elsewhere: Database
) -> None:
    await site.load(PURE)
    new = NewExecution("pure", 1, "trigger.time.manual", "start", b"null", None)
    async with site.working():
        await site.store.quiet()
        started = await elsewhere.write(lambda tx: executions.start(tx, new, now=site.clock.time()))
        await site.store.quiet()
        assert site.claims == []  # nobody told it

        site.clock.advance(POLL)
        await site.rested(started)


async def test_a_queue_resumed_by_another_process_is_claimed_from_within_the_poll(
    site: Site, elsewhere: Database
) -> None:
    await site.load(PURE)
    await site.store.write(verbs.pause)
    async with site.working():
        (started,) = await site.started()
        await site.store.quiet()
        site.clock.advance(POLL)
        await site.store.quiet()
        assert site.claims == []

        await elsewhere.write(verbs.resume)
        site.clock.advance(POLL)
        await site.rested(started)


async def test_an_idle_worker_looks_once_per_poll_and_writes_only_its_renewals(site: Site) -> None:
    async with site.working():
        await site.store.quiet()
        reads, writes = site.store.reads, site.store.writes
        for _ in range(60):
            site.clock.advance(1.0)
            await site.store.quiet()

        assert 60 / POLL - 2 <= site.store.reads - reads <= 60 / POLL + 2
        assert site.store.writes - writes <= 2 * 60 / RENEW
        assert min(site.clock.asked) >= POLL


async def test_a_worker_whose_slots_are_taken_asks_the_store_for_nothing(site: Site) -> None:
    await site.load(CALLING)
    gate = anyio.Event()
    site.world.http.script.extend([gated(gate)] * 2)
    async with site.working(slots=2):
        await site.started(count=10)
        await site.world.http.arrived(2)
        await site.store.quiet()
        site.clock.advance(POLL)  # the runs write down what they have so far
        await site.store.quiet()
        writes = site.store.writes
        for _ in range(10):
            site.clock.advance(POLL)
            await site.store.quiet()
        assert site.store.writes == writes
        gate.set()
        await site.settled(10)


# -- how much it claims


@pytest.mark.parametrize("slots", [1, 3])
async def test_never_more_run_at_once_than_there_are_slots(site: Site, slots: int) -> None:
    await site.load(CALLING)
    gates = [anyio.Event() for _ in range(8)]
    site.world.http.script.extend([gated(gate) for gate in gates])
    async with site.working(slots=slots):
        started = await site.started(count=8)
        for number, gate in enumerate(gates):
            await site.world.http.arrived(min(slots + number, 8))
            assert site.running <= slots
            gate.set()
        await site.rested(*started)

    assert site.most_running == slots


async def test_more_slots_than_a_claim_takes_are_all_used(site: Site) -> None:
    await site.load(CALLING)
    count = CLAIM_BATCH + 10
    gate = anyio.Event()
    site.world.http.script.extend([gated(gate)] * count)
    async with site.working(slots=count):
        started = await site.started(count=count + 5)
        await site.world.http.arrived(count)
        assert site.running == count
        gate.set()
        await site.rested(*started)


async def test_a_place_under_a_concurrency_limit_is_taken_as_soon_as_it_is_free(
    site: Site,
) -> None:
    await site.load(ONE_AT_A_TIME)
    before = site.clock.time()
    async with site.working():
        started = await site.started(count=5)
        await site.rested(*started)

    assert site.most_running == 1
    assert site.clock.time() == before


# -- attempts that fail


def unkept(site: Site) -> Callable[[Request], Awaitable[Response]]:
    """An answer that the store then cannot take: an error of the run, not of its node."""

    async def respond(_: Request) -> Response:
        site.store.failing_writes.append(StoreError("the file cannot be written"))
        return ok(b"1")

    return respond


async def test_a_failing_attempt_is_tried_again_after_a_wait(site: Site) -> None:
    await site.load(CALLING)
    site.world.http.script.extend([unkept(site), ok(b"1")])
    async with site.working():
        (started,) = await site.started()
        await site.settled(1)
        job = await site.job(started)
        assert (job["state"], job["attempt"], job["owner"]) == ("retryable", 1, None)

        site.clock.advance(job["due_at"] - site.clock.time())
        await site.rested(started)

    assert site.rests[started] == "completed"
    assert site.running == 0


async def test_after_the_last_attempt_the_job_is_discarded_and_its_execution_failed(
    site: Site,
) -> None:
    await site.load(CALLING)
    site.world.http.script.extend([unkept(site)] * 20)
    waits = []
    async with site.working():
        (started,) = await site.started()
        for number in range(1, 20):
            await site.settled(number)
            job = await site.job(started)
            if job["state"] != "retryable":
                break
            waits.append(job["due_at"] - site.clock.time())
            site.clock.advance(waits[-1])
        await site.rested(started)

    row = await site.world.row(started)
    assert job["state"] == "discarded"
    assert row.status is ExecutionStatus.FAILED
    assert loads(row.error)["code"] == "job.failed"
    assert waits == [1.0, 2.0, 4.0]  # the policy's base, doubled, for 4 attempts
    assert len(site.world.http.requests) == 4


async def test_a_failed_attempt_says_which_error_it_was(site: Site) -> None:
    await site.load(CALLING)
    site.world.http.script.append(unkept(site))
    async with site.working():
        (started,) = await site.started()
        await site.settled(1)

    assert (await site.job(started))["error"] == "StoreError"


async def test_an_answer_that_cannot_be_kept_fails_its_node_and_is_not_asked_for_again(
    site: Site,
) -> None:
    await site.load(CALLING)
    site.world.http.script.append(ok(b'{"half": "\\ud800"}'))
    async with site.working():
        (started,) = await site.started()
        await site.settled(1)

    assert (await site.job(started))["state"] == "completed"
    assert site.rests[started] == "failed"


async def test_a_failing_attempt_does_not_disturb_the_others(site: Site) -> None:
    await site.load(CALLING)
    gate = anyio.Event()
    site.world.http.script.extend([gated(gate), unkept(site)])
    async with site.working(slots=2):
        (first,) = await site.started()
        await site.world.http.arrived(1)
        await site.started()
        await site.settled(1)
        gate.set()
        await site.rested(first)

    assert site.rests == {first: "completed"}


# -- drain


async def test_drain_finishes_what_runs_and_claims_no_more(site: Site) -> None:
    await site.load(CALLING)
    gate = anyio.Event()
    site.world.http.script.extend([gated(gate)] * 2)
    async with site.working(slots=2) as worker:
        started = await site.started(count=5)
        await site.world.http.arrived(2)
        worker.drain()
        await site.store.quiet()
        gate.set()
        await site.rested(*started[:2])

    assert await site.counts() == {"completed": 2, "available": 3}
    assert len(site.world.http.requests) == 2


async def test_leases_are_renewed_until_the_last_attempt_has_ended(site: Site) -> None:
    await site.load(CALLING)
    gate = anyio.Event()
    site.world.http.script.append(gated(gate))
    async with site.working() as worker:
        (started,) = await site.started()
        await site.world.http.arrived(1)
        worker.drain()
        await site.store.quiet()

        site.clock.advance(RENEW)
        await site.store.quiet()
        assert (await site.job(started))["leased_until"] == site.clock.time() + LEASE
        gate.set()


async def test_drain_before_the_start_claims_nothing(site: Site) -> None:
    await site.load(PURE)
    await site.started(count=3)
    worker = site.worker()
    worker.drain()

    async with site.working(worker):
        pass

    assert site.claims == []


async def test_drain_while_a_claim_commits_runs_what_it_brought_and_claims_no_more(
    site: Site,
) -> None:
    await site.load(PURE)
    await site.started(count=3 * CLAIM_BATCH)
    worker = site.worker(slots=4 * CLAIM_BATCH)
    site.store.events.subscribe(lambda e: worker.drain() if isinstance(e, JobClaimed) else None)

    async with site.working(worker):
        pass

    assert len(site.claims) == CLAIM_BATCH
    assert await site.counts() == {"completed": CLAIM_BATCH, "available": 2 * CLAIM_BATCH}


# -- the store in trouble


@pytest.mark.parametrize(
    "error", [StoreBusyError("locked"), StoreFullError("no space left")], ids=["busy", "full"]
)
async def test_claiming_pauses_while_the_store_is(site: Site, error: StackdError, log: Any) -> None:
    await site.load(PURE)
    async with site.working():
        await site.store.quiet()
        site.store.failing_writes.extend([None, error, error])  # the start goes through
        (started,) = await site.started()
        await site.store.quiet()
        assert site.claims == []
        assert len(site.store.failing_writes) == 1  # tried once, then waited

        site.clock.advance(STORE_RETRY)
        await site.store.quiet()
        assert len(site.store.failing_writes) == 0
        site.clock.advance(STORE_RETRY)
        await site.rested(started)

    assert {line["reason"] for line in log if line["log_level"] == "warning"} == {error.message}


async def test_a_lock_held_by_another_process_only_delays(site: Site, elsewhere: Database) -> None:
    await site.load(PURE)
    (started,) = await site.started(due_at=site.clock.time() + POLL / 4)
    loop, has_lock, release = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def hold(_: Tx) -> None:
        loop.call_soon_threadsafe(has_lock.set)
        release.wait(WITHIN)

    async with site.working():
        await site.store.quiet()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(elsewhere.write, hold)
            await has_lock.wait()
            site.clock.advance(POLL / 4)
            await site.store.quiet()  # the real store has said that it is busy
            assert site.claims == []
            release.set()
        site.clock.advance(STORE_RETRY)
        await site.rested(started)


@pytest.mark.parametrize(
    "error", [StoreBusyError("locked"), StoreFullError("no space left")], ids=["busy", "full"]
)
async def test_a_renewal_that_failed_is_made_up_for_by_the_next(
    site: Site, error: StackdError
) -> None:
    await site.load(CALLING)
    gate = anyio.Event()
    site.world.http.script.append(gated(gate))
    async with site.working():
        (started,) = await site.started()
        await site.world.http.arrived(1)
        await site.store.quiet()
        site.store.failing_writes.append(error)
        for _ in range(2):
            site.clock.advance(RENEW)
            await site.store.quiet()
        assert (await site.job(started))["leased_until"] == site.clock.time() + LEASE
        gate.set()


# -- leases and rescue


async def test_jobs_of_dead_processes_are_taken_back_at_the_start(site: Site) -> None:
    await site.load(PURE)
    (started,) = await site.started()
    await site.world.claim("gone")  # no process table knows this owner: it is dead

    async with site.working():
        await site.rested(started)

    assert sum(isinstance(event, JobRescued) for event in site.world.seen) == 1
    assert site.rests[started] == "completed"


async def test_jobs_of_processes_that_die_later_are_taken_back_with_a_renewal(site: Site) -> None:
    await site.load(PURE)
    async with site.working():
        await site.store.quiet()
        await site.store.write(verbs.pause)
        (started,) = await site.started()
        await site.store.quiet()
        await site.store.write(
            lambda tx: tx.execute("UPDATE jobs SET state = 'running', owner = 'gone'")
        )
        await site.store.write(verbs.resume)
        site.clock.advance(RENEW)
        await site.rested(started)


async def test_leases_are_renewed_in_every_interval(site: Site) -> None:
    await site.load(CALLING)
    gate = anyio.Event()
    site.world.http.script.append(gated(gate))
    async with site.working():
        (started,) = await site.started()
        await site.world.http.arrived(1)
        await site.store.quiet()
        for _ in range(10):
            site.clock.advance(RENEW)
            await site.store.quiet()
            assert (await site.job(started))["leased_until"] == site.clock.time() + LEASE
        gate.set()
        await site.rested(started)

    assert len(site.claims) == 1


async def test_a_worker_started_again_in_the_same_process_goes_on_with_what_the_first_held(
    site: Site,
) -> None:
    await site.load(CALLING)
    site.world.http.script.extend([gated(anyio.Event()), ok(b"1")])
    started = await site.started()

    async def crash() -> None:
        async with site.working():
            await site.world.http.arrived(1)
            await site.store.quiet()
            site.store.failing_reads.append(StoreError("the file cannot be read"))
            site.clock.advance(POLL)
            await anyio.sleep_forever()

    with pytest.raises(BaseExceptionGroup):
        await crash()
    async with site.working():
        await site.rested(*started)

    assert site.rests == {started[0]: "completed"}


# -- cancel


@pytest.mark.parametrize("event", [TimerFired, CallEnded, NodeResumed])
async def test_what_ends_a_wait_here_wakes_the_run_at_once(
    site: Site, event: Callable[..., Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[int] = []
    monkeypatch.setattr(site.world.runtime, "wake", woken.append)
    async with site.working():
        site.world.store.events.emit(event("e", 7, "a"))

        assert woken == [7]


async def test_a_cancel_asked_for_here_ends_the_run_at_once(site: Site) -> None:
    await site.load(CALLING)
    site.world.http.script.append(gated(anyio.Event()))
    before = site.clock.time()
    async with site.working():
        (started,) = await site.started()
        await site.world.http.arrived(1)
        await site.world.cancel(started)
        await site.rested(started)

    assert site.rests[started] == "cancelled"
    assert site.clock.time() == before


async def test_a_cancel_asked_for_by_another_process_is_seen_within_the_poll(
    site: Site, elsewhere: Database
) -> None:
    await site.load(CALLING)
    site.world.http.script.append(gated(anyio.Event()))
    async with site.working():
        (started,) = await site.started()
        await site.world.http.arrived(1)
        await site.store.quiet()
        await elsewhere.write(lambda tx: executions.cancel(tx, started, now=site.clock.time()))
        await site.store.quiet()
        assert site.rests == {}

        site.clock.advance(POLL)
        await site.rested(started)

    assert site.rests[started] == "cancelled"
    assert (await site.world.row(started)).status is ExecutionStatus.CANCELLED
