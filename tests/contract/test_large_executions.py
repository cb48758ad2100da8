"""Executions with large values: read only when they run, within a budget, and true for every node."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from support.runs import World

from stackd.core.json import LARGE, dumps, loads
from stackd.http.message import Request, Response
from stackd.queue.job import JobState
from stackd.runtime.workflow_runtime import ROOM_PATIENCE, ROOM_RETRY, Claimed, claim
from stackd.store.database import Database
from stackd.testing import ok
from stackd.workflows import executions
from stackd.workflows.executions import ExecutionStatus

PASSING = """
id: passing
nodes:
  - {id: start, type: trigger.time.manual}
"""
CALLING = """
id: calling
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: call, type: action.http.request, params: {url: "http://far.example/{{ start.name }}"}}
  - {id: out, type: transform.data.set, params: {values: {last: "{{ start.items[-1] }}"}}}
edges: [{from: start, to: call}, {from: call, to: out}]
"""
SENDING = """
id: sending
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: kept, type: transform.data.set, params: {values: {items: "{{ start.items }}"}}}
  - id: call
    type: action.http.request
    params: {url: "http://far.example/", method: PUT, json: "{{ kept.items }}"}
  - {id: last, type: transform.data.set, params: {values: {last: "{{ call.body[-1] }}"}}}
edges: [{from: start, to: kept}, {from: kept, to: call}, {from: call, to: last}]
"""
COUNT = 20_000  # items; as text over LARGE


def large(name: str = "a", last: Any = None) -> dict[str, Any]:
    value = {"name": name, "items": [*range(COUNT), last]}
    assert len(dumps(value)) > LARGE
    return value


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


@pytest.fixture
def tight(world: World) -> World:
    """A world with room for one large execution at a time."""
    world.memory = 1
    world.runtime = world.process()
    return world


class Gate:
    """The far side: answers once opened, and knows who has asked."""

    def __init__(self) -> None:
        self.opened = anyio.Event()
        self.asked: list[str] = []
        self._changed = anyio.Event()

    async def __call__(self, request: Request) -> Response:
        self.asked.append(request.url.rpartition("/")[2])
        self._changed.set()
        await self.opened.wait()
        return ok()

    async def was_asked(self, *names: str) -> None:
        with anyio.fail_after(5):
            while not set(names) <= set(self.asked):
                self._changed = anyio.Event()
                await self._changed.wait()


async def all_claimed(world: World) -> list[Claimed]:
    return await world.store.write(
        lambda tx: claim(tx, owner="me", limit=50, lease=60.0, now=world.clock.time())
    )


async def job_state(world: World) -> list[tuple[str, int]]:
    return await world.store.read(lambda tx: tx.rows("SELECT state, attempt FROM jobs ORDER BY id"))


async def test_a_claim_leaves_a_large_input_in_the_store(world: World) -> None:
    workflow = await world.load(PASSING)
    await world.start(workflow, large())
    await world.start(workflow, {"small": 1})

    first, second = await all_claimed(world)

    assert (first.row.input, first.row.input_bytes) == (None, len(dumps(large())))
    assert second.row.input == b'{"small":1}'


async def test_a_large_input_is_the_output_where_nothing_follows_the_trigger(world: World) -> None:
    done = await world.run(PASSING, large())

    assert loads((await world.row(done)).output) == large()


async def test_every_node_sees_a_large_input_as_it_is(world: World) -> None:
    done = await world.run(CALLING, large("x", last=2**70))

    assert world.http.requests[0].url == "http://far.example/x"
    assert loads((await world.row(done)).output) == {"last": 2**70}


async def test_large_outputs_are_passed_on_stored_and_sent_as_they_are(world: World) -> None:
    items = large(last="end")["items"]
    world.http.script.append(ok(dumps(items)))

    done = await world.run(SENDING, large(last="end"))

    (request,) = world.http.requests
    assert loads(request.body.content) == items
    nodes = await world.nodes(done)
    assert loads(nodes["kept"].output) == {"items": items}
    assert loads(nodes["call"].output)["body"] == items
    assert loads((await world.row(done)).output) == {"last": "end"}


async def test_large_outputs_in_the_journal_are_there_after_a_crash(world: World) -> None:
    gate = Gate()
    world.http.script.append(gate)
    started = await world.start(await world.load(SENDING), large(last="end"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.runtime.execute, await world.claim())
        await gate.was_asked("")
        tasks.cancel_scope.cancel()
    await world.crash_and_rescue()
    world.http.script.append(ok(dumps(["last"])))

    await world.work()

    assert [loads(request.body.content)[-1] for request in world.http.requests] == ["end", "end"]
    assert loads((await world.row(started)).output) == {"last": "last"}


async def test_a_large_execution_waits_for_room_and_a_small_one_does_not(tight: World) -> None:
    gate = Gate()
    tight.http.script.extend([gate, gate, gate])
    workflow = await tight.load(CALLING)
    ids = [
        await tight.start(workflow, given)
        for given in (large("first"), large("second"), {"name": "small", "items": [1]})
    ]
    claims = await all_claimed(tight)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tight.runtime.execute, claims[0])
        await gate.was_asked("first")
        tasks.start_soon(tight.runtime.execute, claims[1])
        tasks.start_soon(tight.runtime.execute, claims[2])
        await gate.was_asked("small")
        before = list(gate.asked)
        gate.opened.set()

    assert before == ["first", "small"]
    assert gate.asked == ["first", "small", "second"]
    assert [(await tight.row(one)).status for one in ids] == [ExecutionStatus.COMPLETED] * 3


async def waiting_for_room(
    tight: World, meanwhile: Callable[[Gate, str], Any], *, within: float = 5.0
) -> str:
    """An execution that waits behind another large one while `meanwhile` acts; its id. The other ends last."""
    gate = Gate()
    tight.http.script.extend([gate, gate])
    workflow = await tight.load(CALLING)
    await tight.start(workflow, large("first"))
    waits = await tight.start(workflow, large("second"))
    first, second = await all_claimed(tight)
    with anyio.fail_after(within):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tight.runtime.execute, first)
            await gate.was_asked("first")
            async with anyio.create_task_group() as waiting:
                waiting.start_soon(tight.runtime.execute, second)
                while tight.runtime.running < 2:
                    await anyio.lowlevel.checkpoint()
                await meanwhile(gate, waits)
            gate.opened.set()
    assert gate.asked == ["first"]
    return waits


async def test_one_that_waits_too_long_leaves_its_slot_to_others_and_comes_again(
    tight: World,
) -> None:
    async def give_up(gate: Gate, waits: str) -> None:
        while (await job_state(tight))[1][0] == JobState.RUNNING:
            tight.clock.advance(ROOM_PATIENCE)
            await anyio.lowlevel.checkpoint()
        assert (await job_state(tight))[1] == (JobState.SCHEDULED, 0)

    waits = await waiting_for_room(tight, give_up)
    tight.clock.advance(ROOM_RETRY)
    await tight.work()

    assert (await tight.row(waits)).status is ExecutionStatus.COMPLETED


async def test_one_that_waits_is_cancelled_without_having_begun(tight: World) -> None:
    async def cancel(gate: Gate, waits: str) -> None:
        seq = (await tight.row(waits)).seq
        await tight.cancel(waits)
        tight.runtime.cancel(seq)
        gate.opened.set()

    waits = await waiting_for_room(tight, cancel)

    assert (await tight.row(waits)).status is ExecutionStatus.CANCELLED


async def test_one_that_waits_is_given_back_at_an_interruption(tight: World) -> None:
    async def interrupt(gate: Gate, waits: str) -> None:
        tight.runtime.interrupt_all()

    await waiting_for_room(tight, interrupt)

    assert [state for state, _ in await job_state(tight)] == [JobState.AVAILABLE] * 2


@pytest.mark.parametrize(
    "value",
    [
        pytest.param([[]] * 100_000, id="empty-lists"),
        pytest.param([{} for _ in range(100_000)], id="empty-maps"),
        pytest.param([{"a": {"b": {}}} for _ in range(40_000)], id="maps"),
        pytest.param([0.5] * 200_000, id="fractions"),
        pytest.param(["é" * 10] * 50_000, id="texts"),
        pytest.param([[[[[[]]]]]] * 50_000, id="nests"),
    ],
)
async def test_what_an_execution_takes_is_reckoned_rather_too_high(
    world: World, value: Any
) -> None:
    started = await world.start(await world.load(PASSING), value)
    row = await world.row(started)

    reckoned = await world.store.read(lambda tx: executions.input_weight(tx, row.seq))

    taken = await anyio.to_thread.run_sync(memory_of, dumps(value))
    assert taken <= reckoned * 1.1
    assert reckoned <= taken * 6 + 10 * row.input_bytes


def memory_of(text: bytes) -> int:
    """What Python takes for the values of `text`."""
    tracemalloc.start()
    try:
        value = loads(text)
        return tracemalloc.get_traced_memory()[0] if value else 0
    finally:
        tracemalloc.stop()
