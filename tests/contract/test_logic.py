"""Branches, switches, merges and lists inside executions: which way they lead and what they give."""

from __future__ import annotations

import pytest
from support.runs import World

from stackd.core.json import loads
from stackd.store.database import Database
from stackd.workflows.executions import ExecutionStatus, NodeStatus

COMPLETED, SKIPPED = NodeStatus.COMPLETED, NodeStatus.SKIPPED


def flow(*nodes: str, edges: str) -> str:
    listed = "\n".join(f"  - {node}" for node in nodes)
    return f"""
id: flow
nodes:
  - {{id: start, type: trigger.time.manual}}
{listed}
edges: [{edges}]
"""


def put(node_id: str, value: str = "'{{ start }}'") -> str:
    return f"{{id: {node_id}, type: transform.data.set, params: {{values: {{v: {value}}}}}}}"


def edge(source: str, target: str, more: str = "") -> str:
    return f"{{from: {source}, to: {target}{more and ', ' + more}}}"


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


async def output_of(world: World, execution_id: str):
    row = await world.row(execution_id)
    assert row.status is ExecutionStatus.COMPLETED, row.error
    return loads(row.output)


async def error_of(world: World, execution_id: str):
    return loads((await world.row(execution_id)).error)


# -- ways


@pytest.mark.parametrize(("given", "taken"), [(6, "big"), (5, "small")])
@pytest.mark.parametrize("written", ["'start > 5'", "'{{ start > 5 }}'"])
async def test_a_branch_takes_the_edges_of_how_its_condition_came_out(world, given, taken, written):
    text = flow(
        f"{{id: way, type: logic.branch, params: {{condition: {written}}}}}", put("big"), put("small"),
        edges=f"{edge('start', 'way')}, {edge('way', 'big', 'on: true')}, {edge('way', 'small', 'on: false')}",
    )  # fmt: skip

    done = await world.run(text, given)

    states = await world.states(done)
    assert {key: states[key] for key in ("big", "small")} == {
        "big": COMPLETED if taken == "big" else SKIPPED,
        "small": COMPLETED if taken == "small" else SKIPPED,
    }
    result = given > 5
    assert loads((await world.nodes(done))["way"].output) == {
        "case": str(result).lower(), "result": result,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "taken"),
    [("a", "first"), ("b", "second"), ("z", "rest"), (None, "rest"), (["a"], "rest")],
)
async def test_a_switch_takes_the_case_that_is_named_like_its_value(world, given, taken):
    text = flow(
        "{id: way, type: logic.switch, params: {value: '{{ start }}', cases: [a, b]}}",
        put("first"), put("second"), put("rest"), put("always"),
        edges=f"{edge('start', 'way')}, {edge('way', 'first', 'on: a')}, {edge('way', 'second', 'on: b')}, "
        f"{edge('way', 'rest', 'on: default')}, {edge('way', 'always')}",
    )  # fmt: skip

    states = await world.states(await world.run(text, given))

    taken_nodes = {key for key, state in states.items() if state is COMPLETED}
    assert taken_nodes == {"start", "way", taken, "always"}


@pytest.mark.parametrize("given", [1, 1.0, True, "x"])
async def test_a_switch_knows_numbers_and_truths_by_their_names(world, given):
    name = {1: "1", "x": "x"}.get(given, "1") if given is not True else "true"
    text = flow(
        "{id: way, type: logic.switch, params: {value: '{{ start|int if start is float else start }}', "
        f"cases: ['{name}']}}}}",
        put("it"),
        edges=f"{edge('start', 'way')}, {edge('way', 'it', 'on: ' + repr(name))}",
    )

    assert (await world.states(await world.run(text, given)))["it"] is COMPLETED


async def test_a_switch_with_conditions_takes_the_first_that_holds_and_looks_no_further(world):
    text = flow(
        "{id: way, type: logic.switch, params: {cases: ["
        "{case: small, when: start < 10}, {case: middle, when: start < 100}, {case: odd, when: 1 // 0}]}}",
        put("it"),
        edges=f"{edge('start', 'way')}, {edge('way', 'it', 'on: middle')}",
    )

    done = await world.run(text, 50)

    assert (await world.states(done))["it"] is COMPLETED
    assert loads((await world.nodes(done))["way"].output) == {"case": "middle"}


@pytest.mark.parametrize(
    ("mode", "gives"),
    [
        ("byNode", {"a": {"v": 1, "x": 1}, "b": {"v": 2}}),
        ("list", [{"v": 1, "x": 1}, {"v": 2}]),
        ("object", {"v": 2, "x": 1}),
        ("first", {"v": 1, "x": 1}),
    ],
)
async def test_a_merge_gives_what_came_over_its_taken_edges(world, mode, gives):
    text = flow(
        "{id: a, type: transform.data.set, params: {values: {v: 1, x: 1}}}", put("b", "2"), put("c", "3"),
        f"{{id: all, type: logic.merge, params: {{mode: {mode}}}}}",
        edges=f"{edge('start', 'a')}, {edge('start', 'b')}, {edge('start', 'c')}, {edge('a', 'all')}, "
        f"{edge('b', 'all')}, {edge('c', 'all', 'when: false')}",
    )  # fmt: skip

    assert (await world.nodes(await world.run(text)))["all"].output is not None
    done = await world.start("flow")
    await world.work()
    assert loads((await world.nodes(done))["all"].output) == gives


async def test_a_merge_into_one_map_refuses_what_is_none(world):
    text = flow(
        put("a"), "{id: all, type: logic.merge, params: {mode: object}}",
        edges=f"{edge('start', 'a')}, {edge('start', 'all')}, {edge('a', 'all')}",
    )  # fmt: skip

    error = await error_of(world, await world.run(text, 5))

    assert (error["code"], error["message"]) == ("merge.no_map", "start gave no map")


async def test_after_a_crash_a_branch_leads_the_way_it_led_before(world):
    """Its output is in the journal; the way follows from that, not from the condition."""
    text = flow(
        "{id: way, type: logic.branch, params: {condition: start}}",
        "{id: wait, type: action.time.delay, params: {delaySeconds: 60}}", put("other"), put("after", "1"),
        edges=f"{edge('start', 'way')}, {edge('way', 'wait', 'on: true')}, {edge('way', 'other', 'on: false')}, "
        f"{edge('wait', 'after')}",
    )  # fmt: skip
    started = await world.start(await world.load(text), True)
    await world.work()
    world.clock.advance(61)
    await world.fire_timers()
    world.runtime = world.process()
    await world.work()

    states = await world.states(started)
    assert (states["after"], states["other"]) == (COMPLETED, SKIPPED)


# -- lists and texts

LISTS = {
    "filter": ("filter", "where: item.n > 1", [{"n": 3}, {"n": 2}]),
    "filter by place": ("filter", "where: '{{ index % 2 == 0 }}'", [{"n": 3}, {"n": 2}]),
    "map": ("map", "to: {n: '{{ item.n * 2 }}', at: '{{ index }}'}", [{"n": 6, "at": 0}, {"n": 2, "at": 1}, {"n": 4, "at": 2}]),
    "map and leave out": ("map", "to: '{{ item.n if item.n > 1 else item.none|omit }}'", [3, 2]),
    "map to what is fixed": ("map", "to: x", ["x", "x", "x"]),
    "sort": ("sort", "by: item.n", [{"n": 1}, {"n": 2}, {"n": 3}]),
    "sort down": ("sort", "by: item.n, order: desc", [{"n": 3}, {"n": 2}, {"n": 1}]),
    "limit": ("limit", "count: 2", [{"n": 3}, {"n": 1}]),
    "limit after": ("limit", "count: 5, offset: 1", [{"n": 1}, {"n": 2}]),
    "limit from the end": ("limit", "count: 1, from: end", [{"n": 2}]),
    "limit before the end": ("limit", "count: 1, offset: 1, from: end", [{"n": 1}]),
    "group": ("group", "by: item.n > 1", [{"key": True, "items": [{"n": 3}, {"n": 2}]}, {"key": False, "items": [{"n": 1}]}]),
}  # fmt: skip


@pytest.mark.parametrize("case", LISTS)
async def test_a_list_node_gives(world, case):
    kind, params, gives = LISTS[case]
    node = f"{{id: a, type: transform.list.{kind}, params: {{items: '{{{{ start }}}}', {params}}}}}"

    done = await world.run(flow(node, edges=edge("start", "a")), [{"n": 3}, {"n": 1}, {"n": 2}])

    assert await output_of(world, done) == gives


async def test_a_list_is_sorted_by_its_items_where_nothing_else_is_said(world):
    text = flow(
        "{id: a, type: transform.list.sort, params: {items: '{{ start }}'}}",
        edges=edge("start", "a"),
    )
    assert await output_of(world, await world.run(text, [3, 1, 2])) == [1, 2, 3]


@pytest.mark.parametrize("keys", [[1, "a"], [None, 1], [[1], [2]]])
async def test_what_has_no_order_is_not_sorted(world, keys):
    text = flow(
        "{id: a, type: transform.list.sort, params: {items: '{{ start }}'}}",
        edges=edge("start", "a"),
    )
    assert (await error_of(world, await world.run(text, keys)))["code"] == "expression.invalid"


async def test_a_failing_expression_for_an_item_names_the_item(world):
    text = flow(
        "{id: a, type: transform.list.map, params: {items: '{{ start }}', to: '{{ 1 // item }}'}}",
        edges=edge("start", "a"),
    )
    error = await error_of(world, await world.run(text, [1, 0]))

    assert error["message"].startswith("item 1: ")


async def test_work_for_all_the_items_together_is_bounded(world):
    """Each evaluation is within its own limit."""
    text = flow(
        "{id: a, type: transform.list.map, params: {items: '{{ start }}', "
        "to: '{{ start|sort|length }}'}}",
        edges=edge("start", "a"),
    )
    error = await error_of(world, await world.run(text, list(range(5000))))

    assert error["code"] == "expression.limit"


async def test_a_text_is_filled_in(world):
    text = flow(
        "{id: a, type: transform.text.format, params: {template: 'Dear {{ start.name }}, {{ start.n }} of 5'}}",
        edges=edge("start", "a"),
    )
    assert (
        await output_of(world, await world.run(text, {"name": "Ada", "n": 3})) == "Dear Ada, 3 of 5"
    )


async def test_a_text_that_is_one_number_is_text(world):
    text = flow(
        "{id: a, type: transform.text.format, params: {template: '{{ start }}'}}",
        edges=edge("start", "a"),
    )
    assert await output_of(world, await world.run(text, 2.5)) == "2.5"


EXTRACTS = {
    "a path": ("path: 'a.b[0].c'", {"a": {"b": [{"c": 7}]}}, 7),
    "from the end": ("path: 'a[-1]'", {"a": [1, 2]}, 2),
    "with a dollar": ("path: $.a", {"a": 1}, 1),
    "a quoted key": ("path: 'a[\"x y\"].z'", {"a": {"x y": {"z": 1}}}, 1),
    "all elements": ("path: 'a[*].id'", {"a": [{"id": 1}, {"id": 2}]}, [1, 2]),
    "of all elements all": ("path: 'a[*].b[*]'", {"a": [{"b": [1]}, {"b": [2, 3]}]}, [[1], [2, 3]]),
    "everything": ("path: $", {"a": 1}, {"a": 1}),
    "a text that is JSON": ("path: a", '{"a": 12345678901234567890}', 12345678901234567890),
    "several": ("paths: {x: a, y: b.c}", {"a": 1, "b": {"c": 2}}, {"x": 1, "y": 2}),
    "what is not there": ("path: a.b, default: none", {"a": 1}, "none"),
    "a null default": ("path: a, default: null", {}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", EXTRACTS)
async def test_an_extract_gives(world, case):
    params, given, gives = EXTRACTS[case]
    text = flow(
        f"{{id: a, type: transform.json.extract, params: {{value: '{{{{ start }}}}', {params}}}}}",
        edges=edge("start", "a"),
    )
    assert await output_of(world, await world.run(text, given)) == gives


@pytest.mark.parametrize(
    ("given", "code"),
    [({"b": 1}, "extract.missing"), ([], "extract.missing"), (5, "extract.missing"), ("{", "extract.invalid_json"), ('{"a": 1, "a": 2}', "extract.invalid_json")],
)  # fmt: skip
async def test_an_extract_that_finds_nothing_fails(world, given, code):
    text = flow(
        "{id: a, type: transform.json.extract, params: {value: '{{ start }}', path: a}}",
        edges=edge("start", "a"),
    )
    assert (await error_of(world, await world.run(text, given)))["code"] == code


async def test_a_large_list_is_worked_on_while_others_have_their_turn(world):
    """Over 64 KiB of results go through a thread; what comes out is the same."""
    text = flow(
        "{id: a, type: transform.list.map, params: {items: '{{ start }}', to: 'value {{ item }}'}}",
        "{id: b, type: transform.list.sort, params: {items: '{{ a }}', by: item|length, order: desc}}",
        edges=f"{edge('start', 'a')}, {edge('a', 'b')}",
    )
    output = await output_of(world, await world.run(text, list(range(20_000))))

    assert len(output) == 20_000
    assert output[0] == "value 10000"
