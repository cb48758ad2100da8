"""The JSON Schema of a definition and what reads definitions are of one mind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from support.connectors import action

from stackd.integrations.definition import App, Operation
from stackd.integrations.definition_schema import connector_schema

VALIDATOR = jsonschema_rs.Draft202012Validator(connector_schema())
SHIPPED = sorted((Path(__file__).parents[2] / "connectors").glob("*/definition.json"))


def faults(definition: Any) -> list[str]:
    """Where a definition does not fit, as pointers."""
    errors = VALIDATOR.iter_errors(definition)
    return ["/".join(map(str, error.instance_path)) for error in errors]


def app(*actions: Any, **more: Any) -> dict[str, Any]:
    return {"id": "desk", "actions": [*actions], **more}


def test_it_is_a_schema_of_2020_12() -> None:
    jsonschema_rs.meta.validate(connector_schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_what_is_shipped_fits(path: Path) -> None:
    assert faults(json.loads(path.read_bytes())) == []


# As the origin and people write it: each is read, and fits.
SPELLINGS: dict[str, dict[str, Any]] = {
    "a map of actions": {"id": "desk", "actions": {"list": {"endpoint": "/", "method": "get"}}},
    "a kind of auth alone": app(authentication="bearer"),
    "a key below config": app(
        authentication={"type": "api_key", "config": {"type": "header", "name": "X-Key"}}
    ),
    "a key by its long names": app(
        authentication={"type": "api_key", "apiKeyLocation": "query", "apiKeyName": "key"}
    ),
    "several ways in": app(auths={"old": "basic", "new": {"type": "oauth2", "scopes": "a b"}}),
    "limits by period": app(rateLimits={"requestsPerMinute": 60, "burstAllowed": 5}),
    "durations": app(action("a", timeout="30s"), action("b", timeout=30)),
    "one status, and a list": app(action("a", allowStatus=404), action("b", allowStatus=["4xx"])),
    "extensions": app(action("a", **{"x-mine": [1]}), **{"x-mine": {"a": 1}}),
    "outbound domains": app(network={"requiredOutbound": {"domains": ["a.example"]}}),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_what_is_read_fits_however_it_is_spelt(name: str) -> None:
    given = SPELLINGS[name]
    App.model_validate(given)
    listed = given["actions"] if isinstance(given["actions"], list) else []
    for one in listed:
        Operation.model_validate(one)

    assert faults(given) == []


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": (app(baseurl="https://a.example"), ""),
    "an unknown key of an action": (app(action("a", efect="read")), "actions/0"),
    "an effect that is none": (app(action("a", effect="writes")), "actions/0/effect"),
    "an action without an id": (app({"endpoint": "/a", "method": "GET"}), "actions/0"),
    "a text for hosts": (app(hosts="a.example"), "hosts"),
    "paging that is none": (app(action("a", paginate={"type": "pages"})), "actions/0/paginate"),
    "an id that is none": ({"id": "Desk!"}, "id"),
    "no id": ({"name": "Desk"}, ""),
    "a list": ([], ""),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_where_it_stands(name: str) -> None:
    given, place = MISTAKES[name]

    assert faults(given) == [place]
