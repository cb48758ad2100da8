"""What both clients share: how a daemon is addressed, and what its answers mean."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from pydantic import ValidationError

from stackd.client.models import Model
from stackd.core.errors import ApiError, InputError, NoAnswerError, UnreachableError
from stackd.core.json import loads
from stackd.core.text import plain

TIMEOUT = 30.0  # seconds without a byte
PAGE = 500  # items asked for at a time: as many as there may be
CONNECT_TIMEOUT = 10.0  # seconds; a daemon of this machine accepts at once

_PLAIN_URL = re.compile(r"[^\x00-\x20\x7f-\x9f\ud800-\udfff]+")

M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx, a 304 or, for probes, any answer. `body`: None of one that has nothing to say (204, 304)."""

    status: int
    body: Any
    etag: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a stream."""

    id: str | None
    name: str
    data: Any


class Address:
    """One daemon. `url` wins over `socket_path`; over TCP, `token` is sent.

    Raises:
        InputError: `url` is none, `token` cannot be sent, or nothing says where the daemon is.
    """

    def __init__(self, *, socket_path: Path | None, url: str | None, token: str | None) -> None:
        if socket_path is None and url is None:
            raise InputError(
                "nothing says where the daemon is",
                code="address.missing",
                hint="give socket_path, as $STACKD_STATE_DIR/stackd.sock, or url",
            )
        self.url = None if url is None else _usable_url(url)
        self.socket_path = None if self.url is not None else socket_path
        self._token = None if token is None else _usable_token(token)

    def __str__(self) -> str:
        """For messages."""
        return str(self.socket_path) if self.url is None else self.url.geturl()

    def signed(self, headers: Mapping[str, str]) -> dict[str, str]:
        """`headers` with the token, if there is one."""
        own = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        return {**headers, **own}

    # -- what comes back

    def answer(
        self,
        status: int,
        content_type: str | None,
        raw: bytes,
        *,
        etag: str | None = None,
        allow: frozenset[int] = frozenset(),
    ) -> Answer:
        """What came as an answer. `allow`: statuses of 400 and above that are one, not an error.

        Raises:
            ApiError: it is a problem, or not as a daemon of ours answers.
        """
        body: Any = None
        if "json" in (content_type or ""):
            with contextlib.suppress(ValueError, RecursionError):
                body = loads(raw)
        if status >= 400 and status not in allow:
            raise problem_of(status, body)
        if status in (204, 304):
            return Answer(status, None, etag)
        if not isinstance(body, dict):
            raise self.foreign(status)
        return Answer(status, body, etag)

    def read(self, answer: Answer, shape: type[M]) -> M:
        """`answer` as a `shape`, which may leave out what a later version tells besides.

        Raises:
            ApiError: it is none.
        """
        try:
            return shape.model_validate(answer.body)
        except ValidationError as error:
            if answer.status >= 400:
                raise problem_of(answer.status, answer.body) from error
            raise self.foreign(answer.status) from error

    def foreign(self, status: int) -> ApiError:
        return ApiError(
            f"what answers at {self} is no stackd daemon, or one of another version",
            code="api.foreign",
            http_status=status,
            hint="set STACKD_URL to http://HOST:PORT of one",
        )

    def unreachable(self, error: OSError) -> UnreachableError:
        """That no connection was made, so nothing was asked."""
        hint = (
            "start one with `stackd dev` or `systemctl start stackd`, "
            "or set STACKD_URL to where one runs"
        )
        if isinstance(error, PermissionError):
            hint = "run this as the user of the daemon, or set STACKD_URL and STACKD_TOKEN"
        reason = error.strerror or str(error) or type(error).__name__
        return UnreachableError(f"no daemon answers at {self} ({reason})", hint=hint)

    def no_answer(self, method: str, *, silent_for: float | None) -> NoAnswerError:
        """That it was asked and gave no whole answer. `silent_for`: seconds; None: the connection broke."""
        fact = (
            "closed the connection before it had answered"
            if silent_for is None
            else f"gave no answer within {silent_for:g} s"
        )
        hint = "it may be busy or stopping; see `stackd health --verbose`"
        if method != "GET":
            hint = "it may have done what was asked: look before you ask again"
        return NoAnswerError(f"the daemon at {self} {fact}", hint=hint)


def target(path: str, query: Mapping[str, Any] | None) -> str:
    """`path`, whose parts are each a `segment`, and what is asked of it as a URL has them; what is None is left out."""
    wanted = {name: value for name, value in (query or {}).items() if value is not None}
    quoted = quote(path, safe="/%", errors="surrogateescape")
    return f"{quoted}?{urlencode(wanted, errors='surrogateescape')}" if wanted else quoted


class EventReader:
    """Makes events of the lines of a stream (WHATWG HTML, 9.2.6), as far as a daemon of ours sends them."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def event(self, line: bytes) -> ServerEvent | None:
        """The event that ends with `line`, if one does."""
        name, mark, value = line.decode(errors="replace").rstrip("\r\n").partition(":")
        if name and mark:
            self._found[name] = value.removeprefix(" ")
            return None
        if name or mark or "data" not in self._found:
            return None
        found, self._found = self._found, {}
        data: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            data = loads(found["data"].encode())
        return ServerEvent(found.get("id"), found.get("event", "message"), data)


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


def problem_of(status: int, answer: Any) -> ApiError:
    """The problem that `answer` tells of, one finding a line."""
    if not isinstance(answer, dict):
        return ApiError(f"the daemon answered {status}", code="api.status", http_status=status)
    first = str(answer.get("detail", f"the daemon answered {status}"))
    further = []
    findings, remedy = answer.get("findings"), answer.get("hint")  # of another program: anything
    for number, finding in enumerate(findings if isinstance(findings, list) else []):
        if not isinstance(finding, dict):
            continue
        line, column = finding.get("line"), finding.get("column")
        place = (
            f"{line or '?'}:{column or '?'}" if line or column else ""
        )  # what is stored has none
        hint = f" ({finding['hint']})" if finding.get("hint") else ""
        kind = "warning " if finding.get("severity") == "warning" else ""
        words = f"{kind}{finding.get('code')}: {finding.get('message')}{hint}"
        bare = f"{place}: {finding.get('message')}"
        if number == 0 and bare in first:  # who sees only the detail has it from there
            first = first.replace(bare, f"{place}: {words}", 1)
        else:
            further.append(plain(f"{place} {words}".lstrip()))
    message = "\n  ".join([plain(first), *further])
    return ApiError(
        message,
        code=str(answer.get("code", "api.status")),
        http_status=status,
        hint=None if remedy is None else str(remedy),
    )
