"""The only way out: one client that knows what was sent, where it may go, and how much may come back.

A request is judged by the egress rules before it is resolved and after, connects to exactly the judged
address, follows redirects by the same rules, and ends as a `Response` or a `NodeError` that says whether the
far side may have seen it.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import aiohttp
import anyio
from aiohttp import abc
from cachetools import TTLCache
from yarl import URL

from stackd import __version__
from stackd.core.clock import Clock
from stackd.core.errors import NodeError
from stackd.http.answers import read
from stackd.http.bodies import encoded
from stackd.http.egress import EgressDeniedError, EgressPolicy, normal_host
from stackd.http.failures import place, proxy_refused, translated
from stackd.http.message import Body, Request, Response, SinkFor
from stackd.http.proxy import Proxy
from stackd.http.tls import DEFAULT_TLS, Contexts

MAX_REDIRECTS = 10
CONNECT_TIMEOUT = 10.0  # seconds for name, connection and TLS together
KEEP_ALIVE = 30.0  # seconds an idle connection is kept; most servers close after 60 and more
CONNECTIONS = 256  # open at once, all hosts together
CONNECTIONS_PER_HOST = 128  # of these: one that is slow leaves room for others
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

    def explained(self, error: Exception, url: str) -> NodeError:
        return translated(error, url, sent=self.is_true, proxied=self.is_proxied)


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


class _Rules:
    """One policy, what was judged by it, and the sessions whose connections lead where it allows.

    Entered while a request is under way; once they are over, the last one to leave closes them.
    """

    def __init__(
        self, policy: EgressPolicy, sessions: dict[tuple[bool, bool], aiohttp.ClientSession]
    ) -> None:
        self.policy = policy
        self.sessions = sessions
        self.allowed = lru_cache(NAMES_REMEMBERED)(self._allow)
        self._under_way = 0
        self._is_over = False

    async def __aenter__(self) -> _Rules:
        self._under_way += 1
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._under_way -= 1
        if self._is_over:
            await self.end()

    async def end(self) -> None:
        """Let what is under way end as it began, then close."""
        self._is_over = True
        if not self._under_way:
            await self.close()

    async def close(self) -> None:
        with anyio.CancelScope(shield=True):
            while self.sessions:
                await self.sessions.popitem()[1].close()

    def _allow(self, raw_host: str) -> tuple[str, bool]:
        """(the host, whether it is an address); refused if the rules deny it. The same for good: it may be kept."""
        host = normal_host(raw_host)
        self.policy.check_host(host)
        is_literal = _is_literal(host)
        if is_literal:
            self.policy.check_address(host, host)
        return host, is_literal


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
        self._rules = self._private_rules = _Rules(policy, {})
        self._clock = clock
        self._resolver = resolver
        self._connect_timeout = connect_timeout
        self._per_host = per_host
        self._names_kept = names_kept
        self._contexts = Contexts(ca_file)
        self._proxy = proxy
        self._resolved: TTLCache[str, list[str] | None] = TTLCache(
            NAMES_REMEMBERED, names_kept, timer=clock.monotonic
        )

    async def __aenter__(self) -> HttpClient:
        await self._contexts.of(DEFAULT_TLS)  # the operator's file is read now, or the start fails
        self._open(self._rules.policy)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._rules.close()
        await self._private_rules.close()

    async def use(self, policy: EgressPolicy) -> None:
        """Judge by `policy` from now on, also where a request that is under way is redirected to.

        Nothing is reused that another policy has let pass: no verdict, address or connection.
        """
        if policy != self._rules.policy:
            before = self._rules, self._private_rules
            self._open(policy)
            for rules in before:
                await rules.end()

    def _open(self, policy: EgressPolicy) -> None:
        self._rules = self._opened(policy)
        self._private_rules = self._opened(replace(policy, allow_private=True))

    def _opened(self, policy: EgressPolicy) -> _Rules:
        sessions = {
            (fresh, proxied): self._session(policy, fresh=fresh, proxied=proxied)
            for fresh in (False, True)
            for proxied in ((False, True) if self._proxy else (False,))
        }
        return _Rules(policy, sessions)

    def _session(
        self, policy: EgressPolicy, *, fresh: bool, proxied: bool
    ) -> aiohttp.ClientSession:
        found = self._resolver or aiohttp.ThreadedResolver()
        connector = aiohttp.TCPConnector(
            # The proxy is the operator's own: its name is not judged. Through it, only it is connected to.
            resolver=aiohttp.ThreadedResolver() if proxied else _JudgingResolver(policy, found),
            limit=CONNECTIONS,
            limit_per_host=self._per_host,
            ttl_dns_cache=self._names_kept,
            **({"force_close": True} if fresh else {"keepalive_timeout": KEEP_ALIVE}),
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": f"stackd/{__version__}", "Accept-Encoding": "gzip, deflate"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            requote_redirect_url=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout),
            request_class=_NotedRequest,
            middlewares=(_once,) if fresh else (),
        )

    async def request(
        self,
        request: Request,
        *,
        on_sent: Callable[[], None] | None = None,
        sink_for: SinkFor | None = None,
    ) -> Response:
        """Send `request` and read its answer.

        Args:
            on_sent: called once, when a connection stands and before the first byte leaves. If it raises,
                nothing is sent and the error is raised here.
            sink_for: asked with status and content type of the last answer; what it returns takes the body, and
                the response has none. Without it, or if it returns None, the body is read into memory.

        Raises:
            NodeError: there is no usable answer; `sent` says whether the far side may have seen the request.
            EgressDeniedError: the rules refuse the target.
        Cancellation: the connection is closed; what was sent stays sent.
        """
        sent = _Sent(on_sent)
        _SENT.set(sent)
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + request.timeout):
                return await self._follow(request, sent, sink_for)
        except EgressDeniedError as error:
            # A new one: requests that waited for the same name share the resolver's.
            raise EgressDeniedError(error.host, error.reason, sent=sent.is_true) from None
        except aiohttp.ClientError as error:  # before the others: some are TimeoutError too
            raise sent.explained(error, request.url) from error
        except TimeoutError:  # of the system's own
            pass
        except _BrokenOffError as broken:
            raise sent.explained(broken.error, request.url) from broken
        except (OSError, ValueError) as error:
            raise sent.explained(error, request.url) from error
        missing = "answer from" if sent.is_true else "connection to"
        raise NodeError(
            f"no {missing} {place(request.url)} within {request.timeout:g} s",
            kind="timeout",
            code="http.timeout" if sent.is_true else "http.connect_timeout",
            sent=sent.is_true,
        )

    async def _follow(self, request: Request, sent: _Sent, sink_for: SinkFor | None) -> Response:
        url = first = _first_url(request)
        method, body = request.method, request.body
        headers = _checked(request.headers)
        tls = request.tls
        for redirects in range(MAX_REDIRECTS + 1):
            is_granted = request.grants_private and url.host == first.host
            async with self._private_rules if is_granted else self._rules as rules:
                way = _Way(await self._judge(url, rules), await self._contexts.of(tls))
                sent.is_proxied = way.proxy is not None
                async with self._send(rules, request, method, url, headers, body, way) as answer:
                    if sent.is_proxied and answer.status == 407:
                        raise proxy_refused(request.url, 407, sent=sent.is_true)
                    target = answer.headers.get("Location")
                    if not (request.follow_redirects and answer.status in _REDIRECTS and target):
                        return await read(answer, request, redirects, sink_for)
                    if answer.status == 303 or (answer.status in (301, 302) and method == "POST"):
                        method, body = ("HEAD" if method == "HEAD" else "GET"), None
                        headers = {
                            k: v for k, v in headers.items() if not k.lower().startswith("content-")
                        }
            next_url = _joined(url, target, sent)
            if next_url.origin() != url.origin():
                if request.carries_to is None or not request.carries_to(next_url):
                    if request.carries_to is not None and body is not None:
                        raise _body_led_away(url, next_url, answer.status, sent)
                    headers = {k: v for k, v in headers.items() if k.lower() in _CARRIED}
                tls = replace(tls, verify=True)
            url = next_url
        raise NodeError(
            f"{place(request.url)} redirected more than {MAX_REDIRECTS} times",
            kind="rejected",
            code="http.too_many_redirects",
            sent=sent.is_true,
            answered=True,
        )

    async def _judge(self, url: URL, rules: _Rules) -> Proxy | None:
        """Refuse a target that the rules deny, as far as that is known before it is connected to; the proxy to ask for it.

        Through a proxy, no address that was judged is connected to: the proxy resolves the name again. So all
        addresses that it has here must be allowed; of a name that has none here, only the name is judged.
        """
        host, is_literal = rules.allowed(url.raw_host or "")  # in ASCII, as it is resolved
        proxy = self._proxy
        if proxy is None or proxy.exempts_name(host):
            return None
        addresses = [host] if is_literal else await self._addresses_of(host, url.port or 0)
        if addresses is None:
            rules.policy.check_unresolved(host)
            return proxy
        for address in addresses:
            rules.policy.check_address(host, address)
        return None if all(map(proxy.exempts_address, addresses)) else proxy

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
        rules: _Rules,
        request: Request,
        method: str,
        url: URL,
        headers: dict[str, str],
        body: Body | None,
        way: _Way,
    ) -> Any:
        assert rules.sessions, "used outside its `async with`"  # noqa: S101
        proxy = way.proxy
        session = rules.sessions[request.fresh_connection, proxy is not None]
        data, headers = encoded(body, headers)
        through: dict[str, Any] = {}
        if proxy is not None:
            own = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
            through = {"proxy": proxy.url, "proxy_headers": own}  # these go with CONNECT
            if url.scheme == "http":
                headers = headers | own
        return session.request(
            method,
            url,
            headers=headers,
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


def _body_led_away(url: URL, target: URL, status: int, sent: _Sent) -> NodeError:
    return NodeError(
        f"{url.host} redirected ({status}) to {target.host}, which is none of its hosts, and the body would have "
        "gone along; nothing was sent there",
        kind="rejected",
        code="egress.foreign_host",
        sent=sent.is_true,
        answered=True,
    )


def _bad_url(url: str, why: str) -> NodeError:
    return NodeError(f"url {place(url)}: {why}", kind="invalid", code="http.bad_url")


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        _check_name(name)
        if not value.isprintable() and _CONTROL.search(value.replace("\t", "")):
            raise _bad_header(f"header {name} holds a control character")
    return dict(headers)


@lru_cache(NAMES_REMEMBERED)
def _check_name(name: str) -> None:
    if not _TOKEN.fullmatch(name):
        raise _bad_header(f"header name {name[:100]!r} is not allowed")
    if name.lower() in _FRAMING:
        raise _bad_header(f"header {name} follows from the body and cannot be given")


def _bad_header(what: str) -> NodeError:
    return NodeError(what, kind="invalid", code="http.bad_header")


def _is_literal(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host.partition("%")[0])
    except OSError:
        return False
    return True
