"""JSON in and out: exact integers, no duplicate keys from outside, no NaN.

orjson is used wherever it is exact. It reads integers beyond 64 bits as floats and cannot write them, so
texts that hold one take the standard library's slower, exact path.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

from stackd.core.errors import InputError

Json = Any  # None | bool | int | float | str | list[Json] | dict[str, Json]

LARGE = 64 * 1024  # bytes; a larger text is read on a thread, or others wait for it

MAX_DEPTH = (
    500  # of lists and maps in each other; reading recurses, at whatever depth the reader stands
)

_LONG_DIGITS = re.compile(rb"[0-9]{19}")


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


def loads(data: bytes | str) -> Json:
    """Read JSON that stackd wrote itself."""
    raw = data.encode() if isinstance(data, str) else data
    return json.loads(raw) if _LONG_DIGITS.search(raw) else orjson.loads(raw)


def loads_strict(data: bytes) -> Json:
    """Read JSON from outside.

    Raises:
        InputError: not UTF-8, malformed, nested deeper than MAX_DEPTH, NaN or Infinity, a number too large to
            hold, or a duplicate key. The message names the place.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not valid UTF-8 at byte {error.start}", code="json.encoding") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
            # On a thread, each call back into Python lets the loop have its turn.
            parse_int=_whole if len(text) > LARGE else None,
        )
    except json.JSONDecodeError as error:
        raise InputError(
            f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg.lower()}",
            code="json.malformed",
        ) from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # an integer of more digits than Python converts (4300)
        raise InputError(
            f"JSON holds a number that cannot be read: {error}", code="json.number"
        ) from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_too_deep(value):
        raise _too_deep()
    return value


def _too_deep() -> InputError:
    return InputError(f"JSON is nested deeper than {MAX_DEPTH} levels", code="json.depth")


def _no_duplicates(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InputError(f"duplicate JSON key {key!r}", code="json.duplicate_key")
            seen.add(key)
    return result


def _whole(text: str) -> int:
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise InputError(f"JSON number {text[:40]} is too large to hold", code="json.number")
    return number


def _no_constant(name: str) -> Json:
    raise InputError(f"JSON has no {name}", code="json.constant")
