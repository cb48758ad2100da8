"""Who waits for an execution is woken by it, looks seldom, and is forgotten when the client leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import pytest
from support.runs import World
from support.watched import WatchedClock, WatchedStore

from stackd.core.errors import NotFoundError
from stackd.store.database import Database
from stackd.web.waiting import LONGEST_POLL, POLL, Waiting
from stackd.workflows import statements as sql

PASSING = "id: passing\nnodes: [{id: start, type: trigger.time.manual}]\n"


class Client:
    """Stays until it leaves."""

    def __init__(self) -> None:
        self.is_gone = self.may_be_gone = False
        self._told: set[anyio.Event] = set()

    @contextmanager
    def telling(self, told: anyio.Event) -> Iterator[None]:
        self._told.add(told)
        try:
            yield
        finally:
            self._told.discard(told)

    def leave(self) -> None:
        self.is_gone = True
        self.close_its_side()

    def close_its_side(self) -> None:
        self.may_be_gone = True
        for told in self._told:
            told.set()


class Waiter:
    """One wait, in a task of its own."""

    def __init__(self, database: Database) -> None:
        self.world = World(database)
        self.clock = WatchedClock()
        self.store = WatchedStore(database)
        self.client = Client()
        self.waiting = Waiting(self.store, self.clock, database.events)  # type: ignore[arg-type]
        self.result: bool | str | None = None

    @asynccontextmanager
    async def waits(self, execution_id: str, *, timeout: float = 60.0) -> AsyncIterator[None]:
        async def wait() -> None:
            try:
                self.result = await self.waiting.until_rested(
                    execution_id, timeout=timeout, client=self.client
                )
            except ConnectionError:
                self.result = "gone"

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await self.store.quiet()
                yield

    async def begun(self) -> str:
        return await self.world.start(await self.world.load(PASSING))


@pytest.fixture
def waiter(database: Database) -> Waiter:
    return Waiter(database)


async def test_the_end_of_the_execution_wakes_who_waits_without_time_passing(
    waiter: Waiter,
) -> None:
    execution_id = await waiter.begun()

    async with waiter.waits(execution_id):
        before = waiter.result
        await waiter.world.work()

    assert (before, waiter.result) == (None, True)
    assert waiter.store.reads == 2


async def test_one_that_rests_already_is_not_waited_for(waiter: Waiter) -> None:
    execution_id = await waiter.begun()
    await waiter.world.work()

    async with waiter.waits(execution_id):
        pass

    assert (waiter.result, waiter.clock.asked) == (True, [])


async def test_looks_for_other_processes_become_seldom_and_end_in_time(waiter: Waiter) -> None:
    execution_id = await waiter.begun()

    async with waiter.waits(execution_id, timeout=20.0):
        while waiter.result is None:
            waiter.clock.advance(waiter.clock.asked[-1])
            await waiter.store.quiet()

    assert waiter.result is False
    assert waiter.clock.asked == [POLL, 1.0, 2.0, *[LONGEST_POLL] * 4, 0.5]


async def test_what_another_process_ended_is_seen_at_the_next_look(waiter: Waiter) -> None:
    execution_id = await waiter.begun()

    async with waiter.waits(execution_id):
        await waiter.store.write(
            lambda tx: tx.execute("UPDATE executions SET status = 'completed'")
        )
        waiter.clock.advance(POLL)

    assert waiter.result is True


async def test_who_waits_goes_with_its_client(waiter: Waiter) -> None:
    execution_id = await waiter.begun()

    async with waiter.waits(execution_id):
        before = waiter.store.reads
        waiter.client.leave()

    assert (waiter.result, waiter.store.reads) == ("gone", before)
    assert not waiter.waiting._waiters


async def test_who_may_have_left_is_answered_without_the_end(waiter: Waiter) -> None:
    execution_id = await waiter.begun()

    async with waiter.waits(execution_id):
        waiter.client.close_its_side()

    assert waiter.result is False


async def test_all_who_wait_can_be_let_go_and_others_may_wait_later(waiter: Waiter) -> None:
    execution_id = await waiter.begun()

    async with waiter.waits(execution_id):
        waiter.waiting.release()
    released, waiter.result = waiter.result, None
    async with waiter.waits(execution_id):
        await waiter.world.work()

    assert (released, waiter.result) == (False, True)


async def test_a_look_reads_the_state_alone(waiter: Waiter) -> None:
    assert sql.GET_STATUS == "SELECT status FROM executions WHERE id = ?"
    with pytest.raises(NotFoundError):
        await waiter.waiting.until_rested("none", timeout=1.0, client=waiter.client)
