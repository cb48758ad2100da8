"""The only way out: one client that knows what was sent, where it may go, and how much may come back.

A request is judged by the egress rules before it is resolved and after, connects to exactly the judged
address, follows redirects by the same rules, and ends as a `Response` or a `NodeError` that says whether the
far side may have seen it.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import SimpleNamespace, TracebackType
from typing import Any, Final, NoReturn

import aiohttp
import anyio
from aiohttp import abc
from multidict import CIMultiDictProxy
from yarl import URL

from stackd import __version__
from stackd.core.clock import Clock
from stackd.core.errors import NodeError
from stackd.http.egress import EgressDeniedError, EgressPolicy

MAX_REDIRECTS = 10
CONNECT_TIMEOUT = 10.0  # seconds for name, connection and TLS together
KEEP_ALIVE = 30.0  # seconds an idle connection is kept; most servers close after 60 and more
CONNECTIONS = 256  # open at once, all hosts together
NAMES_KEPT = 60  # seconds a resolved, judged name is reused
READ_CHUNK = 64 * 1024

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_SECRET_HEADER = re.compile(
    r"authorization|cookie|api[-_]?key|token|secret|password", re.IGNORECASE
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO_HEADERS: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True)
class JsonBody:
    """`content`: a JSON text."""

    content: bytes


@dataclass(frozen=True, slots=True)
class FormBody:
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class FilePart:
    """A part of a multipart body; a plain field has no file name."""

    name: str
    content: bytes
    filename: str | None = None
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class MultipartBody:
    parts: tuple[FilePart, ...]


@dataclass(frozen=True, slots=True)
class RawBody:
    """`content_type` None: the request's own headers name it."""

    content: bytes
    content_type: str | None


Body = JsonBody | FormBody | MultipartBody | RawBody


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        timeout: seconds for all of it, redirects and body included.
        max_response_bytes: of the body, decompressed.
        fresh_connection: never reuse a connection, so that nothing is ever sent twice underneath.
    """

    method: str
    url: str
    query: Mapping[str, str | list[str]] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    timeout: float = 30.0
    follow_redirects: bool = True
    max_response_bytes: int = 1024 * 1024
    fresh_connection: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, read in full. Header names are lower-case; repeated ones are joined by a comma."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    content_type: str | None
    charset: str | None
    redirects: int = 0


@dataclass(slots=True)
class _Sent:
    """Whether a byte of the request may have left."""

    tell: Callable[[], None] | None
    is_true: bool = False

    def note(self) -> None:
        if not self.is_true:
            self.is_true = True
            if self.tell is not None:
                self.tell()


class _JudgingResolver(abc.AbstractResolver):
    """Resolves names on a thread and passes on only addresses the rules allow."""

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = policy
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[abc.ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        allowed = []
        refused: EgressDeniedError | None = None
        for one in found:
            try:
                self._policy.check_address(host, one["host"])
            except EgressDeniedError as error:
                refused = refused or error
            else:
                allowed.append(one)
        if not allowed and refused is not None:
            raise refused
        return allowed

    async def close(self) -> None:
        await self._inner.close()


class HttpClient(AbstractAsyncContextManager["HttpClient"]):
    """Used inside its own `async with`; any number of requests at a time."""

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        clock: Clock,
        resolver: abc.AbstractResolver | None = None,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._resolver = resolver
        self._sessions: tuple[aiohttp.ClientSession, aiohttp.ClientSession] | None = None

    async def __aenter__(self) -> HttpClient:
        self._sessions = (self._session(reuse=True), self._session(reuse=False))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        sessions, self._sessions = self._sessions, None
        with anyio.CancelScope(shield=True):
            for session in sessions or ():
                await session.close()

    def _session(self, *, reuse: bool) -> aiohttp.ClientSession:
        resolver = self._resolver or _JudgingResolver(self._policy)
        connector = (
            aiohttp.TCPConnector(
                resolver=resolver,
                limit=CONNECTIONS,
                ttl_dns_cache=NAMES_KEPT,
                keepalive_timeout=KEEP_ALIVE,
            )
            if reuse
            else aiohttp.TCPConnector(
                resolver=resolver, limit=CONNECTIONS, ttl_dns_cache=NAMES_KEPT, force_close=True
            )
        )
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(_note_connection)
        trace.on_connection_reuseconn.append(_note_connection)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            requote_redirect_url=False,
            skip_auto_headers=("User-Agent",),
            trace_configs=[trace],
        )

    async def request(
        self, request: Request, *, on_sent: Callable[[], None] | None = None
    ) -> Response:
        """Send `request` and read its answer.

        Args:
            on_sent: called once, when a connection stands and before the first byte leaves.

        Raises:
            NodeError: there is no usable answer; `sent` says whether the far side may have seen the request.
            EgressDeniedError: the rules refuse the target.
        Cancellation: the connection is closed; what was sent stays sent.
        """
        sent = _Sent(on_sent)
        try:
            with anyio.fail_after(request.timeout):
                return await self._follow(request, sent)
        except TimeoutError:
            raise NodeError(
                f"no answer from {_place(request.url)} within {request.timeout:g} s",
                kind="timeout",
                code="http.timeout",
                sent=sent.is_true,
            ) from None
        except EgressDeniedError as error:
            error.sent = sent.is_true
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _translated(error, request.url, sent=sent.is_true) from error

    async def _follow(self, request: Request, sent: _Sent) -> Response:
        url = _first_url(request)
        method, body = request.method, request.body
        headers = _checked(request.headers)
        for redirects in range(MAX_REDIRECTS + 1):
            self._judge(url)
            async with self._send(request, method, url, headers, body, sent) as answer:
                target = answer.headers.get("Location")
                if not (request.follow_redirects and answer.status in _REDIRECTS and target):
                    return await _read(answer, request.max_response_bytes, redirects)
                if answer.status == 303 or (answer.status in (301, 302) and method == "POST"):
                    method, body = ("HEAD" if method == "HEAD" else "GET"), None
                    headers = {k: v for k, v in headers.items() if k.lower() != "content-type"}
            next_url = _joined(url, target, sent)
            if next_url.origin() != url.origin():
                headers = {k: v for k, v in headers.items() if not _SECRET_HEADER.search(k)}
            url = next_url
        raise NodeError(
            f"{_place(request.url)} redirected more than {MAX_REDIRECTS} times",
            kind="rejected",
            code="http.too_many_redirects",
            sent=sent.is_true,
            answered=True,
        )

    def _judge(self, url: URL) -> None:
        host = url.host or ""
        self._policy.check_host(host)
        if _is_literal(host):
            self._policy.check_address(host, host)

    def _send(
        self,
        request: Request,
        method: str,
        url: URL,
        headers: dict[str, str],
        body: Body | None,
        sent: _Sent,
    ) -> Any:
        assert self._sessions is not None, "used outside its `async with`"  # noqa: S101
        session = self._sessions[1 if request.fresh_connection else 0]
        data, own = _encoded(body, headers)
        return session.request(
            method,
            url,
            headers={
                "User-Agent": f"stackd/{__version__}",
                "Accept-Encoding": "gzip, deflate",
                **own,
                **headers,
            },
            data=data,
            allow_redirects=False,
            raise_for_status=False,
            timeout=aiohttp.ClientTimeout(
                total=None, connect=min(CONNECT_TIMEOUT, request.timeout)
            ),
            trace_request_ctx=sent,
        )


async def _note_connection(_: Any, context: SimpleNamespace, __: Any) -> None:
    context.trace_request_ctx.note()


def _first_url(request: Request) -> URL:
    try:
        url = URL(request.url)
    except ValueError:
        raise _bad_url(request.url, "it cannot be read") from None
    if _CONTROL.search(request.url) or " " in request.url.strip():
        raise _bad_url(request.url, "it holds a space or control character")
    if url.scheme not in ("http", "https") or not url.host:
        raise _bad_url(request.url, "it must be http or https with a host")
    if url.user is not None or url.password is not None:
        raise _bad_url(request.url, "credentials belong in a header")
    if request.query:
        pairs = [
            (name, value)
            for name, item in request.query.items()
            for value in (item if isinstance(item, list) else [item])
        ]
        url = url.extend_query(pairs)
    return url.with_fragment(None)


def _joined(base: URL, target: str, sent: _Sent) -> URL:
    url: URL | None
    try:
        url = base.join(URL(target))
    except ValueError:
        url = None
    if url is None or url.scheme not in ("http", "https") or not url.host or url.user is not None:
        raise NodeError(
            f"{base.host} redirected to something that is no http URL",
            kind="rejected",
            code="http.bad_redirect",
            sent=sent.is_true,
            answered=True,
        )
    return url.with_fragment(None)


def _bad_url(url: str, why: str) -> NodeError:
    return NodeError(f"url {_place(url)}: {why}", kind="invalid", code="http.bad_url")


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not name or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise NodeError(
                f"header name {name[:100]!r} is not allowed", kind="invalid", code="http.bad_header"
            )
        if _CONTROL.search(value.replace("\t", "")):
            raise NodeError(
                f"header {name} holds a control character", kind="invalid", code="http.bad_header"
            )
    return dict(headers)


def _is_literal(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host.partition("%")[0])
    except OSError:
        return False
    return True


def _encoded(body: Body | None, headers: Mapping[str, str]) -> tuple[Any, Mapping[str, str]]:
    """(what aiohttp sends, the headers that go with it unless the request has its own)."""
    has_type = any(name.lower() == "content-type" for name in headers)
    match body:
        case None:
            return None, _NO_HEADERS
        case JsonBody(content):
            return content, _NO_HEADERS if has_type else {"Content-Type": "application/json"}
        case FormBody(pairs):
            return aiohttp.FormData(list(pairs)), _NO_HEADERS
        case MultipartBody(parts):
            form = aiohttp.FormData(default_to_multipart=True)
            for part in parts:
                form.add_field(
                    part.name, part.content, filename=part.filename, content_type=part.content_type
                )
            return form, _NO_HEADERS
        case RawBody(content, content_type):
            own = content_type or "application/octet-stream"
            return content, _NO_HEADERS if has_type else {"Content-Type": own}


async def _read(answer: aiohttp.ClientResponse, limit: int, redirects: int) -> Response:
    body = bytearray()
    async for chunk in _decoded(answer, limit):
        body += chunk
        if len(body) > limit:
            raise _too_large(answer, limit)
    has_type = "Content-Type" in answer.headers
    return Response(
        status=answer.status,
        headers=_flat(answer.headers),
        body=bytes(body),
        url=str(answer.url),
        content_type=answer.content_type if has_type else None,
        charset=answer.charset if has_type else None,
        redirects=redirects,
    )


def _flat(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        flat[key] = f"{flat[key]}, {value}" if key in flat else value
    return flat


async def _decoded(answer: aiohttp.ClientResponse, limit: int) -> AsyncIterator[bytes]:
    """The body's bytes, decompressed step by step so that a small bomb stays small."""
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        async for chunk in answer.content.iter_any():
            yield chunk
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        _refuse_content(answer, f"an encoding it was not offered: {encoding[:40]}")
    raw_bytes = 0
    decoder: Any = None
    async for chunk in answer.content.iter_any():
        raw_bytes += len(chunk)
        if raw_bytes > limit + READ_CHUNK:
            raise _too_large(answer, limit)
        if decoder is None:
            decoder = zlib.decompressobj(_window(encoding, chunk))
        pending = chunk
        while pending:
            try:
                piece = decoder.decompress(pending, READ_CHUNK)
            except zlib.error:
                _refuse_content(answer, f"a body that is not {encoding}")
            pending = decoder.unconsumed_tail
            yield piece
            if decoder.eof:
                pending = b""
    if decoder is not None and not decoder.eof:
        _refuse_content(answer, f"a {encoding} body that ends too soon")


def _window(encoding: str, first: bytes) -> int:
    """The window bits zlib needs: for gzip; zlib's own frame; or the bare deflate some servers send instead."""
    if encoding != "deflate":
        return 16 + zlib.MAX_WBITS
    return zlib.MAX_WBITS if first[:1] and first[0] & 0x0F == 8 else -zlib.MAX_WBITS


def _refuse_content(answer: aiohttp.ClientResponse, what: str) -> NoReturn:
    raise NodeError(
        f"answered {answer.status} with {what}",
        kind="invalid",
        code="http.bad_content",
        sent=True,
        answered=True,
    )


def _too_large(answer: aiohttp.ClientResponse, limit: int) -> NodeError:
    return NodeError(
        f"answered {answer.status} with more than {limit:,} bytes",
        kind="limit",
        code="http.response_too_large",
        sent=True,
        answered=True,
    )


def _place(url: str) -> str:
    """Scheme, host and path of a URL: what may stand in a message."""
    bare = url.partition("?")[0].partition("#")[0]
    scheme, mark, rest = bare.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{mark}{authority.rpartition('@')[2]}{slash}{path}"[:200]


def _translated(error: Exception, url: str, *, sent: bool) -> NodeError:
    """What a failure of the library below means for a node. Every ClientError has a row here."""
    place = _place(url)
    kind, code, words = _meaning(error)
    return NodeError(f"{place}: {words}", kind=kind, code=code, sent=sent)


def _meaning(error: Exception) -> tuple[str, str, str]:
    """(kind, code, words). Order matters: special classes before the ones they derive from."""
    match error:
        case aiohttp.ClientConnectorDNSError() | socket.gaierror():
            return "network", "http.dns", "the name cannot be resolved"
        case aiohttp.ClientConnectorCertificateError() | ssl.SSLCertVerificationError():
            return (
                "rejected",
                "http.certificate",
                f"its certificate is not accepted ({_cause(error)})",
            )
        case aiohttp.ClientSSLError() | aiohttp.ServerFingerprintMismatch() | ssl.SSLError():
            return "network", "http.tls", f"TLS failed ({_cause(error)})"
        case aiohttp.ConnectionTimeoutError():
            return "timeout", "http.connect_timeout", "no connection in time"
        case aiohttp.ServerTimeoutError():
            return "timeout", "http.timeout", "no answer in time"
        case aiohttp.ClientConnectorError():
            return "network", "http.connect", f"no connection ({_cause(error)})"
        case aiohttp.InvalidURL():
            return "invalid", "http.bad_url", "it is no URL that can be requested"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError():
            return "network", "http.reset", "the connection ended before the answer did"
        case aiohttp.ClientResponseError():
            return "network", "http.bad_response", "the answer is not HTTP"
        case OSError():
            return "network", "http.reset", f"the connection broke ({_cause(error)})"
        case ValueError() if not isinstance(error, aiohttp.ClientError):
            return "invalid", "http.bad_request", "the request cannot be formed"
        case _:
            return "network", "http.failed", type(error).__name__


def _cause(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number in errno.errorcode:
        return errno.errorcode[number]
    inner = getattr(error, "certificate_error", None) or error
    return str(
        getattr(inner, "reason", None)
        or getattr(inner, "verify_message", None)
        or type(inner).__name__
    )
