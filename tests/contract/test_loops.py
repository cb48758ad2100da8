"""`logic.foreach`: iterations, what they give, failures, waits, and what a crash in the middle leaves."""

from __future__ import annotations

import anyio
import pytest
from support.runs import World, time_passes
from support.watched import WatchedStore

from stackd.core.clock import SystemClock
from stackd.core.json import loads
from stackd.runtime.tools import Limits
from stackd.store.database import Database
from stackd.testing import ok
from stackd.workflows import executions
from stackd.workflows.executions import ExecutionStatus, NodeFinished, NodeStatus, TimerSet

COMPLETED, FAILED, SKIPPED = NodeStatus.COMPLETED, NodeStatus.FAILED, NodeStatus.SKIPPED


def loop(
    *body: str,
    edges: str = "",
    params: str = "items: '{{ start }}'",
    extra: str = "",
    after: str = "",
    after_edges: str = "",
) -> str:
    nodes = "\n".join(f"      - {node}" for node in body)
    return f"""
id: flow
nodes:
  - {{id: start, type: trigger.time.manual}}
  - id: each
    type: logic.foreach
    params: {{{params}}}
    {extra}
    nodes:
{nodes}
    edges: [{edges}]
{after}
edges:
  - {{from: start, to: each}}
{after_edges}
"""


def put(node_id: str, value: str) -> str:
    return f"{{id: {node_id}, type: transform.data.set, params: {{values: {{v: {value}}}}}}}"


def call(node_id: str, extra: str = "", method: str = "GET") -> str:
    return (
        f"{{id: {node_id}, type: action.http.request{extra}, "
        f"params: {{method: {method}, url: 'http://far.example/{{{{ item }}}}'}}}}"
    )


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


async def output_of(world: World, execution_id: str):
    row = await world.row(execution_id)
    assert row.status is ExecutionStatus.COMPLETED, row.error
    return loads(row.output)


async def test_a_loop_gives_what_its_iterations_gave_in_the_order_of_the_items(world):
    text = loop(put("double", "'{{ item * 2 }}'"), put("name", "'{{ double.v }}-{{ index }}'"),
                edges="{from: double, to: name}")  # fmt: skip

    done = await world.run(text, [5, 7])

    assert await output_of(world, done) == [{"v": "10-0"}, {"v": "14-1"}]


async def test_every_body_node_has_a_node_run_for_each_iteration(world):
    done = await world.run(loop(put("a", "'{{ item }}'")), ["x", "y"])

    nodes = await world.nodes(done)
    assert set(nodes) == {"start", "each", "each[0].a", "each[1].a"}
    assert loads(nodes["each[1].a"].output) == {"v": "y"}
    assert all(node.status is COMPLETED for node in nodes.values())


async def test_of_very_many_node_runs_those_that_say_most_come_first(world):
    body = "{id: a, type: transform.data.set, onError: continue, params: {values: {v: '{{ 1 // item }}'}}}"
    text = loop(body, after=f"  - {put('z', '1')}", after_edges="  - {from: each, to: z}")
    done = await world.run(text, [*([1] * 50), 0])
    seq = (await world.row(done)).seq

    rows = await world.store.read(lambda tx: executions.telling_node_rows(tx, seq, limit=5))

    keys = [row.key for row in rows]  # time stands still here: of one moment, by key
    assert (sorted(keys[:3]), keys[3:]) == (["each", "start", "z"], ["each[50].a", "each[0].a"])


async def test_a_loop_may_be_called_loop(world):
    text = (
        loop(put("a", "'{{ item }}'"))
        .replace("id: each", "id: loop")
        .replace("to: each", "to: loop")
    )

    done = await world.run(text, [7])

    assert await output_of(world, done) == [{"v": 7}]
    assert "loop[0].a" in await world.states(done)


async def test_a_loop_over_nothing_gives_an_empty_list(world):
    assert await output_of(world, await world.run(loop(put("a", "1")), [])) == []


async def test_an_iteration_with_several_ends_gives_a_map(world):
    done = await world.run(loop(put("a", "'{{ item }}'"), put("b", "0")), [1])

    assert await output_of(world, done) == [{"a": {"v": 1}, "b": {"v": 0}}]


async def test_a_body_reads_what_came_before_the_loop(world):
    text = loop(put("a", "'{{ start.base + item }}'"), params="items: '{{ start.items }}'")

    done = await world.run(text, {"base": 100, "items": [1, 2]})

    assert await output_of(world, done) == [{"v": 101}, {"v": 102}]


async def test_what_follows_a_loop_reads_its_list(world):
    text = loop(
        put("a", "'{{ item }}'"),
        after=f"  - {put('total', chr(39) + '{{ each|map(attribute=' + chr(34) + 'v' + chr(34) + ')|sum }}' + chr(39))}",
        after_edges="  - {from: each, to: total}",
    )

    assert await output_of(world, await world.run(text, [1, 2, 3])) == {"v": 6}


async def test_loops_stand_in_each_other(world):
    inner = (
        "{id: inner, type: logic.foreach, params: {items: '{{ item }}'}, "
        "nodes: [{id: leaf, type: transform.data.set, params: {values: {v: '{{ item }}', i: '{{ index }}'}}}]}"
    )

    done = await world.run(loop(inner), [[1, 2], [], [3]])

    assert await output_of(world, done) == [
        [{"v": 1, "i": 0}, {"v": 2, "i": 1}], [], [{"v": 3, "i": 0}],
    ]  # fmt: skip
    assert "each[2].inner[0].leaf" in await world.states(done)


async def test_collect_says_what_is_kept_of_each_iteration(world):
    text = loop(
        put("a", "'{{ item }}'"), params="items: '{{ start }}', collect: '{{ a.v ~ index }}'"
    )

    assert await output_of(world, await world.run(text, ["x", "y"])) == ["x0", "y1"]


async def test_a_loop_that_collects_nothing_gives_their_number(world):
    text = loop(put("a", "'{{ item }}'"), params="items: '{{ start }}', collect: false")

    assert await output_of(world, await world.run(text, [1, 2, 3])) == {"count": 3}


async def test_the_body_may_stand_among_the_params(world):
    text = """
id: flow
nodes:
  - {id: start, type: trigger.time.manual}
  - id: each
    type: logic.foreach
    params:
      items: [1, 2]
      nodes: [{id: a, type: transform.data.set, params: {values: {v: '{{ item }}'}}}]
      edges: []
edges: [{from: start, to: each}]
"""
    assert await output_of(world, await world.run(text)) == [{"v": 1}, {"v": 2}]


# -- at once


@pytest.mark.parametrize("at_once", [1, 3])
async def test_no_more_iterations_run_at_a_time_than_the_loop_says(world, at_once):
    gates = [anyio.Event() for _ in range(5)]

    def answering(gate: anyio.Event):
        async def respond(_):
            await gate.wait()
            return ok()

        return respond

    world.http.script.extend(answering(gate) for gate in gates)
    await world.start(
        await world.load(
            loop(call("get"), params=f"items: '{{{{ start }}}}', concurrency: {at_once}")
        ),
        [0, 1, 2, 3, 4],
    )

    async with world.running(await world.claim()):
        for number, gate in enumerate(gates):
            await world.http.arrived(min(number + at_once, 5))
            await anyio.wait_all_tasks_blocked()
            assert len(world.http.requests) == min(number + at_once, 5)
            gate.set()


# -- many


async def test_ten_thousand_items_leave_nothing_of_their_iterations_in_memory(world, monkeypatch):
    """Each output is on disk, none of them in the journal that the run holds."""
    from stackd.runtime.journal import Journal

    most = 0
    record = Journal.record

    def counting(self, row):
        nonlocal most
        record(self, row)
        most = max(most, len(self.rows))

    monkeypatch.setattr(Journal, "record", counting)
    world.limits = Limits(output=1024 * 1024, execution=64 * 1024 * 1024)
    world.runtime = world.process()
    text = loop(
        put("a", "'{{ item }}'"), put("b", "'{{ a.v }}'"), edges="{from: a, to: b}",
        params="items: '{{ start }}', concurrency: 4, collect: false",
    )  # fmt: skip

    with anyio.fail_after(60):
        done = await world.run(text, list(range(10_000)))

    assert await output_of(world, done) == {"count": 10_000}
    assert most < 50
    assert len(await world.nodes(done)) == 20_002
    assert await world.store.read(lambda tx: tx.rows("SELECT * FROM loop_items")) == []


async def test_a_list_over_the_limit_fails_the_loop_as_soon_as_it_is_too_long(world):
    world.limits = Limits(output=2000, execution=10**6)
    world.runtime = world.process()

    done = await world.run(loop(put("a", "'{{ item * 1 }}'")), list(range(1000)))

    row = await world.row(done)
    assert row.status is ExecutionStatus.FAILED
    error = loads(row.error)
    assert error["code"] == "node.too_large"
    assert "collect" in error["message"]
    assert len(await world.nodes(done)) < 500


# -- failures


async def test_a_failing_iteration_fails_the_loop_and_begins_no_other(world):
    done = await world.run(loop(put("a", "'{{ 1 // item }}'")), [1, 0, 1])

    row = await world.row(done)
    error = loads(row.error)
    assert row.status is ExecutionStatus.FAILED
    assert error["nodeId"] == "each"
    assert error["message"].startswith("item 1: a: ")
    states = await world.states(done)
    assert states == {
        "start": COMPLETED, "each": FAILED, "each[0].a": COMPLETED, "each[1].a": FAILED,
    }  # fmt: skip


async def test_a_body_node_may_fail_and_its_iteration_go_on(world):
    body = "{id: a, type: transform.data.set, onError: continue, params: {values: {v: '{{ 1 // item }}'}}}"
    text = loop(body, put("b", "'{{ a.v|default(null) }}'"), edges="{from: a, to: b}")

    assert await output_of(world, await world.run(text, [1, 0])) == [{"v": 1}, {"v": None}]


async def test_a_loop_that_may_fail_is_followed_by_its_error_edge(world):
    text = loop(
        put("a", "'{{ 1 // item }}'"), extra="onError: route",
        after=f"  - {put('told', chr(39) + '{{ each.error.code }}' + chr(39))}",
        after_edges="  - {from: each, to: told, on: error}",
    )  # fmt: skip

    assert await output_of(world, await world.run(text, [0])) == {"v": "expression.invalid"}


async def test_a_failed_loop_skips_what_waits_in_its_other_iterations(world):
    delay = "{id: wait, type: action.time.delay, params: {delaySeconds: '{{ item }}'}}"
    text = loop(
        delay, put("a", "'{{ 1 // item }}'"), edges="{from: wait, to: a}",
        params="items: '{{ start }}', concurrency: 2", extra="onError: continue",
        after=f"  - {put('after', '1')}", after_edges="  - {from: each, to: after}",
    )  # fmt: skip

    done = await world.run(text, [500, 0])

    states = await world.states(done)
    assert states["each[0].wait"] is SKIPPED
    assert states["each"] is FAILED
    assert await output_of(world, done) == {"v": 1}
    world.clock.advance(501)
    assert await world.fire_timers() == 0, "it left a timer for nobody"


async def test_an_iteration_in_flight_ends_before_a_failed_loop_does(world):
    gate = anyio.Event()

    async def late(_):
        await gate.wait()
        return ok()

    world.http.script.extend([late, ok(status=404)])
    started = await world.start(
        await world.load(
            loop(call("get"), params="items: '{{ start }}', concurrency: 2", extra="onError: continue",
                 after=f"  - {put('after', '1')}", after_edges="  - {from: each, to: after}")
        ),
        [1, 2, 3],
    )  # fmt: skip

    async with world.running(await world.claim()):
        await world.http.arrived(2)
        await anyio.wait_all_tasks_blocked()
        assert (await world.row(started)).status is ExecutionStatus.RUNNING
        gate.set()

    states = await world.states(started)
    assert states["each[0].get"] is COMPLETED
    assert "each[2].get" not in states
    assert states["after"] is COMPLETED


# -- keys, waits, crashes


async def test_idempotency_keys_name_the_iteration(world):
    inner = (
        "{id: inner, type: logic.foreach, params: {items: '{{ item }}'}, nodes: ["
        + call("post", ", effect: keyed", "POST")
        + "]}"
    )

    done = await world.run(loop(inner), [["a"], ["b", "c"]])

    keys = [request.headers["Idempotency-Key"] for request in world.http.requests]
    assert keys == [f"{done}:post:0:0", f"{done}:post:1:0", f"{done}:post:1:1"]


async def test_a_loop_whose_iterations_wait_goes_on_after_each_timer(world):
    delay = "{id: wait, type: action.time.delay, params: {delaySeconds: 60}}"
    text = loop(delay, put("a", "'{{ item }}'"), edges="{from: wait, to: a}")
    started = await world.start(await world.load(text), [1, 2, 3])

    for _ in range(3):
        await world.work()
        assert (await world.row(started)).status is ExecutionStatus.WAITING
        world.clock.advance(61)
        await world.fire_timers()
    await world.work()

    assert await output_of(world, started) == [{"v": 1}, {"v": 2}, {"v": 3}]


async def test_a_loop_that_goes_on_behind_a_slow_item_says_where_it_is_and_keeps_the_order(world):
    delay = "{id: wait, type: action.time.delay, params: {delaySeconds: '{{ item }}'}}"
    text = loop(
        delay, put("a", "'{{ index }}'"), edges="{from: wait, to: a}",
        params="items: '{{ start }}', concurrency: 2",
    )  # fmt: skip
    started = await world.start(await world.load(text), [500, 60, 60, 60])

    await world.work()
    said = []
    for seconds in (61, 61, 61, 500):
        world.clock.advance(seconds)
        await world.fire_timers()
        await world.work()
        said.append((await world.nodes(started))["each"].metadata)

    assert [one and loads(one) for one in said] == [
        {"done": 1, "open": [0, 2], "bytes": 10}, {"done": 2, "open": [0, 3], "bytes": 18},
        {"done": 3, "open": [0], "bytes": 26}, None,
    ]  # fmt: skip
    assert await output_of(world, started) == [{"v": 0}, {"v": 1}, {"v": 2}, {"v": 3}]


async def test_a_loop_that_says_not_where_it_is_goes_on_behind_what_is_done(world):
    """As one that an earlier version began."""
    delay = "{id: wait, type: action.time.delay, params: {delaySeconds: '{{ item }}'}}"
    text = loop(
        delay, call("post", ", effect: keyed", "POST"), edges="{from: wait, to: post}",
        params="items: '{{ start }}', concurrency: 2, collect: '{{ item }}'",
    )  # fmt: skip
    started = await world.start(await world.load(text), [500, 60, 61, 62])
    for seconds in (0, 61, 62):
        world.clock.advance(seconds)
        await world.fire_timers()
        await world.work()
    await world.store.write(
        lambda tx: tx.execute("UPDATE node_runs SET metadata = NULL WHERE key = 'each'")
    )

    for seconds in (63, 500):
        world.clock.advance(seconds)
        await world.fire_timers()
        await world.work()

    assert await output_of(world, started) == [500, 60, 61, 62]
    assert [one.url.rpartition("/")[2] for one in world.http.requests] == ["60", "61", "62", "500"]


async def test_a_timer_that_fires_beside_a_running_iteration_is_taken_up(world):
    gate = anyio.Event()

    async def late(_):
        await gate.wait()
        return ok()

    world.http.script.append(late)
    branch = (
        "{id: way, type: logic.branch, params: {condition: 'index == 0'}}",
        "{id: wait, type: action.time.delay, params: {delaySeconds: 60}}",
        call("get"),
    )
    text = loop(
        *branch, edges="{from: way, to: wait, on: true}, {from: way, to: get, on: false}",
        params="items: '{{ start }}', concurrency: 2, collect: '{{ index }}'",
    )  # fmt: skip
    started = await world.start(await world.load(text), [1, 2])

    async with world.running(await world.claim()):
        await world.http.arrived(1)
        await time_passes(
            world, 0.1, until=lambda: any(isinstance(e, TimerSet) for e in world.seen)
        )
        world.clock.advance(61)
        await world.fire_timers()
        world.runtime.wake((await world.row(started)).seq)
        gate.set()

    assert await output_of(world, started) == [0, 1]


@pytest.mark.parametrize("finished", [0, 1, 3])
async def test_after_a_crash_a_loop_goes_on_and_repeats_no_finished_iteration(world, finished):
    """Killed when the iteration after `finished` ones is in flight."""
    text = loop(call("post", ", effect: keyed", "POST"), params="items: '{{ start }}'")
    started = await world.start(await world.load(text), [10, 11, 12, 13])
    hangs = anyio.Event()

    async def hang(_):
        await hangs.wait()

    world.http.script.extend([*([ok()] * finished), hang])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.runtime.execute, await world.claim())
        await world.http.arrived(finished + 1)
        tasks.cancel_scope.cancel()
    world.runtime = world.process()
    await world.crash_and_rescue()
    await world.work()

    row = await world.row(started)
    assert row.status is ExecutionStatus.COMPLETED
    urls = [request.url.rpartition("/")[2] for request in world.http.requests]
    assert urls == [*map(str, range(10, 11 + finished)), *map(str, range(10 + finished, 14))]
    keys = [request.headers["Idempotency-Key"] for request in world.http.requests]
    assert keys[finished] == keys[finished + 1]


async def test_an_unsafe_step_cut_off_in_a_loop_waits_for_a_person_and_then_goes_on(world):
    text = loop(call("post", ", effect: unsafe", "POST"), params="items: '{{ start }}'")
    started = await world.start(await world.load(text), [1, 2])
    hangs = anyio.Event()

    async def hang(_):
        await hangs.wait()

    world.http.script.extend([ok(), hang])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.runtime.execute, await world.claim())
        await world.http.arrived(2)
        tasks.cancel_scope.cancel()
    world.runtime = world.process()
    await world.crash_and_rescue()
    await world.work()
    assert (await world.row(started)).status is ExecutionStatus.UNCERTAIN

    await world.resolve(started, "skip")
    await world.work()

    assert await world.states(started) == {
        "start": COMPLETED, "each": COMPLETED, "each[0].post": COMPLETED, "each[1].post": SKIPPED,
    }  # fmt: skip
    assert len(world.http.requests) == 2


async def test_what_a_loop_keeps_of_its_iterations_is_gone_once_it_has_ended(world, database):
    await world.run(loop(put("a", "'{{ item }}'")), [1, 2, 3])

    assert await database.read(lambda tx: tx.rows("SELECT * FROM loop_items")) == []


async def test_a_wait_in_a_loop_reads_few_of_the_iterations_before_it(database):
    """What a run reads when it goes on does not grow with what is done."""
    store = WatchedStore(database)
    world = World(store)
    delay = "{id: wait, type: action.time.delay, params: {delaySeconds: '{{ 60 if index == 200 else 0 }}'}}"
    started = await world.start(await world.load(loop(delay)), list(range(202)))
    await world.work()
    world.clock.advance(61)
    await world.fire_timers()
    before = store.reads

    await world.work()

    assert len(await output_of(world, started)) == 202
    assert store.reads - before < 15


async def test_a_wake_is_as_little_work_for_the_store_behind_many_iterations_as_behind_few(
    database,
):
    store = WatchedStore(database)
    world = World(store)
    delay = "{id: wait, type: action.time.delay, params: {delaySeconds: 60}}"
    started = await world.start(await world.load(loop(delay)), list(range(80)))
    taken = []

    while (await world.row(started)).status is not ExecutionStatus.COMPLETED:
        before = store.steps
        await world.work()
        taken.append(store.steps - before)
        world.clock.advance(61)
        await world.fire_timers()

    assert len(taken) == 81
    assert taken[-3] == pytest.approx(taken[5], rel=0.05)


async def test_outputs_in_a_loop_count_for_the_execution_also_behind_a_wait(world):
    """They are of iterations that the last claim knows nothing of."""
    world.limits = Limits(output=5_000, execution=10_000)
    world.runtime = world.process()
    delay = "{id: wait, type: action.time.delay, params: {delaySeconds: 60}}"
    text = loop(
        delay, put("a", "'{{ start.text }}'"), edges="{from: wait, to: a}",
        params="items: [1, 2, 3, 4, 5], collect: false", extra="onError: continue",
    )  # fmt: skip
    started = await world.start(await world.load(text), {"text": "x" * 2_000})

    for _ in range(5):
        await world.work()
        world.clock.advance(61)
        await world.fire_timers()

    nodes = await world.nodes(started)
    error = loads(nodes["each"].error)
    assert error["code"] == "execution.too_large"
    assert nodes["each[2].a"].status is COMPLETED
    assert nodes["each[3].a"].status is FAILED


async def test_iterations_are_told_as_events(world):
    await world.run(loop(put("a", "'{{ item }}'")), [1, 2])

    keys = [event.key for event in world.seen if isinstance(event, NodeFinished)]
    assert sorted(keys) == ["each", "each[0].a", "each[1].a", "start"]


async def test_a_long_loop_of_pure_nodes_holds_up_no_branch_beside_it(database):
    """Real time: what an answer leads to is sent long before the loop is over."""
    world = World(database)
    world.clock = SystemClock()  # type: ignore[assignment]
    world.runtime = world.process()
    beside = (
        "  - {id: first, type: action.http.request, params: {url: 'http://far.example/first'}}\n"
        "  - {id: then, type: action.http.request, params: {url: 'http://far.example/then'}}"
    )
    text = loop(
        put("a", "'{{ item }}'"), after=beside, params="items: '{{ start }}', collect: false",
        after_edges="  - {from: start, to: first}\n  - {from: first, to: then}",
    )  # fmt: skip
    started = await world.start(await world.load(text), list(range(20_000)))

    async with world.running(await world.claim()):
        await world.http.arrived(2)
        assert len(await world.states(started)) < 10_000

    assert (await world.row(started)).status is ExecutionStatus.COMPLETED


async def test_the_time_limit_holds_in_a_loop_of_pure_nodes_too(database):
    world = World(database)
    world.clock = SystemClock()  # type: ignore[assignment]
    world.runtime = world.process()
    text = loop(put("a", "'{{ item }}'"), params="items: '{{ start }}', collect: false")
    started = await world.start(
        await world.load(text.replace("id: flow", "id: flow\ntimeoutMs: 300")), list(range(50_000))
    )

    await world.work()

    row = await world.row(started)
    assert loads(row.error)["code"] == "execution.timeout"
    assert row.finished_at - row.started_at < 2


async def test_a_loop_of_many_waits_at_once_goes_on_with_few_reads(database):
    store = WatchedStore(database)
    world = World(store)
    delay = "{id: wait, type: action.time.delay, params: {delaySeconds: 60}}"
    text = loop(delay, params="items: '{{ start }}', concurrency: 50")
    started = await world.start(await world.load(text), list(range(50)))
    await world.work()
    world.clock.advance(61)
    await world.fire_timers()
    before = store.reads

    await world.work()

    assert len(await output_of(world, started)) == 50
    assert store.reads - before < 15


async def test_an_unsafe_step_in_flight_beside_a_failed_one_is_uncertain_though_the_process_dies(
    world,
):
    text = loop(
        call("post", ", effect: unsafe", "POST"), params="items: '{{ start }}', concurrency: 2",
        extra="onError: continue",
    )  # fmt: skip
    started = await world.start(await world.load(text), [1, 2, 3])
    hangs = anyio.Event()

    async def hang(_):
        await hangs.wait()

    world.http.script.extend([ok(status=400), hang])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.runtime.execute, await world.claim())
        await world.happens(NodeFinished)
        while (await world.states(started)).get("each[0].post") is not FAILED:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    await as_if_killed(world, started, "each[1].post")
    await world.work()
    states = await world.states(started)
    assert (await world.row(started)).status is ExecutionStatus.UNCERTAIN
    assert states["each[1].post"] is NodeStatus.UNCERTAIN

    await world.resolve(started, "skip")
    await world.work()

    assert (await world.row(started)).status is ExecutionStatus.COMPLETED
    assert (await world.states(started))["each"] is FAILED
    assert len(world.http.requests) == 2


async def as_if_killed(world: World, execution_id: str, key: str) -> None:
    """Another process takes over, and what was in flight stands there as its intent."""
    seq = (await world.row(execution_id)).seq
    await world.store.write(
        lambda tx: tx.execute(
            "UPDATE node_runs SET status = 'running' WHERE execution = ? AND key = ?", (seq, key)
        )
    )
    world.runtime = world.process()
    await world.crash_and_rescue()
