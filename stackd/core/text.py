"""Text of the outside: which charsets are decoded, and how it is shown."""

from __future__ import annotations

import re
from codecs import lookup
from typing import Final

# Codecs of Python that are no charset: quadratic ones would hold the loop, others make half surrogates.
_NONE: Final = frozenset(
    {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"}
)

# What a terminal obeys, or orders the text around it by, instead of showing it.
_UNSEEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def plain(text: str) -> str:
    r"""`text` as one line that does nothing to a terminal: control characters read `\x1b`, `\n`, `\u202e`."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def plain_json(text: str) -> str:
    r"""A JSON text, the same value, that does nothing to a terminal; its line ends stay."""
    return _UNSEEN.sub(lambda c: c[0] if c[0] == "\n" else f"\\u{ord(c[0]):04x}", text)


def codec(charset: str | None) -> str | None:
    """The codec for text in `charset`, UTF-8 if it is not named; None if there is none we use."""
    try:
        name = lookup(charset or "utf-8").name
    except (LookupError, ValueError):
        return None
    return None if name.replace("_", "-") in _NONE else name
