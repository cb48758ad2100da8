"""`action.wait.webhook`: a node run ends with the first call to its link, whenever that comes, and with no other."""

from __future__ import annotations

from urllib.parse import parse_qs, unquote, urlsplit

import anyio
import pytest
from support.runs import World

from stackd.core.errors import GoneError
from stackd.core.json import dumps, loads
from stackd.runtime.links import Links
from stackd.runtime.versions import Versions
from stackd.runtime.waits import CALL_WITHIN_MS
from stackd.store.database import Database
from stackd.testing import ok
from stackd.workflows import resume
from stackd.workflows.executions import ExecutionStatus, NodeFinished, NodeStatus
from stackd.workflows.resume import NodeResumed
from stackd.workflows.retry import retry

COMPLETED, FAILED, WAITING = (
    ExecutionStatus.COMPLETED,
    ExecutionStatus.FAILED,
    ExecutionStatus.WAITING,
)
WEEK = CALL_WITHIN_MS / 1000

ASKING = """
id: asking
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: ask, type: action.wait.webhook%s}
  - {id: told, type: transform.data.set, params: {values: {answer: "{{ ask.body }}"}}}
edges: [{from: start, to: ask}, {from: ask, to: told}]
"""
SENDING = """
id: sending
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: send, type: action.http.request, effect: keyed,
     params: {method: POST, url: "http://far.example/", json: {link: "{{ resumeUrl('ask') }}"}}}
  - {id: ask, type: action.wait.webhook}
edges: [{from: start, to: send}, {from: send, to: ask}]
"""
LOOP = """
id: loop
nodes:
  - {id: start, type: trigger.time.manual}
  - id: each
    type: logic.foreach
    params: {items: "{{ start }}", concurrency: 2}
    nodes:
      - {id: link, type: transform.data.set, params: {values: {url: "{{ resumeUrl('ask') }}"}}}
      - {id: ask, type: action.wait.webhook}
    edges: [{from: link, to: ask}]
edges: [{from: start, to: each}]
"""


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


async def call(world: World, execution_id: str, body: object = "yes", *, key: str = "ask") -> None:
    now, text = world.clock.time(), dumps({"body": body})
    await world.store.write(lambda tx: resume.resume(tx, execution_id, key, text, now=now))


async def refusal(world: World, execution_id: str, **given: str) -> str:
    with pytest.raises(GoneError) as caught:
        await call(world, execution_id, "no", **given)
    return caught.value.code


async def asked(world: World, params: str = "") -> str:
    """An execution that waits for a call."""
    execution_id = await world.run(ASKING % params)
    assert (await world.row(execution_id)).status is WAITING
    return execution_id


async def test_a_call_ends_the_wait_and_is_the_output(world):
    execution_id = await asked(world)

    await call(world, execution_id, {"ok": True})
    await world.work()

    row = await world.row(execution_id)
    assert (row.status, loads(row.output)) == (COMPLETED, {"answer": {"ok": True}})
    ended = [e for e in world.seen if isinstance(e, NodeFinished) and e.key == "ask"]
    assert [e.status for e in ended] == ["completed"]
    assert NodeResumed(execution_id, row.seq, "ask") in world.seen


async def test_no_worker_holds_what_waits(world):
    await asked(world)

    assert (
        await world.store.read(lambda tx: tx.rows("SELECT * FROM jobs WHERE state = 'running'"))
        == []
    )


async def test_a_second_call_is_refused_and_changes_nothing(world):
    execution_id = await asked(world)
    await call(world, execution_id)

    before = await refusal(world, execution_id)
    await world.work()

    assert [before, await refusal(world, execution_id)] == ["link.used", "link.used"]
    assert loads((await world.row(execution_id)).output) == {"answer": "yes"}


async def test_a_call_that_comes_before_the_node_is_reached_is_kept_for_it(world):
    execution_id = await world.start(await world.load(ASKING % ""))
    await call(world, execution_id, "early")

    assert await refusal(world, execution_id) == "link.used"
    await world.work()

    row = await world.row(execution_id)
    assert (row.status, loads(row.output)) == (COMPLETED, {"answer": "early"})


async def test_an_early_call_survives_the_death_of_who_took_it_up(world):
    execution_id = await world.start(await world.load(ASKING % ""))
    await world.claim()
    await call(world, execution_id, "early")
    await world.crash_and_rescue()

    await world.work()

    assert loads((await world.row(execution_id)).output) == {"answer": "early"}


async def test_the_far_side_may_call_while_it_is_told_the_link(database):
    async def call_back(request):
        assert loads(request.body.content)["link"] == world.links.url(execution_id, "ask")
        await call(world, execution_id, "at once")
        return ok({})

    world = World(database, call_back)
    execution_id = await world.start(await world.load(SENDING))

    await world.work()

    row = await world.row(execution_id)
    assert (row.status, loads(row.output)["body"]) == (COMPLETED, "at once")


async def test_a_call_wakes_a_run_that_does_something_else_meanwhile(world):
    text = ASKING % ""
    text = text.replace(
        "nodes:\n", "nodes:\n  - {id: nap, type: action.time.delay, params: {delayMs: 900}}\n"
    )
    text = text.replace("edges: [", "edges: [{from: start, to: nap}, ")
    execution_id = await world.start(await world.load(text))
    async with world.running(await world.claim()):
        await anyio.wait_all_tasks_blocked()
        world.clock.advance(0.3)  # the wait is written
        await anyio.wait_all_tasks_blocked()
        await call(world, execution_id)
        world.runtime.wake((await world.row(execution_id)).seq)
        await anyio.wait_all_tasks_blocked()
        world.clock.advance(0.3)
        await anyio.wait_all_tasks_blocked()
        assert (await world.states(execution_id))["told"] is NodeStatus.COMPLETED
        world.clock.advance(1.0)

    assert (await world.row(execution_id)).status is COMPLETED


@pytest.mark.parametrize(("params", "within"), [("", WEEK), (", params: {expiresMs: 60000}", 60.0)])
async def test_what_nobody_calls_in_time_fails(world, params, within):
    execution_id = await asked(world, params)
    world.clock.advance(within - 1)
    assert await world.fire_timers() == 0
    world.clock.advance(1)

    assert await refusal(world, execution_id) == "link.expired"
    await world.fire_timers()
    assert await refusal(world, execution_id) == "link.expired"
    await world.work()

    row = await world.row(execution_id)
    assert (row.status, loads(row.error)["code"]) == (FAILED, "wait.expired")
    assert await refusal(world, execution_id) == "link.expired"


async def test_a_call_ends_the_timer_too(world):
    execution_id = await asked(world)
    await call(world, execution_id)
    await world.work()
    world.clock.advance(2 * WEEK)

    assert await world.fire_timers() == 0
    assert (await world.row(execution_id)).status is COMPLETED


async def test_an_expired_wait_may_be_followed_by_another_way(world):
    text = ASKING % ", onError: route"
    text = text.replace("{from: ask, to: told}", "{from: ask, to: late, on: error}")
    text = text.replace("id: told", "id: late").replace("ask.body", "ask.error.code")
    execution_id = await world.run(text)
    world.clock.advance(WEEK)
    await world.fire_timers()
    await world.work()

    row = await world.row(execution_id)
    assert (row.status, loads(row.output)) == (COMPLETED, {"answer": "wait.expired"})


async def test_of_an_execution_that_is_not_kept_any_more_nothing_waits(world):
    assert await refusal(world, "removed") == "link.over"


@pytest.mark.parametrize("is_reached", [True, False])
async def test_what_is_cancelled_waits_no_more(world, is_reached):
    execution_id = await world.start(await world.load(ASKING % ""))
    if is_reached:
        await world.work()
    await world.cancel(execution_id)

    assert await refusal(world, execution_id) == "link.over"


async def test_a_wait_that_is_tried_again_has_its_link_once_more(world):
    execution_id = await asked(world)
    world.clock.advance(WEEK)
    await world.fire_timers()
    await world.work()
    graph = await Versions(world.store).graph("asking", 1)

    async def again(start: str | None) -> None:
        now = world.clock.time()
        await world.store.write(lambda tx: retry(tx, execution_id, graph, start=start, now=now))

    await again(None)
    await call(world, execution_id, "late")
    await world.work()
    assert loads((await world.row(execution_id)).output) == {"answer": "late"}
    await again("ask")
    await world.work()
    assert (await world.row(execution_id)).status is WAITING
    await call(world, execution_id, "later")
    await world.work()

    assert loads((await world.row(execution_id)).output) == {"answer": "later"}


async def test_an_early_call_is_for_one_wait_only(world):
    execution_id = await world.start(await world.load(ASKING % ""))
    await call(world, execution_id, "early")
    await world.work()
    graph = await Versions(world.store).graph("asking", 1)
    now = world.clock.time()

    await world.store.write(lambda tx: retry(tx, execution_id, graph, start="ask", now=now))
    await world.work()

    assert (await world.row(execution_id)).status is WAITING


async def test_an_early_call_of_an_iteration_is_forgotten_with_its_loop(world):
    execution_id = await world.start(await world.load(LOOP), ["a"])
    await call(world, execution_id, "early", key="each[0].ask")
    await world.work()
    graph = await Versions(world.store).graph("loop", 1)
    now = world.clock.time()

    await world.store.write(lambda tx: retry(tx, execution_id, graph, start="each", now=now))
    await world.work()

    assert (await world.states(execution_id))["each[0].ask"] is NodeStatus.WAITING


async def test_a_loop_may_give_away_a_link_of_a_node_around_it(world):
    text = LOOP.replace("      - {id: ask, type: action.wait.webhook}\n", "").replace(
        "edges: [{from: link, to: ask}]", "edges: []"
    )
    text = text.replace(
        "edges: [{from: start, to: each}]",
        """\
  - {id: ask, type: action.wait.webhook}
edges: [{from: start, to: each}, {from: each, to: ask}]""",
    )
    execution_id = await world.start(await world.load(text), ["a", "b"])
    await world.work()

    given = loads((await world.nodes(execution_id))["each"].output)
    assert given == [{"url": world.links.url(execution_id, "ask")}] * 2


async def test_each_iteration_has_a_link_of_its_own(world):
    execution_id = await world.start(await world.load(LOOP), ["a", "b"])
    await world.work()
    nodes = await world.nodes(execution_id)
    links = [urlsplit(loads(nodes[f"each[{i}].link"].output)["url"]) for i in (0, 1)]

    for number, link in enumerate(links):
        key = unquote(link.path.split("/")[5])
        given = {name: some[0] for name, some in parse_qs(link.query).items()}
        assert key == f"each[{number}].ask"
        assert world.links.is_good(execution_id, key, **given)
        await call(world, execution_id, number, key=key)
        await world.work()

    row = await world.row(execution_id)
    assert (row.status, [one["body"] for one in loads(row.output)]) == (COMPLETED, [0, 1])


async def test_a_link_is_the_same_after_a_crash(database):
    sent = []

    async def drop(request):
        sent.append(request)
        return ok({})

    world = World(database, drop, drop)
    execution_id = await world.start(await world.load(SENDING))
    await world.work()
    first = world.links.url(execution_id, "ask")

    assert Links("k" * 32, "http://box.example").url(execution_id, "ask") == first
    assert first in str(sent[0].body)


def given_by(links: Links, execution_id: str, key: str) -> dict[str, str]:
    query = parse_qs(urlsplit(links.url(execution_id, key)).query)
    return {name: some[0] for name, some in query.items()}


def test_a_link_is_good_for_its_node_run_and_its_key_only():
    links, others = Links("k" * 32, ""), Links("l" * 32, "")
    given = given_by(links, "e1", "ask")

    assert links.is_good("e1", "ask", **given)
    assert not links.is_good("e1", "ask2", **given)
    assert not links.is_good("e2", "ask", **given)
    assert not others.is_good("e1", "ask", **given)
    for name in given:
        for wrong in (
            "",
            "x",
            "é\ud800",
            given[name][:-1],
            given[name] + "A",
            given[name].swapcase(),
        ):
            assert not links.is_good("e1", "ask", **{**given, name: wrong})


def test_a_link_says_nothing_of_the_key_it_comes_of():
    given = given_by(Links("k" * 32, ""), "e1", "ask")

    assert given["token"] != given["signature"]
    assert {len(one) for one in given.values()} == {43}
