"""The shipped connectors are whole, and the registry tells of them what is so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from stackd.core.apps import normal_operation
from stackd.integrations import backfill
from stackd.integrations.catalogue import read_catalogue
from stackd.integrations.definition import App, Operation, Trigger
from stackd.integrations.expressions import parsed, template
from stackd.integrations.plan import Plan
from stackd.integrations.registry import Availability, Options, Registry

CONNECTORS = Path(__file__).parents[2] / "connectors"
CATALOGUE = read_catalogue([CONNECTORS])
SHIPPED = [one.id for one in CATALOGUE.connectors]
RAW = {name: json.loads((CONNECTORS / name / "definition.json").read_text()) for name in SHIPPED}
OPERATIONS = [
    pytest.param(name, kind, one, id=f"{name}.{one['id']}")
    for name in SHIPPED
    for kind in ("actions", "triggers")
    for one in RAW[name][kind]
]
ACTIONS = [one for one in OPERATIONS if one.values[1] == "actions"]
TRIGGERS = [one for one in OPERATIONS if one.values[1] == "triggers"]

PLACE = re.compile(r"\{([^{}]+)\}")
SECRET = re.compile(
    r"xox[abp]-\w|gh[pousr]_\w{8}|github_pat_|glpat-\w|sk_(live|test)_\w|rk_live|sk-[A-Za-z0-9]{8}"
    r"|AKIA[A-Z0-9]{8}|whsec_\w|ntn_\w|secret_\w{16}|tk_[a-z0-9]{12}|-----BEGIN|eyJ[A-Za-z0-9_-]{12}"
)


def test_the_catalogue_is_read_without_a_fault():
    assert len(SHIPPED) >= 16
    assert CATALOGUE.problems == ()
    assert {one.id: one.problems for one in CATALOGUE.connectors if one.problems} == {}
    assert {
        one.id: one.handlers.problem for one in CATALOGUE.connectors if one.handlers.problem
    } == {}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_definition_has_no_key_that_nobody_reads(name: str):
    app = {k: v for k, v in RAW[name].items() if k not in ("actions", "triggers")}

    App.model_validate(app, extra="forbid")
    for one in RAW[name]["actions"]:
        Operation.model_validate(one, extra="forbid")
    for one in RAW[name]["triggers"]:
        Trigger.model_validate(one, extra="forbid")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_definition_is_written_as_definitions_are(name: str):
    text = (CONNECTORS / name / "definition.json").read_bytes()

    assert text == backfill.written(json.loads(text))
    assert RAW[name]["id"] == name


@pytest.mark.parametrize("name", SHIPPED)
def test_an_app_says_what_it_is_and_how_it_is_tried(name: str):
    app = RAW[name]

    assert all(app[key] for key in ("name", "description", "category", "version", "docs"))
    assert ("authentication" in app) != ("auths" in app)
    assert app["connection"]["fields"]["type"] == "object"
    assert "testConnection" in app or not any("endpoint" in one for one in app["actions"])


@pytest.mark.parametrize("name", SHIPPED)
def test_whoever_has_a_field_for_an_address_may_be_in_a_network_of_ones_own(name: str):
    app = RAW[name]

    has_field = "baseUrl" in app["connection"]["fields"].get("properties", {})
    assert app.get("privateNetwork", False) is has_field


def test_nothing_is_left_for_backfill():
    assert backfill.patches(CONNECTORS, backfill.both) == []


@pytest.mark.parametrize(("name", "kind", "one"), OPERATIONS)
def test_an_operation_is_whole(name: str, kind: str, one: dict[str, Any]):
    assert re.fullmatch(r"[a-z][a-z0-9_]*", one["id"])
    assert one["title"]
    assert one["description"].endswith(".")
    assert one["parameters"]["additionalProperties"] is False
    assert set(one["parameters"].get("required", [])) <= set(one["parameters"]["properties"])
    assert [k for k, v in one["parameters"]["properties"].items() if "description" not in v] == []
    assert one["fallback"] is None
    assert one["outputSchema"]["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize(("name", "kind", "one"), OPERATIONS)
def test_a_sample_fits_its_schema(name: str, kind: str, one: dict[str, Any]):
    validator = jsonschema_rs.validator_for(one["outputSchema"])

    assert [error.message for error in validator.iter_errors(one["sample"])] == []


@pytest.mark.parametrize(("name", "kind", "one"), OPERATIONS)
def test_every_placeholder_has_a_parameter_and_every_path_parameter_a_placeholder(
    name: str, kind: str, one: dict[str, Any]
):
    # `{{ … }}` is an expression, not a placeholder.
    places = {
        normal_operation(found)
        for found in PLACE.findall(re.sub(r"\{\{.*?\}\}", "", one.get("endpoint", "")))
    }
    members = one["parameters"]["properties"]

    names = {normal_operation(member.get("x-as", key)) for key, member in members.items()}
    in_path = {
        normal_operation(member.get("x-as", key))
        for key, member in members.items()
        if member.get("x-in") == "path"
    }
    assert places <= names
    assert in_path <= places


@pytest.mark.parametrize(("name", "kind", "one"), ACTIONS)
def test_an_action_says_its_effect_and_what_runs_it(name: str, kind: str, one: dict[str, Any]):
    connector = CATALOGUE.find(name)
    assert connector is not None
    has_handler = normal_operation(one["id"]) in connector.handlers.by_name

    assert one["effect"] in ("read", "idempotent", "keyed", "unsafe")
    assert ("endpoint" in one) is ("method" in one)
    assert one["runtimes"] == ["python"] * has_handler + ["http"] * ("endpoint" in one)
    assert (
        one["effect"] != "keyed"
        or "idempotency" in one
        or "idempotency" in RAW[name].get("defaults", {})
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_every_handler_is_of_an_action(name: str):
    connector = CATALOGUE.find(name)
    assert connector is not None

    assert set(connector.handlers.by_name) <= set(connector.actions)


@pytest.mark.parametrize(("name", "kind", "one"), ACTIONS)
def test_a_list_says_how_it_is_paged(name: str, kind: str, one: dict[str, Any]):
    is_list = isinstance(one["sample"], dict) and set(one["sample"]) == {"items", "meta"}

    if is_list and "endpoint" in one:
        rules = one["paginate"]
        assert rules["type"] == "none" or rules["type"] == "next_url" or "size" in rules


@pytest.mark.parametrize(("name", "kind", "one"), TRIGGERS)
def test_a_trigger_says_where_it_goes_on_and_what_it_has_seen(
    name: str, kind: str, one: dict[str, Any]
):
    assert one["dedupe"]["key"]
    assert set(one["dedupe"]["window"]) == {"items", "age"}
    if one["type"] == "webhook":
        assert one["verify"]["scheme"]
        assert one["event"]["id"]
    else:
        assert "type" in one["cursor"]
        assert one["firstRun"] == "baseline"
        assert {"default", "min"} <= set(one["interval"])
        assert one["items"]
    if "catchUp" in one:
        assert one["catchUp"] in {other["id"] for other in RAW[name]["triggers"]}


def expressions(value: Any, key: str = "") -> Iterator[str]:
    """Every text of a definition that is an expression or holds one."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in ("parameters", "sample", "description", "outputSchema", "graphql"):
                yield from expressions(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner, key)
    elif isinstance(value, str) and "{{" in value:
        template(value)
        yield value
    elif isinstance(value, str) and key in ("when", "select", "hasMore", "stop", "path", "items"):
        parsed(value)
        yield value


@pytest.mark.parametrize("name", SHIPPED)
def test_every_expression_can_be_read(name: str):
    list(expressions(RAW[name]))
    connector = CATALOGUE.find(name)
    assert connector is not None
    for one in RAW[name]["actions"]:
        Plan(connector.definition.app, Operation.model_validate(one))


@pytest.mark.parametrize(
    "path",
    sorted(CONNECTORS.glob("*/**/*.json")),
    ids=lambda path: str(path.relative_to(CONNECTORS)),
)
def test_nothing_looks_like_a_secret_of_somebody(path: Path):
    assert SECRET.findall(path.read_text()) == []


# -- what the registry tells


def available(*, generic: bool) -> dict[str, set[str]]:
    registry = Registry(CATALOGUE, lambda: Options(generic=generic))
    found: dict[str, set[str]] = {}
    for one in registry.capabilities():
        can_run = one.availability is not Availability.UNAVAILABLE
        if one.app in SHIPPED and one.kind == "action" and can_run:
            found.setdefault(one.app, set()).add(one.id)
    return found


def test_with_generic_http_every_action_can_run():
    assert available(generic=True) == {
        name: {one["id"] for one in RAW[name]["actions"]} for name in SHIPPED
    }


def test_without_it_only_what_has_a_handler_can():
    assert available(generic=False) == {
        "github": {"create_issue", "create_or_update_file"},
        "rss": {"fetch_feed"},
        "smtp": {"send_email"},
        "telegram": {"send_message"},
    }
