"""How lists and maps are written in paths, queries, headers and forms. Pure.

The names are those of OpenAPI (https://spec.openapis.org/oas/v3.1.1.html#style-values), and `brackets`, `repeat`,
`comma` and `json` for what APIs do besides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from stackd.core.json import Json, dumps
from stackd.http.values import listed, scalar

Pair = tuple[str, str]

_JOINED: Final = {"comma": ",", "spaceDelimited": " ", "pipeDelimited": "|", "simple": ","}
LONGEST_NAME: Final = 1_000  # characters of a name that nesting has made


def pairs(name: str, value: Json, style: str, *, explode: bool) -> Iterator[Pair]:
    """`name` and `value` as pairs of a query or form. Members that are null are left out."""
    if style == "json" or not isinstance(value, list | dict):
        if value is not None:
            yield name, dumps(value).decode() if style == "json" else scalar(value)
        return
    if style == "brackets":
        yield from _bracketed(name, value)
    elif style == "deepObject" and isinstance(value, dict):
        for key, one in value.items():
            yield from _deep(f"{name}[{key}]", one)
    elif style in ("form", "repeat", "deepObject") and explode:
        if isinstance(value, dict):
            for key, one in value.items():
                yield from ((key, scalar(inner)) for inner in listed(one))
        else:
            yield from ((name, scalar(one)) for one in listed(value))
    else:
        yield name, _JOINED.get(style, ",").join(_flat(value))


def _flat(value: Json) -> list[str]:
    if isinstance(value, dict):
        return [
            text
            for key, one in value.items()
            if one is not None
            for text in (str(key), scalar(one))
        ]
    return [scalar(one) for one in listed(value)]


def _deep(name: str, value: Json) -> Iterator[Pair]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _deep(f"{name}[{key}]"[:LONGEST_NAME], one)
    else:
        yield from ((name, scalar(one)) for one in listed(value))


def _bracketed(name: str, value: Json) -> Iterator[Pair]:
    """`a[b]=1`, `a[]=1` for plain items, `a[0][b]=1` for others: as Stripe and PHP read it."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _bracketed(f"{name}[{key}]"[:LONGEST_NAME], one)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            inner = f"{name}[{index}]" if isinstance(one, dict | list) else f"{name}[]"
            yield from _bracketed(inner[:LONGEST_NAME], one)
    elif value is not None:
        yield name, scalar(value)


def in_path(name: str, value: Json, style: str, *, explode: bool, keep_slashes: bool) -> str:
    """`value` as it stands in a path, percent-encoded (RFC 6570, as OpenAPI has it)."""

    def written(one: Json) -> str:
        return quote(scalar(one), safe="/" if keep_slashes else "")

    if isinstance(value, dict):
        joint = "=" if explode else ","
        flat = [
            f"{written(key)}{joint}{written(one)}" for key, one in value.items() if one is not None
        ]
    else:
        flat = [written(one) for one in listed(value)]
    if style == "label":
        return "." + ("." if explode else ",").join(flat)
    if style == "matrix":
        if isinstance(value, dict) and explode:
            return "".join(f";{one}" for one in flat)
        if explode:
            return "".join(f";{name}={one}" for one in flat)
        return f";{name}={','.join(flat)}"
    return ",".join(flat)


def in_header(value: Json, *, explode: bool) -> str:
    """`value` as a header's: lists joined by a comma."""
    if isinstance(value, dict) and explode:
        return ",".join(f"{key}={scalar(one)}" for key, one in value.items() if one is not None)
    return ",".join(_flat(value)) if isinstance(value, list | dict) else scalar(value)
