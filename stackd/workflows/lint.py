"""Everything that is wrong or odd about a document, in one go and in time that grows as the document does.

A part that cannot be understood hides as little as can be: it is looked at without what is wrong in it, and
what only follows from an error that is told already is not told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Final

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.core.text import shown
from stackd.workflows.code import SyntaxOf, note_slips
from stackd.workflows.coverage import CoverageOf, is_off, lacking, remedy
from stackd.workflows.expressions import Expression, iter_expressions
from stackd.workflows.findings import MAX_FINDINGS, Remarks
from stackd.workflows.levels import Level, NodeAt, is_trigger, named
from stackd.workflows.model import BODY, CODE, LOOP, RESERVED_IDS, SEALED, Edge, Node, Workflow
from stackd.workflows.nodetypes import (
    NODE_TYPES,
    Effect,
    acts,
    cases_of,
    connector_of,
    effect_of,
    is_slip,
    type_of,
)
from stackd.workflows.reads import ITEM_ROOTS, Reads
from stackd.workflows.shape import read_part, shown_path
from stackd.workflows.source import Place

CYCLE_SHOWN: Final = 8  # nodes of a cycle that a message names
MAX_LOOPS: Final = 4  # in each other; the keys of node runs grow with each

_STAND_IN: Final = {"id": "_"}  # a node is looked at without its id, but not as one
_WORD: Final = re.compile(r"\w+")

# Node types of the plan that this version cannot run yet: a clearer answer than "unknown".
PLANNED: Final = (
    "trigger.time.cron",
    "trigger.time.interval",
    "trigger.stackd.error",
)


_POLLED: Final = re.compile(r"trigger\.(?!webhook\.|time\.|stackd\.)[a-z][a-z0-9_-]*\..+")


def lint(
    document: Json,
    remarks: Remarks,
    coverage: CoverageOf | None = None,
    syntax: SyntaxOf | None = None,
) -> None:
    """Note all that is wrong with `document`; without an error it is a valid `Workflow`.

    `coverage`: what can run its operations; `syntax`: whether its code can run; None: that is not looked at.
    """
    if isinstance(document, dict):
        _Lint(document, remarks, coverage, syntax).run()
    else:
        remarks.error("document.not_map", "a workflow is a map with id, nodes and edges", ())


class _Lint:
    def __init__(
        self,
        document: dict[str, Json],
        remarks: Remarks,
        coverage: CoverageOf | None,
        syntax: SyntaxOf | None,
    ) -> None:
        self._document = document
        self._remarks = remarks
        self._coverage = coverage
        self._syntax = syntax
        self._top = Level({key: (key,) for key in sorted(BODY)})
        self._levels = [self._top]
        self._nodes: dict[str, NodeAt] = {}  # of all levels
        self._unread: set[str] = set()  # ids that are taken by something that cannot be used
        self._misread: set[str] = set()  # what an expression makes of such an id: `a-b` is a less b

    def run(self) -> None:
        for step in (
            self._structure,
            self._take_misread,
            self._check_nodes,
            self._check_edges,
            self._check_order,
            self._check_expressions,
            self._check_code,
        ):
            if self._remarks.are_full:
                return
            step()

    @property
    def _parts(self) -> Iterator[NodeAt]:
        return chain.from_iterable(level.parts for level in self._levels)

    # -- structure

    def _structure(self) -> None:
        """Read nodes and edges one by one, so that a bad one does not hide the others."""
        lists = {key: value for key in BODY if isinstance(value := self._document.get(key), list)}
        around = self._document | {key: [] for key in lists}
        read_part(Workflow, around, (), self._remarks)
        self._read_level(self._top, lists)

    def _read_level(self, level: Level, lists: Mapping[str, list[Json]]) -> None:
        for index, raw in enumerate(lists.get("nodes", [])):
            if self._remarks.are_full:
                return
            self._read_node(level, raw, (*level.places["nodes"], index))
        for index, raw in enumerate(lists.get("edges", [])):
            if self._remarks.are_full:
                return
            edge, _ = read_part(Edge, raw, level.edge_place(index), self._remarks)
            if edge is not None:
                level.edges.append((index, edge))
            else:
                level.is_whole = False

    def _read_node(self, level: Level, raw: Json, place: Place) -> None:
        bare, body = _parted(raw, place)
        node, unusable = read_part(Node, bare, place, self._remarks, stand_in=_STAND_IN)
        given = raw.get("id") if isinstance(raw, dict) else None
        if node is None:
            level.is_whole = False
            if isinstance(given, str):
                self._unread.add(given)
            return
        if "id" in unusable:
            node = node.model_copy(update={"id": self._called(given, place)})
        part = NodeAt(place, node, unusable, level)
        if "id" in unusable and node.id != given:
            level.parts.append(part)
            level.is_whole = False  # nothing leads to what has no name
        else:
            self._add_node(part)
        if node.type == LOOP:
            self._read_body(part, body)
        elif body:
            self._remarks.error(
                "node.no_body",
                f"{node.id}: only {LOOP} has nodes and edges of its own",
                next(iter(body.values()))[0],
            )

    def _called(self, given: Json, place: Place) -> str:
        """What a node is called whose id is none: as it was meant to be, if that can be known."""
        if not isinstance(given, str) or not given:
            return shown_path(place)
        name = shown(given)
        if name != given:
            self._unread.add(given)
        self._misread.update(_WORD.findall(given))
        return name

    def _read_body(self, part: NodeAt, body: Mapping[str, tuple[Place, Json]]) -> None:
        level = Level(
            {key: body[key][0] if key in body else (*part.place, key) for key in BODY}, part
        )
        self._levels.append(level)
        if level.depth > MAX_LOOPS:
            self._remarks.error(
                "loop.too_deep", f"{part.node.id}: over {MAX_LOOPS} loops in each other", part.place
            )
            return
        lists = {}
        for key, (place, value) in body.items():
            if isinstance(value, list):
                lists[key] = value
            else:
                self._remarks.error(
                    "document.bad_value", f"{shown_path(place)} must be a list", place
                )
        if not lists.get("nodes"):
            self._remarks.error(
                "loop.no_body",
                f"{part.node.id}: a loop needs nodes, which it runs for each item",
                part.place,
            )
        self._read_level(level, lists)

    def _take_misread(self) -> None:
        """Let what an expression makes of an id that is none be taken too, unless a node has that name."""
        self._unread |= self._misread - self._nodes.keys()

    def _add_node(self, part: NodeAt) -> None:
        part.level.parts.append(part)
        node_id, place = part.node.id, (*part.place, "id")
        if node_id in self._nodes:
            first = shown_path(self._nodes[node_id].place)
            self._remarks.error(
                "node.duplicate_id", f"node id {node_id!r} is taken by {first}", place
            )
        elif node_id in RESERVED_IDS:
            self._unread.add(node_id)
            self._remarks.error(
                "node.reserved_id", f"node id {node_id!r} means something in expressions", place
            )
        else:
            self._nodes[node_id] = part.level.nodes[node_id] = part

    # -- nodes

    def _check_nodes(self) -> None:
        if self._document.get("nodes") == []:
            self._remarks.error(
                "document.no_nodes", "a workflow needs at least one node", ("nodes",)
            )
        for part in self._parts:
            self._check_type(part)
        parts = self._top.parts
        kinds = [type_of(part.node.type) for part in parts]
        are_known = self._top.is_whole and None not in kinds
        if parts and are_known and not any(kind and kind.is_trigger for kind in kinds):
            self._remarks.error(
                "document.no_trigger",
                "nothing starts this workflow",
                ("nodes",),
                hint="add a node of type trigger.webhook.inbound or trigger.time.manual",
            )
        self._check_webhook_paths()

    def _check_type(self, part: NodeAt) -> None:
        node, place = part.node, part.place
        kind = type_of(node.type)
        if kind is None:
            self._tell_type(node, (*place, "type"))
            return
        if kind.is_trigger and part.level is not self._top:
            self._remarks.error(
                "node.trigger_in_loop",
                f"{node.id}: a trigger stands beside loops, not in one",
                (*place, "type"),
            )
        for name in () if kind.is_open else node.params:
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
            self._check_switch(part)
        self._check_policies(part, is_trigger=kind.is_trigger)
        self._check_coverage(part)

    def _check_coverage(self, part: NodeAt) -> None:
        """Warn of an operation that nothing can run, or that no handler of its own does."""
        loop = part.level.loop
        while loop is not None:
            if is_off(loop.node):
                return
            loop = loop.level.loop
        found = None if self._coverage is None else lacking(part.node, self._coverage)
        if found is not None:
            self._remarks.warn(
                found.code,
                f"{part.node.id}: {found.fact}",
                (*part.place, "type"),
                hint=remedy(found),
                wrong=found.wrong,
                known=found.known,
                bars=not found.supported,
            )

    def _check_switch(self, part: NodeAt) -> None:
        node = part.node
        given = node.params.get("cases") if node.type == "logic.switch" else None
        if not isinstance(given, list) or "value" in node.params:
            return
        if any(not isinstance(case, dict) for case in given):
            self._remarks.error(
                "params.invalid",
                f"{node.id}: value is missing: cases without conditions are compared with it",
                (*part.place, "params", "value"),
            )

    def _tell_type(self, node: Node, place: Place) -> None:
        if node.type in PLANNED or (_POLLED.fullmatch(node.type) and not is_slip(node.type)):
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

    def _check_credentials(self, node: Node, place: Place) -> None:
        """No message shows a value."""
        if connector_of(node.type) is None:
            self._remarks.error(
                "node.no_credentials",
                f"{node.id}: {node.type} is no operation of a connector and takes no credentials",
                place,
            )
            return
        if node.connection is not None:
            self._remarks.error(
                "node.two_credentials", f"{node.id}: has a connection and credentials", place,
                hint="take one of them out",
            )  # fmt: skip
        given = node.credentials or {}
        if SEALED in given and len(given) > 1:
            self._remarks.error(
                "node.sealed_credentials",
                f"{node.id}: credentials that are sealed are all of them; no field stands beside",
                place,
                hint="give all fields anew",
            )
        elif any("{{" in value for value in given.values()):
            self._remarks.error(
                "node.credentials_text",
                f"{node.id}: credentials are texts as they are, in which no expression is read",
                place,
            )
        self._remarks.warn(
            "node.inline_credentials",
            f"{node.id}: has its own credentials, which no test, renewal or change of the stored ones reaches",
            place,
            hint="keep them once: `stackd credentials add NAME --connector APP …`, then connection: NAME",
        )

    def _check_policies(self, part: NodeAt, *, is_trigger: bool) -> None:
        """Warn of what is written but does nothing, and of what a crash will ask a person about."""
        node, place = part.node, part.place
        is_action = acts(node)
        for key, is_set in (
            ("effect", node.effect is not None),
            ("idempotencyKey", node.idempotency_key is not None),
            ("retry", node.retry is not None),
            ("timeoutMs", node.timeout_ms is not None),
        ):
            if is_set and not is_action:
                self._remarks.warn(
                    "node.no_effect", f"{node.id}: {key} does nothing on {node.type}", (*place, key)
                )
        if node.connection is not None and connector_of(node.type) is None:
            self._remarks.error(
                "node.no_connection",
                f"{node.id}: {node.type} is no operation of a connector and takes no connection",
                (*place, "connection"),
            )
        if node.credentials is not None:
            self._check_credentials(node, (*place, "credentials"))
        if node.runtime is not None and node.type != CODE:
            self._remarks.error(
                "node.no_runtime",
                f"{node.id}: {node.type} runs no code of yours and takes no runtime",
                (*place, "runtime"),
            )
        elif node.type == CODE and node.runtime is None and "runtime" not in part.unusable:
            self._remarks.error(
                "node.no_code",
                f"{node.id}: has no code",
                place,
                hint='runtime: {code: "def run(params, context):\\n    return {}"}',
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
        if is_action:
            self._check_effect(node, place)
            self._check_key(part)
            tls = node.params.get("tls")
            if isinstance(tls, dict) and tls.get("verify") is False:
                self._remarks.warn(
                    "http.tls_unverified",
                    f"{node.id}: with verify: false whoever answers is believed",
                    (*place, "params", "tls", "verify"),
                    hint="let STACKD_TLS_CA_FILE name the certificate of the far side's authority",
                )

    def _check_effect(self, node: Node, place: Place) -> None:
        effect = effect_of(node)
        if node.idempotency_key is not None and effect is not Effect.KEYED:
            self._remarks.warn(
                "node.key_unused",
                f"{node.id}: idempotencyKey is not sent, its effect is {effect}",
                (*place, "idempotencyKey"),
                hint="set effect: keyed",
            )
        if effect is not Effect.UNSAFE or node.disabled or node.is_pinned:
            return
        if connector_of(node.type) is not None and node.effect is None:
            return  # its definition says
        if node.effect is None:
            self._remarks.warn(
                "node.unsafe",
                f"{node.id} is unsafe to send again: cut off in mid-flight, it waits for a person",
                (*place, "type"),
                hint="set effect: keyed if the far side honours Idempotency-Key, "
                "or effect: unsafe to say that this is meant",
            )
        if node.retry is not None and node.retry.max_attempts > 1:
            self._remarks.warn(
                "node.retry_unsafe",
                f"{node.id}: retry helps an unsafe request only where nothing was sent "
                "or the far side declined (429, 503 with Retry-After)",
                (*place, "retry"),
                hint="set effect: keyed if the far side honours Idempotency-Key",
            )

    def _check_key(self, part: NodeAt) -> None:
        """Warn of a key that all iterations of a loop would send: the far side then does only the first."""
        node, loop = part.node, part.level.loop
        if node.idempotency_key is None or loop is None or effect_of(node) is not Effect.KEYED:
            return
        found = [one for _, one in iter_expressions(node.idempotency_key)]
        read = {root for one in found if isinstance(one, Expression) for root in one.roots}
        if not any(self._varies(root, part.level) for root in read) and not any(
            isinstance(one, ExpressionError) or "uuid" in one.text for one in found
        ):
            self._remarks.warn(
                "node.same_key",
                f"{node.id}: every iteration of {loop.node.id} sends the same idempotencyKey, "
                "and the far side does only the first",
                (*part.place, "idempotencyKey"),
                hint="read item or index in it, or leave it out: then each iteration has its own",
            )

    def _varies(self, root: str, level: Level) -> bool:
        """Whether what it names, read at `level`, may be another one in each iteration of a loop around."""
        if root in self._unread:
            return True
        inside: Level | None = level
        while inside is not None and inside.loop is not None:
            if root in inside.nodes:
                return True
            inside = inside.above
        return root in ITEM_ROOTS

    def _check_code(self) -> None:
        if self._syntax is not None:
            note_slips(self._parts, self._syntax, self._remarks)

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
        for level in self._levels:
            seen: dict[tuple[str, str, str, str | bool | None], int] = {}
            for index, edge in level.edges:
                place = level.edge_place(index)
                for key, node_id in (("from", edge.source), ("to", edge.target)):
                    if node_id not in level.nodes and node_id not in self._unread:
                        level.is_whole = False
                        self._tell_end(level, edge, node_id, (*place, key))
                self._check_kind(level, place, edge)
                mark = (edge.source, edge.target, edge.on, edge.when)
                if mark in seen:
                    first = shown_path(level.edge_place(seen[mark]))
                    self._remarks.error(
                        "edge.duplicate", f"{named(edge)} is there already, {first}", place
                    )
                seen.setdefault(mark, index)

    def _tell_end(self, level: Level, edge: Edge, node_id: str, place: Place) -> None:
        elsewhere = self._nodes.get(node_id)
        if elsewhere is None:
            self._remarks.error(
                "edge.unknown_node",
                f"{named(edge)}: there is no node {shown(node_id)!r}",
                place,
                wrong=node_id,
                known=level.nodes,
            )
            return
        loop = elsewhere.level.loop
        where = "outside this loop" if loop is None else f"in the loop {loop.node.id}"
        self._remarks.error(
            "edge.crosses_loop",
            f"{named(edge)}: {node_id} stands {where}; an edge stays in one body",
            place,
            hint="lead the edge to or from the loop itself",
        )

    def _check_kind(self, level: Level, place: Place, edge: Edge) -> None:
        source, target = level.nodes.get(edge.source), level.nodes.get(edge.target)
        known: tuple[str, ...] = ("success", "error")
        if source is not None:
            known += cases_of(source.node)
            if type_of(source.node.type) is None or "params" in source.unusable:
                known += (edge.on,)  # nobody can say
        if source is not None and edge.on not in known:
            self._remarks.error(
                "edge.unknown_case",
                f"{named(edge)}: on must be {', '.join(known[:-1])} or {known[-1]}",
                (*place, "on"),
                wrong=edge.on,
                known=known,
            )
        if edge.on == "error" and source is not None and source.node.on_error != "route":
            self._remarks.error(
                "edge.never_taken",
                f"{named(edge)} is never taken: a failure of {edge.source} does not follow edges",
                (*place, "on"),
                hint=f"set onError: route on {edge.source}",
            )
        if target is not None and target.node.type.startswith("trigger."):
            self._remarks.error(
                "edge.into_trigger", f"{named(edge)}: a trigger has no in-edges", (*place, "to")
            )

    # -- order

    def _check_order(self) -> None:
        for level in self._levels:
            edges = [(index, edge.source, edge.target) for index, edge in level.known_edges]
            for index, cycle in islice(_cycles(list(level.nodes), edges), MAX_FINDINGS):
                self._remarks.error(
                    "edges.cycle",
                    f"edge {cycle[-1]} → {cycle[0]} leads back: {_around(cycle)}",
                    level.edge_place(index),
                    hint="a workflow runs each node once: take an edge of the cycle away",
                )
        top = self._top
        triggers = [key for key, part in top.nodes.items() if is_trigger(part.node)]
        if not triggers or not top.is_whole:
            return
        reached = _reached(triggers, [(i, e.source, e.target) for i, e in top.known_edges])
        for key, part in top.nodes.items():
            if key not in reached:
                self._remarks.warn(
                    "node.unreachable",
                    f"{key} is never run: no trigger leads to it",
                    (*part.place, "id"),
                )

    # -- expressions

    def _check_expressions(self) -> None:
        names = self._document.get("vars")
        known_vars = names if isinstance(names, dict) else {}
        Reads(
            self._remarks, self._levels, self._nodes, unread=self._unread, known_vars=known_vars
        ).run()


def _parted(raw: Json, place: Place) -> tuple[Json, dict[str, tuple[Place, Json]]]:
    """A node without its body, and the lists of that, each with its place: beside its params or among them."""
    if not isinstance(raw, dict):
        return raw, {}
    body = {key: ((*place, key), raw[key]) for key in BODY & raw.keys()}
    bare = {key: value for key, value in raw.items() if key not in body}
    params = raw.get("params")
    if raw.get("type") == LOOP and isinstance(params, dict):
        inside = BODY & params.keys()
        body |= {key: ((*place, "params", key), params[key]) for key in inside}
        bare["params"] = {key: value for key, value in params.items() if key not in inside}
    return bare, body


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
