"""Synchronous client of the HTTP API, over the Unix socket or TCP. What the CLI speaks through.

http.client of the standard library: the CLI must start fast and makes one request at a time.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stackd.client.models import Model
from stackd.client.wire import (
    CONNECT_TIMEOUT,
    PAGE,
    TIMEOUT,
    Address,
    Answer,
    EventReader,
    ServerEvent,
    target,
)
from stackd.core.errors import NoAnswerError
from stackd.core.json import dumps
from stackd.core.sockets import unix_address


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with unix_address(self._path) as address:
            self.sock.connect(address)


class Api:
    """One daemon. `url` wins over `socket_path`; over TCP, `token` is sent.

    Raises:
        InputError: `url` is none, or `token` cannot be sent.
    """

    def __init__(
        self, *, socket_path: Path | None = None, url: str | None = None, token: str | None = None
    ) -> None:
        self._address = Address(socket_path=socket_path, url=url, token=token)

    @property
    def place(self) -> str:
        """Where the daemon is looked for, for messages."""
        return str(self._address)

    def get(self, path: str, shape: type[Model] | None = None, /, **query: Any) -> Any:
        """The JSON at `path`, which has that `shape` if one is named. Raises as `request` and `shaped`."""
        return self.shaped(self.request("GET", path, query=query), shape).body

    def all(self, path: str, shape: type[Model], /, **query: Any) -> list[Any]:
        """The items of the list at `path`, all its pages. Raises as `get`."""
        items: list[Any] = []
        cursor: str | None = None
        while True:
            page = self.get(path, shape, cursor=cursor, limit=PAGE, **query)
            items += page["items"]
            cursor = page["nextCursor"]
            if cursor is None:
                return items

    def post(
        self,
        path: str,
        body: Any = None,
        shape: type[Model] | None = None,
        /,
        *,
        headers: Mapping[str, str] | None = None,
        **query: Any,
    ) -> Any:
        """As `get`, for what changes something."""
        answer = self.request("POST", path, body=body, query=query, headers=headers)
        return self.shaped(answer, shape).body

    def patch(self, path: str, body: Any, shape: type[Model] | None = None, /) -> Any:
        """As `get`, for what changes a part."""
        return self.shaped(self.request("PATCH", path, body=body), shape).body

    def delete(self, path: str, shape: type[Model] | None = None, /) -> Any:
        """As `get`, for what ends something."""
        return self.shaped(self.request("DELETE", path), shape).body

    def shaped(self, answer: Answer, shape: type[Model] | None) -> Answer:
        """`answer` as it came, which has that `shape`: whoever reads it finds all that this requires.

        Raises:
            ApiError: it has not.
        """
        if shape is not None:
            self._address.read(answer, shape)
        return answer

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,
        allow: frozenset[int] = frozenset(),
    ) -> Answer:
        """One request; its JSON answer.

        Args:
            path: what a URL cannot hold is percent-encoded; an id in it is a `segment`.
            body: bytes are sent as they are, anything else as JSON.
            timeout: seconds without a byte of the answer.
            allow: statuses of 400 and above that are an answer, not an error.

        Raises:
            UnreachableError: nothing listens there, so nothing was asked.
            NoAnswerError: it was asked and gave no whole answer.
            ApiError: it answered with a problem, or as no daemon of ours does.
        """
        sent = self._address.signed({"Accept": "application/json", **(headers or {})})
        content = body if isinstance(body, bytes) or body is None else dumps(body)
        with contextlib.closing(self._connection(min(timeout, CONNECT_TIMEOUT))) as connection:
            self._connect(connection, timeout)
            try:
                # Who answers before it has read all of the request may close: the answer is there all the same.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(method, target(path, query), body=content, headers=sent)
                response = connection.getresponse()
                raw = response.read()
            except (OSError, http.client.HTTPException) as error:
                raise self._no_answer(method, error, timeout) from error
        return self._address.answer(
            response.status, response.getheader("Content-Type"), raw, allow=allow
        )

    def events(
        self, path: str, *, timeout: float = TIMEOUT, last_id: str | None = None, **query: Any
    ) -> Iterator[ServerEvent]:
        """Server-sent events of `path` as they come, until the daemon ends the stream.

        Raises:
            UnreachableError, ApiError: as `request`.
            NoAnswerError: the connection broke, or brought nothing for `timeout` seconds.
        """
        sent = {"Accept": "text/event-stream"}
        if last_id is not None:
            sent["Last-Event-ID"] = last_id
        with contextlib.closing(self._connection(CONNECT_TIMEOUT)) as connection:
            self._connect(connection, timeout)
            try:
                connection.request("GET", target(path, query), headers=self._address.signed(sent))
                response = connection.getresponse()
                content_type = response.getheader("Content-Type") or ""
                if "text/event-stream" not in content_type:
                    self._address.answer(response.status, content_type, response.read())
                    raise self._address.foreign(response.status)
                reader = EventReader()
                for line in response:
                    if (event := reader.event(line)) is not None:
                        yield event
            except (OSError, http.client.HTTPException) as error:
                raise self._no_answer("GET", error, timeout) from error

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        url = self._address.url
        if url is None:
            assert self._address.socket_path is not None  # noqa: S101  # one of the two is given
            return _UnixConnection(self._address.socket_path, timeout)
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        return kind(url.hostname or "", url.port, timeout=timeout)

    def _connect(self, connection: http.client.HTTPConnection, timeout: float) -> None:
        try:
            connection.connect()
        except OSError as error:
            raise self._address.unreachable(error) from error
        connection.sock.settimeout(timeout)

    def _no_answer(self, method: str, error: Exception, timeout: float) -> NoAnswerError:
        silent_for = timeout if isinstance(error, TimeoutError) else None
        return self._address.no_answer(method, silent_for=silent_for)
