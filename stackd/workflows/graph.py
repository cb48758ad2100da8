"""A workflow version compiled for running: edges by node, expressions parsed, order fixed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Final

from stackd.core.errors import InputError
from stackd.core.json import Json
from stackd.workflows.checks import case_name
from stackd.workflows.expressions import (
    OMIT,
    Expression,
    Scope,
    Template,
    parse_condition,
    parse_template,
)
from stackd.workflows.model import LOOP, SEALED, Code, Edge, Node, Retry, Workflow
from stackd.workflows.nodetypes import Effect, NodeType, connector_of, effect_of, type_of

Condition = Expression | bool  # True, False: written as that

_ITERATION: Final = re.compile(r"\[[0-9]+\]$")
_URL: Final = "url"  # its interpolated scalars are percent-encoded


@dataclass(frozen=True, slots=True)
class GraphEdge:
    """`when` None: no condition, or one that is always true; see `never` for the other constant.

    `is_plain`: nothing but a success of its source is asked for, as of most edges.
    """

    source: str
    target: str
    when: Expression | None
    on: str
    never: bool = False
    is_plain: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One case of a switch. `when` None: it is taken when the value is named like it; True or False: always, never."""

    name: str
    when: Condition | None


@dataclass(frozen=True, slots=True)
class InlineCredentials:
    """Where the credentials are that stood in a node, and all that they are bound to."""

    workflow_id: str
    node_id: str
    connector: str
    id: str


@dataclass(frozen=True, eq=False)
class GraphNode:
    """One node, ready to run.

    Attributes:
        timeout: seconds, None if the document names none.
        expressions: the parameters that are one expression; True or False: no expression, but that.
        per_item: the parameters that are filled in for each item.
        params: all others, without `url`.
        runtime: the code of a code node.
        body: of a loop.
    """

    id: str
    type: str
    in_edges: tuple[GraphEdge, ...]
    out_edges: tuple[GraphEdge, ...]
    retry: Retry | None
    timeout: float | None
    effect: Effect
    on_error: str
    idempotency_key: Template | None
    disabled: bool
    is_pinned: bool
    pinned: Json
    is_trigger: bool
    connection: str | None
    credentials: InlineCredentials | None
    settings: dict[str, Json]
    dedupe: Expression | None
    params: Template
    url: Template | None
    expressions: Mapping[str, Condition]
    per_item: Mapping[str, Template]
    cases: tuple[Case, ...]
    runtime: Code | None
    body: Graph | None

    def render(self, scope: Scope) -> dict[str, Json]:
        """The parameters with every expression replaced by its value; what is omitted is left out.

        Raises:
            ExpressionError: an expression cannot be evaluated.
            InputError: a value is not what the node takes; names the parameter.
        """
        values = self.params.render(scope)
        if self.url is not None:
            values = {**values, _URL: self.url.render_url(scope)}
        if not self.is_settled:
            for name, problem in _kind(self.type).problems(
                self.own | values, is_open=lambda _: False
            ):
                raise InputError(f"{self.id}.params.{name} {problem}", code="params.invalid")
        return values  # type: ignore[no-any-return]  # a map stays a map

    @cached_property
    def operation(self) -> tuple[str, str] | None:
        """(app, operation) if it is a connector's."""
        return connector_of(self.type)

    @cached_property
    def own(self) -> dict[str, Json]:
        """The parameters whose expressions it evaluates itself, as written."""
        return {name: self.settings[name] for name in _own(self.type) if name in self.settings}

    @cached_property
    def is_per_item(self) -> bool:
        """Whether it evaluates something for each item of a list, and can take its time."""
        return any(param.per_item for param in _kind(self.type).params.values())

    @cached_property
    def is_settled(self) -> bool:
        """Whether rendering changes nothing, so that what was checked at import holds."""
        return self.params.is_static and self.url is None


EffectOf = Callable[[Node], Effect]


@dataclass(frozen=True, eq=False)
class Graph:
    """A whole workflow version. `order`: node ids, sources before targets, else as written."""

    workflow: Workflow
    nodes: dict[str, GraphNode]
    order: tuple[str, ...]

    @cached_property
    def _members(self) -> dict[str, frozenset[str]]:
        return {}

    @cached_property
    def starts(self) -> tuple[str, ...]:
        """The nodes without an edge into them: where the body of a loop begins."""
        return tuple(key for key in self.order if not self.nodes[key].in_edges)

    @cached_property
    def trigger_by_hand(self) -> str:
        """The trigger from which a run by hand or by another workflow begins: the manual one, else the first."""
        triggers = [self.nodes[key] for key in self.order if self.nodes[key].is_trigger]
        manual = [node for node in triggers if node.type == "trigger.time.manual"]
        return (manual or triggers)[0].id

    def reachable(self, trigger_id: str) -> frozenset[str]:
        """The nodes an execution started by `trigger_id` may reach, the trigger included."""
        known = self._members.get(trigger_id)
        if known is None:
            known = self._members[trigger_id] = frozenset(
                reach([trigger_id], {key: node.out_edges for key, node in self.nodes.items()})
            )
        return known

    def way_to(self, key: str) -> Iterator[GraphNode]:
        """The nodes on the way to the node run `key`: each, then price, of `each[3].price`; ends at one there is not."""
        level: Graph | None = self
        for part in key.split("."):
            node = None if level is None else level.nodes.get(_ITERATION.sub("", part))
            if node is None:
                return
            yield node
            level = node.body


def reach(starts: Iterable[str], out_edges: dict[str, tuple[GraphEdge, ...]]) -> set[str]:
    """Everything that can be reached along edges from `starts`, these included."""
    seen, open_ids = set(starts), list(starts)
    while open_ids:
        for edge in out_edges[open_ids.pop()]:
            if edge.target not in seen:
                seen.add(edge.target)
                open_ids.append(edge.target)
    return seen


def compile_graph(workflow: Workflow, effect: EffectOf = effect_of) -> Graph:
    """The graph of a workflow that `read_document` accepted; `effect` says what running a node again would do."""
    return _compile(workflow, workflow.nodes, workflow.edges, effect)


def _compile(
    workflow: Workflow, parts: Sequence[Node], written: Sequence[Edge], effect: EffectOf
) -> Graph:
    edges = [_edge(edge) for edge in written]
    into: dict[str, list[GraphEdge]] = {node.id: [] for node in parts}
    out_of: dict[str, list[GraphEdge]] = {node.id: [] for node in parts}
    for edge in edges:
        into[edge.target].append(edge)
        out_of[edge.source].append(edge)
    nodes = {
        node.id: _node(
            node,
            into[node.id],
            out_of[node.id],
            _compile(workflow, node.nodes, node.edges, effect) if node.type == LOOP else None,
            effect,
            _credentials(workflow, node),
        )
        for node in parts
    }
    return Graph(workflow, nodes, order_of([node.id for node in parts], edges))


def _credentials(workflow: Workflow, node: Node) -> InlineCredentials | None:
    """Where those are that stood in the node; of a document that was not stored, nowhere."""
    operation = connector_of(node.type)
    if node.credentials is None or operation is None:
        return None
    return InlineCredentials(workflow.id, node.id, operation[0], node.credentials.get(SEALED, ""))


def _edge(edge: Edge) -> GraphEdge:
    if isinstance(edge.when, str):
        return GraphEdge(edge.source, edge.target, parse_condition(edge.when), edge.on)
    never = edge.when is False
    is_plain = edge.on == "success" and not never
    return GraphEdge(edge.source, edge.target, None, edge.on, never, is_plain)


def _node(
    node: Node,
    into: list[GraphEdge],
    out_of: list[GraphEdge],
    body: Graph | None,
    effect: EffectOf,
    credentials: InlineCredentials | None,
) -> GraphNode:
    kind = _kind(node.type)
    is_trigger = kind.is_trigger
    params = {} if is_trigger else dict(node.params)
    expressions: dict[str, Condition] = {}
    per_item: dict[str, Template] = {}
    for name in _own(node.type) & params.keys():
        value = params.pop(name)
        if kind.params[name].is_expression:
            expressions[name] = _condition(value)
        elif kind.params[name].per_item:
            per_item[name] = parse_template(value, where=f"{node.id}.params.{name}")
    url: Template | None = None
    if not kind.is_open and isinstance(text := params.get(_URL), str):
        url = parse_template(text, where=f"{node.id}.params.{_URL}")
        if url.is_static:
            url = None
        else:
            del params[_URL]
    return GraphNode(
        id=node.id,
        type=node.type,
        in_edges=tuple(into),
        out_edges=tuple(out_of),
        retry=node.retry,
        timeout=None if node.timeout_ms is None else node.timeout_ms / 1000,
        effect=effect(node),
        on_error=node.on_error,
        idempotency_key=_key(node),
        disabled=node.disabled,
        is_pinned=node.is_pinned,
        pinned=node.pinned,
        is_trigger=is_trigger,
        connection=node.connection,
        credentials=credentials,
        settings=dict(node.params),
        dedupe=_dedupe(node),
        params=parse_template(params, where=f"{node.id}.params"),
        url=url,
        expressions=expressions,
        per_item=per_item,
        cases=_cases(node),
        runtime=node.runtime,
        body=body,
    )


def _kind(node_type: str) -> NodeType:
    kind = type_of(node_type)
    assert kind is not None, node_type  # noqa: S101  # what was checked has one
    return kind


@cache
def _own(node_type: str) -> frozenset[str]:
    return frozenset(name for name, param in _kind(node_type).params.items() if param.is_own)


def _cases(node: Node) -> tuple[Case, ...]:
    if node.type != "logic.switch":
        return ()
    return tuple(
        Case(case_name(case["case"]), _condition(case["when"]))
        if isinstance(case, dict)
        else Case(case_name(case), None)
        for case in node.params["cases"]
    )


def _condition(written: Any) -> Condition:
    return parse_condition(written) if isinstance(written, str) else bool(written)


def _key(node: Node) -> Template | None:
    if node.idempotency_key is None:
        return None
    return parse_template(node.idempotency_key, where=f"{node.id}.idempotencyKey")


def _dedupe(node: Node) -> Expression | None:
    """What a webhook trigger tells its deliveries apart by, if it is an expression."""
    asked = node.params.get("dedupe")
    text = asked.get("expression") if isinstance(asked, dict) else None
    return None if text is None else parse_condition(text)


def order_of(ids: list[str], edges: Sequence[GraphEdge | Edge]) -> tuple[str, ...]:
    """`ids` with sources before targets; what stands in or behind a cycle is left out."""
    open_edges = dict.fromkeys(ids, 0)
    targets: dict[str, list[str]] = {key: [] for key in ids}
    for edge in edges:
        open_edges[edge.target] += 1
        targets[edge.source].append(edge.target)
    ready = [key for key in reversed(ids) if open_edges[key] == 0]
    order = []
    while ready:
        key = ready.pop()
        order.append(key)
        for target in reversed(targets[key]):
            open_edges[target] -= 1
            if open_edges[target] == 0:
                ready.append(target)
    return tuple(order)


__all__ = [
    "OMIT",
    "Case",
    "Condition",
    "Graph",
    "GraphEdge",
    "GraphNode",
    "compile_graph",
    "order_of",
    "reach",
]
