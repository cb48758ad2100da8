"""What is wrong with the code of code nodes. It is read where it runs, in a sandbox, and by nothing in here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from stackd.workflows.findings import Remarks
from stackd.workflows.levels import NodeAt
from stackd.workflows.model import Code


@dataclass(frozen=True, slots=True)
class Slip:
    """Why code cannot run. `line`, `column`: from 1, in the code."""

    message: str
    line: int
    column: int


# What keeps each of some code from running, None where nothing does; a text: why that cannot be told now.
SyntaxOf = Callable[[Sequence[Code]], list[Slip | None] | str]


def note_slips(parts: Iterable[NodeAt], syntax: SyntaxOf, remarks: Remarks) -> None:
    """Note what keeps the code of nodes from running, at its line."""
    found = [(part, code) for part in parts if (code := part.node.runtime) is not None]
    if not found:
        return
    slips = syntax([code for _, code in found])
    if isinstance(slips, str):
        remarks.warn("code.unchecked", f"the syntax of code was not checked: {slips}", ())
        return
    for (part, _), slip in zip(found, slips, strict=True):
        if slip is not None:
            place = (*part.place, "runtime", "code")
            words = f"{part.node.id}: line {slip.line} of its code: {slip.message}"
            remarks.error("code.syntax", words, place, within=(slip.line, slip.column))
