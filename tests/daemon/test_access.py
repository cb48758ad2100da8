"""Who may call what of a running stack: tokens by scope, from their making to their end, and the Unix socket."""

from __future__ import annotations

import http.client
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cli import Command, in_terminal
from support.daemon import Answer, DaemonProcess, eventually

from stackd.core.clock import SystemClock, epoch, rfc3339

SCOPES = ("read", "run", "write", "admin")
ROUTES = [
    ("GET", "/api/workflows", "read"),
    ("GET", "/api/executions", "read"),
    ("GET", "/api/queue", "read"),
    ("GET", "/metrics", "read"),
    ("POST", "/api/workflows/nobody/run", "run"),
    ("POST", "/api/executions", "run"),
    ("POST", "/api/executions/nobody/cancel", "run"),
    ("POST", "/api/executions/nobody/resolve", "run"),
    ("POST", "/api/workflows/lint", "read"),
    ("POST", "/api/workflows/nobody/lint", "read"),
    ("POST", "/api/workflows", "write"),
    ("POST", "/api/workflows/nobody/rollback", "write"),
    ("POST", "/api/workflows/nobody/activate", "write"),
    ("POST", "/api/workflows/nobody/deactivate", "write"),
    ("GET", "/api/tokens", "admin"),
    ("POST", "/api/tokens", "admin"),
    ("GET", "/api/credentials", "read"),
    ("GET", "/api/credentials/nobody", "read"),
    ("POST", "/api/credentials", "admin"),
    ("PATCH", "/api/credentials/nobody", "admin"),
    ("DELETE", "/api/credentials/nobody", "admin"),
    ("GET", "/api/config", "admin"),
    ("DELETE", "/api/tokens/nobody", "admin"),
    ("POST", "/api/queue/resume", "admin"),
]
NOBODY = 65534
KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCD"  # of processes that share a store


def make(daemon: DaemonProcess, *scopes: str, **more: Any) -> Any:
    return daemon.api.post("/api/tokens", {"name": "test", "scopes": list(scopes), **more})


def call(daemon: DaemonProcess, token: str, method: str, path: str, body: Any = None) -> Answer:
    return daemon.http(method, path, body, Authorization=f"Bearer {token}")


@pytest.fixture(scope="module")
def by_scope(daemon: DaemonProcess) -> dict[str, str]:
    return {scope: make(daemon, scope)["token"] for scope in SCOPES}


# -- scopes


@pytest.mark.parametrize(("method", "path", "needed"), ROUTES, ids=lambda value: str(value))
def test_a_route_takes_every_token_that_goes_far_enough_and_names_the_scope_to_others(
    daemon: DaemonProcess, by_scope: dict[str, str], method: str, path: str, needed: str
) -> None:
    for scope, token in by_scope.items():
        answer = call(daemon, token, method, path)

        if SCOPES.index(scope) >= SCOPES.index(needed):
            assert answer.status in (200, 404, 422), answer
        else:
            assert (answer.status, answer.code) == (403, "auth.scope")
            assert f"needs the scope {needed}" in answer.json["detail"]
            challenge = answer.headers["www-authenticate"]
            assert challenge == f'Bearer error="insufficient_scope", scope="{needed}"'


def test_who_may_call_it_learns_that_there_is_no_such_route(
    daemon: DaemonProcess, by_scope: dict[str, str]
) -> None:
    assert call(daemon, by_scope["read"], "GET", "/api/nothing").code == "path.not_found"
    assert call(daemon, by_scope["read"], "DELETE", "/api/queue").code == "method.not_allowed"


# -- a token's life


def test_a_token_is_shown_once_and_kept_nowhere(daemon: DaemonProcess) -> None:
    answer = daemon.http("POST", "/api/tokens", {"name": "once", "scopes": ["run", "read"]})
    made = answer.json

    assert (answer.status, answer.headers["cache-control"]) == (201, "no-store")
    assert set(made) == {
        "id", "name", "scopes", "state", "createdAt", "lastUsedAt", "expiresAt", "revokedAt", "token",
    }  # fmt: skip
    assert (made["scopes"], made["state"]) == (["read", "run"], "usable")
    assert call(daemon, made["token"], "GET", "/api/queue").status == 200
    secret = made["token"].split("_", 2)[2].encode()
    listed = daemon.http("GET", "/api/tokens").body
    assert made["id"].encode() in listed
    assert secret not in listed
    files = [path for path in daemon.state.rglob("*") if path.is_file()]
    assert not [path.name for path in [*files, daemon.log] if secret in path.read_bytes()]


def test_making_and_revoking_one_is_logged_with_who_asked(daemon: DaemonProcess) -> None:
    admin = make(daemon, "admin")
    made = call(daemon, admin["token"], "POST", "/api/tokens", {"name": "x", "scopes": ["read"]})
    daemon.api.delete(f"/api/tokens/{made.json['id']}")

    def told(event: str) -> Any:
        lines = [line for line in daemon.logged(event) if line["token_id"] == made.json["id"]]
        return lines[0] if lines else None

    created = eventually("its making is logged", lambda: told("token created"))
    revoked = eventually("its end is logged", lambda: told("token revoked"))
    assert created["by"] == f"the token {admin['id']} (test)"
    assert revoked["by"] == f"uid {os.geteuid()} (pid {os.getpid()})"


def test_a_revoked_token_is_refused_at_once_and_says_so(daemon: DaemonProcess) -> None:
    made = make(daemon, "admin")
    before = call(daemon, made["token"], "GET", "/api/queue")

    revoked = call(daemon, made["token"], "DELETE", f"/api/tokens/{made['id']}")
    after = call(daemon, made["token"], "GET", "/api/queue")
    again = daemon.http("DELETE", f"/api/tokens/{made['id']}")

    assert (before.status, revoked.status, again.status) == (200, 200, 200)
    assert revoked.json["state"] == "revoked"
    assert again.json["revokedAt"] == revoked.json["revokedAt"]
    assert (after.status, after.code) == (401, "auth.revoked")
    assert f"{made['id']} (test) was revoked at 20" in after.json["detail"]
    assert after.headers["www-authenticate"] == 'Bearer error="invalid_token"'


def test_an_expired_token_is_refused_and_says_so(daemon: DaemonProcess) -> None:
    soon = SystemClock().time() + 0.3
    made = make(daemon, "read", expiresAt=rfc3339(soon))
    before = call(daemon, made["token"], "GET", "/api/queue")

    after = eventually(
        "it has expired",
        lambda: (seen := call(daemon, made["token"], "GET", "/api/queue")).status == 401 and seen,
    )

    assert before.status == 200
    assert after.code == "auth.expired"
    assert SystemClock().time() >= epoch(made["expiresAt"])
    (listed,) = [t for t in daemon.api.get("/api/tokens")["items"] if t["id"] == made["id"]]
    assert listed["state"] == "expired"


def test_a_token_with_another_secret_or_of_nobody_is_not_known(daemon: DaemonProcess) -> None:
    made = make(daemon, "read")
    prefix, token_id, secret = made["token"].split("_", 2)
    other = secret[:-2] + ("AA" if secret[-2:] != "AA" else "BB")

    for text in (f"{prefix}_{token_id}_{other}", f"{prefix}_{'0' * 26}_{secret}", token_id):
        answer = call(daemon, text, "GET", "/api/queue")
        assert (answer.status, answer.code) == (401, "auth.required")
        assert answer.json["detail"] == "this token is not known"


def test_the_last_use_is_noted_to_the_minute(daemon: DaemonProcess) -> None:
    made = make(daemon, "read")

    def used() -> str | None:
        found = [t for t in daemon.api.get("/api/tokens")["items"] if t["id"] == made["id"]]
        return found[0]["lastUsedAt"]

    assert used() is None
    call(daemon, made["token"], "GET", "/api/queue")
    first = eventually("its use is noted", used)
    call(daemon, made["token"], "GET", "/api/queue")
    daemon.api.post("/api/queue/resume")  # has committed what came before it

    assert used() == first


def test_tokens_are_listed_newest_first_page_by_page(daemon: DaemonProcess) -> None:
    made = [make(daemon, "read")["id"] for _ in range(3)]

    first = daemon.api.get("/api/tokens", limit=2)
    second = daemon.api.get("/api/tokens", limit=2, cursor=first["nextCursor"])

    seen = [item["id"] for item in first["items"] + second["items"]]
    assert seen == sorted(seen, reverse=True)
    assert set(made) <= set(seen)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"scopes": ["read"]}, "token.name"),
        ({"name": "x"}, "token.scope"),
        ({"name": "x", "scopes": "read"}, "token.scope"),
        ({"name": "x", "scopes": ["raed"]}, "token.scope"),
        ({"name": "x", "scopes": ["read"], "expiresAt": 7}, "token.expiry"),
        ({"name": "x", "scopes": ["read"], "expiresAt": "tomorrow"}, "token.expiry"),
        ({"name": "x", "scopes": ["read"], "expiresAt": "2001-01-01T00:00:00Z"}, "token.expiry"),
        ({"name": "x", "scope": "read"}, "input.unknown_key"),
    ],
)
def test_a_token_that_cannot_be_is_refused(daemon: DaemonProcess, body: Any, code: str) -> None:
    answer = daemon.http("POST", "/api/tokens", body)

    assert (answer.status, answer.code) == (422, code)


def test_an_unknown_token_cannot_be_revoked(daemon: DaemonProcess) -> None:
    assert daemon.http("DELETE", "/api/tokens/nobody").code == "token.not_found"


# -- the Unix socket


@pytest.fixture
def as_nobody(
    daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Asks over the daemon's socket as another user, whom the modes of its files do not keep out."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    daemon.state.chmod(0o711)
    (daemon.state / "stackd.sock").chmod(0o666)
    monkeypatch.chdir(daemon.state)  # so that the folders above it do not matter

    def ask(**headers: str) -> tuple[int, str]:
        with socket.socket(socket.AF_UNIX) as sock:
            os.seteuid(NOBODY)
            try:
                sock.connect("stackd.sock")
            finally:
                os.seteuid(0)
            connection = http.client.HTTPConnection("localhost")
            connection.sock = sock
            connection.request("GET", "/api/queue", headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    yield ask
    daemon.state.chmod(0o700)
    (daemon.state / "stackd.sock").chmod(0o600)


def test_another_user_on_the_socket_needs_a_token_whatever_the_mode_of_its_file(
    daemon: DaemonProcess, as_nobody: Callable[..., tuple[int, str]]
) -> None:
    token = make(daemon, "read")["token"]

    without, said = as_nobody()
    with_one, _ = as_nobody(Authorization=f"Bearer {token}")

    assert without == 401
    assert f"uid {NOBODY} is not the daemon's user: send a bearer token" in said
    assert with_one == 200
    logged = eventually(
        "it is logged", lambda: daemon.logged("a foreign user came by the Unix socket")
    )
    assert logged[-1]["uid"] == NOBODY


# -- commands


def test_token_create_prints_the_token_alone_and_says_the_rest_aside(
    stackd: Command, daemon: DaemonProcess
) -> None:
    made = stackd("token", "create", "ci", "--scope", "read", "--scope", "run", "--expires", "30d")

    token = made.out.removesuffix("\n")
    assert made.code == 0
    assert re.fullmatch(r"stkd_[0-9a-z]{26}_[A-Za-z0-9_-]{43}", token)
    assert made.err.startswith("ci: read run, until 20")
    assert f"stackd token revoke {token.split('_')[1]}\n" in made.err
    assert call(daemon, token, "GET", "/api/queue").status == 200


def test_token_as_json_says_when_it_ends(stackd: Command) -> None:
    made = stackd("token", "create", "ci", "--scope", "admin", "--expires", "2h", "--json")

    left = epoch(made.json["expiresAt"]) - SystemClock().time()
    assert 7_000 < left <= 7_200
    assert made.json["token"].startswith(f"stkd_{made.json['id']}_")


@pytest.mark.parametrize("lasts", ["", "30", "d", "1y", "-1d", "0.5h", "999999999w"])
def test_an_expiry_that_is_no_time_exits_2(stackd: Command, lasts: str) -> None:
    ran = stackd("token", "create", "ci", "--scope", "read", "--expires", lasts)

    assert (ran.code, ran.out) == (2, "")
    assert "--expires 30d" in ran.err


def test_a_scope_that_is_none_exits_2_and_names_the_nearest(stackd: Command) -> None:
    ran = stackd("token", "create", "ci", "--scope", "raed")

    assert (ran.code, ran.err) == (
        2,
        "error: there is no scope 'raed'\n  try: did you mean 'read'?\n",
    )


def test_tokens_are_listed_one_a_line_and_revoked(stackd: Command, daemon: DaemonProcess) -> None:
    made = stackd("token", "create", "listed", "--scope", "write", "--json").json

    plain = stackd("token", "list")
    as_json = stackd("token", "list", "--json")
    revoked = stackd("token", "revoke", made["id"])
    again = stackd("token", "revoke", made["id"], "--json")

    rows = {line.split("\t")[0]: line.split("\t") for line in plain.out.splitlines()}
    assert rows[made["id"]] == [made["id"], "listed", "write", "usable", "never", "never"]
    assert made["id"] in [item["id"] for item in as_json.json["items"]]
    assert made["token"] not in plain.out + as_json.out
    assert (revoked.code, revoked.out) == (0, f"{made['id']} (listed) is revoked\n")
    assert again.json["state"] == "revoked"
    assert call(daemon, made["token"], "GET", "/api/queue").status == 401


def test_without_tokens_the_list_says_how_to_make_one(
    daemons: Callable[..., DaemonProcess], tmp_path: Path
) -> None:
    daemon = daemons()
    daemon.start("api")

    shown = in_terminal("token", "list", STACKD_STATE_DIR=str(daemon.state))

    assert shown == "no tokens yet; make one with `stackd token create NAME --scope SCOPE`\n"
    assert daemon.terminate() == 0


def test_a_command_whose_token_goes_not_far_enough_exits_1_and_names_the_scope(
    command: Command, daemon: DaemonProcess, by_scope: dict[str, str]
) -> None:
    token = by_scope["read"]

    ran = command("queue", "pause", STACKD_URL=daemon.url, STACKD_TOKEN=token)

    assert ran.code == 1
    assert "needs the scope admin" in ran.err
    assert "\n  try: use a token with the scope admin" in ran.err
    assert token not in ran.err


# -- more than one process


def test_what_one_process_makes_and_revokes_holds_in_another(
    daemons: Callable[..., DaemonProcess], tmp_path: Path
) -> None:
    """The role `api` has one process per state directory; two of them share a file only by its name."""
    first = daemons(ENCRYPTION_MASTER_KEY=KEY)
    first.start("api")
    made = make(first, "read")
    file = f"sqlite:///{first.state / 'stackd.db'}"
    second = daemons(tmp_path / "other", STACKD_DATABASE_URL=file, ENCRYPTION_MASTER_KEY=KEY)
    second.start("api")

    before = call(second, made["token"], "GET", "/api/queue").status
    first.api.delete(f"/api/tokens/{made['id']}")
    after = call(second, made["token"], "GET", "/api/queue").status

    assert (before, after) == (200, 401)
