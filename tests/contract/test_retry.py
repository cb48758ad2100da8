"""An execution that has ended goes on: what failed is tried again, under the same keys, and nothing that is done."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
from support.runs import World

from stackd.core.errors import ConflictError, InputError
from stackd.core.json import loads
from stackd.runtime.tools import Limits
from stackd.runtime.versions import Versions
from stackd.store.database import Database
from stackd.testing import ok
from stackd.workflows.executions import ExecutionStatus, NodeStatus
from stackd.workflows.retry import retry

COMPLETED, FAILED, UNCERTAIN = (
    ExecutionStatus.COMPLETED,
    ExecutionStatus.FAILED,
    ExecutionStatus.UNCERTAIN,
)


def call(node_id: str, extra: str = "effect: keyed") -> str:
    return (
        f"{{id: {node_id}, type: action.http.request, retry: {{maxAttempts: 1}}, {extra}, "
        f"params: {{method: POST, url: 'http://far.example/{node_id}'}}}}"
    )


def chain(*nodes: str) -> str:
    ids = ["start", *(node.partition(",")[0].removeprefix("{id: ") for node in nodes)]
    edges = ", ".join(f"{{from: {a}, to: {b}}}" for a, b in pairwise(ids))
    listed = "\n".join(f"  - {node}" for node in nodes)
    return f"id: flow\nnodes:\n  - {{id: start, type: trigger.time.manual}}\n{listed}\nedges: [{edges}]\n"


THREE = chain(call("a"), call("b"), call("c"))


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


async def again(world: World, execution_id: str, start: str | None = None) -> None:
    graph = await Versions(world.store).graph("flow", 1)
    await world.store.write(
        partial(retry, execution_id=execution_id, graph=graph, start=start, now=world.clock.time())
    )


def sent(world: World) -> list[str]:
    return [request.url.rpartition("/")[2] for request in world.http.requests]


def keys(world: World) -> list[str]:
    return [request.headers["Idempotency-Key"] for request in world.http.requests]


async def test_what_failed_is_tried_again_and_what_was_done_is_not(world):
    world.http.script.extend([ok(), ok(status=500)])
    execution = await world.run(THREE)
    assert (await world.row(execution)).status is FAILED

    await again(world, execution)
    await world.work()

    row = await world.row(execution)
    assert (row.status, row.error) == (COMPLETED, None)
    assert sent(world) == ["a", "b", "b", "c"]
    assert keys(world)[1] == keys(world)[2]


async def test_it_may_fail_again_and_be_tried_again(world):
    world.http.script.extend([ok(status=500), ok(status=500)])
    execution = await world.run(THREE)

    await again(world, execution)
    await world.work()
    assert (await world.row(execution)).status is FAILED
    await again(world, execution)
    await world.work()

    assert (await world.row(execution)).status is COMPLETED
    assert sent(world) == ["a", "a", "a", "b", "c"]


async def test_a_cancelled_execution_goes_on_where_it_was(world):
    delay = "{id: wait, type: action.time.delay, params: {delaySeconds: 60}}"
    execution = await world.start(await world.load(chain(call("a"), delay, call("b"))))
    await world.work()
    await world.cancel(execution)

    await again(world, execution)
    await world.work()
    world.clock.advance(61)
    await world.fire_timers()
    await world.work()

    assert (await world.row(execution)).status is COMPLETED
    assert sent(world) == ["a", "b"]


async def test_from_a_node_on_it_runs_anew(world):
    execution = await world.run(THREE)

    await again(world, execution, "b")
    await world.work()

    assert (await world.row(execution)).status is COMPLETED
    assert sent(world) == ["a", "b", "c", "b", "c"]
    assert keys(world)[1:3] == keys(world)[3:5]


async def test_what_may_fail_and_did_is_not_tried_again(world):
    world.http.script.extend([ok(status=500), ok(status=500)])
    execution = await world.run(chain(call("a", "onError: continue, effect: keyed"), call("b")))

    await again(world, execution)
    await world.work()

    assert sent(world) == ["a", "b", "b"]


async def test_a_loop_goes_on_at_the_iteration_that_failed(world):
    body = (
        "{id: post, type: action.http.request, effect: keyed, retry: {maxAttempts: 1}, "
        "params: {method: POST, url: 'http://far.example/{{ item }}'}}"
    )
    text = chain(
        f"{{id: each, type: logic.foreach, params: {{items: [1, 2, 3, 4]}}, nodes: [{body}]}}"
    )
    world.http.script.extend([ok(b'{"n": 1}'), ok(b'{"n": 2}'), ok(status=500), ok(b'{"n": 3}')])
    execution = await world.run(text)
    assert (await world.row(execution)).status is FAILED

    await again(world, execution)
    await world.work()

    row = await world.row(execution)
    assert row.status is COMPLETED
    assert [one["body"].get("n") for one in loads(row.output)] == [1, 2, 3, None]
    assert sent(world) == ["1", "2", "3", "3", "4"]
    assert keys(world)[2] == keys(world)[3]


async def test_a_loop_in_a_loop_goes_on_where_both_were(world):
    """The inner one was cut off by what failed beside it."""
    post = (
        "{id: post, type: action.http.request, effect: keyed, retry: {maxAttempts: 1}, "
        "params: {method: POST, url: 'http://far.example/{{ item }}'}}"
    )
    inner = (
        f"{{id: inner, type: logic.foreach, params: {{items: '{{{{ item }}}}'}}, nodes: [{post}]}}"
    )
    text = chain(
        f"{{id: each, type: logic.foreach, params: {{items: [[1, 2], [3, 4]], concurrency: 2}}, nodes: [{inner}]}}"
    )
    world.http.script.extend([ok(), ok(), ok(status=500), ok()])
    execution = await world.run(text)
    assert (await world.row(execution)).status is FAILED
    before = sent(world)

    await again(world, execution)
    await world.work()

    assert (await world.row(execution)).status is COMPLETED
    assert sorted(before) in (["1", "2", "3"], ["1", "2", "3", "4"])
    done = {one for one in before if before.count(one) == 1}
    assert sorted(set(sent(world))) == ["1", "2", "3", "4"]
    assert len(sent(world)) == 5, (before, sent(world), done)


async def test_a_cancelled_loop_in_a_loop_repeats_nothing_that_was_done_in_it(world):
    """Cut off while the last iteration of the inner one waits."""
    post = (
        "{id: post, type: action.http.request, effect: keyed, "
        "params: {method: POST, url: 'http://far.example/{{ item }}'}}"
    )
    wait = "{id: wait, type: action.time.delay, params: {delaySeconds: '{{ 60 if index == 1 else 0 }}'}}"
    inner = (
        "{id: inner, type: logic.foreach, params: {items: '{{ item }}', collect: '{{ item }}'}, "
        f"nodes: [{post}, {wait}], edges: [{{from: post, to: wait}}]}}"
    )
    text = chain(
        f"{{id: each, type: logic.foreach, params: {{items: [[a, b]]}}, nodes: [{inner}]}}"
    )
    execution = await world.start(await world.load(text))
    await world.work()
    await world.cancel(execution)

    await again(world, execution)
    await world.work()
    world.clock.advance(61)
    await world.fire_timers()
    await world.work()

    row = await world.row(execution)
    assert (row.status, loads(row.output)) == (COMPLETED, [["a", "b"]])
    assert sent(world) == ["a", "b"]


async def test_a_call_that_was_given_up_is_made_anew(world):
    await world.load("id: child\nnodes:\n  - {id: start, type: trigger.time.manual}\nedges: []\n")
    text = chain("{id: run, type: action.workflow.run, params: {workflowId: child, input: 7}}")
    execution = await world.start(await world.load(text))
    await world.work()
    await world.cancel(execution)

    await again(world, execution)
    await world.work()
    await world.work()
    await world.work()

    row = await world.row(execution)
    assert (row.status, loads(row.output)) == (COMPLETED, 7)


async def test_from_a_loop_on_all_its_iterations_run_anew(world):
    body = "{id: get, type: action.http.request, params: {url: 'http://far.example/{{ item }}'}}"
    text = chain(f"{{id: each, type: logic.foreach, params: {{items: [1, 2]}}, nodes: [{body}]}}")
    execution = await world.run(text)

    await again(world, execution, "each")
    await world.work()

    assert (await world.row(execution)).status is COMPLETED
    assert sent(world) == ["1", "2", "1", "2"]


async def test_what_a_loop_gave_before_it_runs_anew_counts_no_more(world):
    world.limits = Limits(output=1_000, execution=1_000)
    world.runtime = world.process()
    body = "{id: put, type: transform.data.set, params: {values: {v: '{{ start }}'}}}"
    text = chain(
        f"{{id: each, type: logic.foreach, params: {{items: [1, 2], collect: false}}, nodes: [{body}]}}"
    )
    execution = await world.start(await world.load(text), "x" * 300)
    await world.work()

    await again(world, execution, "each")
    await world.work()

    assert (await world.row(execution)).status is COMPLETED


async def test_what_is_uncertain_stays_so_and_is_asked_about(world):
    text = chain(call("a", "effect: unsafe"))
    execution = await world.start(await world.load(text))
    claimed = await world.claim()
    await world.store.write(
        lambda tx: tx.execute(
            "INSERT INTO node_runs (execution, key, type, status, attempt, effect) "
            "VALUES (?, 'a', 'action.http.request', 'running', 1, 'unsafe')",
            (claimed.row.seq,),
        )
    )
    await world.crash_and_rescue()
    await world.work()
    assert (await world.row(execution)).status is UNCERTAIN
    await world.cancel(execution)

    await again(world, execution)
    await world.work()

    assert (await world.row(execution)).status is UNCERTAIN
    assert (await world.nodes(execution))["a"].status is NodeStatus.UNCERTAIN
    assert sent(world) == []


async def test_a_keyed_step_whose_input_would_differ_is_uncertain(world):
    text = chain(
        "{id: v, type: transform.data.set, params: {values: {at: '{{ uuid() }}'}}}",
        "{id: a, type: action.http.request, effect: keyed, retry: {maxAttempts: 1}, "
        "params: {method: POST, url: 'http://far.example/a', json: '{{ v }}'}}",
    )
    world.http.script.append(ok(status=500))
    execution = await world.run(text)
    await world.store.write(
        lambda tx: tx.execute(
            "UPDATE node_runs SET output = CAST('{\"at\": 1}' AS BLOB) WHERE key = 'v'"
        )
    )

    await again(world, execution)
    await world.work()

    assert (await world.row(execution)).status is UNCERTAIN
    assert sent(world) == ["a"]


@pytest.mark.parametrize("status", ["queued", "waiting", "uncertain"])
async def test_what_has_not_ended_is_not_tried_again(world, status):
    execution = await world.start(await world.load(THREE))
    await world.store.write(lambda tx: tx.execute("UPDATE executions SET status = ?", (status,)))

    with pytest.raises(ConflictError) as refused:
        await again(world, execution)

    assert refused.value.code == "execution.not_ended"


async def test_what_has_completed_is_run_again_only_from_a_node_on(world):
    execution = await world.run(THREE)

    with pytest.raises(ConflictError) as refused:
        await again(world, execution)

    assert refused.value.code == "execution.completed"


@pytest.mark.parametrize("start", ["bb", "start", "each[0].post"])
async def test_a_node_that_is_none_is_told_with_the_nearest(world, start):
    execution = await world.run(THREE)

    with pytest.raises(InputError) as refused:
        await again(world, execution, start)

    assert refused.value.code == "execution.unknown_node"
    assert start != "bb" or refused.value.hint == "did you mean 'b'?"
    assert (await world.row(execution)).status is COMPLETED


async def test_the_time_limit_counts_anew(world):
    delay = "{id: wait, type: action.time.delay, params: {delaySeconds: 60}}"
    text = chain(delay).replace("id: flow\n", "id: flow\ntimeoutMs: 5000\n")
    execution = await world.start(await world.load(text))
    await world.work()
    world.clock.advance(6)
    await world.fire_timers()
    await world.work()
    assert (await world.row(execution)).status is FAILED

    await again(world, execution)
    await world.work()

    assert (await world.row(execution)).status is ExecutionStatus.WAITING
