"""How the daemon stands, as its service manager hears it; time is a fake, the socket a real one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskStatus
from support.manager import Manager, listening

from stackd.core.errors import StoreBusyError
from stackd.core.events import EventBus
from stackd.core.handover import handed_over
from stackd.supervisor.herald import (
    COUNT_EVERY,
    DRAIN_EVERY,
    EXTENSION,
    LOOK_AGAIN,
    READY_ANYWAY,
    Herald,
)
from stackd.supervisor.service import Spec
from stackd.supervisor.supervisor import Supervisor
from stackd.testing import FakeClock

TURNS = 50  # of the loop, more than anything here takes


class Slow:
    """A service that starts when it may, and crashes when it shall."""

    name = "slow"

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._drained = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        await self._stage.may_start.wait()
        task_status.started()
        self._stage.crash = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._crash)
            await self._drained.wait()
            tasks.cancel_scope.cancel()

    async def _crash(self) -> None:
        await self._stage.crash.wait()
        raise RuntimeError("boom")

    def drain(self) -> None:
        self._drained.set()


class Stage:
    """A supervisor of one service, and who reports of it to `manager`."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.may_start = anyio.Event()
        self.crash = anyio.Event()
        self.running = 0
        self.queued: int | Exception = 12
        self.may_beat = True
        self.passes = True
        self.clock = FakeClock(100.0)
        events = EventBus()
        self.supervisor = Supervisor(self.clock, events)
        self.supervisor.add(Spec("slow", lambda _: Slow(self)))
        told = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "20000000"}
        self.herald = Herald(
            handed_over(told),
            self.supervisor,
            events,
            clock=self.clock,
            queued=self._count,
            running=lambda: self.running,
            passes=self._look,
            may_beat=lambda: self.may_beat,
        )

    async def _look(self) -> bool:
        return self.passes

    async def _count(self) -> int:
        if isinstance(self.queued, Exception):
            raise self.queued
        return self.queued

    @asynccontextmanager
    async def playing(self) -> AsyncIterator[None]:
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.herald.run)
                tasks.start_soon(self.supervisor.run)
                await quiet()
                yield
                tasks.cancel_scope.cancel()

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await quiet()

    def status(self) -> str:
        return self.manager.told("STATUS")[-1]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    with listening(tmp_path / "notify") as manager:
        yield Stage(manager)


async def quiet() -> None:
    for _ in range(TURNS):
        await anyio.lowlevel.checkpoint()


async def test_ready_is_told_once_and_only_when_every_service_is(stage: Stage) -> None:
    async with stage.playing():
        assert stage.status() == "starting: slow starting; queue 12"
        assert stage.manager.told("READY") == []
        stage.may_start.set()
        await quiet()
        assert stage.status() == "ready: 1 service; queue 12"
        stage.crash.set()
        await quiet()
        assert stage.status() == "degraded: slow restarting: RuntimeError: boom; queue 12"
        await stage.pass_time(1.0)
        assert stage.status() == "ready: 1 service; queue 12"

    assert stage.manager.told("READY") == ["1"]


async def test_ready_is_told_only_once_every_check_has_passed(stage: Stage) -> None:
    stage.may_start.set()
    stage.passes = False
    async with stage.playing():
        await stage.pass_time(LOOK_AGAIN)
        assert stage.manager.told("READY") == []
        assert stage.status().startswith("starting: all services are ready")
        stage.passes = True
        await stage.pass_time(LOOK_AGAIN)
        assert stage.manager.told("READY") == ["1"]
        assert stage.status().startswith("ready: 1 service")


async def test_what_works_in_part_is_not_kept_from_starting_for_ever(stage: Stage) -> None:
    stage.may_start.set()
    stage.passes = False
    async with stage.playing():
        await stage.pass_time(READY_ANYWAY)
        assert stage.manager.told("READY") == ["1"]


async def test_the_queue_is_counted_again_and_again_and_told_when_it_has_changed(
    stage: Stage,
) -> None:
    stage.may_start.set()
    async with stage.playing():
        told = len(stage.manager.told("STATUS"))
        await stage.pass_time(COUNT_EVERY)
        assert len(stage.manager.told("STATUS")) == told
        stage.queued = 3
        await stage.pass_time(COUNT_EVERY)
        assert stage.status() == "ready: 1 service; queue 3"
        stage.queued = StoreBusyError("busy")
        await stage.pass_time(COUNT_EVERY)
        assert stage.status() == "ready: 1 service"


async def test_it_beats_four_times_in_the_interval_while_it_may(stage: Stage) -> None:
    async with stage.playing():
        assert stage.manager.told("WATCHDOG") == ["1"]
        for _ in range(4):
            await stage.pass_time(5.0)
        assert stage.manager.told("WATCHDOG") == ["1"] * 5
        stage.may_beat = False
        await stage.pass_time(5.0)
        assert stage.manager.told("WATCHDOG") == ["1"] * 5
        stage.may_beat = True
        await stage.pass_time(5.0)
        assert stage.manager.told("WATCHDOG") == ["1"] * 6


async def test_a_drain_is_told_and_more_time_asked_for_until_its_deadline(stage: Stage) -> None:
    stage.may_start.set()
    async with stage.playing():
        stage.running = 3
        stage.herald.drain(within=2.5)
        await quiet()
        assert stage.status() == "draining: 3 running"
        stage.running = 1
        for _ in range(5):
            await stage.pass_time(DRAIN_EVERY)

    assert stage.manager.told("STOPPING") == ["1"]
    assert stage.status() == "draining: 1 running"
    assert stage.manager.told("EXTEND_TIMEOUT_USEC") == [f"{EXTENSION * 1e6:.0f}"] * 3


async def test_the_manager_hears_of_a_reload_that_it_began_and_that_it_is_over(
    stage: Stage,
) -> None:
    stage.may_start.set()
    async with stage.playing():
        with contextlib.suppress(RuntimeError), stage.herald.reloading():
            stage.herald.remark = "the last reload was refused"
            raise RuntimeError

        *_, began, ended = stage.manager.hear()
    assert began == {"RELOADING": "1", "MONOTONIC_USEC": "100000000", "STATUS": "reloading"}
    words = "ready: 1 service; queue 12; the last reload was refused"
    assert ended == {"READY": "1", "STATUS": words}


@pytest.mark.parametrize("phase", ["starting", "draining"])
async def test_a_reload_is_not_told_before_it_is_ready_or_once_it_drains(
    stage: Stage, phase: str
) -> None:
    if phase == "draining":
        stage.may_start.set()
    async with stage.playing():
        if phase == "draining":
            stage.herald.drain(within=5.0)
        ready = stage.manager.told("READY")
        with stage.herald.reloading():
            pass

        assert stage.manager.told("RELOADING") == []
        assert stage.manager.told("READY") == ready
