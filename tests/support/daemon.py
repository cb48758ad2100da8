"""A real daemon in a child process, and a real far side for it to call."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from stackd.client.api import Api
from stackd.core.errors import NoAnswerError, UnreachableError
from stackd.core.sockets import free_port
from stackd.settings import foreign

START_WITHIN = 30.0
END_WITHIN = 30.0
# What children get, but for what is meant for us. Read once: pytest changes it while others might look through it.
ENVIRON = foreign()
MAIN = Path(__file__).with_name("daemon_main.py")
RESTED = ("completed", "failed", "cancelled", "uncertain")


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer as it came; header names lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def code(self) -> str:
        """The code of a problem; fails if this is none."""
        assert self.headers["content-type"].split(";")[0] == "application/problem+json", self
        assert self.json["status"] == self.status, self
        assert self.json["title"] == HTTPStatus(self.status).phrase, self
        return str(self.json["code"])


class DaemonProcess:
    """stackd on a state directory and port of its own. Only processes it started are ever signalled."""

    def __init__(self, state: Path, **environ: str) -> None:
        self.state = state
        self.port = free_port()
        self.environ = environ
        self.entry = (str(MAIN),)  # what Python runs, before the role
        self.within: tuple[str, ...] = ()  # a command that runs Python
        self.process: subprocess.Popen[bytes] | None = None
        self.log = state.parent / f"{state.name}.log"
        self.stderr: int | None = None  # a file descriptor instead of the log
        self.files: tuple[int, ...] = ()  # descriptors that it gets

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> Api:
        return Api(socket_path=self.state / "stackd.sock")

    def spawn(self, role: str = "stack", **environ: str) -> subprocess.Popen[bytes]:
        kept = (
            ENVIRON
            | {
                "PYTHONUNBUFFERED": "1",  # else what is printed is held back, and counts as a file that blocks
                "STACKD_STATE_DIR": str(self.state),
                "PORT": str(self.port),
                "STACKD_LOG_STYLE": "json",
                **self.environ,
                **environ,
            }
        )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.within, sys.executable, *self.entry, role],
                env=kept,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log if self.stderr is None else self.stderr,
                cwd=self.state.parent,
                pass_fds=self.files,
            )
        return self.process

    def start(self, role: str = "stack", **environ: str) -> None:
        """Start, and return once it is ready."""
        self.spawn(role, **environ)
        self.until_ready()

    def until_ready(self) -> None:
        """Return once what was spawned is ready: it works before it listens."""
        process = self.process
        assert process is not None
        deadline = time.monotonic() + START_WITHIN
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise AssertionError(f"ended with {process.returncode}:\n{self.tail()}")
            with contextlib.suppress(UnreachableError, NoAnswerError):
                verbose = {"verbose": "1"}
                if (
                    self.api.request("GET", "/readyz", query=verbose, allow=frozenset({503})).status
                    == 200
                ):
                    return
            time.sleep(0.01)
        raise AssertionError(f"not ready in {START_WITHIN} s:\n{self.tail()}")

    def wait(self, within: float = END_WITHIN) -> int:
        """Its exit code; a signal's is negative."""
        assert self.process is not None
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {within} s:\n{self.tail()}") from None

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        if self.is_running:
            assert self.process is not None
            self.process.kill()
            self.process.wait()

    def terminate(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def token(self) -> str:
        return (self.state / "dev-token").read_text().strip()

    def http(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        host: str = "127.0.0.1",
        authorized: bool = True,
        **headers: str,
    ) -> Answer:
        """One request over TCP. A body that is not bytes goes as JSON; `_` in header names is a dash."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if authorized and "Authorization" not in sent:
            sent["Authorization"] = f"Bearer {self.token}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection(host, self.port, timeout=30)
        try:
            connection.request(method, path, body=body, headers=sent)
            answer = connection.getresponse()
            return Answer(
                answer.status,
                {name.lower(): value for name, value in answer.getheaders()},
                answer.read(),
            )
        finally:
            connection.close()

    def deliver(self, path: str, body: Any = None, method: str = "POST", **headers: str) -> Answer:
        """A webhook delivery; the far side of a webhook has no token."""
        return self.http(method, f"/api/webhooks/{path}", body, authorized=False, **headers)

    def load(self, document: str) -> Any:
        """Import and activate a workflow."""
        return self.api.post("/api/workflows", document.encode(), activate="true")

    def begin(self, workflow_id: str, given: Any = None) -> str:
        """Start an execution by hand; its id."""
        answer = self.api.post(f"/api/workflows/{workflow_id}/run", {"input": given})
        return str(answer["executionId"])

    def execution(self, execution_id: str) -> Any:
        return self.api.get(f"/api/executions/{execution_id}")

    def until(self, execution_id: str, *statuses: str, within: float = 20.0) -> Any:
        """The execution once it has one of `statuses`; by default once it rests."""
        wanted = statuses or RESTED

        def look() -> Any:
            view = self.execution(execution_id)
            return view if view["status"] in wanted else None

        return eventually(f"{execution_id} is {' or '.join(wanted)}", look, within=within)

    def _log_lines(self) -> list[dict[str, Any]]:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The lines of its log with this event, oldest first."""
        return [line for line in self._log_lines() if line["event"] == event]

    def unforeseen(self) -> list[str]:
        """Errors it did not expect: what was logged with a traceback, or lost by the event loop."""
        found = [line["exception"] for line in self._log_lines() if "exception" in line]
        if "never retrieved" in self.tail():
            found.append(self.tail())
        return found

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def memory(self) -> int:
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)

    @contextmanager
    def file(self) -> Iterator[sqlite3.Connection]:
        """The store's file, read beside the daemon."""
        raw = sqlite3.connect(f"file:{self.state / 'stackd.db'}?mode=ro", uri=True, timeout=10)
        try:
            yield raw
        finally:
            raw.close()


@contextmanager
def running(folder: Path, **environ: str) -> Iterator[DaemonProcess]:
    """A stack that is ready. Whatever is sent to it, it must meet no error it does not foresee, and end when asked."""
    daemon = DaemonProcess(folder / "state", **environ)
    try:
        daemon.start()
        yield daemon
        assert daemon.terminate() == 0
        assert not daemon.unforeseen(), daemon.unforeseen()[0]
    finally:
        daemon.kill()


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """For the length of the block another process writes to the store."""
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def eventually(what: str, check: Any, *, within: float = 20.0) -> Any:
    """The first true answer of `check`, asked again until then: for what another process shows only when asked."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {within} s: {what}")


def answer_json(
    handler: BaseHTTPRequestHandler, status: int, value: Any, *, retry_after: int | None = None
) -> None:
    """Answer the request that `handler` holds with `value`; `retry_after` in seconds."""
    body = json.dumps(value).encode()
    handler.send_response(status)
    if retry_after is not None:
        handler.send_header("Retry-After", str(retry_after))
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


class FarSide:
    """A service on a real socket that notes every request. Each key counts once, as a payment API's would.

    While `is_open` is clear, requests arrive and stay unanswered. A path of /status/N is answered with N, one
    of /drop not at all: the connection is closed.
    """

    def __init__(self, *, delay: float = 0.0) -> None:
        self.hits: Counter[tuple[str, str]] = Counter()  # (path, execution)
        self.keys: dict[str, set[str]] = {}  # idempotency keys by execution; each counts once
        self.tokens: dict[str, str] = {}  # what each path was last shown as its Authorization
        self.delay = delay
        self.is_open = threading.Event()
        self.is_open.set()
        self._lock = threading.Lock()
        far_side = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                self.rfile.read(length)
                far_side.tokens[self.path] = self.headers.get("Authorization", "")
                far_side.note(
                    self.path,
                    self.headers.get("x-execution", ""),
                    self.headers.get("Idempotency-Key"),
                )
                if far_side.delay:
                    time.sleep(far_side.delay)
                far_side.is_open.wait(END_WITHIN)
                if self.path.startswith("/drop"):
                    self.close_connection = True
                    return
                status = int(self.path[8:]) if self.path.startswith("/status/") else 200
                answer_json(self, status, {"path": self.path})

            do_GET = do_POST = do_PUT = _answer

            def log_message(self, *_: Any) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    super().handle()

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 512

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def note(self, path: str, execution: str, key: str | None) -> None:
        with self._lock:
            self.hits[path, execution] += 1
            if key is not None:
                self.keys.setdefault(execution, set()).add(key)

    def arrived(self, path: str, count: int = 1) -> None:
        """Wait until `count` requests in all have arrived at `path`."""

        def seen() -> int:
            with self._lock:
                return sum(hits for (at, _), hits in self.hits.items() if at == path)

        eventually(f"{count} requests at {path}", lambda: seen() >= count)

    @contextmanager
    def listening(self) -> Iterator[FarSide]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.is_open.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()
