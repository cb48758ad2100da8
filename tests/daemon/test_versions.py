"""Versions of a running stack's workflows: seen, gone back to, written down; and what lint says of documents."""

from __future__ import annotations

import json
import sqlite3
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from support.cli import Command, child
from support.daemon import DaemonProcess

GREETING = """
id: {id}
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: greet, type: transform.data.set, params: {{values: {{text: "{text}"}}}}}}
edges: [{{from: start, to: greet}}]
"""
HOOKED = """
id: {id}
nodes:
  - {{id: hook, type: trigger.webhook.inbound, params: {{path: {path}}}}}
"""
MANUAL = "id: {id}\nnodes: [{{id: start, type: trigger.time.manual}}]\n"
BAD = """id: bad
nodes:
  - {id: start, type: trigger.time.manuel}
  - {id: wait, type: action.time.delay, params: {delaySeconds: soon}}
edges: [{from: start, to: wait}]
"""
ODD = """id: odd
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: alone, type: transform.data.set, params: {values: {}}}
"""
OLD = b'{"edges":[],"id":"%s","nodes":[{"id":"start","type":"trigger.time.old"}]}'


@pytest.fixture
def greeting(daemon: DaemonProcess, request: pytest.FixtureRequest) -> str:
    """The id of a workflow with three versions, the last of them current and active."""
    workflow_id = f"w{sha256(request.node.name.encode()).hexdigest()[:16]}"
    for text in ("one", "two", "three"):
        daemon.load(GREETING.format(id=workflow_id, text=text))
    return workflow_id


def current(daemon: DaemonProcess, workflow_id: str) -> int:
    return int(daemon.api.get(f"/api/workflows/{workflow_id}")["version"])


def said(daemon: DaemonProcess, workflow_id: str) -> str:
    """What a run of it says now."""
    ended = daemon.http("POST", f"/api/workflows/{workflow_id}/run?wait=20", {}).json
    return str(ended["output"]["text"])


# -- versions


def test_versions_are_listed_newest_first_page_by_page(
    daemon: DaemonProcess, greeting: str
) -> None:
    path = f"/api/workflows/{greeting}/versions"

    first = daemon.http("GET", f"{path}?limit=2").json
    second = daemon.http("GET", f"{path}?limit=2&cursor={first['nextCursor']}").json

    seen = first["items"] + second["items"]
    assert [(item["version"], item["current"]) for item in seen] == [
        (3, True),
        (2, False),
        (1, False),
    ]
    assert second["nextCursor"] is None
    assert len({item["contentHash"] for item in seen}) == 3


def test_one_version_has_its_document(daemon: DaemonProcess, greeting: str) -> None:
    one = daemon.http("GET", f"/api/workflows/{greeting}/versions/2").json

    assert (one["version"], one["current"]) == (2, False)
    assert one["document"]["nodes"][1]["params"] == {"values": {"text": "two"}}


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("nobody/versions", 404, "workflow.not_found"),
        ("nobody/versions/1", 404, "workflow.not_found"),
        ("{id}/versions/9", 404, "workflow.no_version"),
        ("{id}/versions/first", 422, "query.version"),
        ("{id}/versions?cursor=x", 422, "query.cursor"),
    ],
)
def test_a_version_that_is_none_is_a_problem(
    daemon: DaemonProcess, greeting: str, path: str, status: int, code: str
) -> None:
    answer = daemon.http("GET", f"/api/workflows/{path.format(id=greeting)}")

    assert (answer.status, answer.code) == (status, code)


# -- rollback


def test_rollback_makes_the_version_before_the_current_one_current(
    daemon: DaemonProcess, greeting: str
) -> None:
    path = f"/api/workflows/{greeting}/rollback"

    answers = [daemon.http("POST", path) for _ in range(3)]

    assert [answer.status for answer in answers] == [200, 200, 409]
    assert [answer.json["version"] for answer in answers[:2]] == [2, 1]
    assert answers[0].json["active"] is True
    assert answers[2].code == "workflow.no_earlier_version"
    assert said(daemon, greeting) == "one"
    versions = daemon.api.get(f"/api/workflows/{greeting}/versions")["items"]
    assert [version["current"] for version in versions] == [False, False, True]


def test_rollback_to_a_version_makes_that_one_current(daemon: DaemonProcess, greeting: str) -> None:
    path = f"/api/workflows/{greeting}/rollback"

    back = daemon.http("POST", path, {"version": 1})
    forth = daemon.http("POST", path, {"version": 3})

    assert (back.json["version"], forth.json["version"]) == (1, 3)
    assert said(daemon, greeting) == "three"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"version": 9}, 404, "workflow.no_version"),
        ({"version": "1"}, 422, "input.version"),
        ({"version": True}, 422, "input.version"),
        ({"version": -1}, 422, "input.version"),
        ({"to": 1}, 422, "input.unknown_key"),
    ],
)
def test_rollback_to_what_is_no_version_changes_nothing(
    daemon: DaemonProcess, greeting: str, body: Any, status: int, code: str
) -> None:
    refused = daemon.http("POST", f"/api/workflows/{greeting}/rollback", body)

    assert (refused.status, refused.code) == (status, code)
    assert current(daemon, greeting) == 3


def test_rollback_takes_the_webhooks_of_the_version_back(daemon: DaemonProcess) -> None:
    for path in ("back/a", "back/b"):
        daemon.load(HOOKED.format(id="back", path=path))

    answer = daemon.http("POST", "/api/workflows/back/rollback")

    assert answer.json["webhooks"] == [{"node": "hook", "url": f"{daemon.url}/api/webhooks/back/a"}]
    assert daemon.deliver("back/a", {}).status == 202
    assert daemon.deliver("back/b", {}).status == 404


def test_rollback_onto_a_path_that_another_workflow_has_taken_is_refused(
    daemon: DaemonProcess,
) -> None:
    daemon.load(HOOKED.format(id="clash", path="clash/a"))
    daemon.load(HOOKED.format(id="clash", path="clash/b"))
    daemon.load(HOOKED.format(id="clash-2", path="clash/a"))

    refused = daemon.http("POST", "/api/workflows/clash/rollback")

    assert (refused.status, refused.code) == (409, "webhook.path_taken")
    assert current(daemon, "clash") == 2
    assert daemon.deliver("clash/b", {}).status == 202


def test_a_version_that_todays_rules_refuse_is_refused_with_findings(
    daemon: DaemonProcess, greeting: str
) -> None:
    store_as_version_one(daemon, greeting)

    linted = daemon.http("POST", f"/api/workflows/{greeting}/lint")
    refused = daemon.http("POST", f"/api/workflows/{greeting}/rollback", {"version": 1})

    assert linted.json == {"ok": True, "findings": []}
    assert (refused.status, refused.code) == (422, "document.invalid")
    (finding,) = refused.json["findings"]
    assert (finding["code"], finding["severity"]) == ("node.unknown_type", "error")
    assert refused.json["detail"].startswith(f"version 1 of {greeting}:1:")
    assert current(daemon, greeting) == 3


def store_as_version_one(daemon: DaemonProcess, workflow_id: str) -> None:
    """Let version 1 of a workflow be one that an earlier stackd may have taken."""
    raw = sqlite3.connect(daemon.state / "stackd.db", timeout=10)
    raw.execute(
        "UPDATE workflow_versions SET document = ? WHERE workflow_id = ? AND version = 1",
        (OLD % workflow_id.encode(), workflow_id),
    )
    raw.commit()
    raw.close()


# -- lint over the API


def test_lint_says_all_there_is_to_say_and_stores_nothing(daemon: DaemonProcess) -> None:
    bad = daemon.http("POST", "/api/workflows/lint?name=bad.yaml", BAD.encode())
    odd = daemon.http("POST", "/api/workflows/lint", ODD.encode())
    fine = daemon.http("POST", "/api/workflows/lint", MANUAL.format(id="fine").encode())

    assert [answer.status for answer in (bad, odd, fine)] == [200, 200, 200]
    assert bad.json["ok"] is False
    assert [(f["severity"], f["line"]) for f in bad.json["findings"]] == [
        ("error", 3),
        ("error", 4),
    ]
    assert bad.json["findings"][0]["hint"] == "did you mean 'trigger.time.manual'?"
    assert odd.json["ok"] is True
    assert [(f["severity"], f["code"]) for f in odd.json["findings"]] == [
        ("warning", "node.unreachable")
    ]
    assert fine.json == {"ok": True, "findings": []}
    assert daemon.http("GET", "/api/workflows/odd").status == 404


def test_warnings_of_an_import_have_their_severity(daemon: DaemonProcess) -> None:
    answer = daemon.http("POST", "/api/workflows", ODD.replace("odd", "odd-2").encode())

    assert [warning["severity"] for warning in answer.json["warnings"]] == ["warning"]


def test_a_workflow_may_be_called_lint(daemon: DaemonProcess) -> None:
    daemon.load(MANUAL.format(id="lint"))

    assert daemon.http("GET", "/api/workflows/lint").json["id"] == "lint"
    assert daemon.http("POST", "/api/workflows/lint/lint").json["ok"] is True


# -- the schema


@pytest.mark.parametrize("name", ["workflow", "connector"])
def test_the_schema_is_the_same_over_the_api_and_without_a_daemon(
    daemon: DaemonProcess, command: Command, tmp_path: Path, name: str
) -> None:
    answer = daemon.http("GET", f"/api/schema/{name}")
    printed = command("schema", name, STACKD_STATE_DIR=str(tmp_path))

    assert answer.headers["content-type"] == "application/schema+json"
    assert printed.json == answer.json
    jsonschema_rs.meta.validate(answer.json)


def test_schemas_are_listed_and_an_unknown_one_exits_2(command: Command) -> None:
    plain = command("schema")
    as_json = command("schema", "--json")
    unknown = command("schema", "conector")

    assert (plain.code, plain.out) == (0, "workflow\nconnector\n")
    assert as_json.json == {"items": ["workflow", "connector"], "nextCursor": None}
    assert (unknown.code, unknown.err) == (
        2,
        "error: no schema 'conector'\n  try: there is: workflow, connector\n",
    )


# -- commands


def test_commands_list_versions_and_go_back(
    stackd: Command, daemon: DaemonProcess, greeting: str
) -> None:
    listed = stackd("workflows", "versions", greeting)
    as_json = stackd("workflows", "versions", greeting, "--json")
    back = stackd("workflows", "rollback", greeting)
    to = stackd("workflows", "rollback", greeting, "--to", "1", "--json")
    none = stackd("workflows", "rollback", greeting)

    rows = [line.split("\t") for line in listed.out.splitlines()]
    assert [(row[0], row[2]) for row in rows] == [("3", "yes"), ("2", "no"), ("1", "no")]
    assert [item["version"] for item in as_json.json["items"]] == [3, 2, 1]
    assert (back.code, back.out) == (0, f"{greeting} version 2 (active)\n")
    assert to.json["version"] == 1
    assert none.code == 2
    assert f"\n  try: see `stackd workflows versions {greeting}`" in none.err


@pytest.mark.parametrize("form", ["--yaml", "--json"])
def test_an_export_imports_as_the_same_version(
    stackd: Command, daemon: DaemonProcess, greeting: str, tmp_path: Path, form: str
) -> None:
    file = tmp_path / "exported.yaml"

    printed = stackd("workflows", "export", greeting, form)
    written = stackd("workflows", "export", greeting, "--version", "2", form, "-o", str(file))
    imported = stackd("workflows", "import", str(file), "--json")

    first_line = f"id: {greeting}" if form == "--yaml" else "{"
    assert printed.out.splitlines()[0] == first_line
    assert (written.code, written.out) == (0, "")
    assert imported.json["version"] == 2
    hashes = {
        item["contentHash"]
        for item in stackd("workflows", "versions", greeting, "--json").json["items"]
    }
    assert len(hashes) == 3, "the import made no new version"


def test_an_export_of_a_version_that_is_none_exits_2(stackd: Command, greeting: str) -> None:
    ran = stackd("workflows", "export", greeting, "--version", "9")

    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: workflow '{greeting}' has no version 9\n")


def test_lint_tells_all_findings_of_all_files_without_a_daemon(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "odd.yml").write_text(ODD)
    (tmp_path / "below" / "fine.json").write_text(
        json.dumps({"id": "f", "nodes": [{"id": "s", "type": "trigger.time.manual"}]})
    )
    (tmp_path / "below" / ".hidden.yaml").write_text("{")
    (tmp_path / "below" / "notes.txt").write_text("{")
    given = {"STACKD_STATE_DIR": str(tmp_path / "state")}

    both = command("workflows", "lint", "bad.yaml", "below", **given)
    as_json = command("workflows", "lint", "bad.yaml", "below", "--json", **given)
    good = command("workflows", "lint", "below", **given)
    strict = command("workflows", "lint", "below", "--strict", **given)

    assert (both.code, good.code, strict.code) == (1, 0, 1)
    lines = both.out.splitlines()
    assert lines[0].startswith("bad.yaml:3:17: error node.unknown_type: ")
    assert lines[0].endswith("(did you mean 'trigger.time.manual'?)")
    assert lines[1].startswith("bad.yaml:4:")
    assert lines[2].startswith("below/odd.yml:4:")
    assert "warning node.unreachable" in lines[2]
    assert lines[3:] == ["1 of 3 cannot be used"]
    assert good.out.endswith("\n2 can be used\n")
    assert strict.out.endswith("\n1 of 2 cannot be used\n")
    told = as_json.json
    assert told["ok"] is False
    assert [(one["file"], one["ok"]) for one in told["files"]] == [
        ("bad.yaml", False),
        ("below/fine.json", True),
        ("below/odd.yml", True),
    ]
    assert not (tmp_path / "state").exists()


def test_lint_reads_standard_input_and_minds_the_limit_of_the_settings(tmp_path: Path) -> None:
    piped = child("workflows", "lint", "-", stdin=ODD.encode(), STACKD_STATE_DIR=str(tmp_path))
    small = child(
        "workflows", "lint", "-", stdin=f"{ODD}# {'x' * 2000}".encode(),
        STACKD_STATE_DIR=str(tmp_path), STACKD_MAX_DOCUMENT_BYTES="2000",
    )  # fmt: skip

    assert piped.returncode == 0
    assert piped.stdout.startswith(b"standard input:4:")
    assert small.returncode == 1
    assert b"error document.too_large" in small.stdout


def test_a_folder_is_imported_as_the_documents_in_it(stackd: Command, tmp_path: Path) -> None:
    for place, name in (("b.yaml", "folder-b"), ("a/a.yml", "folder-a")):
        file = tmp_path / "flows" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(MANUAL.format(id=name))

    ran = stackd("workflows", "import", str(tmp_path / "flows"), "--json")

    assert [one["id"] for one in ran.json] == ["folder-a", "folder-b"]
