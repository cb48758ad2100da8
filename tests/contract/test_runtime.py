"""One execution from claim to rest: the graph, the journal, retries, waits, cancel and recovery."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest
from support.runs import LEASE, World, time_passes
from support.watched import WatchedStore

from stackd.core.errors import NodeError, StoreBusyError, StoreError, StoreFullError
from stackd.core.json import loads
from stackd.http.message import Request, Response
from stackd.queue import verbs
from stackd.queue.job import LIVE
from stackd.runtime.events import NodeRetried, NodeSent, NodeStarted
from stackd.runtime.tools import FLUSH_AFTER, STORE_RETRY, Limits
from stackd.store.database import Database
from stackd.testing import ScriptedHttp, ok
from stackd.workflows.executions import ExecutionStatus, NodeStatus, TimerSet

COMPLETED, FAILED, SKIPPED = NodeStatus.COMPLETED, NodeStatus.FAILED, NodeStatus.SKIPPED
WAITING, UNCERTAIN, PENDING = NodeStatus.WAITING, NodeStatus.UNCERTAIN, NodeStatus.PENDING


def flow(*nodes: str, edges: str) -> str:
    """A workflow with a manual trigger `start`; `edges`: `a>b, b>c`, with extra keys after a space."""
    listed = "\n".join(f"  - {node}" for node in nodes)
    lines = []
    for edge in filter(None, (part.strip() for part in edges.split(","))):
        arrow, _, extra = edge.partition(" ")
        source, _, target = arrow.partition(">")
        lines.append(f"  - {{from: {source}, to: {target}{', ' + extra if extra else ''}}}")
    joined = "\n".join(lines)
    return f"id: flow\nnodes:\n  - {{id: start, type: trigger.time.manual}}\n{listed}\nedges:\n{joined}\n"


def call(node_id: str, method: str = "GET", *, extra: str = "", params: str = "") -> str:
    return (
        f"{{id: {node_id}, type: action.http.request{extra}, "
        f"params: {{url: 'http://far.example/{node_id}', method: {method}{params}}}}}"
    )


def put(node_id: str, value: str = "'{{ start }}'") -> str:
    return f"{{id: {node_id}, type: transform.data.set, params: {{values: {{v: {value}}}}}}}"


def network(*, sent: bool) -> NodeError:
    return NodeError("connection lost", kind="network", code="http.reset", sent=sent)


def gated(
    gate: anyio.Event, answer: Response | None = None
) -> Callable[[Request], Awaitable[Response]]:
    async def respond(_: Request) -> Response:
        await gate.wait()
        return answer or ok()

    return respond


async def crash_at(world: World, claimed: Any, moment: Callable[[], Awaitable[Any]]) -> None:
    """Run `claimed` until `moment` returns, then end the run as a killed process would: nothing more is written."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.runtime.execute, claimed)
        await moment()
        tasks.cancel_scope.cancel()
    world.runtime = world.process()


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


# -- the graph


async def test_the_output_is_the_one_of_the_last_node(world):
    done = await world.run(
        flow(put("a"), put("b", "'{{ a.v.x }}'"), edges="start>a, a>b"), {"x": 7}
    )

    row = await world.row(done)
    assert row.status is ExecutionStatus.COMPLETED
    assert loads(row.output) == {"v": 7}


async def test_several_ends_give_a_map_by_node(world):
    done = await world.run(flow(put("a"), put("b"), edges="start>a, start>b"), 1)

    assert loads((await world.row(done)).output) == {"a": {"v": 1}, "b": {"v": 1}}


async def test_independent_branches_run_at_the_same_time(world):
    gate = anyio.Event()
    world.http.script.extend([gated(gate), gated(gate)])
    started = await world.start(
        await world.load(flow(call("a"), call("b"), edges="start>a, start>b"))
    )

    async with world.running(await world.claim()):
        await world.http.arrived(2)
        gate.set()

    assert (await world.row(started)).status is ExecutionStatus.COMPLETED


async def test_a_join_waits_for_every_edge_and_runs_when_one_is_taken(world):
    text = flow(
        put("a"), put("b"), put("join", "1"), edges="start>a, start>b, a>join, b>join when: 'false'"
    )

    done = await world.run(text, 1)

    assert await world.states(done) == {
        "start": COMPLETED, "a": COMPLETED, "b": COMPLETED, "join": COMPLETED,
    }  # fmt: skip


async def test_what_no_taken_edge_leads_to_is_skipped_all_the_way_down(world):
    text = flow(put("a"), put("b"), put("c"), edges="start>a when: 'start > 5', a>b, b>c, start>c")

    done = await world.run(text, 1)

    assert await world.states(done) == {
        "start": COMPLETED, "a": SKIPPED, "b": SKIPPED, "c": COMPLETED,
    }  # fmt: skip


async def test_a_condition_that_cannot_be_evaluated_fails_the_execution_and_names_the_edge(world):
    done = await world.run(flow(put("a"), edges="start>a when: 'start.x.y > 1'"), {"x": 1})

    row = await world.row(done)
    assert row.status is ExecutionStatus.FAILED
    assert "start → a" in loads(row.error)["message"]


async def test_a_disabled_node_is_passed_by_and_a_pinned_one_gives_its_data(world):
    text = flow(
        "{id: off, type: action.http.request, disabled: true, params: {url: 'http://far.example'}}",
        "{id: pin, type: action.http.request, pinned: {n: 5}, params: {url: 'http://far.example'}}",
        put("end", "'{{ pin.n }}'"),
        edges="start>off, off>pin, pin>end",
    )

    done = await world.run(text)

    assert world.http.requests == []
    assert (await world.states(done))["off"] is SKIPPED
    assert loads((await world.row(done)).output) == {"v": 5}


async def test_a_missing_value_fails_the_node_with_its_path(world):
    done = await world.run(flow(put("a", "'{{ start.nope.x }}'"), edges="start>a"), {})

    error = loads((await world.row(done)).error)
    assert error["nodeId"] == "a"
    assert "start.nope" in error["message"]


async def test_a_rendered_value_of_the_wrong_kind_fails_before_anything_is_sent(world):
    text = flow(
        "{id: a, type: action.http.request, params: {url: 'http://far.example', method: '{{ start }}'}}",
        edges="start>a",
    )

    done = await world.run(text, "BREW")

    assert world.http.requests == []
    assert loads((await world.row(done)).error)["code"] == "params.invalid"


# -- failures


async def test_a_failed_node_fails_the_execution(world):
    world.http.script.append(ok(b'{"error": "no such thing"}', 404))

    done = await world.run(flow(call("a"), put("b"), edges="start>a, a>b"))

    row = await world.row(done)
    assert row.status is ExecutionStatus.FAILED
    assert loads(row.error) == {
        "code": "http.status_404", "message": "answered 404: no such thing", "nodeId": "a",
    }  # fmt: skip
    assert "b" not in await world.states(done)


async def test_on_error_continue_goes_on_with_the_error_as_output(world):
    world.http.script.append(ok(b"{}", 404))

    done = await world.run(
        flow(
            call("a", extra=", onError: continue"),
            put("b", "'{{ a.error.code }}'"),
            edges="start>a, a>b",
        )
    )

    assert loads((await world.row(done)).output) == {"v": "http.status_404"}


async def test_on_error_route_takes_only_the_error_edge(world):
    world.http.script.append(ok(b"{}", 500))
    text = flow(
        call("a", extra=", onError: route"), put("good", "1"), put("bad", "'{{ a.error.code }}'"),
        edges="start>a, a>good, a>bad on: error",
    )  # fmt: skip

    done = await world.run(text)

    assert await world.states(done) == {
        "start": COMPLETED, "a": FAILED, "good": SKIPPED, "bad": COMPLETED,
    }  # fmt: skip
    assert (await world.row(done)).status is ExecutionStatus.COMPLETED


async def test_a_status_that_is_allowed_is_an_answer(world):
    world.http.script.append(ok(b'{"n": 1}', 404))

    done = await world.run(flow(call("a", params=", allowStatus: ['404']"), edges="start>a"))

    assert loads((await world.row(done)).output)["status"] == 404


async def test_the_body_is_parsed_by_its_type_or_kept_as_a_blob(world):
    plain = Response(200, {"content-type": "text/plain"}, b"hi", "http://x/", "text/plain", None)
    image = Response(200, {"content-type": "image/png"}, b"\x89PNG", "http://x/", "image/png", None)
    world.http.script.extend([ok(b'{"n": 12345678901234567890}'), plain, image])

    done = await world.run(flow(call("a"), call("b"), call("c"), edges="start>a, a>b, b>c"))

    nodes = await world.nodes(done)
    assert loads(nodes["a"].output)["body"] == {"n": 12345678901234567890}
    assert loads(nodes["b"].output)["body"] == "hi"
    assert list(world.blobs.kept.values()) == [b"\x89PNG"]
    assert loads(nodes["c"].output)["body"]["$blob"] in world.blobs.kept


# -- retries


async def test_a_read_is_tried_again_after_its_wait(world):
    world.http.script.extend([network(sent=True), ok(b"1")])
    started = await world.start(
        await world.load(
            flow(call("a", extra=", retry: {maxAttempts: 2, initialMs: 400}"), edges="start>a")
        )
    )

    async with world.running(await world.claim()):
        await world.happens(NodeRetried)
        world.clock.advance(await world.clock.someone_sleeps())

    assert (await world.nodes(started))["a"].attempt == 2
    assert (await world.row(started)).status is ExecutionStatus.COMPLETED


async def test_a_long_wait_to_retry_is_a_timer_and_holds_no_worker(world):
    world.http.script.extend([ok(b"{}", 429, retry_after="90"), ok(b"1")])

    started = await world.run(flow(call("a"), edges="start>a"))

    assert (await world.row(started)).status is ExecutionStatus.WAITING
    world.clock.advance(90)
    assert await world.fire_timers() == 1
    await world.work()
    assert (await world.row(started)).status is ExecutionStatus.COMPLETED
    assert (await world.nodes(started))["a"].attempt == 2


async def test_attempts_end_with_the_last_failure(world):
    world.http.script.extend([network(sent=True)] * 2)
    started = await world.start(
        await world.load(
            flow(call("a", extra=", retry: {maxAttempts: 2, initialMs: 0}"), edges="start>a")
        )
    )

    async with world.running(await world.claim()):
        await world.happens(NodeRetried)
        world.clock.advance(await world.clock.someone_sleeps())

    assert len(world.http.requests) == 2
    assert loads((await world.row(started)).error)["code"] == "http.reset"


async def test_an_answer_about_the_request_is_not_tried_again(world):
    world.http.script.append(ok(b"{}", 422))

    await world.run(flow(call("a"), edges="start>a"))

    assert len(world.http.requests) == 1


async def test_a_keyed_action_is_tried_again_under_the_same_key(world):
    world.http.script.extend([network(sent=True), ok(b"1")])
    text = flow(
        call("a", "POST", extra=", effect: keyed, retry: {maxAttempts: 2, initialMs: 0}"),
        edges="start>a",
    )
    started = await world.start(await world.load(text))

    async with world.running(await world.claim()):
        await world.happens(NodeRetried)
        world.clock.advance(await world.clock.someone_sleeps())

    keys = {request.headers["Idempotency-Key"] for request in world.http.requests}
    assert len(world.http.requests) == 2
    assert keys == {f"{started}:a"}


@pytest.mark.parametrize(
    "failure",
    [
        network(sent=True),
        NodeError("no answer", kind="timeout", code="http.timeout", sent=True),
    ],
    ids=["reset", "timeout"],
)
async def test_an_unsafe_action_without_an_answer_is_uncertain_and_never_sent_again(world, failure):
    world.http.script.append(failure)

    started = await world.run(flow(call("a", "POST"), put("b"), edges="start>a, a>b"))

    assert (await world.row(started)).status is ExecutionStatus.UNCERTAIN
    assert (await world.states(started))["a"] is UNCERTAIN
    assert len(world.http.requests) == 1


@pytest.mark.parametrize(
    "first", [network(sent=False), ok(b"{}", 429), ok(b"{}", 503, retry_after="0")],
    ids=["not sent", "429", "503 with Retry-After"],
)  # fmt: skip
async def test_an_unsafe_action_that_was_not_done_is_tried_again(world, first):
    world.http.script.extend([first, ok(b"1")])
    started = await world.start(
        await world.load(
            flow(
                call("a", "POST", extra=", retry: {maxAttempts: 2, initialMs: 0}"), edges="start>a"
            )
        )
    )

    async with world.running(await world.claim()):
        await world.happens(NodeRetried)
        world.clock.advance(await world.clock.someone_sleeps())

    assert (await world.row(started)).status is ExecutionStatus.COMPLETED


async def test_an_unsafe_action_answered_500_fails_and_is_not_sent_again(world):
    world.http.script.append(ok(b"{}", 500))

    started = await world.run(flow(call("a", "POST"), edges="start>a"))

    assert (await world.row(started)).status is ExecutionStatus.FAILED
    assert len(world.http.requests) == 1


async def test_the_timeout_that_holds_is_the_nodes_own(world):
    world.http.script.append(gated(anyio.Event()))

    started = await world.run(
        flow(call("a", extra=", timeoutMs: 30, retry: {maxAttempts: 1}"), edges="start>a")
    )

    error = loads((await world.row(started)).error)
    assert error["code"] == "node.timeout"
    assert "0.03 s" in error["message"]


# -- a person decides


async def test_a_resolved_retry_sends_again(world):
    world.http.script.extend([network(sent=True), ok(b'{"n": 2}')])
    started = await world.run(flow(call("a", "POST"), edges="start>a"))

    await world.resolve(started, "retry")
    await world.work()

    assert loads((await world.row(started)).output)["body"] == {"n": 2}


async def test_a_resolved_skip_goes_on_without_an_output(world):
    world.http.script.append(network(sent=True))
    started = await world.run(flow(call("a", "POST"), put("b", "1"), edges="start>a, a>b"))

    await world.resolve(started, "skip")
    await world.work()

    assert await world.states(started) == {"start": COMPLETED, "a": SKIPPED, "b": COMPLETED}
    assert (await world.row(started)).status is ExecutionStatus.COMPLETED


async def test_a_resolved_fail_fails_the_execution(world):
    world.http.script.append(network(sent=True))
    started = await world.run(flow(call("a", "POST"), edges="start>a"))

    await world.resolve(started, "fail")
    await world.work()

    assert (await world.row(started)).status is ExecutionStatus.FAILED


async def test_the_other_branch_finishes_before_the_execution_rests_uncertain(world):
    world.http.script.extend([network(sent=True)])

    started = await world.run(flow(call("a", "POST"), put("b", "1"), edges="start>a, start>b"))

    assert await world.states(started) == {"start": COMPLETED, "a": UNCERTAIN, "b": COMPLETED}


# -- waits


async def test_a_short_delay_is_waited_for_in_place(world):
    started = await world.start(
        await world.load(
            flow("{id: d, type: action.time.delay, params: {delayMs: 900}}", edges="start>d")
        )
    )

    async with world.running(await world.claim()):
        world.clock.advance(await world.clock.someone_sleeps())

    assert (await world.row(started)).status is ExecutionStatus.COMPLETED


async def test_a_long_delay_waits_as_a_timer_and_goes_on_when_it_fires(world):
    text = flow(
        "{id: d, type: action.time.delay, params: {delayHours: 2, delayMinutes: 1}}",
        put("after", "'{{ d.delayedMs }}'"),
        edges="start>d, d>after",
    )

    started = await world.run(text)

    assert (await world.row(started)).status is ExecutionStatus.WAITING
    assert await world.fire_timers() == 0
    world.clock.advance(7260)
    assert await world.fire_timers() == 1
    await world.work()
    assert loads((await world.row(started)).output) == {"v": 7_260_000}


async def test_two_waits_of_one_execution_fire_one_by_one(world):
    text = flow(
        "{id: d, type: action.time.delay, params: {delaySeconds: 10}}",
        "{id: e, type: action.time.delay, params: {delaySeconds: 20}}",
        put("join", "1"),
        edges="start>d, start>e, d>join, e>join",
    )
    started = await world.run(text)

    for _ in range(2):
        assert (await world.row(started)).status is ExecutionStatus.WAITING
        world.clock.advance(10)
        assert await world.fire_timers() == 1
        await world.work()

    assert (await world.row(started)).status is ExecutionStatus.COMPLETED


async def test_a_timer_that_fires_while_the_run_comes_to_rest_is_not_lost(world):
    gate = anyio.Event()
    world.http.script.append(gated(gate))
    text = flow(
        "{id: d, type: action.time.delay, params: {delaySeconds: 10}}", call("slow", "PUT"), put("join", "1"),
        edges="start>d, start>slow, d>join, slow>join",
    )  # fmt: skip
    started = await world.start(await world.load(text))

    async with world.running(await world.claim()):
        await world.http.arrived(1)  # its intent row, and with it the timer, is committed
        world.clock.advance(10)
        assert await world.fire_timers() == 1  # the job still runs: the wake is only counted
        gate.set()

    assert (await world.row(started)).status is ExecutionStatus.COMPLETED


async def test_a_wait_that_ends_goes_on_while_another_branch_still_runs(world):
    gate = anyio.Event()
    world.http.script.extend([gated(gate), ok(b"2")])
    nodes = (
        call("slow"),
        "{id: nap, type: action.time.delay, params: {delaySeconds: 5}}",
        call("b"),
    )
    started = await world.start(
        await world.load(flow(*nodes, edges="start>slow, start>nap, nap>b"))
    )

    async with world.running(await world.claim()):
        await time_passes(world, FLUSH_AFTER, until=lambda: TimerSet in map(type, world.seen))
        world.clock.advance(5.0)
        await world.fire_timers()
        (run,) = world.runtime.waiting()
        world.runtime.wake(run)
        await world.http.arrived(2)
        gate.set()

    assert await world.states(started) == dict.fromkeys(("start", "slow", "nap", "b"), COMPLETED)


# -- cancel


async def test_cancel_ends_a_running_execution(world):
    world.http.script.append(gated(anyio.Event()))
    started = await world.start(await world.load(flow(call("a"), put("b"), edges="start>a, a>b")))

    claimed = await world.claim()
    async with world.running(claimed):
        await world.http.arrived(1)
        await world.cancel(started)
        world.runtime.cancel(claimed.row.seq)

    assert (await world.row(started)).status is ExecutionStatus.CANCELLED
    assert (await world.states(started))["a"] is SKIPPED


async def test_cancel_leaves_an_unsafe_action_in_flight_uncertain(world):
    world.http.script.append(gated(anyio.Event()))
    started = await world.start(await world.load(flow(call("a", "POST"), edges="start>a")))

    claimed = await world.claim()
    async with world.running(claimed):
        await world.http.arrived(1)
        await world.cancel(started)
        world.runtime.cancel(claimed.row.seq)

    assert (await world.row(started)).status is ExecutionStatus.CANCELLED
    assert (await world.states(started))["a"] is UNCERTAIN


async def test_cancel_ends_a_waiting_execution_and_its_timer(world):
    started = await world.run(
        flow("{id: d, type: action.time.delay, params: {delayHours: 2}}", edges="start>d")
    )

    assert await world.cancel(started) == "cancelled"

    world.clock.advance(7200)
    assert await world.fire_timers() == 0


async def test_cancel_ends_a_queued_execution_at_once(world):
    started = await world.start(await world.load(flow(put("a"), edges="start>a")))

    assert await world.cancel(started) == "cancelled"


async def test_cancel_of_a_dead_process_execution_is_written_after_the_rescue(world):
    world.http.script.append(gated(anyio.Event()))
    started = await world.start(await world.load(flow(call("a"), edges="start>a")))
    await crash_at(world, await world.claim(), lambda: world.http.arrived(1))

    await world.cancel(started)
    assert await world.crash_and_rescue() == 1

    assert (await world.row(started)).status is ExecutionStatus.CANCELLED
    assert await world.store.read(verbs.live_counts) == dict.fromkeys(LIVE, 0)
    assert len(world.http.requests) == 1


async def test_a_cancel_that_a_run_has_not_seen_is_written_when_it_gives_its_execution_back(world):
    world.http.script.append(gated(anyio.Event()))
    started = await world.start(await world.load(flow(call("a"), edges="start>a")))

    async with world.running(await world.claim()):
        await world.http.arrived(1)
        await world.cancel(started)
        world.runtime.interrupt_all()

    assert (await world.row(started)).status is ExecutionStatus.CANCELLED
    assert await world.store.read(verbs.live_counts) == dict.fromkeys(LIVE, 0)


async def test_a_cancel_is_written_when_the_attempt_fails(database):
    store = WatchedStore(database)
    world = World(store)
    started = await world.start(await world.load(flow(call("a"), edges="start>a")))
    claimed = await world.claim()
    await world.cancel(started)
    store.failing_reads.append(StoreBusyError("locked"))

    await world.runtime.execute(claimed)

    assert (await world.row(started)).status is ExecutionStatus.CANCELLED
    assert await database.read(verbs.live_counts) == dict.fromkeys(LIVE, 0)


# -- recovery


async def test_a_finished_step_is_not_run_again_after_a_crash(world):
    world.http.script.extend([ok(b"1"), gated(anyio.Event()), ok(b"2")])
    text = flow(call("a", "PUT"), call("b", "PUT"), edges="start>a, a>b")
    started = await world.start(await world.load(text))

    await crash_at(world, await world.claim(), lambda: world.http.arrived(2))
    await world.crash_and_rescue()
    await world.work()

    assert [request.url.rpartition("/")[2] for request in world.http.requests] == ["a", "b", "b"]
    assert (await world.row(started)).status is ExecutionStatus.COMPLETED


async def test_a_keyed_action_in_flight_is_sent_again_under_the_same_key(world):
    world.http.script.extend([gated(anyio.Event()), ok(b"2")])
    text = flow(
        call("a", "POST", extra=", effect: keyed, idempotencyKey: 'order-{{ start.n }}'"),
        edges="start>a",
    )
    started = await world.start(await world.load(text), {"n": 4})

    await crash_at(world, await world.claim(), lambda: world.happens(NodeSent))
    await world.crash_and_rescue()
    await world.work()

    assert {r.headers["Idempotency-Key"] for r in world.http.requests} == {"order-4"}
    assert (await world.row(started)).status is ExecutionStatus.COMPLETED


async def test_an_unsafe_action_in_flight_is_uncertain_after_a_crash(world):
    world.http.script.append(gated(anyio.Event()))
    started = await world.start(await world.load(flow(call("a", "POST"), edges="start>a")))

    await crash_at(world, await world.claim(), lambda: world.happens(NodeSent))
    await world.crash_and_rescue()
    await world.work()

    assert (await world.row(started)).status is ExecutionStatus.UNCERTAIN
    assert len(world.http.requests) == 1


async def test_a_process_held_up_before_its_first_byte_does_not_send_and_tries_anew(world):
    held_up = iter([2 * LEASE + 1.0])
    world.store.events.subscribe(lambda _: world.clock.advance(next(held_up, 0.0)), NodeStarted)
    text = flow(call("a", "POST", extra=", retry: {maxAttempts: 2, initialMs: 0}"), edges="start>a")
    started = await world.start(await world.load(text))

    async with world.running(await world.claim()):
        await world.happens(NodeRetried)
        world.clock.advance(await world.clock.someone_sleeps())

    (retried,) = [event for event in world.seen if isinstance(event, NodeRetried)]
    assert retried.code == "node.too_late"
    assert (await world.row(started)).status is ExecutionStatus.COMPLETED
    assert len(world.http.requests) == 1


async def test_a_process_taken_for_dead_before_its_first_byte_does_not_send_what_another_sent(
    world,
):
    class HeldUp(ScriptedHttp):
        reached, may_go_on = anyio.Event(), anyio.Event()

        async def request(self, request, **more):
            self.reached.set()
            await self.may_go_on.wait()
            return await super().request(request, **more)

    patient = ", retry: {maxAttempts: 2, initialMs: 9000}"  # it would leave a timer, and cannot
    text = flow(call("a", "POST", extra=patient), edges="start>a")
    started = await world.start(await world.load(text))
    others, world.http = world.http, HeldUp()
    taken_for_dead = world.process()
    first = await world.claim()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(taken_for_dead.execute, first)
        await HeldUp.reached.wait()
        world.clock.advance(3 * LEASE)
        await world.crash_and_rescue()
        await world.work()
        assert (await world.row(started)).status is ExecutionStatus.UNCERTAIN
        await world.resolve(started, "retry")
        await world.work()
        HeldUp.may_go_on.set()

    assert (await world.row(started)).status is ExecutionStatus.COMPLETED
    assert (len(others.requests), len(world.http.requests)) == (1, 0)


async def test_a_keyed_action_whose_input_changed_is_uncertain_after_a_crash(world):
    world.http.script.extend([ok(b'{"n": 1}'), gated(anyio.Event()), ok(b'{"n": 2}')])
    text = flow(
        call("price"),
        call(
            "book",
            "POST",
            extra=", effect: keyed",
            params=", json: {n: '{{ price.body.n }}', at: '{{ uuid() }}'}",
        ),
        edges="start>price, price>book",
    )
    started = await world.start(await world.load(text))
    await crash_at(world, await world.claim(), lambda: world.http.arrived(2))
    await world.store.write(
        lambda tx: tx.execute("DELETE FROM node_runs WHERE key = 'price'")
    )  # as if the read had not been flushed with the intent

    await world.crash_and_rescue()
    await world.work()

    assert (await world.row(started)).status is ExecutionStatus.UNCERTAIN
    assert len(world.http.requests) == 3


async def test_now_and_uuid_are_the_same_when_a_node_is_run_again(world):
    world.http.script.extend([gated(anyio.Event()), ok(b"1")])
    text = flow(
        call("a", "PUT", params=", json: {at: '{{ now() }}', id: '{{ uuid() }}'}"), edges="start>a"
    )
    await world.start(await world.load(text))
    await crash_at(world, await world.claim(), lambda: world.http.arrived(1))
    world.clock.advance(100)

    await world.crash_and_rescue()
    await world.work()

    first, second = world.http.requests
    assert first.body == second.body


async def test_a_lost_claim_writes_nothing_and_sends_nothing_more(world):
    gate = anyio.Event()
    world.http.script.extend([gated(gate), ok(b"2"), ok(b"3")])
    text = flow(call("a", "PUT"), call("b", "PUT"), edges="start>a, a>b")
    started = await world.start(await world.load(text))
    stale = await world.claim()

    async with world.running(stale):
        await world.http.arrived(1)
        await world.crash_and_rescue()  # its process was believed dead
        fresh = await world.claim("other")
        await world.process().execute(fresh)
        gate.set()

    assert [r.url.rpartition("/")[2] for r in world.http.requests] == ["a", "a", "b"]
    assert (await world.row(started)).status is ExecutionStatus.COMPLETED


async def test_pure_steps_are_committed_only_with_what_builds_on_them(world):
    commits = []
    text = flow(*(put(f"n{i}") for i in range(5)), edges="start>n0, n0>n1, n1>n2, n2>n3, n3>n4")
    started = await world.start(await world.load(text))
    claimed = await world.claim()
    write = world.store.write

    async def counted(change: Any, **how: Any) -> Any:
        commits.append(change)
        return await write(change, **how)

    world.store.write = counted  # type: ignore[method-assign]
    await world.runtime.execute(claimed)

    assert len(commits) == 1
    assert (await world.row(started)).status is ExecutionStatus.COMPLETED


async def test_interrupted_runs_go_back_to_the_queue_and_are_finished_later(world):
    world.http.script.extend([gated(anyio.Event()), ok(b"1")])
    started = await world.start(await world.load(flow(call("a"), edges="start>a")))

    async with world.running(await world.claim()):
        await world.http.arrived(1)
        world.runtime.interrupt_all()
    await world.work()

    assert (await world.row(started)).status is ExecutionStatus.COMPLETED
    assert len(world.http.requests) == 2


async def test_a_retry_a_person_asked_for_is_sent_though_the_input_changed(world):
    world.http.script.extend([gated(anyio.Event()), ok(b"1")])
    text = flow(
        call("a", "POST", extra=", effect: keyed", params=", json: '{{ now() }}'"), edges="start>a"
    )
    started = await world.start(await world.load(text))
    await crash_at(world, await world.claim(), lambda: world.http.arrived(1))
    await world.crash_and_rescue()
    seq = (await world.row(started)).seq
    await world.store.write(
        lambda tx: tx.execute("UPDATE node_runs SET input_hash = x'00' WHERE execution = ?", (seq,))
    )
    await world.work()
    assert (await world.row(started)).status is ExecutionStatus.UNCERTAIN

    await world.resolve(started, "retry")
    await world.work()

    assert (await world.row(started)).status is ExecutionStatus.COMPLETED
    assert len(world.http.requests) == 2


async def test_a_sent_keyed_action_given_back_keeps_its_try_and_its_input(world):
    world.http.script.append(gated(anyio.Event()))
    text = flow(call("a", "POST", extra=", effect: keyed"), edges="start>a")
    started = await world.start(await world.load(text))

    async with world.running(await world.claim()):
        await world.http.arrived(1)
        world.runtime.interrupt_all()

    row = (await world.nodes(started))["a"]
    assert (row.status, row.attempt) == (PENDING, 1)
    assert row.input_hash is not None


async def test_a_wait_for_a_retry_is_on_disk_though_another_branch_only_waits(world):
    world.http.script.extend([gated(anyio.Event()), ok(b"slow down", 429, retry_after="1")])
    text = flow(
        call("slow"),
        call("a", "POST", extra=", retry: {maxAttempts: 3, initialMs: 100}"),
        edges="start>slow, start>a",
    )
    started = await world.start(await world.load(text))

    async with world.running(await world.claim()):
        await world.happens(NodeRetried)
        await world.clock.someone_sleeps()
        world.clock.advance(FLUSH_AFTER)  # less than the wait for the retry
        while (await world.states(started))["a"] is not PENDING:
            world.clock.advance(0.0)  # wakes who began to wait for this moment after it had come
        await world.cancel(started)
        world.runtime.cancel((await world.row(started)).seq)

    assert (await world.states(started))["a"] is SKIPPED


# -- a store that is busy


async def test_a_body_is_kept_once_there_is_space_and_the_node_waits_for_it(world):
    world.http.script.append(replace(ok(b"\x00"), content_type="image/png"))
    full = [StoreFullError("full"), StoreFullError("full")]
    put = world.blobs.put

    async def put_when_there_is_space(content: bytes) -> str:
        if full:
            raise full.pop()
        return await put(content)

    world.blobs.put = put_when_there_is_space
    text = flow(call("a", "POST", params=", timeoutMs: 600"), edges="start>a")
    started = await world.start(await world.load(text))

    async with world.running(await world.claim()):
        for _ in range(2):
            await world.clock.someone_sleeps()
            world.clock.advance(STORE_RETRY)

    assert (await world.row(started)).status is ExecutionStatus.COMPLETED
    assert len(world.http.requests) == 1


async def test_an_answer_that_cannot_be_kept_fails_an_unsafe_node_and_leaves_nothing_to_decide(
    world,
):
    body = bytes(world.blobs.max_bytes + 1)
    world.http.script.append(replace(ok(body), content_type="image/png"))

    done = await world.run(flow(call("a", "POST"), edges="start>a"))

    row = (await world.nodes(done))["a"]
    assert (row.status, loads(row.error)["code"]) == (FAILED, "blob.too_large")
    assert len(world.http.requests) == 1


async def test_a_blob_that_is_not_there_fails_an_unsafe_node_before_it_is_sent(world):
    node = call("a", "POST", params=', body: {$blob: "%s"}' % ("0" * 64))

    done = await world.run(flow(node, edges="start>a"))

    row = (await world.nodes(done))["a"]
    assert (row.status, loads(row.error)["code"]) == (FAILED, "blob.not_found")
    assert world.http.requests == []


async def test_a_store_busy_at_the_start_of_a_run_costs_no_attempt(database):
    store = WatchedStore(database)
    world = World(store, ok(b"1"))
    started = await world.start(await world.load(flow(call("a"), edges="start>a")))
    claimed = await world.claim()
    store.failing_reads.append(StoreBusyError("locked"))

    await world.runtime.execute(claimed)
    world.clock.advance(STORE_RETRY)
    again = await world.claim()
    await world.runtime.execute(again)

    assert again.job.attempt == 0
    assert (await world.row(started)).status is ExecutionStatus.COMPLETED


async def test_a_failed_attempt_is_recorded_once_the_store_has_space(database):
    store = WatchedStore(database)
    world = World(store, ok(b"1"))
    started = await world.start(await world.load(flow(call("a"), edges="start>a")))
    claimed = await world.claim()
    store.failing_reads.append(StoreError("unreadable"))
    store.failing_writes.append(StoreFullError("full"))

    async with world.running(claimed):
        await world.clock.someone_sleeps()
        world.clock.advance(STORE_RETRY)
    world.clock.advance(2.0)
    await world.work()

    assert (await world.row(started)).status is ExecutionStatus.COMPLETED


async def test_an_unsafe_action_cut_off_before_its_intent_was_written_is_sent_later(database):
    store = WatchedStore(database)
    world = World(store, ok(b"1"))
    started = await world.start(await world.load(flow(call("a", "POST"), edges="start>a")))
    claimed = await world.claim()
    store.failing_writes.append(StoreBusyError("locked"))

    async with world.running(claimed):
        await world.clock.someone_sleeps()  # the run, for the store
        world.runtime.interrupt_all()
    await world.work()

    assert (await world.row(started)).status is ExecutionStatus.COMPLETED
    assert len(world.http.requests) == 1


async def test_what_a_branch_recorded_is_on_disk_before_another_goes_on_though_a_write_failed(
    database,
):
    store = WatchedStore(database)
    world = World(store, ok(b"1"), ok(b"2"), ok(b"3"))
    nodes = (call("a", "PUT"), call("b", "PUT"), call("c", "PUT"))
    text = flow(*nodes, edges="start>a, start>b, b>c")
    started = await world.start(await world.load(text))
    claimed = await world.claim()
    store.failing_writes.extend([StoreBusyError("locked")] * 3)

    async with world.running(claimed):
        for _ in range(3):
            await world.clock.someone_sleeps()
            assert world.http.requests == []
            world.clock.advance(STORE_RETRY)

    assert await world.states(started) == dict.fromkeys(("start", "a", "b", "c"), COMPLETED)
    assert len(world.http.requests) == 3


async def test_a_result_whose_write_was_cut_off_is_written_with_the_rest(database):
    store = WatchedStore(database)
    gate = anyio.Event()
    world = World(store, gated(gate, ok(b"1")), gated(anyio.Event()))
    text = flow(call("a", "PUT"), call("b", "PUT"), edges="start>a, start>b")
    started = await world.start(await world.load(text))

    async with world.running(await world.claim()):
        await world.http.arrived(2)
        store.failing_writes.append(StoreBusyError("locked"))
        gate.set()
        await world.clock.someone_sleeps()  # to write what a became
        world.runtime.interrupt_all()

    assert await world.states(started) == {"start": COMPLETED, "a": COMPLETED, "b": PENDING}


async def test_a_run_cut_off_from_outside_during_a_write_ends_nothing(database):
    store = WatchedStore(database)
    world = World(store, gated(anyio.Event()))
    started = await world.start(await world.load(flow(call("a"), edges="start>a")))
    claimed = await world.claim()
    hold = store.hold_writes()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.runtime.execute, claimed)
        await world.http.arrived(1)
        world.clock.advance(FLUSH_AFTER)  # what is recorded is written beside the call
        await hold.met.wait()
        tasks.cancel_scope.cancel()
        hold.release()

    assert (await world.row(started)).status is ExecutionStatus.RUNNING


# -- limits


async def test_an_output_over_the_limit_fails_its_node(database):
    world = World(
        database, ok(b'"' + b"x" * 200 + b'"'), limits=Limits(output=100, execution=10_000)
    )

    started = await world.run(flow(call("a"), edges="start>a"))

    assert loads((await world.row(started)).error)["code"] == "node.too_large"


async def test_an_output_that_was_refused_does_not_count(database):
    limits = Limits(output=100, execution=150)
    world = World(database, ok(b'"' + b"x" * 90 + b'"'), limits=limits)
    text = flow(call("a", extra=", onError: continue"), put("b", "'{{ 1 }}'"), edges="start>a, a>b")
    world.http.script[0] = ok(b'"' + b"x" * 50 + b'"', padding="y" * 30)

    started = await world.run(text, "z" * 80)

    assert (await world.states(started))["a"] is FAILED
    assert (await world.states(started))["b"] is COMPLETED


async def test_an_execution_over_its_limit_fails(database):
    world = World(database, limits=Limits(output=100, execution=150))

    started = await world.run(
        flow(put("a"), put("b"), put("c"), edges="start>a, a>b, b>c"), "x" * 60
    )

    assert loads((await world.row(started)).error)["code"] == "execution.too_large"
