"""Starts services, restarts the ones that crash, drains them all, and says how each is. Knows no job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from random import random

import anyio
import structlog

from stackd.core.backoff import backoff
from stackd.core.clock import Clock
from stackd.core.errors import StackdError, StoreFailedError, first_error
from stackd.core.events import Event, EventBus
from stackd.supervisor.service import Service

RESTART_BASE = 0.5  # seconds
RESTART_CAP = 30.0  # seconds
STEADY_AFTER = 60.0  # seconds of good running after which the backoff starts anew
MAX_RESTARTS = 5  # of one service within the window; past it the daemon gives up (exit 75)
RESTART_WINDOW = 300.0  # seconds

_log = structlog.get_logger(__name__)


class ServiceState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ServiceMoved(Event):
    """A service changed its state."""

    service: str
    state: str
    reason: str | None


@dataclass(slots=True)
class _Entry:
    build: Callable[[], Service]
    state: ServiceState = ServiceState.STARTING
    reason: str | None = None
    current: Service | None = None
    crashes: list[float] = field(default_factory=list)  # within the window: they decide to give up
    streak: int = 0  # crashes since it last ran steadily: they decide the wait
    has_been_ready: bool = False
    drained: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)


class Supervisor:
    """Runs the services it was given, in order, until drained. A failed one is restarted with backoff."""

    def __init__(self, clock: Clock, events: EventBus) -> None:
        self._clock = clock
        self._events = events
        self._entries: dict[str, _Entry] = {}
        self._draining = False
        self._scope = anyio.CancelScope()
        self.failure: StackdError | None = None
        self.has_started = False  # every service was ready at one time; stays true

    def add(self, name: str, build: Callable[[], Service]) -> None:
        """Supervise what `build` returns under `name`; services start in the order added."""
        self._entries[name] = _Entry(build)

    def states(self) -> dict[str, tuple[ServiceState, str | None]]:
        """(state, reason) of each service, in start order."""
        return {name: (entry.state, entry.reason) for name, entry in self._entries.items()}

    @property
    def is_ready(self) -> bool:
        return not self._draining and all(
            entry.state is ServiceState.READY for entry in self._entries.values()
        )

    async def run(self) -> None:
        """Run until `drain` has let every service finish, or `give_up` was called.

        Afterwards `failure` is None if the end was asked for.
        """
        with self._scope:
            async with anyio.create_task_group() as tasks:
                for name, entry in self._entries.items():
                    await tasks.start(self._keep, name, entry)

    def drain(self, names: list[str] | None = None) -> None:
        """Tell services (all by default) to take no new work and finish."""
        self._draining = True
        for name in names if names is not None else list(self._entries):
            entry = self._entries.get(name)
            if entry is not None and entry.state is not ServiceState.STOPPED:
                self._move(name, entry, ServiceState.DRAINING)
                entry.drained.set()
                if entry.current is not None:
                    entry.current.drain()

    async def ended(self, name: str) -> None:
        """Return once the service has stopped for good."""
        if (entry := self._entries.get(name)) is not None:
            await entry.ended.wait()

    def stop(self) -> None:
        """Cancel whatever still runs."""
        self._draining = True
        self._scope.cancel()

    def give_up(self, error: StackdError) -> None:
        """Stop everything because `error` leaves no way to go on."""
        self.failure = self.failure or error
        self.stop()

    async def _keep(
        self, name: str, entry: _Entry, *, task_status: anyio.abc.TaskStatus[None]
    ) -> None:
        try:
            await self._run_until_drained(name, entry, task_status)
        finally:
            if entry.state is not ServiceState.FAILED:  # which says more
                self._move(name, entry, ServiceState.STOPPED)
            entry.ended.set()
        if not entry.has_been_ready:
            task_status.started()

    async def _run_until_drained(
        self, name: str, entry: _Entry, task_status: anyio.abc.TaskStatus[None]
    ) -> None:
        """Run the service, again after each crash, until it is drained or given up."""
        while not (entry.drained.is_set() or self._scope.cancel_called):
            self._move(name, entry, ServiceState.STARTING)
            began_at = self._clock.monotonic()
            reason = None
            try:
                async with anyio.create_task_group() as tasks:
                    entry.current = entry.build()
                    await tasks.start(entry.current.run)
                    if not entry.drained.is_set():
                        self._move(name, entry, ServiceState.READY)
                    if not entry.has_been_ready:
                        entry.has_been_ready = True
                        task_status.started()
                reason = "ended by itself"
            except* StoreFailedError as group:
                self.give_up(_ours(group))
            except* Exception as group:  # noqa: BLE001  # a service meets its supervisor here
                reason = _told(name, group)
            if entry.drained.is_set() or self._scope.cancel_called:
                break
            await self._back_off(name, entry, reason or "", began_at)

    async def _back_off(self, name: str, entry: _Entry, reason: str, began_at: float) -> None:
        now = self._clock.monotonic()
        entry.crashes = [at for at in entry.crashes if at > now - RESTART_WINDOW] + [now]
        if len(entry.crashes) > MAX_RESTARTS:
            self._move(name, entry, ServiceState.FAILED, reason)
            self.give_up(
                StackdError(f"service {name} keeps failing: {reason}", code="service.failed")
            )
            return
        entry.streak = 1 if now - began_at >= STEADY_AFTER else entry.streak + 1
        self._move(name, entry, ServiceState.RESTARTING, reason)
        wait = backoff(entry.streak, base=RESTART_BASE, cap=RESTART_CAP, roll=random())  # noqa: S311
        await self._clock.wait(entry.drained, wait)

    def _move(
        self, name: str, entry: _Entry, state: ServiceState, reason: str | None = None
    ) -> None:
        if entry.state is state and entry.reason == reason:
            return
        entry.state, entry.reason = state, reason
        self.has_started |= self.is_ready
        self._events.emit(ServiceMoved(name, state.value, reason))


def _ours(group: BaseExceptionGroup[StackdError]) -> StackdError:
    error = first_error(group)
    if not isinstance(error, StackdError):
        raise TypeError(f"not an error of ours: {error!r}")
    return error


def _told(name: str, group: BaseExceptionGroup[Exception]) -> str:
    error = first_error(group)
    if isinstance(error, StackdError):  # foreseen: its words say more than a traceback
        _log.error("service failed", service=name, reason=error.message, hint=error.hint)
        return error.message
    _log.error("service crashed", service=name, exc_info=error)
    return f"{type(error).__name__}: {error}"
