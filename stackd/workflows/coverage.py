"""Which operations of a workflow nothing can run, and which run otherwise than by a handler of their own.

What can run is known above, by the registry; whoever judges a workflow is given a function that asks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from stackd.core.coverage import Coverage
from stackd.core.errors import ConflictError
from stackd.workflows.findings import MAX_FINDINGS, Finding
from stackd.workflows.model import Node
from stackd.workflows.nodetypes import connector_of

CoverageOf = Callable[[str, str], Coverage]  # of an action, by app and operation

LACKING: Final = "it cannot be activated before that can run, but by force"


class UncoveredError(ConflictError):
    """Nothing can run some operations of a workflow that was to become active; `findings`: which."""

    def __init__(self, workflow_id: str, findings: Sequence[Finding], *, name: str) -> None:
        first, *others = findings
        place = name if first.line is None else f"{name}:{first.line}:{first.column}"
        least = "at least " if len(findings) >= MAX_FINDINGS else ""
        more = f" (and {least}{len(others)} more)" if others else ""
        super().__init__(
            f"{workflow_id} cannot be activated: {place}: {first.message}{more}",
            code=first.code,
            hint="mend that, or activate it by force (--force, ?force=true): these nodes will fail",
        )
        self.findings = [
            replace(one, severity="error", hint=None if one.hint == LACKING else one.hint)
            for one in findings
        ]


def lacking(node: Node, coverage: CoverageOf) -> Coverage | None:
    """What there is to tell of the operation that `node` runs; None if nothing, or it runs none."""
    operation = None if is_off(node) else connector_of(node.type)
    found = None if operation is None else coverage(*operation)
    return None if found is None or found.native_supported else found


def is_off(node: Node) -> bool:
    """Whether it, and all in it, is never run."""
    return node.disabled or node.is_pinned


def findings_of(nodes: Iterable[Node], coverage: CoverageOf) -> list[Finding]:
    """What there is to tell of `nodes` of a stored workflow, and those in their bodies, without places.

    Up to MAX_FINDINGS, what bars activation first.
    """
    found = sorted(_lacking_in(nodes, coverage), key=lambda pair: pair[1].supported)
    return [
        Finding(
            one.code,
            f"{node_id}: {one.fact}",
            severity="warning",
            hint=remedy(one, one.meant),
            bars=not one.supported,
        )
        for node_id, one in found[:MAX_FINDINGS]
    ]


def remedy(found: Coverage, meant: str | None = None) -> str | None:
    """What to do about it. `meant`: the name that was."""
    if meant is not None:
        return f"did you mean {meant!r}?"
    return None if found.supported else LACKING


def _lacking_in(nodes: Iterable[Node], coverage: CoverageOf) -> Iterator[tuple[str, Coverage]]:
    for node in nodes:
        if (found := lacking(node, coverage)) is not None:
            yield node.id, found
        if not is_off(node):
            yield from _lacking_in(node.nodes, coverage)


def refuse_uncovered(
    workflow_id: str, findings: Iterable[Finding], *, name: str | None = None
) -> None:
    """Return if nothing in `findings` keeps the workflow from being activated.

    Raises:
        UncoveredError: something does.
    """
    barring = [one for one in findings if one.bars]
    if barring:
        raise UncoveredError(workflow_id, barring, name=name or workflow_id)
