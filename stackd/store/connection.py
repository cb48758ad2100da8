"""One SQLite connection on its own thread, and the transaction handle that code above may use.

With what stands beside it in `store/`, the only place that knows SQLite.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import anyio

from stackd.core.errors import (
    StackdError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFailedError,
    StoreFullError,
)
from stackd.core.events import Event
from stackd.store.file import APPLICATION_ID, refuse_unfit

T = TypeVar("T")
Row = tuple[Any, ...]
Parameters = Sequence[Any]

CACHED_STATEMENTS = 256  # prepared statements kept per connection; we have fewer than this
CACHE_KIB = 8 * 1024  # page cache per connection
WAL_CHECKPOINT_PAGES = (
    4000  # 16 MiB: fewer, larger checkpoints keep their fsyncs out of most commits
)
WAL_KEPT_BYTES = 64 * 1024 * 1024  # the WAL file is cut back to this after a checkpoint


class Tx:
    """The open transaction, as a change sees it. Valid only inside that call, on that thread."""

    __slots__ = ("_connection", "events")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.events: list[Event] = []

    def execute(self, sql: str, parameters: Parameters = ()) -> int:
        """Run one statement; the number of rows it changed."""
        return self._connection.execute(sql, parameters).rowcount

    def insert(self, sql: str, parameters: Parameters = ()) -> int:
        """Run one INSERT; the rowid it made."""
        rowid = self._connection.execute(sql, parameters).lastrowid
        assert rowid is not None  # noqa: S101  # sqlite3 sets it after every INSERT
        return rowid

    def rows(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        return self._connection.execute(sql, parameters).fetchall()

    def one(self, sql: str, parameters: Parameters = ()) -> Row | None:
        row: Row | None = self._connection.execute(sql, parameters).fetchone()
        return row

    def emit(self, event: Event) -> None:
        """Deliver `event` once this transaction has committed; a rollback forgets it."""
        self.events.append(event)


class ThreadConnection(aiosqlite.Connection):
    """An aiosqlite connection that can run a whole function on its thread.

    aiosqlite awaits once per statement; a group of changes as one call was measured at twelve times the
    throughput. `_execute` is the one private name used; a contract test pins its behaviour.
    """

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(*arguments)` on the connection's thread.

        Cancelling the caller does not stop a function that was handed over.
        """
        result: T = await self._execute(function, *arguments)  # type: ignore[no-untyped-call]
        return result

    @property
    def raw(self) -> sqlite3.Connection:
        """The connection; touch it only inside `run`."""
        return self._conn


async def connect(path: Path, *, busy_timeout: float, writable: bool) -> ThreadConnection:
    """Open `path` on a thread of its own.

    Args:
        path: the database file; created when `writable`. Then only a store of ours, or none yet, is
            opened; anything else that is found there stays as it is.
        busy_timeout: seconds SQLite waits for another process's lock.
        writable: False opens for reading only.

    Raises:
        StoreError: or a subclass naming what is wrong with the file or its folder.
    """

    def connector() -> sqlite3.Connection:
        raw = sqlite3.connect(
            uri(path, "rwc" if writable else "ro"),
            uri=True,
            isolation_level=None,
            cached_statements=CACHED_STATEMENTS,
            timeout=busy_timeout,
            check_same_thread=False,
        )
        try:
            _configure(raw, writable=writable)
        except BaseException:
            raw.close()
            raise
        return raw

    if writable:
        await anyio.to_thread.run_sync(refuse_unfit, path)
    connection = ThreadConnection(connector, 64)
    connection._thread.daemon = True  # noqa: SLF001  # a thread stuck in I/O must not hold up the exit
    try:
        with anyio.CancelScope(shield=True):  # what was opened must be known, to be closed
            _ = await connection
    except sqlite3.Error as error:
        # aiosqlite asked the thread to end; wait for it, so that nothing reports to a closed loop.
        await anyio.to_thread.run_sync(connection._thread.join)  # noqa: SLF001
        raise await anyio.to_thread.run_sync(translate, error, path) from error
    return connection


def uri(path: Path, mode: str) -> str:
    """`path` as SQLite's URI; https://www.sqlite.org/uri.html has the modes."""
    quoted = str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return f"file:{quoted}?mode={mode}"


def _configure(raw: sqlite3.Connection, *, writable: bool) -> None:
    raw.execute("PRAGMA foreign_keys=ON")
    raw.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
    raw.execute("PRAGMA temp_store=MEMORY")
    raw.execute("PRAGMA trusted_schema=OFF")
    if not writable:
        raw.execute("PRAGMA query_only=ON")
        return
    if not raw.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
        raw.execute("BEGIN")  # one commit: after a kill the file is empty, or ours
        raw.execute("PRAGMA auto_vacuum=INCREMENTAL")  # only an empty file takes it
        raw.execute(f"PRAGMA application_id={APPLICATION_ID}")
        raw.execute("COMMIT")
    raw.execute("PRAGMA journal_mode=WAL")
    raw.execute("PRAGMA synchronous=FULL")
    raw.execute(f"PRAGMA wal_autocheckpoint={WAL_CHECKPOINT_PAGES}")
    raw.execute(f"PRAGMA journal_size_limit={WAL_KEPT_BYTES}")


def checkpoint(path: Path) -> None:
    """Bring what is in the log of the store at `path` into its file, as far as nobody reads there.

    On a connection of its own, beside which others write on: what is done here the next commit need not do. It
    waits for the disk: call it on a thread.

    Raises:
        StoreError: or a subclass.
    """
    try:
        raw = sqlite3.connect(uri(path, "rw"), uri=True, isolation_level=None, timeout=0.0)
        try:
            raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        finally:
            raw.close()
    except sqlite3.Error as error:
        raise translate(error, path) from error


def begin(raw: sqlite3.Connection) -> None:
    raw.execute("BEGIN IMMEDIATE")


def is_fatal(error: BaseException) -> bool:
    """Whether `error` says the whole group is lost, not just the change that met it."""
    return isinstance(error, sqlite3.Error) and _primary_code(error) in {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_NOMEM,
    }


def is_full(error: sqlite3.Error) -> bool:
    return _primary_code(error) == sqlite3.SQLITE_FULL


def translate(error: BaseException, path: Path) -> BaseException:
    """`error` in the words of `core.errors`; what is not SQLite's comes back as it is. May look at the disk."""
    if not isinstance(error, sqlite3.Error):
        return error
    match _primary_code(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreBusyError(
                f"{path} is locked by another process",
                hint="try again; if it lasts, end what keeps it open, such as a copy under way or an SQL shell",
            )
        case sqlite3.SQLITE_FULL:
            return StoreFullError(
                f"no space left for {path}", hint="free disk space; nothing was half-written"
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreCorruptError(
                f"{path} is not a sound SQLite database: {error}",
                hint="restore a backup, or move the file away to start empty",
            )
        case sqlite3.SQLITE_CANTOPEN if _is_out_of_inodes(path):
            return StoreFullError(f"no inode left for {path}", hint="remove files from that disk")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return StoreError(
                f"{path} cannot be written: {error}",
                code="store.read_only",
                hint="check the state directory's owner, mode and mount",
            )
        case sqlite3.SQLITE_IOERR:
            return StoreFailedError(f"input/output error on {path}: {error}")
        case _ if isinstance(error, sqlite3.IntegrityError):
            return StackdError(f"constraint failed: {error}", code="store.constraint")
        case _:
            return StoreError(f"{path}: {error}")


def _is_out_of_inodes(path: Path) -> bool:
    """SQLite does not say why it could not make a file."""
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    return disk.f_files > 0 and disk.f_favail == 0


def _primary_code(error: sqlite3.Error) -> int:
    code = getattr(error, "sqlite_errorcode", None)
    return (code or sqlite3.SQLITE_ERROR) & 0xFF
