"""Something that listens where a daemon is looked for, and says what a test wants it to."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HOLD = b"hold"  # says nothing until the client has gone


class Stub:
    """Gives each connection the next answer, the last one to all that follow, and closes it."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.requests: list[str] = []  # their first lines

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed: the test is over
                return
            with connection, contextlib.suppress(ConnectionError):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (piece := connection.recv(65536)):
            head += piece
        self.requests.append(head.split(b"\r\n")[0].decode())
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer == HOLD:
            while connection.recv(65536):
                pass
        else:
            connection.sendall(answer)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def listening(*answers: bytes) -> Iterator[Stub]:
    stub = Stub(*answers)
    thread = threading.Thread(target=stub.serve, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.close()
        thread.join(10)
        assert not thread.is_alive()


def said(status: int, body: Any, content_type: str = "application/json") -> bytes:
    """An HTTP answer; a body that is not bytes goes as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (
        f"HTTP/1.1 {status} Said\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    ).encode() + content
