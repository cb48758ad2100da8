"""Commands where something is wrong: with what they are given, with who answers, or with where they print."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
from support.cli import Command, child, in_terminal
from support.daemon import ENVIRON, DaemonProcess, eventually
from support.stub import HOLD, listening, said

NASTY = "[/foo] [bold]x[/] \x1b[31mred\x1b[0m \x07\x9b2J \u202egpj.exe\ttab\nline"
SHOWN = r"[/foo] [bold]x[/] \x1b[31mred\x1b[0m \x07\x9b2J \u202egpj.exe\ttab\nline"
SLEEPY = """
id: sleepy
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: nap, type: action.time.delay, params: {delayHours: 1}}
edges: [{from: start, to: nap}]
"""


@pytest.fixture(scope="module")
def nasty(daemon: DaemonProcess) -> str:
    """An execution that failed with an error and an output full of what a terminal would obey."""
    daemon.load(
        json.dumps(
            {
                "id": "nasty",
                "name": NASTY,
                "nodes": [
                    {"id": "start", "type": "trigger.time.manual"},
                    {"id": "call", "type": "action.http.request", "params": {"url": f"http://h/{NASTY}"}},
                ],
                "edges": [{"from": "start", "to": "call"}],
            }
        )
    )  # fmt: skip
    execution_id = daemon.begin("nasty", NASTY)
    daemon.until(execution_id, "failed")
    return execution_id


def unseen(text: str) -> set[str]:
    """The characters in `text` that a terminal does not show but does something at."""
    return {c for c in text if not c.isprintable() and not c.isspace()} | (
        set(text) & set("\r\v\f\x85\u2028")
    )


# -- text from outside


def test_on_a_terminal_text_from_outside_is_shown_and_not_obeyed(
    daemon: DaemonProcess, nasty: str
) -> None:
    environ = {"STACKD_STATE_DIR": str(daemon.state)}

    told = {
        words: in_terminal(*words, **environ)
        for words in (
            ("workflows", "list"),
            ("workflows", "show", "nasty"),
            ("executions", "list"),
            ("executions", "show", nasty),
            ("executions", "show", nasty, "--json"),
        )
    }

    for text in told.values():
        assert unseen(text) == set(), text
    for command in (("workflows", "show", "nasty"), ("workflows", "list")):
        assert SHOWN in told[command]
    assert r"http://h/[/foo] [bold]x[/] \x1b[31mred\x1b[0m" in told["executions", "show", nasty]
    assert json.loads(told["executions", "show", nasty, "--json"])["input"] == NASTY


def test_a_row_is_a_line_and_a_cell_no_more_than_a_cell(stackd: Command, nasty: str) -> None:
    listed = stackd("workflows", "list")

    (row,) = [line.split("\t") for line in listed.out.splitlines() if line.startswith("nasty")]
    assert (len(row), row[1]) == (5, SHOWN)


def test_an_error_shows_what_it_quotes_and_does_not_obey_it(
    stackd: Command, tmp_path: Path
) -> None:
    file = tmp_path / "a\x1b[2J\nerror: b.yaml"
    file.write_text(json.dumps({"id": "x", NASTY: 1, "nodes": [{"id": NASTY}]}))

    refused = stackd("workflows", "import", str(file))
    missing = stackd("workflows", "import", f"{file}.none")
    unknown = stackd("workflows", "show", NASTY)

    assert [one.code for one in (refused, missing, unknown)] == [2, 2, 2]
    for one in (refused, missing, unknown):
        assert unseen(one.err) == set()
        assert one.err.count("error: ") - one.err.count(r"\nerror: ") == 1
    assert refused.err.splitlines()[0].startswith(rf"error: {tmp_path}/a\x1b[2J\nerror: b.yaml:1:")


# -- what it is given


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"STACKD_URL": "http://127.0.0.1:5000\n"}, r"error: 'http://127.0.0.1:5000\n' is no http or https URL"),
        ({"STACKD_URL": "http://a..b"}, "error: 'http://a..b' is no http or https URL"),
        ({"STACKD_URL": "http://h", "STACKD_TOKEN": "a\nb"}, "error: character 2 of the token cannot be sent"),
        ({"STACKD_URL": "http://h", "STACKD_TOKEN": "ab€"}, "error: character 3 of the token cannot be sent"),
    ],
)  # fmt: skip
def test_a_place_or_token_that_cannot_be_used_exits_2_with_a_remedy(
    command: Command, environ: dict[str, str], words: str
) -> None:
    ran = command("queue", "status", **environ)

    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(words)
    assert f"\n  try: set {list(environ)[-1]} to " in ran.err


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "-1", "1e999", "soon"])
def test_a_timeout_that_is_no_time_exits_2_before_anything_starts(
    stackd: Command, seconds: str
) -> None:
    ran = stackd("workflows", "run", "nobody", "--wait", f"--timeout={seconds}")

    assert (ran.code, ran.out) == (2, "")
    assert "Invalid value for '--timeout'" in ran.err


def test_bytes_that_are_no_utf_8_exit_2_with_their_place(
    stackd: Command, daemon: DaemonProcess, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"id: x\nname: \xff\n")
    state = str(daemon.state)

    from_file = stackd("workflows", "import", str(tmp_path / "bad.yaml"))
    from_stdin = child("workflows", "import", "-", stdin=b"id: \xff", STACKD_STATE_DIR=state)
    given = stackd("workflows", "run", "nobody", "--input", os.fsdecode(b'{"a": "\xff"}'))
    name = stackd("workflows", "show", os.fsdecode(b"\xff"))

    assert [one.code for one in (from_file, given, name)] == [2, 2, 2]
    assert from_file.err.startswith(
        f"error: {tmp_path / 'bad.yaml'}:2:7: document.encoding: not valid UTF-8 at byte 12"
    )
    assert from_stdin.returncode == 2
    assert from_stdin.stderr.startswith(
        b"error: standard input:1:5: document.encoding: not valid UTF-8 at byte 4"
    )
    assert given.err.startswith("error: --input: not valid UTF-8 at byte 7\n  try: ")
    assert name.err == "error: no workflow '%FF'\n"


def test_input_that_has_no_end_is_not_read_to_it(stackd: Command) -> None:
    ran = stackd("workflows", "import", "/dev/zero")

    assert (ran.code, ran.err) == (2, "error: /dev/zero is over 67,108,864 bytes\n")


def test_input_that_is_closed_exits_2(daemon: DaemonProcess) -> None:
    ran = in_shell("workflows import - <&-", daemon)

    assert (ran.returncode, ran.stderr) == (2, b"error: standard input is closed\n")


# -- who answers


def test_only_a_daemon_that_was_not_reached_exits_3(command: Command) -> None:
    with listening(b"") as stub:
        cut_off = command("queue", "pause", STACKD_URL=stub.url)
    gone = command("queue", "pause", STACKD_URL=stub.url)
    with listening(said(200, b"<html>", "text/html")) as stub:
        foreign = command("queue", "pause", STACKD_URL=stub.url)

    assert (cut_off.code, gone.code, foreign.code) == (1, 3, 1)
    assert "closed the connection before it had answered\n  try: it may have done" in cut_off.err
    assert "is no stackd daemon, or one of another version\n" in foreign.err


@pytest.mark.parametrize("body", [{}, {"items": 1, "status": "ok"}], ids=["empty", "another"])
@pytest.mark.parametrize(
    "words",
    [
        "queue status", "queue pause", "health", "workflows list", "workflows show x", "workflows activate x",
        "workflows run x", "workflows run x --wait", "executions list", "executions show x",
        "executions cancel x", "executions resolve x --skip", "workflows import -",
    ],
)  # fmt: skip
def test_json_that_is_not_what_was_asked_for_is_of_no_daemon(
    command: Command, monkeypatch: pytest.MonkeyPatch, words: str, body: dict[str, Any]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"id: x")))
    with listening(said(200, body)) as stub:
        ran = command(*words.split(), STACKD_URL=stub.url)

    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"error: what answers at {stub.url} is no stackd daemon")
    assert "\n  try: set STACKD_URL" in ran.err


@pytest.mark.parametrize("findings", [3, [7], {"a": 1}])
def test_a_problem_of_another_program_is_told_as_far_as_it_is_one(
    command: Command, findings: object
) -> None:
    problem = {"detail": ["no"], "hint": {"a": 1}, "findings": findings}
    with listening(said(418, problem)) as stub:
        ran = command("queue", "status", STACKD_URL=stub.url)

    assert (ran.code, ran.out, ran.err) == (1, "", "error: ['no']\n  try: {'a': 1}\n")


def test_a_fault_of_ours_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "psutil.py").write_text("raise RuntimeError('boom')\n")  # which `bench` needs

    ran = child("bench", PYTHONPATH=str(tmp_path))

    assert (ran.returncode, ran.stdout) == (1, b"")
    assert ran.stderr.startswith(b"error: this is a fault of stackd: RuntimeError: boom\n  try: ")
    assert ran.stderr.count(b"\n") == 2


def view(status: str) -> dict[str, Any]:
    return {
        "id": "e1", "workflowId": "x", "version": 1, "status": status, "createdAt": "now", "startedAt": None,
        "finishedAt": None, "error": None, "nodes": [], "input": None, "output": None,
        "trigger": {"type": "trigger.time.manual", "nodeId": "start"}, "parent": None, "moreNodes": False,
    }  # fmt: skip


STARTED = said(202, {"success": True, "executionId": "e1", "workflowId": "x"})


def test_show_says_who_started_it_and_that_not_all_node_runs_are_there(command: Command) -> None:
    called = view("completed") | {"parent": {"executionId": "e0", "node": "call"}}
    with listening(said(200, called | {"moreNodes": True})) as stub:
        ran = command("executions", "show", "e1", STACKD_URL=stub.url)

    assert ran.code == 0
    assert "\n  parent  e0  call\n" in ran.out
    assert "\n  more node runs are not shown: /api/executions/e1/nodes has all of them\n" in ran.out


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["plain", "json"])
def test_a_wait_that_ends_before_the_execution_does_exits_1_and_says_how_to_look(
    command: Command, as_json: list[str]
) -> None:
    with listening(STARTED, said(200, view("running"))) as stub:
        ran = command(
            "workflows", "run", "x", "--wait", "--timeout", "0.01", *as_json, STACKD_URL=stub.url
        )

    assert ran.code == 1
    assert ran.err == "not over after 0.01 s, and goes on; see `stackd executions show e1`\n"


def test_a_wait_longer_than_the_api_holds_a_request_goes_on(command: Command) -> None:
    with listening(STARTED, said(200, view("running")), said(200, view("completed"))) as stub:
        ran = command("workflows", "run", "x", "--wait", "--timeout", "600", STACKD_URL=stub.url)

    assert stub.requests == [
        "POST /api/workflows/x/run?wait=300.0 HTTP/1.1",
        "GET /api/executions/e1 HTTP/1.1",
        "GET /api/executions/e1 HTTP/1.1",
    ]
    assert (ran.code, ran.out.splitlines()[0]) == (0, "e1  x v1  completed")


# -- Ctrl-C


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["queue", "status"], b""),
        (
            ["workflows", "run", "x", "--wait"],
            b"interrupted; it goes on, see `stackd executions list --workflow x`\n",
        ),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_ctrl_c_ends_a_command_that_waits(words: list[str], told: bytes) -> None:
    with (
        listening(HOLD) as stub,
        subprocess.Popen(
            [sys.executable, "-m", "stackd", *words],
            env=ENVIRON | {"STACKD_URL": stub.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as ran,
    ):
        eventually("it asks", lambda: stub.requests)
        ran.send_signal(signal.SIGINT)
        out, err = ran.communicate(timeout=30)

    assert (ran.returncode, out, err) == (130, b"", told)


def test_ctrl_c_while_it_still_loads_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")  # as if it came just then

    ran = child("queue", "status", PYTHONPATH=str(tmp_path))

    assert (ran.returncode, ran.stdout, ran.stderr) == (130, b"", b"")


# -- where it prints


def in_shell(
    line: str, daemon: DaemonProcess, **environ: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", f"{sys.executable} -m stackd {line}"],
        env=ENVIRON | {"STACKD_STATE_DIR": str(daemon.state)} | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    "line",
    [
        "workflows list",
        "workflows list --json",
        "queue status",
        "health",
        "config show",
        "--version",
    ],
)
def test_output_that_cannot_be_written_exits_1_and_says_so(
    daemon: DaemonProcess, nasty: str, line: str
) -> None:
    ran = in_shell(f"{line} > /dev/full", daemon)

    assert ran.returncode == 1
    assert ran.stderr == b"error: standard output cannot be written: No space left on device\n"


def test_a_full_disk_behind_standard_error_too_leaves_the_exit_code(daemon: DaemonProcess) -> None:
    assert in_shell("workflows show nobody 2> /dev/full", daemon).returncode == 2
    assert in_shell("queue status > /dev/full 2> /dev/full", daemon).returncode == 1


def test_an_error_that_nobody_wants_is_not_told_elsewhere(daemon: DaemonProcess) -> None:
    ran = in_shell("workflows show nobody 2>&-", daemon)

    assert (ran.returncode, ran.stdout) == (2, b"")


def without_reader(daemon: DaemonProcess, *words: str) -> subprocess.CompletedProcess[bytes]:
    """A command whose output nobody reads any more before it prints."""
    with subprocess.Popen(
        [sys.executable, "-m", "stackd", *words],
        env=ENVIRON | {"STACKD_STATE_DIR": str(daemon.state)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as ran:
        pipe: IO[bytes] | None = ran.stdout
        assert pipe is not None
        pipe.close()
        assert ran.stderr is not None
        told = ran.stderr.read()
    return subprocess.CompletedProcess(words, ran.returncode, b"", told)


@pytest.mark.parametrize(
    "words", [["workflows", "list"], ["executions", "list", "--json"], ["--help"]], ids=" ".join
)
def test_output_that_nobody_reads_ends_a_command_in_silence(
    daemon: DaemonProcess, nasty: str, words: list[str]
) -> None:
    ran = without_reader(daemon, *words)

    assert (ran.returncode, ran.stderr) == (1, b"")


def test_output_that_is_closed_is_not_wanted(daemon: DaemonProcess, nasty: str) -> None:
    ran = in_shell("workflows list >&-", daemon)

    assert (ran.returncode, ran.stderr) == (0, b"")


def test_what_the_locale_cannot_show_is_written_out(daemon: DaemonProcess, nasty: str) -> None:
    ran = in_shell(f"executions show {nasty}", daemon, PYTHONIOENCODING="ascii")

    assert ran.returncode == 1
    assert re.search(rb"call +failed .*\\u2501", ran.stdout)
    assert ran.stderr == b""
