"""Synchronous client of the HTTP API, over the Unix socket or TCP. What the CLI speaks through.

http.client of the standard library: the CLI must start fast and makes one request at a time.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from pydantic import ValidationError

from stackd.client.models import Model
from stackd.core.errors import ApiError, InputError, NoAnswerError, UnreachableError
from stackd.core.json import dumps, loads
from stackd.core.sockets import unix_address
from stackd.core.text import plain

TIMEOUT = 30.0  # seconds without a byte
PAGE = 500  # items asked for at a time: as many as there may be
CONNECT_TIMEOUT = 10.0  # seconds; a daemon of this machine accepts at once

_PLAIN_URL = re.compile(r"[^\x00-\x20\x7f-\x9f\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx or, for probes, any answer. `body`: None of one that has nothing to say (204)."""

    status: int
    body: Any


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a stream."""

    id: str | None
    name: str
    data: Any


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
        self._socket_path = socket_path
        self._url = None if url is None else _usable_url(url)
        self._token = None if token is None else _usable_token(token)

    @property
    def place(self) -> str:
        """Where the daemon is looked for, for messages."""
        return str(self._socket_path) if self._url is None else self._url.geturl()

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
            try:
                shape.model_validate(answer.body)
            except ValidationError as error:
                if answer.status >= 400:
                    raise _problem(answer.status, answer.body) from error
                raise self._foreign(answer.status) from error
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
            path: as text; what a URL cannot hold is percent-encoded.
            body: bytes are sent as they are, anything else as JSON.
            timeout: seconds without a byte of the answer.
            allow: statuses of 400 and above that are an answer, not an error.

        Raises:
            UnreachableError: nothing listens there, so nothing was asked.
            NoAnswerError: it was asked and gave no whole answer.
            ApiError: it answered with a problem, or as no daemon of ours does.
        """
        target = self._target(path, query)
        sent = self._signed({"Accept": "application/json", **(headers or {})})
        content = body if isinstance(body, bytes) or body is None else dumps(body)
        with contextlib.closing(self._connection(min(timeout, CONNECT_TIMEOUT))) as connection:
            self._connect(connection, timeout)
            try:
                # Who answers before it has read all of the request may close: the answer is there all the same.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(method, target, body=content, headers=sent)
                response = connection.getresponse()
                raw = response.read()
            except (OSError, http.client.HTTPException) as error:
                raise self._no_answer(method, error, timeout) from error
        return self._answer(response, raw, allow)

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
                connection.request("GET", self._target(path, query), headers=self._signed(sent))
                response = connection.getresponse()
                if "text/event-stream" not in (response.getheader("Content-Type") or ""):
                    self._answer(response, response.read(), frozenset())
                    raise self._foreign(response.status)
                yield from _server_events(response)
            except (OSError, http.client.HTTPException) as error:
                raise self._no_answer("GET", error, timeout) from error

    def _target(self, path: str, query: Mapping[str, Any] | None) -> str:
        wanted = {k: v for k, v in (query or {}).items() if v is not None}
        target = quote(
            path, errors="surrogateescape"
        )  # as a shell hands on bytes that are no UTF-8
        return f"{target}?{urlencode(wanted, errors='surrogateescape')}" if wanted else target

    def _signed(self, headers: Mapping[str, str]) -> dict[str, str]:
        """`headers` with the token, if there is one."""
        own = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        return {**headers, **own}

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if self._url is None:
            assert self._socket_path is not None  # noqa: S101  # one of the two is always given
            return _UnixConnection(self._socket_path, timeout)
        kind = (
            http.client.HTTPSConnection
            if self._url.scheme == "https"
            else http.client.HTTPConnection
        )
        return kind(self._url.hostname or "", self._url.port, timeout=timeout)

    def _connect(self, connection: http.client.HTTPConnection, timeout: float) -> None:
        try:
            connection.connect()
        except OSError as error:
            hint = (
                "start one with `stackd dev` or `systemctl start stackd`, "
                "or set STACKD_URL to where one runs"
            )
            if isinstance(error, PermissionError):
                hint = "run this as the user of the daemon, or set STACKD_URL and STACKD_TOKEN"
            reason = error.strerror or str(error) or type(error).__name__
            raise UnreachableError(
                f"no daemon answers at {self.place} ({reason})", hint=hint
            ) from error
        connection.sock.settimeout(timeout)

    def _no_answer(self, method: str, error: Exception, timeout: float) -> NoAnswerError:
        fact = (
            f"gave no answer within {timeout:g} s"
            if isinstance(error, TimeoutError)
            else "closed the connection before it had answered"
        )
        hint = "it may be busy or stopping; see `stackd health --verbose`"
        if method != "GET":
            hint = "it may have done what was asked: look before you ask again"
        return NoAnswerError(f"the daemon at {self.place} {fact}", hint=hint)

    def _answer(
        self, response: http.client.HTTPResponse, raw: bytes, allow: frozenset[int]
    ) -> Answer:
        answer: Any = None
        if "json" in (response.getheader("Content-Type") or ""):
            with contextlib.suppress(ValueError, RecursionError):
                answer = loads(raw)
        if response.status >= 400 and response.status not in allow:
            raise _problem(response.status, answer)
        if response.status == 204:
            return Answer(204, None)
        if not isinstance(answer, dict):
            raise self._foreign(response.status)
        return Answer(response.status, answer)

    def _foreign(self, status: int) -> ApiError:
        return ApiError(
            f"what answers at {self.place} is no stackd daemon, or one of another version",
            code="api.foreign",
            http_status=status,
            hint="set STACKD_URL to http://HOST:PORT of one",
        )


def _server_events(lines: Iterable[bytes]) -> Iterator[ServerEvent]:
    """The events in the lines of a stream (WHATWG HTML, 9.2.6), as far as a daemon of ours sends them."""
    found: dict[str, str] = {}
    for line in lines:
        name, mark, value = line.decode(errors="replace").rstrip("\r\n").partition(":")
        if name and mark:
            found[name] = value.removeprefix(" ")
        elif not name and not mark and "data" in found:
            data: Any = None
            with contextlib.suppress(ValueError, RecursionError):
                data = loads(found["data"].encode())
            yield ServerEvent(found.get("id"), found.get("event", "message"), data)
            found = {}


def _usable_url(url: str) -> SplitResult:
    """The parts of `url`, which names a scheme, a host and perhaps a port, and nothing else."""
    with contextlib.suppress(ValueError):  # a port that is none, a name that cannot be one
        parts = urlsplit(url)
        is_host = bool((parts.hostname or "").encode("idna")) and parts.port != 0
        is_bare = parts.path in ("", "/") and not parts.query and not parts.fragment
        is_plain = _PLAIN_URL.fullmatch(url) is not None and "@" not in url
        if is_host and is_bare and is_plain and parts.scheme in ("http", "https"):
            return parts
    shown = re.sub("//.*@", "//…@", url, flags=re.DOTALL)  # a password, perhaps
    raise InputError(
        f"{shown!r} is no http or https URL of a daemon",
        code="url.invalid",
        hint="set STACKD_URL to http://HOST:PORT, or unset it to use the Unix socket",
    )


def _usable_token(token: str) -> str:
    for number, letter in enumerate(token, start=1):
        if not "!" <= letter <= "~":
            raise InputError(
                f"character {number} of the token cannot be sent: it is no visible ASCII character",
                code="token.invalid",
                hint="set STACKD_TOKEN to the token alone, as in $STACKD_STATE_DIR/dev-token",
            )
    return token


def _problem(status: int, answer: Any) -> ApiError:
    if not isinstance(answer, dict):
        return ApiError(f"the daemon answered {status}", code="api.status", http_status=status)
    first = str(answer.get("detail", f"the daemon answered {status}"))
    further = []
    findings, remedy = answer.get("findings"), answer.get("hint")  # of another program: anything
    for number, finding in enumerate(findings if isinstance(findings, list) else []):
        if not isinstance(finding, dict):
            continue
        place = f"{finding.get('line') or '?'}:{finding.get('column') or '?'}"
        hint = f" ({finding['hint']})" if finding.get("hint") else ""
        kind = "warning " if finding.get("severity") == "warning" else ""
        words = f"{kind}{finding.get('code')}: {finding.get('message')}{hint}"
        bare = f"{place}: {finding.get('message')}"
        if number == 0 and bare in first:  # who sees only the detail has it from there
            first = first.replace(bare, f"{place}: {words}", 1)
        else:
            further.append(plain(f"{place} {words}"))
    message = "\n  ".join([plain(first), *further])
    return ApiError(
        message,
        code=str(answer.get("code", "api.status")),
        http_status=status,
        hint=None if remedy is None else str(remedy),
    )
