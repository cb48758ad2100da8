"""Far sides on real sockets, on loopback only, that misbehave to order and count what reaches them.

A behaviour is a coroutine over a `Link`, one call per connection. Most answer with the bytes they are given,
so that a test shows what the client got to read.
"""

from __future__ import annotations

import gzip
import shutil
import socket
import ssl
import struct
import subprocess
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from aiohttp import abc
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSListener

from stackd.http.egress import EgressPolicy
from support.held import held

CHUNK = 64 * 1024
SEEN_WITHIN = 5.0  # seconds a test waits for something to reach the far side


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it came over the wire; header names lower-case, in order, repeated ones kept."""

    method: str
    target: str
    fields: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def headers(self) -> dict[str, str]:
        return dict(self.fields)


class Link:
    """One accepted connection."""

    def __init__(self, stream: ByteStream, far_side: FarSide) -> None:
        self._stream = stream
        self._far_side = far_side
        self._held = b""

    async def request(self) -> Seen | None:
        """The next request, read in full and noted; None when the client has closed."""
        while b"\r\n\r\n" not in self._held:
            if not await self._more():
                return None
        head, _, self._held = self._held.partition(b"\r\n\r\n")
        first, *lines = head.decode("utf-8", "surrogateescape").split("\r\n")
        method, target, _ = first.split(" ")
        pairs = (line.partition(":") for line in lines)
        fields = tuple((name.lower(), value.strip()) for name, _, value in pairs)
        seen = Seen(method, target, fields, await self._body(dict(fields)))
        self._far_side.note(seen)
        return seen

    async def head(self) -> dict[str, str]:
        """The headers of the next request, whose body is left unread."""
        return (await self.first_line_and_headers())[1]

    async def first_line_and_headers(self) -> tuple[str, dict[str, str]]:
        while b"\r\n\r\n" not in self._held:
            if not await self._more():
                raise anyio.ClosedResourceError
        head, _, self._held = self._held.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return first, {name.lower(): value.strip() for name, _, value in pairs}

    async def joined_with(self, other: ByteStream) -> None:
        """Hand on what comes from either side until one closes."""

        async def onward() -> None:
            while self._held or await self._more():
                data, self._held = self._held, b""
                await other.send(data)
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(onward)
            async for data in other:
                await self.send(data)
            tasks.cancel_scope.cancel()

    async def drop_request(self) -> None:
        """Read the next request and keep nothing of it."""
        left = int((await self.head())["content-length"])
        while left > len(self._held):
            left -= len(self._held)
            self._held = b""
            await self._more()

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self._until(b"\r\n"), 16):
                body += await self._exactly(size)
                await self._exactly(2)
            await self._exactly(2)
            return body
        return await self._exactly(int(headers.get("content-length", 0)))

    async def _until(self, end: bytes) -> bytes:
        while end not in self._held and await self._more():
            pass
        line, _, self._held = self._held.partition(end)
        return line

    async def _exactly(self, size: int) -> bytes:
        while len(self._held) < size and await self._more():
            pass
        taken, self._held = self._held[:size], self._held[size:]
        return taken

    async def _more(self) -> bool:
        try:
            received = await self._stream.receive(CHUNK)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return False
        self._far_side.touch()
        self._held += received
        return True

    async def send(self, data: bytes) -> None:
        await self._stream.send(data)

    async def reset(self) -> None:
        """End the connection with RST instead of FIN."""
        raw = self._stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self._stream.aclose()

    async def gone(self) -> None:
        """Wait until the client has closed; whatever else it sends is dropped."""
        while await self._more():
            self._held = b""


Behaviour = Callable[[Link], Awaitable[None]]


@dataclass(slots=True)
class FarSide:
    """What has reached one server.

    Attributes:
        ended: connections that are over.
        on_byte: called at everything that is received.
    """

    host: str
    port: int
    scheme: str = "http"
    connections: int = 0
    ended: int = 0
    requests: list[Seen] = field(default_factory=list)
    on_byte: Callable[[], None] | None = None
    _changed: anyio.Event = field(default_factory=anyio.Event)

    def url(self, path: str = "/", *, host: str | None = None) -> str:
        shown = host or self.host
        return f"{self.scheme}://{f'[{shown}]' if ':' in shown else shown}:{self.port}{path}"

    @property
    def request(self) -> Seen:
        """The only request there was."""
        assert len(self.requests) == 1, self.requests
        return self.requests[0]

    def note(self, seen: Seen) -> None:
        self.requests.append(seen)
        self.change()

    def touch(self) -> None:
        if self.on_byte is not None:
            self.on_byte()

    def change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, *, requests: int = 0, connections: int = 0, ended: int = 0) -> None:
        """Wait until at least so many have been seen."""
        with anyio.fail_after(SEEN_WITHIN):
            while (
                len(self.requests) < requests
                or self.connections < connections
                or self.ended < ended
            ):
                await self._changed.wait()


def far_side(
    behave: Behaviour,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AbstractAsyncContextManager[FarSide]:
    """A server on a free port of `host`, or on `port`; every connection is left to `behave` and then closed."""
    return held(_listening(behave, host, port, tls))


@asynccontextmanager
async def _listening(
    behave: Behaviour, host: str, port: int, tls: ssl.SSLContext | None
) -> AsyncIterator[FarSide]:
    listener = await anyio.create_tcp_listener(local_host=host, local_port=port)
    port = listener.extra(SocketAttribute.local_port)
    far = FarSide(host, port, scheme="https" if tls else "http")

    async def serve(stream: ByteStream) -> None:
        far.connections += 1
        far.change()
        try:
            async with stream:
                await behave(Link(stream, far))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        finally:
            far.ended += 1
            far.change()

    serving = listener if tls is None else TLSListener(listener, tls, standard_compatible=False)
    async with serving, anyio.create_task_group() as tasks:
        tasks.start_soon(serving.serve, serve)
        try:
            yield far
        finally:
            tasks.cancel_scope.cancel()


# -- answers


def answer(
    status: int = 200,
    body: bytes = b"",
    *fields: tuple[str, str],
    length: int | None = None,
) -> bytes:
    """A response with a Content-Length, which is the true one unless `length` lies."""
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in fields)]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def json_answer(body: bytes, status: int = 200) -> bytes:
    return answer(status, body, ("Content-Type", "application/json"))


def redirect(status: int, target: str) -> bytes:
    return answer(status, b"", ("Location", target))


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """A response whose body comes in `chunks`."""
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed + end


def encoded(encoding: str, body: bytes) -> bytes:
    """A response that calls its body `encoding`."""
    return answer(200, body, ("Content-Encoding", encoding))


def raw_deflate(body: bytes) -> bytes:
    """Deflate without zlib's frame, as some servers send it."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


def gzip_bomb(megabytes: int) -> bytes:
    """So many MiB of zeros, a thousandth of that long."""
    packer = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    block = bytes(1024 * 1024)
    return b"".join([*(packer.compress(block) for _ in range(megabytes)), packer.flush()])


def gzip_of_nothing() -> tuple[bytes, bytes]:
    """A gzip header, and a block that may follow it any number of times and unpacks to nothing."""
    return gzip.compress(b"", mtime=0)[:10], b"\x00\x00\x00\xff\xff"


# -- behaviours


def answers(*responses: bytes | Callable[[Seen], bytes]) -> Behaviour:
    """Keeps the connection; every request gets the next response, from the last one on the last."""
    waiting = list(responses)

    async def behave(link: Link) -> None:
        while seen := await link.request():
            response = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            await link.send(response if isinstance(response, bytes) else response(seen))

    return behave


def answers_once(*pieces: bytes) -> Behaviour:
    """Sends `pieces` to the first request and closes."""

    async def behave(link: Link) -> None:
        await link.request()
        for piece in pieces:
            await link.send(piece)

    return behave


def answers_then_stalls(*pieces: bytes) -> Behaviour:
    """Sends `pieces` to the first request, then nothing, until the client goes."""

    async def behave(link: Link) -> None:
        await link.request()
        for piece in pieces:
            await link.send(piece)
        await link.gone()

    return behave


def answers_then_resets(*pieces: bytes) -> Behaviour:
    """Sends `pieces` to the first request, then RST."""

    async def behave(link: Link) -> None:
        await link.request()
        for piece in pieces:
            await link.send(piece)
        await link.reset()

    return behave


def repeats(head: bytes, piece: bytes) -> Behaviour:
    """Sends `head` to the first request, then `piece` for as long as the client reads."""

    async def behave(link: Link) -> None:
        await link.request()
        await link.send(head)
        while True:
            await link.send(piece)

    return behave


def resets_before_reading(go: anyio.Event) -> Behaviour:
    """RST once `go` is set, with nothing read."""

    async def behave(link: Link) -> None:
        await go.wait()
        await link.reset()

    return behave


def greets(greeting: bytes) -> Behaviour:
    """Speaks first, and then no more, until the client goes."""

    async def behave(link: Link) -> None:
        await link.send(greeting)
        await link.gone()

    return behave


async def says_nothing(link: Link) -> None:
    """Accepts, and never reads a request nor answers one; not even a TLS handshake."""
    await link.gone()


def answers_by_path(responses: dict[str, bytes]) -> Behaviour:
    """Keeps the connection; answers by the path, 404 to any other."""
    return answers(lambda seen: responses.get(seen.target, answer(404)))


def drips(head: bytes, piece: bytes, *, every: float) -> Behaviour:
    """Sends `head` to the first request, then a `piece` every so many seconds."""

    async def behave(link: Link) -> None:
        await link.request()
        await link.send(head)
        while True:
            await anyio.sleep(every)
            await link.send(piece)

    return behave


def leaves_the_second(first: bytes) -> Behaviour:
    """Answers the first request of a connection and keeps it; reads a second one and closes without a word."""

    async def behave(link: Link) -> None:
        if await link.request():
            await link.send(first)
            await link.request()

    return behave


# -- proxies


@dataclass(slots=True)
class ForwardProxy:
    """A behaviour: forwards requests in absolute form and tunnels for CONNECT, whatever the name, to `port` here.

    Attributes:
        authorization: what it wants in Proxy-Authorization.
        refuses: a status it answers to everything, or bytes that it says instead.
        heads: of what it was asked, (first line, headers).
    """

    port: int
    authorization: str | None = None
    refuses: int | bytes | None = None
    heads: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    async def __call__(self, link: Link) -> None:
        first, headers = await link.first_line_and_headers()
        self.heads.append((first, headers))
        if isinstance(self.refuses, bytes):
            await link.send(self.refuses)
            return
        wrong = headers.get("proxy-authorization") != self.authorization
        status = 407 if self.authorization is not None and wrong else self.refuses
        if status is not None:
            await link.send(answer(status, b"no", ("Connection", "close")))
            return
        method, target, version = first.split(" ")
        async with await anyio.connect_tcp("127.0.0.1", self.port) as onward:
            if method == "CONNECT":
                await link.send(b"HTTP/1.1 200 Established\r\n\r\n")
            else:
                path = "/" + target.split("/", 3)[3]
                lines = [f"{method} {path} {version}", *(f"{k}: {v}" for k, v in headers.items())]
                await onward.send("\r\n".join([*lines, "", ""]).encode())
            await link.joined_with(onward)


# -- names, certificates, policies


class Names(abc.AbstractResolver):
    """A resolver with fixed answers, given once `hold` is set; any other name does not exist."""

    def __init__(self, answers: dict[str, list[str]], *, hold: anyio.Event | None = None) -> None:
        self._answers = answers
        self._hold = hold
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[abc.ResolveResult]:
        self.asked.append(host)
        if self._hold is not None:
            await self._hold.wait()
        if host not in self._answers:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [
            abc.ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._answers[host]
        ]

    async def close(self) -> None:
        pass


LOOPBACK = EgressPolicy(allow_loopback=True)


def self_signed(folder: Path) -> ssl.SSLContext | None:
    """A server context whose certificate nobody vouches for; None without an `openssl` program."""
    program = shutil.which("openssl")
    if program is None:
        return None
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
            "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", str(key), "-out", str(certificate),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def can_bind(host: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


@contextmanager
def nobody_listens() -> Iterator[int]:
    """A port that refuses connections: bound, so that nobody else gets it, and not listening."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


@contextmanager
def nobody_accepts() -> Iterator[int]:
    """A port where a connection is neither taken nor refused: its queue of one is full."""
    with socket.socket() as listener, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        first.connect(listener.getsockname())
        yield int(listener.getsockname()[1])
