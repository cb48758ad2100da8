"""Whether SQLite finds the file of a store whole: looked through on a connection of its own, beside whoever uses it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

from stackd.core.clock import Clock
from stackd.core.errors import StoreCorruptError, StoreError
from stackd.store.connection import ThreadConnection, connect, translate

PROBLEMS: Final = 10  # that are told; one page may bring forth thousands
INTERRUPT_AGAIN: Final = 0.05  # seconds
FRESH: Final = 60.0  # seconds a look stays good for who asks: it reads every page


@dataclass(frozen=True, slots=True)
class Looked:
    """What came of a look.

    Attributes:
        at: when it was over, by the monotonic clock; seconds: how long it took.
        problems: what SQLite finds wrong, the first ten; none: the file is whole.
    """

    at: float
    seconds: float
    problems: tuple[str, ...]


class Integrity:
    """Looks at the store at `path`.

    Attributes:
        last: what came of it; None before the first time.
        trouble: why the last look could not be done; None if it could.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._lock = anyio.Lock()
        self.last: Looked | None = None
        self.trouble: str | None = None

    @property
    def is_looking(self) -> bool:
        """Whether a look is under way."""
        return self._lock.locked()

    async def look(self) -> Looked:
        """Look through all of the file, unless that was just done; one look at a time.

        While it reads, the log of the store is not cut back: it grows by what is written meanwhile.

        Raises:
            StoreError: it cannot be read.
        Cancellation: given up at once.
        """
        async with self._lock:
            began = self._clock.monotonic()
            if self.last is None or began - self.last.at > FRESH:
                try:
                    problems = await self._problems()
                except StoreError as error:
                    self.trouble = error.message
                    raise
                self.trouble = None
                now = self._clock.monotonic()
                self.last = Looked(now, now - began, problems)
            return self.last

    async def _problems(self) -> tuple[str, ...]:
        try:
            connection = await connect(self._path, busy_timeout=0.0, writable=False)
            try:
                found = await connection.run(_look_through, connection)
            finally:
                with anyio.CancelScope(shield=True):
                    await self._end(connection)
        except sqlite3.Error as error:
            told = await anyio.to_thread.run_sync(translate, error, self._path)
            if isinstance(told, StoreCorruptError):
                return (told.message,)
            raise told from error
        except StoreCorruptError as error:
            return (error.message,)
        return tuple(found)

    async def _end(self, connection: ThreadConnection) -> None:
        """Close it, whatever its thread is at."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._interrupt, connection)
            await connection.close()
            tasks.cancel_scope.cancel()

    async def _interrupt(self, connection: ThreadConnection) -> None:
        """Again and again: SQLite forgets an interrupt that comes before a statement has begun."""
        # It is closed: SQLite's own word, or that of aiosqlite, which has let go of it.
        with contextlib.suppress(sqlite3.ProgrammingError, ValueError):
            while True:
                connection.raw.interrupt()  # from here, as sqlite3 allows
                await self._clock.sleep(INTERRUPT_AGAIN)


def _look_through(connection: ThreadConnection) -> list[str]:
    """Pages and rows, all but whether indexes hold what their tables do, and rows whose owner is not there.

    https://www.sqlite.org/pragma.html#pragma_quick_check and #pragma_foreign_key_check
    """
    problems = told(connection.raw.execute(f"PRAGMA quick_check({PROBLEMS})").fetchall())
    if not problems:
        orphans = connection.raw.execute("PRAGMA foreign_key_check").fetchmany(PROBLEMS)
        problems = [
            f"a row of {table} belongs to one of {parent} that is not there"
            for table, _, parent, _ in orphans
        ]
    return problems


def told(rows: Iterable[tuple[str]]) -> list[str]:
    """The problems in `rows`: those of pages are one row of several lines, below one that names the database."""
    lines = [line for (text,) in rows for line in text.splitlines()]
    return [line for line in lines if line != "ok" and not line.startswith("***")][:PROBLEMS]
