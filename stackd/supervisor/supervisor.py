"""Starts services, restarts those that crash or hang, drains them all, and says how each is. Knows no job."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from random import random
from typing import NamedTuple

import anyio
import structlog

from stackd.core.backoff import backoff
from stackd.core.clock import Clock
from stackd.core.errors import StackdError, StoreFailedError, first_error
from stackd.core.events import Event, EventBus
from stackd.supervisor.service import Pulse, Service, Spec

RESTART_BASE = 0.5  # seconds
RESTART_CAP = 30.0  # seconds
STEADY_AFTER = 60.0  # seconds of good running after which the backoff starts anew
MAX_RESTARTS = 5  # of one service within the window; past it the daemon gives up (exit 75)
RESTART_WINDOW = 300.0  # seconds
MAX_RESTARTS_OF_ALL = 12  # within the window of all
WINDOW_OF_ALL = 600.0  # seconds
TRY_AGAIN_AFTER = 300.0  # seconds until one that is not essential, and failed, is tried again
LOOK_EVERY = 1.0  # seconds between looks for those that hang
LATE_LOOK = 1.0  # seconds a look may be late; beyond, nobody ran: the process was stopped, or its loop held up
GONE_WITHIN = 5.0  # seconds one that is stopped has to be gone; then it is stuck
MOVES_KEPT = 100  # of each service

ENDED = "ended by itself"

_log = structlog.get_logger(__name__)


class ServiceState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    RESTARTING = "restarting"
    FAILED = "failed"
    STUCK = "stuck"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ServiceMoved(Event):
    """A service changed its state, or the reason for it."""

    service: str
    was: str
    state: str
    reason: str | None


class Move(NamedTuple):
    """One change of state. `at`: epoch seconds."""

    at: float
    was: ServiceState
    state: ServiceState
    reason: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """How one service is.

    Attributes:
        since: when it came into its state, in epoch seconds.
        silent_for: seconds since its last sign of life; None: it gives none, or does not run.
        restarts: how often it was built again.
        moves: the last of its changes of state, the oldest first.
    """

    name: str
    state: ServiceState
    reason: str | None
    essential: bool
    since: float
    silent_for: float | None
    restarts: int
    moves: tuple[Move, ...]

    @property
    def is_good(self) -> bool:
        """Whether nothing is amiss that the daemon's work depends on."""
        return self.state is ServiceState.READY or (
            not self.essential and self.state in (ServiceState.FAILED, ServiceState.RESTARTING)
        )


@dataclass(slots=True, eq=False)
class _Entry:
    """One service over all its lives.

    Attributes:
        life: cancelled, it ends the life that is on; None between two.
        ended_for: why that was done.
        asked_at: when, by the monotonic clock.
        crashes: of the window: they decide to give up.
        streak: crashes since it last ran steadily: they decide the wait.
        has_failed: too often, and has not run steadily since: each further life is one try.
    """

    spec: Spec
    since: float
    state: ServiceState = ServiceState.STARTING
    reason: str | None = None
    current: Service | None = None
    pulse: Pulse | None = None
    life: anyio.CancelScope | None = None
    began_at: float = 0.0
    ended_for: str | None = None
    is_crash: bool = True
    asked_at: float = 0.0
    builds: int = 0
    crashes: deque[float] = field(default_factory=deque)
    streak: int = 0
    has_failed: bool = False
    has_been_ready: bool = False
    moves: deque[Move] = field(default_factory=lambda: deque(maxlen=MOVES_KEPT))
    ready: anyio.Event = field(default_factory=anyio.Event)
    over: anyio.Event = field(default_factory=anyio.Event)  # its life that was on
    hurry: anyio.Event = field(default_factory=anyio.Event)  # no more waiting before the next life
    drained: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)

    @property
    def name(self) -> str:
        return self.spec.name

    def begin_life(self, pulse: Pulse, now: float) -> None:
        self.pulse = pulse
        self.began_at = now
        self.ended_for, self.is_crash = None, True
        self.hurry, self.over = anyio.Event(), anyio.Event()
        self.builds += 1

    def end_life(self) -> None:
        self.lose_readiness()
        self.life = self.current = self.pulse = None
        self.over.set()

    def forgive(self, seconds: float) -> None:
        """Let a time in which it could not run count for nothing."""
        if self.state is ServiceState.STARTING:
            self.began_at += seconds
        self.asked_at += seconds
        if self.pulse is not None:
            self.pulse.at += seconds

    def lose_readiness(self) -> None:
        """It is not ready any more. Who waits for the event that is not set yet goes on waiting for it."""
        if self.ready.is_set():
            self.ready = anyio.Event()


class Supervisor:
    """Runs the services it was given, in order, until drained. A failed one is restarted with backoff.

    Args:
        escalate: called when a service is stuck: it does not heed cancellation, so that a second copy would do its
            work twice and `run` cannot end. The process must.
    """

    def __init__(
        self, clock: Clock, events: EventBus, *, escalate: Callable[[str], None] = lambda _: None
    ) -> None:
        self._clock = clock
        self._events = events
        self._escalate = escalate
        self._entries: dict[str, _Entry] = {}
        self._crashes: deque[float] = deque()  # of all, in the window of all
        self._draining = False
        self._scope = anyio.CancelScope()
        self.failure: StackdError | None = None
        self.has_given_up = anyio.Event()  # what can be drained shall be, then `stop`
        self.is_stopping = anyio.Event()  # all is cancelled; `run` ends, unless a service is stuck
        self.has_started = False  # every service was ready at one time; stays true
        self.looked_at = clock.monotonic()  # the last look for those that hang

    def add(self, spec: Spec) -> None:
        """Supervise what `spec` describes; services start in the order added.

        Raises:
            ValueError: it needs one that was not added before it.
        """
        if missing := [name for name in spec.needs if name not in self._entries]:
            raise ValueError(f"{spec.name} needs {missing[0]}, which starts later or never")
        self._entries[spec.name] = _Entry(spec, self._clock.time())

    def reports(self) -> list[Report]:
        """How each service is, in start order."""
        now = self._clock.monotonic()
        return [
            Report(
                entry.name,
                entry.state,
                entry.reason,
                entry.spec.essential,
                entry.since,
                None if entry.pulse is None or entry.spec.soft is None else now - entry.pulse.at,
                max(entry.builds - 1, 0),
                tuple(entry.moves),
            )
            for entry in self._entries.values()
        ]

    @property
    def is_draining(self) -> bool:
        return self._draining

    @property
    def is_ready(self) -> bool:
        return not self._draining and all(report.is_good for report in self.reports())

    @property
    def is_stuck(self) -> bool:
        return any(entry.state is ServiceState.STUCK for entry in self._entries.values())

    async def run(self) -> None:
        """Run until `drain` has let every service finish, or `stop` was called.

        Afterwards `failure` is None if the end was asked for.
        """
        with self._scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._look_forever)
                async with anyio.create_task_group() as keepers:
                    for entry in self._entries.values():
                        await keepers.start(self._keep, entry)
                tasks.cancel_scope.cancel()

    def drain(self, names: list[str] | None = None) -> None:
        """Tell services (all by default) to take no new work and finish."""
        self._draining = True
        for name in names if names is not None else list(self._entries):
            entry = self._entries.get(name)
            if entry is not None and entry.state is not ServiceState.STOPPED:
                if entry.state is not ServiceState.STUCK:  # which says more
                    self._move(entry, ServiceState.DRAINING)
                entry.drained.set()
                if entry.current is not None:
                    _drain(entry.name, entry.current)

    async def ended(self, name: str) -> None:
        """Return once the service has stopped for good."""
        if (entry := self._entries.get(name)) is not None:
            await entry.ended.wait()

    def restart(self, name: str, reason: str) -> None:
        """End the life of a service that is on and begin another; one that waits for its next begins it now."""
        entry = self._entries[name]
        if entry.life is None:
            entry.hurry.set()
        else:
            self._end_life(entry, reason, is_crash=False)

    def stop(self) -> None:
        """Cancel whatever still runs."""
        self._draining = True
        self.is_stopping.set()
        self._scope.cancel()

    def give_up(self, error: StackdError) -> None:
        """Stop everything because `error` leaves no way to go on."""
        self.failure = self.failure or error
        self.has_given_up.set()
        self.stop()

    def _give_up_gently(self, error: StackdError) -> None:
        """As `give_up`, but what the others have in hand may be finished first."""
        self.failure = self.failure or error
        self.has_given_up.set()

    # -- one service, life after life

    async def _keep(self, entry: _Entry, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        try:
            while not (entry.drained.is_set() or self._scope.cancel_called):
                await self._needs_are_ready(entry)
                if entry.drained.is_set():
                    break
                reason = await self._live(entry, task_status)
                if entry.drained.is_set() or self._scope.cancel_called:
                    break
                await self._stop_those_who_need(entry)
                await self._wait_for_next_life(entry, reason)
        finally:
            if entry.state not in (ServiceState.FAILED, ServiceState.STUCK):  # which say more
                self._move(entry, ServiceState.STOPPED)
            entry.ended.set()
        if not entry.has_been_ready:
            task_status.started()

    async def _needs_are_ready(self, entry: _Entry) -> None:
        """Return once all that it needs are ready, or it is drained."""
        for name in entry.spec.needs:
            needed = self._entries[name]
            while not (needed.ready.is_set() or entry.drained.is_set()):
                self._move(entry, ServiceState.RESTARTING, f"waits for {name}")
                async with anyio.create_task_group() as tasks:

                    async def until(event: anyio.Event, scope: anyio.CancelScope) -> None:
                        await event.wait()
                        scope.cancel()

                    tasks.start_soon(until, needed.ready, tasks.cancel_scope)
                    tasks.start_soon(until, entry.drained, tasks.cancel_scope)

    async def _live(self, entry: _Entry, task_status: anyio.abc.TaskStatus[None]) -> str:
        """One life of the service; why it ended."""
        self._move(entry, ServiceState.STARTING)
        pulse = Pulse(self._clock, told=lambda: self._heed(entry))
        entry.begin_life(pulse, self._clock.monotonic())
        reason = ENDED
        try:
            with anyio.CancelScope() as entry.life:
                async with anyio.create_task_group() as tasks:
                    entry.current = entry.spec.build(pulse)
                    await tasks.start(entry.current.run)
                    self._note_ready(entry, task_status)
        except Exception as error:  # noqa: BLE001  # a service meets its supervisor here
            reason = self._reason(entry, error)
        except anyio.get_cancelled_exc_class():
            if self._scope.cancel_called:
                raise
        except BaseExceptionGroup as group:
            # What is cancelled in a service is its own matter: only what this scope cancels may pass on.
            _, rest = group.split(anyio.get_cancelled_exc_class())
            if rest is not None and not isinstance(rest, Exception):
                raise
            reason = ENDED if rest is None else self._reason(entry, rest)
        finally:
            entry.end_life()
        return entry.ended_for or reason

    def _note_ready(self, entry: _Entry, task_status: anyio.abc.TaskStatus[None]) -> None:
        assert entry.pulse is not None  # noqa: S101  # it lives
        entry.pulse.at = self._clock.monotonic()
        entry.ready.set()
        if not entry.drained.is_set():
            self._heed(entry)
        if not entry.has_been_ready:
            entry.has_been_ready = True
            task_status.started()

    def _reason(self, entry: _Entry, error: Exception) -> str:
        """Why a life ended that `error` ended; one of the store's ends all."""
        first = first_error(error)
        failed = _within(error, StoreFailedError)
        if isinstance(failed, StackdError):
            self.give_up(failed)
        if isinstance(first, StackdError):  # foreseen: its words say more than a traceback
            _log.error("service failed", service=entry.name, reason=first.message, hint=first.hint)
            return first.message
        _log.error("service crashed", service=entry.name, exc_info=first)
        return f"{type(first).__name__}: {first}"

    async def _stop_those_who_need(self, entry: _Entry) -> None:
        """End the lives that depend on this one, the latest started first; they begin anew once it is ready."""
        fallen: list[_Entry] = []
        for other in self._entries.values():
            if any(name in (entry.name, *(e.name for e in fallen)) for name in other.spec.needs):
                other.lose_readiness()  # so that none of them takes another for ready
                fallen.append(other)
        for other in reversed(fallen):
            if other.life is not None:
                self._end_life(other, f"{entry.name} has ended", is_crash=False)
                await other.over.wait()

    async def _wait_for_next_life(self, entry: _Entry, reason: str) -> None:
        if not entry.is_crash:
            self._move(entry, ServiceState.RESTARTING, reason)
            return
        now = self._clock.monotonic()
        if now - entry.began_at >= STEADY_AFTER:
            entry.streak, entry.has_failed = 0, False
        entry.streak += 1
        if self._is_too_much(entry, now):
            self._move(entry, ServiceState.FAILED, reason)
            if entry.spec.essential:
                message = f"service {entry.name} keeps failing: {reason}"
                self._give_up_gently(StackdError(message, code="service.failed"))
                await entry.drained.wait()
            else:
                entry.has_failed = True
                await self._pause(entry, TRY_AGAIN_AFTER)
            return
        self._move(entry, ServiceState.RESTARTING, reason)
        wait = backoff(entry.streak, base=RESTART_BASE, cap=RESTART_CAP, roll=random())  # noqa: S311
        await self._pause(entry, wait)

    def _is_too_much(self, entry: _Entry, now: float) -> bool:
        """Whether this crash is one too many, of this service or of all that are essential."""
        too_many = _count(entry.crashes, now, RESTART_WINDOW) > MAX_RESTARTS or entry.has_failed
        if entry.spec.essential:
            too_many |= _count(self._crashes, now, WINDOW_OF_ALL) > MAX_RESTARTS_OF_ALL
        return too_many

    async def _pause(self, entry: _Entry, seconds: float) -> None:
        """Wait; less long if it is drained, or somebody asks for the next life."""
        async with anyio.create_task_group() as tasks:

            async def hurry() -> None:
                await entry.hurry.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(hurry)
            await self._clock.wait(entry.drained, seconds)
            tasks.cancel_scope.cancel()

    # -- those that hang

    async def _look_forever(self) -> None:
        self.looked_at = self._clock.monotonic()
        while True:
            await self._clock.sleep(LOOK_EVERY)
            now = self._clock.monotonic()
            held_up = max(now - self.looked_at - LOOK_EVERY - LATE_LOOK, 0.0)
            self.looked_at = now
            for entry in self._entries.values():
                if held_up:
                    entry.forgive(held_up)
                self._look_at(entry, now)

    def _look_at(self, entry: _Entry, now: float) -> None:
        if entry.life is None:
            return
        if entry.life.cancel_called:
            if now - entry.asked_at >= GONE_WITHIN and entry.state is not ServiceState.STUCK:
                self._note_stuck(entry)
        elif entry.state is ServiceState.STARTING:
            last = entry.began_at if entry.pulse is None else max(entry.began_at, entry.pulse.at)
            if now - last >= entry.spec.start_within:
                reason = f"has not started within {entry.spec.start_within:g} s"
                self._end_life(entry, reason, is_crash=True)
        elif entry.state in (ServiceState.READY, ServiceState.DEGRADED):
            self._look_for_signs_of_life(entry, now)

    def _look_for_signs_of_life(self, entry: _Entry, now: float) -> None:
        assert entry.pulse is not None  # noqa: S101  # it lives
        silent, spec = now - entry.pulse.at, entry.spec
        excuse = None if spec.soft is None or silent < spec.soft else spec.excuse()
        if excuse is not None:
            self._move(entry, ServiceState.DEGRADED, excuse)
        elif spec.hard is not None and silent >= spec.hard:
            self._end_life(entry, f"gave no sign of life for {silent:.0f} s", is_crash=True)
        elif spec.soft is not None and silent >= spec.soft:
            self._move(entry, ServiceState.DEGRADED, f"no sign of life for {spec.soft:g} s")
        else:
            self._heed(entry)

    def _heed(self, entry: _Entry) -> None:
        """Let the state of a service that runs be what it says of itself."""
        if entry.drained.is_set() or not entry.ready.is_set() or entry.pulse is None:
            return
        trouble = entry.pulse.trouble
        state = ServiceState.READY if trouble is None else ServiceState.DEGRADED
        self._move(entry, state, trouble)

    def _end_life(self, entry: _Entry, reason: str, *, is_crash: bool) -> None:
        if entry.life is None or entry.life.cancel_called or entry.drained.is_set():
            return
        entry.ended_for, entry.is_crash = reason, is_crash
        entry.asked_at = self._clock.monotonic()
        entry.lose_readiness()
        if is_crash:
            _log.error("service does not answer", service=entry.name, reason=reason)
        self._move(entry, ServiceState.RESTARTING, reason)
        entry.life.cancel()

    def _note_stuck(self, entry: _Entry) -> None:
        """Nothing may be started in its place: it may still do its work."""
        reason = f"does not end: {entry.ended_for}"
        self._move(entry, ServiceState.STUCK, reason)
        self.failure = self.failure or StackdError(
            f"service {entry.name} {reason}", code="service.stuck"
        )
        self.has_given_up.set()
        self._escalate(entry.name)

    def _move(self, entry: _Entry, state: ServiceState, reason: str | None = None) -> None:
        if entry.state is state and entry.reason == reason:
            return
        now = self._clock.time()
        was, entry.state, entry.reason, entry.since = entry.state, state, reason, now
        entry.moves.append(Move(now, was, state, reason))
        self.has_started |= self.is_ready
        self._events.emit(ServiceMoved(entry.name, was.value, state.value, reason))


def _drain(name: str, service: Service) -> None:
    try:
        service.drain()
    except Exception:  # noqa: BLE001  # the others are to be drained all the same
        _log.exception("service cannot drain", service=name)


def _count(crashes: deque[float], now: float, window: float) -> int:
    """Note a crash; how many there were within the window."""
    crashes.append(now)
    while crashes[0] <= now - window:
        crashes.popleft()
    return len(crashes)


def _within(error: BaseException, kind: type[Exception]) -> BaseException | None:
    """The first error of that kind in `error`, which may be a group."""
    if not isinstance(error, BaseExceptionGroup):
        return error if isinstance(error, kind) else None
    found = error.subgroup(kind)
    return None if found is None else first_error(found)
