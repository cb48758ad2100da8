"""Every command against a running daemon: what it prints for people and as JSON, and how it exits."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli import Command, child, in_terminal
from support.daemon import DaemonProcess, FarSide, eventually, running

from stackd import __version__
from stackd.core.sockets import free_port
from stackd.settings import Settings, ensure_dev_secrets

HELLO = """
id: {id}
name: {id} by name
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: greet, type: transform.data.set, params: {{values: {{text: "Hello, {{{{ start.name | default('you') }}}}"}}}}}}
edges: [{{from: start, to: greet}}]
"""
HOOKED = """
id: {id}
nodes:
  - {{id: hook, type: trigger.webhook.inbound, params: {{path: {id}}}}}
  - {{id: alone, type: transform.data.set, params: {{values: {{}}}}}}
"""
BAD = """id: bad
nodes:
  - {id: start, type: trigger.time.manuel}
  - {id: wait, type: action.time.delay, params: {delaySeconds: soon}}
"""
CALLING = """
id: {id}
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: call, type: action.http.request, params: {{method: POST, url: "{url}"}}}}
edges: [{{from: start, to: call}}]
"""
SLEEPY = """
id: sleepy
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: nap, type: action.time.delay, params: {delayHours: 1}}
edges: [{from: start, to: nap}]
"""
KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCD"


@pytest.fixture(scope="module", autouse=True)
def workflows(daemon: DaemonProcess, far_side: FarSide) -> None:
    daemon.load(HELLO.format(id="hello"))
    daemon.load(SLEEPY)
    daemon.load(CALLING.format(id="broken", url=f"{far_side.url}/status/400"))
    daemon.load(CALLING.format(id="doubtful", url=f"{far_side.url}/drop"))


# -- workflows


def test_import_says_what_came_of_it_and_what_is_next(stackd: Command, tmp_path: Path) -> None:
    file = tmp_path / "hooked.yaml"
    file.write_text(HOOKED.format(id="hooked"))

    inactive = stackd("workflows", "import", str(file))
    active = stackd("workflows", "import", str(file), "--activate")

    assert (inactive.code, active.code) == (0, 0)
    assert inactive.out.startswith("hooked version 1 (inactive)\n")
    assert re.search(r"webhook hook: http://127\.0\.0\.1:\d+/api/webhooks/hooked\n", inactive.out)
    assert f"warning {file}:5:" in inactive.out
    assert "node.unreachable" in inactive.out
    assert inactive.out.endswith("activate it with: stackd workflows activate hooked\n")
    assert active.out.startswith("hooked version 1 (active)\n")
    assert "activate it" not in active.out


def test_import_as_json_is_the_answer_and_a_list_for_several(
    stackd: Command, tmp_path: Path
) -> None:
    files = [tmp_path / f"json-{number}.yaml" for number in range(2)]
    for file in files:
        file.write_text(HELLO.format(id=file.stem))

    one = stackd("workflows", "import", str(files[0]), "--json")
    both = stackd("workflows", "import", *map(str, files), "--json")

    assert set(one.json) == {"id", "version", "active", "warnings", "webhooks"}
    assert [answer["id"] for answer in both.json] == ["json-0", "json-1"]


def test_import_reads_standard_input(daemon: DaemonProcess) -> None:
    text = HELLO.format(id="piped").encode()

    ran = child("workflows", "import", "-", stdin=text, STACKD_STATE_DIR=str(daemon.state))

    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout.startswith(b"piped version 1 (inactive)\n")


def test_a_bad_document_exits_2_with_every_finding_once(stackd: Command, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(BAD)

    refused = stackd("workflows", "import", str(file))
    linted = stackd("workflows", "lint", str(file), "--json")

    told = [
        (
            f"{one['line']}:{one['column']}",
            f"{'warning ' * (one['severity'] == 'warning')}{one['code']}: {one['message']}"
            + (f" ({one['hint']})" if one["hint"] else ""),
        )
        for one in linted.json["files"][0]["findings"]
    ]
    assert (refused.code, refused.out) == (2, "")
    first, *others = refused.err.splitlines()
    (place, words), *further = told
    # Only errors are counted, and the last finding is a warning.
    assert first == f"error: {file}:{place}: {words} (and 1 more)"
    assert others == [f"  {place} {words}" for place, words in further]
    assert len(further) == 2


@pytest.mark.parametrize("verb", ["import", "lint"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.yaml", ": No such file or directory"),
        (".", " holds no document: no file ending in .json, .yaml, .yml"),
    ],
)
def test_a_file_that_cannot_be_read_exits_2(
    stackd: Command, tmp_path: Path, verb: str, name: str, reason: str
) -> None:
    refused = stackd("workflows", verb, str(tmp_path / name))

    assert (refused.code, refused.err) == (2, f"error: {tmp_path / name}{reason}\n")


def test_workflows_are_listed_one_a_line(stackd: Command) -> None:
    plain = stackd("workflows", "list")
    as_json = stackd("workflows", "list", "--json")

    rows = [line.split("\t") for line in plain.out.splitlines()]
    (hello,) = [row for row in rows if row[0] == "hello"]
    assert (plain.code, hello[1:4]) == (0, ["hello by name", "1", "yes"])
    assert [row[0] for row in rows] == [item["id"] for item in as_json.json["items"]]
    assert as_json.json["nextCursor"] is None


def test_show_prints_the_workflow_and_its_document(stackd: Command) -> None:
    plain = stackd("workflows", "show", "hello")
    as_json = stackd("workflows", "show", "hello", "--json")

    head, _, document = plain.out.partition("\n")
    assert head == "hello  hello by name  version 1  active"
    assert json.loads(document) == as_json.json["document"]


def test_activate_and_deactivate_switch(stackd: Command) -> None:
    off = stackd("workflows", "deactivate", "hello")
    off_json = stackd("workflows", "deactivate", "hello", "--json")
    on = stackd("workflows", "activate", "hello")

    assert (off.code, off.out) == (0, "hello is inactive\n")
    assert off_json.json["active"] is False
    assert (on.code, on.out) == (0, "hello is active\n")


def test_run_starts_and_with_wait_shows_the_end(stackd: Command) -> None:
    started = stackd("workflows", "run", "hello", "--input", '{"name": "Ada"}')
    waited = stackd("workflows", "run", "hello", "--input", '{"name": "Ada"}', "--wait")
    as_json = stackd("workflows", "run", "hello", "--input", '{"name": "Bob"}', "--wait", "--json")

    assert started.code == 0
    assert re.fullmatch(r"started [0-9a-z]{26}\n", started.out)
    assert waited.code == 0
    first, *_, last = waited.out.splitlines()
    assert first.endswith("  hello v1  completed")
    assert last == '  output  {"text": "Hello, Ada"}'
    assert "  greet  completed" in waited.out
    assert as_json.json["output"] == {"text": "Hello, Bob"}


def test_run_exits_1_when_it_did_not_complete(stackd: Command) -> None:
    failed = stackd("workflows", "run", "broken", "--wait")
    as_json = stackd("workflows", "run", "broken", "--wait", "--json")

    assert failed.code == 1
    assert "  broken v1  failed\n" in failed.out
    assert "\n  error   " in failed.out
    assert (as_json.code, as_json.json["status"]) == (1, "failed")


def test_run_says_where_to_look_when_the_wait_is_over_first(stackd: Command) -> None:
    ran = stackd("workflows", "run", "sleepy", "--wait", "--timeout", "0.05")

    assert ran.code == 1
    (started,) = re.findall(r"^started (\w+)\n$", ran.out)
    assert ran.err == (
        f"not over after 0.05 s, and goes on; see `stackd executions show {started}`\n"
    )


@pytest.mark.parametrize("given", ["{", "", '{"a": 1, "a": 2}'])
def test_run_with_input_that_is_no_json_exits_2(stackd: Command, given: str) -> None:
    ran = stackd("workflows", "run", "hello", "--input", given)

    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert "JSON" in ran.err


@pytest.mark.parametrize("verb", ["show", "activate", "deactivate", "run"])
@pytest.mark.parametrize("name", ["nobody", "no body", "näme", "a?b#c"])
def test_an_unknown_workflow_exits_2(stackd: Command, verb: str, name: str) -> None:
    ran = stackd("workflows", verb, name)

    assert (ran.code, ran.out, ran.err) == (2, "", f"error: no workflow {name!r}\n")


# -- executions


@pytest.mark.parametrize(
    "words",
    [
        ("credentials", "show"), ("workflows", "show"), ("executions", "show"), ("connectors", "show"),
        ("why",),
    ],
    ids="-".join,
)  # fmt: skip
def test_an_id_is_asked_for_as_it_was_typed(stackd: Command, words: tuple[str, ...]) -> None:
    ran = stackd(*words, "a b/c?d#e%20")

    assert ran.code == 2
    assert re.match(r"error: (no .*)?'a b/c\?d#e%20'", ran.err)


def test_executions_are_listed_newest_first_and_filtered(stackd: Command) -> None:
    ids = [
        stackd("workflows", "run", name, "--wait", "--json").json["id"]
        for name in ("hello", "broken", "hello")
    ]

    plain = stackd("executions", "list", "--limit", "2")
    failed = stackd("executions", "list", "--status", "failed", "--limit", "1")
    of_hello = stackd("executions", "list", "--workflow", "hello", "--limit", "1", "--json")
    further = stackd("executions", "list", "--json", "--cursor", of_hello.json["nextCursor"])

    rows = [line.split("\t") for line in plain.out.splitlines()]
    assert [row[0] for row in rows] == [ids[2], ids[1]]
    assert rows[0][1:3] == ["hello", "completed"]
    assert failed.out.startswith(f"{ids[1]}\tbroken\tfailed\t")
    assert failed.out.endswith("\n")
    assert "400" in failed.out
    assert [item["id"] for item in of_hello.json["items"]] == [ids[2]]
    assert ids[0] in further.out
    assert ids[2] not in further.out


def test_a_state_that_is_none_exits_2_and_names_the_states(stackd: Command) -> None:
    ran = stackd("executions", "list", "--status", "done")

    assert ran.code == 2
    assert "'done' is none of queued, running, waiting" in ran.err


def test_show_exits_1_for_a_failed_execution(stackd: Command) -> None:
    failed = stackd("workflows", "run", "broken", "--wait", "--json").json["id"]
    completed = stackd("workflows", "run", "hello", "--wait", "--json")

    shown = stackd("executions", "show", failed)
    as_json = stackd("executions", "show", failed, "--json")
    fine = stackd("executions", "show", completed.json["id"], "--json")

    assert (shown.code, as_json.code, fine.code) == (1, 1, 0)
    assert shown.out.startswith(f"{failed}  broken v1  failed\n")
    assert as_json.json["error"]["nodeId"] == "call"
    assert fine.json == completed.json


def test_cancel_says_what_it_found(stackd: Command, daemon: DaemonProcess) -> None:
    waiting = daemon.begin("sleepy")
    daemon.until(waiting, "waiting")
    over = daemon.begin("hello")
    daemon.until(over, "completed")

    cancelled = stackd("executions", "cancel", waiting)
    again = stackd("executions", "cancel", waiting, "--json")
    finished = stackd("executions", "cancel", over)

    assert (cancelled.code, cancelled.out) == (0, f"{waiting} is cancelled\n")
    assert again.json == {"success": True, "executionId": waiting, "status": "cancelled"}
    assert (finished.code, finished.out) == (0, f"{over} was already completed\n")


def test_retry_lets_a_cancelled_execution_go_on(stackd: Command, daemon: DaemonProcess) -> None:
    waiting = daemon.begin("sleepy")
    daemon.until(waiting, "waiting")
    early = stackd("executions", "retry", waiting)
    stackd("executions", "cancel", waiting)

    retried = stackd("executions", "retry", waiting)
    daemon.until(waiting, "waiting")
    stackd("executions", "cancel", waiting)
    unknown = stackd("executions", "retry", waiting, "--from", "nap2")
    as_json = stackd("executions", "retry", waiting, "--json")

    assert (early.code, "is waiting, and has not ended" in early.err) == (2, True)
    assert (retried.code, retried.out.startswith(f"{waiting} goes on")) == (0, True)
    assert (unknown.code, "no node of this workflow" in unknown.err) == (2, True)
    assert as_json.json == {"success": True, "executionId": waiting, "status": "queued"}
    daemon.until(waiting, "waiting")
    stackd("executions", "cancel", waiting)


def test_resolve_decides_what_show_asked_for(stackd: Command, daemon: DaemonProcess) -> None:
    execution_id = daemon.begin("doubtful")
    daemon.until(execution_id, "uncertain")

    shown = stackd("executions", "show", execution_id)
    undecided = stackd("executions", "resolve", execution_id)
    both = stackd("executions", "resolve", execution_id, "--skip", "--fail")
    resolved = stackd("executions", "resolve", execution_id, "--node", "call", "--skip")
    daemon.until(execution_id, "completed")
    late = stackd("executions", "resolve", execution_id, "--skip")

    assert shown.code == 1
    assert f"stackd executions resolve {execution_id} --node call --retry | --skip" in shown.out
    for refused in (undecided, both):
        assert (refused.code, refused.err) == (2, "error: say one of --retry, --skip, --fail\n")
    assert (resolved.code, resolved.out) == (0, f"{execution_id} goes on (skip)\n")
    assert (late.code, late.err) == (
        2,
        f"error: execution {execution_id} is completed, not uncertain\n",
    )


def test_resolve_as_json_is_the_answer(stackd: Command, daemon: DaemonProcess) -> None:
    execution_id = daemon.begin("doubtful")
    daemon.until(execution_id, "uncertain")

    resolved = stackd("executions", "resolve", execution_id, "--fail", "--json")

    assert resolved.json == {"success": True, "executionId": execution_id, "status": "queued"}
    daemon.until(execution_id, "failed")


@pytest.mark.parametrize(
    "verb", [["show"], ["cancel"], ["retry"], ["resolve", "--skip"]], ids=lambda v: v[0]
)
def test_an_unknown_execution_exits_2(stackd: Command, verb: list[str]) -> None:
    ran = stackd("executions", *verb, "nobody")

    assert (ran.code, ran.out, ran.err) == (2, "", "error: no execution 'nobody'\n")


# -- queue, health


def test_queue_commands_show_what_is_now(stackd: Command, daemon: DaemonProcess) -> None:
    paused = stackd("queue", "pause")
    try:
        status = stackd("queue", "status")
        as_json = stackd("queue", "status", "--json")
    finally:
        resumed = stackd("queue", "resume", "--json")

    moving = re.compile(
        r"(?<=last heard )\S+|(?<=waits )\S+"
    )  # a process may be heard between the two
    assert moving.sub("…", paused.out) == moving.sub("…", status.out)
    assert status.out.startswith("paused\n")
    assert re.search(r"\n  completed +\d+\n", status.out)
    assert re.search(r"\n  oldest due job waits \d+\.\d s\n", status.out)
    assert f"\n  stack pid {daemon.pid} last heard " in status.out
    assert (as_json.json["paused"], resumed.json["paused"]) == (True, False)
    assert stackd("queue", "status").out.startswith("running\n")


def test_health_is_short_and_in_full(stackd: Command) -> None:
    short = stackd("health")
    full = stackd("health", "--verbose")
    live = stackd("health", "--live", "--verbose")
    as_json = stackd("health", "--ready", "--json")

    first, *warnings = short.out.splitlines()
    assert (short.code, first) == (0, "healthy")
    assert all(line.startswith("  warn ") for line in warnings)  # as of a machine that is busy
    assert full.out.startswith("healthy\n  pass goes_on\n  pass store.write\n")
    assert "\n  pass service.worker\n" in full.out
    assert re.search(r"\n  worker ready since \S+Z\n    \S+Z  starting → ready\n", full.out)
    assert live.out == "healthy\n  pass loop\n  pass services\n"
    assert as_json.json["status"] == "pass"


def test_health_exits_1_while_the_daemon_drains_and_3_when_it_is_gone(
    command: Command, daemons: Callable[..., DaemonProcess], far_side: FarSide
) -> None:
    daemon = daemons()
    daemon.start()
    daemon.load(CALLING.format(id="held", url=f"{far_side.url}/held"))
    environ = {"STACKD_STATE_DIR": str(daemon.state)}
    far_side.is_open.clear()
    daemon.begin("held")
    far_side.arrived("/held")
    os.kill(daemon.pid, signal.SIGTERM)

    draining = eventually(
        "it is not ready", lambda: (ran := command("health", **environ)).code and ran
    )
    live = command("health", "--live", **environ)
    as_json = command("health", "--json", **environ)
    far_side.is_open.set()
    daemon.wait()
    gone = command("health", **environ)

    assert draining.code == 1
    assert draining.out.startswith("not healthy\n")
    assert "\n  fail service.worker  draining\n" in draining.out
    assert (live.code, live.out) == (0, "healthy\n")
    assert (as_json.code, as_json.json["status"]) == (1, "fail")
    assert (gone.code, gone.out) == (3, "")


# -- nothing there, or nothing to show


COMMANDS = [
    ["workflows", "list"],
    ["workflows", "show", "x"],
    ["workflows", "run", "x"],
    ["executions", "list"],
    ["executions", "show", "x"],
    ["executions", "cancel", "x"],
    ["queue", "status"],
    ["queue", "pause"],
    ["token", "list"],
    ["token", "create", "x", "--scope", "read"],
    ["workflows", "export", "x"],
    ["config", "show", "--running"],
    ["health"],
    ["health", "--json"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_without_a_daemon_a_command_exits_3_and_says_where_it_looked(
    command: Command, tmp_path: Path, words: list[str]
) -> None:
    ran = command(*words, STACKD_STATE_DIR=str(tmp_path))

    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith(f"error: no daemon answers at {tmp_path / 'stackd.sock'} (")
    assert "\n  try: start one with `stackd dev`" in ran.err


def test_over_tcp_a_command_needs_the_token(command: Command, daemon: DaemonProcess) -> None:
    open_to_all = command("health", STACKD_URL=daemon.url)
    none = command("queue", "status", STACKD_URL=daemon.url)
    wrong = command("queue", "status", STACKD_URL=daemon.url, STACKD_TOKEN="wrong")
    right = command("queue", "status", STACKD_URL=daemon.url, STACKD_TOKEN=daemon.token)

    assert (open_to_all.code, right.code) == (0, 0)
    hint = "  try: set STACKD_TOKEN to what dev-token in the daemon's state directory holds\n"
    assert (none.code, none.err) == (1, f"error: send a bearer token\n{hint}")
    assert (wrong.code, wrong.err) == (1, f"error: this token is not known\n{hint}")


def test_a_url_that_nothing_answers_at_exits_3_and_one_that_is_none_2(command: Command) -> None:
    closed = f"http://127.0.0.1:{free_port()}"

    silent = command("queue", "status", STACKD_URL=closed)
    nonsense = [
        command("queue", "status", STACKD_URL=url)
        for url in ("ftp://here", "localhost:5000", "http://here:port", "http://[::1")
    ]

    assert silent.code == 3
    assert silent.err.startswith(f"error: no daemon answers at {closed} (")
    for ran in nonsense:
        assert ran.code == 2
        assert "is no http or https URL" in ran.err


def test_on_a_terminal_an_empty_list_says_what_to_do_and_a_full_one_has_a_head(
    command: Command, tmp_path: Path
) -> None:
    with running(tmp_path) as daemon:
        environ = {"STACKD_STATE_DIR": str(daemon.state)}
        empty = [in_terminal(noun, "list", **environ) for noun in ("workflows", "executions")]
        piped = command("workflows", "list", **environ)
        as_json = command("executions", "list", "--json", **environ)
        daemon.load(HELLO.format(id="hello"))
        full = in_terminal("workflows", "list", **environ)

    assert empty == [
        "no workflows yet; import one with `stackd workflows import FILE`\n",
        "no executions yet; start one with `stackd workflows run ID`\n",
    ]
    assert (piped.code, piped.out) == (0, "")
    assert as_json.json == {"items": [], "nextCursor": None}
    head, row = full.splitlines()
    assert head.split() == ["id", "name", "version", "active", "updated"]
    assert row.split()[:6] == ["hello", "hello", "by", "name", "1", "yes"]


@pytest.mark.parametrize("place", [".env", "config"])
def test_commands_find_the_dev_whose_state_directory_a_file_names(
    command: Command, tmp_path: Path, place: str
) -> None:
    with running(tmp_path) as daemon:
        given = {}
        if place == ".env":  # of the folder that commands run in
            (tmp_path / ".env").write_text(f"STACKD_STATE_DIR={daemon.state}\n")
        else:
            (tmp_path / "own.toml").write_text(f'STACKD_STATE_DIR = "{daemon.state}"\n')
            given = {"STACKD_CONFIG": str(tmp_path / "own.toml")}

        ran = [command(*words, **given) for words in (("health",), ("executions", "list"))]

    assert [one.code for one in ran] == [0, 0], ran


# -- settings


def test_config_show_has_every_setting_with_its_source_and_no_secret(
    command: Command, tmp_path: Path
) -> None:
    given = {"STACKD_STATE_DIR": str(tmp_path), "PORT": "7001", "ENCRYPTION_MASTER_KEY": KEY}

    plain = command("config", "show", **given)
    as_json = command("config", "show", "--json", **given)

    rows = dict(line.split("\t", 1) for line in plain.out.splitlines())
    assert rows["PORT"] == "7001\tenvironment"
    assert rows["HOST"] == "127.0.0.1\tdefault"
    assert rows["ENCRYPTION_MASTER_KEY"] == "(set)\tenvironment"
    assert KEY not in plain.out + as_json.out
    settings = {row["name"]: row for row in as_json.json["settings"]}
    assert settings.keys() == rows.keys()
    assert settings["PORT"] == {"name": "PORT", "value": 7001, "source": "environment"}


def test_config_show_warns_of_what_start_would_refuse(command: Command, tmp_path: Path) -> None:
    ran = command("config", "show", STACKD_STATE_DIR=str(tmp_path), STACKD_MAX_JOB="3")

    assert ran.code == 0
    assert "warning: STACKD_MAX_JOB (environment): is no setting" in ran.err
    assert "STACKD_MAX_JOBS" in ran.err


def test_config_show_shows_every_setting_and_what_is_wrong_with_them(
    command: Command, tmp_path: Path
) -> None:
    given = {"STACKD_STATE_DIR": str(tmp_path), "PORT": "http", "EXECUTION_MAX_RETRIES": "7"}

    plain = command("config", "show", **given)
    as_json = command("config", "show", "--json", **given)

    rows = dict(line.split("\t", 1) for line in plain.out.splitlines())
    assert (plain.code, as_json.code) == (2, 2)
    assert rows["EXECUTION_MAX_RETRIES"] == "7\tenvironment"
    assert rows["PORT"] == "5000\tdefault, for the bad value (environment)"
    assert rows["ENABLE_INLINE_WORKER"].split("\t")[0] in ("true", "false")
    assert plain.err == "problem: PORT='http' (environment): must be a number\n"
    assert json.loads(as_json.out)["problems"] == ["PORT='http' (environment): must be a number"]


def test_config_shows_the_key_that_dev_has_made_as_set_and_makes_none(
    command: Command, tmp_path: Path
) -> None:
    state = tmp_path / "state"

    before = command("config", "show", STACKD_STATE_DIR=str(state))
    made_by_looking = state.exists()
    ensure_dev_secrets(Settings(STACKD_ENV="development", STACKD_STATE_DIR=str(state)))
    after = command("config", "show", STACKD_STATE_DIR=str(state))
    (state / "secrets.env").write_text("")
    broken = command("config", "check", "--mode", "dev", STACKD_STATE_DIR=str(state))

    assert "ENCRYPTION_MASTER_KEY\t(not set)\tdefault\n" in before.out
    assert not made_by_looking
    assert f"ENCRYPTION_MASTER_KEY\t(set)\t{state / 'secrets.env'}\n" in after.out
    assert broken.code == 2
    assert broken.out.startswith(f"problem: {state / 'secrets.env'} holds no ENCRYPTION_MASTER_KEY")


def test_config_check_refuses_what_the_role_of_dev_would(command: Command, tmp_path: Path) -> None:
    given = {"STACKD_STATE_DIR": str(tmp_path), "QUEUE_DRIVER": "inmemory"}

    stack = command("config", "check", "--mode", "dev", **given)
    one = command("config", "check", "--mode", "dev", "--role", "worker", **given)
    started = command("dev", **given)

    assert (stack.code, one.code, started.code) == (2, 0, 78)
    assert stack.out.startswith("problem: QUEUE_DRIVER=inmemory: the stack needs a durable queue")
    assert "QUEUE_DRIVER=inmemory: the stack needs a durable queue" in started.err


def test_a_refused_start_has_made_nothing(command: Command, tmp_path: Path) -> None:
    ran = command("start", STACKD_STATE_DIR=str(tmp_path / "state"))

    assert ran.code == 78
    assert not (tmp_path / "state").exists()


def test_config_check_accepts_what_start_would(command: Command, tmp_path: Path) -> None:
    given = {"STACKD_STATE_DIR": str(tmp_path), "ENCRYPTION_MASTER_KEY": KEY}

    plain = command("config", "check", **given)
    as_json = command("config", "check", "--json", **given)

    assert (plain.code, plain.out) == (0, "settings can be used\n")
    assert as_json.json == {"ok": True, "problems": [], "warnings": []}


def test_config_check_lists_every_problem_and_exits_2(command: Command, tmp_path: Path) -> None:
    given = {"STACKD_STATE_DIR": str(tmp_path), "PORT": "99999", "STACKD_MAX_JOB": "3"}

    plain = command("config", "check", **given)
    as_json = command("config", "check", "--json", **given)
    as_dev = command("config", "check", "--mode", "dev", STACKD_STATE_DIR=str(tmp_path))

    lines = plain.out.splitlines()
    assert (plain.code, as_json.code, as_dev.code) == (2, 2, 0)
    assert all(line.startswith("problem: ") for line in lines)
    for name in ("PORT", "STACKD_MAX_JOB"):
        assert any(name in line for line in lines), name
    told = json.loads(as_json.out)
    assert (told["ok"], [f"problem: {one}" for one in told["problems"]]) == (False, lines)


def test_config_show_of_a_running_daemon_is_what_it_was_started_with(
    command: Command, daemons: Callable[..., DaemonProcess]
) -> None:
    daemon = daemons(EXECUTION_MAX_RETRIES="7", ENCRYPTION_MASTER_KEY=KEY, STACKD_MAX_JOB="3")
    daemon.start("api")
    elsewhere = {"STACKD_STATE_DIR": str(daemon.state), "EXECUTION_MAX_RETRIES": "9"}

    plain = command("config", "show", "--running", **elsewhere)
    as_json = command("config", "show", "--running", "--json", **elsewhere)
    here = command("config", "show", "--json", **elsewhere)

    rows = dict(line.split("\t", 1) for line in plain.out.splitlines())
    assert plain.code == 0
    assert rows["EXECUTION_MAX_RETRIES"] == "7\tenvironment"
    assert rows["ENCRYPTION_MASTER_KEY"] == "(set)\tenvironment"
    assert "warning: STACKD_MAX_JOB (environment): is no setting" in plain.err
    assert KEY not in plain.out + as_json.out
    assert [row["name"] for row in as_json.json["settings"]] == [
        row["name"] for row in here.json["settings"]
    ]
    assert as_json.json.keys() == here.json.keys()
    assert daemon.http("GET", "/api/config").json == as_json.json
    assert daemon.terminate() == 0


# -- the frame


def test_version_is_printed(command: Command) -> None:
    ran = command("--version")

    assert (ran.code, ran.out) == (0, f"{__version__}\n")


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["workflows", "nonsense"],
        ["workflows", "show"],
        ["workflows", "show", "x", "--nonsense"],
        ["executions", "list", "--limit", "0"],
        ["start", "nobody"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(command: Command, words: list[str]) -> None:
    ran = command(*words)

    assert (ran.code, ran.out) == (2, "")
    assert "Error" in ran.err


def test_errors_have_a_traceback_only_with_debug(tmp_path: Path) -> None:
    plain = child("queue", "status", STACKD_STATE_DIR=str(tmp_path))
    debug = child("--debug", "queue", "status", STACKD_STATE_DIR=str(tmp_path))

    assert plain.returncode == 3
    assert plain.stderr.count(b"\n") == 2
    assert b"Traceback" not in plain.stderr
    assert debug.returncode != 0
    assert b"Traceback" in debug.stderr
    assert b"UnreachableError: no daemon answers" in debug.stderr
