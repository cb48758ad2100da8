"""What is kept of operations between their tries: circuits, declared limits, and evidence of how they went."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any
from zlib import crc32

import anyio
import pytest
from support.connectors import action, catalogue_of
from support.runs import World, time_passes

from stackd.core.clock import rfc3339
from stackd.core.errors import NodeError
from stackd.core.json import loads
from stackd.integrations import circuits, evidence
from stackd.integrations.account import Account
from stackd.integrations.circuits import LOOK_AGAIN, Circuit, Circuits
from stackd.integrations.evidence import Evidence, OperationEnded
from stackd.integrations.limits import Bucket, RateLimiter
from stackd.runtime.workflow_runtime import claim
from stackd.store.database import Database
from stackd.testing import FakeClock, ok
from stackd.workflows import why
from stackd.workflows.executions import NodeStatus

COMPLETED, FAILED, WAITING = NodeStatus.COMPLETED, NodeStatus.FAILED, NodeStatus.WAITING
DOWN = ok(b"{}", 502)


def definition(**more: Any) -> dict[str, Any]:
    return {
        "id": "desk",
        "name": "Desk",
        "baseUrl": "http://desk.example",
        "auths": {"none": {"type": "none"}, "token": {"type": "bearer"}},
        "actions": [
            action("look"),
            action("other"),
            action("pages", paginate={"type": "link"}),
            action("post", "POST", "/post"),
        ],
        **more,
    }  # fmt: skip


def flow(operation: str, *, tries: int = 1, extra: str = "") -> str:
    """A workflow of one action; another for each difference."""
    name = f"flow-{crc32(f'{operation} {tries} {extra}'.encode())}"
    return (
        f"id: {name}\nnodes:\n  - {{id: start, type: trigger.time.manual}}\n"
        f"  - {{id: a, type: action.desk.{operation}, {extra}retry: {{maxAttempts: {tries}}}}}\n"
        "edges:\n  - {from: start, to: a}\n"
    )


async def world_of(database: Database, folder: Path, *answers: Any, **more: Any) -> World:
    return World(database, *answers, connectors=await catalogue_of(folder, definition(**more)))


async def work_all(world: World) -> None:
    """Run all that is due."""
    claims = await world.store.write(
        lambda tx: claim(tx, owner="me", limit=100, lease=60.0, now=world.clock.time())
    )
    for claimed in claims:
        await world.runtime.execute(claimed)


async def node(world: World, execution: str) -> Any:
    return (await world.nodes(execution))["a"]


async def all_circuits(world: World) -> list[Circuit]:
    return await world.store.read(circuits.all_of)


async def fail(world: World, count: int, operation: str = "look", **more: Any) -> None:
    for _ in range(count):
        await world.run(flow(operation, **more))


def error_of(row: Any) -> dict[str, Any]:
    found: dict[str, Any] = loads(row.error)
    return found


# -- circuits


async def test_after_three_failures_in_a_row_an_operation_is_not_asked_for(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, DOWN, DOWN, DOWN, ok(b"{}"))
    await fail(world, 3)

    refused = await node(world, await world.run(flow("look")))
    other = await node(world, await world.run(flow("other")))

    assert refused.status is FAILED
    assert error_of(refused)["code"] == "circuit.open"
    assert rfc3339(world.clock.time() + 60) in error_of(refused)["message"]
    assert "502" in error_of(refused)["message"]
    assert other.status is COMPLETED
    assert len(world.http.requests) == 4


async def test_what_the_far_side_refuses_opens_no_circuit(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, *[ok(b"{}", 404)] * 4)

    await fail(world, 4)

    assert len(world.http.requests) == 4
    assert await all_circuits(world) == []


async def test_a_success_between_them_begins_the_count_anew(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, DOWN, DOWN, ok(b"{}"), DOWN, DOWN, ok(b"{}"))

    await fail(world, 6)

    assert len(world.http.requests) == 6
    assert await all_circuits(world) == []


async def test_after_a_minute_one_try_goes_through_and_its_success_closes_the_circuit(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, DOWN, DOWN, DOWN, ok(b"{}"), ok(b"{}"))
    await fail(world, 3)
    world.clock.advance(60)

    probe = await node(world, await world.run(flow("look")))
    next_one = await node(world, await world.run(flow("look")))

    assert [probe.status, next_one.status] == [COMPLETED, COMPLETED]
    assert await all_circuits(world) == []


async def test_a_probe_that_fails_opens_it_for_another_minute(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, *[DOWN] * 5)
    await fail(world, 3)
    world.clock.advance(60)

    await fail(world, 1)
    world.clock.advance(59)
    refused = await node(world, await world.run(flow("look")))

    assert error_of(refused)["code"] == "circuit.open"
    assert len(world.http.requests) == 4


async def test_while_one_probes_the_others_wait_and_go_when_it_has_closed_the_circuit(
    database: Database, tmp_path: Path
) -> None:
    answered = anyio.Event()

    async def slow(_: Any) -> Any:
        await answered.wait()
        return ok(b"{}")

    world = await world_of(database, tmp_path, DOWN, DOWN, DOWN, slow, ok(b"{}"))
    await fail(world, 3)
    world.clock.advance(60)
    name = await world.load(flow("look"))
    probe = await world.start(name)
    async with world.running(await world.claim()):
        await world.http.arrived(4)
        waits = await world.start(name)
        async with world.running(await world.claim()):
            await anyio.wait_all_tasks_blocked()
            asked_meanwhile = len(world.http.requests)
            answered.set()
            await time_passes(world, 1.0, until=lambda: len(world.http.requests) == 5)

    assert asked_meanwhile == 4
    rows = [await node(world, one) for one in (probe, waits)]
    assert [row.status for row in rows] == [COMPLETED, COMPLETED]
    assert [row.attempt for row in rows] == [1, 1]


async def test_a_refusal_shows_that_the_far_side_is_there_and_begins_the_count_anew(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, DOWN, DOWN, ok(b"{}", 404), DOWN, DOWN, ok(b"{}"))

    await fail(world, 6)

    assert len(world.http.requests) == 6


async def test_of_two_processes_one_probes(database: Database, tmp_path: Path) -> None:
    world = await world_of(database, tmp_path, DOWN, DOWN, DOWN)
    await fail(world, 3)
    world.clock.advance(60)
    processes = [Circuits(database, world.clock), Circuits(database, world.clock)]
    key = ("desk", "look", "")
    for one in processes:
        await one.refuse(key)

    waits = [await one.wait(key, timeout=30) for one in processes]

    assert waits == [0.0, LOOK_AGAIN]


async def test_a_probe_of_a_process_that_died_is_over_after_a_minute_however_long_it_might_have_taken(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, DOWN, DOWN, DOWN)
    await fail(world, 3)
    world.clock.advance(60)
    key, waits = ("desk", "look", ""), []
    for seconds in (0, 59, 1):
        world.clock.advance(seconds)
        circuits_of_a_process = Circuits(database, world.clock)
        await circuits_of_a_process.refuse(key)
        waits.append(await circuits_of_a_process.wait(key, timeout=3600))

    assert waits == [0.0, LOOK_AGAIN, 0.0]


async def test_who_waits_for_a_probe_uses_up_no_turn(database: Database, tmp_path: Path) -> None:
    answered = anyio.Event()

    async def slow(_: Any) -> Any:
        await answered.wait()
        return ok(b"{}")

    world = await world_of(
        database, tmp_path, DOWN, DOWN, DOWN, slow, ok(b"{}"), **limited(5, "1h")
    )
    await fail(world, 3)
    world.clock.advance(60)
    name = await world.load(flow("look"))
    await world.start(name)
    async with world.running(await world.claim()):
        await world.http.arrived(4)
        waits = await world.start(name)
        async with world.running(await world.claim()):
            for _ in range(5):
                await anyio.wait_all_tasks_blocked()
                world.clock.advance(1)
            answered.set()
            await time_passes(world, 1.0, until=lambda: len(world.http.requests) == 5)

    assert (await node(world, waits)).status is COMPLETED


async def test_another_process_of_the_store_rests_too_and_after_a_restart_as_well(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, DOWN, DOWN, DOWN)
    await fail(world, 3)
    other = World(database, connectors=await catalogue_of(tmp_path, definition()))

    refused = await node(other, await other.run(flow("look")))

    assert error_of(refused)["code"] == "circuit.open"
    assert other.http.requests == []


async def test_a_circuit_that_a_person_closes_is_asked_at_once(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, DOWN, DOWN, DOWN, ok(b"{}"))
    await fail(world, 3)
    world.clock.advance(5)

    closed = await world.store.write(lambda tx: circuits.close(tx, "desk", "look"))
    row = await node(world, await world.run(flow("look")))

    assert closed == 1
    assert row.status is COMPLETED


async def test_another_credential_of_the_same_app_is_still_asked_with(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, DOWN, DOWN, DOWN, ok(b"{}"))
    for name in ("one", "two"):
        account = Account(
            "connection", name, {"token": f"secret-{name}"}, frozenset({"token"}), "token", 1
        )
        world.made_up.accounts.known[name] = account
    await fail(world, 3, extra="connection: one, ")

    refused = await node(world, await world.run(flow("look", extra="connection: one, ")))
    asked = await node(world, await world.run(flow("look", extra="connection: two, ")))

    assert [refused.status, asked.status] == [FAILED, COMPLETED]
    assert [one.credential for one in await all_circuits(world)] == ["one"]


async def test_a_clock_that_is_set_back_does_not_lengthen_the_rest(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, DOWN, DOWN, DOWN, ok(b"{}"))
    await fail(world, 3)
    world.clock.advance(-86_400)
    restarted = World(database, ok(b"{}"), connectors=await catalogue_of(tmp_path, definition()))
    restarted.clock.advance(-86_400)

    row = await node(restarted, await restarted.run(flow("look")))

    assert row.status is COMPLETED


async def test_a_node_that_may_be_tried_again_waits_for_the_end_of_the_rest_by_a_timer(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, DOWN, DOWN, DOWN, ok(b"{}"))
    await fail(world, 3)

    execution = await world.run(flow("look", tries=2))
    parked = await node(world, execution)
    world.clock.advance(60.5)
    assert await world.fire_timers() == 1
    await world.work()

    assert parked.status is WAITING
    assert (await node(world, execution)).status is COMPLETED


# -- declared limits


def limited(limit: float, per: str, **more: Any) -> dict[str, Any]:
    return {"rateLimits": [{"limit": limit, "per": per, **more}]}


async def test_beyond_a_declared_limit_a_node_waits_by_a_timer_and_that_is_no_try(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, ok(b"{}"), ok(b"{}"), **limited(1, "10s"))
    await world.run(flow("look"))

    execution = await world.run(flow("look"))
    parked = await node(world, execution)
    notes = await world.store.read(
        lambda tx: why.answer(tx, execution, now=world.clock.time(), is_gone=lambda _: False)
    )
    asked = len(world.http.requests)
    world.clock.advance(10)
    await world.fire_timers()
    await world.work()
    row = await node(world, execution)

    assert (parked.status, parked.attempt, asked) == (WAITING, 0, 1)
    assert loads(parked.metadata)["waitsForTurnUntil"] == rfc3339(world.clock.time())
    assert "at most 1 in 10 s" in str(notes)
    assert (row.status, row.attempt) == (COMPLETED, 1)
    assert "waitsForTurnUntil" not in loads(row.metadata)


async def test_thirty_that_come_at_once_are_asked_for_one_by_one_in_their_time(
    database: Database, tmp_path: Path
) -> None:
    moments: list[float] = []

    async def noted(_: Any) -> Any:
        moments.append(world.clock.time())
        return ok(b"{}")

    world = await world_of(database, tmp_path, *[noted] * 30, **limited(1, "2s"))
    name = await world.load(flow("look"))
    executions = [await world.start(name) for _ in range(30)]
    woken = 0
    await work_all(world)
    while len(moments) < 30:
        world.clock.advance(1)
        woken += await world.fire_timers()
        await work_all(world)

    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert min(gaps) >= 2
    assert moments[-1] - moments[0] <= 2 * 29 + 2
    assert woken <= 2 * 29
    assert {(await node(world, one)).status for one in executions} == {COMPLETED}


async def test_each_page_counts_and_a_later_one_waits_where_it_is(
    database: Database, tmp_path: Path
) -> None:
    pages = [ok(b"[1, 2]", link='<http://desk.example/x?page=2>; rel="next"'), ok(b"[3]")]
    world = await world_of(database, tmp_path, *pages, **limited(1, "5s"))
    execution = await world.start(await world.load(flow("pages")))
    began = world.clock.time()
    async with world.running(await world.claim()):
        await time_passes(world, 0.5, until=lambda: len(world.http.requests) == 2)
    took = world.clock.time() - began

    assert took >= 5
    assert loads((await node(world, execution)).output)["meta"]["pages"] == 2


async def test_a_limit_counts_what_its_key_says(database: Database, tmp_path: Path) -> None:
    chat = {"key": "{{ params.chat }}", "burst": 1}
    world = await world_of(database, tmp_path, *[ok(b"{}")] * 3, **limited(1, "1m", **chat))

    states = []
    for number in (1, 2, 1):
        text = flow("post", extra=f"params: {{chat: {number}}}, ")
        states.append((await node(world, await world.run(text))).status)

    assert states == [COMPLETED, COMPLETED, WAITING]


async def test_who_was_told_to_come_later_lets_the_others_wait_too(
    database: Database, tmp_path: Path
) -> None:
    busy = ok(b"{}", 429, retry_after="30")
    world = await world_of(database, tmp_path, busy, **limited(100, "1s"))
    await world.run(flow("look"))

    execution = await world.run(flow("other"))

    assert (await node(world, execution)).status is WAITING
    assert len(world.http.requests) == 1


async def test_who_is_told_that_nothing_is_left_lets_the_next_wait_before_it_is_refused(
    database: Database, tmp_path: Path
) -> None:
    last = ok(b"{}", ratelimit='"default";r=0;t=30')
    world = await world_of(database, tmp_path, last, **limited(100, "1s"))
    await world.run(flow("look"))

    execution = await world.run(flow("other"))

    until = rfc3339(world.clock.time() + 30)
    assert loads((await node(world, execution)).metadata)["waitsForTurnUntil"] == until


async def test_two_processes_of_a_store_share_a_limit(database: Database, tmp_path: Path) -> None:
    world = await world_of(database, tmp_path, ok(b"{}"), **limited(1, "1m"))
    other = World(database, connectors=await catalogue_of(tmp_path, definition(**limited(1, "1m"))))
    await world.run(flow("look"))

    execution = await other.run(flow("look"))

    assert (await node(other, execution)).status is WAITING
    assert other.http.requests == []


# -- evidence


async def test_evidence_counts_each_try_with_its_node_run(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, ok(b"{}"), ok(b'{"message": "no such desk"}', 404))
    await world.run(flow("look"))
    at = world.clock.time()
    world.clock.advance(5)
    await world.run(flow("look"))

    rows = await world.store.read(
        lambda tx: evidence.page(tx, after=("", ""), limit=9, connector=None)
    )

    assert [row._replace(failure=None) for row in rows] == [
        Evidence("desk", "look", 2, 1, 0, at, at + 5, None)
    ]
    assert rows[0].last_failure is not None
    assert "no such desk" in str(rows[0].last_failure["message"])
    ended = [event for event in world.seen if isinstance(event, OperationEnded)]
    assert [(one.executor, one.ok) for one in ended] == [("generic", True), ("generic", False)]


async def test_a_fallback_is_counted_and_told_by_why(database: Database, tmp_path: Path) -> None:
    handlers = "async def look(params, ctx):\n    raise KeyError('a fault')\n"
    catalogue = await catalogue_of(tmp_path, definition(), handlers=handlers)
    world = World(database, ok(b"{}"), connectors=catalogue)

    execution = await world.run(flow("look"))

    rows = await world.store.read(
        lambda tx: evidence.page(tx, after=("", ""), limit=9, connector="desk")
    )
    told = await world.store.read(
        lambda tx: why.answer(tx, execution, now=world.clock.time(), is_gone=lambda _: False)
    )
    assert [(row.calls, row.failures, row.fallbacks) for row in rows] == [(1, 0, 1)]
    assert "by generic HTTP, for the handler of desk.look failed: KeyError" in str(told)


@pytest.mark.parametrize("kind", ["timeout", "network"])
async def test_no_answer_counts_as_a_failure_of_the_far_side(
    database: Database, tmp_path: Path, kind: str
) -> None:
    lost = NodeError("nothing came", kind=kind, code=f"http.{kind}", sent=True)
    world = await world_of(database, tmp_path, lost, lost, lost)

    await fail(world, 3)

    assert [one.state(world.clock.time()) for one in await all_circuits(world)] == ["open"]


async def test_of_many_that_come_at_the_same_moment_as_many_go_as_may_and_each_other_has_a_turn(
    database: Database,
) -> None:
    clock = FakeClock()
    processes = [RateLimiter(database, clock), RateLimiter(database, clock)]
    bucket = Bucket(b"b" * 16, 0.5, 5.0, "at most 2 in 1 s")
    waits: list[float] = []

    async def come(limiter: RateLimiter) -> None:
        waits.append(await limiter.wait([bucket]))

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(come, processes[number % 2])

    assert sorted(waits) == [*[0.0] * 5, *[pytest.approx(0.5 * n) for n in range(1, 46)]]
