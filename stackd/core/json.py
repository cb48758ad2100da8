"""JSON in and out: exact integers, no duplicate keys from outside, no NaN.

orjson is used wherever it is exact. It reads integers beyond 64 bits as floats and cannot write them, so
texts that hold one take the standard library's slower, exact path.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from typing import Any

import orjson

from stackd.core.errors import InputError
from stackd.core.json_fault import place
from stackd.core.text import shown

Json = Any  # None | bool | int | float | str | list[Json] | dict[str, Json]

LARGE = 64 * 1024  # bytes; a larger text is read aside, piece by piece, or others wait for it
MAX_DEPTH = (
    500  # of lists and maps in each other; reading recurses, at whatever depth the reader stands
)

SHALLOW = 32  # levels that nearly all JSON keeps to
_NO_BRACKETS = bytes(one for one in range(256) if one not in b"[]{}")
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")  # perhaps: whole pairs look so too
_NESTING = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[{\]}]', re.DOTALL)


def dumps(value: Json) -> bytes:
    """`value` as compact UTF-8 JSON. Raises TypeError for what is not JSON, NaN and infinities included."""
    try:
        text = orjson.dumps(value)
    except TypeError:  # integers beyond 64 bits, too deep, lone surrogates, or truly not JSON
        if isinstance(value, dict | list | tuple) and _is_too_deep(value):
            raise TypeError(f"nested deeper than {MAX_DEPTH} levels") from None
        try:
            return json.dumps(
                value, ensure_ascii=False, separators=(",", ":"), allow_nan=False
            ).encode()
        except ValueError as error:
            raise TypeError(str(error)) from None
    if b"null" in text and _has_nonfinite(value):  # orjson writes them as null
        raise TypeError("JSON has no NaN and no infinity")
    return text


def _is_too_deep(value: Json) -> bool:
    level = [value]  # the lists and maps so deep in each other
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list | tuple)
        ]
        if not level:
            return False
    return True


def _has_nonfinite(value: Json) -> bool:
    open_values = [value]
    while open_values:
        one = open_values.pop()
        if isinstance(one, float) and not math.isfinite(one):
            return True
        if isinstance(one, dict):
            open_values += one.values()
        elif isinstance(one, list | tuple):
            open_values += one
    return False


def loads(data: bytes | bytearray | str) -> Json:
    """Read JSON that stackd wrote itself, or has checked."""
    raw = data.encode() if isinstance(data, str) else data
    return json.loads(raw) if has_long_number(raw) else orjson.loads(raw)


def has_long_number(data: bytes | bytearray) -> bool:
    """Whether there may be an integer in `data` that orjson reads as a float: 19 digits in a row."""
    return b"0000000000000000000" in data.translate(_ZEROS)


def loads_strict(data: bytes | bytearray) -> Json:
    """Read JSON from outside.

    Raises:
        InputError: not UTF-8, malformed, nested deeper than `MAX_DEPTH`, NaN or Infinity, a number too large
            to hold, half a surrogate pair, or a duplicate key. The message names the place: in a text over
            `LARGE` only that of what is no JSON at all.
    """
    try:
        many = data.count(b"[") + data.count(b"{") > MAX_DEPTH
        # What is large would be taken apart into as many pieces as it has texts, all at once.
        is_shallow = many and len(data) <= LARGE and _is_shallow(data)
        if many and not is_shallow and _depth(data) > MAX_DEPTH:
            raise too_deep()
        # What comes out as it went in has each key once and each number exact. The exact path knows what is
        # wrong, and where.
        with contextlib.suppress(TypeError, ValueError):
            value = orjson.loads(data)
            written = orjson.dumps(value)
            if written == data or _closed_up(written) == _closed_up(data):
                return value
        return parse_strict(data)
    except InputError as error:
        _tell_place(error, data)
        raise
    except UnicodeDecodeError as error:
        raise not_utf8(error.start) from None
    except json.JSONDecodeError as error:
        raise malformed(error.lineno, error.colno, error.msg) from None


def _closed_up(data: bytes | bytearray) -> bytes | bytearray:
    """`data` without the spaces that many writers put behind commas and colons, in its texts too.

    Texts that differ in no more than spaces have the same members and numbers.
    """
    return data.replace(b'": ', b'":').replace(b", ", b",")


def parse_strict(data: bytes | bytearray) -> Json:
    """As `loads_strict`, but for depth; what is no JSON at all is left to the caller, who knows the place.

    Raises:
        UnicodeDecodeError, JSONDecodeError: with the place inside `data`.
        InputError: it is JSON, but breaks one of our rules.
    """
    text = data.decode("utf-8")
    try:
        value = _STRICT.decode(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise too_deep() from None
    except ValueError as error:  # an integer of more digits than Python converts (4300)
        raise InputError(
            f"JSON holds a number that cannot be read: {error}", code="json.number"
        ) from None
    if _HALF_PAIR.search(data):
        _refuse_half_pairs(value)
    return value


def _tell_place(error: InputError, data: bytes | bytearray) -> None:
    at = place(data, error.code, max_depth=MAX_DEPTH) if len(data) <= LARGE else None
    if at is not None:
        error.message += f" (line {at[0]}, column {at[1]})"


def not_utf8(at: int) -> InputError:
    return InputError(f"not valid UTF-8 at byte {at}", code="json.encoding")


def malformed(line: int, column: int, why: str) -> InputError:
    return InputError(
        f"not valid JSON at line {line}, column {column}: {why.lower()}", code="json.malformed"
    )


def too_deep() -> InputError:
    return InputError(f"JSON is nested deeper than {MAX_DEPTH} levels", code="json.depth")


def duplicate_key(key: str) -> InputError:
    return InputError(f"duplicate JSON key {shown(key)!r}", code="json.duplicate_key")


def _is_shallow(data: bytes | bytearray) -> bool:
    """Whether `data` is surely nested no deeper than `SHALLOW`: in time that hardly depends on how much it holds.

    Outside of texts, only brackets are kept, and pairs with nothing between them taken out again and again: each
    time that takes two levels at the most.
    """
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = b"".join(data.split(b'"')[::2]).translate(None, _NO_BRACKETS)
    for _ in range(SHALLOW // 2):
        if not marks:
            return True
        marks = marks.replace(b"{}", b"").replace(b"[]", b"")
    return not marks


def _depth(data: bytes | bytearray) -> int:
    """How many lists and maps stand in each other in `data`, at most."""
    depth = deepest = 0
    for mark in _NESTING.finditer(data):
        if mark[0] in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif mark[0] in (b"]", b"}"):
            depth -= 1
    return deepest


def _no_duplicates(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise duplicate_key(key)
            seen.add(key)
    return result


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise InputError(f"JSON number {text[:40]} is too large to hold", code="json.number")
    return number


def _no_constant(name: str) -> Json:
    raise InputError(f"JSON has no {name}", code="json.constant")


def _refuse_half_pairs(value: Json) -> None:
    try:
        dumps(value)
    except TypeError:
        raise InputError(
            "JSON text holds half a character (a surrogate without its pair)", code="json.text"
        ) from None


_STRICT = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite
)
