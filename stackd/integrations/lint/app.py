"""What the app itself has to say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from stackd.core.errors import ExpressionError
from stackd.integrations.expressions import parsed, template
from stackd.integrations.lint.level import Definition
from stackd.workflows.findings import Remarks
from stackd.workflows.source import Place

ABOUT: Final = ("name", "description", "category", "version", "docs")
SECRET: Final = re.compile(
    r"(secret|token|password|passwd|passphrase|api_?key|private_?key)$", re.I
)
# What is no expression, whatever it looks like.
_PLAIN: Final = frozenset({"parameters", "sample", "description", "outputSchema", "graphql"})
_EXPRESSIONS: Final = frozenset({"when", "select", "hasMore", "stop", "path", "items"})


def check(definition: Definition, remarks: Remarks) -> None:
    raw = definition.raw
    for key in ABOUT:
        if not raw.get(key) and not (key == "category" and raw.get("categories")):
            remarks.error("connector.about", f"{key} is missing", (key,))
    _check_ways_in(definition, remarks)
    _check_fields(raw, remarks)
    _check_test(definition, remarks)
    for place, problem in bad_expressions(raw, ()):
        remarks.error("operation.expression", problem, place)


def _check_ways_in(definition: Definition, remarks: Remarks) -> None:
    """A way in that is known and not supported is read, so that the rest of a definition can be used."""
    for name, way in (definition.app.ways_in if definition.app else {}).items():
        if way.unsupported is not None:
            place = (
                ("auths", name) if definition.app and definition.app.auths else ("authentication",)
            )
            words = f"signing in by {way.unsupported} is not supported: generic HTTP asks for nothing that way"
            remarks.error("connector.invalid", words, place)


def _check_fields(raw: dict[str, Any], remarks: Remarks) -> None:
    connection = raw.get("connection")
    fields = connection.get("fields") if isinstance(connection, dict) else None
    members = fields.get("properties") if isinstance(fields, dict) else None
    members = members if isinstance(members, dict) else {}
    for name, one in members.items():
        if SECRET.search(name) and not (isinstance(one, dict) and one.get("x-secret") is True):
            place = ("connection", "fields", "properties", name)
            words = f"{name} looks like a secret, and is not marked as one"
            remarks.error("connection.secret", words, place, hint='"x-secret": true')
    has_field, may = "baseUrl" in members, raw.get("privateNetwork") is True
    if has_field != may:
        words = (
            "who may give the address may be in a network of their own: privateNetwork must be true"
            if has_field
            else "privateNetwork is of apps whose address is a field: connection.fields has no baseUrl"
        )
        remarks.error("connection.address", words, ("privateNetwork",))


def _check_test(definition: Definition, remarks: Remarks) -> None:
    app = definition.app
    if app is None:
        return
    test = app.test_connection
    has_http = any(one.endpoint for one in definition.actions)
    if test is None and has_http:
        words = "no testConnection: nobody can try a credential"
        remarks.error("connection.test", words, ("testConnection",))
    elif test is not None and test.method not in ("GET", "HEAD", "POST"):
        remarks.error("connection.test", f"{test.method} is no read", ("testConnection", "method"))


def bad_expressions(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    """Every text of a definition that is to be an expression or holds one, and cannot be read."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in _PLAIN:
                yield from bad_expressions(inner, (*place, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from bad_expressions(inner, (*place, index))
    elif isinstance(value, str):
        key = next((one for one in reversed(place) if isinstance(one, str)), "")
        try:
            if "{{" in value:
                template(value)
            elif key in _EXPRESSIONS and "endpoint" not in place:
                parsed(value)
        except ExpressionError as error:
            yield place, error.message
