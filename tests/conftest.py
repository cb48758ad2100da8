"""What every test stands on: a guard against blocking the loop, and a real store in a fresh folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TextIO, cast

import pytest
import structlog
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import settings
from support.held import held

from stackd.core.clock import SystemClock
from stackd.core.events import EventBus
from stackd.core.log import configure_logging
from stackd.store.database import Database, open_database


def pytest_configure() -> None:
    """Let children die of signals as they do at a terminal: under nohup, or behind `&`, they would ignore some."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: most of a daemon test is waiting."""
    return min((os.cpu_count() or 1) + 1, 4)


# Machines are shared: how long an example takes says nothing of what it shows.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """A blocking call made by stackd on a running loop raises."""
    with blockbuster_ctx("stackd") as guard:
        yield guard


@pytest.fixture(autouse=True, scope="session")
def log() -> None:
    """As the daemon logs: what structlog does by itself with an exception reads files on the loop."""
    configure_logging(level="debug", style="json")
    structlog.configure(
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Captured()))
    )


class _Captured:
    """Standard error as it is now: pytest gives each test its own."""

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


@pytest.fixture
def bus() -> EventBus:
    return EventBus()


@pytest.fixture
async def database(tmp_path: Path, bus: EventBus) -> AsyncIterator[Database]:
    async with held(
        open_database(tmp_path / "stackd.db", clock=SystemClock(), events=bus, busy_timeout=0.2)
    ) as opened:
        yield opened
