"""What became of blobs."""

from __future__ import annotations

from pathlib import Path

from stackd.runtime.blobs import BlobFolder


async def content_of(blobs: BlobFolder, blob_id: str) -> bytes:
    async with blobs.open(blob_id) as blob:
        return await blob.read_at(0, blob.size)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
