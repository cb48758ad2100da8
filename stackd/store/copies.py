"""Whole copies of a store: taken of one in use, and judged before one takes its place.

What is copied is one snapshot, read beside whoever writes: nobody waits for it, only the log grows meanwhile. All of
this waits for the disk: it is for a process of its own, or a thread.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stackd.core.errors import StoreCorruptError, StoreError
from stackd.store.connection import Tx, translate, uri
from stackd.store.file import APPLICATION_ID
from stackd.store.migrations import schema_of

STEP_PAGES = 1024  # copied at a time, 4 MiB: then it is told how far it is
BUSY_SECONDS = 5.0  # to wait for a lock of others

_REFERRED_BLOBS = "SELECT id, bytes FROM blobs WHERE refs > 0 ORDER BY id"


class Snapshot:
    """A store as it is at one moment, for as long as it is open."""

    def __init__(self, raw: sqlite3.Connection, path: Path) -> None:
        self._raw = raw
        self._path = path

    @property
    def size(self) -> int:
        """Bytes that a copy takes."""
        ((pages,),) = self._raw.execute("PRAGMA page_count")
        ((size,),) = self._raw.execute("PRAGMA page_size")
        return int(pages * size)

    @property
    def schema(self) -> int:
        """Raises SchemaError if this code does not know it."""
        return schema_of(self._raw, self._path)

    @property
    def tx(self) -> Tx:
        """Only for reading."""
        return Tx(self._raw)

    def blobs(self) -> dict[str, int]:
        """The blobs that executions refer to, and how large each is."""
        return dict(self._raw.execute(_REFERRED_BLOBS))

    def copy_to(self, target: Path, *, advance: Callable[[int], None]) -> None:
        """Write the store to `target`, an empty file. `advance` is told of each so many bytes.

        Each step is synced: a gigabyte that waits to be written would make others' commits wait for all of it.
        """
        size, left = self.size, 0

        def tell(_: int, remaining: int, total: int) -> None:
            nonlocal left
            os.fdatasync(file.fileno())
            pages = max(total, 1)  # none, if nothing could be written
            advance((left or total) * size // pages - remaining * size // pages)
            left = remaining

        with (
            target.open("rb") as file,
            _errors(target),
            contextlib.closing(_open(uri(target, "rw"))) as copy,
        ):
            copy.execute("PRAGMA journal_mode=OFF")  # a copy that fails is thrown away
            copy.execute("PRAGMA synchronous=OFF")
            self._raw.backup(copy, pages=STEP_PAGES, progress=tell)


@contextmanager
def snapshot(path: Path) -> Iterator[Snapshot]:
    """The store at `path` as it is now, whoever uses it.

    Raises:
        StoreError: or a subclass: it cannot be read.
    """
    with _errors(path), contextlib.closing(_open(uri(path, "ro"))) as raw:
        raw.execute("BEGIN")
        raw.execute(
            "SELECT 1 FROM sqlite_schema LIMIT 1"
        ).fetchone()  # from here on it stands still
        yield Snapshot(raw, path)


def judge(path: Path) -> tuple[int, dict[str, int]]:
    """The schema of a copy that nobody uses, and the blobs that it refers to, with their sizes.

    Raises:
        SchemaError: this code does not know its schema.
        StoreCorruptError: it is no whole store of ours.
    """
    with _errors(path), contextlib.closing(_open(f"{uri(path, 'ro')}&immutable=1")) as raw:
        if raw.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
            raise StoreCorruptError(f"{path.name} is a database of another program")
        found = Snapshot(raw, path)
        schema = found.schema
        for check in ("PRAGMA integrity_check(1)", "PRAGMA foreign_key_check"):
            wrong = raw.execute(check).fetchone()
            if wrong not in (None, ("ok",)):
                raise StoreCorruptError(f"{path.name} is not sound: {wrong[0]}")
        return schema, found.blobs()


def disown(path: Path) -> None:
    """Let a copy that nobody uses know of no process: those that it knows of work on what it is a copy of.

    What they had in hand is taken back by whoever opens it, as from the dead.

    Raises:
        StoreError: or a subclass.
    """
    with _errors(path), contextlib.closing(_open(uri(path, "rw"))) as raw:
        raw.execute("PRAGMA journal_mode=DELETE").fetchone()  # all of it stays in one file
        raw.execute("DELETE FROM processes")


def is_readable(path: Path) -> bool:
    """Whether a store can be read at all."""
    with contextlib.suppress(StoreError), snapshot(path):
        return True
    return False


def fold_log(path: Path) -> None:
    """Bring the log of a store that nobody uses into its file, and remove it, if that is possible."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_open(uri(path, "rw"))) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def _open(place: str) -> sqlite3.Connection:
    return sqlite3.connect(place, uri=True, isolation_level=None, timeout=BUSY_SECONDS)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        found = translate(error, path)
        assert isinstance(found, StoreError)  # noqa: S101  # what is SQLite's becomes one
        raise found from error
