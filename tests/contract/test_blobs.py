"""What any keeper of blobs holds: content by its hash, whole or not at all."""

from __future__ import annotations

import hashlib
import resource
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from stackd.core.errors import NotFoundError, StoreFullError
from stackd.runtime.blobs import BlobFolder

CONTENTS = [b"", b"x", bytes(range(256)) * 1000]
ABSENT = hashlib.sha256(b"never kept").hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def blobs(folder: Path) -> BlobFolder:
    return BlobFolder(folder)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """The kernel refuses to grow any file past `size` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("content", CONTENTS, ids=len)
async def test_what_was_put_is_got_under_its_sha256(blobs: BlobFolder, content: bytes) -> None:
    blob_id = await blobs.put(content)

    assert blob_id == hashlib.sha256(content).hexdigest()
    assert await blobs.get(blob_id) == content


async def test_a_blob_is_there_for_the_next_process(folder: Path) -> None:
    blob_id = await BlobFolder(folder).put(b"kept")

    assert await BlobFolder(folder).get(blob_id) == b"kept"


async def test_the_same_content_is_kept_once(blobs: BlobFolder, folder: Path) -> None:
    assert await blobs.put(b"same") == await blobs.put(b"same")
    assert len(files(folder)) == 1


async def test_puts_of_the_same_content_at_the_same_time_do_not_meet(
    blobs: BlobFolder, folder: Path
) -> None:
    content = b"y" * 100_000
    ids: list[str] = []

    async def put() -> None:
        ids.append(await blobs.put(content))

    async with anyio.create_task_group() as tasks:
        for _ in range(16):
            tasks.start_soon(put)

    assert ids == [hashlib.sha256(content).hexdigest()] * 16
    assert len(files(folder)) == 1
    assert await blobs.get(ids[0]) == content


async def test_contents_that_share_the_start_of_their_id_live_side_by_side(
    blobs: BlobFolder,
) -> None:
    by_start: dict[str, list[bytes]] = defaultdict(list)
    for number in range(257):  # one more than there are starts
        content = str(number).encode()
        by_start[hashlib.sha256(content).hexdigest()[:2]].append(content)
    together = next(contents for contents in by_start.values() if len(contents) > 1)

    ids = [await blobs.put(content) for content in together]

    assert [await blobs.get(blob_id) for blob_id in ids] == together


@pytest.mark.parametrize(
    "blob_id",
    [ABSENT, "", "0", ABSENT[:-1], ABSENT + "0", ABSENT.upper(), "../" * 20 + "etc", "g" * 64,
     "/" * 64, "\0" * 64, "\N{ARABIC-INDIC DIGIT ZERO}" * 64],
    ids=repr,
)  # fmt: skip
async def test_what_was_never_put_is_not_found(blobs: BlobFolder, blob_id: str) -> None:
    await blobs.put(b"something else")

    with pytest.raises(NotFoundError) as caught:
        await blobs.get(blob_id)

    assert caught.value.code == "blob.not_found"


async def test_nobody_else_may_read_a_blob(blobs: BlobFolder, folder: Path) -> None:
    await blobs.put(b"private")

    (path,) = files(folder)
    assert path.parent.stat().st_mode & 0o077 == 0


async def test_what_a_killed_put_left_is_no_blob_and_hinders_no_later_one(
    blobs: BlobFolder, folder: Path
) -> None:
    content = b"whole"
    blob_id = hashlib.sha256(content).hexdigest()
    (folder / blob_id[:2]).mkdir(parents=True)
    (folder / blob_id[:2] / f"{blob_id}.0a0a0a0a.partial").write_bytes(b"who")

    with pytest.raises(NotFoundError):
        await blobs.get(blob_id)
    assert await blobs.put(content) == blob_id
    assert await blobs.get(blob_id) == content


async def test_a_put_that_failed_can_be_repeated(blobs: BlobFolder) -> None:
    content = b"z" * 100_000

    with no_file_over(50_000), pytest.raises(StoreFullError):
        await blobs.put(content)

    with pytest.raises(NotFoundError):
        await blobs.get(hashlib.sha256(content).hexdigest())
    assert await blobs.get(await blobs.put(content)) == content


async def test_a_put_that_failed_leaves_no_file(blobs: BlobFolder, folder: Path) -> None:
    with no_file_over(50_000), pytest.raises(StoreFullError):
        await blobs.put(b"z" * 100_000)

    assert files(folder) == []


# -- staged


async def test_what_was_staged_and_dropped_leaves_nothing(blobs: BlobFolder, folder: Path) -> None:
    staged = [await blobs.stage(content) for content in CONTENTS]

    await blobs.drop(staged)

    assert files(folder) == []
    for one in staged:
        with pytest.raises(NotFoundError):
            await blobs.get(one.id)


async def test_what_was_staged_and_kept_is_as_if_it_had_been_put(
    blobs: BlobFolder, folder: Path
) -> None:
    staged = [await blobs.stage(content) for content in CONTENTS]

    await blobs.keep(staged)

    assert {path.name for path in files(folder)} == {one.id for one in staged}
    assert [await blobs.put(content) for content in CONTENTS] == [one.id for one in staged]
    assert [await blobs.get(one.id) for one in staged] == CONTENTS


async def test_what_was_staged_is_found_by_who_refers_to_it_though_nobody_could_keep_it(
    folder: Path,
) -> None:
    staged = await BlobFolder(folder).stage(b"referred to, then killed")

    assert await BlobFolder(folder).get(staged.id) == b"referred to, then killed"


@pytest.mark.parametrize("kept_first", [True, False])
async def test_dropping_one_takes_nothing_from_who_staged_the_same(
    blobs: BlobFolder, kept_first: bool
) -> None:
    one, other = await blobs.stage(b"same"), await blobs.stage(b"same")

    if kept_first:
        await blobs.keep([one])
        await blobs.drop([other])
    else:
        await blobs.drop([other])
        await blobs.keep([one])

    assert await blobs.get(one.id) == b"same"


async def test_dropping_what_was_there_before_takes_nothing(blobs: BlobFolder) -> None:
    blob_id = await blobs.put(b"same")
    staged = await blobs.stage(b"same")

    await blobs.drop([staged])

    assert (staged.id, await blobs.get(blob_id)) == (blob_id, b"same")


async def test_a_staging_that_failed_leaves_no_file(blobs: BlobFolder, folder: Path) -> None:
    with no_file_over(50_000), pytest.raises(StoreFullError):
        await blobs.stage(b"z" * 100_000)

    assert files(folder) == []
