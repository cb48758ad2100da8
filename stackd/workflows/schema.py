"""The JSON Schema of a workflow document, for editors and other programs.

It is made from what reads documents: the models, and the table of node types. What it refuses, lint refuses; lint
also looks at what a schema cannot say, such as which node comes before which.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from stackd.workflows import checks
from stackd.workflows.model import CODE, LOOP, RESERVED_IDS, Workflow
from stackd.workflows.nodetypes import (
    CONNECTOR_TYPE,
    LONGEST_DELAY_DAYS,
    LONGEST_TIMEOUT_MS,
    LONGEST_WAIT_MS,
    MOST_AT_ONCE,
    NODE_TYPES,
    SHORTEST_WAIT_MS,
    NodeType,
    Param,
)

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_MAP: Final[Schema] = {"type": "object"}
_SCALAR: Final[Schema] = {"type": ["string", "number", "boolean"]}
_SCALARS: Final[Schema] = {"type": [*_SCALAR["type"], "null"]}
_EXPRESSION: Final[Schema] = {"type": ["string", "boolean"]}


def _in_any_case(word: str) -> str:
    return "".join(f"[{letter}{letter.lower()}]" for letter in word)


def _number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


_METHOD: Final[Schema] = {
    "type": "string",
    "pattern": f"^({'|'.join(map(_in_any_case, checks.METHODS))})$",
    "examples": list(checks.METHODS),
}
_STATUS: Final = "[1-5][0-9][0-9]"
_CASE: Final[Schema] = {**_SCALAR, "not": {"enum": list(checks.RESERVED_CASES)}}

# What a parameter may be, by the check that judges it. Whatever has no shape here may be anything.
_SHAPES: Final[dict[checks.Check, Schema]] = {
    checks.text: _TEXT,
    checks.url: _TEXT,
    checks.path: _TEXT,
    checks.paths: {"type": "object", "minProperties": 1, "additionalProperties": _TEXT},
    checks.mapping: _MAP,
    checks.boolean: {"type": "boolean"},
    checks.scalar: _SCALAR,
    checks.items: {"type": "array"},
    checks.expression: _EXPRESSION,
    checks.instant: {"type": ["string", "number"]},
    checks.method: _METHOD,
    checks.methods: {"type": "array", "minItems": 1, "items": _METHOD},
    checks.webhook_path: {
        "type": "string",
        "maxLength": 200,
        "pattern": f"^{checks.WEBHOOK_PATH.pattern}$",
    },
    checks.tls: {
        "type": "object",
        "properties": {
            "verify": {"type": "boolean"},
            "minVersion": {"enum": list(checks.TLS_VERSIONS)},
        },
        "additionalProperties": False,
    },
    checks.headers: {"type": "object", "additionalProperties": _SCALAR},
    checks.scalars: {
        "type": "object",
        "additionalProperties": {"anyOf": [_SCALARS, {"type": "array", "items": _SCALARS}]},
    },
    checks.statuses: {
        "anyOf": [
            {"type": "boolean"},
            {
                "type": "array",
                "items": {
                    "anyOf": [
                        {"type": "string", "pattern": f"^{_STATUS}(-{_STATUS})?$"},
                        _whole(100, 599),
                    ]
                },
            },
        ]
    },
    checks.dedupe: {
        "type": "object",
        "minProperties": 1,
        "properties": {
            "header": {"type": "string", "minLength": 1},
            "expression": {"type": "string", "minLength": 1},
            "windowMs": _number(1, 31 * 86_400_000),
        },
        "additionalProperties": False,
        "not": {"required": ["header", "expression"]},
    },
    checks.cases: {
        "type": "array",
        "minItems": 1,
        "items": {
            "anyOf": [
                _CASE,
                {
                    "type": "object",
                    "properties": {"case": _CASE, "when": _EXPRESSION},
                    "required": ["case", "when"],
                    "additionalProperties": False,
                },
            ]
        },
    },
}

# Numbers, whose bounds are each parameter's own.
_NUMBERS: Final[dict[tuple[str, str], Schema]] = {
    ("action.http.request", "timeoutMs"): _number(1, LONGEST_TIMEOUT_MS),
    ("action.wait.webhook", "expiresMs"): _number(SHORTEST_WAIT_MS, LONGEST_WAIT_MS),
    ("action.time.delay", "delayMs"): _number(0, LONGEST_DELAY_DAYS * 86_400_000),
    ("action.time.delay", "delaySeconds"): _number(0, LONGEST_DELAY_DAYS * 86_400),
    ("action.time.delay", "delayMinutes"): _number(0, LONGEST_DELAY_DAYS * 1_440),
    ("action.time.delay", "delayHours"): _number(0, LONGEST_DELAY_DAYS * 24),
    ("transform.list.limit", "count"): _whole(0, 10**9),
    ("transform.list.limit", "offset"): _whole(0, 10**9),
    (LOOP, "concurrency"): _whole(1, MOST_AT_ONCE),
}

# A value that holds an expression anywhere is not known yet, and passes.
_OPEN: Final[Schema] = {
    "description": "An expression, {{ … }}, or a value that holds one.",
    "anyOf": [
        {"type": "string", "pattern": r"\{\{"},
        {"type": "array", "contains": {"$ref": "#/$defs/Open"}},
        {"type": "object", "not": {"additionalProperties": {"not": {"$ref": "#/$defs/Open"}}}},
    ],
}


@cache
def workflow_schema() -> Schema:
    """The JSON Schema of a workflow document (draft 2020-12). Shared: not to be changed."""
    made = _without_titles(Workflow.model_json_schema(by_alias=True))
    parts, keys = made["$defs"], made["properties"]
    node, edge = parts["Node"]["properties"], parts["Edge"]["properties"]
    node["id"]["not"] = {"enum": sorted(RESERVED_IDS)}
    node["type"] = {"anyOf": [{"enum": list(NODE_TYPES)}, {"pattern": CONNECTOR_TYPE}]}
    parts["Node"]["allOf"] = [
        {
            "if": {"required": ["type"], "properties": {"type": {"const": kind.name}}},
            "then": _node_of(kind),
        }
        for kind in NODE_TYPES.values()
    ]
    parts["Open"] = _OPEN
    edge["when"]["type"] = ["string", "boolean", "null"]
    edge["on"]["type"] = ["string", "boolean", "integer"]
    triggers = [kind.name for kind in NODE_TYPES.values() if kind.is_trigger]
    keys["nodes"] |= {
        "minItems": 1,
        "contains": {"properties": {"type": {"enum": triggers}}},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:stackd:schema:workflow",
        "title": "stackd workflow",
        **made,
        "description": "A workflow of stackd: nodes, the edges between them, and when they are taken.",
    }


def _node_of(kind: NodeType) -> Schema:
    """What a node of that kind must be besides a node."""
    required = [name for name, param in kind.params.items() if param.required]
    params: Schema = {
        "properties": {name: _value(kind, name, param) for name, param in kind.params.items()},
        "additionalProperties": kind.is_open,
    }
    if required:
        params["required"] = required
    if kind.any_of:
        params["allOf"] = [
            {"anyOf": [{"required": [name]} for name in group]} for group in kind.any_of
        ]
    if kind.name == LOOP:  # its body may stand here too
        params["properties"] |= {
            key: {"type": "array", "items": {"$ref": f"#/$defs/{part}"}}
            for key, part in (("nodes", "Node"), ("edges", "Edge"))
        }
    pairs = [
        [first, other]
        for group in kind.one_of
        for index, first in enumerate(group)
        for other in group[index + 1 :]
    ]
    if pairs:
        params["not"] = {"anyOf": [{"required": pair} for pair in pairs]}
    node: Schema = {"properties": {"params": params}}
    if kind.name == CODE:
        node["required"] = ["runtime"]
    else:
        node["properties"]["runtime"] = False
    if required or kind.any_of:
        node["required"] = ["params"]
    if kind.is_trigger:
        node["properties"] |= {
            "disabled": {"const": False},
            "onError": {"const": "fail"},
            "pinned": False,
        }
    return node


def _value(kind: NodeType, name: str, param: Param) -> Schema | bool:
    shape = _SHAPES.get(param.check) or _NUMBERS.get((kind.name, name))
    if shape is None and param.choices:
        shape = {"enum": list(param.choices)}
    if shape is None:
        return True
    if param.is_static or param.is_own:
        return shape
    return {"anyOf": [shape, {"$ref": "#/$defs/Open"}]}


def _without_titles(schema: Schema) -> Schema:
    """`schema` without the names that pydantic makes up of names."""
    kept: Schema = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            kept[key] = {name: _without_titles(inner) for name, inner in value.items()}
        elif key == "items":
            kept[key] = _without_titles(value)
        elif key == "anyOf":
            kept[key] = [_without_titles(inner) for inner in value]
        elif key != "title":
            kept[key] = value
    return kept
