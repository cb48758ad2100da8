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
        (["test", "--case", "the acount"], "did you mean 'the account'?"),
        (["test", "--operation", "get"], "no case of an action 'get'"),
        (["lint", "--folder", "nowhere"], "no connector below nowhere"),
        (["test", "--live"], "--live needs --credential"),
        (["test", "--live", "--credential", "x", "--folder", "."], "no --folder"),
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
    failed = command("connectors", "test", "desk")
    as_json = command("connectors", "test", "desk", "--json")

    assert (held.code, held.out) == (0, "2 cases: all as recorded\n")
    assert (failed.code, failed.out) == (
        1,
        "desk.get_account: the account\n  output.id\n    - 2\n    + 1\n"
        "1 of 2 cases: not as recorded\n",
    )
    told = [one["differences"] for one in as_json.json["cases"]]
    assert told == [[{"place": "output.id", "recorded": "2", "came": "1"}], []]


def test_what_cannot_be_used_is_told_and_the_other_connectors_are_replayed(
    command: Command, folder: Path
) -> None:
    for name in ("lamp", "door", "gate"):
        command("connectors", "new", name, "--base-url", "https://x.example")
    (folder / "lamp" / "definition.json").write_text('{"id": ')
    (folder / "door" / "cases" / "get_account.json").write_text("[{}]")
    (folder / "gate" / "handlers.py").write_text("import nothing_of_that_name")

    told = command("connectors", "test")

    assert told.code == 1
    door, gate, lamp, last = told.out.splitlines()
    assert door.startswith("connectors/door: cases/get_account.json: /cases/0/name: ")
    assert gate.startswith("connectors/gate: handlers.py cannot be loaded: ")
    assert lamp.startswith("connectors/lamp: definition.json: not valid JSON at line 1")
    assert last == "4 cases: all as recorded"


@pytest.mark.parametrize("raised", ["SystemExit", "CancelledError"])
def test_what_a_handler_prints_and_logs_is_not_among_what_was_found(
    command: Command, folder: Path, raised: str
) -> None:
    (folder / "desk" / "handlers.py").write_text(
        "from asyncio import CancelledError\n"
        "print('loaded')\n"
        "async def get_account(params, ctx):\n"
        "    print('asked')\n"
        "    ctx.log.error('made-up-token')\n"
        f"    raise {raised}(7)\n"
    )
    path = folder / "desk" / "definition.json"
    path.write_text(path.read_text().replace('"http"', '"python"'))

    told = command("connectors", "test", "--json")
    linted = command("connectors", "lint", "--json")

    assert told.code == 1
    ends = [one["differences"][-1]["came"] for one in told.json["cases"]]
    assert (
        ends == [f"handler.failed: the handler of desk.get_account failed: {raised} (line 6)"] * 2
    )
    assert told.err.split() == ["loaded", "asked", "asked"]
    assert (linted.err, [one["id"] for one in linted.json["connectors"]]) == ("loaded\n", ["desk"])


def test_seeded_triggers_are_listed_for_a_person_to_tighten(command: Command, folder: Path) -> None:
    path = finish(folder)
    definition: dict[str, Any] = json.loads(path.read_text())
    definition["triggers"] = [
        {"id": "made"},
        {"id": "gone", "dedupe": {"key": ["id"]}, "runtimes": ["http"]},
    ]
    path.write_text(json.dumps(definition))
    command("connectors", "backfill")
    (folder / "lamp").mkdir()
    (folder / "lamp" / "definition.json").write_text('{"id": ')

    reviewed = command("connectors", "review", "--json")

    assert reviewed.code == 0
    assert "calls are not known" in reviewed.err
    assert "not looked at: connectors/lamp/definition.json: not valid JSON" in reviewed.err
    assert reviewed.json == {
        "connectors": [
            {"id": "desk", "calls": None, "seeded": {"made": ["cursor path", "dedupe", "runtimes"]}}
        ]
    }
