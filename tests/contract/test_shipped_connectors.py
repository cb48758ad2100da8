"""The shipped connectors are written as one, and the registry tells of them what is so. Lint has the rules for each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stackd.integrations.catalogue import read_catalogue
from stackd.integrations.registry import Availability, Options, Registry

CONNECTORS = Path(__file__).parents[2] / "connectors"
CATALOGUE = read_catalogue([CONNECTORS])
SHIPPED = [one.id for one in CATALOGUE.connectors]
RAW = {name: json.loads((CONNECTORS / name / "definition.json").read_text()) for name in SHIPPED}


def test_the_catalogue_is_read_without_a_fault():
    assert len(SHIPPED) >= 16
    assert CATALOGUE.problems == ()


@pytest.mark.parametrize("name", SHIPPED)
def test_all_are_written_alike(name: str):
    for one in [*RAW[name]["actions"], *RAW[name]["triggers"]]:
        assert one["description"].endswith("."), one["id"]
        assert one["parameters"]["additionalProperties"] is False, one["id"]
        schema = one["outputSchema"]["$schema"]
        assert schema == "https://json-schema.org/draft/2020-12/schema", one["id"]


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
