"""What each check of readiness finds, on a real store and a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest
from support.runs import World
from support.watched import WatchedClock

from stackd.core.events import EventBus
from stackd.core.process import current_process
from stackd.queue import processes, verbs
from stackd.queue.processes import Resolved
from stackd.runtime import canary
from stackd.runtime.workflow_runtime import claim
from stackd.store.database import Database
from stackd.supervisor.lag import LoopLag
from stackd.supervisor.supervisor import Supervisor
from stackd.web.checks import JUMP, JUMP_TOLD, REPLACED_AFTER, TIMER_LATE, WORK_FRESH, Checks
from stackd.web.readiness import PERIOD, Readiness, Status
from stackd.workflows.reconciliation import Reconciliation

PASS, WARN, FAIL = Status.PASS, Status.WARN, Status.FAIL
SLOTS = 2
THIS_PROCESS = current_process()
DELAY = """
id: slow
nodes: [{id: start, type: trigger.time.manual}, {id: a, type: action.time.delay, params: {delaySeconds: 60}}]
edges: [{from: start, to: a}]
"""


class Restarts(Supervisor):
    """Notes which restarts are asked for."""

    def __init__(self, clock: WatchedClock) -> None:
        super().__init__(clock, EventBus())
        self.asked: list[str] = []

    def restart(self, name: str, reason: str) -> None:
        self.asked.append(f"{name} {reason}")


class Site:
    def __init__(self, database: Database) -> None:
        self.world = World(database)
        self.clock = self.world.clock = WatchedClock()
        self.store = database
        self.supervisor = Restarts(self.clock)
        self.readiness = Readiness(self.clock)
        self.reconciliation = Reconciliation(database, self.clock)
        checks = Checks(
            store=database,
            supervisor=self.supervisor,
            clock=self.clock,
            events=database.events,
            identity=THIS_PROCESS,
            lag=LoopLag(self.clock),
            state_dir=database.path.parent,
            reconciliation=self.reconciliation,
            slots=SLOTS,
        )
        checks.into(self.readiness, services=("worker", "scheduler", "timers", "api"))

    async def register(self, *, works: bool) -> None:
        identity, now = THIS_PROCESS, self.clock.time()
        found = Resolved("s", "s", "d", "d", 60.0)
        await self.store.write(
            lambda tx: processes.register(
                tx, identity, role="api", now=now, resolved=replace(found, works=works)
            )
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.readiness.run)
                await anyio.wait_all_tasks_blocked()
                yield
                tasks.cancel_scope.cancel()

    async def told(self, name: str, *, step: float = 0.02) -> tuple[Status, str | None]:
        """What is told once time has passed for two looks, in which a canary may wait.

        `step`: seconds that pass for each moment of real time, in which a worker may take the canary.
        """
        result: list[tuple[Status, str | None]] = []

        async def ask() -> None:
            one = (await self.readiness.told())[name]
            result.append((one.status, one.reason))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            while not result:
                await anyio.sleep(0.005)
                self.clock.advance(step)
        return result[0]

    async def looked(self, name: str, seconds: float) -> tuple[Status, str | None]:
        """What is told after `seconds` in which it looked all the time, and nobody took a canary."""
        step = 0.2
        found = await self.told(name, step=step)
        for _ in range(round(seconds / PERIOD)):
            self.clock.advance(PERIOD)
            await anyio.wait_all_tasks_blocked()
            while self.readiness.is_looking:
                await anyio.sleep(0.005)
                self.clock.advance(step)
            found = await self.told(name, step=step)
        return found

    async def take(self, limit: int) -> list[Any]:
        now = self.clock.time()
        return await self.store.write(
            lambda tx: claim(tx, owner="me", limit=limit, lease=60.0, now=now)
        )


@pytest.fixture
async def site(database: Database) -> Site:
    return Site(database)


async def test_work_is_done_if_a_worker_takes_the_canary(site):
    await site.register(works=True)
    async with site.running(), anyio.create_task_group() as tasks:

        async def work() -> None:
            while True:
                for one in await site.take(1):
                    await site.world.runtime.execute(one)
                await anyio.sleep(0.005)

        tasks.start_soon(work)
        assert await site.told("queue.work") == (PASS, None)
        tasks.cancel_scope.cancel()


async def test_where_no_process_runs_a_worker_nothing_may_wait(site):
    nobody = "no process runs a worker"
    async with site.running():
        assert await site.told("queue.work") == (WARN, nobody)
        await site.register(works=False)
        assert await site.looked("queue.work", 20.0) == (WARN, nobody)
        await site.world.start(await site.world.load(DELAY))
        assert await site.looked("queue.work", 20.0) == (FAIL, nobody)


async def test_a_paused_queue_is_a_warning_and_what_waited_in_it_is_counted_from_its_end(site):
    await site.register(works=True)
    await site.store.write(lambda tx: canary.send(tx, now=site.clock.time()))
    await site.store.write(verbs.pause)
    async with site.running():
        assert await site.looked("queue.work", 60.0) == (WARN, "the queue is paused")
        await site.store.write(verbs.resume)
        status, reason = await site.told("queue.work")
        assert status is WARN
        assert "the queue is paused" in str(reason) or "waits for" in str(reason)


async def test_a_worker_whose_places_are_all_taken_is_no_failure(site):
    await site.register(works=True)
    workflow = await site.world.load(DELAY)
    for _ in range(SLOTS):
        await site.world.start(workflow)
    await site.take(SLOTS)
    async with site.running():
        assert await site.looked("queue.work", 90.0) == (WARN, "all 2 places are taken")
    assert site.supervisor.asked == []


async def test_a_worker_that_takes_nothing_is_a_failure_and_gives_way_to_another(site):
    await site.register(works=True)
    async with site.running():
        status, reason = await site.looked("queue.work", WORK_FRESH + 2 * PERIOD)
        assert status is FAIL
        assert str(reason).startswith("no worker has taken a job for ")
        assert site.supervisor.asked == []
        await site.looked("queue.work", REPLACED_AFTER - WORK_FRESH)
    (asked,) = site.supervisor.asked
    assert asked.startswith("worker has taken no job for ")


async def test_a_canary_that_another_process_left_is_not_held_against_this_one(site):
    await site.register(works=True)
    await site.store.write(lambda tx: canary.send(tx, now=site.clock.time() - 10_000))
    async with site.running():
        status, reason = await site.told("queue.work")
    assert (status, reason) == (WARN, "a job waits for 1 s")


async def test_a_timer_that_nobody_fires_is_a_failure(site):
    await site.world.run(DELAY)
    async with site.running():
        assert await site.told("timers") == (PASS, None)
        site.clock.advance(60 + TIMER_LATE + 1)
        status, reason = await site.looked("timers", 2 * PERIOD)
    assert status is FAIL
    assert str(reason).startswith("a timer is due for ")


async def test_a_clock_that_jumped_is_told_for_a_while(site, monkeypatch):
    async with site.running():
        assert await site.told("clock") == (PASS, None)
        real = site.clock.time
        monkeypatch.setattr(site.clock, "time", lambda: real() - 2 * JUMP)
        status, reason = await site.told("clock")
        assert (status, reason) == (WARN, "the clock moved by -10 s")
        site.clock.advance(JUMP_TOLD + 1)
        assert await site.told("clock") == (PASS, None)


async def test_a_store_that_was_not_looked_through_is_not_ready(site):
    async with site.running():
        assert (await site.told("queue.consistency"))[0] is FAIL
        await site.reconciliation.round()
        assert await site.told("queue.consistency") == (PASS, None)


async def test_who_drains_is_not_ready_at_once(site):
    async with site.running():
        assert await site.told("goes_on") == (PASS, None)
        site.supervisor.drain()
        assert await site.told("goes_on") == (FAIL, "it was asked to stop")
