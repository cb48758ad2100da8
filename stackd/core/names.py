"""Which known name a wrong one was meant to be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

ALIKE: Final = 0.6  # of the letters of both names stand in both, in the same order
COMPARED: Final = (
    10_000  # characters of known names, about 2 ms: also who makes long lists gets an answer
)
LONGEST: Final = 100  # characters of the wrong name that count


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, if one is like it; case does not count.

    Of a long list only the beginning is compared, so its order should not change from run to run.
    """
    wrong = name[:LONGEST].lower()
    places: dict[str, int] = {}
    for index, letter in enumerate(wrong):
        places[letter] = places.get(letter, 0) | 1 << index
    best, best_share, room = None, ALIKE, COMPARED
    for one in known:
        room -= len(one)
        if room < 0:
            break
        share = 2 * _in_common(places, len(wrong), one.lower()) / (len(wrong) + len(one) or 1)
        if share > best_share:
            best, best_share = one, share
    return best


def _in_common(places: dict[str, int], size: int, other: str) -> int:
    """The length of the longest common subsequence of two texts; one is given by the places of its letters.

    Bit by bit in whole numbers (Crochemore et al., A fast and practical bit-vector algorithm for the longest
    common subsequence, 2001): a few operations per letter of `other`, whatever the texts are.
    """
    free = (1 << size) - 1
    for letter in other:
        both = free & places.get(letter, 0)
        free = (free + both) | (free - both)
    return size - (free & ((1 << size) - 1)).bit_count()
