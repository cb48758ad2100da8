"""`action.workflow.run`, and the time limit of a workflow: executions that wait for others, or for too long."""

from __future__ import annotations

import anyio
import pytest
from support.runs import World

from stackd.core.json import loads
from stackd.runtime.tools import Limits
from stackd.runtime.workflow_runtime import claim
from stackd.store.database import Database
from stackd.testing import ok
from stackd.workflows import executions
from stackd.workflows.executions import CallEnded, ExecutionStatus, NodeFinished, NodeStatus

COMPLETED, FAILED = ExecutionStatus.COMPLETED, ExecutionStatus.FAILED


def flow(flow_id: str, node: str, *, top: str = "", more: str = "", edges: str = "") -> str:
    return f"""
id: {flow_id}
{top}
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {node}
{more}
edges:
  - {{from: start, to: a}}
{edges}
"""


def run_of(flow_id: str, params: str = "", extra: str = "") -> str:
    return f"{{id: a, type: action.workflow.run{extra}, params: {{workflowId: {flow_id}{params}}}}}"


def put(value: str, node_id: str = "a") -> str:
    return f"{{id: {node_id}, type: transform.data.set, params: {{values: {{v: {value}}}}}}}"


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


async def work_all(world: World) -> None:
    """Run whatever is due, until nothing is."""
    while True:
        claimed = await world.store.write(
            lambda tx: claim(tx, owner="me", limit=10, lease=60.0, now=world.clock.time())
        )
        if not claimed:
            return
        for one in claimed:
            await world.runtime.execute(one)


async def child_of(world: World, parent: str, key: str = "a") -> str:
    nodes = await world.nodes(parent)
    return str(loads(nodes[key].metadata)["executionId"])


async def test_a_node_gives_what_the_workflow_it_runs_gave(world):
    await world.load(flow("child", put("'{{ start.n + 1 }}'")))
    parent = await world.start(
        await world.load(flow("parent", run_of("child", ", input: {n: '{{ start }}'}"))), 41
    )

    await work_all(world)

    row = await world.row(parent)
    assert (row.status, loads(row.output)) == (COMPLETED, {"v": 42})
    child = await world.row(await child_of(world, parent))
    assert (child.trigger_type, child.parent, child.depth) == ("action.workflow.run", row.seq, 1)


async def test_the_parent_holds_no_job_while_it_waits(world):
    await world.load(flow("child", put("1")))
    parent = await world.start(await world.load(flow("parent", run_of("child"))))

    await world.work()

    assert (await world.row(parent)).status is ExecutionStatus.WAITING


async def test_a_node_that_does_not_wait_gives_the_id_at_once(world):
    await world.load(flow("child", put("1")))
    parent = await world.start(await world.load(flow("parent", run_of("child", ", wait: false"))))

    await world.work()

    row = await world.row(parent)
    assert row.status is COMPLETED
    output = loads(row.output)
    assert output["workflowId"] == "child"
    assert (await world.row(output["executionId"])).status is ExecutionStatus.QUEUED
    await work_all(world)
    assert (await world.row(output["executionId"])).status is COMPLETED


async def test_the_end_of_a_wait_is_told_as_the_end_of_its_node(world):
    """By name: a stream that asks for one execution hears of it."""
    delay = "{id: b, type: action.time.delay, params: {delaySeconds: 60}}"
    await world.load(flow("child", put("1")))
    text = flow("parent", run_of("child"), more=f"  - {delay}", edges="  - {from: a, to: b}")
    parent = await world.start(await world.load(text))
    await work_all(world)
    world.clock.advance(61)
    await world.fire_timers()
    await work_all(world)

    told = [e for e in world.seen if isinstance(e, NodeFinished) and e.execution_id == parent]
    assert [(e.key, e.status) for e in told] == [(k, "completed") for k in ("start", "a", "b")]
    assert told[2].seconds == pytest.approx(61)
    assert {e.workflow_id for e in told} == {"parent"}


async def test_a_failed_workflow_fails_the_node_that_runs_it(world):
    await world.load(flow("child", put("'{{ 1 // 0 }}'")))
    parent = await world.start(await world.load(flow("parent", run_of("child"))))

    await work_all(world)

    row = await world.row(parent)
    error = loads(row.error)
    assert row.status is FAILED
    assert error["code"] == "workflow.failed"
    assert "division by zero" in error["message"]


async def test_a_node_may_go_on_when_the_workflow_it_runs_has_failed(world):
    await world.load(flow("child", put("'{{ 1 // 0 }}'")))
    text = flow(
        "parent", run_of("child", extra=", onError: continue"),
        more=f"  - {put(chr(39) + '{{ a.error.code }}' + chr(39), 'b')}", edges="  - {from: a, to: b}",
    )  # fmt: skip
    parent = await world.start(await world.load(text))

    await work_all(world)

    assert loads((await world.row(parent)).output) == {"v": "workflow.failed"}


async def test_a_cancelled_workflow_fails_the_node_that_runs_it(world):
    await world.load(flow("child", put("1")))
    parent = await world.start(await world.load(flow("parent", run_of("child"))))
    await world.work()

    await world.cancel(await child_of(world, parent))
    await work_all(world)

    assert loads((await world.row(parent)).error)["code"] == "workflow.cancelled"


async def test_a_cancelled_parent_cancels_what_it_waits_for(world):
    await world.load(flow("child", run_of("grandchild")))
    await world.load(flow("grandchild", put("1")))
    parent = await world.start(await world.load(flow("parent", run_of("child"))))
    await world.work()
    await world.work()
    child = await child_of(world, parent)
    grandchild = await child_of(world, child)

    await world.cancel(parent)

    for one in (parent, child, grandchild):
        assert (await world.row(one)).status is ExecutionStatus.CANCELLED
    await work_all(world)


async def test_a_cancelled_parent_leaves_alone_what_it_does_not_wait_for(world):
    await world.load(flow("child", put("1")))
    delay = "{id: b, type: action.time.delay, params: {delaySeconds: 60}}"
    text = flow(
        "parent",
        run_of("child", ", wait: false"),
        more=f"  - {delay}",
        edges="  - {from: a, to: b}",
    )
    parent = await world.start(await world.load(text))
    await world.work()
    child = loads((await world.nodes(parent))["a"].output)["executionId"]

    await world.cancel(parent)
    await work_all(world)

    assert (await world.row(parent)).status is ExecutionStatus.CANCELLED
    assert (await world.row(child)).status is COMPLETED


async def test_an_unknown_workflow_fails_the_node(world):
    parent = await world.run(flow("parent", run_of("nowhere")))

    assert loads((await world.row(parent)).error)["code"] == "workflow.not_found"


async def test_workflows_that_run_themselves_end_at_the_limit(world):
    first = await world.start(await world.load(flow("again", run_of("again"))))

    await work_all(world)

    row = await world.row(first)
    assert row.status is FAILED
    assert "over 10 workflows in each other" in loads(row.error)["message"]
    count = await world.store.read(lambda tx: tx.one("SELECT count(*) FROM executions"))
    assert count == (executions.DEEPEST,)


async def test_a_workflow_whose_executions_run_one_at_a_time_may_run_itself(world):
    """Who waits holds no place."""
    text = flow("again", run_of("again", extra=", onError: continue"), top="concurrency: 1")
    first = await world.start(await world.load(text))

    await work_all(world)

    assert (await world.row(first)).status is COMPLETED


async def test_an_output_over_the_limit_of_a_node_fails_the_node_that_waits_for_it(world):
    world.limits = Limits(output=1000, execution=10**6)
    world.runtime = world.process()
    await world.load(
        flow("child", put("'{{ start }}'"), more=f"  - {put(chr(39) + '{{ start }}' + chr(39), 'b')}",
             edges="  - {from: start, to: b}")
    )  # fmt: skip
    text = flow("parent", run_of("child", ", input: '{{ start }}'"))
    parent = await world.start(await world.load(text), "x" * 700)

    await work_all(world)

    assert loads((await world.row(parent)).error)["code"] == "node.too_large"


async def test_a_loop_runs_a_workflow_for_each_item(world):
    await world.load(flow("child", put("'{{ start * 10 }}'")))
    body = "{id: one, type: action.workflow.run, params: {workflowId: child, input: '{{ item }}'}}"
    text = flow(
        "parent",
        f"{{id: a, type: logic.foreach, params: {{items: '{{{{ start }}}}', concurrency: 2}}, nodes: [{body}]}}",
    )
    parent = await world.start(await world.load(text), [1, 2, 3])

    await work_all(world)

    assert loads((await world.row(parent)).output) == [{"v": 10}, {"v": 20}, {"v": 30}]


async def test_a_child_that_ends_beside_its_running_parent_is_taken_up(world):
    """The parent has another branch in flight, so it does not rest."""
    await world.load(flow("child", put("7")))
    gate = anyio.Event()

    async def late(_):
        await gate.wait()
        return ok()

    world.http.script.append(late)
    text = flow(
        "parent", run_of("child"),
        more="  - {id: b, type: action.http.request, params: {url: 'http://far.example/'}}",
        edges="  - {from: start, to: b}",
    )  # fmt: skip
    parent = await world.start(await world.load(text))
    seq = (await world.row(parent)).seq

    async with world.running(await world.claim()):
        await world.http.arrived(1)
        while not (claimed := await _next(world)):
            await anyio.lowlevel.checkpoint()
        await world.runtime.execute(claimed[0])
        assert isinstance(await world.happens(CallEnded), CallEnded)
        world.runtime.wake(seq)
        gate.set()

    assert (await world.row(parent)).status is COMPLETED


async def _next(world: World):
    return await world.store.write(
        lambda tx: claim(tx, owner="me", limit=10, lease=60.0, now=world.clock.time())
    )


async def test_a_child_that_has_ended_stays_so_though_the_loop_around_its_call_fails_unawares(
    world,
):
    """Else a retry would call it a second time."""
    await world.load(flow("child", put("7")))
    gate = anyio.Event()

    async def refuse(_):
        await gate.wait()
        return ok(status=400)

    world.http.script.append(refuse)
    text = flow(
        "parent",
        "{id: a, type: logic.foreach, params: {items: [call, ask], concurrency: 2}, nodes: ["
        "{id: way, type: logic.branch, params: {condition: \"item == 'call'\"}}, "
        "{id: call, type: action.workflow.run, params: {workflowId: child}}, "
        "{id: ask, type: action.http.request, params: {url: 'http://far.example/'}}], "
        "edges: [{from: way, to: call, on: true}, {from: way, to: ask, on: false}]}",
    )
    parent = await world.start(await world.load(text))

    async with world.running(await world.claim()):
        await world.http.arrived(1)
        while not (claimed := await _next(world)):
            await anyio.lowlevel.checkpoint()
        await world.runtime.execute(claimed[0])
        gate.set()

    assert (await world.row(parent)).status is FAILED
    call = (await world.nodes(parent))["a[0].call"]
    assert (call.status, loads(call.output)) == (NodeStatus.COMPLETED, {"v": 7})


async def test_a_call_is_made_once_though_the_process_dies_around_it(world):
    """Either the call and its record are there, or neither."""
    await world.load(flow("child", put("1")))
    parent = await world.start(await world.load(flow("parent", run_of("child"))))

    await world.claim()
    world.runtime = world.process()
    await world.crash_and_rescue()  # before it was made
    await world.work()
    await work_all(world)
    await world.crash_and_rescue()  # nothing is left to rescue

    assert (await world.row(parent)).status is COMPLETED
    count = await world.store.read(lambda tx: tx.one("SELECT count(*) FROM executions"))
    assert count == (2,)


@pytest.mark.parametrize("wait", ["true", "false"])
async def test_a_call_waits_while_the_queue_is_full_and_holds_no_worker(world, wait):
    world.max_jobs = 1
    world.runtime = world.process()
    await world.load(flow("child", put("1")))
    text = flow("parent", run_of("child", f", wait: {wait}"))
    parent = await world.start(await world.load(text))

    await world.work()
    assert (await world.row(parent)).status is ExecutionStatus.WAITING
    assert await world.store.read(lambda tx: tx.one("SELECT count(*) FROM executions")) == (1,)
    world.max_jobs = 100
    world.runtime = world.process()
    world.clock.advance(6)
    await world.fire_timers()
    await work_all(world)

    assert (await world.row(parent)).status is COMPLETED
    assert await world.store.read(lambda tx: tx.one("SELECT count(*) FROM executions")) == (2,)


# -- time limits


async def test_an_execution_that_runs_too_long_fails(world):
    hangs = anyio.Event()

    async def hang(_):
        await hangs.wait()

    world.http.script.append(hang)
    text = flow(
        "slow", "{id: a, type: action.http.request, params: {url: 'http://far.example/'}}",
        top="timeoutMs: 5000",
    )  # fmt: skip
    started = await world.start(await world.load(text))

    async with world.running(await world.claim()):
        await world.http.arrived(1)
        while not world.clock.is_awaited:
            await anyio.lowlevel.checkpoint()
        for _ in range(20):
            world.clock.advance(0.3)
            await anyio.wait_all_tasks_blocked()

    row = await world.row(started)
    assert row.status is FAILED
    assert loads(row.error) == {"code": "execution.timeout", "message": "not over within 5 s"}


async def test_an_execution_that_waits_too_long_fails_when_its_time_is_over(world):
    text = flow(
        "slow",
        "{id: a, type: action.time.delay, params: {delaySeconds: 600}}",
        top="timeoutMs: 5000",
    )
    started = await world.start(await world.load(text))
    await world.work()
    assert (await world.row(started)).status is ExecutionStatus.WAITING

    world.clock.advance(6)
    await world.fire_timers()
    await world.work()

    row = await world.row(started)
    assert (row.status, loads(row.error)["code"]) == (FAILED, "execution.timeout")
    world.clock.advance(600)
    await world.fire_timers()
    await work_all(world)
    assert (await world.row(started)).status is FAILED


async def test_an_execution_in_time_is_not_touched_by_its_limit(world):
    text = flow(
        "quick",
        "{id: a, type: action.time.delay, params: {delaySeconds: 2}}",
        top="timeoutMs: 5000",
    )
    started = await world.start(await world.load(text))
    await world.work()
    world.clock.advance(3)
    await world.fire_timers()
    await world.work()
    assert (await world.row(started)).status is COMPLETED

    world.clock.advance(10)

    assert await world.fire_timers() == 0
    assert await _next(world) == []
    assert (await world.row(started)).status is COMPLETED


async def test_an_unsafe_step_cut_off_by_the_time_limit_is_uncertain(world):
    hangs = anyio.Event()

    async def hang(_):
        await hangs.wait()

    world.http.script.append(hang)
    text = flow(
        "slow",
        "{id: a, type: action.http.request, effect: unsafe, params: {method: POST, url: 'http://far.example/'}}",
        top="timeoutMs: 5000",
    )
    started = await world.start(await world.load(text))

    async with world.running(await world.claim()):
        await world.http.arrived(1)
        while not world.clock.is_awaited:
            await anyio.lowlevel.checkpoint()
        for _ in range(20):
            world.clock.advance(0.3)
            await anyio.wait_all_tasks_blocked()

    assert (await world.row(started)).status is ExecutionStatus.UNCERTAIN


async def test_an_execution_that_the_outputs_of_its_calls_make_too_large_fails(world):
    """Each is under the limit of a node; nothing else of the loop is kept."""
    world.limits = Limits(output=1000, execution=60_000)
    world.runtime = world.process()
    await world.load(flow("child", put("'{{ start }}'")))
    body = "{id: one, type: action.workflow.run, params: {workflowId: child, input: '{{ item }}'}}"
    text = flow(
        "parent", f"{{id: a, type: logic.foreach, params: {{items: '{{{{ start }}}}', collect: false}}, nodes: [{body}]}}"
    )  # fmt: skip
    parent = await world.start(await world.load(text), ["x" * 400] * 100)

    await work_all(world)

    row = await world.row(parent)
    assert (row.status, loads(row.error)["code"]) == (FAILED, "execution.too_large")
    count = await world.store.read(lambda tx: tx.one("SELECT count(*) FROM executions"))
    assert count is not None
    assert count[0] < 60
