"""Finds where a JSON text from outside breaks one of our rules: the reader says that it does, but not where."""

from __future__ import annotations

import json
import re
from typing import Final

Bytes = bytes | bytearray

_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}:]|[^\s\[\]{}:,"]++', re.DOTALL)
_NUMBER: Final = re.compile(rb"-?\d++(?P<rest>\.\d++)?(?P<power>[eE][-+]?\d++)?")
_CONSTANTS: Final = (b"NaN", b"Infinity", b"-Infinity")
_MOST_DIGITS: Final = 4300  # of an integer: Python reads no longer one


def place(text: Bytes, code: str, *, max_depth: int) -> tuple[int, int] | None:
    """Line and column, from 1, of the first fault in `text` that the error `code` is about; None: not found.

    It takes its time: for texts of some 10 KiB.
    """
    at = _position(text, code, max_depth)
    if at is None:
        return None
    before = text[:at].decode(errors="replace")
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _position(text: Bytes, code: str, max_depth: int) -> int | None:
    keys: list[set[str] | None] = []  # of the open maps; None for a list
    last = re.match(b"", text)
    for token in _TOKEN.finditer(text):
        word = token[0]
        if word in (b"[", b"{"):
            keys.append(set() if word == b"{" else None)
            if code == "json.depth" and len(keys) > max_depth:
                return token.start()
        elif word in (b"]", b"}"):
            if keys:
                keys.pop()
        elif word == b":":
            if code == "json.duplicate_key" and last is not None and _is_repeated(last[0], keys):
                return last.start()
        elif code in _FAULTS and _FAULTS[code](word):
            return token.start()
        last = token
    return None


def _is_repeated(key: bytes, keys: list[set[str] | None]) -> bool:
    known = keys[-1] if keys else None
    if known is None or not key.startswith(b'"'):
        return False
    name = json.loads(key)
    is_repeated = name in known
    known.add(name)
    return is_repeated


def _is_beyond(word: bytes) -> bool:
    """Whether it is a number that cannot be held."""
    number = _NUMBER.fullmatch(word)
    if number is None:
        return False
    if number["rest"] is None and number["power"] is None:
        return len(word.lstrip(b"-")) > _MOST_DIGITS
    return float(word) in (float("inf"), float("-inf"))


def _is_half(word: bytes) -> bool:
    r"""Whether it is a text with half a character: `\ud800` without its other half."""
    if not (word.startswith(b'"') and b"\\u" in word):
        return False
    return any("\ud800" <= letter <= "\udfff" for letter in json.loads(word))


_FAULTS: Final = {
    "json.constant": lambda word: word in _CONSTANTS,
    "json.number": _is_beyond,
    "json.text": _is_half,
}
