"""Ids that sort by the time they were made."""

from __future__ import annotations

import secrets

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_RANDOM_BITS = 80


def sortable_id(at: float) -> str:
    """26 characters: milliseconds of `at` (48 bits), then 80 random bits, in lower-case base 32."""
    value = (int(at * 1000) << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
    return "".join(ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))
