"""How the columns of a table share the width of a terminal: what people copy stays whole, the rest gives way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

GAP: Final = 2  # cells between two columns
LEAST: Final = 12  # cells of a column that is not shown whole; in fewer nobody reads anything


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        shown: whole, whatever the width; cut at its end; or folded over several lines.
        goes: where there is not enough room, the columns with the least go first; None stays.
    """

    title: str
    shown: Literal["whole", "cut", "folded"] = "whole"
    goes: int | None = None


def fitted(columns: Sequence[Column], longest: Sequence[int], room: int) -> dict[int, int]:
    """Which columns are shown, by their place, and how wide each is.

    All together are wider than `room` only if the columns that stay are: a terminal breaks such a line, and
    copies it as one.

    Args:
        longest: cells that the longest text of each takes, its title included.
        room: cells of a line.
    """
    least = [
        width if column.shown == "whole" else min(width, LEAST)
        for column, width in zip(columns, longest, strict=True)
    ]
    going = sorted(
        (goes, place) for place, column in enumerate(columns) if (goes := column.goes) is not None
    )
    places = list(range(len(columns)))
    for _, place in going:
        if sum(least[p] + GAP for p in places) - GAP <= room:
            break
        places.remove(place)
    widths = {place: least[place] for place in places}
    spare = room - sum(width + GAP for width in widths.values()) + GAP
    wanting = sorted((p for p in places if longest[p] > least[p]), key=lambda p: longest[p])
    for number, place in enumerate(wanting):  # the shortest first: what it does not need is theirs
        more = min(longest[place] - least[place], max(spare, 0) // (len(wanting) - number))
        widths[place] += more
        spare -= more
    return widths
