"""The one source of time. Everything that waits or stamps takes a `Clock`, so tests can own time."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

import anyio


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


def rfc3339(at: float | None) -> str | None:
    """The instant `at` (epoch seconds) as RFC 3339 in UTC with milliseconds; None stays None."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
