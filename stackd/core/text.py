"""Which charsets of the outside are decoded."""

from __future__ import annotations

from codecs import lookup
from typing import Final

# Codecs of Python that are no charset: quadratic ones would hold the loop, others make half surrogates.
_NONE: Final = frozenset(
    {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"}
)


def codec(charset: str | None) -> str | None:
    """The codec for text in `charset`, UTF-8 if it is not named; None if there is none we use."""
    try:
        name = lookup(charset or "utf-8").name
    except (LookupError, ValueError):
        return None
    return None if name.replace("_", "-") in _NONE else name
