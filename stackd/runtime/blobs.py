"""Bodies that are no text, kept as files named by their SHA-256 beside the store.

The store knows of a blob before its file stands in its place, and who refers to it (`workflows/blobs.py`). One
that nothing has referred to for a while is removed, row and file in one change: that holds the write lock, so
who puts the same content at that time either is known before, and it stays, or finds no file and writes it.
Killed anywhere, what is referred to is whole, and what was left over goes in a later round of upkeep.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar, TypeVarTuple, Unpack

import anyio

from stackd.core.aside import aside_if
from stackd.core.clock import Clock
from stackd.core.errors import NotFoundError, StoreError, StoreFullError, TooLargeError
from stackd.core.files import sync_folder
from stackd.core.json import LARGE
from stackd.store.connection import Tx
from stackd.store.database import Database
from stackd.workflows import blobs as known_blobs

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

STEP = 256 * 1024  # bytes of content held in memory while it comes in or goes out
FOLDERS_SWEPT = 16  # per round of `sweep`, and no more once so many files have been seen
FILES_SWEPT = 1_000

Content = bytes | bytearray


@dataclass(frozen=True, slots=True)
class BlobLimits:
    """Bytes that one blob may take, and all together."""

    one: int
    all: int


class BlobFolder:
    """Content-addressed files under `folder`, known to `store`; the same content twice is kept once."""

    def __init__(self, folder: Path, store: Database, *, clock: Clock, limits: BlobLimits) -> None:
        self._folder = folder
        self._store = store
        self._clock = clock
        self._limits = limits
        self._swept: list[Path] = []  # what is left of the present walk over the folders

    @property
    def max_bytes(self) -> int:
        """The most that one blob may have."""
        return self._limits.one

    async def put(self, content: Content) -> str:
        """Keep `content`, synced to disk; its id (64 hex digits). It stays for a while, or as long as it is referred to.

        Raises:
            TooLargeError, BlobBudgetError: it is over a limit.
            StoreFullError: no space is left for it.
            StoreError: the folder or the store cannot be written.
        """
        self.check_size(len(content))
        blob_id = await aside_if(len(content) > LARGE, _digest, content)
        await self._note(blob_id, len(content))
        try:
            await self.on_thread(self._write, blob_id, content)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.drop([blob_id])
            raise
        return blob_id

    def receive(self) -> Incoming:
        """Content that comes in pieces. What is not kept until it is closed is gone."""
        return Incoming(self)

    async def drop(self, ids: Sequence[str]) -> None:
        """Remove what the caller has put and nobody refers to, unless it was put by others too. At worst it goes later."""

        def change(tx: Tx) -> list[Path]:
            return self._take_away(tx, known_blobs.only_put(tx, ids))[1]

        if ids:
            with contextlib.suppress(StoreError):
                await self._unlink(await self._store.write(change, durable=False))

    @asynccontextmanager
    async def open(self, blob_id: str) -> AsyncIterator[BlobFile]:
        """The content, to be read in the block, whatever happens to its file meanwhile.

        Raises:
            NotFoundError: no such blob.
        """
        file = await anyio.to_thread.run_sync(self._open, blob_id)
        try:
            yield file
        finally:
            with anyio.CancelScope(shield=True):
                await file.aclose()

    # -- upkeep

    async def collect(self, *, before: float, limit: int) -> int:
        """Remove up to `limit` blobs that nothing refers to and that were last put before `before`; how many."""
        gone, files = await self._store.write(
            lambda tx: self.take_unused(tx, before=before, limit=limit), durable=False
        )
        await self._unlink(files)
        return gone

    def take_unused(self, tx: Tx, *, before: float, limit: int) -> tuple[int, list[Path]]:
        """As `collect`, as part of a change: how many, and the files to unlink once that is committed."""
        return self._take_away(tx, known_blobs.unused(tx, before=before, limit=limit))

    def _take_away(self, tx: Tx, ids: Sequence[str]) -> tuple[int, list[Path]]:
        """Move files out of their places and forget their rows, under the write lock; undone and run again, too.

        Unlinking takes milliseconds for a large file: others would wait for the lock.
        """
        gone, files = 0, []
        for blob_id in ids:
            with contextlib.suppress(OSError):  # as long as the file is there, it is known
                with contextlib.suppress(FileNotFoundError):
                    files.append(self._path(blob_id).rename(self._nameless()))
                known_blobs.forget(tx, blob_id)
                gone += 1
        return gone, files

    async def _unlink(self, files: Sequence[Path]) -> None:
        def unlink() -> None:
            for path in files:
                with contextlib.suppress(OSError):  # swept later
                    path.unlink()

        if files:
            await anyio.to_thread.run_sync(unlink)

    async def sweep(self, *, before: float) -> int:
        """Remove files older than `before` that the store does not know of; how many. One call looks at some folders.

        They were left by a kill, or the store is an older copy.
        """
        old = await self.on_thread(self._old_files, before)
        ids = {path.name[:64] for path in old}
        if not ids:
            return 0
        seen = await self._store.read(lambda tx: known_blobs.known(tx, ids))
        strays = [path for path in old if path.name not in seen]
        if not strays:
            return 0
        files = await self._store.write(lambda tx: self._take_strays(tx, strays), durable=False)
        await self._unlink(files)
        return len(files)

    def _old_files(self, before: float) -> list[Path]:
        if not self._swept:
            self._swept = [self._folder, *(self._folder / f"{n:02x}" for n in range(256))]
        found: list[Path] = []
        for _ in range(min(FOLDERS_SWEPT, len(self._swept))):
            if len(found) >= FILES_SWEPT:
                break
            with contextlib.suppress(FileNotFoundError), os.scandir(self._swept.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        if entry.is_file() and entry.stat().st_mtime < before:
                            found.append(Path(entry.path))
        return found

    def _take_strays(self, tx: Tx, strays: Sequence[Path]) -> list[Path]:
        """What of `strays` is still unknown, moved out of its place: the files to unlink."""
        known = known_blobs.known(tx, {path.name[:64] for path in strays})
        files = []
        for path in islice(strays, FILES_SWEPT):
            place = self._path(path.name[:64])
            with contextlib.suppress(OSError):
                if path == place:
                    if path.name not in known:  # else it was put since
                        files.append(path.rename(self._nameless()))
                elif path.suffix == ".staged" and place.name in known and not place.exists():
                    path.rename(place)  # by a version that let it be found there
                else:
                    files.append(path)
        return files

    # -- writing

    def check_size(self, size: int) -> None:
        if size > self._limits.one:
            raise TooLargeError(
                f"the content is over the limit of {self._limits.one} bytes for a blob",
                code="blob.too_large",
            )

    def _refuse_if_full(self) -> None:
        reserve = self._store.reserve
        if reserve.is_spent and reserve.look():  # what room there is belongs to the store
            raise StoreFullError("the disk is full; no blob is taken in", hint="free disk space")

    async def _note(self, blob_id: str, size: int) -> None:
        if self._store.reserve.is_spent:
            await self.on_thread(self._refuse_if_full)
        now, limit = self._clock.time(), self._limits.all
        await self._store.write(
            lambda tx: known_blobs.note(tx, blob_id, size, now=now, limit=limit), durable=False
        )

    async def on_thread(self, work: Callable[[Unpack[Arguments]], T], *arguments: *Arguments) -> T:
        try:
            return await anyio.to_thread.run_sync(work, *arguments)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            kind = StoreFullError if full else StoreError
            raise kind(f"{self._folder} cannot be written: {error.strerror}") from error

    def new_partial(self) -> tuple[Path, int]:
        """A file for content whose id is not known yet; its name and descriptor."""
        self._refuse_if_full()
        self._make(self._folder)
        path = self._nameless()
        return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    async def keep_partial(self, path: Path, blob_id: str, size: int) -> None:
        """Let the file `path`, synced, be the content of `blob_id`."""
        await self._note(blob_id, size)
        await self.on_thread(self._place, path, blob_id)

    def _write(self, blob_id: str, content: Content) -> None:
        if self._path(blob_id).exists():
            return
        partial, descriptor = self.new_partial()
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self._place(partial, blob_id)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def _place(self, partial: Path, blob_id: str) -> None:
        path = self._path(blob_id)
        self._make(path.parent)
        partial.rename(path)  # over the same content, if it is there
        sync_folder(path.parent)

    def _make(self, folder: Path) -> None:
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
            sync_folder(folder.parent)

    def _nameless(self) -> Path:
        """A name under which a file counts for nothing: a kill may leave it behind."""
        return self._folder / f"{secrets.token_hex(8)}.partial"

    def _path(self, blob_id: str) -> Path:
        return self._folder / blob_id[:2] / blob_id

    def _open(self, blob_id: str) -> BlobFile:
        if len(blob_id) == 64 and set(blob_id) <= set("0123456789abcdef"):
            with contextlib.suppress(FileNotFoundError):
                return BlobFile(blob_id, os.open(self._path(blob_id), os.O_RDONLY))
        raise NotFoundError(f"no blob {blob_id[:100]!r}", code="blob.not_found")


class Incoming:
    """Content that comes in pieces: in memory while it is small, then in a file without a name that counts.

    `spill` and `keep` may be repeated after an error: nothing is written twice or lost.
    """

    def __init__(self, blobs: BlobFolder) -> None:
        self._blobs = blobs
        self._held = bytearray()
        self._digest = hashlib.sha256()
        self._written = 0
        self._file: tuple[Path, int] | None = None

    @property
    def size(self) -> int:
        return self._written + len(self._held)

    @property
    def is_heavy(self) -> bool:
        """Whether it is time to `spill`."""
        return len(self._held) >= STEP

    def add(self, chunk: bytes) -> None:
        """Take the next piece.

        Raises:
            TooLargeError: with it, it is over the limit of a blob.
        """
        self._blobs.check_size(self.size + len(chunk))
        self._held += chunk

    async def spill(self) -> None:
        """Bring to disk what is held in memory; errors as of `BlobFolder.put`."""
        await self._blobs.on_thread(self._spill)

    async def keep(self) -> str:
        """Keep all of it, as `BlobFolder.put` does; its id."""
        if self._file is None:
            return await self._blobs.put(self._held)
        await self._blobs.on_thread(self._finish)
        blob_id = self._digest.hexdigest()
        await self._blobs.keep_partial(self._file[0], blob_id, self.size)
        return blob_id

    async def aclose(self) -> None:
        """Let go of what was not kept."""
        if self._file is not None:
            with anyio.CancelScope(shield=True), contextlib.suppress(OSError):  # swept later
                await anyio.to_thread.run_sync(self._close, self._file)

    def _spill(self) -> None:
        if self._file is None:
            self._file = self._blobs.new_partial()
        view, at = memoryview(self._held), 0
        while at < len(view):
            at += os.pwrite(self._file[1], view[at:], self._written + at)
        self._digest.update(view)
        self._written += at
        self._held = bytearray()

    def _finish(self) -> None:
        self._spill()
        assert self._file is not None  # noqa: S101  # for the type checker
        os.fsync(self._file[1])

    def _close(self, file: tuple[Path, int]) -> None:
        os.close(file[1])
        file[0].unlink(missing_ok=True)


class BlobFile:
    """The content of a blob, opened. Who reads on after it was closed is refused: its number may be another file's."""

    def __init__(self, blob_id: str, descriptor: int) -> None:
        self.id = blob_id
        self.size = os.fstat(descriptor).st_size
        self._descriptor: int | None = descriptor
        self._lock = threading.Lock()

    async def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on."""
        return await anyio.to_thread.run_sync(self._read, offset, size)

    async def aclose(self) -> None:
        await anyio.to_thread.run_sync(self._close)

    def _read(self, offset: int, size: int) -> bytes:
        with self._lock:
            if self._descriptor is None:
                raise OSError(errno.EBADF, "the blob was closed")
            return os.pread(self._descriptor, size, offset)

    def _close(self) -> None:
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None


def _digest(content: Content) -> str:
    return hashlib.sha256(content).hexdigest()
