"""What has ended goes by age, number and bytes, the oldest first, in small steps; what is open never goes."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from support import past
from support.disk import fill, mounted
from support.runs import World

from stackd.core.clock import SystemClock
from stackd.core.errors import GoneError
from stackd.core.events import Event, EventBus
from stackd.runtime.versions import Versions
from stackd.store import space
from stackd.store.connection import Tx
from stackd.store.database import Database, open_database
from stackd.store.reserve import RESERVE_BYTES, ROOM_BYTES
from stackd.testing import FakeClock
from stackd.workflows import blobs, executions, history
from stackd.workflows.executions import ExecutionStatus
from stackd.workflows.history import BYTES, ROWS, HistoryPruned
from stackd.workflows.retention import Bounds, Retention
from stackd.workflows.retry import retry

NOW = 1_700_000_000.0
HOUR = 3600.0
MIB = 1024 * 1024
PARTS_OF = ("node_runs", "loop_items", "timers", "early_calls", "blob_refs", "going")


@pytest.fixture
async def store(database: Database) -> Database:
    await database.write(past.add_workflow)
    return database


@pytest.fixture
def told(bus: EventBus) -> list[Event]:
    heard: list[Event] = []
    bus.subscribe(heard.append, HistoryPruned)
    return heard


async def keep(store: Database, **bounds: Any) -> int:
    """As many rounds as it takes; how many executions are gone."""
    retention = Retention(store, FakeClock(NOW), Bounds(**bounds))
    return sum([await retention.round() for _ in range(2)])  # the first does one step


async def made(store: Database, make: Callable[[Tx], Any]) -> Any:
    return await store.write(make)


async def left(store: Database) -> set[int]:
    await holds(store)
    return await store.read(past.seqs)


async def holds(store: Database) -> None:
    """What is true at any time: nothing refers to what is gone, and what has ended is counted."""

    def look(tx: Tx) -> None:
        assert tx.rows("PRAGMA foreign_key_check") == []
        for table in PARTS_OF:
            assert tx.rows(f"SELECT execution FROM {table} EXCEPT SELECT seq FROM executions") == []
        assert tx.rows("SELECT parent FROM executions EXCEPT SELECT seq FROM executions") in (
            [],
            [(None,)],
        )
        ended = tx.one("SELECT count(*) FROM executions WHERE finished_at IS NOT NULL")
        assert ended == (history.count(tx),)

    await store.read(look)


async def test_what_ended_longer_ago_goes_and_what_is_open_stays_however_old(
    store: Database,
) -> None:
    def make(tx: Tx) -> tuple[set[int], set[int]]:
        old = {past.add(tx, NOW - HOUR - 1, status=status) for status in past.ENDED}
        kept = {past.add(tx, NOW - HOUR + 1, status=status) for status in past.ENDED}
        kept |= {
            past.add(tx, None, status=s) for s in ("queued", "running", "waiting", "uncertain")
        }
        return old, kept

    old, kept = await made(store, make)

    assert await keep(store, age=HOUR) == len(old)
    assert await left(store) == kept


async def test_of_too_many_the_oldest_go_in_the_order_of_their_ends(store: Database) -> None:
    ends = random.Random(7).sample(range(1000), 40)
    seqs = await made(store, lambda tx: {end: past.add(tx, NOW - end) for end in ends})

    assert await keep(store, count=15) == 25
    assert await left(store) == {seqs[end] for end in sorted(ends)[:15]}


async def test_the_oldest_go_while_the_store_takes_more_than_it_may(store: Database) -> None:
    def make(tx: Tx) -> list[int]:
        return [past.add(tx, NOW - 1000 + n, node_bytes=100_000) for n in range(100)]

    seqs = await made(store, make)
    assert await store.read(space.used_bytes) > 10_000_000

    await keep(store, bytes=5_000_000)

    kept = sorted(await left(store))
    assert 3_500_000 < await store.read(space.used_bytes) <= 5_000_000
    assert kept == seqs[-len(kept) :]


async def test_without_bounds_nothing_goes_and_nothing_is_written(store: Database) -> None:
    await made(store, lambda tx: [past.add(tx, 1.0) for _ in range(5)])
    changes = store._writer.raw.total_changes

    assert await keep(store) == 0

    assert store._writer.raw.total_changes == changes
    assert len(await left(store)) == 5


async def test_open_executions_over_a_bound_are_let_be(store: Database) -> None:
    await made(store, lambda tx: [past.add(tx, None, node_bytes=10_000) for _ in range(50)])

    assert await keep(store, bytes=1, count=1, age=1.0) == 0
    assert len(await left(store)) == 50


async def test_a_round_that_removed_something_is_one_event(
    store: Database, told: list[Event]
) -> None:
    def make(tx: Tx) -> None:
        for n in range(1500):
            past.add(tx, NOW - 2 * HOUR if n % 3 else NOW - 1.0)

    await made(store, make)
    retention = Retention(store, FakeClock(NOW), Bounds(age=HOUR, count=200))
    first = await retention.round()
    second = await retention.round()
    assert await retention.round() == 0

    assert 0 < first < 1000
    assert told == [HistoryPruned(by_age=first), HistoryPruned(by_age=1000 - first, by_count=300)]
    assert first + second == 1300


async def test_a_step_is_bounded_and_between_two_others_have_their_turn(store: Database) -> None:
    def make(tx: Tx) -> None:
        for n in range(600):
            past.add(tx, NOW - HOUR, nodes=4, node_bytes=10_000 if n % 2 else 10)

    await made(store, make)
    steps: list[tuple[int, int]] = []
    turns = 0

    def one(tx: Tx) -> bool:
        def total() -> tuple[int, int]:
            sizes = tx.rows("SELECT count(*), coalesce(sum(length(output)), 0) FROM node_runs")
            counts = tx.rows("SELECT count(*) FROM executions")
            return sizes[0][0] + counts[0][0], sizes[0][1]

        before = total()
        taken = history.take(tx, history.oldest(tx, before=NOW, limit=500))
        after = total()
        steps.append((before[0] - after[0], before[1] - after[1]))
        return bool(taken.executions)

    async def others() -> None:
        nonlocal turns
        while True:
            await store.write(lambda tx: tx.execute("SELECT 1"))
            turns += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        while await store.write(one):
            pass
        tasks.cancel_scope.cancel()

    assert max(rows for rows, _ in steps) <= ROWS
    assert max(size for _, size in steps) <= BYTES
    assert turns >= len(steps) - 2


# -- what goes with what


async def test_what_an_execution_has_called_goes_with_it_and_not_before(store: Database) -> None:
    def make(tx: Tx) -> tuple[set[int], set[int]]:
        root = past.add(tx, NOW - 2 * HOUR)
        called = [past.add(tx, NOW - 3 * HOUR, parent=root) for _ in range(3)]
        deeper = past.add(tx, NOW - 4 * HOUR, parent=called[0])
        late = past.add(tx, NOW - 1.0, parent=root)  # its cancel took long
        parent = past.add(tx, None)  # waits for something else by now
        of_open = past.add(tx, NOW - 9 * HOUR, parent=parent)
        young = past.add(tx, NOW - 1.0)
        of_young = past.add(tx, NOW - 9 * HOUR, parent=young)
        return {root, *called, deeper, late}, {parent, of_open, young, of_young}

    gone, kept = await made(store, make)

    assert await keep(store, age=HOUR) == len(gone)
    assert await left(store) == kept


async def test_what_an_execution_only_started_is_kept_by_itself(store: Database) -> None:
    def make(tx: Tx) -> tuple[int, int, int, int]:
        root = past.add(tx, NOW - 2 * HOUR)
        young = past.add(tx, NOW - 1.0, parent=root, waits=False)
        past.add(tx, NOW - 2 * HOUR + 1, parent=root, waits=False)
        running = past.add(tx, None, parent=root, waits=False)
        cancelled = past.add(tx, None, status="running", parent=root)  # not seen yet
        unsure = past.add(tx, None, status="uncertain", parent=root)
        return young, running, cancelled, unsure

    kept = await made(store, make)

    assert await keep(store, age=HOUR) == 2
    assert await left(store) == set(kept)
    rows = await store.read(lambda tx: tx.rows("SELECT parent, parent_key FROM executions"))
    assert rows == [(None, None)] * 4


async def test_an_execution_with_thousands_of_calls_goes_in_steps(store: Database) -> None:
    def make(tx: Tx) -> int:
        root = past.add(tx, NOW - 2 * HOUR)
        for _ in range(3 * ROWS):
            past.add(tx, NOW - 3 * HOUR, parent=root, nodes=0)
        return past.add(tx, NOW - 1.0)

    young = await made(store, make)
    most = 0

    def one(tx: Tx) -> int:
        taken = history.take(tx, history.going(tx, limit=9) or [1])
        return taken.executions

    while taken := await store.write(one):
        most = max(most, taken)
        await holds(store)

    assert most <= ROWS
    assert await left(store) == {young}


async def test_an_execution_larger_than_a_step_goes_by_parts_over_rounds_and_restarts(
    store: Database, told: list[Event]
) -> None:
    def make(tx: Tx) -> tuple[int, int]:
        many = past.add(tx, NOW - 3 * HOUR, nodes=3 * ROWS)
        heavy = past.add(tx, NOW - 2 * HOUR, nodes=9, node_bytes=BYTES // 4)
        for item in range(2 * ROWS):
            tx.execute(
                "INSERT INTO loop_items VALUES (?, ?, ?, x'31')", (many, f"l{item % 3}", item)
            )
            tx.execute(
                "INSERT INTO timers (execution, key, due_at, state, output) VALUES (?, ?, 0, 'fired', x'31')",
                (many, f"n{item}"),
            )
        tx.execute("INSERT INTO early_calls VALUES (?, 'a', zeroblob(?))", (many, 2 * BYTES))
        tx.execute("INSERT INTO early_calls VALUES (?, 'b', zeroblob(?))", (many, 2 * BYTES))
        return many, past.add(tx, NOW - 1.0) or heavy

    _, young = await made(store, make)
    rounds = 0
    while True:
        gone = await Retention(store, FakeClock(NOW), Bounds(age=HOUR)).round()  # one step
        await holds(store)
        rounds += 1
        if not gone and not await store.read(lambda tx: history.going(tx, limit=1)):
            break

    assert rounds > 10
    assert await left(store) == {young}
    assert sum(event.by_age for event in told if isinstance(event, HistoryPruned)) == 2


async def test_one_row_larger_than_a_step_goes_all_the_same(store: Database) -> None:
    def make(tx: Tx) -> None:
        past.add(tx, NOW - HOUR, node_bytes=3 * BYTES)
        seq = past.add(tx, NOW - HOUR)
        tx.execute("UPDATE executions SET input = zeroblob(?) WHERE seq = ?", (3 * BYTES, seq))

    await made(store, make)

    assert await keep(store, age=1.0) == 2
    assert await left(store) == set()


async def test_what_is_partly_gone_does_not_go_on_and_all_else_does(database: Database) -> None:
    world = World(database)
    graph_of = Versions(database).graph
    text = "id: flow\nnodes:\n  - {id: start, type: trigger.time.manual}\n"
    execution_id = await world.run(text)
    row = await world.row(execution_id)
    again = partial(
        retry, execution_id=execution_id, graph=await graph_of("flow", 1), start=None, now=NOW
    )

    def fail_and_grow(tx: Tx) -> None:
        tx.execute("UPDATE executions SET status = 'failed' WHERE seq = ?", (row.seq,))
        for n in range(ROWS):
            tx.execute(
                "INSERT INTO node_runs (execution, key, type, status, attempt, effect)"
                " VALUES (?, ?, '', 'failed', 1, '')",
                (row.seq, f"x{n}"),
            )

    await database.write(fail_and_grow)
    assert await database.write(lambda tx: history.take(tx, [row.seq]).executions) == 0
    with pytest.raises(GoneError) as caught:
        await database.write(again)
    assert caught.value.code == "execution.going"

    assert await keep(database, age=1e12) == 1  # it was begun, whatever the bounds are now
    assert await left(database) == set()


async def test_what_goes_on_meanwhile_stays(store: Database) -> None:
    seq = await made(store, lambda tx: past.add(tx, NOW - HOUR, status="failed"))
    await store.write(
        lambda tx: tx.execute(
            "UPDATE executions SET status = 'queued', finished_at = NULL WHERE seq = ?", (seq,)
        )
    )

    assert (await store.write(lambda tx: history.take(tx, [seq, 99]))).executions == 0
    assert await left(store) == {seq}


async def test_a_forest_is_left_as_it_should_be_whatever_it_was(store: Database) -> None:
    for seed in range(40):
        chance = random.Random(seed)

        def grow(tx: Tx, chance: random.Random = chance) -> None:
            tx.execute("DELETE FROM executions")
            known: list[int] = []
            for _ in range(chance.randint(1, 60)):
                parent = chance.choice(known) if known and chance.random() < 0.6 else None
                at = None if chance.random() < 0.3 else NOW - chance.randint(1, 20) * HOUR
                known.append(
                    past.add(tx, at, parent=parent, waits=chance.random() < 0.7, nodes=chance.randint(0, 200))
                )  # fmt: skip

        await store.write(grow)
        open_before = await store.read(
            lambda tx: tx.rows("SELECT seq FROM executions WHERE finished_at IS NULL")
        )
        await keep(store, age=10 * HOUR)

        kept = await left(store)
        assert {row[0] for row in open_before} <= kept
        assert not await store.read(
            lambda tx: tx.rows(
                "SELECT seq FROM executions WHERE parent_key IS NULL AND finished_at < ?",
                (NOW - 10 * HOUR,),
            )
        )


async def test_blobs_are_referred_to_no_more_by_what_is_gone(store: Database) -> None:
    blob = "ab" * 32

    def make(tx: Tx) -> None:
        blobs.note(tx, blob, 10, now=NOW, limit=MIB)
        for end in (NOW - 2 * HOUR, NOW - 1.0):
            blobs.refer(tx, past.add(tx, end), [b'{"$blob":"%s"}' % blob.encode()])

    await made(store, make)

    await keep(store, age=HOUR)
    refs = "SELECT refs FROM blobs"
    assert await store.read(lambda tx: tx.rows(refs)) == [(1,)]
    await keep(store, age=0.5)
    assert await store.read(lambda tx: tx.rows(refs)) == [(0,)]


async def test_what_ends_and_goes_on_again_is_counted(database: Database) -> None:
    world = World(database)
    text = "id: flow\nnodes:\n  - {id: start, type: trigger.time.manual}\n"
    execution_id = await world.run(text)
    assert await database.read(history.count) == 1
    cancelled = await world.start("flow")
    await world.cancel(cancelled)
    assert await database.read(history.count) == 2
    assert await world.cancel(execution_id) is ExecutionStatus.COMPLETED

    graph = await Versions(database).graph("flow", 1)
    await database.write(lambda tx: retry(tx, cancelled, graph, start=None, now=world.clock.time()))
    assert await database.read(history.count) == 1
    await world.work()
    assert await database.read(history.count) == 2
    assert await database.read(lambda tx: executions.status(tx, cancelled)) == "completed"


def test_it_goes_on_when_the_disk_is_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, f"size={ROOM_BYTES + 48 * MIB}"):
        _prune_on(disk)


def _prune_on(disk: Path) -> None:
    def make(tx: Tx) -> None:
        past.add_workflow(tx)
        for _ in range(2000):
            past.add(tx, NOW - HOUR, node_bytes=5_000)

    async def run() -> None:
        async with open_database(disk / "x.db", clock=SystemClock(), events=EventBus()) as store:
            await store.write(make)
            assert await anyio.to_thread.run_sync(store.reserve.make)
            await anyio.to_thread.run_sync(fill, disk / "ballast")

            assert await keep(store, age=1.0) == 2000

            assert await left(store) == set()
            while await store.write(lambda tx: space.give_back(tx, limit=100)) == 100:
                pass

    anyio.run(run)
    assert (disk / "x.db").stat().st_size < 5 * MIB
    assert (disk / "x.db.reserve").stat().st_size in (0, RESERVE_BYTES)
