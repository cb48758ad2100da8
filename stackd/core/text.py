"""Text of the outside: which charsets are decoded, how a long one is, and how it is shown."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder, lookup
from encodings import normalize_encoding
from encodings.aliases import aliases
from typing import Final
from urllib.parse import quote

LONGEST_SHOWN: Final = 80  # characters of what somebody wrote that are shown in a message

_STEP: Final = 64 * 1024  # bytes; some charsets take a millisecond for so many

_LONGEST_NAME: Final = 50  # characters of a charset's name that are looked at
# Python keeps every name it is asked for, known or not, for as long as it runs.
_KNOWN: Final = frozenset(aliases) | {*aliases.values(), "utf_8_sig", "koi8_t", "koi8_u", "cp874"}

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


def shown(text: str) -> str:
    """What somebody wrote, as far as it belongs in a message."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"


def codec(charset: str | None) -> str | None:
    """The codec for text in `charset`, UTF-8 if it is not named; None if there is none we use."""
    name = normalize_encoding(charset[:_LONGEST_NAME]).lower() if charset else "utf_8"
    if name not in _KNOWN:
        return None
    try:
        found = lookup(name)
    except LookupError:  # another system's
        return None
    is_text = found._is_text_encoding  # noqa: SLF001  # zlib and its like are codecs too
    return found.name if is_text and found.name.replace("_", "-") not in _NONE else None


def decoded(content: bytes | bytearray, name: str, *, errors: str = "strict") -> str:
    """`content` in the codec `name`, step by step: on a thread, others have their turn.

    Raises:
        UnicodeError: it is not in that charset.
    """
    if len(content) <= _STEP:
        return content.decode(name, errors)
    decoder = getincrementaldecoder(name)(errors)
    parts = [
        decoder.decode(content[start : start + _STEP]) for start in range(0, len(content), _STEP)
    ]
    return "".join([*parts, decoder.decode(b"", True)])  # noqa: FBT003  # the codec API


def segment(text: str) -> str:
    """`text` as one part of a URL's path, whatever is in it; bytes that are no UTF-8 as a shell hands them on."""
    return quote(text, safe="", errors="surrogateescape")
