"""A value as an answer may be, made of its schema: bounded, and the same each time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from stackd.core.json import Json
from stackd.integrations.importer.schemas import Schema
from stackd.integrations.importer.values import cut, listing, mapping, number

MAX_DEPTH: Final = 8
MAX_NODES: Final = 200
MAX_TRIED: Final = 20  # members of an example, each
MAX_REPEATED: Final = 5  # members of a list whose least number is more
LONGEST: Final = 1_000  # characters

_TEXTS: Final = {
    "date-time": "2026-01-01T00:00:00Z", "date": "2026-01-01", "time": "00:00:00Z", "duration": "P1D",
    "uuid": "00000000-0000-4000-8000-000000000000", "email": "ada@example.com",
    "uri": "https://example.com/", "url": "https://example.com/", "hostname": "example.com",
    "ipv4": "192.0.2.1", "ipv6": "2001:db8::1", "byte": "c3RhY2tk", "binary": "", "password": "********",
}  # fmt: skip


def synthesised(schema: Schema, named: dict[str, Schema]) -> Json:
    """A value that is mostly one of `schema`; of branches the first, of what is open nothing."""
    return _Synthesis(named).value(schema, 0)


class _Synthesis:
    def __init__(self, named: dict[str, Schema]) -> None:
        self._named = named
        self._left = MAX_NODES

    def value(self, schema: Any, depth: int) -> Json:
        self._left -= 1
        given = self._resolved(schema)
        for one in _offered(given):
            if self._fits(one, given, 0):
                return _short(one)
        if "x-file" in given:
            return ""
        for name in ("oneOf", "anyOf"):
            if listing(given.get(name)) and not mapping(given.get("properties")):
                return self.value(given[name][0], depth + 1) if depth < MAX_DEPTH else None
        kind = given.get("type")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        if kind is None:
            kind = (
                "object"
                if "properties" in given or "allOf" in given
                else "array"
                if "items" in given
                else None
            )
        match kind:
            case "object":
                return self._map(given, depth)
            case "array":
                return self._list(given, depth)
            case "string":
                return _text(given)
            case "integer":
                return int(_number(given))
            case "number":
                return _number(given)
            case "boolean":
                return True
            case _:
                return None

    def _fits(self, value: Json, schema: Any, depth: int) -> bool:
        """Whether a value that a document offers is of the types and choices it gives, and so are its members."""
        given = self._resolved(schema)
        kinds = listing(given.get("type")) or [given.get("type", "any")]
        choices = listing(given.get("enum"))
        if not any(_is_of(value, kind) for kind in kinds) or (choices and value not in choices):
            return False
        if depth >= MAX_DEPTH:
            return True
        if isinstance(value, list):
            items = given.get("items")
            return all(self._fits(one, items, depth + 1) for one in value[:MAX_TRIED])
        if isinstance(value, dict):
            members, rest = mapping(given.get("properties")), given.get("additionalProperties")
            tried = list(value.items())[:MAX_TRIED]
            return all(self._fits(one, members.get(name, rest), depth + 1) for name, one in tried)
        return True

    def _resolved(self, schema: Any) -> Schema:
        for _ in range(20):
            ref = mapping(schema).get("$ref")
            if not isinstance(ref, str):
                break
            schema = self._named.get(ref.removeprefix("#/schemas/"), {})
        return mapping(schema)

    def _map(self, given: Schema, depth: int) -> Json:
        found: dict[str, Json] = {}
        required = listing(given.get("required"))
        for part in [*listing(given.get("allOf")), given]:
            for name, one in mapping(self._resolved(part).get("properties")).items():
                if (
                    self._left <= 0
                    or (depth >= MAX_DEPTH and name not in required)
                    or depth > 2 * MAX_DEPTH
                ):
                    continue
                found[name] = self.value(one, depth + 1)
        return found

    def _list(self, given: Schema, depth: int) -> Json:
        least = min(max(int(number(given.get("minItems")) or 1), 1), MAX_REPEATED)
        if depth >= MAX_DEPTH or self._left <= 0 or given.get("maxItems") == 0:
            return []
        if first := listing(given.get("prefixItems")):
            return [self.value(one, depth + 1) for one in first[:MAX_REPEATED]]
        if not isinstance(given.get("items"), dict):
            return []
        return [self.value(given["items"], depth + 1) for _ in range(least)]


def _offered(given: Schema) -> Iterator[Json]:
    for name in ("example", "const", "default"):
        if name in given:
            yield given[name]
    for name in ("examples", "enum"):
        yield from listing(given.get(name))[:1]


def _is_of(value: Json, kind: Json) -> bool:
    match value:
        case None:
            return kind in ("null", "any")
        case bool():
            return kind in ("boolean", "any")
        case int():
            return kind in ("integer", "number", "any")
        case float():
            return kind in ("number", "any") or (kind == "integer" and value.is_integer())
        case str():
            return kind in ("string", "any")
        case list():
            return kind in ("array", "any")
        case _:
            return kind in ("object", "any")


def _short(value: Json) -> Json:
    return cut(value, LONGEST) if isinstance(value, str) else value


def _text(given: Schema) -> str:
    found = _TEXTS.get(str(given.get("format")), "text")
    least, most = number(given.get("minLength")) or 0, number(given.get("maxLength"))
    found = found.ljust(int(min(least, LONGEST)), "x")
    return found[: int(most)] if most is not None else found


def _number(given: Schema) -> float:
    low, above = number(given.get("minimum")), number(given.get("exclusiveMinimum"))
    least = [one for one in (low, None if above is None else above + 1) if one is not None]
    if least:
        return max(least)
    high, below = number(given.get("maximum")), number(given.get("exclusiveMaximum"))
    most = [one for one in (high, None if below is None else below - 1) if one is not None]
    return min([1, *most])
