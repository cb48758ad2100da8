"""Looks at the store's file before SQLite opens it: what is not ours is refused and stays as it is."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from stackd.core.errors import StoreCorruptError, StoreError, StoreFailedError, StoreFullError

APPLICATION_ID = 0x73746B64  # "stkd"; marks the file as ours

# https://www.sqlite.org/fileformat2.html#the_database_header
_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\0"
_APPLICATION_ID_AT = slice(68, 72)

PATH_BYTES = 504  # SQLite's limit of 512, less what it adds for the names of its other files

_ANOTHER = "name another file with STACKD_DATABASE_URL"


def refuse_unfit(path: Path) -> None:
    """Return if a store may be opened at `path`: nothing is there, or an empty file, or a store of ours.

    A kill at the very first start leaves an empty file, but no log: SQLite would drop one unread. Call it before this process has the file open:
    closing a file gives up every lock the process holds on it (https://www.sqlite.org/howtocorrupt.html).

    Raises:
        StoreCorruptError: something else stands there.
        StoreError: it cannot be looked at, or belongs to another user.
    """
    if len(os.fsencode(path)) > PATH_BYTES:
        raise StoreError(
            f"{path} is a path of more than {PATH_BYTES} bytes, which SQLite does not open",
            code="store.read_only",
            hint="set a shorter STACKD_STATE_DIR",
        )
    try:
        log = _lstat(
            path.with_name(f"{path.name}-wal")
        )  # first: another start makes the file before it
        found = _lstat(path)
        if found is not None:
            _refuse_odd_kind_or_owner(path, found)
        header = _read_header(path) if found is not None else b""
    except OSError as error:
        raise unusable(path, error) from error
    if not header and log is not None and log.st_size > 0:
        raise StoreCorruptError(
            f"{path} is {'missing' if found is None else 'empty'}, but its log {path.name}-wal is not",
            hint="restore a backup in the place of both, or move both away to start empty",
        )
    if not any(header):
        return  # nothing, or a power cut in the first commit: SQLite undoes that, or refuses the file
    if not header.startswith(_MAGIC):
        raise StoreCorruptError(
            f"{path} is not an SQLite database",
            hint="restore a backup, or move the file away to start empty",
        )
    if header[_APPLICATION_ID_AT] != APPLICATION_ID.to_bytes(4, "big"):
        raise StoreCorruptError(f"{path} is a database of another program", hint=_ANOTHER)


def unusable(path: Path, error: OSError) -> StoreError:
    """What `error` of the operating system says about `path`, in the words of `core.errors`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(
            f"no space left for {path}", hint="free disk space; nothing was half-written"
        )
    if error.errno == errno.EIO:
        return StoreFailedError(f"input/output error on {path}")
    return StoreError(
        f"{path} cannot be used: {error.strerror}",
        code="store.read_only",
        hint="check the state directory's owner, mode and mount",
    )


def _refuse_odd_kind_or_owner(path: Path, found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise StoreCorruptError(
            f"{path} is a symbolic link", hint="name the file itself with STACKD_DATABASE_URL"
        )
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise StoreCorruptError(f"{path} is {kind}", hint=f"move it away, or {_ANOTHER}")
    if found.st_uid != os.geteuid():
        raise StoreError(
            f"{path} belongs to another user (uid {found.st_uid})",
            code="store.read_only",
            hint="change its owner to the user stackd runs as, or run stackd as its owner",
        )


def _read_header(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        return file.read(_HEADER_BYTES)


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None
