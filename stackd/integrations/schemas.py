"""Whether values fit a JSON Schema. The library is loaded when the first operation is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

from stackd.core.errors import InputError
from stackd.core.json import Json
from stackd.core.names import nearest
from stackd.core.text import shown

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
MAX_TOLD: Final = 5  # problems

_NUMBERS: Final = {"integer": int, "number": float}


class Schema:
    """The parameters of one operation.

    Args:
        written: a JSON Schema; one that does not say what it is describes a map.
        schemas: what it may refer to as `#/schemas/<name>`.
        fills_only_required: whether defaults stand in for required parameters only, and others stay out.
    """

    def __init__(
        self,
        written: Mapping[str, Any],
        schemas: Mapping[str, Any],
        *,
        fills_only_required: bool = False,
    ) -> None:
        self._written = written
        self._schemas = schemas
        self._fills_only_required = fills_only_required

    @property
    def properties(self) -> Mapping[str, Any]:
        found = self._written.get("properties")
        return found if isinstance(found, dict) else {}

    @property
    def is_ready(self) -> bool:
        """Whether it was asked before: the first time takes its while."""
        return "_validator" in self.__dict__

    @cached_property
    def _validator(self) -> Any:
        import jsonschema_rs  # 20 ms and some MiB

        schema = {key: value for key, value in self._written.items() if key != "$schema"}
        schema = {"$schema": DRAFT, "type": "object", **_listed_required(schema)}
        needed = _reachable(schema, self._schemas)
        if needed:
            schema["schemas"] = needed
        try:
            return jsonschema_rs.validator_for(schema)
        except (ValueError, jsonschema_rs.ReferencingError) as error:
            raise InputError(
                f"its parameters are no JSON Schema: {str(error).splitlines()[0][:200]}",
                code="definition.invalid",
            ) from None

    @cached_property
    def _defaults(self) -> dict[str, Json]:
        required = self._written.get("required")
        needed = required if isinstance(required, list) else []
        return {
            name: schema["default"]
            for name, schema in self.properties.items()
            if isinstance(schema, dict)
            and "default" in schema
            and (name in needed or not self._fills_only_required)
        }

    def fitted(self, params: Mapping[str, Json]) -> dict[str, Json]:
        """`params` with texts that stand for numbers and booleans as these, and what is missing by its default.

        Raises:
            InputError: they do not fit; says what and where.
        """
        values = {name: _as(self.properties.get(name), value) for name, value in params.items()}
        values |= {name: value for name, value in self._defaults.items() if name not in values}
        problems = [self._told(error) for error in self._validator.iter_errors(values)]
        if problems:
            more = f" (and {len(problems) - MAX_TOLD} more)" if len(problems) > MAX_TOLD else ""
            raise InputError("; ".join(problems[:MAX_TOLD]) + more, code="params.invalid")
        return values

    def _told(self, error: Any) -> str:
        """What is wrong, without the value: it may be a secret."""
        place = "".join(
            f"[{part}]" if isinstance(part, int) else f".{shown(str(part))}"
            for part in error.instance_path
        ).removeprefix(".")
        rule = str(error.schema_path[-1]) if error.schema_path else ""
        kind = error.kind
        if rule == "required":
            name = shown(str(getattr(kind, "property", "")))
            return f"{f'{place}.' if place else ''}{name} is missing"
        if rule == "additionalProperties":
            names = [str(one) for one in getattr(kind, "unexpected", [])]
            meant = nearest(names[0], self.properties) if names and not place else None
            hint = f", did you mean {meant}?" if meant else ""
            return (
                f"{f'{place}: ' if place else ''}{', '.join(map(shown, names))} is not known{hint}"
            )
        value = error.schema_path
        return f"{place or 'it'} {_WORDS.get(rule, f'breaks {rule}')}{self._wanted(value)}"

    def _wanted(self, path: list[Any]) -> str:
        """What the schema has at `path`, if that is short."""
        found: Any = self._written
        for part in path:
            try:
                found = found[part]
            except (KeyError, IndexError, TypeError):
                return ""
        if isinstance(found, str | int | float | bool):
            return f" {found}"
        if isinstance(found, list) and all(isinstance(one, str | int | float) for one in found):
            return " " + ", ".join(str(one) for one in found[:12])
        return ""


_WORDS: Final = {
    "type": "must be of type",
    "enum": "must be one of",
    "const": "must be",
    "minimum": "must be at least",
    "maximum": "must be at most",
    "exclusiveMinimum": "must be more than",
    "exclusiveMaximum": "must be less than",
    "minLength": "must have at least this many characters:",
    "maxLength": "must have at most this many characters:",
    "minItems": "must have at least this many items:",
    "maxItems": "must have at most this many items:",
    "pattern": "must match",
    "format": "must be a",
    "anyOf": "fits none of the forms it may have",
    "oneOf": "must fit exactly one of the forms it may have",
    "uniqueItems": "must not hold an item twice",
}


def _as(schema: Any, value: Json) -> Json:
    """`value` as its schema wants it, where nothing is lost by that."""
    if not isinstance(schema, dict):
        return value
    kind = schema.get("type")
    if not isinstance(kind, str):  # of several types: it is one of them, or is refused
        return value
    if isinstance(value, str):
        if kind in _NUMBERS:
            try:
                return _NUMBERS[kind](value) if value.strip() == value else value
            except ValueError:
                return value
        if kind == "boolean" and value in ("true", "false"):
            return value == "true"
    if kind == "string" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def _listed_required(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` without a `required` that is no list, as older drafts have it on members."""
    found = dict(schema)
    if not isinstance(found.get("required", []), list):
        del found["required"]
    members = found.get("properties")
    if isinstance(members, dict):
        found["properties"] = {
            name: {
                key: value
                for key, value in one.items()
                if key != "required" or isinstance(value, list)
            }
            if isinstance(one, dict)
            else one
            for name, one in members.items()
        }
    return found


def _reachable(schema: Json, schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `schemas` that `schema` refers to, and what they refer to."""
    found: dict[str, Any] = {}
    open_values = [schema]
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict):
            reference = value.get("$ref")
            if isinstance(reference, str) and reference.startswith("#/schemas/"):
                name = reference.removeprefix("#/schemas/").split("/")[0]
                name = name.replace("~1", "/").replace("~0", "~")
                if name in schemas and name not in found:
                    found[name] = schemas[name]
                    open_values.append(schemas[name])
            open_values += value.values()
        elif isinstance(value, list):
            open_values += value
    return found
