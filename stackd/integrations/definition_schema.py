"""The JSON Schemas of what people write: of a definition, made from the models that read it, and of a workflow.

A definition that lint has nothing against fits its schema, unless it has numbers or booleans as texts, which are read
too. Lint also looks at what a schema cannot say.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from stackd.core.errors import NotFoundError
from stackd.core.text import shown
from stackd.integrations import spellings
from stackd.integrations.definition import App, Operation, Trigger
from stackd.workflows.schema import Schema, workflow_schema

# Keys by which the same may be written otherwise, by the part that they are read in.
_OTHERWISE: Final = {
    "Auth": (*spellings.AUTH_KEYS, *spellings.AUTH_KEYS_TAKEN_APART),
    "Action": spellings.OPERATION_KEYS,
    "Trigger": spellings.OPERATION_KEYS,
    "": spellings.APP_KEYS,
}
# What a map may be that the models take only in one shape, and read in others too.
_LOOSE: Final = {("", "network"), ("Auth", "scopes"), ("Auth", "pkce"), ("Auth", "type")}
_AUTH: Final[Schema] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Auth"}]}


@cache
def connector_schema() -> Schema:
    """The JSON Schema of `definition.json` (draft 2020-12). Shared: not to be changed."""
    parts: Schema = {}
    found: Schema = {}
    for name, model in (("", App), ("Action", Operation), ("Trigger", Trigger)):
        made = model.model_json_schema(by_alias=True)
        parts |= made.pop("$defs", {})
        if name:
            made.pop("required", None)  # in a map the key is the id
            parts[name] = made
        else:
            found = made
    for name, part in [*parts.items(), ("", found)]:
        _close(name, part)
    found["properties"] |= {
        "authentication": _AUTH,
        "auths": {"type": "object", "additionalProperties": _AUTH},
        "actions": _operations("Action"),
        "triggers": _operations("Trigger"),
    }
    parts["Auth"]["properties"]["parts"]["items"] = _AUTH
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:stackd:schema:connector",
        "title": "stackd connector",
        **{key: value for key, value in found.items() if key not in ("title", "description")},
        "description": "A connector of stackd: how it signs in, its operations and what they take.",
        "$defs": parts,
    }


def _close(name: str, part: Schema) -> None:
    """Let a part have no keys but those that are read, and `x-…`."""
    if "properties" not in part:
        return
    known = {key: _plain(value) for key, value in part["properties"].items()}
    known |= {key: {} for (of, key) in _LOOSE if of == name and key in known}
    known |= {key: {} for key in _OTHERWISE.get(name, ()) if key not in known}
    part |= {"properties": known, "patternProperties": {"^x-": True}, "additionalProperties": False}
    part.pop("title", None)


def _plain(value: Schema) -> Schema:
    """`value` without the names that pydantic makes up, and defaults that say nothing."""
    return {k: v for k, v in value.items() if k not in ("title", "default")}


def _operations(name: str) -> Schema:
    one = {"$ref": f"#/$defs/{name}"}
    return {  # each of the two keywords is about its own type alone
        "type": ["array", "object"],
        "items": {**one, "required": ["id"]},
        "additionalProperties": one,
    }


SCHEMAS: Final = {"workflow": workflow_schema, "connector": connector_schema}


def schema_named(name: str) -> dict[str, Any]:
    """The schema of that name, or NotFoundError."""
    if name not in SCHEMAS:
        raise NotFoundError(
            f"no schema {shown(name)!r}",
            code="schema.not_found",
            hint=f"there is: {', '.join(SCHEMAS)}",
        )
    return SCHEMAS[name]()
