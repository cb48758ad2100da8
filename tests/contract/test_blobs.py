"""Blobs: content by its hash, whole or not at all, for as long as an execution refers to it, within a budget."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from itertools import takewhile
from pathlib import Path

import anyio
import pytest
from support.blobs import content_of, files
from support.flows import SET, flow
from support.held import held
from support.runs import World

from stackd.core.clock import SystemClock
from stackd.core.errors import BlobBudgetError, NotFoundError, StoreFullError, TooLargeError
from stackd.core.events import EventBus
from stackd.core.json import dumps, loads
from stackd.runtime.blobs import FOLDERS_SWEPT, STEP, BlobFolder, BlobLimits
from stackd.store.connection import Tx
from stackd.store.database import Database, open_database
from stackd.store.migrations import known_migrations
from stackd.workflows import blobs as known_blobs

MIB = 1024 * 1024
CONTENTS = [b"", b"x", bytes(range(256)) * 1000]
ABSENT = hashlib.sha256(b"never kept").hexdigest()
HOUR = 3600.0
EVER = 1e12  # later than anything in these tests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
async def world(database: Database) -> World:
    world = World(database)
    await world.load(flow(SET("a", v="1")))
    return world


@pytest.fixture
def blobs(folder: Path, world: World) -> BlobFolder:
    return blobs_of(folder, world)


def blobs_of(
    folder: Path, world: World, *, one: int = 8 * MIB, of_all: int = 64 * MIB
) -> BlobFolder:
    limits = BlobLimits(one, of_all)
    return BlobFolder(folder, world.store, clock=world.clock, limits=limits)


async def is_there(blobs: BlobFolder, blob_id: str) -> bool:
    try:
        await content_of(blobs, blob_id)
    except NotFoundError:
        return False
    return True


async def collect(blobs: BlobFolder, *, before: float = EVER) -> int:
    return await blobs.collect(before=before, limit=100)


async def sweep(blobs: BlobFolder, *, before: float = EVER) -> int:
    """One walk over all folders."""
    return sum([await blobs.sweep(before=before) for _ in range(-(-257 // FOLDERS_SWEPT))])


async def remove(world: World, execution_id: str) -> None:
    await world.store.write(
        lambda tx: tx.execute("DELETE FROM executions WHERE id = ?", (execution_id,))
    )


async def totals(store: Database) -> tuple[int, int]:
    found = await store.read(known_blobs.totals)
    return found.count, found.bytes


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
    assert await content_of(blobs, blob_id) == content


async def test_a_blob_is_there_for_the_next_process(folder: Path, world: World) -> None:
    blob_id = await blobs_of(folder, world).put(b"kept")

    assert await content_of(blobs_of(folder, world), blob_id) == b"kept"


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
    assert await content_of(blobs, ids[0]) == content


async def test_contents_that_share_the_start_of_their_id_live_side_by_side(
    blobs: BlobFolder,
) -> None:
    by_start: dict[str, list[bytes]] = defaultdict(list)
    for number in range(257):  # one more than there are starts
        content = str(number).encode()
        by_start[hashlib.sha256(content).hexdigest()[:2]].append(content)
    together = next(contents for contents in by_start.values() if len(contents) > 1)

    ids = [await blobs.put(content) for content in together]

    assert [await content_of(blobs, blob_id) for blob_id in ids] == together


@pytest.mark.parametrize(
    "blob_id",
    [ABSENT, "", "0", ABSENT[:-1], ABSENT + "0", ABSENT.upper(), "../" * 20 + "etc", "g" * 64,
     "/" * 64, "\0" * 64, "\N{ARABIC-INDIC DIGIT ZERO}" * 64],
    ids=repr,
)  # fmt: skip
async def test_what_was_never_put_is_not_found(blobs: BlobFolder, blob_id: str) -> None:
    await blobs.put(b"something else")

    with pytest.raises(NotFoundError) as caught:
        await content_of(blobs, blob_id)

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
        await content_of(blobs, blob_id)
    assert await blobs.put(content) == blob_id
    assert await content_of(blobs, blob_id) == content


async def test_a_put_that_failed_can_be_repeated(blobs: BlobFolder) -> None:
    content = b"z" * 4 * MIB

    with no_file_over(2 * MIB), pytest.raises(StoreFullError):
        await blobs.put(content)

    with pytest.raises(NotFoundError):
        await content_of(blobs, hashlib.sha256(content).hexdigest())
    assert await content_of(blobs, await blobs.put(content)) == content


async def test_a_put_that_failed_leaves_nothing(
    blobs: BlobFolder, folder: Path, world: World
) -> None:
    with no_file_over(2 * MIB), pytest.raises(StoreFullError):
        await blobs.put(b"z" * 4 * MIB)

    assert files(folder) == []
    assert await totals(world.store) == (0, 0)


async def test_what_is_read_stays_the_same_whatever_happens_to_its_file(
    blobs: BlobFolder, world: World
) -> None:
    blob_id = await blobs.put(b"read on")

    async with blobs.open(blob_id) as blob:
        assert await collect(blobs) == 1
        assert await blob.read_at(5, 100) == b"on"

    with pytest.raises(OSError, match="closed"):  # its number may be another file's by now
        await blob.read_at(0, 1)


# -- content that comes in pieces


@pytest.mark.parametrize("size", [0, 1, STEP - 1, STEP, 5 * STEP + 1])
async def test_what_came_in_pieces_is_as_if_it_had_been_put(
    blobs: BlobFolder, folder: Path, size: int
) -> None:
    content = os.urandom(size)

    async with aclosing(blobs.receive()) as incoming:
        for at in range(0, size, 100_000):
            incoming.add(content[at : at + 100_000])
            if incoming.is_heavy:
                await incoming.spill()
        blob_id = await incoming.keep()

    assert blob_id == hashlib.sha256(content).hexdigest()
    assert await content_of(blobs, blob_id) == content
    assert [path.name for path in files(folder)] == [blob_id]


async def test_what_came_in_pieces_and_was_not_kept_leaves_nothing(
    blobs: BlobFolder, folder: Path, world: World
) -> None:
    async with aclosing(blobs.receive()) as incoming:
        incoming.add(b"z" * STEP)
        await incoming.spill()
        assert len(files(folder)) == 1

    assert files(folder) == []
    assert await totals(world.store) == (0, 0)


async def test_pieces_that_found_no_space_are_written_once_there_is_some(blobs: BlobFolder) -> None:
    content = os.urandom(3 * MIB)

    async with aclosing(blobs.receive()) as incoming:
        incoming.add(content)
        with no_file_over(2 * MIB):
            for _ in range(2):
                with pytest.raises(StoreFullError):
                    await incoming.spill()
        await incoming.spill()
        blob_id = await incoming.keep()

    assert await content_of(blobs, blob_id) == content


# -- limits


async def test_a_blob_over_the_limit_is_refused_before_anything_is_kept(
    folder: Path, world: World
) -> None:
    blobs = blobs_of(folder, world, one=10)

    assert await blobs.put(b"z" * 10)
    with pytest.raises(TooLargeError) as put:
        await blobs.put(b"z" * 11)
    async with aclosing(blobs.receive()) as incoming:
        incoming.add(b"z" * 6)
        with pytest.raises(TooLargeError) as added:
            incoming.add(b"z" * 6)

    assert (put.value.code, added.value.code) == ("blob.too_large", "blob.too_large")
    assert await totals(world.store) == (1, 10)


async def test_all_blobs_together_keep_to_their_budget_and_what_is_there_may_come_again(
    folder: Path, world: World
) -> None:
    blobs = blobs_of(folder, world, of_all=2 * STEP)
    first = await blobs.put(b"a" * STEP)
    await blobs.put(b"b" * STEP)

    with pytest.raises(BlobBudgetError):
        await blobs.put(b"c")
    async with aclosing(blobs.receive()) as incoming:
        incoming.add(b"d" * STEP)
        await incoming.spill()
        with pytest.raises(BlobBudgetError):
            await incoming.keep()
    again = await blobs.put(b"a" * STEP)

    assert again == first
    assert len(files(folder)) == 2
    assert await collect(blobs) == 2
    assert await blobs.put(b"c")


async def test_while_the_reserve_of_the_disk_is_in_use_no_blob_takes_of_it(
    blobs: BlobFolder, folder: Path, world: World
) -> None:
    reserve = world.store.reserve
    await anyio.to_thread.run_sync(reserve.make)
    await anyio.to_thread.run_sync(reserve.free)

    with pytest.raises(StoreFullError):
        await blobs.put(b"content")
    async with aclosing(blobs.receive()) as incoming:
        incoming.add(b"z" * STEP)
        with pytest.raises(StoreFullError):
            await incoming.spill()
        assert (files(folder), await totals(world.store)) == ([], (0, 0))

        await anyio.to_thread.run_sync(reserve.make)
        await incoming.spill()
        assert await incoming.keep()


# -- who refers to a blob


async def test_a_blob_stays_for_as_long_as_an_execution_refers_to_it(
    blobs: BlobFolder, world: World
) -> None:
    blob_id = await blobs.put(b"kept")
    one, other = [await world.start("x", {"deep": [{"$blob": blob_id}]}) for _ in range(2)]

    assert await collect(blobs) == 0
    await remove(world, one)
    assert await collect(blobs) == 0
    await remove(world, other)
    assert await collect(blobs) == 1
    assert not await is_there(blobs, blob_id)
    assert await totals(world.store) == (0, 0)


async def test_a_blob_that_nothing_refers_to_stays_until_its_time_is_over(
    blobs: BlobFolder, world: World
) -> None:
    began = world.clock.time()
    blob_id = await blobs.put(b"new")
    world.clock.advance(HOUR)
    await blobs.put(b"new")  # again: as new as ever

    assert await collect(blobs, before=began + HOUR) == 0
    assert await is_there(blobs, blob_id)
    assert await collect(blobs, before=began + HOUR + 1) == 1


async def test_an_output_refers_to_the_blobs_in_it(blobs: BlobFolder, world: World) -> None:
    blob_id = await blobs.put(b"answered")
    done = await world.run(
        flow(SET("a", v=f"{{$blob: {blob_id}}}"), edges="{from: start, to: a}").replace(
            "id: x", "id: gives"
        )
    )

    assert await collect(blobs) == 0
    await remove(world, done)
    assert await collect(blobs) == 1


async def test_what_a_called_workflow_gave_is_referred_to_by_its_caller(
    blobs: BlobFolder, world: World
) -> None:
    blob_id = await blobs.put(b"handed on")
    await world.load(
        flow(
            SET("a", v=f"{{$blob: {blob_id}}}"),
            edges="{from: start, to: a}",
        ).replace("id: x", "id: callee")
    )
    caller = await world.start(
        await world.load(
            flow(
                "{id: c, type: action.workflow.run, params: {workflowId: callee}}",
                edges="{from: start, to: c}",
            ).replace("id: x", "id: caller")
        )
    )
    for _ in range(3):  # the caller begins, the called one runs, the caller goes on
        await world.work()
    rows = await world.store.read(lambda tx: tx.rows("SELECT id FROM executions WHERE parent > 0"))
    (called,) = [row[0] for row in rows]

    await remove(world, called)

    assert loads((await world.row(caller)).output or b"") == {"v": {"$blob": blob_id}}
    assert await collect(blobs) == 0
    await remove(world, caller)
    assert await collect(blobs) == 1


async def test_json_as_it_was_sent_refers_too(blobs: BlobFolder, world: World) -> None:
    blob_id = await blobs.put(b"kept")
    seq = (await world.row(await world.start("x"))).seq
    text = b'{ "$blob" :\n "%s" }' % blob_id.encode()

    await world.store.write(lambda tx: known_blobs.refer(tx, seq, (None, b"1", text, text)))

    assert await collect(blobs) == 0


async def test_an_id_that_is_not_known_refers_to_nothing(blobs: BlobFolder, world: World) -> None:
    await world.start("x", {"$blob": ABSENT, "other": {"$blob": "no id"}, "one": {"$blob": 1}})
    later = await blobs.put(b"never kept")

    assert later == ABSENT
    assert await collect(blobs) == 1


async def test_a_row_for_each_of_many_references_is_written_at_once(
    blobs: BlobFolder, world: World
) -> None:
    ids = [await blobs.put(b"%d" % number) for number in range(200)]

    await world.start("x", [{"$blob": blob_id} for blob_id in ids * 2])

    assert await world.store.read(lambda tx: tx.one("SELECT count(*) FROM blob_refs")) == (200,)
    assert await collect(blobs) == 0


# -- what was put for nothing


async def test_what_was_dropped_leaves_nothing(
    blobs: BlobFolder, folder: Path, world: World
) -> None:
    ids = [await blobs.put(content) for content in CONTENTS]

    await blobs.drop(ids)

    assert files(folder) == []
    assert await totals(world.store) == (0, 0)


async def test_dropping_takes_nothing_from_who_put_or_refers_to_the_same(
    blobs: BlobFolder, world: World
) -> None:
    shared, referred = await blobs.put(b"shared"), await blobs.put(b"referred to")
    await blobs.put(b"shared")
    await world.start("x", {"$blob": referred})

    await blobs.drop([shared, referred])

    assert await is_there(blobs, shared)
    assert await is_there(blobs, referred)


# -- beside others


async def test_a_put_beside_its_collection_waits_for_it_and_writes_the_file_again(
    blobs: BlobFolder, folder: Path, world: World, database: Database
) -> None:
    same = await blobs.put(b"same")
    removed, go_on = threading.Event(), threading.Event()

    def collected(tx: Tx) -> None:
        blobs.take_unused(tx, before=EVER, limit=10)
        removed.set()
        go_on.wait(10)

    async with held(
        open_database(database.path, clock=world.clock, events=EventBus(), busy_timeout=10)
    ) as elsewhere:
        other = BlobFolder(folder, elsewhere, clock=world.clock, limits=BlobLimits(MIB, MIB))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.write, collected)
            await anyio.to_thread.run_sync(removed.wait)
            assert not await is_there(other, same)  # taken away, and not committed yet
            tasks.start_soon(other.put, b"same")
            await anyio.to_thread.run_sync(go_on.set)

        assert await content_of(other, same) == b"same"
        assert await totals(elsewhere) == (1, 4)


async def test_a_put_before_its_collection_is_not_collected(
    blobs: BlobFolder, world: World
) -> None:
    blob_id = await blobs.put(b"same")
    world.clock.advance(HOUR)

    # As `put` begins: from here on it counts as new, though its file is not looked at yet.
    now = world.clock.time()
    await world.store.write(partial(known_blobs.note, blob_id=blob_id, size=4, now=now, limit=MIB))

    assert await collect(blobs, before=now) == 0
    assert await content_of(blobs, blob_id) == b"same"


async def test_a_collection_that_is_undone_leaves_a_blob_that_can_be_put(
    blobs: BlobFolder, world: World
) -> None:
    blob_id = await blobs.put(b"same")

    def fails(tx: Tx) -> None:
        blobs.take_unused(tx, before=EVER, limit=10)
        raise ValueError("undone")

    with pytest.raises(ValueError, match="undone"):
        await world.store.write(fails)
    assert not await is_there(blobs, blob_id)
    assert await totals(world.store) == (1, 4)

    await blobs.put(b"same")

    assert await content_of(blobs, blob_id) == b"same"


async def test_puts_references_and_collections_of_two_processes_lose_nothing(
    folder: Path, world: World, database: Database
) -> None:
    """Each put is referred to at once; what was referred to is there, whatever was collected meanwhile."""
    async with held(
        open_database(database.path, clock=world.clock, events=EventBus(), busy_timeout=10)
    ) as elsewhere:
        mine = blobs_of(folder, world)
        other = BlobFolder(folder, elsewhere, clock=world.clock, limits=BlobLimits(MIB, MIB))
        seq = (await world.row(await world.start("x"))).seq
        done = anyio.Event()

        async def collect_on() -> None:
            while not done.is_set():
                await collect(other, before=world.clock.time() - 100)

        lost: list[int] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect_on)
            for number in range(60):
                content = b"%d" % (number % 3)
                blob_id = await mine.put(content)
                text = dumps({"$blob": blob_id})
                await database.write(lambda tx, text=text: known_blobs.refer(tx, seq, (text,)))
                if not await is_there(mine, blob_id):
                    lost.append(number)
                await database.write(lambda tx: tx.execute("DELETE FROM blob_refs"))
                world.clock.advance(101)
            done.set()

    assert lost == []


# -- what a kill leaves


async def test_files_that_the_store_does_not_know_go_once_they_are_old(
    blobs: BlobFolder, folder: Path, world: World
) -> None:
    kept = await blobs.put(b"kept")
    stray = folder / ABSENT[:2] / ABSENT
    stray.parent.mkdir(exist_ok=True)
    partial_file = folder / "0123456789abcdef.partial"
    left = [stray, partial_file, folder / kept[:2] / f"{kept}.0a0a0a0a.partial"]
    for path in left:
        path.write_bytes(b"left")
    for path in files(folder):
        os.utime(path, (1000, 1000))

    assert await sweep(blobs, before=1000) == 0
    assert await sweep(blobs, before=1001) == 3
    assert [path.name for path in files(folder)] == [kept]


async def test_a_stray_file_that_is_put_while_it_is_looked_at_stays(
    blobs: BlobFolder, folder: Path, world: World
) -> None:
    stray = folder / ABSENT[:2] / ABSENT
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"never kept")

    assert await blobs.put(b"never kept") == ABSENT
    gone = await world.store.write(lambda tx: blobs._take_strays(tx, [stray]))  # unknown when read

    assert gone == []
    assert await content_of(blobs, ABSENT) == b"never kept"


async def test_a_file_staged_by_an_earlier_version_is_found_where_it_belongs(
    blobs: BlobFolder, folder: Path
) -> None:
    blob_id = await blobs.put(b"staged")
    path = folder / blob_id[:2] / blob_id
    path.rename(path.with_name(f"{blob_id}.0a0a0a0a.staged"))

    await sweep(blobs)

    assert await content_of(blobs, blob_id) == b"staged"


@pytest.mark.crash
def test_killed_at_any_step_nothing_referred_to_is_lost_and_nothing_else_stays(
    tmp_path: Path,
) -> None:
    """Each step that touches a file is died at once; see `support/blobs_killed.py` for the story."""
    done = subprocess.run(
        [sys.executable, "-m", "support.blobs_killed", str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) >= 15  # steps


# -- files of earlier versions


async def test_an_upgrade_knows_what_executions_refer_to(tmp_path: Path) -> None:
    path, id_in, id_out = tmp_path / "old.db", "a" * 64, "b" * 64
    known = await anyio.to_thread.run_sync(known_migrations)
    before = list(takewhile(lambda migration: migration.name != "blobs", known))
    async with held(
        open_database(path, clock=SystemClock(), events=EventBus(), migrations=before)
    ) as old:
        given = dumps({"body": {"file": {"$blob": id_in, "bytes": 7}}, "$blob": "no id"})

        def change(tx: Tx) -> None:
            tx.execute(
                "INSERT INTO workflows (id, name, version, active, created_at, updated_at) VALUES ('w', 'w', 1, 1, 0, 0)"
            )
            tx.execute(
                "INSERT INTO workflow_versions (workflow_id, version, content_hash, document, created_at) VALUES ('w', 1, 'h', x'', 0)"
            )
            tx.execute(
                "INSERT INTO executions (seq, id, workflow_id, version, status, trigger_type, trigger_node,"
                " input, created_at) VALUES (1, 'e', 'w', 1, 'completed', '', '', ?, 5)",
                (given,),
            )
            tx.execute(
                "INSERT INTO node_runs (execution, key, type, status, attempt, effect, output)"
                " VALUES (1, 'n', 't', 'completed', 1, 'read', ?)",
                (dumps([{"$blob": id_out, "bytes": "many"}, {"$blob": id_in, "bytes": 7}]),),
            )

        await old.write(change)

    async with held(open_database(path, clock=SystemClock(), events=EventBus())) as new:
        rows = await new.read(lambda tx: tx.rows("SELECT id, bytes, refs FROM blobs ORDER BY id"))

        assert rows == [(id_in, 7, 1), (id_out, 0, 1)]
        assert await totals(new) == (2, 7)
