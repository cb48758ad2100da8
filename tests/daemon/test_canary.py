"""A planted secret, sent in every way a connector can send one to a far side that says all of it again when it fails."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from support.connectors import action, write_connector
from support.daemon import DaemonProcess

SECRET = 'canary/5ecret+0123"ü&=%'
FORMS = {
    "raw": SECRET,
    "percent": quote(SECRET, safe=""),
    "plus": quote_plus(SECRET),
    "json": json.dumps(SECRET)[1:-1],
    "json, as it is": json.dumps(SECRET, ensure_ascii=False)[1:-1],
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "base64, without its end": base64.b64encode(SECRET.encode()).decode()[:24],
}

HANDLERS = """
from stackd.core.errors import InputError

async def tells(params, ctx):
    raise InputError(f"not with {ctx.connection['token']}")

async def raises(params, ctx):
    raise RuntimeError(f"cannot sign in with {ctx.connection['token']}")

async def refuses(params, ctx):
    raise ctx.not_handled()

async def asks(params, ctx):
    await ctx.http.post("/echo/500", json={"token": ctx.connection["token"]})

async def logs(params, ctx):
    ctx.log.warning("signing in", token=ctx.connection["token"], url=f"https://x/{ctx.connection['token']}")
    raise ValueError(ctx.connection["token"])

async def lies(params, ctx):
    return (await ctx.http.get(f"/redirect?{ctx.connection['token']}")).body
"""

WAYS: dict[str, dict[str, Any]] = {
    "header": {"type": "bearer"},
    "own_header": {"type": "api_key", "in": "header", "name": "X-Key", "value": "{{ conn.token }}"},
    "query": {"type": "api_key", "in": "query", "name": "key", "value": "{{ conn.token }}"},
    "cookie": {"type": "api_key", "in": "cookie", "name": "key", "value": "{{ conn.token }}"},
    "basic": {"type": "basic", "username": "ada", "password": "{{ conn.token }}"},
    "session": {
        "type": "session", "token": "body.nothing",
        "login": {"endpoint": "/echo/200", "body": {"password": "{{ conn.token }}"}},
    },
    "client": {
        "type": "oauth2", "grant": "client_credentials", "tokenUrl": "/echo/401",
    },
    "pair": {"type": "oauth2", "tokenUrl": "/echo/400"},
    "pair_over": {"type": "oauth2", "tokenUrl": "/grant/400"},
    "signer": {"type": "hmac", "options": {"secret": "{{ conn.token }}", "prefix": "{{ conn.token }}"}},
    "all": {
        "type": "all",
        "parts": [{"type": "bearer"}, {"type": "api_key", "in": "query", "name": "k", "value": "{{ conn.token }}"}],
    },
    "none": {"type": "none"},
}  # fmt: skip


class Echo(BaseHTTPRequestHandler):
    """Answers with all that it was asked with, under the status that it was asked for."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        said = {
            "message": f"no: {self.path} {dict(self.headers)} {body.decode(errors='replace')}",
            "authorization": self.headers.get("Authorization"),
        }
        place = self.path.partition("?")[0].split("/")
        status = {"redirect": 302, "pages": 200}.get(place[1]) or int(place[2])
        if self.path.startswith("/grant"):
            said |= {"error": "invalid_grant", "error_description": said["message"]}
        text = json.dumps([said] if self.path.startswith("/pages") else said).encode()
        self.send_response(status, said["message"][:200].encode("ascii", "replace").decode())
        self.send_header("Content-Type", "application/json")
        if status == 302:
            self.send_header("Location", f"http://elsewhere.example/{quote(SECRET, safe='')}")
        if self.path.startswith("/pages"):
            link = f"http://{quote(SECRET, safe='')}.example/?{quote(SECRET, safe='')}"
            self.send_header("Link", f'<{link}>; rel="next"')
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = _answer

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def echo() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def leaky(url: str) -> dict[str, Any]:
    secret = {"type": "string", "x-secret": True}
    fields = {"token": secret, "clientId": {"type": "string"}, "clientSecret": secret}
    return {
        "id": "leaky",
        "name": "Leaky",
        "baseUrl": url,
        "auths": WAYS,
        "testConnection": {"endpoint": "/echo/401", "label": "body.authorization"},
        "connection": {"fields": {"type": "object", "properties": fields}},
        "actions": [
            *(action(f"by_{way}", "POST", "/echo/500", auth=way) for way in WAYS),
            action("paged", "GET", "/pages", auth="query", paginate={"type": "link"}),
            action("as_form", "POST", "/echo/500", auth="header", encode="form"),
            action("answered", "GET", "/echo/200", auth="header"),
            action("refused", "POST", "/echo/422", auth="header"),
            action("in_path", "GET", "/echo/404/{{ conn.token }}", auth="none"),
            action("in_body", "POST", "/echo/500", auth="none", send={"body": {"t": "{{ conn.token }}"}}),
            action("in_base", "POST", "/x", auth="none", baseUrl=f"{url}/echo/500/bot{{token}}"),
            action("in_lost_base", "POST", "/x", auth="none", baseUrl="http://127.0.0.1:1/bot{token}"),
            action("redirected", "GET", "/redirect", auth="query"),
            *(
                action(name, "POST", "/echo/500", effect="idempotent", auth="header")
                for name in ("raises", "tells", "refuses", "asks", "logs", "lies")
            ),
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("canary")
    (folder / "state").mkdir()
    with echo() as url:
        write_connector(folder / "mine", leaky(url), handlers=HANDLERS)
        daemon = DaemonProcess(
            folder / "state",
            STACKD_CONNECTORS_DIR=str(folder / "mine"),
            GENERIC_EXECUTOR_ENABLED="true",
            STACKD_LOG_LEVEL="debug",
        )
        try:
            daemon.start()
            fields = {"token": SECRET, "clientId": "ada", "clientSecret": SECRET}
            made = {"id": "main", "connector": "leaky", "fields": fields}
            assert daemon.http("POST", "/api/credentials", made).status == 201
            for name in ("pair", "pair_over"):
                own = {
                    "accessToken": SECRET,
                    "refreshToken": SECRET,
                    "expiresAt": "2020-01-01T00:00:00Z",
                }
                pair = {"id": name, "connector": "leaky", "auth": name, "fields": fields | own}
                assert daemon.http("POST", "/api/credentials", pair).status == 201
            yield daemon
            assert daemon.terminate() == 0
        finally:
            daemon.kill()


def whole(url: str) -> list[str]:
    return [one["id"] for one in leaky(url)["actions"]]


def test_it_stands_nowhere_in_no_form(daemon: DaemonProcess) -> None:
    executions = []
    for name in whole(""):
        own = name.removeprefix("by_") if "pair" in name else "main"
        text = (
            f"id: {name.replace('_', '-')}\nnodes:\n  - {{id: start, type: trigger.time.manual}}\n"
            f"  - {{id: a, type: action.leaky.{name}, connection: {own}, retry: {{maxAttempts: 2, initialMs: 1}}}}\n"
            "edges:\n  - {from: start, to: a}\n"
        )
        executions.append(daemon.begin(daemon.load(text)["id"]))
    ended = [daemon.until(one, "completed", "failed", "uncertain") for one in executions]

    test = "/api/credentials/main/test"
    tested = daemon.http("POST", test)
    tried = {
        name: daemon.http("POST", f"{test}?operation={name}&writes=true").body for name in whole("")
    }

    unharmed = {one["workflowId"] for one in ended if one["status"] == "completed"}
    assert unharmed == {"answered"}
    assert {one["status"] for one in ended} <= {"completed", "failed", "uncertain"}
    assert tested.json["ok"] is False
    paths = [
        "/api/credentials", "/api/credentials/main", "/api/credentials/pair_over",
        "/api/executions?limit=100", "/metrics",
        "/api/registry/connectors/leaky", "/api/registry/evidence",
        "/api/registry/capabilities?include=unavailable,evidence",
        *(f"/api/executions/{one}" for one in executions),
        *(f"/api/why/{one}" for one in executions),
        *(f"/api/executions/{one}/nodes" for one in executions),
    ]  # fmt: skip
    told = {path: daemon.http("GET", path).body for path in paths} | tried | {"test": tested.body}
    assert "invalid_grant" in daemon.http("GET", "/api/credentials/pair_over").json["reconnect"]
    files = {
        str(path): path.read_bytes()
        for path in [daemon.log, *daemon.state.rglob("*")]
        if path.is_file()
    }
    shown = {
        name: Path(f"/proc/{daemon.pid}/{name}").read_bytes() for name in ("cmdline", "environ")
    }
    found = {
        f"{where}: {form}"
        for where, content in {**told, **files, **shown}.items()
        for form, text in FORMS.items()
        if text.encode() in content
    }

    assert b"[REDACTED]" in b"".join(told.values())
    assert b"[REDACTED]" in daemon.log.read_bytes()
    assert found == set()
