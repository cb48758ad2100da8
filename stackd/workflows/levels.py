"""The nodes and edges of a document as far as they could be understood, level by level: a loop's body is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stackd.core.text import shown
from stackd.workflows.model import Edge, Node
from stackd.workflows.source import Place


@dataclass(frozen=True, slots=True, eq=False)
class NodeAt:
    """A node as far as it could be understood, without its body. `unusable`: its keys that were left out."""

    place: Place
    node: Node
    unusable: set[str]
    level: Level


@dataclass(slots=True, eq=False)
class Level:
    """The nodes and edges of one graph: the workflow's, or the body of a loop in the level above it.

    Attributes:
        nodes: by id; of several with one id, the first.
        is_whole: no node or edge is missing because of what is wrong with it.
    """

    places: Mapping[str, Place]  # of its lists, nodes and edges
    loop: NodeAt | None = None
    parts: list[NodeAt] = field(default_factory=list)
    nodes: dict[str, NodeAt] = field(default_factory=dict)
    edges: list[tuple[int, Edge]] = field(default_factory=list)
    is_whole: bool = True

    @property
    def above(self) -> Level | None:
        return None if self.loop is None else self.loop.level

    @property
    def depth(self) -> int:
        """How many loops it stands in."""
        return 0 if self.above is None else 1 + self.above.depth

    def edge_place(self, index: int) -> Place:
        return (*self.places["edges"], index)

    @property
    def known_edges(self) -> list[tuple[int, Edge]]:
        return [
            (index, edge)
            for index, edge in self.edges
            if edge.source in self.nodes and edge.target in self.nodes
        ]


def is_trigger(node: Node) -> bool:
    return node.type.startswith("trigger.")


def named(edge: Edge) -> str:
    return f"edge {shown(edge.source)} → {shown(edge.target)}"
