"""Everything that is wrong or odd about a document, in one go and in time that grows as the document does.

A part that cannot be understood hides as little as can be: it is looked at without what is wrong in it, and
what only follows from an error that is told already is not told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.workflows.expressions import Expression, Path, iter_expressions, parse_condition
from stackd.workflows.findings import MAX_FINDINGS, Remarks, shown
from stackd.workflows.graph import order_of
from stackd.workflows.model import RESERVED_IDS, Edge, Node, Workflow
from stackd.workflows.nodetypes import NODE_TYPES, Effect, effect_of
from stackd.workflows.shape import read_part, shown_path
from stackd.workflows.source import Place, Position

FIXED_ROOTS: Final = ("trigger", "execution", "workflow", "vars")
CYCLE_SHOWN: Final = 8  # nodes of a cycle that a message names

# Node types of the plan that this version cannot run yet: a clearer answer than "unknown".
PLANNED: Final = (
    "trigger.time.cron",
    "trigger.time.interval",
    "trigger.stackd.error",
    "action.code.run",
    "action.wait.webhook",
    "action.workflow.run",
    "transform.json.",
    "transform.text.",
    "transform.list.",
    "logic.",
)


def lint(document: Json, remarks: Remarks) -> None:
    """Note all that is wrong with `document`; without an error it is a valid `Workflow`."""
    if isinstance(document, dict):
        _Lint(document, remarks).run()
    else:
        remarks.error("document.not_map", "a workflow is a map with id, nodes and edges", ())


@dataclass(frozen=True, slots=True)
class _NodeAt:
    """A node as far as it could be understood. `unusable`: its keys that were left out."""

    index: int
    node: Node
    unusable: set[str]

    @property
    def place(self) -> Place:
        return ("nodes", self.index)


@dataclass(frozen=True, slots=True)
class _Read:
    """An expression reads `path`.

    Attributes:
        owner: who reads, for messages.
        node: it reads when this node begins; `is_after`: when it has ended, as the condition of an edge does.
            None: nobody can say when.
    """

    owner: str
    node: str | None
    is_after: bool
    place: Place
    within: Position
    path: Path


class _Lint:
    def __init__(self, document: dict[str, Json], remarks: Remarks) -> None:
        self._document = document
        self._remarks = remarks
        self._parts: list[_NodeAt] = []
        self._nodes: dict[str, _NodeAt] = {}  # by id; of several with one id, the first
        self._edges: list[tuple[int, Edge]] = []
        self._unread: set[str] = set()  # ids that are taken by something that cannot be used
        self._is_whole = True  # no node or edge is missing because of what is wrong with it
        self._reads: list[_Read] = []

    def run(self) -> None:
        for step in (
            self._structure,
            self._check_nodes,
            self._check_edges,
            self._check_order,
            self._parse_expressions,
            self._check_reads,
        ):
            if self._remarks.are_full:
                return
            step()

    # -- structure

    def _structure(self) -> None:
        """Read nodes and edges one by one, so that a bad one does not hide the others."""
        lists = {
            key: value
            for key in ("nodes", "edges")
            if isinstance(value := self._document.get(key), list)
        }
        around = self._document | {key: [] for key in lists}
        read_part(Workflow, around, (), self._remarks)
        for index, raw in enumerate(lists.get("nodes", [])):
            if self._remarks.are_full:
                return
            node, unusable = read_part(Node, raw, ("nodes", index), self._remarks)
            if node is not None:
                self._add_node(_NodeAt(index, node, unusable))
                continue
            self._is_whole = False
            if isinstance(raw, dict) and isinstance(raw.get("id"), str):
                self._unread.add(raw["id"])
        for index, raw in enumerate(lists.get("edges", [])):
            if self._remarks.are_full:
                return
            edge, _ = read_part(Edge, raw, ("edges", index), self._remarks)
            if edge is not None:
                self._edges.append((index, edge))
            else:
                self._is_whole = False

    def _add_node(self, part: _NodeAt) -> None:
        self._parts.append(part)
        node_id, place = part.node.id, (*part.place, "id")
        if node_id in self._nodes:
            first = self._nodes[node_id].index
            self._remarks.error(
                "node.duplicate_id", f"node id {node_id!r} is taken by nodes[{first}]", place
            )
        elif node_id in RESERVED_IDS:
            self._unread.add(node_id)
            self._remarks.error(
                "node.reserved_id", f"node id {node_id!r} means something in expressions", place
            )
        else:
            self._nodes[node_id] = part

    # -- nodes

    def _check_nodes(self) -> None:
        if self._document.get("nodes") == []:
            self._remarks.error(
                "document.no_nodes", "a workflow needs at least one node", ("nodes",)
            )
        for part in self._parts:
            self._check_type(part)
        kinds = [NODE_TYPES.get(part.node.type) for part in self._parts]
        are_known = self._is_whole and None not in kinds
        if self._parts and are_known and not any(kind and kind.is_trigger for kind in kinds):
            self._remarks.error(
                "document.no_trigger",
                "nothing starts this workflow",
                ("nodes",),
                hint="add a node of type trigger.webhook.inbound or trigger.time.manual",
            )
        self._check_webhook_paths()

    def _check_type(self, part: _NodeAt) -> None:
        node, place = part.node, part.place
        kind = NODE_TYPES.get(node.type)
        if kind is None:
            self._tell_type(node, (*place, "type"))
            return
        for name in node.params:
            if name not in kind.params:
                self._remarks.error(
                    "params.unknown",
                    f"{node.id}: {node.type} takes no {shown(name)!r}",
                    (*place, "params", name),
                    hint=f"it takes: {', '.join(kind.params) or 'nothing'}",
                    wrong=name,
                    known=kind.params,
                )
        if "params" not in part.unusable:
            for name, problem in kind.problems(node.params, is_open=_holds_expression):
                given = node.params.get(name)
                self._remarks.error(
                    "params.invalid",
                    f"{node.id}: {name} {problem}",
                    (*place, "params", name),
                    wrong=given if isinstance(given, str) else None,
                    known=kind.params[name].choices,
                )
        self._check_policies(part, is_trigger=kind.is_trigger)

    def _tell_type(self, node: Node, place: Place) -> None:
        if node.type.startswith(PLANNED):
            self._remarks.error(
                "node.type_not_available",
                f"{node.id}: {shown(node.type)} cannot be run by this version",
                place,
            )
        else:
            self._remarks.error(
                "node.unknown_type",
                f"{node.id}: there is no node type {shown(node.type)!r}",
                place,
                wrong=node.type,
                known=NODE_TYPES,
            )

    def _check_policies(self, part: _NodeAt, *, is_trigger: bool) -> None:
        """Warn of what is written but does nothing."""
        node, place = part.node, part.place
        acts = node.type == "action.http.request"
        for key, is_set in (
            ("effect", node.effect is not None),
            ("idempotencyKey", node.idempotency_key is not None),
            ("retry", node.retry is not None),
            ("timeoutMs", node.timeout_ms is not None),
        ):
            if is_set and not acts:
                self._remarks.warn(
                    "node.no_effect", f"{node.id}: {key} does nothing on {node.type}", (*place, key)
                )
        if node.retry is not None and node.retry.initial_ms > node.retry.max_ms:
            self._remarks.warn(
                "node.retry_capped",
                f"{node.id}: initialMs {node.retry.initial_ms} is above maxMs {node.retry.max_ms}, "
                "so every wait is that",
                (*place, "retry"),
                hint="set maxMs to the longest wait, initialMs to the first",
            )
        if is_trigger and (node.disabled or node.is_pinned or node.on_error != "fail"):
            self._remarks.error(
                "node.trigger_policy",
                f"{node.id}: a trigger takes no disabled, pinned or onError",
                place,
            )
        if acts and node.idempotency_key is not None and effect_of(node) is not Effect.KEYED:
            self._remarks.warn(
                "node.key_unused",
                f"{node.id}: idempotencyKey is not sent, its effect is {effect_of(node)}",
                (*place, "idempotencyKey"),
                hint="set effect: keyed",
            )

    def _check_webhook_paths(self) -> None:
        seen: dict[str, str] = {}
        for part in self._parts:
            node = part.node
            path = node.params.get("path") if node.type == "trigger.webhook.inbound" else None
            if not isinstance(path, str):
                continue
            if path in seen:
                self._remarks.error(
                    "webhook.path_taken",
                    f"{node.id}: webhook path {shown(path)!r} is the one of {seen[path]}",
                    (*part.place, "params", "path"),
                )
            seen.setdefault(path, node.id)

    # -- edges

    def _check_edges(self) -> None:
        seen: dict[tuple[str, str, str, str | bool | None], int] = {}
        for index, edge in self._edges:
            place: Place = ("edges", index)
            for key, node_id in (("from", edge.source), ("to", edge.target)):
                if node_id not in self._nodes and node_id not in self._unread:
                    self._is_whole = False
                    self._remarks.error(
                        "edge.unknown_node",
                        f"{_named(edge)}: there is no node {shown(node_id)!r}",
                        (*place, key),
                        wrong=node_id,
                        known=self._nodes,
                    )
            self._check_kind(index, edge)
            mark = (edge.source, edge.target, edge.on, edge.when)
            if mark in seen:
                self._remarks.error(
                    "edge.duplicate", f"{_named(edge)} is there already, edges[{seen[mark]}]", place
                )
            seen.setdefault(mark, index)

    def _check_kind(self, index: int, edge: Edge) -> None:
        place: Place = ("edges", index)
        if edge.on not in ("success", "error"):
            self._remarks.error(
                "edge.unknown_case",
                f"{_named(edge)}: on must be success or error",
                (*place, "on"),
                wrong=edge.on,
                known=("success", "error"),
            )
        source, target = self._nodes.get(edge.source), self._nodes.get(edge.target)
        if edge.on == "error" and source is not None and source.node.on_error != "route":
            self._remarks.error(
                "edge.never_taken",
                f"{_named(edge)} is never taken: a failure of {edge.source} does not follow edges",
                (*place, "on"),
                hint=f"set onError: route on {edge.source}",
            )
        if target is not None and target.node.type.startswith("trigger."):
            self._remarks.error(
                "edge.into_trigger", f"{_named(edge)}: a trigger has no in-edges", (*place, "to")
            )

    # -- order

    def _known_edges(self) -> list[tuple[int, Edge]]:
        return [
            (index, edge)
            for index, edge in self._edges
            if edge.source in self._nodes and edge.target in self._nodes
        ]

    def _check_order(self) -> None:
        edges = [(index, edge.source, edge.target) for index, edge in self._known_edges()]
        for index, cycle in islice(_cycles(list(self._nodes), edges), MAX_FINDINGS):
            self._remarks.error(
                "edges.cycle",
                f"edge {cycle[-1]} → {cycle[0]} leads back: {_around(cycle)}",
                ("edges", index),
                hint="a workflow runs each node once: take an edge of the cycle away",
            )
        triggers = [key for key, part in self._nodes.items() if _is_trigger(part.node)]
        if not triggers or not self._is_whole:
            return
        reached = _reached(triggers, edges)
        for key, part in self._nodes.items():
            if key not in reached:
                self._remarks.warn(
                    "node.unreachable",
                    f"{key} is never run: no trigger leads to it",
                    (*part.place, "id"),
                )

    # -- expressions

    def _parse_expressions(self) -> None:
        for part in self._parts:
            node = part.node
            if _is_trigger(node):
                self._check_dedupe(part)
                continue
            own = self._nodes.get(node.id)
            at = node.id if own is part else None
            texts: dict[str, Json] = {"params": node.params}
            if node.idempotency_key is not None:
                texts["idempotencyKey"] = node.idempotency_key
            for key, value in texts.items():
                for below, found in iter_expressions(value):
                    if self._remarks.are_full:
                        return
                    self._take(found, (*part.place, key, *below), node.id, at, is_after=False)
        for index, edge in self._edges:
            if self._remarks.are_full:
                return
            if isinstance(edge.when, str):
                at = edge.source if edge.source in self._nodes else None
                found = _condition(edge.when)
                self._take(found, ("edges", index, "when"), _named(edge), at, is_after=True)

    def _take(
        self,
        found: Expression | ExpressionError,
        place: Place,
        owner: str,
        node: str | None,
        *,
        is_after: bool,
    ) -> None:
        if isinstance(found, ExpressionError):
            self._tell_expression(found, place)
            return
        for path, within in found.paths.items():
            self._reads.append(_Read(owner, node, is_after, place, within, path))

    def _tell_expression(self, error: ExpressionError, place: Place) -> None:
        within = None if error.line is None or error.column is None else (error.line, error.column)
        self._remarks.error(
            error.code, f"{shown_path(place)}: {error.message}", place, within=within
        )

    def _check_dedupe(self, part: _NodeAt) -> None:
        node = part.node
        dedupe = node.params.get("dedupe")
        text = dedupe.get("expression") if isinstance(dedupe, dict) else None
        if not isinstance(text, str):
            return
        place: Place = (*part.place, "params", "dedupe", "expression")
        parsed = _condition(text)
        if isinstance(parsed, ExpressionError):
            self._tell_expression(parsed, place)
            return
        for path, within in parsed.paths.items():
            if path[0] != node.id:
                self._remarks.error(
                    "expression.unknown_root",
                    f"{node.id}: dedupe reads the delivery only, as {node.id!r}, "
                    f"not {shown(str(path[0]))!r}",
                    place,
                    within=within,
                    wrong=str(path[0]),
                    known=[node.id],
                )

    def _check_reads(self) -> None:
        names = self._document.get("vars")
        known_vars = names if isinstance(names, dict) else {}
        before = _Before(self._nodes, self._known_edges(), [str(r.path[0]) for r in self._reads])
        known = [*FIXED_ROOTS, *self._nodes]
        told: set[tuple[Place, str]] = set()  # once per text
        for read in self._reads:
            if self._remarks.are_full:
                return
            root = str(read.path[0])
            if root == "vars" and len(read.path) > 1 and read.path[1] not in known_vars:
                self._tell_var(read, str(read.path[1]), known_vars)
            if root in FIXED_ROOTS or root in self._unread or (read.place, root) in told:
                continue
            if root not in self._nodes:
                self._remarks.error(
                    "expression.unknown_root",
                    f"{read.owner} reads {shown(root)!r}, which is no node and no known name",
                    read.place,
                    within=read.within,
                    wrong=root,
                    known=known,
                )
            elif read.node is None or before.holds(root, read.node, or_is=read.is_after):
                continue
            else:
                self._remarks.error(
                    "expression.not_upstream",
                    f"{read.owner} reads {root}, which does not come before it",
                    read.place,
                    within=read.within,
                    hint=f"add an edge that leads from {root} to it",
                )
            told.add((read.place, root))

    def _tell_var(self, read: _Read, name: str, known: Mapping[str, Json]) -> None:
        self._remarks.error(
            "expression.unknown_var",
            f"{read.owner} reads vars.{shown(name)}, which the workflow does not define",
            read.place,
            within=read.within,
            wrong=name,
            known=known,
        )


class _Before:
    """Which of the nodes `asked` come before which node: a bit for each of them, passed on along the edges.

    While edges form a cycle, nobody can say what comes before the nodes in and behind it: everything may.
    """

    def __init__(
        self, nodes: Mapping[str, object], edges: list[tuple[int, Edge]], asked: list[str]
    ) -> None:
        names = [name for name in dict.fromkeys(asked) if name in nodes]
        self._bits = {name: 1 << number for number, name in enumerate(names)}
        targets: dict[str, list[str]] = {key: [] for key in nodes}
        for _, edge in edges:
            targets[edge.source].append(edge.target)
        order = order_of(list(nodes), [edge for _, edge in edges])
        self._before = dict.fromkeys(order, 0)
        for key in order:
            passed_on = self._before[key] | self._bits.get(key, 0)
            for target in targets[key]:
                if target in self._before:
                    self._before[target] |= passed_on

    def holds(self, name: str, node: str, *, or_is: bool) -> bool:
        """Whether `name` comes before `node`; with `or_is` also if it is that node."""
        return (
            node not in self._before
            or bool(self._before[node] & self._bits[name])
            or (or_is and name == node)
        )


def _is_trigger(node: Node) -> bool:
    return node.type.startswith("trigger.")


def _named(edge: Edge) -> str:
    return f"edge {shown(edge.source)} → {shown(edge.target)}"


def _condition(text: str) -> Expression | ExpressionError:
    try:
        return parse_condition(text)
    except ExpressionError as error:
        return error


def _holds_expression(value: Json) -> bool:
    """Whether a text in `value` holds an expression, so that the value is not known yet."""
    open_values = [value]
    while open_values:
        current = open_values.pop()
        if isinstance(current, str) and "{{" in current:
            return True
        if isinstance(current, dict):
            open_values.extend(current.values())
        elif isinstance(current, list):
            open_values.extend(current)
    return False


def _reached(starts: list[str], edges: list[tuple[int, str, str]]) -> set[str]:
    targets: dict[str, list[str]] = {}
    for _, source, target in edges:
        targets.setdefault(source, []).append(target)
    reached, open_ids = set(starts), list(starts)
    while open_ids:
        for target in targets.get(open_ids.pop(), ()):
            if target not in reached:
                reached.add(target)
                open_ids.append(target)
    return reached


def _cycles(ids: list[str], edges: list[tuple[int, str, str]]) -> Iterator[tuple[int, list[str]]]:
    """Each edge that leads back, with the nodes from its target to its source; without these there is no cycle."""
    targets: dict[str, list[tuple[int, str]]] = {key: [] for key in ids}
    for index, source, target in edges:
        targets[source].append((index, target))
    done: set[str] = set()
    for start in ids:
        if start in done:
            continue
        way = {start: 0}  # in order, with the number of each
        stack = [iter(targets[start])]
        while stack:
            index, step = next(stack[-1], (0, None))
            if step is None:
                done.add(way.popitem()[0])
                stack.pop()
            elif step in way:
                yield index, list(islice(way, way[step], None))
            elif step not in done:
                way[step] = len(way)
                stack.append(iter(targets[step]))


def _around(cycle: list[str]) -> str:
    """The nodes of a cycle as a person follows them, back to the first."""
    if len(cycle) > CYCLE_SHOWN:
        return " → ".join([*cycle[: CYCLE_SHOWN - 1], "…", cycle[-1], cycle[0]])
    return " → ".join([*cycle, cycle[0]])
