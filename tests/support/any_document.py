"""Workflow documents of every kind of node, loops and calls in any order, with values that fit and values that do not."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st

TEXTS = st.sampled_from(
    [
        "plain", "", "1", "{{ start }}", "{{ start.n }}", "{{ start.list }}", "{{ start.list[0] }}",
        "{{ start.nothing }}", "{{ start.nothing | default(3) }}", "{{ omit }}", "{{ now() }}",
        "{{ uuid() }}", "{{ 1 // 0 }}", "{{ start.n > 1 }}", "a {{ start.n }} b", "{{ vars.v }}",
        "{{ execution.id }}", "{{ start.text | fromjson }}", "{{ start.big }}", "{{ none }}",
        "{{ start.half | fromjson }}", "{{ start.n / 2 }}", "{{ start.huge }}", "{{ start.name }}",
    ]
)  # fmt: skip
GIVEN = {
    "n": 2, "list": [3, 1, 2], "text": "[1, {}]", "big": "x" * 70_000, "half": '"\\ud800"',
    "huge": 10**30, "name": "child",
}  # fmt: skip
INSIDE = st.sampled_from(["{{ item }}", "{{ index }}", "{{ [item, index] }}", "{{ item.k }}"])
PLAIN = st.sampled_from(
    [0, 1, 2.0, 1.5, -1, True, False, None, [], [1, 2], {}, {"k": "v"}, ["{{ start.n }}"]]
)
VALUES = st.one_of(TEXTS, PLAIN)
LISTS = st.sampled_from(
    [[], [1], [1, "a", None], [3, 1, 2], ["{{ start.n }}", 5], "{{ start.list }}", "{{ start.n }}",
     [{"k": 1}, {"k": 2}], "{{ start.nothing | default([1, 2, 3]) }}"]
)  # fmt: skip
CONDITIONS = st.sampled_from(
    ["start.n > 1", "{{ start.n == 2 }}", True, False, "start.nothing", "1 // 0", "start.list", ""]
)
OF_ITEMS = st.one_of(
    CONDITIONS, st.sampled_from(["item", "index % 2 == 0", "item > 1", "{{ item.k }}"])
)
CASES = st.sampled_from(
    [
        ["a", "b"],
        [1, 2],
        [True],
        [{"case": "x", "when": "start.n == 2"}, {"case": "y", "when": True}],
        [2.5, "2"],
    ]
)
SHORT = st.sampled_from([0, 1, 0.5, "{{ start.n }}", "{{ start.nothing }}", "{{ 3 }}"])
NAMES = st.sampled_from(
    ["child", "flow", "nowhere", "{{ start.name }}", "{{ start.half | fromjson }}", "{{ start.n }}"]
)


def _params(**given: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """With those of `given` that end in `_` or without them."""
    needed = {name: how for name, how in given.items() if not name.endswith("_")}
    perhaps = {name.rstrip("_"): how for name, how in given.items() if name.endswith("_")}
    return st.fixed_dictionaries(needed, optional=perhaps)


URLS = st.sampled_from(
    ["http://far.example/ok", "http://far.example/bad", "http://far.example/{{ start.n }}",
     "http://far.example/{{ start.half | fromjson }}", "{{ start.n }}", "http://far.example/{{ start.nothing }}"]
)  # fmt: skip
KINDS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "transform.data.set": _params(values=st.dictionaries(st.sampled_from("ab"), VALUES, max_size=2)),
    "transform.json.extract": _params(
        value=VALUES, path=st.sampled_from(["n", "[0]", "a[*]", "list[-1]"]), default_=VALUES
    ),
    "transform.text.format": _params(template=TEXTS),
    "transform.list.filter": _params(items=LISTS, where=OF_ITEMS),
    "transform.list.map": _params(items=LISTS, to=st.one_of(VALUES, INSIDE)),
    "transform.list.sort": _params(
        items=LISTS, by_=OF_ITEMS, order_=st.sampled_from(["asc", "desc", "{{ start.n }}"])
    ),
    "transform.list.limit": _params(items=LISTS, count=SHORT, offset_=SHORT),
    "transform.list.group": _params(items=LISTS, by=OF_ITEMS),
    "logic.branch": _params(condition=CONDITIONS),
    "logic.switch": _params(cases=CASES, value=VALUES),
    "logic.merge": _params(mode_=st.sampled_from(["byNode", "list", "object", "first", "{{ start.n }}"])),
    "logic.foreach": _params(
        items=LISTS, concurrency_=st.sampled_from([1, 2, 100, "{{ start.n }}", "{{ start.list }}", "{{ omit }}"]),
        collect_=st.one_of(VALUES, INSIDE, st.just(False)),
    ),
    "action.time.delay": _params(delaySeconds=SHORT),
    "action.wait.webhook": _params(
        expiresMs_=st.sampled_from([1000, 60_000, "{{ start.n * 1000 }}", "{{ start.nothing }}"])
    ),
    "action.workflow.run": _params(
        workflowId=NAMES, input_=st.one_of(VALUES, st.just({"n": 1, "list": []})),
        wait_=st.sampled_from([True, False, "{{ start.n }}", "{{ start.n > 1 }}"]),
    ),
    "action.http.request": _params(
        url=URLS, method_=st.sampled_from(["GET", "POST", "PUT", "{{ start.n }}", "{{ 'POST' }}"]),
        json_=VALUES, timeoutMs_=st.sampled_from([1000, "{{ start.n }}", "{{ start.n * 1000 }}"]),
        headers_=st.just({"x": "{{ start.half | fromjson }}"}),
    ),
}  # fmt: skip
CASES_OF = {
    "logic.branch": ["true", "false", True],
    "logic.switch": ["a", "b", 1, "1", "x", "y", "default", "2.5"],
}


@st.composite
def nodes(draw: st.DrawFn, prefix: str, depth: int) -> dict[str, Any]:
    """The nodes and edges of one level; edges lead forwards."""
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4))
    if depth:
        kinds = [kind for kind in kinds if depth < 3 or kind != "logic.foreach"] or ["logic.merge"]
    found = [draw(node(f"{prefix}{number}", kind, depth)) for number, kind in enumerate(kinds)]
    ways = [
        (source, target)
        for target in range(1, len(found))
        for source in draw(st.sets(st.integers(0, target - 1), max_size=2))
    ]
    edges = [draw(edge(found[source], found[target])) for source, target in ways]
    return {"nodes": found, "edges": edges}


@st.composite
def node(draw: st.DrawFn, node_id: str, kind: str, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"id": node_id, "type": kind, "params": draw(KINDS[kind])}
    made["onError"] = draw(st.sampled_from(["fail", "continue", "route", "fail"]))
    if draw(st.integers(0, 7)) == 0:
        made |= draw(
            st.sampled_from(
                [{"disabled": True}, {"pinned": 1}, {"pinned": None}, {"pinned": {"k": []}}]
            )
        )
    if kind == "action.http.request" and draw(st.booleans()):
        made |= draw(st.sampled_from(
            [{"effect": "unsafe"}, {"effect": "keyed", "idempotencyKey": "{{ start.nothing }}"},
             {"effect": "keyed"}, {"effect": "read"}, {"effect": "keyed", "idempotencyKey": "{{ start.half | fromjson }}"},
             {"timeoutMs": 50}]
        ))  # fmt: skip
    if kind == "logic.foreach":
        made |= draw(nodes(f"{node_id}_", depth + 1))
    return made


@st.composite
def edge(draw: st.DrawFn, source: dict[str, Any], target: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"from": source["id"], "to": target["id"]}
    known = CASES_OF.get(source["type"], [])
    if source["onError"] == "route":
        known = [*known, "error"]
    if known and draw(st.booleans()):
        made["on"] = draw(st.sampled_from(known))
    if draw(st.integers(0, 3)) == 0:
        made["when"] = draw(CONDITIONS)
    return made


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    body = draw(nodes("n", 0))
    targets = {one["to"] for one in body["edges"]}
    starts = [
        {"from": "start", "to": one["id"]} for one in body["nodes"] if one["id"] not in targets
    ]
    return {
        "id": "flow",
        "vars": {"v": [1]},
        "nodes": [{"id": "start", "type": "trigger.time.manual"}, *body["nodes"]],
        "edges": [*starts, *body["edges"]],
        **draw(
            st.sampled_from(
                [{}, {}, {"timeoutMs": 60_000}, {"timeoutMs": 1500}, {"concurrency": 1}]
            )
        ),
    }
