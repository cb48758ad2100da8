"""A real daemon in a child process, and a real far side for it to call."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from stackd.client.api import Api
from stackd.core.errors import UnreachableError

START_WITHIN = 30.0
END_WITHIN = 30.0
MAIN = Path(__file__).with_name("daemon_main.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DaemonProcess:
    """stackd on a state directory and port of its own. Only processes it started are ever signalled."""

    def __init__(self, state: Path, **environ: str) -> None:
        self.state = state
        self.port = free_port()
        self.environ = environ
        self.process: subprocess.Popen[bytes] | None = None
        self.log = state.parent / f"{state.name}.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> Api:
        return Api(socket_path=self.state / "stackd.sock")

    def spawn(self, role: str = "stack", **environ: str) -> subprocess.Popen[bytes]:
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("STACKD_", "EXECUTION_")) and k not in ("HOST", "PORT")
        }
        kept |= {
            "STACKD_STATE_DIR": str(self.state),
            "PORT": str(self.port),
            "STACKD_LOG_STYLE": "json",
            **self.environ,
            **environ,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(MAIN), role],
                env=kept,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.state.parent,
            )
        return self.process

    def start(self, role: str = "stack", **environ: str) -> None:
        """Start, and return once it is ready."""
        process = self.spawn(role, **environ)
        deadline = time.monotonic() + START_WITHIN
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise AssertionError(f"ended with {process.returncode}:\n{self.tail()}")
            with contextlib.suppress(UnreachableError):
                if self.api.request("GET", "/readyz", allow=frozenset({503})).status == 200:
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


def eventually(what: str, check: Any, *, within: float = 20.0) -> Any:
    """The first true answer of `check`, asked again until then: for what another process shows only when asked."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {within} s: {what}")


class FarSide:
    """A service on a real socket that notes every request. Each key counts once, as a payment API's would."""

    def __init__(self, *, delay: float = 0.0) -> None:
        self.hits: Counter[tuple[str, str]] = Counter()  # (path, execution)
        self.keys: dict[str, set[str]] = {}  # idempotency keys by execution; each counts once
        self.delay = delay
        self._lock = threading.Lock()
        far_side = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                self.rfile.read(length)
                far_side.note(
                    self.path,
                    self.headers.get("x-execution", ""),
                    self.headers.get("Idempotency-Key"),
                )
                if far_side.delay:
                    time.sleep(far_side.delay)
                body = json.dumps({"path": self.path}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

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

    @contextmanager
    def listening(self) -> Iterator[FarSide]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()
