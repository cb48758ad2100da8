"""The contract every supervised loop keeps, and how it shows that it lives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from anyio.abc import TaskStatus

from stackd.core.clock import Clock

START_WITHIN = 30.0  # seconds


class Service(Protocol):
    """One supervised loop. Used once: a restart builds a new one.

    `run` reports `started()` when it does its work, and returns only after `drain`. `drain` is safe at any
    time and any number of times: no new work, finish what is in hand, return.
    """

    name: str

    async def run(self, *, task_status: TaskStatus[None]) -> None: ...

    def drain(self) -> None: ...


class Pulse:
    """Signs of life of one service. Its own work loop gives them, never a timer beside it: that would beat on.

    Attributes:
        at: the last one, by the monotonic clock.
        trouble: what it waits for at the moment: something it depends on does not answer.
    """

    __slots__ = ("_clock", "_told", "at", "trouble")

    def __init__(self, clock: Clock, told: Callable[[], None] = lambda: None) -> None:
        self._clock = clock
        self._told = told
        self.at = clock.monotonic()
        self.trouble: str | None = None

    def beat(self) -> None:
        """It works."""
        self._note(None)

    def waits(self, trouble: str) -> None:
        """It lives, but cannot work for now; it tries again by itself."""
        self._note(trouble)

    def _note(self, trouble: str | None) -> None:
        self.at = self._clock.monotonic()
        if trouble != self.trouble:
            self.trouble = trouble
            self._told()


@dataclass(frozen=True, slots=True)
class Spec:
    """What is supervised, and how patiently.

    Attributes:
        build: makes the service anew, for each life.
        needs: services that must be ready before it starts; when one of them ends, it is stopped first and started
            again afterwards.
        essential: without it the daemon gives up; else it is tried again now and then, for ever.
        start_within: seconds until it must have started, or given a sign of life.
        excuse: what all such services wait for at the moment, in words: none is restarted for its silence then.
        soft, hard: seconds without a sign of life after which it counts as degraded, and is restarted. None: it
            gives none.
    """

    name: str
    build: Callable[[Pulse], Service]
    needs: tuple[str, ...] = ()
    essential: bool = True
    start_within: float = START_WITHIN
    soft: float | None = None
    hard: float | None = None
    excuse: Callable[[], str | None] = lambda: None
