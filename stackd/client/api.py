"""Synchronous client of the HTTP API, over the Unix socket or TCP. What the CLI speaks through.

http.client of the standard library: the CLI must start fast and makes one request at a time.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from stackd.core.errors import ApiError, InputError, UnreachableError
from stackd.core.json import dumps, loads
from stackd.core.sockets import unix_address

TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx or, for probes, any answer."""

    status: int
    body: Any


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
    """One daemon. `url` wins over `socket_path`; over TCP, `token` is sent."""

    def __init__(
        self, *, socket_path: Path | None = None, url: str | None = None, token: str | None = None
    ) -> None:
        self._socket_path = socket_path
        self._url = url
        self._token = token

    @property
    def place(self) -> str:
        """Where the daemon is looked for, for messages."""
        return self._url or str(self._socket_path)

    def get(self, path: str, **query: Any) -> Any:
        return self.request("GET", path, query=query).body

    def post(
        self, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None, **query: Any
    ) -> Any:
        return self.request("POST", path, body=body, query=query, headers=headers).body

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
            allow: statuses of 400 and above that are an answer, not an error.

        Raises:
            InputError: `url` is none.
            UnreachableError: nothing answers there.
            ApiError: it answered with a problem.
        """
        wanted = {k: v for k, v in (query or {}).items() if v is not None}
        target = f"{quote(path)}?{urlencode(wanted)}" if wanted else quote(path)
        sent = {"Accept": "application/json", **(headers or {})}
        if self._token is not None:
            sent["Authorization"] = f"Bearer {self._token}"
        content = body if isinstance(body, bytes) or body is None else dumps(body)
        connection = self._connect(timeout)
        try:
            connection.request(method, target, body=content, headers=sent)
            response = connection.getresponse()
            raw = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(
                f"no daemon answers at {self.place} ({str(error) or type(error).__name__})",
                hint="start one with `stackd dev` or `systemctl start stackd`",
            ) from error
        finally:
            connection.close()
        is_json = "json" in (response.getheader("Content-Type") or "")
        answer = loads(raw) if is_json and raw else raw.decode("utf-8", "replace")
        if response.status >= 400 and response.status not in allow:
            raise _problem(response.status, answer)
        return Answer(response.status, answer)

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        if self._url is None:
            assert self._socket_path is not None  # noqa: S101  # one of the two is always given
            return _UnixConnection(self._socket_path, timeout)
        kinds: dict[str, type[http.client.HTTPConnection]] = {
            "http": http.client.HTTPConnection,
            "https": http.client.HTTPSConnection,
        }
        try:
            parts = urlsplit(self._url)
            return kinds[parts.scheme](parts.hostname or "127.0.0.1", parts.port, timeout=timeout)
        except (KeyError, ValueError):
            raise InputError(
                f"{self._url!r} is no http or https URL",
                code="url.invalid",
                hint="set STACKD_URL to http://HOST:PORT, or unset it to use the Unix socket",
            ) from None


def _problem(status: int, answer: Any) -> ApiError:
    if not isinstance(answer, dict):
        return ApiError(f"the daemon answered {status}", code="api.status", http_status=status)
    message = str(answer.get("detail", f"the daemon answered {status}"))
    for finding in answer.get("findings", []):
        place = f"{finding.get('line') or '?'}:{finding.get('column') or '?'}"
        hint = f" ({finding['hint']})" if finding.get("hint") else ""
        message += f"\n  {place} {finding.get('code')}: {finding.get('message')}{hint}"
    return ApiError(
        message,
        code=str(answer.get("code", "api.status")),
        http_status=status,
        hint=answer.get("hint"),
    )
