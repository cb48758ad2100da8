"""`stackd connectors import-openapi`: from a document to a definition, and what is there already."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.any_openapi import PLAIN, as_json, heavy, openapi
from support.cli import Command, child

from stackd.integrations.catalogue import read_catalogue

SPEC = """\
openapi: 3.0.3
info: {title: Small, version: 1.0.0}
servers: [{url: https://api.example.com}]
security: [{token: []}]
paths:
  /things:
    get:
      operationId: listThings
      tags: [things]
      responses:
        200: {description: all, content: {application/json: {schema: {type: array, items: {$ref: 'parts.yaml#/Thing'}}}}}
    post: {operationId: makeThing, responses: {204: {description: made}}}
    trace: {responses: {}}
components:
  securitySchemes: {token: {type: http, scheme: bearer}}
"""
PARTS = "Thing: {type: object, properties: {id: {type: integer}, of: {$ref: '#/Maker'}}}\nMaker: {type: string}\n"
WORDS = ("connectors", "import-openapi")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "parts.yaml").write_text(PARTS)
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


def written(folder: Path, app: str = "small") -> Any:
    return json.loads((folder / "connectors" / app / "definition.json").read_text())


def test_a_definition_is_written_and_nothing_is_due_in_it(command: Command, spec: Path) -> None:
    ran = command(*WORDS, "spec.yaml", "--id", "small", "--json")

    assert ran.code == 0
    assert ran.json == {
        "id": "small", "operations": 3, "imported": 2,
        "skipped": [{"operation": "TRACE /things", "reason": "the method TRACE cannot be sent"}], "guessed": [],
    }  # fmt: skip
    assert written(spec.parent)["schemas"] == {
        "Maker": {"type": "string"},
        "Thing": {"type": "object", "properties": {"id": {"type": "integer"}, "of": {"$ref": "#/schemas/Maker"}}},
    }  # fmt: skip
    assert command("connectors", "backfill", "--check").code == 0
    (connector,) = read_catalogue([spec.parent / "connectors"]).connectors
    assert (connector.problems, list(connector.actions)) == ((), ["list_things", "make_thing"])
    assert connector.definition.operation("action", "make_thing") is not None


def test_people_are_told_what_was_left_out(command: Command, spec: Path) -> None:
    assert command(*WORDS, "spec.yaml", "--id", "small").out.splitlines() == [
        "Wrote connectors/small/definition.json",
        "2 of 3 operations imported",
        "1 skipped:",
        "  TRACE /things: the method TRACE cannot be sent",
    ]


def test_the_same_document_makes_the_same_bytes_whatever_the_hashes_are(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_bytes(as_json(heavy(40, 30)))
    made = set()
    for seed in ("0", "1", "4711"):
        ran = child(
            *WORDS,
            str(tmp_path / "spec.json"),
            "--id",
            "heavy",
            "--out",
            str(tmp_path / seed),
            PYTHONHASHSEED=seed,
        )
        assert ran.returncode == 0, ran.stderr
        made.add((tmp_path / seed / "heavy" / "definition.json").read_bytes())

    assert len(made) == 1


def test_json_and_yaml_of_one_document_make_the_same(command: Command, spec: Path) -> None:
    document = openapi({"/x": {"get": {"responses": {"200": {"description": "ü"}}}}})
    (spec.parent / "a.json").write_bytes(as_json(document))
    (spec.parent / "b.yaml").write_text(
        json.dumps(document, indent=1, ensure_ascii=False).replace("{\n", "{ # so\n", 1)
    )

    for name in ("a.json", "b.yaml"):
        assert command(*WORDS, name, "--id", "same", "--out", name[0]).code == 0
    made = [(spec.parent / name / "same" / "definition.json").read_bytes() for name in "ab"]
    assert made[0] == made[1]


def test_a_second_import_changes_no_byte(command: Command, spec: Path) -> None:
    command(*WORDS, "spec.yaml", "--id", "small")
    before = (spec.parent / "connectors/small/definition.json").read_bytes()

    assert command(*WORDS, "spec.yaml", "--id", "small").code == 0
    assert (spec.parent / "connectors/small/definition.json").read_bytes() == before
    assert [one.name for one in (spec.parent / "connectors/small").iterdir()] == ["definition.json"]


def test_a_later_version_of_the_document_takes_its_place(command: Command, spec: Path) -> None:
    command(*WORDS, "spec.yaml", "--id", "small")
    spec.write_text(SPEC.replace("1.0.0", "2.0.0"))

    assert command(*WORDS, "spec.yaml", "--id", "small").code == 0
    assert written(spec.parent)["version"] == "2.0.0"


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        ({"id": "small"}, "no import wrote it"),
        ("{", "no import wrote it"),
        ({"x-origin": {"title": "Other", "digest": ""}}, "comes from another document"),
        ({"x-origin": {"title": "Small", "digest": ""}}, "was edited since it was imported"),
    ],
    ids=["ours", "broken", "other", "edited"],
)
def test_what_is_there_is_kept_unless_forced(
    command: Command, spec: Path, there: Any, reason: str
) -> None:
    file = spec.parent / "connectors/small/definition.json"
    file.parent.mkdir(parents=True)
    file.write_text(there if isinstance(there, str) else json.dumps(there))
    before = file.read_bytes()

    ran = command(*WORDS, "spec.yaml", "--id", "small")
    assert (ran.code, ran.out) == (2, "")
    assert reason in ran.err
    assert "--force" in ran.err
    assert file.read_bytes() == before
    assert command(*WORDS, "spec.yaml", "--id", "small", "--force").code == 0
    assert written(spec.parent)["name"] == "Small"


def test_an_edit_is_noticed(command: Command, spec: Path) -> None:
    command(*WORDS, "spec.yaml", "--id", "small")
    file = spec.parent / "connectors/small/definition.json"
    file.write_text(file.read_text().replace("List things", "All things"))

    assert "was edited" in command(*WORDS, "spec.yaml", "--id", "small").err


def test_an_overlay_beside_the_definition_is_applied_each_time(
    command: Command, spec: Path
) -> None:
    folder = spec.parent / "connectors/small"
    folder.mkdir(parents=True)
    (folder / "overlay.yaml").write_text(
        "overlay: 1.0.0\nactions: [{target: \"$.paths['/things'].post\", update: {summary: Make one}}]\n"
    )

    for _ in range(2):
        assert command(*WORDS, "spec.yaml", "--id", "small").code == 0
        assert [one["title"] for one in written(spec.parent)["actions"]] == [
            "List things",
            "Make one",
        ]


def test_tags_and_operations_choose(command: Command, spec: Path) -> None:
    command(*WORDS, "spec.yaml", "--id", "small", "--tag", "things")
    assert [one["id"] for one in written(spec.parent)["actions"]] == ["list_things"]

    command(*WORDS, "spec.yaml", "--id", "small", "--operation", "POST /things")
    assert [one["id"] for one in written(spec.parent)["actions"]] == ["make_thing"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["gone.yaml", "--id", "a"], "gone.yaml cannot be read"),
        ([".", "--id", "a"], "cannot be read"),
        (["parts.yaml", "--id", "a"], "is no OpenAPI document"),
        (["spec.yaml", "--id", "A b"], "is no id"),
        (["spec.yaml", "--id", "../a"], "is no id"),
        (["spec.yaml", "--id", "a", "--tag", "thing"], "did you mean 'things'?"),
        (["spec.yaml", "--id", "a", "--operation", "listThing"], "did you mean 'listThings'?"),
        (["spec.yaml", "--id", "a", "--overlay", "parts.yaml"], "is no overlay"),
        (["spec.yaml", "--id", "a", "--out", "spec.yaml"], "cannot be written"),
    ],
)
def test_bad_input_is_named(command: Command, spec: Path, words: list[str], reason: str) -> None:
    ran = command(*WORDS, *words)

    assert (ran.code, ran.out) == (2, "")
    assert reason in ran.err
    assert not (spec.parent / "connectors").exists()


def test_a_document_without_anything_to_take_ends_with_1_and_writes_nothing(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "empty.json").write_bytes(as_json(openapi({"/{": {"get": PLAIN}})))

    ran = command(*WORDS, "empty.json", "--id", "a", "--json")
    assert (ran.code, ran.json["imported"], len(ran.json["skipped"])) == (1, 0, 1)
    assert not (tmp_path / "connectors").exists()


@pytest.mark.parametrize(
    "place",
    [
        "../secret.yaml",
        "https://api.example.com/x.yaml",
        "link.yaml",
        "//host/x",
        "file:///etc/hostname",
        "/etc/hostname",
    ],
)
def test_nothing_outside_the_folder_is_read(command: Command, tmp_path: Path, place: str) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "secret.yaml").write_text("A: {const: told}\n")
    (inside / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    answer = {"200": {"content": {"application/json": {"schema": {"$ref": f"{place}#/A"}}}}}
    (inside / "spec.json").write_bytes(as_json(openapi({"/x": {"get": {"responses": answer}}})))

    ran = command(*WORDS, "in/spec.json", "--id", "a", "--json")
    assert f"{place}#/A: leads nowhere; anything is taken there" in ran.json["guessed"]
    assert "told" not in (tmp_path / "connectors/a/definition.json").read_text()


def test_what_a_document_holds_does_nothing_to_a_terminal(command: Command, tmp_path: Path) -> None:
    (tmp_path / "loud.json").write_bytes(
        as_json(openapi({"/\x9b2J{": {"get": PLAIN}, "/\x1b": {"get": PLAIN}}))
    )

    assert not {"\x9b", "\x1b"} & set(command(*WORDS, "loud.json", "--id", "a").out)


def test_half_a_character_is_replaced(command: Command, tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text(
        '{"openapi": "3.0.0", "info": {"title": "\\ud800"}, "paths": {"/x": {"get": {"summary": "\\udc00"}}}}'
    )

    for _ in range(2):
        assert command(*WORDS, "half.json", "--id", "a").code == 0
    assert written(tmp_path, "a")["name"] == "?"


def test_seven_megabytes_take_less_than_20_s_and_600_mb(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_bytes(as_json(heavy(1_200, 1_700)))
    assert spec.stat().st_size > 7_000_000
    # Of this program alone: getrusage counts what the process held before it became one.
    held = "next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]"
    used = f"import sys; from stackd.__main__ import main\ntry: main()\nfinally: print({held}, file=sys.stderr)"
    ran = subprocess.run(
        [sys.executable, "-c", used, *WORDS, str(spec), "--id", "heavy", "--out", str(tmp_path)],
        capture_output=True, text=True, timeout=50, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (20, 20)),
        env={"PATH": os.defpath, "HOME": str(tmp_path)},
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    assert "1,200 of 1,200 operations imported" in ran.stdout
    assert int(ran.stderr.split()[-1]) < 600 * 1024
