"""`stackd connectors default-actions`, `seed-trigger-fallbacks` and `backfill` over folders of definitions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.cli import Command

from stackd.core.errors import InputError
from stackd.integrations import backfill

BARE = {
    "id": "bare",
    "actions": [{"id": "send"}],
    "triggers": {"got": {"id": "got", "name": "Gödel"}},
}
FULL = {
    "id": "full",
    "actions": {"send": {"runtimes": ["node"], "fallback": None}},
    "triggers": [{"runtimes": ["appsScript"], "fallback": {"to": "http"}, "dedupe": {"path": "id"}}],
}  # fmt: skip


def put(folder: Path, name: str, definition: Any) -> Path:
    file = folder / name / "definition.json"
    file.parent.mkdir(parents=True)
    text = definition if isinstance(definition, str) else json.dumps(definition)
    file.write_text(text)
    return file


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    folder = tmp_path / "connectors"
    put(folder, "bare", BARE)
    put(folder, "full", FULL)
    put(folder, "below/deeper", BARE)
    (folder / "bare" / "other.json").write_text(json.dumps(BARE))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_what_is_missing_is_written_and_a_second_run_changes_no_byte(
    command: Command, catalogue: Path
) -> None:
    before = contents(catalogue)

    first = command("connectors", "backfill")
    after = contents(catalogue)
    second = command("connectors", "backfill")

    assert first.out.splitlines() == [
        "Updated connectors/bare/definition.json",
        "Updated connectors/below/deeper/definition.json",
        "4 operations filled in, in 2 files",
    ]
    assert second.out == "No connector action/trigger defaults required changes.\n"
    assert contents(catalogue) == after
    changed = {name for name, content in after.items() if content != before[name]}
    assert changed == {"bare/definition.json", "below/deeper/definition.json"}
    text = after["bare/definition.json"].decode()
    assert text.startswith('{\n  "id": "bare",\n  "actions": [\n    {\n      "id": "send",\n')
    assert text.endswith("  }\n}\n")
    assert '"name": "Gödel"' in text
    assert json.loads(text)["triggers"]["got"] == {
        "id": "got", "name": "Gödel", "runtimes": ["python"], "fallback": None,
        "dedupe": {"strategy": "cursor", "cursor": {"path": "cursor"}},
    }  # fmt: skip


def test_one_after_the_other_they_do_what_the_alias_does(command: Command, catalogue: Path) -> None:
    actions = command("connectors", "default-actions", str(catalogue), "--json").json
    triggers = command("connectors", "seed-trigger-fallbacks", str(catalogue), "--json").json
    both = command("connectors", "backfill", str(catalogue), "--json").json

    assert (actions["operations"], triggers["operations"], both["operations"]) == (2, 2, 0)
    assert both == {"updated": [], "operations": 0, "written": True}
    assert [one["path"] for one in actions["updated"]] == [
        str(catalogue / "bare/definition.json"), str(catalogue / "below/deeper/definition.json"),
    ]  # fmt: skip


@pytest.mark.parametrize("flags", [["--check"], ["--diff"], ["--check", "--diff"]])
def test_check_and_diff_write_nothing_and_check_ends_with_1_while_anything_is_missing(
    command: Command, catalogue: Path, flags: list[str]
) -> None:
    before = contents(catalogue)

    due = command("connectors", "backfill", *flags)
    as_json = command("connectors", "backfill", *flags, "--json")

    assert contents(catalogue) == before
    assert due.code == as_json.code == ("--check" in flags)
    assert as_json.json["written"] is False
    assert due.out.endswith("4 operations to fill in, in 2 files\n")
    assert ("\n+++ connectors/bare/definition.json\n" in due.out) is ("--diff" in flags)
    assert ('\n+      "fallback": null\n' in due.out) is ("--diff" in flags)
    command("connectors", "backfill")
    assert command("connectors", "backfill", *flags).code == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"id": "a",}', "line 1"),
        ('{"id": 1, "id": 2}', "id"),
        ('{"id": "\\ud800"}', "surrogate"),
        ("[" * 1000 + "]" * 1000, "nested"),
        ("", "line 1"),
        ('{"n": 1e999}', "1e999"),
    ],
    ids=["comma", "twice", "half", "deep", "empty", "huge"],
)
def test_one_file_that_cannot_be_read_is_named_and_nothing_is_written(
    command: Command, catalogue: Path, text: str, reason: str
) -> None:
    bad = put(catalogue, "zzz", text)
    before = contents(catalogue)

    ran = command("connectors", "backfill")

    assert (ran.code, ran.out) == (2, "")
    assert str(bad.relative_to(catalogue.parent)) in ran.err
    assert reason in ran.err
    assert contents(catalogue) == before


def test_a_folder_that_is_not_there_is_named(command: Command) -> None:
    ran = command("connectors", "backfill", "nowhere")

    assert (ran.code, ran.out) == (2, "")
    assert "nowhere is no folder" in ran.err


def test_what_a_definition_holds_does_nothing_to_a_terminal(
    command: Command, catalogue: Path
) -> None:
    put(catalogue, "loud", {"actions": [{"id": "\x9b2Jgone\u202e"}]} | BARE | {"name": "\x9b2J"})
    file = catalogue / "loud/definition.json"
    file.write_text(json.dumps(json.loads(file.read_text()), ensure_ascii=False))

    shown = command("connectors", "backfill", "--diff").out

    assert "\x9b" not in shown
    assert "\u202e" not in shown


def test_mode_and_links_stay(command: Command, catalogue: Path, tmp_path: Path) -> None:
    elsewhere = put(tmp_path, "elsewhere", BARE)
    elsewhere.chmod(0o640)
    link = catalogue / "linked" / "definition.json"
    link.parent.mkdir()
    link.symlink_to(elsewhere)

    command("connectors", "backfill")

    assert link.is_symlink()
    assert json.loads(elsewhere.read_text())["actions"][0]["runtimes"] == ["python"]
    assert elsewhere.stat().st_mode & 0o777 == 0o640


def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_half_written(
    command: Command, catalogue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(catalogue)
    syncs = iter([None, OSError(28, os.strerror(28))])

    def fsync(_: int) -> None:
        if isinstance(failure := next(syncs), OSError):
            raise failure

    monkeypatch.setattr(backfill.os, "fsync", fsync)

    ran = command("connectors", "backfill")

    assert (ran.code, ran.out) == (2, "")
    assert "connectors/below/deeper/definition.json cannot be written: No space left" in ran.err
    assert contents(catalogue) == before


def test_what_changes_while_it_runs_is_not_overwritten(catalogue: Path) -> None:
    patches = backfill.patches(catalogue, backfill.both)
    edited = catalogue / "below/deeper/definition.json"
    edited.write_text("{}")
    before = contents(catalogue)

    with pytest.raises(InputError) as refused:
        backfill.write(patches)
    assert refused.value.message == f"{edited}: has changed meanwhile"

    assert contents(catalogue) == before
