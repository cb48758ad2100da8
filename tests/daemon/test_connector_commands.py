"""`stackd connectors new`, `lint`, `test` and `review`: writing a connector on the command line, without a daemon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.cli import Command


@pytest.fixture
def folder(tmp_path: Path, command: Command) -> Path:
    """A folder with a connector that `new` has begun, and nobody has gone on with."""
    assert command("connectors", "new", "desk", "--base-url", "https://desk.example").code == 0
    return tmp_path / "connectors"


def finish(folder: Path) -> Path:
    path = folder / "desk" / "definition.json"
    path.write_text(path.read_text().replace("TODO", "Of desks"))
    return path


def test_what_is_left_to_write_is_told_by_line_and_then_nothing(
    command: Command, folder: Path
) -> None:
    begun = command("connectors", "lint", "desk")
    finish(folder)
    done = command("connectors", "lint", "desk")

    assert (begun.code, done.code) == (1, 0)
    assert "connectors/desk/definition.json:4:1: error connector.todo:" in begun.out
    assert done.out.splitlines()[-1] == "1 connector: all reach bronze"


def test_a_higher_grade_is_asked_for_by_name(command: Command, folder: Path) -> None:
    finish(folder)

    told = command("connectors", "lint", "--grade", "silver")

    assert told.code == 1
    assert "connectors/desk: not silver: limits.declared: no rateLimits" in told.out


def test_fix_writes_a_definition_as_it_is_to_be(command: Command, folder: Path) -> None:
    path = finish(folder)
    well = path.read_bytes()
    path.write_text(json.dumps(json.loads(well)))

    warned = command("connectors", "lint", "--strict")
    mended = command("connectors", "lint", "--strict", "--fix")

    assert (warned.code, mended.code) == (1, 0)
    assert path.read_bytes() == well


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lint", "dsek"], "did you mean 'desk'?"),
        (["new", "desk"], "--force writes over it"),
        (["new", "Desk!"], "small letters"),
        (["new", "x", "--base-url", "x.example"], "--base-url https://"),
        (["test", "--case", "nothing"], "no case of that name"),
        (["lint", "--folder", "nowhere"], "no connector below nowhere"),
        (["test", "--live"], "--live needs --credential"),
    ],
)
def test_what_cannot_be_done_is_said_with_the_remedy(
    command: Command, folder: Path, words: list[str], told: str
) -> None:
    refused = command("connectors", *words)

    assert refused.code == 2
    assert told in refused.err
    assert "Traceback" not in refused.err


def test_cases_are_replayed_and_what_comes_otherwise_is_shown(
    command: Command, folder: Path
) -> None:
    held = command("connectors", "test", "desk")
    path = folder / "desk" / "cases" / "get_account.json"
    path.write_text(
        path.read_text().replace('"output": {\n      "id": 1', '"output": {\n      "id": 2')
    )
    failed = command("connectors", "test", "desk", "--json")

    assert (held.code, held.out) == (0, "2 cases: all as recorded\n")
    assert failed.code == 1
    told = [one for one in failed.json["cases"] if not one["ok"]]
    assert [one["problems"] for one in told] == [["output.id is 1, not 2"]]


def test_seeded_triggers_are_listed_for_a_person_to_tighten(command: Command, folder: Path) -> None:
    path = finish(folder)
    definition: dict[str, Any] = json.loads(path.read_text())
    definition["triggers"] = [
        {"id": "made"},
        {"id": "gone", "dedupe": {"key": ["id"]}, "runtimes": ["http"]},
    ]
    path.write_text(json.dumps(definition))
    command("connectors", "backfill")

    reviewed = command("connectors", "review", "--json")

    assert reviewed.code == 0
    assert "calls are not known" in reviewed.err
    assert reviewed.json == {
        "connectors": [
            {"id": "desk", "calls": None, "seeded": {"made": ["cursor path", "dedupe", "runtimes"]}}
        ]
    }
