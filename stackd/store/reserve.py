"""Disk space set aside for the day the disk is full: what ends work and makes room can then still write.

A file beside the store holds it. Freed, it stays as an empty file, so that a restart and other processes know
too: until it is made again nothing new should be taken in, or that would use up what is meant for the rest.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

RESERVE_BYTES = 16 * 1024 * 1024
ROOM_BYTES = 2 * RESERVE_BYTES  # free before it is made: it must not fill the disk by itself


class Reserve:
    """The reserve of the store at `path`. Its methods wait for the disk: call them on a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.reserve")
        self._partial = path.with_name(f"{path.name}.reserve.partial")
        self._is_spent = False

    @property
    def is_spent(self) -> bool:
        """Whether, when last looked at, it had been freed and not made again. One never made is not spent."""
        return self._is_spent

    def look(self) -> bool:
        """`is_spent` as it is now, whichever process freed or made it."""
        self._is_spent = self._size() == 0
        return self._is_spent

    def free(self) -> bool:
        """Give the space to whoever needs it; False if there was none left."""
        size = self._size()
        if size:
            with contextlib.suppress(OSError):
                os.truncate(self.path, 0)
        self.look()
        return bool(size) and self._is_spent

    def make(self) -> bool:
        """Set the space aside if there is room for it and as much again; whether it now is.

        Only one process may do this: whoever holds the role of the scheduler.
        """
        if not self._size():
            with contextlib.suppress(OSError):  # no room after all: the next round tries again
                try:
                    self._allocate()
                finally:
                    self._partial.unlink(missing_ok=True)
        self.look()
        return bool(self._size())

    def _size(self) -> int | None:
        """None: it was never made."""
        try:
            return self.path.lstat().st_size
        except OSError:
            return None

    def _allocate(self) -> None:
        self._partial.unlink(missing_ok=True)  # left by a kill; the reserve is what it was
        disk = os.statvfs(self.path.parent)
        if disk.f_bavail * disk.f_frsize < ROOM_BYTES:
            return
        descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        finally:
            os.close(descriptor)
        self._partial.rename(self.path)
