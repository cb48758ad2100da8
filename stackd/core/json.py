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

_LONG_DIGITS = re.compile(rb"[0-9]{19}")


def dumps(value: Json) -> bytes:
    """`value` as compact UTF-8 JSON. Raises TypeError for what is not JSON, NaN and infinities included."""
    try:
        text = orjson.dumps(value)
    except TypeError:  # integers beyond 64 bits, lone surrogates, or truly not JSON
        try:
            return json.dumps(
                value, ensure_ascii=False, separators=(",", ":"), allow_nan=False
            ).encode()
        except (ValueError, RecursionError) as error:
            raise TypeError(str(error)) from None
    if b"null" in text and _has_nonfinite(value):  # orjson writes them as null
        raise TypeError("JSON has no NaN and no infinity")
    return text


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
        InputError: not UTF-8, malformed, nested too deep, NaN or Infinity, a number too large to hold, or a
            duplicate key. The message names the place.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not valid UTF-8 at byte {error.start}", code="json.encoding") from None
    try:
        return json.loads(
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
        raise InputError("JSON is nested too deep", code="json.depth") from None
    except ValueError as error:  # an integer of more digits than Python converts (4300)
        raise InputError(
            f"JSON holds a number that cannot be read: {error}", code="json.number"
        ) from None


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
