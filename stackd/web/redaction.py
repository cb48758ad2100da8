"""What of stored texts is not shown: headers and query parameters that carry secrets, and links of node runs.

For a thread, if the text is large: it is looked through in steps, and each map in it read by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Final

from stackd.core.json import Json, dumps
from stackd.core.large_json import PIECE, container_end, past_blanks
from stackd.core.secret_names import is_secret

SHOWN: Final = "(redacted)"
LARGEST_MAP = 64 * 1024  # bytes; of a larger one nothing is shown
PART = 256 * 1024  # bytes given back in one, at least

_FIRST_LOOK: Final = 1024  # bytes; most maps of headers are no larger


def _letter(letter: str) -> str:
    r"""A pattern for `letter` as JSON may hold it: `a`, `A`, `\u0061` or `\u0041`."""
    small, large = ord(letter), ord(letter.upper())
    return f"(?:{letter}|{letter.upper()}|\\\\u00(?:{small:x}|{large:x}))"


_NAMES: Final = ("headers", "query")
# Behind a backslash a quote opens no name: it stands in a text, or ends one.
_NAME: Final = re.compile(
    ('(?<!\\\\)"(?:' + "|".join("".join(map(_letter, name)) for name in _NAMES) + ')"').encode()
)
_LONGEST_NAME: Final = len('"headers"') + len("headers") * len("u0061")
# As `runtime/links.py` makes them, and as others write them down: in JSON of Go, in HTML, in another URL.
_LINK: Final = re.compile(rb"resume(?:\?|%3[Ff])[^\s\"<>]{1,1000}")
_PROOF: Final = re.compile(rb"(token|signature)(=|%3[Dd])[\w-]{43}")
_DECODER: Final = json.JSONDecoder()
_NEST: Final = (dict, list)


def without_secrets(text: bytes, *, piece: int = PIECE) -> list[bytes]:
    """`text`, which is JSON, with secrets replaced; in parts, which are JSON together.

    Secrets are, in each map that is the value of a key `headers` or `query`, the values whose names
    `is_secret`. A map that holds some is written anew, and one that is too large is replaced as a whole. Of a link
    that ends the wait of a node run, what makes it good is replaced. Everything else stays as it is.
    """
    if b"resume?" in text or b"resume%3" in text:
        text = _LINK.sub(_without_proof, text)
    hidden = _hidden(text, piece)
    first = next(hidden, None)
    if first is None:
        return [text]
    parts: list[bytes] = []
    some: list[bytes] = []
    size = 0
    for each in _replaced(text, chain([first], hidden)):
        some.append(each)
        size += len(each)
        if size >= PART:
            parts.append(b"".join(some))
            some, size = [], 0
    return [*parts, b"".join(some)]


def _without_proof(link: re.Match[bytes]) -> bytes:
    return _PROOF.sub(rb"\1\2" + SHOWN.encode(), link[0])


_Replacement = tuple[int, int, bytes]  # start and end in the text, and what is shown instead


def _replaced(text: bytes, replacements: Iterator[_Replacement]) -> Iterator[bytes]:
    """All of `text`, with them, in pieces of at most `PART`."""
    done = 0
    for start, end, instead in chain(replacements, [(len(text), len(text), b"")]):
        for at in range(done, start, PART):
            yield text[at : min(at + PART, start)]
        yield instead
        done = end


def _hidden(text: bytes, piece: int) -> Iterator[_Replacement]:
    """The maps that are not shown as they are, in the order they stand in."""
    at = 0
    while (start := _value_of_next_name(text, at, piece)) >= 0:
        at = start
        if text[start : start + 1] != b"{":
            continue
        read = _map_at(text, start)
        if read is None:
            end = container_end(text, start)
            at = end if end >= 0 else len(text)
            yield start, at, dumps(SHOWN)
        else:
            value, at = read
            if _hide(value):
                yield start, at, dumps(value)


def _value_of_next_name(text: bytes, at: int, piece: int) -> int:
    """Where the value begins that follows the next `headers` or `query`, if that is a key; -1 at the end."""
    while at < len(text):
        name = _NAME.search(text, at, at + piece + _LONGEST_NAME)
        if name is None:
            at += piece
            continue
        at = past_blanks(text, name.end())
        if text[at : at + 1] == b":":
            return past_blanks(text, at + 1)
    return -1


def _map_at(text: bytes, start: int) -> tuple[dict[str, Json], int] | None:
    """The map that begins at `start`, and where it ends; None if it is too large to be read."""
    size = _FIRST_LOOK
    while size <= LARGEST_MAP:
        window = text[start : start + size].decode(errors="replace")
        try:
            value, end = _DECODER.raw_decode(window)
        except RecursionError:  # deeper than any JSON we take in
            return None
        except ValueError:  # it goes on
            size *= 4
        else:
            return value, start + (end if window.isascii() else len(window[:end].encode()))
    return None


def _hide(headers: dict[str, Json]) -> bool:
    """Whether anything was to be hidden in such a map, or in one inside it; afterwards, it is."""
    found = False
    open_values: list[tuple[Json, bool]] = [(headers, True)]
    while open_values:
        value, has_secrets = open_values.pop()
        if isinstance(value, list):
            open_values += [(inner, False) for inner in value if inner and isinstance(inner, _NEST)]
            continue
        for name, inner in value.items():
            if has_secrets and is_secret(name):
                value[name] = SHOWN
                found = True
            elif inner and isinstance(inner, _NEST):
                open_values.append((inner, isinstance(inner, dict) and name.lower() in _NAMES))
    return found
