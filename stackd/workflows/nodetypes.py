"""The built-in node types: what each takes, and what running it twice would mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache
from typing import Any, Final

from stackd.core.json import Json
from stackd.core.names import nearest
from stackd.workflows import checks
from stackd.workflows.checks import METHODS, Check
from stackd.workflows.model import CODE, LOOP, WAIT, Node

LONGEST_TIMEOUT_MS = 86_400_000  # a day
LONGEST_DELAY_DAYS = 366  # by each of its parameters; `until` may lie further off
SHORTEST_WAIT_MS = 1000  # for a call to a link
LONGEST_WAIT_MS = 366 * 86_400_000
REQUEST: Final = "action.http.request"
MOST_AT_ONCE = 100  # iterations of a loop


class Effect(StrEnum):
    """What sending an action again would do to the far side."""

    READ = "read"
    IDEMPOTENT = "idempotent"
    KEYED = "keyed"
    UNSAFE = "unsafe"


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter.

    Attributes:
        check: what is wrong with a value, or None.
        is_static: read before any execution: may hold no expression.
        is_raw: its expressions are its own matter: checked and handed on as written.
        is_expression: one expression, in braces or not, which the node evaluates itself.
        per_item: filled in for each item, with `item` and `index`, by the node itself.
        choices: if these are all it takes.
    """

    check: Check
    required: bool = False
    is_static: bool = False
    is_raw: bool = False
    is_expression: bool = False
    per_item: bool = False
    choices: tuple[str, ...] = ()

    @property
    def is_own(self) -> bool:
        """Whether its expressions are read by the node, not filled in before it runs."""
        return self.is_raw or self.is_expression or self.per_item


Problem = tuple[str, str]  # (parameter, what is wrong)


@dataclass(frozen=True, slots=True)
class NodeType:
    """One kind of node.

    Attributes:
        one_of: groups of parameters that exclude each other.
        any_of: groups of parameters of which one must be there.
        effect: what running it again would do; None: by its parameters, and as the node says.
        is_open: whether it takes any parameters: what they may be is known elsewhere.
    """

    name: str
    params: Mapping[str, Param]
    is_trigger: bool = False
    one_of: tuple[tuple[str, ...], ...] = ()
    any_of: tuple[tuple[str, ...], ...] = ()
    effect: Effect | None = Effect.READ
    is_open: bool = False

    def problems(
        self, params: Mapping[str, Json], *, is_open: Callable[[Json], bool]
    ) -> Iterator[Problem]:
        """What is wrong with `params`; values that `is_open` are not known yet and pass."""
        for name, param in self.params.items():
            if name not in params:
                if param.required:
                    yield name, "is missing"
                continue
            value = params[name]
            if not param.is_own and is_open(value):
                if param.is_static:
                    yield name, "is read before an execution begins and may hold no expression"
                continue
            problem = param.check(value)
            if problem is not None:
                yield name, problem
        for group in self.one_of:
            given = [name for name in group if name in params]
            for name in given[1:]:
                yield name, f"cannot be given together with {given[0]}"
        for group in self.any_of:
            if not any(name in params for name in group):
                yield group[0], f"is missing; it takes one of {', '.join(group)}"


def _one_of(*choices: str, is_static: bool = False) -> Param:
    def check(value: Json) -> str | None:
        ok = isinstance(value, str) and value in choices
        return None if ok else f"must be one of {', '.join(choices)}"

    return Param(check, is_static=is_static, choices=choices)


def _delay(per_day: int) -> Param:
    return Param(checks.number(0, LONGEST_DELAY_DAYS * per_day))


_ITEMS: Final = Param(checks.items, required=True)

_TYPES: Final = (
    NodeType(
        "trigger.webhook.inbound",
        {
            "path": Param(checks.webhook_path, is_static=True),
            "methods": Param(checks.methods, is_static=True),
            "respond": _one_of("accepted", "last", is_static=True),
            "dedupe": Param(checks.dedupe, is_raw=True),
        },
        is_trigger=True,
    ),
    NodeType("trigger.time.manual", {}, is_trigger=True),
    NodeType(
        REQUEST,
        {
            "url": Param(checks.url, required=True),
            "method": Param(checks.method, choices=METHODS),
            "query": Param(checks.scalars),
            "headers": Param(checks.headers),
            "json": Param(checks.anything),
            "form": Param(checks.scalars),
            "multipart": Param(checks.mapping),
            "body": Param(checks.anything),
            "timeoutMs": Param(checks.number(1, LONGEST_TIMEOUT_MS)),
            "followRedirects": Param(checks.boolean),
            "responseType": _one_of("auto", "json", "text", "blob"),
            "allowStatus": Param(checks.statuses),
            "tls": Param(checks.tls),
        },
        one_of=(("json", "form", "multipart", "body"),),
        effect=None,
    ),
    NodeType(CODE, {}, effect=None, is_open=True),
    NodeType(
        "action.workflow.run",
        {
            "workflowId": Param(checks.text, required=True),
            "input": Param(checks.anything),
            "wait": Param(checks.boolean),
        },
        effect=Effect.IDEMPOTENT,  # begun in the transaction that says so: once, whatever happens
    ),
    NodeType("transform.data.set", {"values": Param(checks.mapping, required=True)}),
    NodeType(
        "transform.json.extract",
        {
            "value": Param(checks.anything, required=True),
            "path": Param(checks.path),
            "paths": Param(checks.paths),
            "default": Param(checks.anything),
        },
        one_of=(("path", "paths"),),
        any_of=(("path", "paths"),),
    ),
    NodeType("transform.text.format", {"template": Param(checks.scalar, required=True)}),
    NodeType(
        "transform.list.filter",
        {
            "items": _ITEMS,
            "where": Param(checks.expression, required=True, is_expression=True, per_item=True),
        },
    ),
    NodeType(
        "transform.list.map",
        {"items": _ITEMS, "to": Param(checks.anything, required=True, per_item=True)},
    ),
    NodeType(
        "transform.list.sort",
        {
            "items": _ITEMS,
            "by": Param(checks.expression, is_expression=True, per_item=True),
            "order": _one_of("asc", "desc"),
        },
    ),
    NodeType(
        "transform.list.limit",
        {
            "items": _ITEMS,
            "count": Param(checks.whole(0, 10**9), required=True),
            "offset": Param(checks.whole(0, 10**9)),
            "from": _one_of("start", "end"),
        },
    ),
    NodeType(
        "transform.list.group",
        {
            "items": _ITEMS,
            "by": Param(checks.expression, required=True, is_expression=True, per_item=True),
        },
    ),
    NodeType(
        "logic.branch",
        {"condition": Param(checks.expression, required=True, is_expression=True)},
    ),
    NodeType(
        "logic.switch",
        {
            "value": Param(checks.anything),
            "cases": Param(checks.cases, required=True, is_raw=True),
        },
    ),
    NodeType("logic.merge", {"mode": _one_of("byNode", "list", "object", "first")}),
    NodeType(
        LOOP,
        {
            "items": _ITEMS,
            "concurrency": Param(checks.whole(1, MOST_AT_ONCE)),
            "collect": Param(checks.anything, per_item=True),
        },
    ),
    NodeType(
        WAIT,
        {
            "expiresMs": Param(checks.number(SHORTEST_WAIT_MS, LONGEST_WAIT_MS)),
            "methods": Param(checks.methods, is_static=True),
        },
    ),
    NodeType(
        "action.time.delay",
        {
            "delayMs": _delay(86_400_000),
            "delaySeconds": _delay(86_400),
            "delayMinutes": _delay(1440),
            "delayHours": _delay(24),
            "until": Param(checks.instant),
        },
        one_of=tuple(
            ("until", unit) for unit in ("delayMs", "delaySeconds", "delayMinutes", "delayHours")
        ),
    ),
)

NODE_TYPES: Final[Mapping[str, NodeType]] = {kind.name: kind for kind in _TYPES}

_OWN_APPS: Final = frozenset(name.split(".")[1] for name in NODE_TYPES) | {"stackd"}


def _same(name: str, group: str, operation: str) -> bool:
    return name.startswith(f"{group}.") and name.split(".", 2)[2] == operation


# `action.<app>.<operation>`, but for the names of built-in ones.
CONNECTOR_TYPE: Final = (
    rf"^action\.(?!(?:{'|'.join(sorted(_OWN_APPS))})\.)"
    r"([A-Za-z][A-Za-z0-9_-]{0,63})\.([A-Za-z0-9][A-Za-z0-9_.:-]{0,127})$"
)
_CONNECTOR: Final = re.compile(CONNECTOR_TYPE)


def connector_of(node_type: str) -> tuple[str, str] | None:
    """(app, operation) of `action.<app>.<operation>`; None for what is built in, or no such name."""
    found = _CONNECTOR.fullmatch(node_type)
    return None if found is None or is_slip(node_type) else (found[1], found[2])


@lru_cache(1_000)
def is_slip(node_type: str) -> bool:
    """Whether `node_type` is a built-in one but for a slip in its second word: `action.htp.request`."""
    group, _, rest = node_type.partition(".")
    app, _, operation = rest.partition(".")
    alike = [name.split(".")[1] for name in NODE_TYPES if _same(name, group, operation)]
    return nearest(app, alike) is not None


@cache
def _connector_type(name: str) -> NodeType:
    return NodeType(name, {}, effect=None, is_open=True)


def type_of(name: str) -> NodeType | None:
    """The kind of node that `name` stands for: a built-in one, or a connector's, whether there is such a one or not."""
    kind = NODE_TYPES.get(name)
    return _connector_type(name) if kind is None and connector_of(name) is not None else kind


def acts(node: Node) -> bool:
    """Whether `node` asks a far side for something, or may."""
    return node.type in (REQUEST, CODE) or connector_of(node.type) is not None


_BY_METHOD: Final = {
    "GET": Effect.READ,
    "HEAD": Effect.READ,
    "OPTIONS": Effect.READ,
    "PUT": Effect.IDEMPOTENT,
    "DELETE": Effect.IDEMPOTENT,
}


def effect_of(node: Node) -> Effect:
    """The effect class of a node: its type's; of a request its own, else keyed if it names a key, else by method.

    A method that is only known at run time counts as the worst one.
    """
    kind = type_of(node.type)
    fixed = Effect.READ if kind is None else kind.effect
    if fixed is not None:
        return fixed
    if node.effect is not None:
        return Effect(node.effect)
    if node.type == CODE:
        asks = node.runtime is not None and node.runtime.fetch is not False
        key = node.idempotency_key
        return Effect.IDEMPOTENT if not asks else Effect.UNSAFE if key is None else Effect.KEYED
    if connector_of(node.type) is not None:
        return Effect.UNSAFE if node.idempotency_key is None else Effect.KEYED
    method: Any = node.params.get("method", "GET")
    effect = _BY_METHOD.get(method.upper() if isinstance(method, str) else "", Effect.UNSAFE)
    if node.idempotency_key is not None and effect is Effect.UNSAFE:
        return Effect.KEYED
    return effect


def cases_of(node: Node) -> tuple[str, ...]:
    """What an edge from `node` may name as its case, besides success and error."""
    if node.type == "logic.branch":
        return ("true", "false")
    given = node.params.get("cases")
    if node.type != "logic.switch" or not isinstance(given, list):
        return ()
    names = [case.get("case") if isinstance(case, dict) else case for case in given]
    return (*(checks.case_name(name) for name in names), "default")
