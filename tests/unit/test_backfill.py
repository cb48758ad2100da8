"""What the backfill fills in, and what it keeps."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackd.integrations.backfill import both, default_actions, seed_trigger_fallbacks, written

CURSOR = {"strategy": "cursor", "cursor": {"path": "cursor"}}

values = st.sampled_from([None, True, 0, 1.5, "x", "é", [], ["node"], [[]], {}, {"a": 1}]).map(
    deepcopy
)
operations = st.dictionaries(
    st.sampled_from(["id", "runtimes", "fallback", "dedupe", "endpoint"]), values
)
groups = st.lists(operations | values, max_size=4)
definitions = st.dictionaries(
    st.sampled_from(["id", "actions", "triggers", "auth"]),
    groups | groups.map(lambda found: {str(n): one for n, one in enumerate(found)}) | values,
)


def filled(operation: dict[str, Any], kind: str = "actions") -> dict[str, Any]:
    definition = {kind: [operation]}
    both(definition)
    (after,) = definition[kind]
    return after


@pytest.mark.parametrize("runtimes", [None, [], "python", {}, 0, False])
def test_runtimes_that_are_missing_no_list_or_empty_become_python(runtimes: Any) -> None:
    assert filled({"runtimes": runtimes})["runtimes"] == ["python"]
    assert filled({})["runtimes"] == ["python"]


@pytest.mark.parametrize("runtimes", [["node"], ["appsScript", "node"], [None]])
def test_runtimes_that_are_there_are_kept(runtimes: list[Any]) -> None:
    assert filled({"runtimes": runtimes})["runtimes"] == runtimes


def test_fallback_becomes_null_only_where_it_is_missing() -> None:
    assert filled({})["fallback"] is None
    for there in (None, False, {}, {"to": "http"}, "http"):
        assert filled({"fallback": there})["fallback"] == there


@pytest.mark.parametrize("dedupe", [None, "id", 0, True])
def test_dedupe_of_a_trigger_that_is_no_object_becomes_a_cursor(dedupe: Any) -> None:
    assert filled({"dedupe": dedupe}, "triggers")["dedupe"] == CURSOR
    assert filled({}, "triggers")["dedupe"] == CURSOR


@pytest.mark.parametrize("dedupe", [{}, {"strategy": "id"}, [], ["id"]])
def test_dedupe_that_is_an_object_or_a_list_is_kept(dedupe: Any) -> None:
    assert filled({"dedupe": dedupe}, "triggers")["dedupe"] == dedupe


def test_an_action_gets_no_dedupe() -> None:
    assert "dedupe" not in filled({})


@pytest.mark.parametrize("make", [list, lambda found: {str(n): one for n, one in enumerate(found)}])
def test_operations_may_be_a_list_or_a_map_and_what_is_none_is_left(make: Any) -> None:
    definition = {"actions": make([{}, None, 5, "x", [{}]]), "triggers": make([{}])}

    assert both(definition) == 2
    assert definition["actions"] == make(
        [{"runtimes": ["python"], "fallback": None}, None, 5, "x", [{}]]
    )


@pytest.mark.parametrize("definition", [None, [], 5, "x", {}, {"actions": None, "triggers": 1}])
def test_what_has_no_operations_is_left(definition: Any) -> None:
    before = deepcopy(definition)

    assert both(definition) == 0
    assert definition == before


def test_new_members_come_after_those_that_are_there() -> None:
    assert list(filled({"id": "a", "dedupe": None, "name": "b"}, "triggers")) == [
        "id", "dedupe", "name", "runtimes", "fallback",
    ]  # fmt: skip


@given(definitions)
def test_a_second_run_changes_nothing(definition: dict[str, Any]) -> None:
    both(definition)
    before = written(definition)

    assert both(definition) == 0
    assert written(definition) == before


def members(definition: dict[str, Any], kind: str) -> list[Any]:
    found = definition.get(kind)
    if isinstance(found, dict):
        return list(found.values())
    return found if isinstance(found, list) else []


@given(definitions)
def test_nothing_that_was_there_goes_or_moves_and_what_changed_is_counted(
    definition: dict[str, Any],
) -> None:
    before = deepcopy(definition)

    count = default_actions(definition) + seed_trigger_fallbacks(definition)

    changed = 0
    for kind in ("actions", "triggers"):
        for old, new in zip(members(before, kind), members(definition, kind), strict=True):
            changed += old != new
            if isinstance(old, dict):
                assert list(new)[: len(old)] == list(old)
                kept = old.keys() - {"runtimes", "dedupe"}
                assert {key: new[key] for key in kept} == {key: old[key] for key in kept}
            else:
                assert new == old
    assert count == changed
    assert list(definition) == list(before)
