"""What the supervisor does with services that come up, crash, end by themselves, drain, or do not."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus
from structlog.testing import capture_logs
from support.watched import WatchedClock

from stackd.core.backoff import backoff
from stackd.core.errors import StackdError, StoreFailedError
from stackd.core.events import Event, EventBus
from stackd.supervisor.service import Pulse, Spec
from stackd.supervisor.supervisor import (
    GONE_WITHIN,
    LOOK_EVERY,
    MAX_RESTARTS,
    MAX_RESTARTS_OF_ALL,
    MOVES_KEPT,
    RESTART_BASE,
    RESTART_CAP,
    RESTART_WINDOW,
    STEADY_AFTER,
    TRY_AGAIN_AFTER,
    WINDOW_OF_ALL,
    ServiceMoved,
    ServiceState,
    Supervisor,
)

STARTING, READY, RESTARTING = ServiceState.STARTING, ServiceState.READY, ServiceState.RESTARTING
FAILED, DRAINING, STOPPED = ServiceState.FAILED, ServiceState.DRAINING, ServiceState.STOPPED
DEGRADED, STUCK = ServiceState.DEGRADED, ServiceState.STUCK
SEED = 7
TURNS = 50  # of the event loop; the longest chain of wake-ups here takes about ten
BOOM = "RuntimeError: boom"


class Puppet:
    """A service that does what the test says."""

    def __init__(self, stage: Stage, name: str, pulse: Pulse) -> None:
        self.name = name
        self.pulse = pulse
        self._stage = stage
        self._ended = anyio.Event()
        self._error: BaseException | None = None

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        stage = self._stage
        stage.diary.append(f"{self.name} runs")
        try:
            if stage.refusals[self.name]:
                raise stage.refusals[self.name].pop(0)
            if self.name in stage.slow_starts:
                await stage.slow_starts[self.name].wait()
            task_status.started()
            await self._ended.wait()
            if self._error is not None:
                raise self._error
            stage.diary.append(f"{self.name} ends")
        except anyio.get_cancelled_exc_class():
            stage.diary.append(f"{self.name} is cancelled")
            raise

    def drain(self) -> None:
        self._stage.diary.append(f"{self.name} drains")
        if self.name not in self._stage.deaf:
            self.end()

    def end(self) -> None:
        self._ended.set()

    def crash(self, error: BaseException | None = None) -> None:
        self._error = error or RuntimeError("boom")
        self._ended.set()


class Stage:
    """A supervisor over puppets, on time the test moves."""

    def __init__(self, *names: str, escalate: Callable[[str], None] = lambda _: None) -> None:
        random.seed(SEED)  # the supervisor's jitter
        self._rolls = random.Random(SEED)
        self.clock = WatchedClock(0.0)  # small numbers: their differences are exact
        self.events = EventBus()
        self.supervisor = Supervisor(self.clock, self.events, escalate=escalate)
        self.built: dict[str, list[Puppet]] = defaultdict(list)
        self.refusals: dict[str, list[Exception]] = defaultdict(list)  # before it has started
        self.unbuildable: dict[str, list[Exception]] = defaultdict(list)
        self.slow_starts: dict[str, anyio.Event] = {}
        self.deaf: set[str] = set()  # who does not heed drain
        self.diary: list[str] = []
        self.moves: list[tuple[str, str, str | None]] = []
        self.has_ended = False
        self.events.subscribe(self._hear)
        for name in names:
            self.add(name)

    def add(self, name: str, **how: Any) -> None:
        self.supervisor.add(Spec(name, lambda pulse: self._build(name, pulse), **how))

    @property
    def waits(self) -> list[float]:
        """How long each wait for another life was asked to be."""
        return [seconds for seconds in self.clock.asked if seconds != LOOK_EVERY]

    def states(self) -> dict[str, tuple[ServiceState, str | None]]:
        return {one.name: (one.state, one.reason) for one in self.supervisor.reports()}

    def _build(self, name: str, pulse: Pulse) -> Puppet:
        if self.unbuildable[name]:
            raise self.unbuildable[name].pop(0)
        return self.note(Puppet(self, name, pulse))

    def note(self, puppet: Puppet) -> Puppet:
        self.built[puppet.name].append(puppet)
        return puppet

    def _hear(self, event: Event) -> None:
        assert isinstance(event, ServiceMoved)
        self.moves.append((event.service, event.state, event.reason))

    def now(self, name: str) -> Puppet:
        return self.built[name][-1]

    def expected_wait(self, attempt: int) -> float:
        return backoff(attempt, base=RESTART_BASE, cap=RESTART_CAP, roll=self._rolls.random())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The supervisor runs beside the block; what still runs at its end is stopped."""

        async def run() -> None:
            await self.supervisor.run()
            self.has_ended = True

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await quiet()
                yield
                await quiet()
                if not self.has_ended:
                    self.supervisor.stop()

    async def crash(self, name: str, error: Exception | None = None) -> None:
        self.now(name).crash(error)
        await quiet()

    async def pass_backoff(self) -> None:
        await self.jump(self.waits[-1])

    async def pass_time(self, seconds: float) -> None:
        """Second by second, as the supervisor looks."""
        while seconds > 0:
            await self.jump(min(seconds, LOOK_EVERY))
            seconds -= LOOK_EVERY

    async def jump(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await quiet()


@pytest.fixture(autouse=True)
def log() -> Iterator[list[dict[str, object]]]:
    with capture_logs() as lines:
        yield lines  # type: ignore[misc]


async def quiet() -> None:
    """Let every task go as far as it can: no thread works here and time stands still, so turns are all it takes.

    anyio's `wait_all_tasks_blocked` may return between a task's end and its group's noticing.
    """
    for _ in range(TURNS):
        await anyio.lowlevel.checkpoint()


# -- starting


async def test_services_start_in_order_each_after_the_one_before_is_ready() -> None:
    stage = Stage("a", "b", "c")
    stage.slow_starts["b"] = anyio.Event()

    async with stage.running():
        assert stage.diary == ["a runs", "b runs"]
        assert stage.states() == {
            "a": (READY, None), "b": (STARTING, None), "c": (STARTING, None),
        }  # fmt: skip
        assert not stage.supervisor.is_ready

        stage.slow_starts["b"].set()
        await quiet()
        assert stage.diary == ["a runs", "b runs", "c runs"]
        assert stage.supervisor.is_ready


async def test_ready_is_told_once_started_and_not_before() -> None:
    stage = Stage("a")
    stage.slow_starts["a"] = anyio.Event()

    async with stage.running():
        assert stage.moves == []
        stage.slow_starts["a"].set()
        await quiet()
        assert stage.moves == [("a", "ready", None)]


async def test_it_has_started_once_all_were_ready_and_stays_so_whatever_comes() -> None:
    stage = Stage("a", "b")
    gate = stage.slow_starts["b"] = anyio.Event()

    async with stage.running():
        assert not stage.supervisor.has_started
        gate.set()
        await quiet()
        assert stage.supervisor.has_started
        stage.now("a").crash()
        await quiet()
        assert not stage.supervisor.is_ready
        assert stage.supervisor.has_started
        stage.supervisor.drain()

    assert stage.supervisor.has_started


async def test_a_supervisor_of_nothing_ends_at_once() -> None:
    stage = Stage()

    async with stage.running():
        assert stage.has_ended
        assert stage.supervisor.failure is None


@pytest.mark.parametrize("how", ["refusals", "unbuildable"])
async def test_a_service_that_crashes_while_it_starts_is_tried_again_and_the_next_waits(
    how: str,
) -> None:
    stage = Stage("a", "b")
    getattr(stage, how)["a"] = [RuntimeError("boom"), StackdError("port 5000 is taken")]

    async with stage.running():
        assert stage.states()["a"] == (RESTARTING, BOOM)
        await stage.pass_backoff()
        assert stage.states()["a"] == (RESTARTING, "port 5000 is taken")
        assert stage.built["b"] == []
        await stage.pass_backoff()
        assert stage.supervisor.is_ready

    assert stage.waits == [stage.expected_wait(1), stage.expected_wait(2)]


async def test_a_service_that_never_starts_ends_the_run_and_the_next_is_never_built() -> None:
    stage = Stage("a", "b")
    stage.refusals["a"] = [RuntimeError("boom")] * (MAX_RESTARTS + 1)

    async with stage.running():
        for _ in range(MAX_RESTARTS):
            assert not stage.supervisor.has_given_up.is_set()
            await stage.pass_backoff()
        assert stage.supervisor.has_given_up.is_set()
        stage.supervisor.drain()
        await quiet()
        assert stage.has_ended

    assert stage.supervisor.failure is not None
    assert stage.built["b"] == []


async def test_a_service_that_returns_without_having_started_is_tried_again() -> None:
    class Hasty(Puppet):
        async def run(self, *, task_status: TaskStatus[None]) -> None:
            pass

    stage = Stage()
    stage.supervisor.add(Spec("a", lambda pulse: Hasty(stage, "a", pulse)))

    async with stage.running():
        state, reason = stage.states()["a"]
        assert state is RESTARTING
        assert reason is not None
        assert "started" in reason


# -- restarting


async def test_a_crashed_service_is_restarted_after_waits_that_double() -> None:
    stage = Stage("a", "b")

    async with stage.running():
        for number in range(1, MAX_RESTARTS + 1):
            first = stage.now("a")
            await stage.crash("a")
            assert stage.states()["a"] == (RESTARTING, BOOM)
            assert not stage.supervisor.is_ready
            assert stage.now("a") is first  # not before the wait is over
            await stage.pass_backoff()
            assert stage.now("a") is not first
            assert stage.states()["a"] == (READY, None)
            assert len(stage.waits) == number

    assert stage.waits == [stage.expected_wait(n) for n in range(1, MAX_RESTARTS + 1)]
    assert len(stage.built["b"]) == 1  # the others never noticed


async def test_the_wait_is_not_over_a_moment_too_soon() -> None:
    stage = Stage("a")

    async with stage.running():
        await stage.crash("a")
        stage.clock.advance(stage.waits[-1] * 0.999)
        await quiet()
        assert len(stage.built["a"]) == 1


async def test_a_service_that_ends_by_itself_is_restarted() -> None:
    stage = Stage("a")

    async with stage.running():
        stage.now("a").end()
        await quiet()
        assert stage.states()["a"] == (RESTARTING, "ended by itself")
        await stage.pass_backoff()
        assert stage.supervisor.is_ready


async def test_every_move_is_one_event() -> None:
    stage = Stage("a")

    async with stage.running():
        await stage.crash("a", StackdError("the disk is slow"))
        await stage.pass_backoff()
        stage.supervisor.drain()

    assert stage.moves == [
        ("a", "ready", None),
        ("a", "restarting", "the disk is slow"),
        ("a", "starting", None),
        ("a", "ready", None),
        ("a", "draining", None),
        ("a", "stopped", None),
    ]


async def test_the_first_wait_after_steady_running_is_the_shortest() -> None:
    stage = Stage("a")

    async with stage.running():
        for _ in range(3):
            await stage.crash("a")
            await stage.pass_backoff()
        stage.clock.advance(STEADY_AFTER)
        await stage.crash("a")

    assert stage.waits == [stage.expected_wait(n) for n in (1, 2, 3, 1)]


async def test_running_not_quite_steadily_does_not_reset_the_waits() -> None:
    stage = Stage("a")

    async with stage.running():
        await stage.crash("a")
        await stage.pass_backoff()
        stage.clock.advance(STEADY_AFTER - 1)
        await stage.crash("a")

    assert stage.waits == [stage.expected_wait(n) for n in (1, 2)]


async def test_waits_double_anew_from_the_shortest_after_steady_running() -> None:
    stage = Stage("a")

    async with stage.running():
        await stage.crash("a")
        await stage.pass_backoff()
        await stage.crash("a")
        await stage.pass_backoff()
        stage.clock.advance(STEADY_AFTER)
        for _ in range(2):
            await stage.crash("a")
            await stage.pass_backoff()

    assert stage.waits == [stage.expected_wait(n) for n in (1, 2, 1, 2)]


# -- giving up


async def test_gives_up_on_a_service_that_crashes_too_often() -> None:
    stage = Stage("a", "b")

    async with stage.running():
        for _ in range(MAX_RESTARTS):
            await stage.crash("a")
            await stage.pass_backoff()
        assert stage.supervisor.failure is None
        await stage.crash("a")
        assert stage.supervisor.has_given_up.is_set()
        assert not stage.has_ended  # what the others have in hand may be finished first
        stage.supervisor.drain()
        await quiet()
        assert stage.has_ended

    failure = stage.supervisor.failure
    assert failure is not None
    assert failure.code == "service.failed"
    assert failure.message == f"service a keeps failing: {BOOM}"
    assert ("a", "failed", BOOM) in stage.moves
    assert len(stage.built["a"]) == MAX_RESTARTS + 1
    assert stage.diary[-1] == "b ends"


async def test_a_service_it_gave_up_on_stays_failed_with_its_reason() -> None:
    stage = Stage("a")
    stage.refusals["a"] = [RuntimeError("boom")] * (MAX_RESTARTS + 1)

    async with stage.running():
        for _ in range(MAX_RESTARTS):
            await stage.pass_backoff()

    assert stage.states()["a"] == (FAILED, BOOM)


async def test_crashes_that_lie_apart_are_restarted_for_ever() -> None:
    stage = Stage("a")

    async with stage.running():
        for _ in range(4 * MAX_RESTARTS):
            stage.clock.advance(RESTART_WINDOW / MAX_RESTARTS)
            await stage.crash("a")
            await stage.pass_backoff()
        assert stage.supervisor.is_ready


async def test_crashes_are_counted_for_each_service_alone() -> None:
    stage = Stage("a", "b")

    async with stage.running():
        for _ in range(MAX_RESTARTS):
            await stage.crash("a")
            await stage.crash("b")
            stage.clock.advance(RESTART_CAP)
            await quiet()
        assert stage.supervisor.is_ready


async def test_a_failed_store_is_given_up_at_once() -> None:
    stage = Stage("a", "b")
    error = StoreFailedError("input/output error")

    async with stage.running():
        await stage.crash("a", error)
        assert stage.has_ended

    assert stage.supervisor.failure is error
    assert stage.waits == []
    assert stage.diary[-1] == "b is cancelled"


async def test_the_first_reason_to_give_up_is_kept() -> None:
    stage = Stage("a")
    first = StackdError("first")

    async with stage.running():
        stage.supervisor.give_up(first)
        stage.supervisor.give_up(StackdError("second"))

    assert stage.supervisor.failure is first


# -- draining


async def test_drain_tells_every_service_in_order_and_the_run_ends_when_they_have() -> None:
    stage = Stage("a", "b", "c")
    stage.deaf = {"b"}

    async with stage.running():
        stage.diary.clear()
        stage.supervisor.drain()
        assert stage.diary == ["a drains", "b drains", "c drains"]
        await quiet()
        assert stage.states() == {
            "a": (STOPPED, None), "b": (DRAINING, None), "c": (STOPPED, None),
        }  # fmt: skip
        assert not stage.supervisor.is_ready
        assert not stage.has_ended

        stage.now("b").end()
        await quiet()
        assert stage.has_ended

    assert stage.supervisor.failure is None
    assert set(stage.states().values()) == {(STOPPED, None)}


async def test_drain_of_some_leaves_the_others_at_work() -> None:
    stage = Stage("worker", "api")

    async with stage.running():
        stage.supervisor.drain(["worker", "unknown"])
        await quiet()
        assert stage.states() == {"worker": (STOPPED, None), "api": (READY, None)}
        assert not stage.supervisor.is_ready  # no new work, please
        assert not stage.has_ended

        stage.supervisor.drain(["api"])
        await quiet()
        assert stage.has_ended


async def test_drain_twice_is_drain() -> None:
    stage = Stage("a")
    stage.deaf = {"a"}

    async with stage.running():
        stage.supervisor.drain()
        stage.supervisor.drain()
        stage.now("a").end()
        await quiet()
        stage.supervisor.drain()
        assert stage.has_ended

    assert [state for _, state, _ in stage.moves] == ["ready", "draining", "stopped"]


async def test_drain_before_the_run_builds_nothing() -> None:
    stage = Stage("a", "b")
    stage.supervisor.drain()

    async with stage.running():
        assert stage.has_ended

    assert stage.built == {}
    assert set(stage.states().values()) == {(STOPPED, None)}


async def test_drain_while_a_service_starts_lets_it_finish_and_starts_no_other() -> None:
    stage = Stage("a", "b")
    stage.slow_starts["a"] = anyio.Event()

    async with stage.running():
        stage.supervisor.drain()
        await quiet()
        assert not stage.has_ended
        stage.slow_starts["a"].set()
        await quiet()
        assert stage.has_ended

    assert stage.diary == ["a runs", "a drains", "a ends"]
    assert "ready" not in [state for _, state, _ in stage.moves]


@pytest.mark.parametrize("names", [None, ["a", "b"]], ids=["all", "named"])
async def test_drain_while_a_restart_waits_ends_at_once(names: list[str] | None) -> None:
    stage = Stage("a", "b")

    async with stage.running():
        await stage.crash("a")
        stage.supervisor.drain(names)
        await quiet()
        assert stage.states()["a"] == (STOPPED, None)
        assert stage.has_ended

    assert len(stage.built["a"]) == 1


async def test_a_service_whose_restart_waited_when_drain_came_is_not_built_again() -> None:
    stage = Stage("a")

    async with stage.running():
        await stage.crash("a")
        stage.supervisor.drain()
        stage.clock.advance(RESTART_CAP)
        await quiet()
        assert stage.has_ended

    assert len(stage.built["a"]) == 1


async def test_a_crash_while_draining_is_an_end() -> None:
    stage = Stage("a")
    stage.deaf = {"a"}

    async with stage.running():
        stage.supervisor.drain()
        await stage.crash("a")
        assert stage.has_ended

    assert stage.supervisor.failure is None
    assert stage.waits == []


async def test_ended_returns_once_that_service_has_stopped_for_good() -> None:
    stage = Stage("a", "b")
    stage.deaf = {"a"}
    heard: list[str] = []

    async def note(name: str) -> None:
        await stage.supervisor.ended(name)
        heard.append(name)

    async with stage.running(), anyio.create_task_group() as tasks:
        tasks.start_soon(note, "a")
        tasks.start_soon(note, "b")
        tasks.start_soon(note, "unknown")
        await quiet()
        assert heard == ["unknown"]
        await stage.crash("b")  # a restart is no end
        await stage.pass_backoff()
        assert heard == ["unknown"]

        stage.supervisor.drain()
        await quiet()
        assert heard == ["unknown", "b"]
        stage.now("a").end()
        await quiet()
        assert heard == ["unknown", "b", "a"]


# -- stopping


async def test_stop_cancels_what_does_not_heed_drain() -> None:
    stage = Stage("a", "b")
    stage.deaf = {"a", "b"}

    async with stage.running():
        stage.supervisor.drain()
        await quiet()
        assert not stage.has_ended
        stage.supervisor.stop()
        await quiet()
        assert stage.has_ended

    assert sorted(stage.diary[-2:]) == ["a is cancelled", "b is cancelled"]
    assert stage.supervisor.failure is None


async def test_stop_ends_a_restart_that_waits_and_a_start_that_hangs() -> None:
    stage = Stage("a", "b")
    stage.slow_starts["b"] = anyio.Event()

    async with stage.running():
        await stage.crash("a")
        stage.supervisor.stop()
        await quiet()
        assert stage.has_ended


async def test_stop_before_the_run_ends_it_at_once() -> None:
    stage = Stage("a")
    stage.supervisor.stop()

    async with stage.running():
        assert stage.has_ended


async def test_a_stopped_service_is_stopped_and_has_ended() -> None:
    stage = Stage("a")

    async with stage.running():
        stage.supervisor.stop()
        await quiet()
        assert stage.has_ended

    assert stage.states()["a"] == (STOPPED, None)
    with anyio.move_on_after(0.05) as waited:
        await stage.supervisor.ended("a")
    assert not waited.cancelled_caught


# -- signs of life


def silent(stage: Stage, **how: Any) -> Stage:
    """A service `a` that must give signs of life, beside `b`."""
    stage.add("a", soft=10.0, hard=30.0, **how)
    stage.add("b")
    return stage


async def test_who_is_silent_is_degraded_and_good_again_with_its_next_sign() -> None:
    stage = silent(Stage())

    async with stage.running():
        await stage.pass_time(9.0)
        assert stage.states()["a"] == (READY, None)
        await stage.pass_time(2.0)
        assert stage.states()["a"] == (DEGRADED, "no sign of life for 10 s")
        assert not stage.supervisor.is_ready
        stage.now("a").pulse.beat()
        await stage.pass_time(LOOK_EVERY)
        assert stage.states()["a"] == (READY, None)

    assert len(stage.built["a"]) == 1


async def test_who_hangs_is_restarted_alone() -> None:
    stage = silent(Stage())

    async with stage.running():
        await stage.pass_time(30.0)
        assert stage.states()["a"] == (RESTARTING, "gave no sign of life for 30 s")
        await stage.pass_backoff()
        assert stage.states() == {"a": (READY, None), "b": (READY, None)}

    assert "a is cancelled" in stage.diary
    assert (len(stage.built["a"]), len(stage.built["b"])) == (2, 1)


async def test_who_waits_for_something_says_so_at_once_and_is_not_restarted() -> None:
    stage = silent(Stage())

    async with stage.running():
        for _ in range(10):
            stage.now("a").pulse.waits("the store is locked")
            assert stage.states()["a"] == (DEGRADED, "the store is locked")
            await stage.pass_time(9.0)
        stage.now("a").pulse.beat()
        assert stage.states()["a"] == (READY, None)

    assert len(stage.built["a"]) == 1
    assert stage.supervisor.failure is None


async def test_one_that_gives_no_signs_is_not_asked_for_any() -> None:
    stage = Stage("a")

    async with stage.running():
        await stage.pass_time(120.0)
        assert stage.supervisor.is_ready


async def test_who_has_an_excuse_is_degraded_however_long_and_never_restarted() -> None:
    excuses = ["the store is slow"]
    stage = silent(Stage(), excuse=lambda: excuses[-1] if excuses else None)

    async with stage.running():
        await stage.pass_time(60.0)
        assert stage.states()["a"] == (DEGRADED, "the store is slow")
        excuses.clear()
        stage.now("a").pulse.beat()
        await stage.pass_time(LOOK_EVERY)
        assert stage.supervisor.is_ready

    assert len(stage.built["a"]) == 1


async def test_who_gives_signs_of_life_may_take_long_to_start() -> None:
    stage = Stage()
    stage.add("a", start_within=20.0)
    gate = stage.slow_starts["a"] = anyio.Event()

    async with stage.running():
        for _ in range(10):
            await stage.pass_time(10.0)
            stage.now("a").pulse.waits("the store is locked")
        assert stage.states()["a"] == (STARTING, None)
        gate.set()
        await quiet()
        assert stage.states()["a"] == (DEGRADED, "the store is locked")

    assert len(stage.built["a"]) == 1


async def test_time_in_which_the_process_did_not_run_is_held_against_nobody() -> None:
    stage = silent(Stage())

    async with stage.running():
        await stage.jump(3600.0)  # stopped, or the machine slept
        assert stage.supervisor.is_ready
        await stage.pass_time(7.0)
        assert stage.supervisor.is_ready
        await stage.pass_time(3.0)
        assert stage.states()["a"][0] is DEGRADED

    assert len(stage.built["a"]) == 1


async def test_what_does_not_start_in_time_is_tried_again() -> None:
    stage = Stage()
    stage.add("a", start_within=20.0)
    stage.slow_starts["a"] = anyio.Event()

    async with stage.running():
        await stage.pass_time(19.0)
        assert stage.states()["a"] == (STARTING, None)
        await stage.pass_time(1.0)
        assert stage.states()["a"] == (RESTARTING, "has not started within 20 s")
        stage.slow_starts["a"].set()
        await stage.pass_backoff()
        assert stage.supervisor.is_ready

    assert len(stage.built["a"]) == 2


# -- what does not end


class Deaf(Puppet):
    """Swallows every cancellation until it is let go."""

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        task_status.started()
        while not self._ended.is_set():
            try:
                await self._ended.wait()
            except anyio.get_cancelled_exc_class():
                if len(self._stage.diary) < 3:
                    self._stage.diary.append(f"{self.name} is deaf")


async def test_what_does_not_end_is_stuck_and_has_no_successor() -> None:
    escalated: list[str] = []
    stage = Stage(escalate=escalated.append)
    stage.supervisor.add(Spec("a", lambda p: stage.note(Deaf(stage, "a", p)), soft=10.0, hard=30.0))

    async with stage.running():
        await stage.pass_time(30.0)
        assert stage.states()["a"] == (RESTARTING, "gave no sign of life for 30 s")
        await stage.pass_time(GONE_WITHIN)
        assert stage.states()["a"] == (STUCK, "does not end: gave no sign of life for 30 s")
        assert escalated == ["a"]
        assert stage.supervisor.is_stuck
        assert stage.supervisor.has_given_up.is_set()
        await stage.pass_time(60.0)
        assert len(stage.built["a"]) == 1
        assert escalated == ["a"]
        stage.supervisor.drain()
        stage.now("a").end()
        await quiet()
        assert stage.has_ended

    failure = stage.supervisor.failure
    assert failure is not None
    assert failure.code == "service.stuck"


# -- what is cancelled inside


@pytest.mark.parametrize("with_error", [True, False])
async def test_a_cancellation_inside_a_service_is_its_own_matter(with_error: bool) -> None:
    stage = Stage("a", "b")
    inside: list[BaseException] = [asyncio.CancelledError()]
    if with_error:
        inside.append(RuntimeError("boom"))

    async with stage.running():
        stage.now("a").crash(BaseExceptionGroup("many", [BaseExceptionGroup("more", inside)]))
        await quiet()
        assert stage.states()["a"] == (RESTARTING, BOOM if with_error else "ended by itself")
        assert stage.states()["b"] == (READY, None)
        await stage.pass_backoff()
        assert stage.supervisor.is_ready

    assert len(stage.built["b"]) == 1


@pytest.mark.parametrize("has_started", [True, False])
async def test_a_service_that_cancels_itself_is_restarted_alone(has_started: bool) -> None:
    stage = Stage("b", "a")
    if not has_started:
        stage.refusals["a"] = [asyncio.CancelledError()]  # type: ignore[list-item]

    async with stage.running():
        if has_started:
            stage.now("a").crash(asyncio.CancelledError())
            await quiet()
        assert stage.states() == {"b": (READY, None), "a": (RESTARTING, "ended by itself")}
        await stage.pass_backoff()
        assert stage.supervisor.is_ready

    assert (len(stage.built["a"]), len(stage.built["b"])) == (2, 1)


async def test_a_service_that_cannot_drain_keeps_no_other_from_it() -> None:
    class Stubborn(Puppet):
        def drain(self) -> None:
            self.end()
            raise RuntimeError("boom")

    stage = Stage()
    stage.supervisor.add(Spec("a", lambda pulse: Stubborn(stage, "a", pulse)))
    stage.add("b")

    async with stage.running():
        stage.supervisor.drain()
        await quiet()
        assert stage.has_ended


async def test_a_restart_that_is_asked_for_while_it_drains_cuts_nothing_off() -> None:
    stage = Stage("a")
    stage.deaf = {"a"}

    async with stage.running():
        stage.supervisor.drain()
        stage.supervisor.restart("a", "asked for")
        await quiet()
        assert "a is cancelled" not in stage.diary
        stage.now("a").end()
        await quiet()
        assert stage.has_ended


async def test_an_error_of_the_store_in_a_group_is_given_up_at_once() -> None:
    stage = Stage("a")
    error = StoreFailedError("input/output error")

    async with stage.running():
        await stage.crash("a", ExceptionGroup("many", [ValueError("x"), error]))
        assert stage.has_ended

    assert stage.supervisor.failure is error


# -- what needs another


async def test_those_who_need_a_service_end_before_it_begins_anew_the_last_first() -> None:
    stage = Stage("store")
    stage.add("worker", needs=("store",))
    stage.add("api", needs=("worker",))
    stage.add("beside")

    async with stage.running():
        stage.diary.clear()
        await stage.crash("store")
        assert stage.diary == ["api is cancelled", "worker is cancelled"]
        assert stage.states() == {
            "store": (RESTARTING, BOOM), "worker": (RESTARTING, "waits for store"),
            "api": (RESTARTING, "waits for worker"), "beside": (READY, None),
        }  # fmt: skip
        await stage.pass_backoff()
        assert stage.supervisor.is_ready
        assert stage.diary[2:] == ["store runs", "worker runs", "api runs"]

    assert [len(stage.built[name]) for name in ("store", "worker", "api", "beside")] == [2, 2, 2, 1]


async def test_one_that_waits_for_another_heeds_drain() -> None:
    stage = Stage("store")
    stage.add("worker", needs=("store",))

    async with stage.running():
        await stage.crash("store")
        stage.supervisor.drain()
        await quiet()
        assert stage.has_ended


async def test_a_need_that_starts_later_is_a_mistake() -> None:
    stage = Stage()

    with pytest.raises(ValueError, match="worker needs store"):
        stage.add("worker", needs=("store",))


# -- restarts that somebody asks for


async def test_a_restart_that_is_asked_for_is_no_crash_and_waits_for_nothing() -> None:
    stage = Stage("a", "b")

    async with stage.running():
        for _ in range(MAX_RESTARTS + 2):
            stage.supervisor.restart("a", "asked for")
            await quiet()
            assert stage.supervisor.is_ready

    assert stage.waits == []
    assert (len(stage.built["a"]), len(stage.built["b"])) == (MAX_RESTARTS + 3, 1)


async def test_a_restart_asked_for_while_one_waits_gives_one_copy() -> None:
    stage = Stage("a")

    async with stage.running():
        await stage.crash("a")
        stage.supervisor.restart("a", "asked for")
        await quiet()
        assert stage.supervisor.is_ready
        await stage.pass_time(RESTART_CAP)

    assert len(stage.built["a"]) == 2
    assert stage.diary.count("a runs") == 2


async def test_two_restarts_at_once_are_one() -> None:
    stage = Stage("a")

    async with stage.running():
        stage.supervisor.restart("a", "asked for")
        stage.supervisor.restart("a", "asked for again")
        await quiet()

    assert len(stage.built["a"]) == 2


# -- who may fail, and how much all may


async def test_one_that_is_not_essential_is_tried_again_now_and_then_for_ever() -> None:
    stage = Stage("b")
    stage.add("rotation", essential=False)
    stage.refusals["rotation"] = [RuntimeError("boom")] * 10_000

    async with stage.running():
        for _ in range(MAX_RESTARTS):
            await stage.pass_backoff()
        for tries in range(1, 20):
            assert stage.states()["rotation"] == (FAILED, BOOM)
            assert stage.supervisor.is_ready
            assert stage.waits[-1] == TRY_AGAIN_AFTER
            assert stage.supervisor.reports()[1].restarts == MAX_RESTARTS + tries - 1
            await stage.pass_backoff()
        stage.refusals["rotation"].clear()
        await stage.pass_backoff()
        assert stage.states()["rotation"] == (READY, None)
        await stage.jump(STEADY_AFTER)
        await stage.crash("rotation")
        assert stage.states()["rotation"][0] is RESTARTING  # it had run steadily

    assert stage.supervisor.failure is None


async def test_gives_up_when_all_together_crash_too_often() -> None:
    names = [f"s{number}" for number in range(MAX_RESTARTS_OF_ALL + 1)]
    stage = Stage(*names)

    async with stage.running():
        for name in names[:-1]:
            await stage.crash(name)
        assert not stage.supervisor.has_given_up.is_set()
        await stage.crash(names[-1])
        assert stage.supervisor.has_given_up.is_set()
        stage.supervisor.drain()


async def test_crashes_of_all_that_lie_apart_are_no_reason_to_give_up() -> None:
    names = [f"s{number}" for number in range(MAX_RESTARTS_OF_ALL + 1)]
    stage = Stage(*names)

    async with stage.running():
        for name in names:
            await stage.crash(name)
            await stage.jump(WINDOW_OF_ALL / MAX_RESTARTS_OF_ALL)
        assert stage.supervisor.is_ready


# -- what is told


async def test_the_last_moves_of_each_service_are_kept() -> None:
    stage = Stage("a")

    async with stage.running():
        for _ in range(MOVES_KEPT):
            stage.supervisor.restart("a", "asked for")
            await stage.pass_time(1.0)

    (report,) = stage.supervisor.reports()
    assert len(report.moves) == MOVES_KEPT
    assert report.restarts == MOVES_KEPT
    assert report.moves[-1].state is STOPPED
    assert all(a.at <= b.at for a, b in pairwise(report.moves))
    assert all(a.state is b.was for a, b in pairwise(report.moves))
