"""The far side of a crash run: it counts what it is asked, and declines, drops or holds what a story says."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.crash.stories import Story
from support.daemon import answer_json, eventually

DELAY = 0.004  # seconds each answer takes
AFTER = 2  # seconds a far side that says "later" asks for


class Witness:
    """A service on a real socket. `stories`: by number of the delivery that a request names."""

    def __init__(self, stories: Sequence[Story]) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()  # (path, execution): requests that arrived
        self.declined: Counter[tuple[str, str]] = Counter()  # of them, those that were refused
        self.keys: dict[tuple[str, str], set[str]] = {}  # (path, execution) -> idempotency keys
        self.most_at_once = 0  # executions of `crash` with an open request, at the worst moment
        self._stories = stories
        self._open: dict[socket.socket, str] = {}  # connection -> execution whose request is on it
        self._held: set[int] = set()  # deliveries with a request that is held
        self._released: set[int] = set()
        self._connections = 0
        self._lock = threading.Lock()
        self._server = _server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    # -- for the run

    def holds(self, delivery: int) -> bool:
        """Whether a request of `delivery` is held open now."""
        return delivery in self._held

    def release(self, delivery: int) -> None:
        """Answer what is held of `delivery`, and hold nothing more of it."""
        self._released.add(delivery)

    def settle(self) -> None:
        """Return once everything that a dead process had sent has been counted."""
        host, port = self._server.server_address[:2]
        last = http.client.HTTPConnection(str(host), int(port), timeout=10)
        last.request("GET", "/last")  # connections are accepted in order: after this one, all are
        last.getresponse().read()
        last.close()
        eventually("its connections are closed", lambda: self._connections == 0)

    @contextmanager
    def listening(self) -> Iterator[Witness]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._released.update(range(len(self._stories)))
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    # -- for the handler of one request

    def arrive(
        self, connection: socket.socket, path: str, execution: str, delivery: int, key: str | None
    ) -> str | None:
        """Count a request; how it shall be answered, None: well."""
        with self._lock:
            for other in [one for one in self._open if _has_hung_up(one)]:
                del self._open[other]  # of a process that died, or an execution that was cancelled
            if self._stories[delivery].workflow == "crash":
                self._open[connection] = execution
            # One that was given up may have made room for the next before its thread here has seen that.
            asked = {one for other, one in self._open.items() if not _has_hung_up(other)}
            self.most_at_once = max(self.most_at_once, len(asked))
            answers = self._stories[delivery].answers.get(path, ())
            turn = self.seen[path, execution]
            answer = answers[turn] if turn < len(answers) else None
            self.seen[path, execution] += 1
            self.declined[path, execution] += answer in ("busy", "later")
            if key is not None:
                self.keys.setdefault((path, execution), set()).add(key)
        return answer

    def hold(self, connection: socket.socket, path: str, delivery: int) -> None:
        """Keep the request open while its story says so and somebody waits for the answer."""
        if self._stories[delivery].cancel != path:
            return
        self._held.add(delivery)
        while delivery not in self._released and not _has_hung_up(connection):
            time.sleep(0.005)
        self._held.discard(delivery)

    def leave(self, connection: socket.socket) -> None:
        """The request is about to be answered: from now on its execution may end and another begin."""
        with self._lock:
            self._open.pop(connection, None)

    def count_connection(self, change: int) -> None:
        with self._lock:
            self._connections += change


def _has_hung_up(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _server(witness: Witness) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path == "/last":
                self._respond(200)
                return
            execution, delivery = self.headers["x-execution"], int(self.headers["x-delivery"])
            key = self.headers.get("Idempotency-Key")
            answer = witness.arrive(self.connection, self.path, execution, delivery, key)
            time.sleep(DELAY)
            witness.hold(self.connection, self.path, delivery)
            witness.leave(self.connection)
            match answer:
                case "drop":
                    self.close_connection = True
                case "busy":
                    self._respond(503, retry_after=0)
                case "later":
                    self._respond(503, retry_after=AFTER)
                case _:
                    self._respond(200)

        def _respond(self, status: int, *, retry_after: int | None = None) -> None:
            answer_json(self, status, {"path": self.path}, retry_after=retry_after)

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 512

        def process_request(self, request: Any, client_address: Any) -> None:
            witness.count_connection(1)
            super().process_request(request, client_address)

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request_thread(request, client_address)
            finally:
                witness.count_connection(-1)

    return Server(("127.0.0.1", 0), Handler)
