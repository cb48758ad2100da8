"""Operations that nothing can run: told at import, refused at activation, told again when a reload takes them away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cli import Command, Ran
from support.daemon import DaemonProcess, eventually, running

GENERIC = "GENERIC_EXECUTOR_ENABLED"
DOCUMENT = """id: {id}
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: made, type: action.github.create_issue, params: {{}}}}
  - id: each
    type: logic.foreach
    params: {{items: [1]}}
    nodes:
      - {{id: tell, type: action.slack.{operation}, params: {{}}}}
edges:
  - {{from: start, to: made}}
  - {{from: made, to: each}}
"""
PLAIN = """id: {id}
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: tell, type: transform.data.set, params: {{values: {{}}}}}}
edges: [{{from: start, to: tell}}]
"""
OFF = "runtime.fallback_disabled"
TOLD = (
    "tell: Slack is not enabled in Python: slack.post_message needs generic HTTP, which is off; "
    "set GENERIC_EXECUTOR_ENABLED=true"
)


def told(name: str, operation: str = "post_message") -> bytes:
    return DOCUMENT.format(id=name, operation=operation).encode()


Switch = Callable[[bool], None]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tmp_path_factory.mktemp("coverage") / "stackd.toml"
    config.write_text(f"{GENERIC} = false\n")
    return config


@pytest.fixture(scope="module")
def daemon(config: Path) -> Iterator[DaemonProcess]:
    """Its own daemon: others of this folder have no config file to reload."""
    with running(config.parent, STACKD_CONFIG=str(config)) as started:
        yield started


@pytest.fixture
def generic(daemon: DaemonProcess, config: Path) -> Iterator[Switch]:
    """Switches generic HTTP on and off; off at the end."""

    def switch(on: bool) -> None:
        config.write_text(f"{GENERIC} = {str(on).lower()}\n")
        assert daemon.http("POST", "/api/config/reload").status == 200

    yield switch
    switch(False)


def view(daemon: DaemonProcess, name: str) -> Any:
    return daemon.http("GET", f"/api/workflows/{name}").json


def test_it_is_stored_with_a_warning_and_not_activated_unless_by_force(daemon: DaemonProcess):
    stored = daemon.http("POST", "/api/workflows?name=a.yaml", told("a"))
    refused = daemon.http("POST", "/api/workflows/a/activate")

    assert stored.status == 201
    (warning,) = stored.json["warnings"]
    assert (warning["severity"], warning["code"], warning["line"], warning["column"]) == (
        "warning", OFF, 9, 20,
    )  # fmt: skip
    assert warning["message"] == TOLD
    assert (refused.status, refused.code) == (409, OFF)
    assert refused.json["detail"] == f"a cannot be activated: a: {TOLD}"
    assert refused.json["findings"][0]["severity"] == "error"
    assert not view(daemon, "a")["active"]

    forced = daemon.http("POST", "/api/workflows/a/activate?force=true")
    again = daemon.http("POST", "/api/workflows/a/activate")

    assert (forced.status, forced.json["active"]) == (200, True)
    assert [one["code"] for one in forced.json["warnings"]] == [OFF]
    assert again.status == 200  # as it was: nothing is activated


def test_an_import_that_would_activate_it_stores_nothing(daemon: DaemonProcess):
    refused = daemon.http("POST", "/api/workflows?activate=true&name=b.yaml", told("b"))
    unheard_of = daemon.http("POST", "/api/workflows?activate=true", told("b", "post_mesage"))

    assert (refused.status, refused.code) == (409, OFF)
    assert refused.json["detail"] == f"b cannot be activated: b.yaml:9:20: {TOLD}"
    assert unheard_of.code == "runtime.missing_capability"
    assert [one["hint"] for one in unheard_of.json["findings"]] == ["did you mean 'post_message'?"]
    assert daemon.http("GET", "/api/workflows/b").status == 404

    forced = daemon.http("POST", "/api/workflows?activate=true&force=true", told("b"))

    assert (forced.status, forced.json["active"]) == (201, True)
    assert [one["code"] for one in forced.json["warnings"]] == [OFF]


def test_an_active_workflow_gets_no_version_that_could_not_be_activated(daemon: DaemonProcess):
    daemon.api.post("/api/workflows", told("c"))
    daemon.load(PLAIN.format(id="c"))

    again = daemon.http("POST", "/api/workflows", told("c"))
    back = daemon.http("POST", "/api/workflows/c/rollback", {"version": 1})

    assert (again.code, back.code) == (OFF, OFF)
    assert (view(daemon, "c")["version"], view(daemon, "c")["active"]) == (2, True)
    forced = daemon.http("POST", "/api/workflows/c/rollback?force=true", {"version": 1})
    assert (forced.status, forced.json["version"], forced.json["active"]) == (200, 1, True)
    assert daemon.http("POST", "/api/workflows", told("c")).status == 200  # as it is


def test_what_generic_http_runs_is_active_with_a_warning_until_a_reload_takes_it_away(
    daemon: DaemonProcess, generic: Switch, command: Command
):
    generic(True)
    stored = daemon.http("POST", "/api/workflows?activate=true", told("d"))
    assert (stored.status, stored.json["active"]) == (201, True)
    assert [one["code"] for one in stored.json["warnings"]] == ["runtime.fallback"]

    generic(False)

    assert view(daemon, "d")["active"]
    assert [one["code"] for one in view(daemon, "d")["warnings"]] == [OFF]
    assert OFF in [one["code"] for one in daemon.api.get("/api/why/d")["reasons"]]
    logged = daemon.logged("an active workflow has nodes that nothing can run")
    assert [TOLD] in [one["nodes"] for one in logged if one["workflow"] == "d"]
    shown = command("workflows", "show", "d", STACKD_STATE_DIR=str(daemon.state))
    assert f"  warning {OFF}: {TOLD}\n" in shown.out


def test_it_is_told_at_a_start_too(daemon: DaemonProcess):
    daemon.api.post("/api/workflows", told("g"), activate="true", force="true")

    def lines() -> list[Any]:
        logged = daemon.logged("an active workflow has nodes that nothing can run")
        return [one["nodes"] for one in logged if one["workflow"] == "g"]

    before = len(lines())
    assert daemon.terminate() == 0
    daemon.start()

    assert eventually("it is told", lambda: lines()[before:]) == [[TOLD]]


def test_lint_says_the_same_at_the_daemon_and_beside_it_and_without_one_that_it_does_not_know(
    daemon: DaemonProcess, command: Command, tmp_path: Path
):
    file = tmp_path / "e.yaml"
    file.write_bytes(told("e"))

    def lint(state: Path, *words: str) -> Ran:
        return command("workflows", "lint", str(file), *words, STACKD_STATE_DIR=str(state))

    asked = daemon.http("POST", "/api/workflows/lint", file.read_bytes()).json
    beside, strict = lint(daemon.state, "--json"), lint(daemon.state, "--strict")
    without = lint(tmp_path)

    assert asked["ok"]
    assert beside.json == {
        "ok": True,
        "files": [{"file": str(file), "ok": True, "findings": asked["findings"]}],
        "unchecked": None,
    }
    assert strict.code == 1
    assert f"{file}:9:20: warning {OFF}: {TOLD}" in strict.out
    assert (without.code, without.out) == (0, "1 can be used\n")
    assert "was not checked: no daemon answers at" in without.err


def test_the_commands_say_what_is_refused_and_take_force(
    daemon: DaemonProcess, command: Command, tmp_path: Path
):
    file = tmp_path / "f.yaml"
    file.write_bytes(told("f"))

    def stackd(*words: str) -> Ran:
        return command("workflows", *words, STACKD_STATE_DIR=str(daemon.state))

    refused = stackd("import", str(file), "--activate")
    stored, tried = stackd("import", str(file)), stackd("activate", "f")
    forced = stackd("activate", "f", "--force")

    assert (refused.code, stored.code, tried.code, forced.code) == (2, 0, 2, 0)
    assert f"f cannot be activated: {file}:9:20: {OFF}: {TOLD}" in refused.err
    assert "by force (--force" in refused.err
    assert f"f cannot be activated: f: {OFF}: {TOLD}" in tried.err
    assert tried.err.count(TOLD) == 1
    assert forced.out == f"f is active\n  warning {OFF}: {TOLD}\n"
