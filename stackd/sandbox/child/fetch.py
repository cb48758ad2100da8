"""`fetch` and `log`, as code has them. The requests are the daemon's: there is no network in here."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from stackd.sandbox.child.frames import text


class FetchError(Exception):
    """There is no answer: the request was refused, failed, or timed out. `code` says which."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Response:
    """An answer. It can be awaited too, and is itself."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.status: int = told["status"]
        self.headers: dict[str, str] = told["headers"]
        self.url: str = told["url"]
        from binascii import a2b_base64

        self.content = a2b_base64(told["body"])

    @property
    def ok(self) -> bool:
        """Whether the status is 200 to 299."""
        return 200 <= self.status < 300

    def text(self) -> str:
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """Raises ValueError where the body is no JSON."""
        import json

        return json.loads(self.content)

    def __await__(self) -> Generator[None, None, Response]:
        yield from ()
        return self

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.url[:200]}>"


class Fetch:
    """`fetch(url, …)`: a Response, or FetchError. `ask`: asks the daemon, and returns what it tells."""

    def __init__(self, ask: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._ask = ask

    def __call__(
        self,
        url: str,
        *,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        json: Any = None,
        body: str | bytes | None = None,
        credential: str | None = None,
        timeout: float | None = None,
    ) -> Response:
        """Send a request and return its answer, whatever its status.

        Args:
            method: GET without a body and POST with one, unless given.
            json: sent as JSON; `body`: sent as it is; one of the two.
            credential: a credential by id or name, which the daemon adds on the way; the code never sees it.
            timeout: seconds, at most what is left of the run.
        """
        content = b"" if body is None else body.encode() if isinstance(body, str) else bytes(body)
        named = {str(name): str(value) for name, value in (headers or {}).items()}
        if json is not None:
            content = text(json).encode()
            if not any(name.lower() == "content-type" for name in named):
                named["Content-Type"] = "application/json"
        has_body = json is not None or body is not None
        from binascii import b2a_base64

        told = self._ask(
            {
                "url": str(url),
                "method": str(method or ("POST" if has_body else "GET")).upper(),
                "headers": named,
                "body": b2a_base64(content, newline=False).decode() if has_body else None,
                "credential": credential,
                "timeout": timeout,
            }
        )
        if "error" in told:
            raise FetchError(told["error"], told.get("code", "fetch.failed"))
        return Response(told)


class Log:
    """`log("…")`, `log.warning("…", value)`: a line of the node run's log."""

    def __init__(self, write: Callable[[str, tuple[Any, ...]], None]) -> None:
        self._write = write

    def __call__(self, *values: Any) -> None:
        self._write("info", values)

    log = info = __call__

    def debug(self, *values: Any) -> None:
        self._write("debug", values)

    def warning(self, *values: Any) -> None:
        self._write("warn", values)

    warn = warning

    def error(self, *values: Any) -> None:
        self._write("error", values)
