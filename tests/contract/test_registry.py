"""What is told of operations whose definitions cannot be used: that they cannot run, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.connectors import action, write_connector

from stackd.core.errors import NodeError
from stackd.core.json import loads
from stackd.integrations.catalogue import read_catalogue
from stackd.integrations.registry import Options, Registry, connector_detail
from stackd.workflows.nodetypes import Effect

HANDLERS = "async def handled(params, ctx):\n    return 1\n"


def registry_of(folder: Path, *actions: Any, generic: bool = True, **more: Any) -> Registry:
    app = {"id": "desk", "baseUrl": "https://desk.example", "actions": [*actions], **more}
    write_connector(folder, app, handlers=HANDLERS)
    return Registry(read_catalogue([folder]), lambda: Options(generic=generic))


def told_of(registry: Registry, name: str) -> tuple[str, list[tuple[str, str]]]:
    """Its availability, and its issues, as the payload has them."""
    payload = loads(registry.payload(unavailable=True).body)
    (entry,) = [one for one in payload["capabilities"] if one["app"] == "desk"]
    one = entry["actionDetails"][name]
    return one["availability"], [(issue["code"], issue["message"]) for issue in one["issues"]]


@pytest.mark.parametrize("name", ["asked", "handled"])
def test_an_operation_whose_definition_is_wrong_is_not_listed_and_hides_no_other(
    tmp_path: Path, name: str
) -> None:
    registry = registry_of(tmp_path, action(name, effect="writes"), action("sound"))

    availability, [(code, message)] = told_of(registry, name)
    assert (availability, code) == ("unavailable", "runtime.no_capability")
    assert f"/actions/{name}/effect: input should be 'read'" in message
    assert told_of(registry, "sound")[0] == "fallback"
    listed = loads(registry.payload().body)["capabilities"]
    assert [one["actions"] for one in listed if one["app"] == "desk"] == [["sound"]]
    detail = connector_detail(registry, registry.connector("desk"))
    assert [f"/actions/{name}/effect" in one for one in detail["problems"]] == [True]
    with pytest.raises(NodeError, match="its definition cannot be used") as caught:
        registry.target("desk", name)
    assert caught.value.code == "runtime.no_capability"


def test_what_is_found_wrong_when_an_operation_is_first_asked_for_is_told_from_then_on(
    tmp_path: Path,
) -> None:
    registry = registry_of(tmp_path, action("asked", endpoint="/a/{{ params.x"))
    before = registry.payload().etag

    with pytest.raises(NodeError, match="asked") as caught:
        registry.target("desk", "asked")

    assert caught.value.code == "definition.invalid"
    assert told_of(registry, "asked")[0] == "unavailable"
    assert registry.payload().etag != before
    with pytest.raises(NodeError, match="its definition cannot be used"):
        registry.target("desk", "asked")


@pytest.mark.parametrize("generic", [True, False], ids=["flag on", "flag off"])
def test_what_nobody_can_sign_in_to_is_run_by_its_handlers_alone(
    tmp_path: Path, generic: bool
) -> None:
    operations = (action("asked"), action("handled"), action("open", auth="none"))
    registry = registry_of(
        tmp_path, *operations, generic=generic, authentication={"type": "kubeconfig"}
    )

    availability, [(code, message)] = told_of(registry, "asked")
    assert (availability, code) == ("unavailable", "runtime.no_capability")
    assert "signs in by kubeconfig, which is not supported" in message
    assert told_of(registry, "handled")[0] == "native"
    assert told_of(registry, "open")[0] == ("fallback" if generic else "unavailable")


def test_an_app_with_another_way_in_can_be_asked(tmp_path: Path) -> None:
    ways = {"old": {"type": "digest"}, "new": {"type": "bearer"}}
    registry = registry_of(tmp_path, action("asked"), action("old", auth="old"), auths=ways)

    assert told_of(registry, "asked")[0] == "fallback"
    assert told_of(registry, "old")[0] == "unavailable"


def test_an_operation_that_is_there_twice_costs_no_other_its_effect(tmp_path: Path) -> None:
    registry = registry_of(tmp_path, action("asked"), action("asked", "POST"), action("put", "PUT"))

    assert registry.effect("desk", "asked") is Effect.READ
    assert registry.effect("desk", "put") is Effect.IDEMPOTENT
    assert told_of(registry, "asked")[0] == "fallback"
