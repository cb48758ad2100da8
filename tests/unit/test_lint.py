"""Every mistake of a document we could think of: its code, its place, its nearest name, and nothing else told."""

from __future__ import annotations

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from support.flows import SET, findings, flow, read

from stackd.core.json import dumps
from stackd.workflows.findings import MAX_FINDINGS, DocumentError


def place(text: str, mark: str) -> tuple[int, int]:
    """Line and column of `mark`, which stands in `text` once; a ¦ in it is where exactly."""
    whole, before = mark.replace("¦", ""), mark.find("¦") if "¦" in mark else 0
    assert text.count(whole) == 1, f"{whole!r} stands {text.count(whole)} times in:\n{text}"
    offset = text.index(whole) + before
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


HTTP = "{id: a, type: action.http.request, params: {url: 'http://a'%s}%s}"


def http(params: str = "", extra: str = "") -> str:
    return HTTP % (params and f", {params}", extra and f", {extra}")


def over(*nodes: str, edges: str = "") -> str:
    """A loop `l` with that body."""
    body = f"nodes: [{', '.join(nodes)}], edges: [{edges}]"
    return f"{{id: l, type: logic.foreach, params: {{items: []}}, {body}}}"


# (document, every error it has: code, where it stands, and a part of its hint)
MISTAKES: dict[str, tuple[str, list[tuple[str, str, str | None]]]] = {
    # -- keys
    "unknown key of the document": (
        flow(SET("a"), top="nmae: x\nconcurency: 2\n"),
        [("document.unknown_key", "nmae", "'name'"), ("document.unknown_key", "concurency", "'concurrency'")],
    ),
    "unknown key of a node": (
        flow("{id: a, type: transform.data.set, prams: {}, params: {values: {}}, onEror: fail}"),
        [("document.unknown_key", "prams", "'params'"), ("document.unknown_key", "onEror", "'onError'")],
    ),
    "a key in another spelling": (
        flow(http(extra="on_error: fail, TIMEOUTMS: 5")),
        [("document.unknown_key", "on_error", "'onError'"), ("document.unknown_key", "TIMEOUTMS", "'timeoutMs'")],
    ),
    "a key like none": (
        flow("{id: a, type: transform.data.set, params: {values: {}}, xyz: 1}"),
        [("document.unknown_key", "xyz", "known here: id, type, name")],
    ),
    "unknown key of an edge": (
        flow(SET("a"), edges="{from: start, to: a, wehn: true}"),
        [("document.unknown_key", "wehn", "'when'")],
    ),
    "unknown key of retry": (
        flow(http(extra="retry: {maxAttempts: 2, initalMs: 5}")),
        [("document.unknown_key", "initalMs", "'initialMs'")],
    ),
    "unknown param": (
        flow(http("mehtod: GET")), [("params.unknown", "mehtod", "'method'")],
    ),
    "unknown param of a node that takes none": (
        "id: x\nnodes:\n  - {id: start, type: trigger.time.manual, params: {cron: 1}}\n",
        [("params.unknown", "cron", "nothing")],
    ),
    "a key twice": (flow("{id: a, id: b}"), [("document.duplicate_key", "id: b", None)]),
    "a key that is no text": (flow("{id: a, {b: c}: d}"), [("document.key", "{b: c}", "quotes")]),
    # -- what is missing
    "no id": ("nodes:\n  - {id: start, type: trigger.time.manual}\n", [("document.missing", "nodes", None)]),
    "no nodes": ("id: x\n", [("document.missing", "id", None)]),
    "no node": ("id: x\nnodes: []\n", [("document.no_nodes", "nodes", None)]),
    "no trigger": (
        "id: x\nnodes:\n  - {id: a, type: transform.data.set, params: {values: {}}}\n",
        [("document.no_trigger", "nodes", "trigger.webhook.inbound")],
    ),
    "no type": (flow("{id: a, params: {}}"), [("document.missing", "{id: a, params", None)]),
    "no to": (flow(SET("a"), edges="{from: start}"), [("document.missing", "{from: start}", None)]),
    "no url": (
        flow("{id: a, type: action.http.request}"),
        [("params.invalid", "{id: a, type: action.http.request", None)],
    ),
    "no maxAttempts": (flow(http(extra="retry: {maxMs: 5}")), [("document.missing", "retry", None)]),
    # -- kinds of values
    "a list instead of a document": ("- 1\n", [("document.not_map", "- 1", None)]),
    "nodes as a map": ("id: x\nnodes: {a: 1}\n", [("document.bad_value", "nodes", None)]),
    "edges as a text": (flow(SET("a"), edges="").replace("[]", "a"), [("document.bad_value", "edges", None)]),
    "a node as a text": (flow("hello"), [("document.bad_value", "hello", None)]),
    "an edge as a text": (flow(SET("a"), edges="start to a"), [("document.bad_value", "start to a", None)]),
    "an id that is a number": (flow("{id: 7, type: transform.data.set, params: {values: {}}}"), [("document.bad_value", "id: 7", None)]),
    "a type that is a list": (flow("{id: a, type: [b]}"), [("document.bad_value", "type: [b]", None)]),
    "params without a value": (flow("{id: a, type: action.http.request, params: }"), [("document.bad_value", "params", None)]),
    "a truth in words": (flow(SET("a", "disabled: yes")), [("document.bad_value", "disabled", None)]),
    "half a millisecond": (flow(http(extra="timeoutMs: 0.5")), [("document.bad_value", "timeoutMs", None)]),
    "no time at all": (flow(http(extra="timeoutMs: 0")), [("document.bad_value", "timeoutMs", None)]),
    "more tries than there may be": (flow(http(extra="retry: {maxAttempts: 1000}")), [("document.bad_value", "maxAttempts", None)]),
    "a policy that is none": (flow(SET("a", "onError: contineu")), [("document.bad_value", "onError", "'continue'")]),
    "an effect that is none": (flow(http(extra="effect: idempotant")), [("document.bad_value", "effect", "'idempotent'")]),
    "a name too long": (flow(SET("a"), top=f"name: {'n' * 201}\n"), [("document.bad_value", "name", None)]),
    "vars as a list": (flow(SET("a"), top="vars: [1]\n"), [("document.bad_value", "vars", None)]),
    "a condition that is a number": (flow(SET("a"), edges="{from: start, to: a, when: 3}"), [("document.bad_value", "when", None)]),
    "a map where a method belongs": (flow(http("method: {a: 1}")), [("params.invalid", "method", None)]),
    "a method that is none": (flow(http("method: DELTE")), [("params.invalid", "method", "'DELETE'")]),
    "a choice that is none": (flow(http("responseType: jsn")), [("params.invalid", "responseType", "'json'")]),
    "two bodies": (flow(http("json: 1, body: a")), [("params.invalid", "body", None)]),
    "a static param with an expression": (
        flow("{id: h, type: trigger.webhook.inbound, params: {path: '{{ start }}'}}"),
        [("params.invalid", "path", None)],
    ),
    "an instant that is none": (
        flow("{id: a, type: action.time.delay, params: {until: tomorrow}}"), [("params.invalid", "until", None)],
    ),
    "an instant nowhere": (
        flow("{id: a, type: action.time.delay, params: {until: '2030-01-01T00:00:00'}}"),
        [("params.invalid", "until", None)],
    ),
    "an instant beyond the calendar": (
        flow("{id: a, type: action.time.delay, params: {until: 1e300}}"), [("params.invalid", "until", None)],
    ),
    "an unknown key of dedupe": (
        flow("{id: h, type: trigger.webhook.inbound, params: {dedupe: {haeder: x}}}"),
        [("params.invalid", "dedupe", None)],
    ),
    # -- ids and types
    "a workflow id with a space": (flow(SET("a")).replace("id: x", "id: a b"), [("document.bad_id", "id: a b", None)]),
    "a node id with a dash": (flow(SET("a-b"), edges="{from: start, to: a-b}"), [("document.bad_id", "id: a-b", None)]),
    "an id twice": (flow(SET("a"), SET("b").replace("id: b", "id:  a")), [("node.duplicate_id", "id:  a", None)]),
    "a reserved id": (
        flow(SET("item"), edges="{from: start, to: item}"), [("node.reserved_id", "id: item", None)],
    ),
    "an unknown type": (flow("{id: a, type: action.htp.request}"), [("node.unknown_type", "type: action.htp", "'action.http.request'")]),
    "a type of another kind": (flow("{id: a, type: send.email}"), [("node.unknown_type", "type: send", None)]),
    "an unknown trigger": ("id: x\nnodes:\n  - {id: h, type: trigger.webhok.inbound}\n", [("node.unknown_type", "type", "'trigger.webhook.inbound'")]),
    "code without code": (flow("{id: a, type: action.code.run}"), [("node.no_code", "{id: a", None)]),
    "a disabled trigger": (
        "id: x\nnodes:\n  - {id: start, type: trigger.time.manual, disabled: true}\n",
        [("node.trigger_policy", "{id: start", None)],
    ),
    "a path twice": (
        flow("{id: h, type: trigger.webhook.inbound, params: {path: a}}", "{id: i, type: trigger.webhook.inbound, params: { path: a}}"),
        [("webhook.path_taken", "{ ¦path: a}", None)],
    ),
    # -- edges
    "edges to nowhere": (
        flow(SET("alpha"), edges="{from: strat, to: alpa}"),
        [("edge.unknown_node", "from: strat", "'start'"), ("edge.unknown_node", "to: alpa", "'alpha'")],
    ),
    "an edge from a node to itself": (
        flow(SET("a"), edges="{from: start, to: a}, {from: a, to: a}"), [("edges.cycle", "{from: a, to: a}", "take an edge")],
    ),
    "two cycles": (
        flow(SET("a"), SET("b"), SET("c"), SET("d"), edges="{from: a, to: b}, {from: b, to: a}, {from: c, to: d}, {from: d, to: c}"),
        [("edges.cycle", "{from: b, to: a}", None), ("edges.cycle", "{from: d, to: c}", None)],
    ),
    "an edge twice": (
        flow(SET("a"), edges="{from: start, to: a}, { from: start, to: a}"), [("edge.duplicate", "{ from: start", None)],
    ),
    "an edge into a trigger": (
        flow(SET("a"), edges="{from: a, to: start}"), [("edge.into_trigger", "to: start", None)],
    ),
    "an edge for an outcome that is none": (
        flow(SET("a"), edges="{from: start, to: a, on: sucess}"), [("edge.unknown_case", "on: sucess", "'success'")],
    ),
    "an edge that is never taken": (
        flow(SET("a"), SET("b"), edges="{from: start, to: a}, {from: a, to: b, on: error}"),
        [("edge.never_taken", "on: error", "onError: route on a")],
    ),
    # -- expressions
    "an unknown filter": (flow(SET("a", v="'x {{ start | lowr }}'")), [("expression.invalid", "lowr", None)]),
    "an unknown test": (flow(SET("a", v="'{{ start is defind }}'")), [("expression.invalid", "is defind", None)]),
    "an unknown function": (flow(SET("a", v="'{{ nwo() }}'")), [("expression.invalid", "nwo", None)]),
    "a link of a node that waits for none": (
        flow(SET("a", v="'x {{ resumeUrl(\"start\") }}'")), [("expression.no_link", "resumeUrl", "add a node")],
    ),
    "a link of no node": (
        flow("{id: ask, type: action.wait.webhook}", SET("a", v="'{{ resumeUrl(\"aks\") }}'"), edges="{from: start, to: a}, {from: a, to: ask}"),
        [("expression.no_link", "resumeUrl", "'ask'")],
    ),
    "a link inside of a loop, read outside": (
        flow("{id: l, type: logic.foreach, params: {items: []}, nodes: [{id: ask, type: action.wait.webhook}]}", SET("a", v="'{{ resumeUrl(\"ask\") }}'")),
        [("expression.no_link", "resumeUrl", None)],
    ),
    "a link in a condition": (
        flow("{id: a, type: action.wait.webhook}", edges="{from: start, to: a, when: 'resumeUrl(\"a\") == 1'}"),
        [("expression.no_link", "resumeUrl", None)],
    ),
    "a link of a node that is computed": (
        flow(SET("a", v="'{{ resumeUrl(start) }}'")), [("expression.invalid", "resumeUrl", None)],
    ),
    "an expression that ends too soon": (flow(SET("a", v="'{{ 1 + }}'")), [("expression.invalid", "1 +¦", None)]),
    "an expression that is never closed": (flow(SET("a", v="'ab {{ start'")), [("expression.invalid", "{{ start", None)]),
    "an expression in a key": (flow("{id: a, type: transform.data.set, params: {values: {'{{ x }}': 1}}}"), [("expression.invalid", "'{{ x }}'", None)]),
    "an unknown name": (
        flow(SET("a", v="'{{ strat.b }}'"), edges="{from: start, to: a}"), [("expression.unknown_root", "strat", "'start'")],
    ),
    "an unknown variable": (
        flow(SET("a", v="'{{ vars.ur }}'"), top="vars: {url: 1}\n"), [("expression.unknown_var", "vars.ur ", "'url'")],
    ),
    "a node that comes later": (
        flow(SET("a", v="'{{ b.v }}'"), SET("b"), edges="{from: start, to: a}, {from: a, to: b}"),
        [("expression.not_upstream", "b.v", "an edge that leads from b")],
    ),
    "a node that reads itself": (
        flow(SET("a", v="'{{ a.v }}'"), edges="{from: start, to: a}"), [("expression.not_upstream", "a.v", None)],
    ),
    "a condition that reads its target": (
        flow(SET("aim"), edges="{from: start, to: aim, when: aim.v}"), [("expression.not_upstream", "aim.v", None)],
    ),
    "several mistakes in one text": (
        flow(SET("a", v="'{{ one }} {{ two | lowr }} {{ three }} {{ four'")),
        [
            ("expression.unknown_root", "one", None),
            ("expression.invalid", "lowr", None),
            ("expression.unknown_root", "three", None),
            ("expression.invalid", "{{ four", None),
        ],
    ),
    "mistakes in a key of idempotency": (
        flow(http("method: POST", "effect: keyed, idempotencyKey: 'k {{ strat.id }}'"), edges="{from: start, to: a}"),
        [("expression.unknown_root", "strat", "'start'")],
    ),
    "a condition of two expressions": (
        flow(SET("a"), edges="{from: start, to: a, when: '{{ start.a }} == {{ start.b }}'}"),
        [("expression.invalid", "{{ start.a", None)],
    ),
    "an empty condition": (flow(SET("a"), edges="{from: start, to: a, when: ''}"), [("expression.invalid", "''", None)]),
    "dedupe that reads a node": (
        flow("{id: hook, type: trigger.webhook.inbound, params: {dedupe: {expression: 'hok.body.id'}}}"),
        [("expression.unknown_root", "hok.body", "'hook'")],
    ),
    # -- cases
    "a case that is none": (
        flow("{id: w, type: logic.switch, params: {value: 1, cases: [small, big]}}", SET("a"),
             edges="{from: start, to: w}, {from: w, to: a, on: smal}"),
        [("edge.unknown_case", "on: smal", "'small'")],
    ),
    "a case of a branch": (
        flow("{id: w, type: logic.branch, params: {condition: start}}", SET("a"),
             edges="{from: start, to: w}, {from: w, to: a, on: yes}"),
        [("edge.unknown_case", "on: yes", None)],
    ),
    "cases without a value": (
        flow("{id: w, type: logic.switch, params: {cases: [a]}}"), [("params.invalid", "params", None)],
    ),
    "a case twice": (
        flow("{id: w, type: logic.switch, params: {value: 1, cases: [1, '1']}}"), [("params.invalid", "cases", None)],
    ),
    "a case that means something else": (
        flow("{id: w, type: logic.switch, params: {value: 1, cases: [error]}}"), [("params.invalid", "cases", None)],
    ),
    "a case with half a condition": (
        flow("{id: w, type: logic.switch, params: {cases: [{case: a, when: 'start >'}]}}"),
        [("expression.invalid", "'start >¦'", None)],
    ),
    "no path": (
        flow("{id: w, type: transform.json.extract, params: {value: 1, path: 'a..b'}}"), [("params.invalid", "path", None)],
    ),
    "neither path nor paths": (
        flow("{id: w, type: transform.json.extract, params: {value: 1}}"), [("params.invalid", "params", None)],
    ),
    "a mode that is none": (
        flow("{id: w, type: logic.merge, params: {mode: lst}}"), [("params.invalid", "mode", "'list'")],
    ),
    # -- loops
    "a loop without nodes": (
        flow("{id: l, type: logic.foreach, params: {items: []}}"), [("loop.no_body", "{id: l", None)],
    ),
    "a body that is none": (
        flow("{id: l, type: logic.foreach, params: {items: []}, nodes: 5}"),
        [("document.bad_value", "nodes: 5", None), ("loop.no_body", "{id: l", None)],
    ),
    "nodes in what is no loop": (
        flow("{id: l, type: transform.data.set, params: {values: {}}, nodes: []}"), [("node.no_body", "nodes: []", None)],
    ),
    "a mistake in a body": (
        flow("{id: l, type: logic.foreach, params: {items: []}, nodes: [{id: a, tpe: x, type: transform.data.sett}]}"),
        [("document.unknown_key", "tpe", "'type'"), ("node.unknown_type", "type: transform.data.sett", "'transform.data.set'")],
    ),
    "a mistake in a body among the params": (
        flow("{id: l, type: logic.foreach, params: {items: [], nodes: [{id: a, type: transform.data.sett}]}}"),
        [("node.unknown_type", "type: transform.data.sett", "'transform.data.set'")],
    ),
    "an id of a body twice": (
        flow(SET("a"), "{id: l, type: logic.foreach, params: {items: []}, nodes: [{id:  a, type: logic.merge}]}"),
        [("node.duplicate_id", "id:  a", None)],
    ),
    "a trigger in a loop": (
        flow("{id: l, type: logic.foreach, params: {items: []}, nodes: [{id: a, type:  trigger.time.manual}]}"),
        [("node.trigger_in_loop", "type:  trigger", None)],
    ),
    "an edge out of a loop": (
        flow(SET("b"), "{id: l, type: logic.foreach, params: {items: []}, nodes: [{id: a, type: logic.merge}], "
             "edges: [{from: a, to: b}]}"),
        [("edge.crosses_loop", "to: b", "the loop itself")],
    ),
    "an edge into a loop": (
        flow("{id: l, type: logic.foreach, params: {items: []}, nodes: [{id: a, type: logic.merge}]}",
             edges="{from: start, to: a}"),
        [("edge.crosses_loop", "to: a", "the loop itself")],
    ),
    "a cycle in a loop": (
        flow("{id: l, type: logic.foreach, params: {items: []}, nodes: [{id: a, type: logic.merge}, {id: b, type: logic.merge}], "
             "edges: [{from: a, to: b}, {from: b, to: a}]}"),
        [("edges.cycle", "{from: b", None)],
    ),
    "an item where there is none": (flow(SET("a", v="'{{ item }}'")), [("expression.no_item", "item", None)]),
    "a read into a loop": (
        flow("{id: l, type: logic.foreach, params: {items: []}, nodes: [{id: inner, type: logic.merge}]}",
             SET("a", v="'{{ ¦inner }}'".replace("¦", "")), edges="{from: start, to: l}, {from: l, to: a}"),
        [("expression.inside_loop", "{{ ¦inner", "what l gives")],
    ),
    "a body that reads what does not come before its loop": (
        flow(over(SET("a", v="'{{ late }}'")), SET("late"),
             edges="{from: start, to: l}, {from: l, to: late}"),
        [("expression.not_upstream", "{{ ¦late", "to l")],
    ),
    "a body that reads itself backwards": (
        flow(over(SET("a", v="'{{ b }}'"), SET("b"), edges="{from: a, to: b}")),
        [("expression.not_upstream", "{{ ¦b }}", "to it")],
    ),
    "loops too deep": (
        flow("{id: l0, type: logic.foreach, params: {items: []}, nodes: [{id: l1, type: logic.foreach, params: {items: []}, "
             "nodes: [{id: l2, type: logic.foreach, params: {items: []}, nodes: [{id: l3, type: logic.foreach, params: {items: []}, "
             "nodes: [{id: l4, type: logic.foreach, params: {items: []}, nodes: [{id: x5, type: logic.merge}]}]}]}]}]}"),
        [("loop.too_deep", "{id: l4", None)],
    ),
    "too many at once": (
        flow("{id: l, type: logic.foreach, params: {items: [], concurrency: 101}, nodes: [{id: a, type: logic.merge}]}"),
        [("params.invalid", "concurrency", None)],
    ),
    # -- a mistake hides no other
    "mistakes beside a mistake": (
        flow(
            "{id: a, type: action.http.request, xyz: 1, effect: [], params: {url: 'ftp://a', bdy: '{{ start | lowr }}'}}",
            SET("a").replace("values: {}", "values: '{{ nope }}'").replace("id: a", "id:  a"),
        ),
        [
            ("document.unknown_key", "xyz", None),
            ("document.bad_value", "effect", None),
            ("params.invalid", "url", None),
            ("params.unknown", "bdy", "'body'"),
            ("expression.invalid", "lowr", None),
            ("node.duplicate_id", "id:  a", None),
            ("expression.unknown_root", "nope", None),
        ],
    ),
    "mistakes in a node whose id is none": (
        flow(
            "{id: a-b, type: action.http.request, params: {mehtod: GET, url: '{{ strat.v }}'}}",
            SET("c", v="'{{ a-b.body }}'"),
            edges="{from: start, to: a-b}, {from: a-b, to: c, on: sucess}",
        ),
        [
            ("document.bad_id", "id: a-b", None),
            ("params.unknown", "mehtod", "'method'"),
            ("expression.unknown_root", "strat", "'start'"),
            ("edge.unknown_case", "on: sucess", "'success'"),
        ],
    ),
    "mistakes in nodes that have no id": (
        flow("{type: action.http.request, params: {url: a, mehtod: GET}}", "{id: 7, type: transform.data.sett}"),
        [
            ("document.missing", "{type: action", None),
            ("params.invalid", "url", None),
            ("params.unknown", "mehtod", "'method'"),
            ("document.bad_value", "id: 7", None),
            ("node.unknown_type", "type: transform.data.sett", "'transform.data.set'"),
        ],
    ),
    "a trigger whose id is none": (
        "id: x\nnodes:\n  - {id: a-b, type: trigger.webhook.inbound, params: {dedupe: {expression: 'a-b.id'}}}\n",
        [("document.bad_id", "id: a-b", None)],
    ),
    "mistakes in a loop whose id is none": (
        flow(over(SET("a", v="'{{ nope }}'")).replace("id: l", "id: a-b"), SET("c"),
             edges="{from: start, to: a-b}, {from: a-b, to: c}"),
        [("document.bad_id", "id: a-b", None), ("expression.unknown_root", "nope", None)],
    ),
    "a node with an id that is longer than one may be": (
        flow(SET("i" * 200), edges=f"{{from: start, to: {'i' * 200}}}"), [("document.bad_id", f"id: {'i' * 200}, ", None)],
    ),
    "an edge to an id that is none in a loop": (
        flow(over(SET("a-b")), edges="{from: start, to: a-b}"),
        [("document.bad_id", "id: a-b", None), ("edge.crosses_loop", "to: a-b", "the loop itself")],
    ),
    # -- the text itself
    "half a character in JSON": ('{"id": "x", "vars": {"a": "b\\ud800"}}', [("document.text", '"b', "both halves")]),
    "half a character in YAML": ('id: x\nvars:\n  a: "\\ud800"\n', [("document.text", '"\\ud', "both halves")]),
    "half a character in a key": ('{"id": "x", "vars": {"\\udc00": 1}}', [("document.text", '"\\ud', None)]),
    "a comma too few": ('{"id": "x"\n "nodes": []}', [("json.malformed", '"nodes', None)]),
    "a number beyond all": ('{"id": "x",\n "vars": {"n": 1e999}}', [("json.number", "1e999", None)]),
    "a number without end": ('{"id": "x",\n "vars": {"n": %s}}' % ("7" * 5000), [("json.number", "7" * 5000, None)]),
    "no number": ('{"id": "x",\n "vars": [NaN]}', [("json.constant", "NaN", None)]),
    "a key twice in JSON": ('{"id": "x",\n "id": "y"}', [("document.duplicate_key", '"id": "y"', None)]),
    "too deep": ('{"id": "x", "vars":\n' + '{"a":' * 63 + '[7]' + "}" * 63 + "}", [("document.depth", "[7]", None)]),
    "a control character": ("id: x\nname: a\x01b\n", [("document.malformed", "\x01", None)]),
    "a bracket of another kind": ("id: x\nnodes: [{id: a])\n", [("document.malformed", "])", None)]),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_once_with_its_place_and_the_nearest_name(name):
    text, mistakes = MISTAKES[name]

    found = [one for one in findings(text) if one.severity == "error"]

    assert [(one.code, (one.line, one.column)) for one in found] == sorted(
        ((code, place(text, mark)) for code, mark, _ in mistakes), key=lambda one: one[1]
    )
    hints = {place(text, mark): hint for _, mark, hint in mistakes}
    for one in found:
        assert (hints[one.line, one.column] or "") in (one.hint or ""), one


OF_A = re.compile(r"\b(id|from|to):( +)a\b(?!-)")


@pytest.mark.parametrize(
    "name", [name for name, (text, _) in MISTAKES.items() if OF_A.search(text)]
)
def test_an_id_that_is_none_hides_no_mistake_and_makes_none(name):
    text, _ = MISTAKES[name]
    with_bad_id = OF_A.sub(r"\1:\2a-", text)
    follows = {"expression.not_upstream"} if name == "a node that reads itself" else set()

    expected = Counter((one.code, one.line) for one in findings(text) if one.code not in follows)
    told = Counter((one.code, one.line) for one in findings(with_bad_id))

    assert not expected - told
    assert {code for code, _ in told - expected} <= {"document.bad_id"}


MULTILINE = r"""
id: x
nodes:
  - {id: start, type: trigger.time.manual}
  - id: a
    type: transform.data.set
    params:
      values:
        literal: |
          first
            {{ n1.x }} and
          {{ start | f1 }}
        kept: |2+

            {{ n2 }}
        folded: >-
          some {{ start.a
          | f2 }} text

          {{ n3
          }}
        plain: of two
          lines {{ n4 }}
        single: 'it''s {{ n5 }}

          ''{{ start |
          f3 }}'''
        double: "tab\t \x41\u00e4\U0001f600 \ud83d\ude00 {{ n6 }} \
          \n  {{ start
           | f4 }} \"{{ n7 }}\""
edges:
  - from: start
    to: a
    when: >
      start.x
      and n8
"""


@pytest.mark.parametrize("text", [MULTILINE, MULTILINE.replace("\n", "\r\n")], ids=["lf", "crlf"])
def test_a_mistake_inside_a_text_of_many_lines_is_told_where_it_stands(text):
    marks = [f"n{number}" for number in range(1, 9)] + [f"f{number}" for number in range(1, 5)]

    found = {(one.line, one.column) for one in findings(text)}

    assert found == {place(text, mark) for mark in marks}


@pytest.mark.parametrize(
    ("node", "code"),
    [
        ("{id: a, type: transform.data.set, effect: unsafe, params: {values: {}}}", "node.no_effect"),
        ("{id: a, type: action.time.delay, timeoutMs: 5, params: {delayMs: 1}}", "node.no_effect"),
        (http(extra="retry: {maxAttempts: 2, initialMs: 60000}"), "node.retry_capped"),
        (http(extra="retry: {maxAttempts: 2, initialMs: 9, maxMs: 8}"), "node.retry_capped"),
        ("{id: a, type: transform.data.set, params: {values: {}}}", "node.unreachable"),
        ("{id: a, type: action.http.request, idempotencyKey: k, params: {url: 'http://a'}}", "node.key_unused"),
        (http("method: POST"), "node.unsafe"),
        (http("method: '{{ trigger.type }}'"), "node.unsafe"),
        (http("method: POST", "retry: {maxAttempts: 2}"), "node.retry_unsafe"),
        (http("tls: {verify: false}"), "http.tls_unverified"),
        (http("method: POST", "effect: unsafe, retry: {maxAttempts: 2}"), "node.retry_unsafe"),
    ],
)  # fmt: skip
def test_what_is_odd_but_usable_is_a_warning(node, code):
    assert code in [w.code for w in read(flow(node)).warnings]


@pytest.mark.parametrize(
    "node",
    [
        http("method: POST", "effect: keyed"),
        http("method: POST", "effect: unsafe"),
        http("method: POST", "idempotencyKey: k"),
        http("method: POST", "disabled: true"),
        http("method: PUT", "retry: {maxAttempts: 2}"),
        http('tls: {verify: true, minVersion: "1.3"}'),
        "{id: a, type: logic.foreach, params: {items: []}, nodes: [{id: b, type: logic.merge}]}",
    ],
)
def test_what_is_in_order_is_not_warned_of(node):
    assert read(flow(node, edges="{from: start, to: a}")).warnings == ()


def in_loop(key: str) -> str:
    request = http("method: POST", f"effect: keyed, idempotencyKey: {key}").replace(
        "id: a", "id: b"
    )
    first = SET("c", v="'{{ item }}'")
    return (
        "{id: a, type: logic.foreach, params: {items: [1, 2]}, "
        f"nodes: [{request}, {first}], edges: [{{from: c, to: b}}]}}"
    )


@pytest.mark.parametrize("key", ["k", "'{{ execution.id }}'", "'a-{{ start.n }}'"])
def test_one_key_for_all_iterations_is_a_warning(key):
    text = flow(in_loop(key), edges="{from: start, to: a}")

    assert [w.code for w in read(text).warnings] == ["node.same_key"]


@pytest.mark.parametrize(
    "key", ["'{{ item.id }}'", "'a-{{ start.n }}-{{ index }}'", "'{{ c.v }}'", "'{{ uuid() }}'"]
)
def test_a_key_of_its_own_for_each_iteration_is_not_warned_of(key):
    assert read(flow(in_loop(key), edges="{from: start, to: a}")).warnings == ()


def test_a_var_that_nothing_reads_is_a_warning():
    used = SET("a", v="'{{ vars.read }}'")

    warnings = read(
        flow(used, edges="{from: start, to: a}", top="vars: {read: 1, idle: 2}\n")
    ).warnings

    assert [(w.code, w.message) for w in warnings] == [("var.unused", "nothing reads vars.idle")]


def test_a_link_that_nothing_gives_away_is_a_warning():
    waiting = "{id: ask, type: action.wait.webhook}"
    telling = SET("a", v="'{{ resumeUrl(\"ask\") }}'")
    edges = "{from: start, to: a}, {from: a, to: ask}"

    silent = read(flow(SET("a"), waiting, edges=edges)).warnings

    assert [w.code for w in silent] == ["wait.no_link"]
    assert not read(flow(telling, waiting, edges=edges)).warnings


@pytest.mark.parametrize(
    "read_softly", ["vars.nope | default(1)", "vars.nope is defined", "vars.nope | omit"]
)
def test_a_var_that_need_not_be_there_is_no_mistake(read_softly):
    used = SET("a", v=f"'{{{{ {read_softly} }}}}'")

    assert not read(flow(used, edges="{from: start, to: a}")).warnings


def test_who_reads_all_vars_reads_each():
    used = SET("a", v="'{{ vars }}'")

    assert not read(flow(used, edges="{from: start, to: a}", top="vars: {any: 1}\n")).warnings


def test_what_somebody_wrote_is_cut_short_in_a_message():
    long = "n" * 5000
    edge = {"from": long, "to": long, long: 1}

    told = findings(dumps({"id": long, "nodes": [{"id": "a", "type": "t" * 200}], "edges": [edge]}))

    assert {one.code for one in told} == {
        "document.bad_id", "document.unknown_key", "edge.unknown_node", "node.unknown_type",
    }  # fmt: skip
    assert max(len(one.message) for one in told) < 400


def test_of_many_findings_the_first_are_shown_and_the_message_says_so():
    with pytest.raises(DocumentError, match=r"over 99 more; the first 100 are listed") as caught:
        read(flow(*(SET("a") for _ in range(200))))

    assert len(caught.value.findings) == MAX_FINDINGS


# -- work


def node(number: int, text: str = "") -> dict[str, Any]:
    values = {"v": text} if text else {}
    return {"id": f"n{number}", "type": "transform.data.set", "params": {"values": values}}


def document(nodes: list[dict[str, Any]], edges: list[tuple[str, str]], **more: Any) -> bytes:
    start = {"id": "n", "type": "trigger.time.manual"}
    return dumps(
        {
            "id": "x",
            "nodes": [start, *nodes],
            "edges": [{"from": a, "to": b} for a, b in edges],
            **more,
        }
    )


def chain(size: int) -> bytes:
    nodes = [node(i, f"{{{{ n{i - 1 if i else ''} }}}}") for i in range(size)]
    return document(nodes, [(f"n{i - 1 if i else ''}", f"n{i}") for i in range(size)])


def chain_from_the_end(size: int) -> bytes:
    nodes = [node(i, f"{{{{ n{i - 1 if i else ''} }}}}") for i in reversed(range(size))]
    return document(nodes, [(f"n{i - 1 if i else ''}", f"n{i}") for i in range(size)])


def layers(size: int) -> bytes:
    """Each node of a layer of four leads to each of the next, and reads the first node of all."""
    nodes = [node(i, "{{ n }}") for i in range(size)]
    edges = [(f"n{i}", f"n{j}") for i in range(size) for j in range(i // 4 * 4 + 4, i // 4 * 4 + 8)]
    return document(
        nodes, [("n", f"n{i}") for i in range(4)] + [(a, b) for a, b in edges if int(b[1:]) < size]
    )


def ring(size: int) -> bytes:
    nodes = [node(i) for i in range(size)]
    return document(nodes, [(f"n{i}", f"n{(i + 1) % size}") for i in range(size)])


def unknown_names(size: int) -> bytes:
    return document([node(i, f"{{{{ n{i}x }}}}") for i in range(size)], [])


def unknown_ends(size: int) -> bytes:
    return document([node(i) for i in range(size)], [("n", f"n{i}x") for i in range(size)])


def unknown_vars(size: int) -> bytes:
    texts = "".join(f"{{{{ vars.v{i}x }}}}" for i in range(size))
    return document([node(0, texts)], [("n", "n0")], vars={f"v{i}": 1 for i in range(size)})


def unknown_filters(size: int) -> bytes:
    return document([node(0, "{{ n | lowr }}" * size)], [("n", "n0")])


def one_id(size: int) -> bytes:
    return document([node(0) for _ in range(size)], [])


def unusable_nodes(size: int) -> bytes:
    return document([{"idd": 1} for _ in range(size)], [])


def loops(size: int) -> bytes:
    """A quarter as many loops, each with a body that reads what came before it."""
    parts = [
        {
            "id": f"l{i}",
            "type": "logic.foreach",
            "params": {"items": []},
            "nodes": [node(i, "{{ n }}")],
        }
        for i in range(size // 4)
    ]
    return document(parts, [("n", f"l{i}") for i in range(size // 4)])


WORST = [
    loops,
    chain, chain_from_the_end, layers, ring, unknown_names, unknown_ends, unknown_vars, unknown_filters,
    one_id, unusable_nodes,
]  # fmt: skip


def lines_run(what: Callable[[], object]) -> Counter[str]:
    """How many lines of our code `what` goes through, by function: its work, whatever the machine is."""
    lines: Counter[str] = Counter()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if "/stackd/" not in frame.f_code.co_filename:
            return None
        if event in ("call", "line"):
            lines[frame.f_code.co_name if event == "line" else f"{frame.f_code.co_name}()"] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        what()
    finally:
        sys.settrace(before)
    return lines


def judged(data: bytes) -> None:
    with contextlib.suppress(DocumentError):
        read(data)


@pytest.mark.parametrize("make", WORST, ids=lambda make: make.__name__)
def test_the_work_of_a_check_grows_as_the_document_does(make):
    judged(make(2))  # what is loaded at first use is loaded

    small = lines_run(lambda: judged(make(150))).total()
    large = lines_run(lambda: judged(make(600))).total()

    assert large < 4.5 * small


@pytest.mark.parametrize(
    "make", [unknown_names, unknown_ends, unknown_vars], ids=lambda m: m.__name__
)
def test_a_nearest_name_is_looked_for_only_where_it_is_shown(make):
    judged(make(2))

    assert lines_run(lambda: judged(make(300)))["nearest()"] == MAX_FINDINGS
