"""The published JSON Schema, judged by a validator that had no part in making it, beside what lint says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from stackd.core.json import dumps
from stackd.workflows import checks
from stackd.workflows.document import findings_in
from stackd.workflows.model import LOOP
from stackd.workflows.nodetypes import NODE_TYPES
from stackd.workflows.schema import workflow_schema
from stackd.workflows.source import read_source

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "config" / "examples").glob("*.yaml"))
VALIDATOR = jsonschema_rs.Draft202012Validator(workflow_schema())

HOOK = {
    "id": "hook",
    "type": "trigger.webhook.inbound",
    "params": {"path": "a/b", "methods": ["post"], "respond": "last", "dedupe": {"header": "x"}},
}
CALL = {
    "id": "call",
    "type": "action.http.request",
    "retry": {"maxAttempts": 3},
    "params": {
        "url": "https://x.example",
        "method": "pOsT",
        "headers": {"a": "b", "c": 1},
        "query": {"q": ["{{ hook.body }}", 1, None]},
        "json": {"any": ["{{ hook.body }}"]},
        "allowStatus": ["400-499", 503],
        "timeoutMs": "{{ 5 }}",
    },
}
NAP = {"id": "nap", "type": "action.time.delay", "params": {"delayMs": 1, "delayHours": 0.5}}
PUT = {"id": "put", "type": "transform.data.set", "params": {"values": {"a": None}}}
INSIDE = {"id": "inside", "type": "transform.data.set", "params": {"values": {"a": "{{ item }}"}}}
FORK = {
    "id": "fork",
    "type": "logic.switch",
    "params": {"value": "{{ hook.body }}", "cases": ["a", 2, True]},
}
KEEP = {
    "id": "keep",
    "type": "transform.list.filter",
    "params": {"items": "{{ hook.body }}", "where": "item > 2"},
}
PICK = {
    "id": "pick",
    "type": "transform.json.extract",
    "params": {"value": {}, "paths": {"a": "b[0]"}},
}
LESS = {"id": "less", "type": "transform.list.limit", "params": {"items": [1], "count": 1}}
BRANCH = {"id": "branch", "type": "logic.branch", "params": {"condition": True}}
EACH = {"id": "each", "type": LOOP, "params": {"items": [1, 2], "nodes": [INSIDE], "edges": []}}
WHOLE: dict[str, Any] = {
    "id": "whole",
    "name": None,
    "vars": {"a": 1},
    "concurrency": 2,
    "nodes": [HOOK, CALL, NAP, PUT, EACH, FORK, KEEP, PICK, LESS, BRANCH],
    "edges": [
        {"from": "hook", "to": "call", "when": "{{ true }}"},
        {"from": "call", "to": "nap", "when": True},
        {"from": "nap", "to": "put", "on": "success", "when": None},
        {"from": "put", "to": "each"},
        {"from": "hook", "to": "fork"},
        {"from": "fork", "to": "keep", "on": "a"},
        {"from": "fork", "to": "pick", "on": 2},
        {"from": "hook", "to": "branch"},
        {"from": "branch", "to": "less", "on": True},
    ],
}

# Where in WHOLE, and what stands there instead; None: nothing does.
GONE = object()
BAD = {
    "unknown-key": (["nonsense"], 1),
    "no-id": (["id"], GONE),
    "id-of-wrong-type": (["id"], 5),
    "id-malformed": (["id"], "a b"),
    "no-nodes": (["nodes"], []),
    "nodes-no-list": (["nodes"], {}),
    "no-trigger": (["nodes"], [NAP]),
    "concurrency-zero": (["concurrency"], 0),
    "vars-no-map": (["vars"], []),
    "node-unknown-key": (["nodes", 1, "nonsense"], 1),
    "node-no-type": (["nodes", 1, "type"], GONE),
    "node-unknown-type": (["nodes", 1, "type"], "action.http.requset"),
    "node-id-malformed": (["nodes", 1, "id"], "1st"),
    "node-id-reserved": (["nodes", 3, "id"], "vars"),
    "node-params-no-map": (["nodes", 1, "params"], []),
    "node-retry-unknown-key": (["nodes", 1, "retry", "often"], 1),
    "node-retry-too-often": (["nodes", 1, "retry", "maxAttempts"], 101),
    "node-on-error": (["nodes", 1, "onError"], "stop"),
    "node-effect": (["nodes", 1, "effect"], "maybe"),
    "trigger-pinned": (["nodes", 0, "pinned"], 1),
    "trigger-disabled": (["nodes", 0, "disabled"], True),
    "trigger-on-error": (["nodes", 0, "onError"], "continue"),
    "params-unknown": (["nodes", 1, "params", "urll"], "x"),
    "params-missing": (["nodes", 1, "params", "url"], GONE),
    "params-all-missing": (["nodes", 3, "params"], GONE),
    "params-two-bodies": (["nodes", 1, "params", "body"], "x"),
    "params-until-and-delay": (["nodes", 2, "params", "until"], "2030-01-01T00:00:00Z"),
    "url-no-text": (["nodes", 1, "params", "url"], 5),
    "method-unknown": (["nodes", 1, "params", "method"], "POTS"),
    "headers-hold-a-list": (["nodes", 1, "params", "headers", "a"], [1]),
    "headers-hold-null": (["nodes", 1, "params", "headers", "a"], None),
    "query-holds-a-map": (["nodes", 1, "params", "query"], {"q": {}}),
    "status-no-range": (["nodes", 1, "params", "allowStatus"], ["4xx"]),
    "timeout-no-number": (["nodes", 1, "params", "timeoutMs"], "soon"),
    "delay-too-long": (["nodes", 2, "params", "delayHours"], 366 * 24 + 1),
    "delay-no-number": (["nodes", 2, "params", "delayMs"], True),
    "values-no-map": (["nodes", 3, "params", "values"], [1]),
    "path-with-a-gap": (["nodes", 0, "params", "path"], "a//b"),
    "path-with-an-expression": (["nodes", 0, "params", "path"], "{{ vars.a }}"),
    "methods-empty": (["nodes", 0, "params", "methods"], []),
    "respond-unknown": (["nodes", 0, "params", "respond"], "first"),
    "dedupe-unknown-key": (["nodes", 0, "params", "dedupe"], {"heder": "x"}),
    "dedupe-by-both": (["nodes", 0, "params", "dedupe", "expression"], "hook.body"),
    "dedupe-too-long": (["nodes", 0, "params", "dedupe", "windowMs"], 32 * 86_400_000),
    "edge-unknown-key": (["edges", 0, "then"], "x"),
    "edge-no-target": (["edges", 0, "to"], GONE),
    "edge-on": (["edges", 0, "on"], []),
    "cases-empty": (["nodes", 5, "params", "cases"], []),
    "case-reserved": (["nodes", 5, "params", "cases"], ["error"]),
    "case-without-when": (["nodes", 5, "params", "cases"], [{"case": "a"}]),
    "case-of-a-list": (["nodes", 5, "params", "cases"], [["a"]]),
    "where-no-expression": (["nodes", 6, "params", "where"], 5),
    "items-no-list": (["nodes", 6, "params", "items"], {}),
    "path-and-paths": (["nodes", 7, "params", "path"], "a"),
    "neither-path-nor-paths": (["nodes", 7, "params", "paths"], GONE),
    "paths-no-text": (["nodes", 7, "params", "paths", "a"], 5),
    "count-no-whole-number": (["nodes", 8, "params", "count"], 1.5),
    "condition-no-expression": (["nodes", 9, "params", "condition"], 1),
    "loop-too-many-at-once": (["nodes", 4, "params", "concurrency"], 101),
    "loop-no-items": (["nodes", 4, "params", "items"], GONE),
    "loop-body-unknown-key": (["nodes", 4, "params", "nodes", 0, "nonsense"], 1),
    "edge-when": (["edges", 0, "when"], 1),
}


def changed(place: list[Any], value: Any) -> Any:
    document = copy.deepcopy(WHOLE)
    *around, last = place
    inside: Any = document
    for key in around:
        inside = inside[key]
    if value is GONE:
        del inside[last]
    else:
        inside[last] = value
    return document


def lint_refuses(document: Any) -> bool:
    findings = findings_in(dumps(document), name="x", max_bytes=10**6)
    return any(finding.severity == "error" for finding in findings)


def test_it_is_a_schema_with_a_name_and_says_what_it_is_of() -> None:
    schema = workflow_schema()

    jsonschema_rs.meta.validate(schema)
    assert schema["$id"].startswith("urn:stackd:schema:workflow")
    assert schema["title"]
    assert schema["description"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_takes_every_example(path: Path) -> None:
    document = read_source(path.read_bytes()).value

    assert [error.message for error in VALIDATOR.iter_errors(document)] == []


def test_it_takes_what_lint_takes() -> None:
    assert [error.message for error in VALIDATOR.iter_errors(WHOLE)] == []
    assert not lint_refuses(WHOLE)


@pytest.mark.parametrize(("place", "value"), BAD.values(), ids=BAD)
def test_it_refuses_what_lint_refuses_for_its_shape(place: list[Any], value: Any) -> None:
    document = changed(place, value)

    assert not VALIDATOR.is_valid(document)
    assert lint_refuses(document)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["nodes", 1, "params", "headers"], "{{ hook.headers }}"),
        (["nodes", 1, "params", "headers"], {"a": ["{{ hook.body }}"]}),
        (["nodes", 1, "params", "headers"], {"a": {"b": [{"c": "x {{ hook.body }}"}]}}),
        (["nodes", 1, "params", "allowStatus"], "{{ [404] }}"),
        (["nodes", 2, "params", "delayMs"], "{{ hook.body.ms }}"),
        (["nodes", 3, "params", "values"], "{{ hook.body }}"),
    ],
)
def test_it_takes_a_value_that_holds_an_expression_whatever_else_it_must_be(
    place: list[Any], value: Any
) -> None:
    document = changed(place, value)

    assert [error.message for error in VALIDATOR.iter_errors(document)] == []
    assert not lint_refuses(document)


@pytest.mark.parametrize("kind", NODE_TYPES.values(), ids=lambda kind: kind.name)
def test_it_knows_every_parameter_of_a_node_type_and_no_other(kind: Any) -> None:
    (branch,) = [
        one["then"]
        for one in workflow_schema()["$defs"]["Node"]["allOf"]
        if one["if"]["properties"]["type"]["const"] == kind.name
    ]

    body = {"nodes", "edges"} if kind.name == LOOP else set()
    assert branch["properties"]["params"]["properties"].keys() == kind.params.keys() | body
    assert branch["properties"]["params"]["additionalProperties"] is kind.is_open


def test_it_has_a_shape_for_every_parameter_but_those_that_may_be_anything() -> None:
    shapeless = [
        f"{kind.name} {name}"
        for kind in NODE_TYPES.values()
        for name, param in kind.params.items()
        if param.check is not checks.anything and params_of(kind.name)[name] is True
    ]

    assert shapeless == []


def params_of(kind: str) -> dict[str, Any]:
    (branch,) = [
        one["then"]
        for one in workflow_schema()["$defs"]["Node"]["allOf"]
        if one["if"]["properties"]["type"]["const"] == kind
    ]
    return dict(branch["properties"]["params"]["properties"])
