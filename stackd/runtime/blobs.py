"""Bodies that are no text, kept as files named by their SHA-256 beside the store."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio

from stackd.core.errors import NotFoundError, StoreError, StoreFullError

T = TypeVar("T")

Content = bytes | bytearray


@dataclass(frozen=True, slots=True)
class Staged:
    """Content on disk under a name of its own, that of its place to be, and more; None: it is there already."""

    id: str
    path: Path | None


class BlobFolder:
    """Content-addressed files under `folder`; writing the same content twice keeps one.

    Nothing that stands in its place is ever removed: others may refer to it. What may yet be refused is
    staged first, and put in its place or dropped once that is known. Killed in between, a staged file that
    somebody refers to is found under its longer name.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, content: bytes) -> str:
        """Keep `content`, synced to disk; its id (64 hex digits).

        Raises:
            StoreFullError: no space is left for it.
            StoreError: the folder cannot be written.
        """
        return await self._on_thread(self._put, content)

    async def stage(self, content: Content) -> Staged:
        """Write `content`, synced to disk, so that it can be referred to; `keep` or `drop` it then.

        Raises:
            StoreFullError, StoreError: as `put`.
        """
        return await self._on_thread(self._stage, content)

    async def keep(self, staged: Sequence[Staged]) -> None:
        """Put what was staged in its place: it has been referred to."""
        if staged:
            await anyio.to_thread.run_sync(self._keep, staged)

    async def drop(self, staged: Sequence[Staged]) -> None:
        """Remove what was staged: it will not be referred to."""
        if staged:
            await anyio.to_thread.run_sync(self._drop, staged)

    async def _on_thread(self, write: Callable[[Content], T], content: Content) -> T:
        try:
            return await anyio.to_thread.run_sync(write, content)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            kind = StoreFullError if full else StoreError
            raise kind(f"{self._folder} cannot be written: {error.strerror}") from error

    async def get(self, blob_id: str) -> bytes:
        """The content.

        Raises:
            NotFoundError: no such blob.
        """
        return await anyio.to_thread.run_sync(self._get, blob_id)

    def _path(self, blob_id: str) -> Path:
        return self._folder / blob_id[:2] / blob_id

    def _put(self, content: Content) -> str:
        staged = self._stage(content)
        if staged.path is not None:
            staged.path.rename(self._path(staged.id))
            _sync(staged.path.parent)
        return staged.id

    def _stage(self, content: Content) -> Staged:
        blob_id = hashlib.sha256(content).hexdigest()
        path = self._path(blob_id)
        if path.exists():
            return Staged(blob_id, None)
        for folder in (self._folder, path.parent):
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
                _sync(folder.parent)
        name = f"{blob_id}.{secrets.token_hex(4)}"
        partial, staged = path.with_name(f"{name}.partial"), path.with_name(f"{name}.staged")
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(staged)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync(path.parent)
        return Staged(blob_id, staged)

    def _keep(self, staged: Sequence[Staged]) -> None:
        for one in staged:
            if one.path is not None:
                with contextlib.suppress(OSError):  # it is found where it is, too
                    one.path.rename(self._path(one.id))

    def _drop(self, staged: Sequence[Staged]) -> None:
        for one in staged:
            if one.path is not None:
                with contextlib.suppress(OSError):  # it only takes space
                    one.path.unlink()

    def _get(self, blob_id: str) -> bytes:
        if len(blob_id) != 64 or not set(blob_id) <= set("0123456789abcdef"):
            raise NotFoundError(f"no blob {blob_id!r}", code="blob.not_found")
        for path in self._places(blob_id):
            with contextlib.suppress(FileNotFoundError):
                return path.read_bytes()
        raise NotFoundError(f"no blob {blob_id!r}", code="blob.not_found")

    def _places(self, blob_id: str) -> Iterator[Path]:
        path = self._path(blob_id)
        yield path
        yield from path.parent.glob(f"{blob_id}.*.staged")
        yield path  # perhaps it has just been put there


def _sync(folder: Path) -> None:
    """Let the names in `folder` survive a power cut too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
