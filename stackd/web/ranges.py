"""Which bytes a `Range` header asks for (RFC 9110 §14.1 and §14.2)."""

from __future__ import annotations

import re
from typing import Final

_SET: Final = re.compile(r"bytes=([0-9,-].*)", re.IGNORECASE)
_SPEC: Final = re.compile(r"([0-9]*)-([0-9]*)")
_LONGEST: Final = 18  # digits of a number; one with more is behind any end


def part_asked(header: str, size: int) -> range | None:
    """The bytes of `size` that `header` asks for: none, if it asks for such as are not there.

    None if the header is to be passed over, so that all are sent: of another unit, of what is no range, and of
    several parts, which no answer of ours has. Of nothing no part can be named: it is always sent whole.
    """
    found = _SET.fullmatch(header)
    if found is None or not size:
        return None
    specs = [spec.strip(" \t") for spec in found[1].split(",")]
    parts = [_part(spec, size) for spec in specs if spec]
    there = [part for part in parts if part]
    if not parts or None in parts or len(there) > 1:
        return None
    return there[0] if there else range(0)


def _part(spec: str, size: int) -> range | None:
    """The bytes of one range; None if it is none, and then the whole header is not."""
    found = _SPEC.fullmatch(spec)
    if found is None or spec == "-":
        return None
    first, last = (_number(digits) if digits else None for digits in found.groups())
    if first is None:
        return range(max(size - (last or 0), 0), size)
    if last is not None and last < first:
        return None
    return range(first, size if last is None else min(last + 1, size))


def _number(digits: str) -> int:
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= _LONGEST else 10**_LONGEST
