"""The journal of a run: what waits to be written, and writes beside each other."""

from __future__ import annotations

import anyio
import pytest
from support.runs import World
from support.watched import WatchedStore

from stackd.core.errors import BusyError
from stackd.runtime.journal import Journal
from stackd.store.connection import Tx
from stackd.store.database import Database
from stackd.workflows.executions import NodeRow, NodeStatus

FLOW = "id: x\nnodes: [{id: start, type: trigger.time.manual}]"


def row(key: str, status: NodeStatus) -> NodeRow:
    return NodeRow(key, "logic.merge", status, 1, "read", *([None] * 7))


@pytest.fixture
def store(database: Database) -> WatchedStore:
    return WatchedStore(database)


@pytest.fixture
async def journal(store: WatchedStore) -> Journal:
    world = World(store)
    await world.start(await world.load(FLOW))
    claimed = await world.claim()
    return Journal(world.tools(), claimed.job, claimed.row, told=lambda: None)


async def test_nothing_is_read_beside_a_write_that_began_before(journal, store):
    """It would be older than what is known here: a wait that is about to be written would look ended."""
    journal.record(row("a", NodeStatus.WAITING))
    hold = store.hold_writes()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(journal.write, journal.check_claim)
        await hold.met.wait()

        assert journal.writing.locked()

        hold.release()


async def test_what_was_recorded_beside_a_refused_write_is_written_in_time(journal, store):
    def refuse(_: Tx) -> None:
        raise BusyError("full", retry_after=1.0)

    hold = store.hold_writes()
    async with anyio.create_task_group() as tasks:

        async def write() -> None:
            with pytest.raises(BusyError):
                await journal.write(refuse)

        tasks.start_soon(write)
        await hold.met.wait()
        journal.record(row("a", NodeStatus.WAITING))
        hold.release()

    assert journal.flush_at is not None
