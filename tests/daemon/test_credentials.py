"""Credentials of a running stack: what they show, how they come in, and that no secret is anywhere in clear."""

from __future__ import annotations

import base64
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from support.cli import Command, Ran, child
from support.daemon import ENVIRON, DaemonProcess, eventually

from stackd.core.redact import Redactor

Daemons = Callable[..., DaemonProcess]

CANARY = 'cAnary "s3cret"/7Qw9z+é'  # every encoder changes it
FOUND = Redactor([CANARY])
KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCD"
OTHER_KEY = "ABCD0123456789abcdefghijklmnopqrstuvwxyz"
SET = {"secret": True, "isSet": True}


def make(daemon: DaemonProcess, name: str, **more: Any) -> Any:
    body = {"id": name, "connector": "unheard", "fields": {"token": CANARY}, **more}
    return daemon.api.post("/api/credentials", body)


def typed(text: str, *words: str, **environ: str) -> tuple[int, str]:
    """The exit code of `stackd …` on a terminal at which somebody types `text`, and all that is seen there."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "stackd", *words],
        env=ENVIRON | {"TERM": "dumb", "COLUMNS": "200"} | environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,  # else it would ask at the terminal of who runs the tests
    ) as process:
        os.close(theirs)
        printed = b""
        while b": " not in printed:
            printed += os.read(ours, 65536)
        os.write(ours, text.encode())
        try:
            while piece := os.read(ours, 65536):
                printed += piece
        except OSError:  # the terminal is gone with its last user
            pass
        code = process.wait(30)
    os.close(ours)
    return code, printed.decode().replace("\r\n", "\n")


# -- the API


def test_a_credential_shows_which_secrets_are_set_and_nothing_of_them(
    daemon: DaemonProcess,
) -> None:
    made = daemon.http(
        "POST",
        "/api/credentials",
        {"id": "shown", "connector": "unheard", "auth": "pat", "fields": {"token": CANARY}},
    )

    assert made.status == 201
    assert set(made.json) == {
        "id", "connector", "auth", "fields", "createdAt", "updatedAt", "version",
        "reconnect", "test",
    }  # fmt: skip
    assert made.json["fields"] == {"token": SET}
    assert (made.json["auth"], made.json["version"]) == ("pat", 1)
    assert daemon.http("GET", "/api/credentials/shown").json == made.json
    assert made.json in daemon.api.get("/api/credentials")["items"]


def test_a_change_sets_what_is_given_removes_null_and_keeps_the_rest(
    daemon: DaemonProcess,
) -> None:
    make(daemon, "changed", fields={"a": "1", "b": "2"}, auth="pat")

    body = {"fields": {"b": None, "c": "3"}}
    first = daemon.http("PATCH", "/api/credentials/changed", body)
    second = daemon.http("PATCH", "/api/credentials/changed", {"auth": None, "version": 2})
    late = daemon.http("PATCH", "/api/credentials/changed", {"fields": {"a": "x"}, "version": 2})

    assert (first.status, list(first.json["fields"])) == (200, ["a", "c"])
    assert (first.json["auth"], first.json["version"]) == ("pat", 2)
    assert (second.json["auth"], second.json["version"]) == (None, 3)
    assert (late.status, late.code) == (409, "credential.changed")


def test_one_that_is_removed_is_not_found(daemon: DaemonProcess) -> None:
    make(daemon, "removed")

    removed = daemon.http("DELETE", "/api/credentials/removed")

    assert (removed.status, removed.body) == (204, b"")
    for method, body in (("GET", None), ("PATCH", {"fields": {"a": "1"}}), ("DELETE", None)):
        answer = daemon.http(method, "/api/credentials/removed", body)
        assert (answer.status, answer.code) == (404, "credential.not_found")


def test_they_are_listed_by_id_page_by_page(daemon: DaemonProcess) -> None:
    for name in ("page-b", "page-a", "page-c"):
        make(daemon, name)

    first = daemon.api.get("/api/credentials", limit=2, cursor="page-")
    second = daemon.api.get("/api/credentials", limit=2, cursor=first["nextCursor"])

    seen = [item["id"] for item in first["items"] + second["items"]]
    assert seen[:3] == ["page-a", "page-b", "page-c"]


REFUSED: list[tuple[Any, int, str]] = [
    ({"connector": "unheard", "fields": {"t": CANARY}}, 422, "credential.id"),
    ({"id": "x", "fields": {"t": CANARY}}, 422, "credential.connector"),
    ({"id": "x", "connector": 7, "fields": {"t": CANARY}}, 422, "credential.connector"),
    ({"id": "x", "connector": "unheard", "fields": [CANARY]}, 422, "credential.field_value"),
    ({"id": "x", "connector": "unheard", "fields": {"t": [CANARY]}}, 422, "credential.field_value"),
    ({"id": "x", "connector": "unheard", "fields": {"t": None}}, 422, "credential.field_value"),
    ({"id": "x", "connector": "unheard", "fields": {CANARY: "v"}}, 422, "credential.field_name"),
    ({"id": "x", "connector": "unheard", "fields": {}}, 422, "credential.no_fields"),
    (
        {"id": "x", "connector": "unheard", "fields": {"t": CANARY}, "public": ["t"]},
        422,
        "credential.field_secret",
    ),
    ({"id": "x", "connector": "unheard", "fields": {"t": CANARY * 4000}}, 413, "credential.value_too_large"),
    ({"id": "x", "connector": "unheard", "field": {"t": CANARY}}, 422, "input.unknown_key"),
    (f'{{"id": "x", "fields": {{"t": "{quote(CANARY)}"'.encode(), 422, "json.malformed"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "code"), REFUSED, ids=range(len(REFUSED)))
def test_one_that_cannot_be_is_refused_by_name_and_shows_no_value(
    daemon: DaemonProcess, body: Any, status: int, code: str
) -> None:
    answer = daemon.http("POST", "/api/credentials", body, Content_Type="application/json")

    assert (answer.status, answer.code) == (status, code)
    assert not FOUND.finds(answer.body)


# -- commands


def test_a_credential_is_added_listed_shown_set_and_removed_by_commands(
    command: Command, daemon: DaemonProcess, tmp_path: Path
) -> None:
    here = {"STACKD_STATE_DIR": str(daemon.state)}
    (tmp_path / "token").write_text(f"{CANARY}\n")

    added = command(
        "credentials", "add", "by-hand", "--connector", "unheard", "--auth", "pat",
        "--secret-file", f"token={tmp_path / 'token'}", **here,
    )  # fmt: skip
    listed = command("credentials", "list", **here)
    shown = command("credentials", "show", "by-hand", **here)
    as_json = command("credentials", "show", "by-hand", "--json", **here)
    piped = child(
        "credentials", "set", "by-hand", "--stdin", "--unset", "token", "--version", "1",
        stdin=b'{"pair": {"access": "x"}, "other": "y"}', **here,
    )  # fmt: skip
    asked = command("credentials", "remove", "by-hand", **here)
    removed = command("credentials", "remove", "by-hand", "--yes", "--json", **here)

    assert (added.code, added.out) == (0, "by-hand is kept, with its secrets sealed\n")
    rows = [line.split("\t") for line in listed.out.splitlines()]
    assert [row[:5] for row in rows if row[0] == "by-hand"] == [
        ["by-hand", "unheard", "pat", "token", "1"]
    ]
    assert shown.out.startswith("by-hand  unheard (pat)  version 1  20")
    assert shown.out.endswith("\n  token: (secret, set)\n")
    assert as_json.json["fields"] == {"token": SET}
    assert (piped.returncode, piped.stdout) == (0, b"by-hand is changed, version 2\n")
    assert (asked.code, asked.err.partition("\n")[0]) == (
        2,
        "error: nobody is there to be asked whether this is meant",
    )
    assert removed.json == {"id": "by-hand", "removed": True}
    assert command("credentials", "show", "by-hand", **here).code == 2


def test_a_secret_is_asked_for_and_not_shown(daemon: DaemonProcess) -> None:
    code, seen = typed(
        f"{CANARY}\n", "credentials", "add", "asked", "--connector", "unheard", "--secret", "token",
        STACKD_STATE_DIR=str(daemon.state),
    )  # fmt: skip

    assert code == 0, seen
    assert seen.startswith("token: ")
    assert seen.endswith("asked is kept, with its secrets sealed\n")
    assert not FOUND.finds(seen)
    assert daemon.api.get("/api/credentials/asked")["fields"] == {"token": SET}


@pytest.mark.parametrize(
    "lines", [b"# for ci\n\nuser=me\ntoken = has = in it\n", b'{"user": "me", "token": "t"}']
)
def test_fields_come_in_by_standard_input(daemon: DaemonProcess, lines: bytes) -> None:
    ran = child(
        "credentials", "add", f"piped-{len(lines)}", "--connector", "unheard", "--stdin", "--json",
        stdin=lines, STACKD_STATE_DIR=str(daemon.state),
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    made = daemon.api.get(f"/api/credentials/piped-{len(lines)}")
    assert made["fields"] == {"token": SET, "user": SET}


ADD = ("credentials", "add", "refused", "--connector", "unheard")
MISTAKES = {
    "a secret as a field": (*ADD, "--field", f"token={CANARY}"),
    "a secret behind its name": (*ADD, "--secret", f"token={CANARY}"),
    "a secret as a word": (*ADD, "--secret", "token", CANARY),
    "a secret as a file": (*ADD, "--secret-file", f"token={CANARY}"),
    "a secret without a name": (*ADD, "--field", CANARY),
    "a secret as an option": (*ADD, f"--token={CANARY}"),
    "twice": (*ADD, "--field", f"token={CANARY}", "--field", f"token={CANARY}"),
    "set": ("credentials", "set", "shown", "--field", f"token={CANARY}"),
    "set a word": ("credentials", "set", "worded", "--auth", "pat", CANARY),
    "with a traceback": ("--debug", *ADD, "--field", f"token={CANARY}"),
}


@pytest.mark.parametrize("words", MISTAKES.values(), ids=MISTAKES)
def test_a_secret_on_the_command_line_is_refused_and_not_shown(
    daemon: DaemonProcess, words: tuple[str, ...]
) -> None:
    if "worded" in words:
        make(daemon, "worded")
    ran = child(*words, STACKD_STATE_DIR=str(daemon.state))

    told = ran.stdout.decode() + ran.stderr.decode()
    assert ran.returncode == (1 if words[0] == "--debug" else 2), told
    assert not FOUND.finds(told)
    assert "s3cret" not in told
    assert daemon.http("GET", "/api/credentials/refused").status == 404


@pytest.mark.parametrize(
    "given",
    [f"{CANARY}\n", "czNjcmV0LWNhbmFyeQ==\n", f'{{"token": "{CANARY}', f'{{"token": ["{CANARY}"'],
)
def test_what_cannot_be_read_on_standard_input_is_not_shown(
    daemon: DaemonProcess, given: str
) -> None:
    ran = child(*ADD, "--stdin", stdin=given.encode(), STACKD_STATE_DIR=str(daemon.state))

    told = ran.stdout.decode() + ran.stderr.decode()
    assert ran.returncode == 2, told
    assert not FOUND.finds(told)
    assert "s3cret" not in told
    assert "czNj" not in told


def test_without_anybody_to_ask_a_prompt_says_what_to_do(stackd: Command) -> None:
    ran = stackd(*ADD, "--secret", "token")

    assert (ran.code, ran.err.splitlines()) == (
        2,
        [
            "error: nobody is there to be asked for 'token'",
            "  try: give it by --secret-file NAME=PATH or --stdin, or type it at a terminal",
        ],
    )


# -- a planted secret


def test_a_secret_is_nowhere_in_clear_whatever_is_done_with_it(
    daemons: Daemons, command: Command, tmp_path: Path
) -> None:
    daemon = daemons(ENCRYPTION_MASTER_KEY=KEY, STACKD_LOG_LEVEL="debug")
    daemon.start()
    here = {"STACKD_STATE_DIR": str(daemon.state)}
    (tmp_path / "token").write_text(CANARY)
    answers: list[bytes] = []
    ran: list[Ran] = []

    for name in ("kept", "gone"):
        answers += [
            daemon.http("POST", "/api/credentials", body).body
            for body in (
                {"id": name, "connector": "unheard", "fields": {"token": CANARY}},
                {"id": name, "connector": "unheard", "fields": {"token": CANARY}},
                {"id": name, "connector": "unheard", "fields": {"token": CANARY}, "public": ["token"]},
            )
        ]  # fmt: skip
        path = f"/api/credentials/{name}"
        answers += [
            daemon.http("PATCH", path, {"fields": {"again": CANARY}}).body,
            daemon.http("PATCH", path, {"fields": {"again": CANARY}, "version": 1}).body,
            daemon.http("GET", path).body,
            daemon.http("GET", "/api/credentials").body,
        ]
    answers += [daemon.http("POST", "/api/credentials", body).body for body, *_ in REFUSED]
    file = f"token={tmp_path / 'token'}"
    ran += [
        command(*ADD[:3], *ADD[3:], "--secret-file", file, **here),
        command("credentials", "set", "gone", "--secret-file", file, **here),
        command("credentials", "set", "gone", "--secret-file", file, "--version", "1", **here),
        command("credentials", "list", "--json", **here),
        command("credentials", "show", "kept", **here),
        command("credentials", "remove", "gone", "--yes", **here),
        command("backup", str(tmp_path / "saved.tar"), **here),
    ]
    process = psutil.Process(daemon.pid)
    started = [" ".join(process.cmdline()), " ".join(process.environ().values())]

    def files() -> list[Path]:
        return [path for path in daemon.state.rglob("*") if path.is_file()]

    held = [*files(), daemon.log, tmp_path / "saved.tar"]
    guilty = [path.name for path in held if FOUND.finds(path.read_bytes())]
    daemon.kill()
    guilty += [path.name for path in [*files(), daemon.log] if FOUND.finds(path.read_bytes())]

    assert [one.code for one in ran] == [0, 0, 2, 0, 0, 0, 0]
    assert FOUND.finds((tmp_path / "token").read_bytes())  # else nothing would be found anywhere
    assert {"stackd.db", "stackd.db-wal"} <= {path.name for path in held}
    assert guilty == []
    assert not any(map(FOUND.finds, answers))
    assert not any(FOUND.finds(one.out + one.err) for one in ran)
    assert not any(map(FOUND.finds, started))
    assert base64.b64encode(KEY.encode()) not in daemon.log.read_bytes()
    assert KEY not in daemon.log.read_text()
    assert not daemon.unforeseen()


def test_what_is_done_with_one_is_logged_with_who_did_it(daemon: DaemonProcess) -> None:
    make(daemon, "logged")
    daemon.api.patch("/api/credentials/logged", {"fields": {"token": CANARY}})
    daemon.api.delete("/api/credentials/logged")

    def told(event: str) -> Any:
        lines = [one for one in daemon.logged(event) if one["credential_id"] == "logged"]
        return lines[0] if lines else None

    for event in ("credential created", "credential changed", "credential removed"):
        line = eventually(f"{event} is logged", lambda: told(event))  # noqa: B023
        assert line["by"] == f"uid {os.geteuid()} (pid {os.getpid()})"


# -- the master key


def refuses(daemon: DaemonProcess, role: str) -> dict[str, Any]:
    """It must end with 78; the line of its log that says why."""
    daemon.spawn(role, ENCRYPTION_MASTER_KEY=OTHER_KEY)
    assert daemon.wait() == 78, daemon.tail()
    (line,) = daemon.logged("cannot go on")[-1:]
    return line


@pytest.mark.timeout(120)  # eight starts, one after the other
@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_another_master_key_is_refused_by_each_role_and_no_byte_of_the_store_is_changed(
    daemons: Daemons, end: str
) -> None:
    daemon = daemons(ENCRYPTION_MASTER_KEY=KEY)
    daemon.start()
    make(daemon, "kept")
    getattr(daemon, end)()  # killed, what is in its log is in no file yet

    def store() -> dict[str, bytes]:
        names = ("stackd.db", "stackd.db-wal")
        return {name: path.read_bytes() for name in names if (path := daemon.state / name).exists()}

    before = store()
    for role in ("stack", "api", "worker", "scheduler", "timers", "rotation"):
        line = refuses(daemon, role)

        after = {name: content for name, content in store().items() if content or name in before}
        assert after == before, role
        assert line["code"] == "vault.master_key", role
        assert line["reason"].startswith("ENCRYPTION_MASTER_KEY is not the key that "), role
        assert "secrets.env" in line["hint"], role
    assert not {KEY, OTHER_KEY} & set(daemon.log.read_text().split('"'))
    daemon.start()
    assert daemon.api.get("/api/credentials/kept")["fields"] == {"token": SET}
    assert daemon.terminate() == 0


def test_a_restored_store_starts_with_its_own_master_key_alone(
    daemons: Daemons, command: Command, tmp_path: Path
) -> None:
    daemon = daemons(ENCRYPTION_MASTER_KEY=KEY)
    daemon.start()
    make(daemon, "kept")
    saved = str(tmp_path / "saved.tar")
    assert command("backup", saved, STACKD_STATE_DIR=str(daemon.state)).code == 0
    assert daemon.terminate() == 0
    restored = daemons(tmp_path / "restored", ENCRYPTION_MASTER_KEY=KEY)
    assert command("restore", saved, "--state", str(restored.state)).code == 0

    line = refuses(restored, "stack")

    assert line["code"] == "vault.master_key"
    restored.start()
    assert restored.api.get("/api/credentials/kept")["fields"] == {"token": SET}
    assert restored.api.get("/api/queue/check")["sound"]
    changed = restored.api.patch("/api/credentials/kept", {"fields": {"token": "another"}})
    assert changed["version"] == 2
    assert restored.terminate() == 0


def test_a_lost_master_key_costs_what_it_sealed_and_nothing_else(
    daemons: Daemons, command: Command
) -> None:
    daemon = daemons(ENCRYPTION_MASTER_KEY=KEY)
    daemon.start()
    make(daemon, "lost")
    daemon.load("id: kept\nnodes:\n  - {id: start, type: trigger.time.manual}\nedges: []\n")
    here = {"STACKD_STATE_DIR": str(daemon.state), "ENCRYPTION_MASTER_KEY": OTHER_KEY}
    in_use = command("credentials", "reset", "--yes", **here)
    assert daemon.terminate() == 0
    line = refuses(daemon, "stack")

    idle = command("credentials", "reset", "--yes", **here | {"ENCRYPTION_MASTER_KEY": KEY})
    asked = command("credentials", "reset", **here)
    dropped = command("credentials", "reset", "--yes", **here)

    assert "stackd credentials reset" in line["hint"]
    assert (in_use.code, idle.code, asked.code, dropped.code) == (1, 0, 2, 0)
    assert "nothing was changed" in idle.out
    assert "credentials add lost" in dropped.out
    daemon.start(ENCRYPTION_MASTER_KEY=OTHER_KEY)
    assert daemon.api.get("/api/credentials")["items"] == []
    assert daemon.api.get("/api/workflows/kept")["version"] == 1
    make(daemon, "lost")
    assert daemon.terminate() == 0


def test_roles_that_first_start_at_the_same_time_agree_on_one_key(
    daemons: Daemons,
) -> None:
    roles = {role: daemons(ENCRYPTION_MASTER_KEY=KEY) for role in ("api", "worker", "timers")}
    for role in ("worker", "timers"):
        roles[role].spawn(role)
    roles["api"].start("api")

    with roles["api"].file() as raw:
        keys = raw.execute("SELECT version, state FROM vault_keys").fetchall()

    assert keys == [(1, "active")]
    eventually(
        "all are there", lambda: len(roles["api"].api.get("/api/queue")["processes"]) == len(roles)
    )
    assert [one.terminate() for one in roles.values()] == [0, 0, 0]
