"""What the expressions of a document read, and whether that is there when they do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.core.text import shown
from stackd.workflows.expressions import Expression, Path, iter_expressions, parse_condition
from stackd.workflows.findings import Remarks
from stackd.workflows.graph import order_of
from stackd.workflows.levels import Level, NodeAt, is_trigger, named
from stackd.workflows.model import LOOP, WAIT, Edge
from stackd.workflows.nodetypes import type_of
from stackd.workflows.shape import shown_path
from stackd.workflows.source import Place, Position

FIXED_ROOTS: Final = ("trigger", "execution", "workflow", "vars")
ITEM_ROOTS: Final = ("item", "index")


@dataclass(frozen=True, slots=True)
class _Read:
    """An expression reads `path`.

    Attributes:
        owner: who reads, for messages.
        level: where its owner stands.
        node: it reads when this node begins; `is_after`: when it has ended, as the condition of an edge does.
            None: nobody can say when.
        has_item: whether it is evaluated for each item of a list.
    """

    owner: str
    level: Level
    node: str | None
    is_after: bool
    has_item: bool
    place: Place
    within: Position
    path: Path


@dataclass(frozen=True, slots=True)
class _Link:
    """An expression reads the link of `node`. `is_there`: where it stands, links can be read."""

    owner: str
    level: Level
    node: str
    is_there: bool
    place: Place
    within: Position


class Reads:
    """Judges the expressions of all levels.

    Args:
        nodes: of all levels, by id; of several with one id, the first.
        unread: ids that are taken by something that cannot be used.
        known_vars: the `vars` of the document.
    """

    def __init__(
        self,
        remarks: Remarks,
        levels: Sequence[Level],
        nodes: Mapping[str, NodeAt],
        *,
        unread: set[str],
        known_vars: Mapping[str, Json],
    ) -> None:
        self._remarks = remarks
        self._levels = levels
        self._nodes = nodes
        self._unread = unread
        self._vars = known_vars
        self._reads: list[_Read] = []
        self._links: list[_Link] = []

    def run(self) -> None:
        """Note every expression that cannot be parsed or reads what is not there, and vars and links that none reads."""
        for step in (
            self._parse_expressions,
            self._check_reads,
            self._check_links,
            self._check_vars,
        ):
            if self._remarks.are_full:
                return
            step()

    @property
    def _parts(self) -> Iterator[NodeAt]:
        return chain.from_iterable(level.parts for level in self._levels)

    def _parse_expressions(self) -> None:
        for part in self._parts:
            if is_trigger(part.node):
                self._check_dedupe(part)
                continue
            for place, found, has_item in _expressions(part):
                if self._remarks.are_full:
                    return
                at: str | None = part.node.id
                if part.level.nodes.get(part.node.id) is not part:
                    at = None
                self._take(found, place, part.node.id, part.level, at, has_item=has_item)
        for level in self._levels:
            self._parse_level(level)

    def _parse_level(self, level: Level) -> None:
        """The conditions of its edges and, of a body, what the loop collects when all of it has ended."""
        for index, edge in level.edges:
            if self._remarks.are_full:
                return
            if isinstance(edge.when, str):
                at = edge.source if edge.source in level.nodes else None
                found, place = _condition(edge.when), (*level.edge_place(index), "when")
                self._take(found, place, named(edge), level, at, is_after=True)
        if level.loop is not None:
            part = level.loop
            for below, found in iter_expressions(part.node.params.get("collect")):
                place = (*part.place, "params", "collect", *below)
                self._take(found, place, part.node.id, level, None)

    def _take(
        self,
        found: Expression | ExpressionError,
        place: Place,
        owner: str,
        level: Level,
        node: str | None,
        *,
        is_after: bool = False,
        has_item: bool = False,
    ) -> None:
        if isinstance(found, ExpressionError):
            self._tell_expression(found, place)
            return
        for path, within in found.paths.items():
            read = _Read(owner, level, node, is_after, has_item, place, within, path)
            self._reads.append(read)
        for name, within in found.links.items():
            self._links.append(_Link(owner, level, name, not is_after, place, within))

    def _tell_expression(self, error: ExpressionError, place: Place) -> None:
        within = None if error.line is None or error.column is None else (error.line, error.column)
        self._remarks.error(
            error.code, f"{shown_path(place)}: {error.message}", place, within=within
        )

    def _check_dedupe(self, part: NodeAt) -> None:
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
        for name, within in parsed.links.items():
            self._links.append(_Link(node.id, part.level, name, False, place, within))  # noqa: FBT003
        for path, within in parsed.paths.items():
            if path[0] != node.id and path[0] not in self._unread:
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
        known_vars = self._vars
        asked: dict[Level, list[str]] = {level: [] for level in self._levels}
        for read in self._reads:
            if (part := self._nodes.get(str(read.path[0]))) is not None:
                asked[part.level].append(part.node.id)
        before = {
            level: _Before(level.nodes, level.known_edges, names) for level, names in asked.items()
        }
        told: set[tuple[Place, str]] = set()  # once per text
        for read in self._reads:
            if self._remarks.are_full:
                return
            root = str(read.path[0])
            if root == "vars" and len(read.path) > 1 and read.path[1] not in known_vars:
                self._tell_var(read, str(read.path[1]), known_vars)
            if root in FIXED_ROOTS or root in self._unread or (read.place, root) in told:
                continue
            if not self._is_fine(read, root, before):
                told.add((read.place, root))

    def _is_fine(self, read: _Read, root: str, before: Mapping[Level, _Before]) -> bool:
        """Whether `root` is there when it is read; tells it if not."""
        if root in ITEM_ROOTS:
            if read.has_item or read.level.loop is not None:
                return True
            self._remarks.error(
                "expression.no_item",
                f"{read.owner} reads {root}, which is there only in a loop or for the items of a list",
                read.place,
                within=read.within,
            )
            return False
        level, node, is_after = read.level, read.node, read.is_after
        while root not in level.nodes and (loop := level.loop) is not None:
            level, node, is_after = loop.level, loop.node.id, False
        if root not in level.nodes:
            self._tell_root(read, root)
            return False
        if node is None or before[level].holds(root, node, or_is=is_after):
            return True
        self._remarks.error(
            "expression.not_upstream",
            f"{read.owner} reads {root}, which does not come before it",
            read.place,
            within=read.within,
            hint=f"add an edge that leads from {root} to {'it' if node == read.node else node}",
        )
        return False

    def _tell_root(self, read: _Read, root: str) -> None:
        elsewhere = self._nodes.get(root)
        loop = None if elsewhere is None else elsewhere.level.loop
        if loop is not None:
            self._remarks.error(
                "expression.inside_loop",
                f"{read.owner} reads {root}, which stands in the loop {loop.node.id}",
                read.place,
                within=read.within,
                hint=f"read what {loop.node.id} gives: a list, an element for each item",
            )
            return
        self._remarks.error(
            "expression.unknown_root",
            f"{read.owner} reads {shown(root)!r}, which is no node and no known name",
            read.place,
            within=read.within,
            wrong=root,
            known=[*FIXED_ROOTS, *self._nodes],
        )

    def _check_links(self) -> None:
        """Links of nodes that have none or that stand elsewhere, and nodes whose link nobody gives away."""
        waits = [part for part in self._parts if part.node.type == WAIT]
        for link in self._links:
            if self._remarks.are_full:
                return
            self._check_link(link, [part.node.id for part in waits])
        given = {link.node for link in self._links}
        for part in waits if not self._remarks.errors else []:
            if part.node.id not in given and not (part.node.disabled or part.node.is_pinned):
                self._remarks.warn(
                    "wait.no_link",
                    f"nothing reads resumeUrl({part.node.id!r}): only who sees the execution can let it go on",
                    (*part.place, "type"),
                    hint=f"send {{{{ resumeUrl({part.node.id!r}) }}}} to whom it waits for",
                )

    def _check_link(self, link: _Link, waits: list[str]) -> None:
        level: Level | None = link.level
        while level is not None and link.node not in level.nodes:
            level = level.above
        found = None if level is None else level.nodes[link.node]
        if not link.is_there:
            self._remarks.error(
                "expression.no_link",
                f"{link.owner} reads a link, which only the parameters of a node can",
                link.place,
                within=link.within,
            )
        elif found is None and link.node in self._unread:
            pass  # told already
        elif found is None or found.node.type != WAIT:
            what = "is no node" if link.node not in self._nodes else "does not wait for a call here"
            self._remarks.error(
                "expression.no_link",
                f"{link.owner} reads the link of {shown(link.node)!r}, which {what}",
                link.place,
                within=link.within,
                wrong=link.node,
                known=waits,
                hint=None if waits else f"add a node of type {WAIT}",
            )

    def _tell_var(self, read: _Read, name: str, known: Mapping[str, Json]) -> None:
        self._remarks.error(
            "expression.unknown_var",
            f"{read.owner} reads vars.{shown(name)}, which the workflow does not define",
            read.place,
            within=read.within,
            wrong=name,
            known=known,
        )

    def _check_vars(self) -> None:
        read = [r.path for r in self._reads if r.path[0] == "vars"]
        if self._remarks.errors or any(len(path) == 1 for path in read):
            return  # an expression that does not parse may read it; one that reads all of them does
        used = {path[1] for path in read}
        for name in self._vars:
            if name not in used:
                self._remarks.warn(
                    "var.unused", f"nothing reads vars.{shown(name)}", ("vars", name)
                )


def _expressions(
    part: NodeAt,
) -> Iterator[tuple[Place, Expression | ExpressionError, bool]]:
    """Every expression of a node but those of its body: where it stands, and whether it is for each item."""
    node, kind = part.node, type_of(part.node.type)
    for name, value in node.params.items():
        param = kind.params.get(name) if kind else None
        place: Place = (*part.place, "params", name)
        if param is not None and param.is_raw:
            for index, case in enumerate(value if isinstance(value, list) else []):
                if isinstance(case, dict) and isinstance(when := case.get("when"), str):
                    yield (*place, index, "when"), _condition(when), False
        elif param is not None and param.is_expression:
            if isinstance(value, str):
                yield place, _condition(value), param.per_item
        elif node.type != LOOP or name != "collect":
            has_item = param is not None and param.per_item
            yield from (((*place, *p), found, has_item) for p, found in iter_expressions(value))
    if node.idempotency_key is not None:
        for below, found in iter_expressions(node.idempotency_key):
            yield (*part.place, "idempotencyKey", *below), found, False


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


def _condition(text: str) -> Expression | ExpressionError:
    try:
        return parse_condition(text)
    except ExpressionError as error:
        return error
