"""What code returns, as JSON values; the rules are the origin's, and every refusal names its place."""

from __future__ import annotations

import sys
from typing import Any, Final

MAX_DEPTH: Final = 200
BYTES: Final = "$base64"  # the member that marks bytes


class UnsupportedValueError(TypeError):
    """A value that JSON has no word for."""


def plain(value: Any, place: str = "result", depth: int = 0) -> Any:
    """`value` as JSON has it: None, booleans, numbers, texts, lists and maps.

    Dates and times become ISO 8601, bytes `{"$base64": …}`, patterns and UUIDs texts; what has a method
    `to_json` is what that returns.

    Raises:
        UnsupportedValueError: something else, or NaN, or a key that is no text; names the place.
    """
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    if kind is str:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if value - value != 0:  # infinite, or no number
            raise UnsupportedValueError(f"{place} is {value}, which JSON has no number for")
        return float(value)
    if isinstance(value, str):
        return str(value)
    if depth >= MAX_DEPTH:
        raise UnsupportedValueError(
            f"{place[:200]} is nested deeper than {MAX_DEPTH}, or holds itself"
        )
    if isinstance(value, dict):
        found = {}
        for key, one in value.items():
            if not isinstance(key, str):
                raise UnsupportedValueError(
                    f"{place} has the key {key!r:.80}, which is no text; use str(key)"
                )
            found[key] = plain(one, f"{place}.{key}", depth + 1)
        return found
    if isinstance(value, list | tuple):
        return [plain(one, f"{place}[{at}]", depth + 1) for at, one in enumerate(value)]
    if isinstance(value, bytes | bytearray | memoryview):
        from binascii import b2a_base64

        return {BYTES: b2a_base64(value, newline=False).decode()}
    if _is_a(value, "datetime", "date", "time"):  # a datetime is a date
        return value.isoformat()
    if _is_a(value, "re", "Pattern"):
        return value.pattern if isinstance(value.pattern, str) else value.pattern.decode("latin-1")
    if _is_a(value, "uuid", "UUID") or _is_a(value, "decimal", "Decimal"):
        return str(value)
    made = getattr(value, "to_json", None)
    if callable(made):
        return plain(made(), place, depth + 1)
    hint = "; use a list" if isinstance(value, set | frozenset) else ""
    raise UnsupportedValueError(
        f"Unsupported value type in sandbox payload at {place}: {kind.__name__}{hint}"
    )


def _is_a(value: Any, module: str, *names: str) -> bool:
    """Whether it is of a class of a module, which is not loaded for that: a process begins faster with less."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, tuple(getattr(loaded, name) for name in names))
