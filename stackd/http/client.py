"""The only way out: one client that knows what was sent, where it may go, and how much may come back.

A request is judged by the egress rules before it is resolved and after, connects to exactly the judged
address, follows redirects by the same rules, and ends as a `Response` or a `NodeError` that says whether the
far side may have seen it.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Protocol

import aiohttp
import anyio
from aiohttp import abc
from cachetools import TTLCache
from multidict import CIMultiDictProxy
from yarl import URL

from stackd import __version__
from stackd.core.clock import Clock
from stackd.core.errors import NodeError
from stackd.core.unpack import ENCODINGS, STEP, Unpacker
from stackd.http.egress import EgressDeniedError, EgressPolicy, normal_host
from stackd.http.proxy import Proxy
from stackd.http.tls import DEFAULT_TLS, Contexts, Tls

MAX_REDIRECTS = 10
CONNECT_TIMEOUT = 10.0  # seconds for name, connection and TLS together
KEEP_ALIVE = 30.0  # seconds an idle connection is kept; most servers close after 60 and more
CONNECTIONS = 256  # open at once, all hosts together
CONNECTIONS_PER_HOST = 128  # of these: one that is slow leaves room for others
PIECE = 256 * 1024  # bytes of a source read at a time
NAMES_REMEMBERED = 1_000
NAMES_KEPT = 60  # seconds a resolved, judged name is reused

RESOLVE_WITHIN = 2.0  # seconds for a name that a proxy will resolve again
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f\ud800-\udfff]"
)  # and halves of characters, which no encoding has

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a header's name, RFC 9110, 5.6.2

# What a redirect takes along to another origin. Any other header may be a secret, or make no sense there.
_CARRIED: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "accept-language",
        "content-encoding",
        "content-language",
        "content-type",
        "idempotency-key",
        "if-modified-since",
        "if-none-match",
        "range",
        "user-agent",
    }
)
_FRAMING: Final = frozenset({"content-length", "transfer-encoding"})  # follow from the body


@dataclass(frozen=True, slots=True)
class JsonBody:
    """`content`: a JSON text."""

    content: bytes


@dataclass(frozen=True, slots=True)
class FormBody:
    pairs: tuple[tuple[str, str], ...]


class Source(Protocol):
    """Content that is read while it is sent: a file, as a rule."""

    @property
    def size(self) -> int: ...

    async def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on, at least one before the end."""


class Sink(Protocol):
    """Takes a body while it comes in.

    Attributes:
        max_bytes: it takes no more.
    """

    @property
    def max_bytes(self) -> int: ...

    async def write(self, chunk: bytes) -> None:
        """Take the next piece. What this raises ends the request and is raised there."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """A part of a multipart body; a plain field has no file name."""

    name: str
    content: bytes | Source
    filename: str | None = None
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class MultipartBody:
    parts: tuple[FilePart, ...]


@dataclass(frozen=True, slots=True)
class RawBody:
    """`content_type` None: the request's own headers name it."""

    content: bytes | Source
    content_type: str | None


Body = JsonBody | FormBody | MultipartBody | RawBody


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        timeout: seconds for all of it, redirects and body included.
        max_response_bytes: of the body, decompressed.
        fresh_connection: a connection of its own, and sent at most once. Without it a connection may be
            reused, and a method that HTTP calls idempotent is sent a second time if that one breaks.
        tls: how TLS is spoken; after a redirect to another origin, certificates are verified in any case.
        sink_for: asked with status and content type of the last answer; what it returns takes the body, and
            the response has none. None: the body is read into memory.
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
    tls: Tls = DEFAULT_TLS
    sink_for: Callable[[int, str | None], Sink | None] | None = None


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
    """Whether a byte of the request may have left. `is_proxied`: a proxy is asked for where it goes now."""

    tell: Callable[[], None] | None
    is_true: bool = False
    is_proxied: bool = False

    def note(self) -> None:
        if not self.is_true:
            if self.tell is not None:
                self.tell()  # may refuse: then nothing leaves
            self.is_true = True


_SENT: Final[ContextVar[_Sent]] = ContextVar("sent")  # of the request that this task makes


class _JudgingResolver(abc.AbstractResolver):
    """Passes on only those addresses of `inner` that the rules allow."""

    def __init__(self, policy: EgressPolicy, inner: abc.AbstractResolver) -> None:
        self._policy = policy
        self._inner = inner

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
        if not allowed:
            raise refused or socket.gaierror(socket.EAI_NONAME, "no address")
        return allowed

    async def close(self) -> None:
        await self._inner.close()


@dataclass(frozen=True, slots=True)
class _Way:
    """How a target is reached: through a proxy or None, and with which context for TLS."""

    proxy: Proxy | None
    context: ssl.SSLContext | bool


class _BrokenOffError(Exception):
    """A connection that broke, under a request that must not be sent again."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class HttpClient(AbstractAsyncContextManager["HttpClient"]):
    """Used inside its own `async with`; any number of requests at a time.

    `resolver`: finds the addresses, which are then judged; without it the system's, on a thread.
    `connect_timeout`: seconds for name, connection and TLS together; `names_kept`: for an answer of the resolver.
    `per_host`: connections to one host and port, pooled ones and others apart.
    `ca_file`: certificates that are trusted besides the system's.
    `proxy`: is asked for every target that it does not exempt.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        clock: Clock,
        resolver: abc.AbstractResolver | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        per_host: int = CONNECTIONS_PER_HOST,
        names_kept: int = NAMES_KEPT,
        ca_file: Path | None = None,
        proxy: Proxy | None = None,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._resolver = resolver
        self._connect_timeout = connect_timeout
        self._per_host = per_host
        self._names_kept = names_kept
        self._contexts = Contexts(ca_file)
        self._proxy = proxy
        self._allowed = lru_cache(NAMES_REMEMBERED)(self._allow)
        self._sessions: dict[tuple[bool, bool], aiohttp.ClientSession] = {}
        self._resolved: TTLCache[str, list[str] | None] = TTLCache(
            NAMES_REMEMBERED, names_kept, timer=clock.monotonic
        )

    async def __aenter__(self) -> HttpClient:
        await self._contexts.of(DEFAULT_TLS)  # the operator's file is read now, or the start fails
        for fresh in (False, True):
            for proxied in (False, True) if self._proxy else (False,):
                self._sessions[fresh, proxied] = self._session(fresh=fresh, proxied=proxied)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):
            while self._sessions:
                await self._sessions.popitem()[1].close()

    def _session(self, *, fresh: bool, proxied: bool) -> aiohttp.ClientSession:
        found = self._resolver or aiohttp.ThreadedResolver()
        connector = aiohttp.TCPConnector(
            # The proxy is the operator's own: its name is not judged. Through it, only it is connected to.
            resolver=aiohttp.ThreadedResolver()
            if proxied
            else _JudgingResolver(self._policy, found),
            limit=CONNECTIONS,
            limit_per_host=self._per_host,
            ttl_dns_cache=self._names_kept,
            **({"force_close": True} if fresh else {"keepalive_timeout": KEEP_ALIVE}),
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            requote_redirect_url=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout),
            request_class=_NotedRequest,
            middlewares=(_once,) if fresh else (),
        )

    async def request(
        self, request: Request, *, on_sent: Callable[[], None] | None = None
    ) -> Response:
        """Send `request` and read its answer.

        Args:
            on_sent: called once, when a connection stands and before the first byte leaves. If it raises,
                nothing is sent and the error is raised here.

        Raises:
            NodeError: there is no usable answer; `sent` says whether the far side may have seen the request.
            EgressDeniedError: the rules refuse the target.
        Cancellation: the connection is closed; what was sent stays sent.
        """
        sent = _Sent(on_sent)
        _SENT.set(sent)
        try:
            return await self._follow_in_time(request, sent)
        except EgressDeniedError as error:
            # A new one: requests that waited for the same name share the resolver's.
            raise EgressDeniedError(error.host, error.reason, sent=sent.is_true) from None
        except aiohttp.ClientError as error:  # before the others: some are TimeoutError too
            raise _translated(error, request.url, sent) from error
        except TimeoutError:
            missing = "answer from" if sent.is_true else "connection to"
            raise NodeError(
                f"no {missing} {_place(request.url)} within {request.timeout:g} s",
                kind="timeout",
                code="http.timeout" if sent.is_true else "http.connect_timeout",
                sent=sent.is_true,
            ) from None
        except _BrokenOffError as broken:
            raise _translated(broken.error, request.url, sent) from broken
        except (OSError, ValueError) as error:
            raise _translated(error, request.url, sent) from error

    async def _follow_in_time(self, request: Request, sent: _Sent) -> Response:
        with anyio.CancelScope(deadline=anyio.current_time() + request.timeout):
            return await self._follow(request, sent)
        raise TimeoutError

    async def _follow(self, request: Request, sent: _Sent) -> Response:
        url = _first_url(request)
        method, body = request.method, request.body
        headers = _checked(request.headers)
        tls = request.tls
        for redirects in range(MAX_REDIRECTS + 1):
            way = _Way(await self._judge(url), await self._contexts.of(tls))
            sent.is_proxied = way.proxy is not None
            async with self._send(request, method, url, headers, body, way) as answer:
                if sent.is_proxied and answer.status == 407:
                    raise _proxy_refused(request.url, 407, sent=sent.is_true)
                target = answer.headers.get("Location")
                if not (request.follow_redirects and answer.status in _REDIRECTS and target):
                    return await _read(answer, request, redirects)
                if answer.status == 303 or (answer.status in (301, 302) and method == "POST"):
                    method, body = ("HEAD" if method == "HEAD" else "GET"), None
                    headers = {
                        k: v for k, v in headers.items() if not k.lower().startswith("content-")
                    }
            next_url = _joined(url, target, sent)
            if next_url.origin() != url.origin():
                headers = {k: v for k, v in headers.items() if k.lower() in _CARRIED}
                tls = replace(tls, verify=True)
            url = next_url
        raise NodeError(
            f"{_place(request.url)} redirected more than {MAX_REDIRECTS} times",
            kind="rejected",
            code="http.too_many_redirects",
            sent=sent.is_true,
            answered=True,
        )

    async def _judge(self, url: URL) -> Proxy | None:
        """Refuse a target that the rules deny, as far as that is known before it is connected to; the proxy to ask for it.

        Through a proxy, no address that was judged is connected to: the proxy resolves the name again. So all
        addresses that it has here must be allowed; of a name that has none here, only the name is judged.
        """
        host, is_literal = self._allowed(url.raw_host or "")  # in ASCII, as it is resolved
        proxy = self._proxy
        if proxy is None or proxy.exempts_name(host):
            return None
        addresses = [host] if is_literal else await self._addresses_of(host, url.port or 0)
        if addresses is None:
            self._policy.check_unresolved(host)
            return proxy
        for address in addresses:
            self._policy.check_address(host, address)
        return None if all(map(proxy.exempts_address, addresses)) else proxy

    def _allow(self, raw_host: str) -> tuple[str, bool]:
        """(the host, whether it is an address); refused if the rules deny it. The same for good: it may be kept."""
        host = normal_host(raw_host)
        self._policy.check_host(host)
        is_literal = _is_literal(host)
        if is_literal:
            self._policy.check_address(host, host)
        return host, is_literal

    async def _addresses_of(self, host: str, port: int) -> list[str] | None:
        """What `host` resolves to here, remembered for a while; None if it does not."""
        if host not in self._resolved:
            found: list[str] | None = None
            resolver = self._resolver or aiohttp.ThreadedResolver()
            with anyio.move_on_after(RESOLVE_WITHIN), contextlib.suppress(OSError):
                found = [one["host"] for one in await resolver.resolve(host, port)]
            self._resolved[host] = found
        return self._resolved[host]

    def _send(
        self,
        request: Request,
        method: str,
        url: URL,
        headers: dict[str, str],
        body: Body | None,
        way: _Way,
    ) -> Any:
        assert self._sessions, "used outside its `async with`"  # noqa: S101
        proxy = way.proxy
        session = self._sessions[request.fresh_connection, proxy is not None]
        data, headers = _encoded(body, headers)
        through: dict[str, Any] = {}
        if proxy is not None:
            own = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
            through = {"proxy": proxy.url, "proxy_headers": own}  # these go with CONNECT
            if url.scheme == "http":
                headers = headers | own
        return session.request(
            method,
            url,
            headers={
                "User-Agent": f"stackd/{__version__}",
                "Accept-Encoding": "gzip, deflate",
                **headers,
            },
            skip_auto_headers=("Content-Type",) if data is None else None,
            data=data,
            allow_redirects=False,
            raise_for_status=False,
            ssl=way.context,
            **through,
        )


class _NotedRequest(aiohttp.ClientRequest):
    """Notes that it leaves, once its connection stands. The library's own traces say so too, for 16 µs a request."""

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        _SENT.get().note()
        return await super().send(conn)


async def _once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a request again by itself, as it does for GET, PUT and DELETE."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise  # never had a connection
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _BrokenOffError(error) from error


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
        if not _TOKEN.fullmatch(name):
            raise NodeError(
                f"header name {name[:100]!r} is not allowed", kind="invalid", code="http.bad_header"
            )
        if _CONTROL.search(value.replace("\t", "")):
            raise NodeError(
                f"header {name} holds a control character", kind="invalid", code="http.bad_header"
            )
        if name.lower() in _FRAMING:
            raise NodeError(
                f"header {name} follows from the body and cannot be given",
                kind="invalid",
                code="http.bad_header",
            )
    return dict(headers)


def _is_literal(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host.partition("%")[0])
    except OSError:
        return False
    return True


def _encoded(body: Body | None, headers: dict[str, str]) -> tuple[Any, dict[str, str]]:
    """(what aiohttp sends, the headers that go with it)."""
    match body:
        case None:
            return None, headers
        case JsonBody(content):
            return content, _typed(headers, "application/json")
        case FormBody(pairs):
            return aiohttp.FormData(list(pairs)), headers
        case MultipartBody(parts):
            return _form_of(parts), _untyped(headers)  # only the body knows the boundary
        case RawBody(content, content_type):
            own = content_type or "application/octet-stream"
            return _sendable(content, own), _typed(headers, own)


def _typed(headers: dict[str, str], content_type: str) -> dict[str, str]:
    """`headers` with that content type, unless they name one."""
    if any(name.lower() == "content-type" for name in headers):
        return headers
    return {"Content-Type": content_type, **headers}


def _untyped(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() != "content-type"}


def _form_of(parts: tuple[FilePart, ...]) -> aiohttp.FormData:
    # Unquoted: names go out as browsers and curl send them, in UTF-8.
    form = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
    for part in parts:
        content = _sendable(part.content, part.content_type)
        if part.filename is None and isinstance(content, bytes):  # bare, it would become a file
            own = part.content_type or "text/plain; charset=utf-8"
            content = aiohttp.BytesPayload(content, content_type=own)
        form.add_field(part.name, content, filename=part.filename, content_type=part.content_type)
    return form


def _sendable(content: bytes | Source, content_type: str | None) -> Any:
    if isinstance(content, bytes):
        return content
    return _SourcePayload(content, content_type=content_type)


class _SourcePayload(aiohttp.Payload):
    """Reads its source anew each time it is sent, a piece at a time."""

    _default_content_type = "application/octet-stream"
    _consumed = False

    def __init__(self, source: Source, **more: Any) -> None:
        super().__init__(source, **more)
        self._source = source
        self._size = source.size

    def decode(self, encoding: str = "", errors: str = "") -> str:  # noqa: ARG002  # its signature
        raise TypeError("what is read from a source is not text")

    async def write(self, writer: aiohttp.abc.AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(
        self, writer: aiohttp.abc.AbstractStreamWriter, content_length: int | None
    ) -> None:
        end = self._source.size if content_length is None else content_length
        at = 0
        while at < end:
            chunk = await self._source.read_at(at, min(PIECE, end - at))
            if not chunk:  # the rest is missing: better no request than a false one
                raise aiohttp.ClientConnectionError("the content ended before its time")
            await writer.write(chunk)
            at += len(chunk)


async def _read(answer: aiohttp.ClientResponse, request: Request, redirects: int) -> Response:
    headers = _flat(answer.headers)
    content_type = answer.content_type if "content-type" in headers else None
    sink = None if request.sink_for is None else request.sink_for(answer.status, content_type)
    limit = request.max_response_bytes if sink is None else sink.max_bytes
    body = bytearray()
    encoding = headers.get("content-encoding", "").strip().lower()
    pieces = _decoded(answer, encoding, limit) if encoding else answer.content.iter_any()
    async for chunk in pieces:
        if sink is not None:
            await sink.write(chunk)
        else:
            body += chunk
            if len(body) > limit:
                raise _too_large(answer, limit)
    return Response(
        status=answer.status,
        headers=headers,
        body=bytes(body),
        url=str(answer.url),
        content_type=content_type,
        charset=None if content_type is None else answer.charset,
        redirects=redirects,
    )


def _flat(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in headers.items():
        key, text = name.lower(), _readable(value)
        flat[key] = f"{flat[key]}, {text}" if key in flat else text
    return flat


def _readable(value: str) -> str:
    """A header's value as text that can be kept: in UTF-8, else in Latin-1, which it was for long.

    aiohttp hands on bytes that are no UTF-8 as half surrogates.
    """
    if value.isascii():
        return value
    raw = value.encode(errors="surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


async def _decoded(
    answer: aiohttp.ClientResponse, encoding: str, limit: int
) -> AsyncIterator[bytes]:
    """The body's bytes, unpacked from `encoding`."""
    if encoding == "identity":
        async for chunk in answer.content.iter_any():
            yield chunk
        return
    if encoding not in ENCODINGS:
        _refuse_content(answer, f"an encoding it was not offered: {encoding[:40]}")
    unpacker = Unpacker(encoding)
    packed_bytes = 0
    async for chunk in answer.content.iter_any():
        packed_bytes += len(chunk)
        if packed_bytes > limit + STEP:  # also ends a body that unpacks to nothing
            raise _too_large(answer, limit)
        try:
            for piece in unpacker.feed(chunk):
                yield piece
        except zlib.error:
            _refuse_content(answer, f"a body that is not {encoding}")
    if not unpacker.is_whole:
        _refuse_content(answer, f"a {encoding} body that ends too soon")


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


def _proxy_refused(url: str, status: int, *, sent: bool) -> NodeError:
    kind, code, words = _of_proxy(status)
    return NodeError(f"{_place(url)}: {words}", kind=kind, code=code, sent=sent, answered=sent)


def _of_proxy(status: int) -> tuple[str, str, str]:
    """What a refusal of the proxy means: as `_meaning`."""
    if status == 407:
        return "rejected", "http.proxy_auth", "the proxy does not take our credentials (407)"
    kind = "network" if status >= 500 else "rejected"
    return kind, "http.proxy_refused", f"the proxy answered {status}"


def _translated(error: Exception, url: str, sent: _Sent) -> NodeError:
    """What a failure of the library below means for a node. Every ClientError has a row in `_meaning`."""
    kind, code, words = _meaning(error)
    if sent.is_proxied and not sent.is_true and code in ("http.reset", "http.bad_response"):
        kind, code, words = "network", "http.proxy_failed", f"at the proxy, {words}"
    return NodeError(f"{_place(url)}: {words}", kind=kind, code=code, sent=sent.is_true)


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
        case aiohttp.ClientProxyConnectionError():
            return "network", "http.proxy_connect", f"no connection to the proxy ({_cause(error)})"
        case aiohttp.ClientHttpProxyError():
            return _of_proxy(getattr(error, "status", 0))
        case aiohttp.ClientConnectorError():
            return "network", "http.connect", f"no connection ({_cause(error)})"
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError() | aiohttp.RedirectClientError():
            return "invalid", "http.bad_url", "it is no URL that can be requested"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError():
            return "network", "http.reset", "the connection ended before the answer did"
        case aiohttp.ClientResponseError():
            return "network", "http.bad_response", "the answer is not HTTP"
        case aiohttp.ClientConnectionError() | OSError():
            return "network", "http.reset", f"the connection broke ({_cause(error)})"
        case ValueError() if not isinstance(error, aiohttp.ClientError):
            return "invalid", "http.bad_request", "the request cannot be formed"
        case _:
            return "network", "http.failed", type(error).__name__


def _cause(error: Exception) -> str:
    """The shortest word for what happened: why a certificate is refused, OpenSSL's reason, or the errno's name."""
    inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(inner, ssl.SSLError):  # its errno is OpenSSL's own
        words = getattr(inner, "verify_message", None) or getattr(inner, "reason", None)
        return words or type(inner).__name__
    return errno.errorcode.get(getattr(inner, "errno", None) or 0, type(inner).__name__)
