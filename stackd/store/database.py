"""The store: many readers, one writer that commits what arrives together.

A change is a plain function of a `Tx`. While one group is being synced to disk, the changes that arrive
meanwhile form the next group: one BEGIN IMMEDIATE, the changes, one COMMIT. Where one of them fails, the group
is begun anew with a savepoint per change, and only what fails is undone: savepoints cost a fifth of the
queue's rate (12,000 against 15,000 jobs/s), failures are few. When `write` returns, the change is on disk;
killed before that, none of it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import anyio
import structlog

from stackd.core.clock import Clock
from stackd.core.errors import (
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFailedError,
    StoreReplacedError,
)
from stackd.core.events import Event, EventBus
from stackd.store.connection import (
    ThreadConnection,
    Tx,
    begin,
    checkpoint,
    connect,
    is_fatal,
    is_full,
    translate,
)
from stackd.store.integrity import Integrity
from stackd.store.migrations import Migration, migrate
from stackd.store.reserve import Reserve

T = TypeVar("T")
Change = Callable[[Tx], T]

GROUP_MEMBERS = 500  # changes per transaction: bounds how long one commit can take
GROUP_BYTES = 4 * 1024 * 1024
WAITING_MEMBERS = 10_000  # changes that may wait; past this `write` itself waits
WAITING_BYTES = 64 * 1024 * 1024
WRITE_DEADLINE = 30.0  # seconds a change may wait for its turn unless it says otherwise

_TRY_AGAIN = "try again; if it lasts, this disk is too slow for what is asked of it"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoreWritesStopped(Event):
    """The writer met an error after which nothing may be written; `code` as of that error."""

    code: str
    reason: str


@dataclass(slots=True, eq=False)
class _Member(Generic[T]):
    change: Change[T]
    future: asyncio.Future[T]
    durable: bool
    size_bytes: int
    expires_at: float  # by the loop's clock
    result: T | None = None
    error: BaseException | None = None
    events: list[Event] = field(default_factory=list)


class Database:
    """An open store. Made by `open_database`, used by any number of tasks of one loop."""

    def __init__(
        self,
        path: Path,
        writer: ThreadConnection,
        readers: list[ThreadConnection],
        *,
        clock: Clock,
        events: EventBus,
    ) -> None:
        self.path = path
        self.events = events
        self.reserve = Reserve(path)
        self.integrity = Integrity(path, clock)
        self._clock = clock
        self._writer = writer
        self._free_readers = list(readers)
        self._reader_freed = anyio.Semaphore(len(readers))
        self._waiting: deque[_Member[Any]] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Condition()
        self._crowd = 0  # writers that wait for room
        self._sweeps_at = math.inf  # when deadlines are looked at next, by the loop's clock
        self._failure: StoreError | None = None
        self._synced_at = -math.inf
        self._refusal: StoreError | None = None
        self._busy_since: float | None = None  # when the commit under way began
        self._closing = False
        self._files: list[_File] = []  # as they were at the first commit
        self._syncing = True  # the writer connection starts with synchronous=FULL

    @property
    def failure(self) -> StoreError | None:
        """Why writing has stopped for good; None while it has not."""
        return self._failure

    @property
    def refusal(self) -> StoreError | None:
        """Why the last commit was refused; None if it was not."""
        return self._refusal

    @property
    def synced_at(self) -> float:
        """When a commit last reached the disk, by the monotonic clock; minus infinity if none did since one failed."""
        return self._synced_at

    def is_behind(self, seconds: float) -> bool:
        """Whether the commit under way has lasted longer than `seconds`."""
        began = self._busy_since
        return began is not None and self._clock.monotonic() - began > seconds

    async def write(
        self,
        change: Change[T],
        *,
        deadline: float = WRITE_DEADLINE,
        durable: bool = True,
        size_bytes: int = 0,
    ) -> T:
        """Run `change` in a transaction, commit it, and return what it returned.

        Args:
            change: runs on the writer's thread, in a group with others, and once more if one of these fails:
                it must touch nothing but its `Tx`. If it raises, its own work is undone and the error is
                raised here.
            deadline: seconds it may wait for its turn; once begun, it is waited for.
            durable: False allows this commit to reach the disk with a later one (claims, renewals).
            size_bytes: about how much it writes; bounds a group.

        Raises:
            StoreBusyError: the deadline passed before it began, or another process kept the write lock.
            StoreFullError: the disk is full, its reserve spent; nothing of the whole group was kept.
            StoreFailedError, StoreCorruptError, StoreReplacedError: writing has stopped for good.
        Cancellation: a change that has not begun is dropped; one that has begun commits, its events are
            delivered, and its result is lost to the caller.
        """
        loop = asyncio.get_running_loop()
        if self._is_crowded:
            deadline -= await self._wait_for_room(deadline)
        self._refuse_if_stopped()
        expires_at = loop.time() + deadline
        member: _Member[T] = _Member(change, loop.create_future(), durable, size_bytes, expires_at)
        self._waiting.append(member)
        self._waiting_bytes += size_bytes
        self._arrived.set()
        if expires_at < self._sweeps_at:
            self._sweep_at(loop, expires_at)
        return await member.future

    def write_soon(self, change: Change[object]) -> None:
        """Run `change` with what commits next, for nobody who waits; it is dropped where the store is busy.

        Only for what may be lost: it reaches the disk with a later commit, and its failure is told to nobody.
        """
        if self._is_crowded or self._failure is not None or self._closing:
            return
        loop = asyncio.get_running_loop()
        member: _Member[object] = _Member(
            change, loop.create_future(), durable=False, size_bytes=0, expires_at=math.inf
        )
        member.future.add_done_callback(_look_away)
        self._waiting.append(member)
        self._arrived.set()

    async def keep_reserve(self) -> None:
        """Make the reserve again if it was spent and there is room; only for who holds the scheduler's role."""
        await anyio.to_thread.run_sync(self.reserve.make)

    async def checkpoint(self) -> None:
        """Bring the log into the file, beside the writer; when this returns, what was given back is off the file.

        After much was written by few: else one of the next commits would have all of it to do.
        """
        with contextlib.suppress(StoreError):  # of no consequence: a commit will do it, or tell
            await anyio.to_thread.run_sync(checkpoint, self.path)

    async def read(self, query: Callable[[Tx], T]) -> T:
        """Run `query` on a reader's thread, in one consistent snapshot.

        Raises:
            StoreError: or a subclass naming what failed.
        """
        await self._reader_freed.acquire()
        reader = self._free_readers.pop()
        try:
            return await _shielded_read(reader, query)
        except sqlite3.Error as error:
            raise await anyio.to_thread.run_sync(translate, error, self.path) from error
        finally:
            self._free_readers.append(reader)
            self._reader_freed.release()

    def _sweep_at(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        self._sweeps_at = at
        loop.call_at(at, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Refuse what has waited past its deadline. One timer for all: hardly any change waits that long."""
        self._sweeps_at = math.inf
        soonest = math.inf
        for member in self._waiting:
            if member.future.done():
                continue
            if member.expires_at > loop.time():
                soonest = min(soonest, member.expires_at)
            else:
                member.future.set_exception(
                    StoreBusyError("the store did not get to this change in time", hint=_TRY_AGAIN)
                )
        if soonest < self._sweeps_at:
            self._sweep_at(loop, soonest)

    @property
    def _is_crowded(self) -> bool:
        return len(self._waiting) >= WAITING_MEMBERS or self._waiting_bytes >= WAITING_BYTES

    async def _wait_for_room(self, deadline: float) -> float:
        """Wait until the writer takes more; the seconds that took."""
        began = self._clock.monotonic()
        self._crowd += 1
        try:
            with anyio.move_on_after(deadline):
                async with self._room:
                    while self._is_crowded:
                        await self._room.wait()
                    return self._clock.monotonic() - began
        finally:
            self._crowd -= 1
        raise StoreBusyError("too many changes wait for the store", hint=_TRY_AGAIN)

    def _refuse_if_stopped(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise _closed()

    async def run_writer(self) -> None:
        """Commit groups until `close` was asked for and nothing waits. However it ends, nobody waits for it."""
        group: list[_Member[Any]] = []
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while group := self._take_group():
                    await self._commit(group)
                    if self._crowd:  # spares the lock when nobody waits for it
                        await self._let_in()
                if self._closing:
                    return
        except Exception as error:  # noqa: BLE001  # whatever it was, it must not end in silence
            _log.exception("the writer failed")
            self._stop_writing(StoreFailedError(f"the writer failed: {type(error).__name__}"))
        finally:
            with anyio.CancelScope(shield=True):
                await self._turn_away(group)

    async def _let_in(self) -> None:
        async with self._room:
            self._room.notify_all()

    async def _turn_away(self, group: list[_Member[Any]]) -> None:
        """No writer is left: tell everybody who waits for one."""
        self._closing = True
        reason = self._failure or _closed()
        for member in [*group, *self._waiting]:
            if not member.future.done():
                member.future.set_exception(reason)
        self._waiting.clear()
        self._waiting_bytes = 0
        await self._let_in()

    def _take_group(self) -> list[_Member[Any]]:
        group: list[_Member[Any]] = []
        size = 0
        while self._waiting and len(group) < GROUP_MEMBERS and (size < GROUP_BYTES or not group):
            member = self._waiting.popleft()
            self._waiting_bytes -= member.size_bytes
            if member.future.done():  # expired or cancelled before its turn
                continue
            size += member.size_bytes
            group.append(member)
        return group

    async def _commit(self, group: list[_Member[Any]]) -> None:
        if self._failure is not None:
            for member in group:
                member.error = self._failure
        else:
            self._busy_since = self._clock.monotonic()
            wrote = await self._writer.run(self._commit_on_thread, group)
            self._busy_since = None
            if wrote is None:
                self._synced_at = -math.inf  # what an earlier commit proved holds no more
                self._refusal = next(
                    (m.error for m in group if isinstance(m.error, StoreError)), None
                )
            elif wrote:
                self._refusal = None
                if self._syncing:
                    self._synced_at = self._clock.monotonic()
        for member in group:
            for event in member.events:
                self.events.emit(event)
        for member in group:
            if member.future.done():
                continue
            if member.error is not None:
                member.future.set_exception(member.error)
            else:
                member.future.set_result(member.result)
        if self._failure is None:
            self._notice_failure(group)

    def _notice_failure(self, group: list[_Member[Any]]) -> None:
        for member in group:
            if isinstance(member.error, StoreFailedError | StoreCorruptError):
                self._stop_writing(member.error)
                return

    def _stop_writing(self, failure: StoreFailedError | StoreCorruptError) -> None:
        self._failure = failure
        _log.error("the store has stopped writing", reason=failure.message)
        self.events.emit(StoreWritesStopped(failure.code, failure.message))

    def _commit_on_thread(self, group: list[_Member[Any]]) -> bool | None:
        """Run the group and tell each member its fate; whether anything was written, None if that failed."""
        raw = self._writer.raw
        changes = raw.total_changes
        try:
            self._set_sync(raw, durable=any(member.durable for member in group))
            try:
                self._run_group(raw, group)
            except sqlite3.Error as error:
                if not (is_full(error) and self.reserve.free()):
                    raise
                _log.warning("the disk is full: its reserve was freed, and nothing new is taken in")
                _roll_back(raw)
                _begin_log_anew(raw)
                self._run_group(raw, group)
            self._check_files()
        except BaseException as error:  # noqa: BLE001  # every member must learn its fate
            _roll_back(raw)
            fate = translate(error, self.path)
            for member in group:
                member.error = fate
                member.result = None
                member.events = []
            return None if isinstance(fate, StoreError) else False
        return raw.total_changes > changes

    def _run_group(self, raw: sqlite3.Connection, group: list[_Member[Any]]) -> None:
        """One transaction of all members; if one fails, anew with each apart."""
        begin(raw)
        try:
            for member in group:
                _apply(raw, member)
        except BaseException as error:
            if len(group) == 1 or is_fatal(error) or not raw.in_transaction:
                raise
            raw.execute("ROLLBACK")
            begin(raw)
            for member in group:
                _apply_apart(raw, member, self.path)
        raw.execute("COMMIT")

    def _check_files(self) -> None:
        """Refuse to call a commit kept that went to a file which is no longer the store's.

        Whoever opens the store next opens what then has its name; SQLite writes on to what it had opened.
        """
        if not self._files:
            names = (f"{self.path}{suffix}" for suffix in ("", "-wal", "-shm"))
            self._files = [_File(name, _place(name)) for name in names]
            return
        for file in self._files:
            place = _place(file.path)
            if place != file.place:
                raise StoreReplacedError(
                    f"{file.path} was {'removed' if place is None else 'replaced'} while in use",
                    hint="stop stackd before you move or restore its state directory",
                )

    def _set_sync(self, raw: sqlite3.Connection, *, durable: bool) -> None:
        if durable != self._syncing:
            raw.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._syncing = durable

    async def aclose(self) -> None:
        """Let what waits commit, checkpoint, and close every connection."""
        self._closing = True
        self._arrived.set()


@dataclass(frozen=True, slots=True)
class _File:
    """A file by its name and what had that name. `place`: device and inode, None if there was none."""

    path: str
    place: tuple[int, int] | None


def _place(path: str) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)  # noqa: PTH116  # at every commit: a Path takes four times as long
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_dev, stat.st_ino


def _look_away(future: asyncio.Future[Any]) -> None:
    """Let an error in `future` be: asyncio complains of one that nobody looked at."""
    if not future.cancelled():
        future.exception()


def _closed() -> StoreError:
    return StoreError("the store is closed", code="store.closed")


def _roll_back(raw: sqlite3.Connection) -> None:
    if raw.in_transaction:
        raw.execute("ROLLBACK")


def _begin_log_anew(raw: sqlite3.Connection) -> None:
    """Bring the log into the file, if that is possible: what is written next then takes the room the log has."""
    with contextlib.suppress(sqlite3.Error):
        raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


def _apply(raw: sqlite3.Connection, member: _Member[Any]) -> None:
    """Run one change inside the open transaction."""
    tx = Tx(raw)
    member.error = None  # of an earlier try
    try:
        member.result = member.change(tx)
    except StopIteration as error:  # a future refuses to carry it
        raise RuntimeError("a change raised StopIteration") from error
    member.events = tx.events


def _apply_apart(raw: sqlite3.Connection, member: _Member[Any], path: Path) -> None:
    """Run one change inside the open transaction so that, if it fails, nothing but it is undone."""
    raw.execute("SAVEPOINT member")
    try:
        _apply(raw, member)
    except BaseException as error:
        if is_fatal(error) or not raw.in_transaction:
            raise
        raw.execute("ROLLBACK TO member")
        member.error = translate(error, path)
        member.result, member.events = None, []
    raw.execute("RELEASE member")


async def _shielded_read(reader: ThreadConnection, query: Callable[[Tx], T]) -> T:
    # The thread is busy until the query ends, cancelled or not: only then is the reader free again.
    with anyio.CancelScope(shield=True):
        found: list[T] = [await reader.run(_read, reader, query)]
    return found[0]


def _read(reader: ThreadConnection, query: Callable[[Tx], T]) -> T:
    raw = reader.raw
    raw.execute("BEGIN")
    try:
        return query(Tx(raw))
    finally:
        raw.execute("ROLLBACK")


def _prepare(
    writer: ThreadConnection, path: Path, now: float, migrations: list[Migration] | None
) -> None:
    path.chmod(0o600)
    migrate(writer.raw, path, now=now, migrations=migrations)


async def _writer(
    path: Path,
    busy_timeout: float,
    now: float,
    migrations: list[Migration] | None,
    on_busy: Callable[[StoreBusyError], Awaitable[None]] | None,
) -> ThreadConnection:
    """A connection that may write, to a store that has this code's schema. Arguments and errors: `open_database`."""
    while True:
        try:
            writer = await connect(path, busy_timeout=busy_timeout, writable=True)
            try:
                await writer.run(_prepare, writer, path, now, migrations)
            except BaseException as error:
                with anyio.CancelScope(shield=True):
                    await writer.close()
                if not isinstance(error, sqlite3.Error):
                    raise
                raise await anyio.to_thread.run_sync(translate, error, path) from error
        except StoreBusyError as error:
            if on_busy is None:
                raise
            await on_busy(error)
        else:
            return writer


@asynccontextmanager
async def open_database(
    path: Path,
    *,
    clock: Clock,
    events: EventBus,
    busy_timeout: float = 5.0,
    readers: int = 2,
    migrations: list[Migration] | None = None,
    on_busy: Callable[[StoreBusyError], Awaitable[None]] | None = None,
) -> AsyncIterator[Database]:
    """Open (creating and migrating as needed) the store at `path` for the length of the block.

    Args:
        on_busy: awaited whenever another process keeps it locked for `busy_timeout`; then it is tried again.

    Raises:
        StoreError: or a subclass: the file or folder cannot be used, and why.
    """
    opened: list[ThreadConnection] = []
    try:
        writer = await _writer(path, busy_timeout, clock.time(), migrations, on_busy)
        opened.append(writer)
        for _ in range(readers):
            opened.append(await connect(path, busy_timeout=busy_timeout, writable=False))  # noqa: PERF401
        database = Database(path, writer, opened[1:], clock=clock, events=events)
        await anyio.to_thread.run_sync(database.reserve.look)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.run_writer)
            try:
                yield database
            finally:
                await database.aclose()
    finally:
        with anyio.CancelScope(shield=True):
            for connection in reversed(opened):
                await connection.close()
