"""What a person at a terminal has of the commands: completion, colours, progress."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli import child, in_terminal
from support.daemon import ENVIRON, DaemonProcess

STACKD = Path(sys.executable).parent / "stackd"
MANUAL = "id: {id}\nnodes: [{{id: start, type: trigger.time.manual}}]\n"

# Asks the script that `stackd --show-completion` prints below bash, as bash does when Tab is pressed.
PRESS_TAB = """
eval "$(stackd --show-completion)"
COMP_WORDS=({words}) COMP_CWORD={last}
_stackd_completion stackd
echo "${{COMPREPLY[*]}}"
"""


@pytest.fixture(scope="module", autouse=True)
def workflows(daemon: DaemonProcess) -> None:
    for name in ("hello", "help-desk", "other"):
        daemon.load(MANUAL.format(id=name))


def environ(state: Path, **more: str) -> dict[str, str]:
    path = f"{STACKD.parent}:{ENVIRON.get('PATH', '/usr/bin:/bin')}"
    return ENVIRON | {"PATH": path, "STACKD_STATE_DIR": str(state)} | more


def tab(state: Path, typed: str) -> list[str]:
    """What bash offers after `typed`."""
    words = typed.split(" ")
    script = PRESS_TAB.format(words=" ".join(word or "''" for word in words), last=len(words) - 1)
    ended = subprocess.run(
        ["bash", "-c", script],
        env=environ(state),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.split()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("stackd workf", ["workflows"]),
        ("stackd workflows ro", ["rollback"]),
        ("stackd workflows show hel", ["hello", "help-desk"]),
        ("stackd workflows show hello", ["hello"]),
        ("stackd workflows run o", ["other"]),
        ("stackd workflows show zzz", []),
        ("stackd executions list --workflow hello", ["hello"]),
        ("stackd executions tail --workflow hello", ["hello"]),
    ],
)
def test_bash_completes_commands_and_ids_of_the_running_daemon(
    daemon: DaemonProcess, typed: str, offered: list[str]
) -> None:
    assert tab(daemon.state, typed) == offered


def test_bash_completes_executions_and_tokens(daemon: DaemonProcess) -> None:
    execution = daemon.begin("hello")
    token = daemon.api.post("/api/tokens", {"name": "x", "scopes": ["read"]})["id"]

    for verb in ("show", "tail"):
        assert execution in tab(daemon.state, f"stackd executions {verb} {execution[:4]}")
    assert tab(daemon.state, f"stackd token revoke {token[:-2]}") == [token]


def test_without_a_daemon_nothing_is_completed_and_nothing_said(tmp_path: Path) -> None:
    assert tab(tmp_path, "stackd workflows show hel") == []


@pytest.mark.parametrize(
    ("shell", "asked"),
    [
        ("zsh", {"_TYPER_COMPLETE_ARGS": "stackd workflows show hel"}),
        (
            "fish",
            {
                "_TYPER_COMPLETE_ARGS": "stackd workflows show hel",
                "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            },
        ),
    ],
)
def test_zsh_and_fish_are_offered_the_same(
    daemon: DaemonProcess, shell: str, asked: dict[str, str]
) -> None:
    given = environ(daemon.state, _STACKD_COMPLETE=f"complete_{shell}", **asked)

    ended = subprocess.run(
        [STACKD], env=given, capture_output=True, text=True, timeout=30, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.findall(r"hel[a-z-]+", ended.stdout) == ["hello", "help-desk"]


# -- tables

TABLES = (
    "workflows list",
    "executions list",
    "token list",
    "workflows versions help-desk",
    "config show",
)


@pytest.fixture(scope="module")
def copied(daemon: DaemonProcess) -> dict[str, list[str]]:
    """What people copy out of each of TABLES."""
    name = "a-workflow-of-a-longer-name"
    daemon.load(MANUAL.format(id=name))
    execution = daemon.begin(name)
    daemon.until(execution, "completed")
    token = daemon.api.post("/api/tokens", {"name": "n" * 90, "scopes": ["read", "run"]})["id"]
    setting = "PLATFORM_NETWORK_ALLOWLIST_IP_RANGES"  # the longest
    ids = (["help-desk", name], [execution], [token], ["1"], [setting])
    return dict(zip(TABLES, ids, strict=True))


@pytest.fixture(scope="module")
def piped(daemon: DaemonProcess, copied: dict[str, list[str]]) -> dict[str, list[list[str]]]:
    """The lines of each of TABLES where there is no terminal, however narrow, each as its cells."""
    environ = {"STACKD_STATE_DIR": str(daemon.state), "COLUMNS": "20"}
    told = {words: child(*words.split(), **environ).stdout.decode() for words in copied}
    return {words: [line.split("\t") for line in text.splitlines()] for words, text in told.items()}


@pytest.mark.parametrize(
    ("words", "width"), [*((words, 60) for words in TABLES), (TABLES[1], 20), (TABLES[1], 160)]
)
def test_ids_in_a_table_are_whole_however_narrow_the_terminal(
    daemon: DaemonProcess,
    copied: dict[str, list[str]],
    piped: dict[str, list[list[str]]],
    words: str,
    width: int,
) -> None:
    environ = {"STACKD_STATE_DIR": str(daemon.state), "COLUMNS": str(width)}

    shown = in_terminal(*words.split(), **environ)

    lines = [line.rstrip() for line in shown.splitlines()]
    firsts = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert set(copied[words]) <= set(firsts)
    assert firsts[1:] == [cells[0] for cells in piped[words]]
    assert width < 60 or max(map(len, lines)) <= width
    assert width < 160 or lines[0].split() == ["id", "workflow", "status", "created", "error"]


def test_where_there_is_no_terminal_a_table_is_not_cut(piped: dict[str, list[list[str]]]) -> None:
    assert "n" * 90 in [name for _, name, *_ in piped["token list"]]


# -- colours


def test_an_execution_has_colours_on_a_terminal_that_has_some_and_nowhere_else(
    daemon: DaemonProcess,
) -> None:
    execution = daemon.begin("hello")
    daemon.until(execution, "completed")
    words = ("executions", "show", execution)
    state = {"STACKD_STATE_DIR": str(daemon.state)}

    coloured = in_terminal(*words, TERM="xterm-256color", **state)
    asked_not_to = in_terminal(*words, TERM="xterm-256color", NO_COLOR="1", **state)
    dumb = in_terminal(*words, TERM="dumb", **state)
    piped = child(*words, **state).stdout.decode()

    assert "\x1b[32mcompleted" in coloured
    for text in (dumb, piped):
        assert "\x1b" not in text
    assert "\x1b[32m" not in asked_not_to
    assert "start  completed" in piped
    assert "━" in piped


# -- progress


def test_many_imports_show_a_bar_on_a_terminal_only(daemon: DaemonProcess, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.yaml").write_text(MANUAL.format(id=f"many-{number}"))
    words = ("workflows", "import", str(tmp_path))
    state = {"STACKD_STATE_DIR": str(daemon.state)}

    shown = in_terminal(*words, TERM="xterm-256color", **state)
    one = in_terminal(*words[:2], str(tmp_path / "0.yaml"), TERM="xterm-256color", **state)
    dumb = in_terminal(*words, TERM="dumb", **state)
    piped = child(*words, **state)

    assert "importing" in shown
    assert "3/3" in shown
    assert "many-2 version 1 (inactive)" in shown
    assert "importing" not in one + dumb
    assert (piped.returncode, piped.stderr) == (0, b"")
    assert b"\x1b" not in piped.stdout


def test_an_import_that_fails_takes_its_bar_away_before_it_says_why(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    for number in range(2):
        (tmp_path / f"{number}.yaml").write_text("id: bad\nnodes: []\n")

    shown = in_terminal(
        "workflows",
        "import",
        str(tmp_path),
        TERM="xterm-256color",
        STACKD_STATE_DIR=str(daemon.state),
    )

    _, _, after = shown.rpartition("\x1b[2K")  # the last line that was taken back
    assert after.startswith(f"error: {tmp_path / '0.yaml'}:2:")


def test_a_wait_shows_that_it_lasts_on_a_terminal_only(daemon: DaemonProcess) -> None:
    words = ("workflows", "run", "hello", "--wait")
    state = {"STACKD_STATE_DIR": str(daemon.state)}

    shown = in_terminal(*words, TERM="xterm-256color", **state)
    dumb = in_terminal(*words, TERM="dumb", **state)
    piped = child(*words, **state)

    assert "hello runs" in shown
    assert re.search(r"\d:\d\d:\d\d", shown)
    assert "hello runs" not in dumb
    assert (piped.returncode, piped.stderr) == (0, b"")
