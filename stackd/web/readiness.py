"""Whether this process does its work, found out by doing: checks that run beside the requests that ask for them.

While somebody asks, each check runs every few seconds, under a time-out of its own; answers come from what it found
last. When nobody has asked for a while they rest: an idle daemon syncs nothing to disk to prove that it could.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

from stackd.core.clock import Clock
from stackd.core.errors import StackdError
from stackd.core.json import Json

PERIOD: Final = 5.0  # seconds
TIMEOUT: Final = 1.0  # seconds a check may take
STALE: Final = 15.0  # seconds after which what was found is no evidence any more
ASKED_FOR: Final = 60.0  # seconds that checks go on after the last question
NO_ANSWER: Final = f"no answer within {TIMEOUT:g} s"
IN_A_ROW: Final = 2  # findings that differ from what is told, before that changes

_log = structlog.get_logger(__name__)


class Status(StrEnum):
    PASS = "pass"  # noqa: S105  # no password
    WARN = "warn"  # told, and no reason to take work elsewhere
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Found:
    """What a check found.

    Attributes:
        at_once: it is told without waiting for a second finding.
        age: seconds since that was found out, where it is not now.
        details: what else was found, as JSON.
    """

    status: Status
    reason: str | None = None
    at_once: bool = False
    age: float = 0.0
    details: dict[str, Json] | None = None


GOOD: Final = Found(Status.PASS)


def warn(reason: str) -> Found:
    return Found(Status.WARN, reason)


def fail(reason: str, *, at_once: bool = False) -> Found:
    return Found(Status.FAIL, reason, at_once)


Look = Callable[[], Awaitable[Found]]
Glance = Callable[[], Found | None]


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of a check. `age`: seconds since it last looked; `latency`: seconds that took."""

    status: Status
    reason: str | None
    age: float
    latency: float
    details: dict[str, Json] | None = None


@dataclass(slots=True)
class _Check:
    """`glance`: what is known without looking; that is told at once."""

    look: Look | None
    glance: Glance
    is_lasting: bool
    told: Found = GOOD
    found: Found | None = None  # last
    in_a_row: int = 0  # findings of another status than is told
    at: float = 0.0
    latency: float = 0.0
    flips: int = 0
    is_looking: bool = False


class Readiness:
    """The checks by name, and what is told of them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._checks: dict[str, _Check] = {}
        self._asked_at = -ASKED_FOR  # nobody has asked yet
        self._asked = anyio.Event()
        self._looked = anyio.Event()
        self._round: anyio.Event | None = None  # set when the one under way is over
        self._tasks: TaskGroup | None = None
        self.has_passed = False  # all of them, at one time

    def add(
        self,
        name: str,
        look: Look | None = None,
        *,
        glance: Glance = lambda: None,
        is_lasting: bool = True,
    ) -> None:
        """Check `name` by `look`, which may wait; what `glance` knows without that is told before it.

        `is_lasting`: that it passed says something of the start, as of the end that is asked for it does not.
        """
        self._checks[name] = _Check(look, glance, is_lasting)

    @property
    def names(self) -> Collection[str]:
        return self._checks.keys()

    @property
    def is_looking(self) -> bool:
        """Whether a round is under way."""
        return self._round is not None

    @property
    def flips(self) -> int:
        """How often what is told of a check changed between good and bad."""
        return sum(check.flips for check in self._checks.values())

    async def run(self) -> None:
        """Look while somebody asks; returns when cancelled."""
        async with anyio.create_task_group() as self._tasks:
            try:
                while True:
                    if self._clock.monotonic() - self._asked_at >= ASKED_FOR:
                        self._asked = anyio.Event()
                        await self._asked.wait()  # whoever asked has looked
                    await self._clock.sleep(PERIOD)
                    await self._look_at_all()
            finally:
                self._tasks = None

    async def told(self) -> dict[str, Told]:
        """What is told of each check; looks first if that was too long ago. Only while `run` does."""
        self._asked_at = self._clock.monotonic()
        self._asked.set()
        if any(self._is_stale(check) for check in self._checks.values()):
            await self._look_at_all()
        now = self._clock.monotonic()
        told = {name: self._tell(name, check, now) for name, check in self._checks.items()}
        self.has_passed |= all(
            one.status is not Status.FAIL
            for name, one in told.items()
            if self._checks[name].is_lasting
        )
        return told

    def _is_stale(self, check: _Check) -> bool:
        is_old = check.found is None or self._clock.monotonic() - check.at > STALE
        return check.look is not None and is_old and check.glance() is None

    def _tell(self, name: str, check: _Check, now: float) -> Told:
        glanced = check.glance()
        if glanced is not None or check.look is None:
            self._take(name, check, replace(glanced or GOOD, at_once=True))
            found = check.told
            return Told(found.status, found.reason, found.age, 0.0, found.details)
        found, age = check.told, now - check.at
        if check.found is None or age > STALE:
            found = fail(f"has not looked for {age:.0f} s" if check.found else "has not looked yet")
        return Told(found.status, found.reason, age, check.latency, found.details)

    async def _look_at_all(self) -> None:
        """Look with each check that has to, all at the same time, and wait for what they find: no longer than `TIMEOUT`.

        One that does not come back, as a thread may not from a disk, holds up nobody; it is asked nothing more until it
        does. One round at a time: who comes later waits for it.
        """
        if self._round is not None:
            await self._round.wait()
            return
        self._round = anyio.Event()
        try:
            await self._one_round()
        finally:
            self._round.set()
            self._round = None

    async def _one_round(self) -> None:
        asked = {
            name: check
            for name, check in self._checks.items()
            if check.look is not None and check.glance() is None
        }
        left = set(asked)
        all_back = anyio.Event()

        async def look(name: str, check: _Check, look: Look) -> None:
            await self._look(name, check, look)
            left.discard(name)
            if not left:
                all_back.set()

        for name, check in asked.items():
            if not check.is_looking and check.look is not None and self._tasks is not None:
                check.is_looking = True
                self._tasks.start_soon(look, name, check, check.look)
        if left:
            with anyio.move_on_after(TIMEOUT):
                await all_back.wait()
        for name in left:
            self._note(name, asked[name], fail(NO_ANSWER), latency=TIMEOUT)

    async def _look(self, name: str, check: _Check, look: Look) -> None:
        began = self._clock.monotonic()
        found = fail(NO_ANSWER)
        try:
            with anyio.move_on_after(TIMEOUT):
                found = await look()
        except StackdError as error:
            found = fail(error.message)
        except Exception as error:  # noqa: BLE001  # a check of ours that fails is no good news
            _log.exception("a check failed", check=name)
            found = fail(f"the check itself failed ({type(error).__name__})")
        finally:
            check.is_looking = False
        self._note(name, check, found, latency=self._clock.monotonic() - began)

    def _note(self, name: str, check: _Check, found: Found, *, latency: float) -> None:
        now = self._clock.monotonic()
        if check.found is not None and now - check.at > STALE:
            check.found = None  # what was found before is no evidence: this is the first again
        check.at, check.latency = now, latency
        self._take(name, check, found)

    def _take(self, name: str, check: _Check, found: Found) -> None:
        """Tell what was found: at once if it is the first or says so, else once it is found again."""
        is_first = check.found is None
        check.found = found
        is_bad, was_bad = found.status is Status.FAIL, check.told.status is Status.FAIL
        check.in_a_row = check.in_a_row + 1 if is_bad != was_bad else 0
        if is_bad != was_bad and not (is_first or found.at_once or check.in_a_row >= IN_A_ROW):
            return
        if is_bad != was_bad:
            check.in_a_row = 0
            check.flips += not is_first
            if is_bad:
                _log.warning("not ready", check=name, reason=found.reason)
            elif not is_first:
                _log.info("ready again", check=name)
        check.told = found
