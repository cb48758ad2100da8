"""What is told of why something is as it is: what holds it now, and what has befallen it."""

from __future__ import annotations

from typing import Any

import pytest
from support.runs import World

from stackd.core.errors import NodeError, NotFoundError
from stackd.queue import verbs
from stackd.queue.job import PROBATION
from stackd.store.database import Database
from stackd.testing import ok
from stackd.workflows import catalogue, why
from stackd.workflows.why import KEPT, MOST, NOTES_SHOWN, TOGETHER

ONE_NODE = """
id: one
{top}
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {node}
edges: [{{from: start, to: a}}]
"""
CALLED = "id: called\nnodes: [{id: start, type: trigger.time.manual}]\n"


def flow(node: str, top: str = "") -> str:
    return ONE_NODE.format(node=node, top=top)


SET = flow("{id: a, type: transform.data.set, params: {values: {}}}")
DELAY = flow("{id: a, type: action.time.delay, params: {delayHours: 1}}")
POST = '{id: a, type: action.http.request, params: {method: POST, url: "http://far.example/"}}'
GET = (
    '{id: a, type: action.http.request, params: {url: "http://far.example/"}, '
    "retry: {maxAttempts: 3, initialMs: 5000, maxMs: 5000}}"
)


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


async def answer(world: World, subject: str, *, alive: bool = True) -> why.Why:
    now = world.clock.time()
    return await world.store.read(
        lambda tx: why.answer(tx, subject, now=now, is_gone=lambda _: not alive)
    )


async def register(world: World, owner: str = "me") -> None:
    await world.store.write(
        lambda tx: tx.execute(
            "INSERT INTO processes (id, role, boot_id, pid_namespace, pid, start_ticks, started_at, heartbeat_at) "
            "VALUES (?, 'worker', 'b', 1, 77, 1, 0, ?)",
            (owner, world.clock.time()),
        )
    )


def codes(found: why.Why) -> list[str]:
    return [reason.code for reason in found.reasons]


async def test_one_that_is_queued_says_what_keeps_it(world):
    execution_id = await world.start(await world.load(SET))

    assert codes(await answer(world, execution_id)) == ["queue.no_worker"]
    await register(world)
    found = await answer(world, execution_id)
    assert (found.kind, found.state, codes(found)) == ("execution", "queued", [])
    await world.store.write(verbs.pause)
    assert codes(await answer(world, execution_id)) == ["queue.paused"]
    await world.store.write(verbs.resume)
    assert codes(await answer(world, execution_id, alive=False)) == ["queue.no_worker"]


async def test_one_behind_others_says_how_many(world):
    await register(world)
    workflow = await world.load(SET)
    await world.start(workflow)
    await world.start(workflow)
    world.clock.advance(1.0)
    last = await world.start(workflow)

    (reason,) = (await answer(world, last)).reasons
    assert (reason.code, reason.message) == ("queue.backlog", "2 jobs are before it")


async def test_one_that_has_no_place_says_so(world):
    await register(world)
    workflow = await world.load(flow(POST, "concurrency: 1"))
    await world.store.write(lambda tx: verbs.change_concurrency(tx, workflow, 1))
    first = await world.start(workflow)
    await world.store.write(
        lambda tx: tx.execute(
            "UPDATE jobs SET concurrency_key = 'one', concurrency_limit = 1, blocked = 1"
        )
    )

    (reason,) = (await answer(world, first)).reasons
    assert reason.code == "workflow.concurrency"
    assert "1 executions of one may run at once" in reason.message


async def test_one_on_probation_and_one_that_is_due_later_say_so(world):
    await register(world)
    execution_id = await world.start(await world.load(SET))
    due = world.clock.time() + 30
    await world.store.write(
        lambda tx: tx.execute(
            "UPDATE jobs SET rescues = ?, state = 'retryable', due_at = ?, error = 'Boom'",
            (PROBATION, due),
        )
    )

    assert codes(await answer(world, execution_id)) == ["queue.later", "queue.probation"]


async def test_one_without_a_job_says_so(world):
    await register(world)
    execution_id = await world.start(await world.load(SET))
    await world.store.write(lambda tx: tx.execute("DELETE FROM jobs"))

    assert codes(await answer(world, execution_id)) == ["queue.no_job"]


async def test_one_that_runs_says_who_runs_it_and_what(database):
    world = World(database)
    await register(world)
    execution_id = await world.start(await world.load(flow(POST)))
    await world.claim()
    await world.store.write(
        lambda tx: tx.execute(
            "INSERT INTO node_runs (execution, key, type, status, attempt, effect, started_at) "
            "SELECT seq, 'a', 'action.http.request', 'running', 1, 'unsafe', 1.0 FROM executions"
        )
    )
    world.clock.advance(3.0)

    found = await answer(world, execution_id)

    assert codes(found) == ["execution.runs", "node.runs"]
    assert found.reasons[0].message == "process 77 (worker) runs it, last heard 3 s ago"


async def test_one_that_waits_says_for_what(world):
    await world.load(CALLED)
    waits = {
        "node.waits_for_time": DELAY,
        "node.waits_for_call": flow("{id: a, type: action.wait.webhook}"),
        "node.waits_for_execution": flow(
            "{id: a, type: action.workflow.run, params: {workflowId: called}}"
        ),
    }
    for code, text in waits.items():
        execution_id = await world.start(await world.load(text.replace("id: one", f"id: {code}")))
        await world.work()

        (reason,) = (await answer(world, execution_id)).reasons
        assert reason.code == code
        assert reason.message.startswith("a waits")
        await world.store.write(lambda tx: tx.execute("DELETE FROM jobs"))


async def test_one_that_is_tried_again_says_when_and_why_and_that_it_was(database):
    refused = NodeError("connection refused", kind="network", code="http.connect")
    world = World(database, refused, ok())

    execution_id = await world.run(flow(GET))

    found = await answer(world, execution_id)
    (reason,) = found.reasons
    assert reason.code == "node.waits_to_retry"
    assert "connection refused" in reason.message
    (note,) = found.notes
    assert note.code == "node.retried"
    assert note.message.startswith("a: try 1 failed (connection refused); again in ")


async def test_one_that_is_uncertain_says_what_to_do(database):
    lost = NodeError("connection lost", kind="network", code="http.reset", sent=True)
    world = World(database, lost)

    execution_id = await world.run(flow(POST))

    (reason,) = (await answer(world, execution_id)).reasons
    assert reason.code == "node.uncertain"
    assert f"executions resolve {execution_id} --node a" in str(reason.hint)


async def test_one_that_failed_says_where_and_one_that_was_cancelled_that(database):
    world = World(database, ok(status=500), ok(status=500), ok(status=500))
    failed = await world.run(flow(POST))
    cancelled = await world.start(await world.load(SET.replace("id: one", "id: two")))
    await world.cancel(cancelled)

    (reason,) = (await answer(world, failed)).reasons
    assert reason.message.startswith("a: ")
    assert reason.hint == f"stackd executions retry {failed}"
    (reason,) = (await answer(world, cancelled)).reasons
    assert (reason.code, reason.hint) == ("execution.cancelled", None)


async def test_one_whose_process_died_says_so(world):
    execution_id = await world.start(await world.load(SET))
    await world.claim("gone")
    await world.crash_and_rescue()
    await world.work()

    found = await answer(world, execution_id)

    assert (found.state, codes(found)) == ("completed", [])
    assert [note.code for note in found.notes] == ["job.rescued"]


async def test_a_workflow_that_is_inactive_says_so(world):
    workflow = await world.load(SET)
    now = world.clock.time()
    assert codes(await answer(world, workflow)) == []

    await world.store.write(lambda tx: catalogue.set_active(tx, workflow, active=False, now=now))

    found = await answer(world, workflow)
    assert (found.kind, found.state, codes(found)) == (
        "workflow",
        "inactive",
        ["workflow.inactive"],
    )


async def test_of_what_there_is_not_nothing_is_told(world):
    with pytest.raises(NotFoundError) as caught:
        await answer(world, "nope")

    assert caught.value.code == "why.unknown"


# -- notes


async def put(world: World, message: str = "m", **how: Any) -> None:
    now = world.clock.time()
    await world.store.write(lambda tx: why.note(tx, "code", "queue", message, now=now, **how))


async def test_the_same_within_a_minute_is_counted_and_later_it_is_another(world):
    await put(world)
    world.clock.advance(TOGETHER - 1)
    await put(world, count=4)
    await put(world, "other")
    world.clock.advance(TOGETHER + 1)
    await put(world)

    notes = (await answer(world, "queue")).notes
    assert [(note.message, note.count) for note in notes] == [("m", 1), ("other", 1), ("m", 5)]
    assert notes[2].last_at - notes[2].first_at == TOGETHER - 1


async def test_the_newest_notes_are_told_and_old_ones_go(world):
    for number in range(NOTES_SHOWN + 5):
        await put(world, str(number))
    notes = (await answer(world, "queue")).notes
    assert (notes[0].message, len(notes)) == (str(NOTES_SHOWN + 4), NOTES_SHOWN)
    now = world.clock.time() + KEPT + 1

    gone = [await world.store.write(lambda tx: why.prune(tx, now=now, limit=60)) for _ in range(3)]

    assert gone == [60, 45, 0]


async def test_there_are_never_more_notes_than_are_kept(world):
    await put(world, "old")
    await world.store.write(
        lambda tx: tx.execute(
            "INSERT INTO why SELECT ?, 'c', 's', 'new', ?, ?, 1",
            (MOST + 2, *[world.clock.time()] * 2),
        )
    )

    await world.store.write(lambda tx: why.prune(tx, now=world.clock.time(), limit=10))

    assert await world.store.read(lambda tx: tx.rows("SELECT message FROM why")) == [("new",)]


async def test_a_note_that_quotes_anything_can_be_kept(world):
    await put(world, "x\ud800" + "y" * 10_000)

    (note,) = (await answer(world, "queue")).notes
    assert note.message.startswith("x\\ud800y")
    assert len(note.message) < 600
