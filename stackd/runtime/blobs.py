"""Bodies that are no text, kept as files named by their SHA-256 beside the store."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from pathlib import Path

import anyio

from stackd.core.errors import NotFoundError, StoreError, StoreFullError


class BlobFolder:
    """Content-addressed files under `folder`; writing the same content twice keeps one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, content: bytes) -> str:
        """Keep `content`, synced to disk; its id (64 hex digits).

        Raises:
            StoreFullError: no space is left for it.
            StoreError: the folder cannot be written.
        """
        try:
            return await anyio.to_thread.run_sync(self._put, content)
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

    def _put(self, content: bytes) -> str:
        blob_id = hashlib.sha256(content).hexdigest()
        path = self._path(blob_id)
        if path.exists():
            return blob_id
        for folder in (self._folder, path.parent):
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
                _sync(folder.parent)
        partial = path.with_name(f"{blob_id}.{secrets.token_hex(4)}.partial")
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync(path.parent)
        return blob_id

    def _get(self, blob_id: str) -> bytes:
        if len(blob_id) != 64 or not set(blob_id) <= set("0123456789abcdef"):
            raise NotFoundError(f"no blob {blob_id!r}", code="blob.not_found")
        try:
            return self._path(blob_id).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"no blob {blob_id!r}", code="blob.not_found") from None


def _sync(folder: Path) -> None:
    """Let the names in `folder` survive a power cut too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
