"""Reading a workflow document: every error at once, each with its code, place and a remedy."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from stackd.core.errors import ExpressionError, InputError, TooLargeError
from stackd.core.json import Json, loads
from stackd.workflows.expressions import (
    Expression,
    Template,
    iter_template_errors,
    parse_expression,
    parse_template,
)
from stackd.workflows.graph import condition
from stackd.workflows.model import RESERVED_IDS, Edge, Node, Workflow
from stackd.workflows.nodetypes import NODE_TYPES, Effect, effect_of
from stackd.workflows.source import Place, Source, SourceError, read_source, with_positions

MAX_FINDINGS = 100  # shown; a document with more has one cause
FIXED_ROOTS: Final = frozenset({"trigger", "execution", "workflow", "vars"})

# Node types of the plan that this version cannot run yet: a clearer answer than "unknown".
PLANNED = (
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


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark. `line`, `column`: from 1, None when not known."""

    code: str
    message: str
    path: Place = ()
    line: int | None = None
    column: int | None = None
    severity: Literal["error", "warning"] = "error"
    hint: str | None = None


class DocumentError(InputError):
    """The document cannot be used; `findings` holds every reason."""

    code = "document.invalid"

    def __init__(self, name: str, findings: list[Finding]) -> None:
        errors = [f for f in findings if f.severity == "error"]
        first = errors[0]
        place = "" if first.line is None else f":{first.line}:{first.column}"
        more = "" if len(errors) == 1 else f" (and {len(errors) - 1} more)"
        super().__init__(f"{name}{place}: {first.message}{more}")
        self.findings = findings


@dataclass(frozen=True, slots=True)
class Document:
    """A usable document. `canonical`: its JSON with sorted keys; `content_hash`: SHA-256 of that."""

    workflow: Workflow
    canonical: bytes
    content_hash: str
    warnings: tuple[Finding, ...]

    @property
    def id(self) -> str:
        return self.workflow.id


def read_document(data: bytes, *, name: str, max_bytes: int) -> Document:
    """The workflow in `data`, YAML 1.2 or JSON. `name`, a file's, begins the message of an error.

    Raises:
        TooLargeError: it is longer than `max_bytes`.
        DocumentError: it cannot be used, with all that was found.
    """
    if len(data) > max_bytes:
        raise TooLargeError(
            f"{name} is {len(data):,} bytes, over the limit of {max_bytes:,}",
            code="document.too_large",
        )
    try:
        source = read_source(data)
    except SourceError as error:
        found = Finding(error.code, error.message, (), error.line, error.column, hint=error.hint)
        raise DocumentError(name, [found]) from None
    check = _Check(source)
    workflow = check.run()
    if check.findings:
        check.place_all(with_positions(source, data))
    if workflow is None or any(f.severity == "error" for f in check.findings):
        raise DocumentError(name, check.findings[:MAX_FINDINGS])
    canonical = _canonical(source.value)
    return Document(
        workflow, canonical, hashlib.sha256(canonical).hexdigest(), tuple(check.findings)
    )


def load_stored(text: bytes) -> Workflow:
    """The workflow of a canonical text that `read_document` made."""
    return Workflow.model_validate(loads(text))


def _canonical(value: Json) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # integers beyond 64 bits
        return json.dumps(
            value, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False
        ).encode()


@dataclass(slots=True)
class _Check:
    """Looks at a document as far as it can be understood, part by part."""

    source: Source
    findings: list[Finding] = field(default_factory=list)
    nodes: dict[str, tuple[int, Node]] = field(default_factory=dict)
    edges: list[tuple[int, Edge]] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)  # ids of nodes that could not be understood

    def run(self) -> Workflow | None:
        document = self.source.value
        if not isinstance(document, dict):
            self._error("document.not_map", "a workflow is a map with id, nodes and edges", ())
            return None
        workflow = self._structure(document)
        self._check_nodes()
        self._check_edges()
        self._check_order()
        self._check_expressions(document.get("vars"))
        return workflow

    def place_all(self, source: Source) -> None:
        """Give every finding the line and column of its path."""
        placed = []
        for found in self.findings:
            position = source.position(found.path)
            if position is not None and found.line is None:
                found = Finding(
                    found.code, found.message, found.path, *position, found.severity, found.hint
                )
            placed.append(found)
        placed.sort(key=lambda f: (f.severity != "error", f.line or 0, f.column or 0))
        self.findings = placed

    def _error(self, code: str, message: str, path: Place, hint: str | None = None) -> None:
        self.findings.append(Finding(code, message, path, hint=hint))

    def _warn(self, code: str, message: str, path: Place, hint: str | None = None) -> None:
        self.findings.append(Finding(code, message, path, severity="warning", hint=hint))

    # -- structure

    def _structure(self, document: dict[str, Json]) -> Workflow | None:
        """Read nodes and edges one by one, so that a bad one does not hide the others."""
        for index, raw in enumerate(_list(document.get("nodes"))):
            node = self._part(Node, raw, ("nodes", index))
            if node is not None:
                self._add_node(index, node)
            elif isinstance(raw, dict) and isinstance(raw.get("id"), str):
                self.unread.add(raw["id"])
        for index, raw in enumerate(_list(document.get("edges"))):
            edge = self._part(Edge, raw, ("edges", index))
            if edge is not None:
                self.edges.append((index, edge))
        try:
            return Workflow.model_validate(document)
        except ValidationError as error:
            for problem in error.errors(include_url=False, include_context=False):
                if len(problem["loc"]) > 1 and problem["loc"][0] in ("nodes", "edges"):
                    continue  # said already, part by part
                self._tell(Workflow, problem, ())
            return None

    def _part(self, model: type[Node] | type[Edge], raw: Json, place: Place) -> Any:
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            for problem in error.errors(include_url=False, include_context=False):
                self._tell(model, problem, place)
            return None

    def _tell(self, model: type, problem: ErrorDetails, place: Place) -> None:
        path = (*place, *problem["loc"])
        key = str(path[-1]) if path else ""
        shown = _shown(path)
        match problem["type"]:
            case "missing":
                self._error("document.missing", f"{shown} is missing", path)
            case "extra_forbidden":
                known = _keys(model, problem["loc"])
                self._error(
                    "document.unknown_key", f"{shown} is not known here", path, _nearest(key, known)
                )
            case "string_pattern_mismatch":
                what = "a letter or _, then letters, digits, _" if "nodes" in path else (
                    "letters, digits, . _ -, at most 128"
                )  # fmt: skip
                self._error(
                    "document.bad_id", f"{shown}: {problem['input']!r} must be {what}", path
                )
            case _:
                said = (
                    problem["msg"]
                    .removeprefix("Input ")
                    .removeprefix("Value error, ")
                    .replace("tuple", "list")
                )
                self._error("document.bad_value", f"{shown} {said[:1].lower()}{said[1:]}", path)

    def _add_node(self, index: int, node: Node) -> None:
        place: Place = ("nodes", index, "id")
        if node.id in self.nodes:
            first = self.nodes[node.id][0]
            self._error(
                "node.duplicate_id", f"node id {node.id!r} is taken by nodes[{first}]", place
            )
        elif node.id in RESERVED_IDS:
            self._error(
                "node.reserved_id", f"node id {node.id!r} means something in expressions", place
            )
        else:
            self.nodes[node.id] = (index, node)

    # -- nodes

    def _check_nodes(self) -> None:
        if self.source.value.get("nodes") == []:
            self._error("document.no_nodes", "a workflow needs at least one node", ("nodes",))
            return
        for index, node in self.nodes.values():
            self._check_type(index, node)
        triggers = [n for _, n in self.nodes.values() if n.type.startswith("trigger.")]
        if not triggers and not self.unread:
            self._error(
                "document.no_trigger",
                "nothing starts this workflow",
                ("nodes",),
                "add a node of type trigger.webhook.inbound or trigger.time.manual",
            )
        self._check_webhook_paths()

    def _check_type(self, index: int, node: Node) -> None:
        place: Place = ("nodes", index)
        kind = NODE_TYPES.get(node.type)
        if kind is None:
            if node.type.startswith(PLANNED):
                self._error(
                    "node.type_not_available",
                    f"{node.id}: {node.type} cannot be run by this version",
                    (*place, "type"),
                )
            else:
                self._error(
                    "node.unknown_type",
                    f"{node.id}: there is no node type {node.type!r}",
                    (*place, "type"),
                    _nearest(node.type, NODE_TYPES),
                )
            return
        for name in node.params:
            if name not in kind.params:
                self._error(
                    "params.unknown",
                    f"{node.id}: {node.type} takes no {name!r}",
                    (*place, "params", name),
                    _nearest(name, kind.params),
                )
        for name, problem in kind.problems(node.params, is_open=_is_open):
            self._error("params.invalid", f"{node.id}: {name} {problem}", (*place, "params", name))
        self._check_policies(index, node, is_trigger=kind.is_trigger)

    def _check_policies(self, index: int, node: Node, *, is_trigger: bool) -> None:
        """Warn of what is written but does nothing."""
        place: Place = ("nodes", index)
        acts = node.type == "action.http.request"
        for key, is_set in (
            ("effect", node.effect is not None),
            ("idempotencyKey", node.idempotency_key is not None),
            ("retry", node.retry is not None),
            ("timeoutMs", node.timeout_ms is not None),
        ):
            if is_set and not acts:
                self._warn(
                    "node.no_effect", f"{node.id}: {key} does nothing on {node.type}", (*place, key)
                )
        if is_trigger and (node.disabled or node.is_pinned or node.on_error != "fail"):
            self._error(
                "node.trigger_policy",
                f"{node.id}: a trigger takes no disabled, pinned or onError",
                place,
            )
        if acts and node.idempotency_key is not None and effect_of(node) is not Effect.KEYED:
            self._warn(
                "node.key_unused",
                f"{node.id}: idempotencyKey is not sent, its effect is {effect_of(node)}",
                (*place, "idempotencyKey"),
                "set effect: keyed",
            )

    def _check_webhook_paths(self) -> None:
        seen: dict[str, str] = {}
        for index, node in self.nodes.values():
            path = node.params.get("path") if node.type == "trigger.webhook.inbound" else None
            if not isinstance(path, str):
                continue
            if path in seen:
                self._error(
                    "webhook.path_taken",
                    f"{node.id}: webhook path {path!r} is the one of {seen[path]}",
                    ("nodes", index, "params", "path"),
                )
            seen.setdefault(path, node.id)

    # -- edges

    def _check_edges(self) -> None:
        seen: dict[tuple[str, str, str, Any], int] = {}
        for index, edge in self.edges:
            place: Place = ("edges", index)
            for key, node_id in (("from", edge.source), ("to", edge.target)):
                if node_id not in self.nodes and node_id not in self.unread:
                    self._error(
                        "edge.unknown_node",
                        f"edge {edge.source} → {edge.target}: there is no node {node_id!r}",
                        (*place, key),
                        _nearest(node_id, self.nodes),
                    )
            self._check_kind(index, edge)
            mark = (edge.source, edge.target, edge.on, edge.when)
            if mark in seen:
                self._error(
                    "edge.duplicate",
                    f"edge {edge.source} → {edge.target} is there already, edges[{seen[mark]}]",
                    place,
                )
            seen.setdefault(mark, index)

    def _check_kind(self, index: int, edge: Edge) -> None:
        place: Place = ("edges", index)
        if edge.on not in ("success", "error"):
            self._error(
                "edge.unknown_case",
                f"edge {edge.source} → {edge.target}: on must be success or error",
                (*place, "on"),
            )
        source, target = self.nodes.get(edge.source), self.nodes.get(edge.target)
        if edge.on == "error" and source is not None and source[1].on_error != "route":
            self._error(
                "edge.never_taken",
                f"edge {edge.source} → {edge.target} is never taken: a failure of {edge.source} "
                f"does not follow edges",
                (*place, "on"),
                f"set onError: route on {edge.source}",
            )
        if target is not None and target[1].type.startswith("trigger."):
            self._error(
                "edge.into_trigger",
                f"edge {edge.source} → {edge.target}: a trigger has no in-edges",
                (*place, "to"),
            )

    # -- order

    def _known_edges(self) -> list[tuple[int, Edge]]:
        return [(i, e) for i, e in self.edges if e.source in self.nodes and e.target in self.nodes]

    def _check_order(self) -> None:
        cycle = _cycle(list(self.nodes), [(e.source, e.target) for _, e in self._known_edges()])
        if cycle is not None:
            self._error(
                "edges.cycle",
                f"the edges form a cycle: {' → '.join([*cycle, cycle[0]])}",
                ("edges",),
                "a workflow runs each node once",
            )
            return
        starts = [key for key, (_, n) in self.nodes.items() if n.type.startswith("trigger.")]
        if not starts or self.unread:
            return
        reached = set(starts)
        targets = self._targets()
        while starts:
            fresh = targets.get(starts.pop(), set()) - reached
            reached |= fresh
            starts.extend(fresh)
        for key, (index, _) in self.nodes.items():
            if key not in reached:
                self._warn(
                    "node.unreachable",
                    f"{key} is never run: no trigger leads to it",
                    ("nodes", index, "id"),
                )

    def _targets(self) -> dict[str, set[str]]:
        targets: dict[str, set[str]] = {}
        for _, edge in self._known_edges():
            targets.setdefault(edge.source, set()).add(edge.target)
        return targets

    def _upstream(self) -> dict[str, set[str]]:
        """For each node, every node whose output it may read."""
        sources: dict[str, set[str]] = {key: set() for key in self.nodes}
        for _, edge in self._known_edges():
            sources[edge.target].add(edge.source)
        known: dict[str, set[str]] = {}
        for start in self.nodes:
            seen: set[str] = set()
            open_ids = list(sources[start])
            while open_ids:
                key = open_ids.pop()
                if key in seen:
                    continue
                seen.add(key)
                open_ids.extend(known[key] if key in known else sources[key])
            known[start] = seen
        return known

    # -- expressions

    def _check_expressions(self, given_vars: Json) -> None:
        names = set(given_vars) if isinstance(given_vars, dict) else set()
        upstream = self._upstream()
        for key, (index, node) in self.nodes.items():
            place: Place = ("nodes", index)
            kind = NODE_TYPES.get(node.type)
            if kind is not None and kind.is_trigger:
                self._check_dedupe(place, node)
                continue
            self._check_template(node.params, (*place, "params"), key, upstream[key], names)
            if node.idempotency_key is not None:
                where: Place = (*place, "idempotencyKey")
                self._check_template(node.idempotency_key, where, key, upstream[key], names)
        for index, edge in self.edges:
            if isinstance(edge.when, str) and edge.source in self.nodes:
                readable = upstream[edge.source] | {edge.source}
                self._check_condition(edge.when, ("edges", index, "when"), edge, readable, names)

    def _check_template(
        self, value: Json, place: Place, node_id: str, readable: set[str], names: set[str]
    ) -> None:
        broken = dict(iter_template_errors(value))
        for below, error in broken.items():
            self._tell_expression(error, (*place, *below))
        for below, text in _texts(value):
            if "{{" in text and below not in broken:
                self._check_roots(
                    _reads(parse_template(text)), (*place, *below), node_id, readable, names
                )

    def _check_condition(
        self, text: str, place: Place, edge: Edge, readable: set[str], names: set[str]
    ) -> None:
        try:
            parsed: Expression = parse_expression(condition(text))
        except ExpressionError as error:
            self._tell_expression(error, place)
            return
        self._check_roots(
            _reads(parsed), place, f"edge {edge.source} → {edge.target}", readable, names
        )

    def _check_dedupe(self, place: Place, node: Node) -> None:
        dedupe = node.params.get("dedupe")
        text = dedupe.get("expression") if isinstance(dedupe, dict) else None
        if not isinstance(text, str):
            return
        where: Place = (*place, "params", "dedupe", "expression")
        try:
            parsed = parse_expression(condition(text))
        except ExpressionError as error:
            self._tell_expression(error, where)
            return
        for root in sorted(parsed.roots - {node.id}):
            self._error(
                "expression.unknown_root",
                f"{node.id}: dedupe reads the delivery only, as {node.id!r}, not {root!r}",
                where,
            )

    def _tell_expression(self, error: ExpressionError, place: Place) -> None:
        self._error(error.code, f"{_shown(place)}: {error.message}", place)

    def _check_roots(
        self,
        paths: Iterable[tuple[str | int, ...]],
        place: Place,
        owner: str,
        readable: set[str],
        names: set[str],
    ) -> None:
        told: set[str] = set()
        for path in sorted(paths, key=lambda p: (str(p[0]), -len(p))):
            root = str(path[0])
            if root == "vars" and len(path) > 1 and str(path[1]) not in names:
                self._error(
                    "expression.unknown_var",
                    f"{owner} reads vars.{path[1]}, which the workflow does not define",
                    place,
                    _nearest(str(path[1]), names),
                )
                continue
            if root in readable or root in FIXED_ROOTS or root in told or root in self.unread:
                continue
            told.add(root)
            if root in self.nodes:
                self._error(
                    "expression.not_upstream",
                    f"{owner} reads {root}, which does not come before it",
                    place,
                    f"add an edge that leads from {root} to it",
                )
            else:
                self._error(
                    "expression.unknown_root",
                    f"{owner} reads {root!r}, which is no node and no known name",
                    place,
                    _nearest(root, readable | FIXED_ROOTS),
                )


def _reads(parsed: Expression | Template) -> set[tuple[str | int, ...]]:
    """Every path it reads, each root among them."""
    return {*parsed.paths, *((root,) for root in parsed.roots)}


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _texts(value: Json, place: Place = ()) -> Iterable[tuple[Place, str]]:
    open_values: list[tuple[Place, Json]] = [(place, value)]
    while open_values:
        where, current = open_values.pop()
        if isinstance(current, str):
            yield where, current
        elif isinstance(current, dict):
            open_values.extend(((*where, key), item) for key, item in current.items())
        elif isinstance(current, list):
            open_values.extend(((*where, i), item) for i, item in enumerate(current))


def _is_open(value: Json) -> bool:
    return any("{{" in text for _, text in _texts(value))


def _keys(model: type, loc: tuple[str | int, ...]) -> list[str]:
    """The keys the map at `loc` may have."""
    from stackd.workflows.model import Retry

    chosen: Any = Retry if "retry" in loc[:-1] else model
    return [f.alias or name for name, f in chosen.model_fields.items()]


def _nearest(name: str, known: Iterable[str] | Mapping[str, Any]) -> str | None:
    close = difflib.get_close_matches(name[:100], list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else None


def _shown(path: Place) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the document"


def _cycle(ids: list[str], edges: list[tuple[str, str]]) -> list[str] | None:
    """The nodes of one cycle in order, or None."""
    targets: dict[str, list[str]] = {key: [] for key in ids}
    for source, target in edges:
        targets[source].append(target)
    state: dict[str, int] = {}  # 1: on the way, 2: done
    for start in ids:
        if start in state:
            continue
        way, stack = [start], [iter(targets[start])]
        state[start] = 1
        while stack:
            step = next(stack[-1], None)
            if step is None:
                state[way.pop()] = 2
                stack.pop()
            elif state.get(step) == 1:
                return way[way.index(step) :]
            elif step not in state:
                state[step] = 1
                way.append(step)
                stack.append(iter(targets[step]))
    return None
