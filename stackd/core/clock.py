"""The one source of time. Everything that waits or stamps takes a `Clock`, so tests can own time."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

import anyio

_FIRST = datetime(1, 1, 1, tzinfo=UTC).timestamp()
_LAST = datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC).timestamp()


class Clock(Protocol):
    """Wall time for what is stored, monotonic time for what is measured."""

    def time(self) -> float:
        """Seconds since the epoch: the stored form of every instant."""

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...

    async def wait(self, event: anyio.Event, timeout: float) -> bool:
        """Wait for `event`, at most `timeout` seconds; whether it is set."""


class SystemClock:
    """The machine's own clocks."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def wait(self, event: anyio.Event, timeout: float) -> bool:
        with anyio.move_on_after(timeout):
            await event.wait()
        return event.is_set()


def epoch(text: str) -> float:
    """The RFC 3339 instant `text` in epoch seconds.

    Raises:
        ValueError: it is none, names no time zone, or lies outside the years 1 to 9999 of UTC.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("is no RFC 3339 instant") from None
    if at.tzinfo is None:
        raise ValueError("names no time zone")
    seconds = (at - datetime.fromtimestamp(0, UTC)).total_seconds()
    if not is_instant(seconds):
        raise ValueError("lies outside the years 1 to 9999")
    return seconds


def is_instant(at: float) -> bool:
    """Whether `at` (epoch seconds) can be written as RFC 3339: in the years 1 to 9999 of UTC."""
    return _FIRST <= at <= _LAST


def rfc3339(at: float | None) -> str | None:
    """The instant `at` (epoch seconds, an `is_instant`) as RFC 3339 in UTC with milliseconds; None stays None."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
