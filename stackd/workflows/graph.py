"""A workflow version compiled for running: edges by node, expressions parsed, order fixed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from stackd.core.errors import InputError
from stackd.core.json import Json
from stackd.workflows.expressions import (
    OMIT,
    Expression,
    Scope,
    Template,
    parse_condition,
    parse_template,
)
from stackd.workflows.model import Edge, Node, Retry, Workflow
from stackd.workflows.nodetypes import NODE_TYPES, Effect, effect_of

_URL: Final = "url"  # its interpolated scalars are percent-encoded


@dataclass(frozen=True, slots=True)
class GraphEdge:
    """`when` None: no condition, or one that is always true; see `never` for the other constant."""

    source: str
    target: str
    when: Expression | None
    on: str
    never: bool = False


@dataclass(frozen=True, eq=False)
class GraphNode:
    """One node, ready to run. `timeout`: seconds, None if the document names none."""

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
    settings: dict[str, Json]
    dedupe: Expression | None
    params: Template
    url: Template | None

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
            for name, problem in NODE_TYPES[self.type].problems(values, is_open=lambda _: False):
                raise InputError(f"{self.id}.params.{name} {problem}", code="params.invalid")
        return values  # type: ignore[no-any-return]  # a map stays a map

    @cached_property
    def is_settled(self) -> bool:
        """Whether rendering changes nothing, so that what was checked at import holds."""
        return self.params.is_static and self.url is None


@dataclass(frozen=True, eq=False)
class Graph:
    """A whole workflow version. `order`: node ids, sources before targets, else as written."""

    workflow: Workflow
    nodes: dict[str, GraphNode]
    order: tuple[str, ...]

    @cached_property
    def _members(self) -> dict[str, frozenset[str]]:
        return {}

    def reachable(self, trigger_id: str) -> frozenset[str]:
        """The nodes an execution started by `trigger_id` may reach, the trigger included."""
        known = self._members.get(trigger_id)
        if known is None:
            known = self._members[trigger_id] = frozenset(
                reach([trigger_id], {key: node.out_edges for key, node in self.nodes.items()})
            )
        return known


def reach(starts: Iterable[str], out_edges: dict[str, tuple[GraphEdge, ...]]) -> set[str]:
    """Everything that can be reached along edges from `starts`, these included."""
    seen, open_ids = set(starts), list(starts)
    while open_ids:
        for edge in out_edges[open_ids.pop()]:
            if edge.target not in seen:
                seen.add(edge.target)
                open_ids.append(edge.target)
    return seen


def compile_graph(workflow: Workflow) -> Graph:
    """The graph of a workflow that `read_document` accepted."""
    edges = [_edge(edge) for edge in workflow.edges]
    into: dict[str, list[GraphEdge]] = {node.id: [] for node in workflow.nodes}
    out_of: dict[str, list[GraphEdge]] = {node.id: [] for node in workflow.nodes}
    for edge in edges:
        into[edge.target].append(edge)
        out_of[edge.source].append(edge)
    nodes = {node.id: _node(node, into[node.id], out_of[node.id]) for node in workflow.nodes}
    return Graph(workflow, nodes, order_of([n.id for n in workflow.nodes], edges))


def _edge(edge: Edge) -> GraphEdge:
    if isinstance(edge.when, str):
        return GraphEdge(edge.source, edge.target, parse_condition(edge.when), edge.on)
    return GraphEdge(edge.source, edge.target, None, edge.on, never=edge.when is False)


def _node(node: Node, into: list[GraphEdge], out_of: list[GraphEdge]) -> GraphNode:
    is_trigger = NODE_TYPES[node.type].is_trigger
    params = {} if is_trigger else dict(node.params)
    url: Template | None = None
    if isinstance(text := params.get(_URL), str):
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
        effect=effect_of(node),
        on_error=node.on_error,
        idempotency_key=_key(node),
        disabled=node.disabled,
        is_pinned=node.is_pinned,
        pinned=node.pinned,
        is_trigger=is_trigger,
        settings=dict(node.params),
        dedupe=_dedupe(node),
        params=parse_template(params, where=f"{node.id}.params"),
        url=url,
    )


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
    "Graph",
    "GraphEdge",
    "GraphNode",
    "compile_graph",
    "order_of",
    "reach",
]
