"""The server's side of each connection: who may connect, how long a client may take, what garbage is told.

The number of TCP connections is limited. At the limit, who has let the server wait for longest makes room for
the newcomer: for a request, or for a body that comes too slowly. Where all are being served, some more may
connect, but only probes are answered to them.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, cast

import anyio
import structlog
from aiohttp import StreamReader, http_exceptions, web

from stackd.web.bodies import SLOWEST
from stackd.web.problem import CONTENT_TYPE, problem

SPARE: Final = 64  # connections over the limit, for probes
KEEP_ALIVE: Final = 75.0  # seconds without a request; a little more than proxies keep theirs
YOUNG: Final = 0.02  # seconds in which nobody has to go: what was sent along may not be read yet
SWEEP: Final = 1.0  # seconds between looks for those who take too long
READ_AHEAD: Final = (
    64 * 1024
)  # bytes of a body taken in before somebody reads it; twice that at most
# Bytes of a body that are read and forgotten once its request has been answered: who sends all of a body before
# it reads is to find the answer. Beyond that nobody is in sight who would read it.
PASSED_OVER: Final = 32 * 1024 * 1024
FILES_KEPT_FREE: Final = (
    256  # descriptors that are not for clients: spares, store, outbound calls, blobs
)

_UCRED: Final = struct.Struct("3i")  # unix(7): pid, uid, gid

_log = structlog.get_logger(__name__)

_SAID: Final[dict[type, str]] = {
    http_exceptions.LineTooLong: "a line of the request, or a header, is too long",
    http_exceptions.InvalidHeader: "a header of the request is malformed",
    http_exceptions.BadHttpMethod: "the method of the request is malformed",
    http_exceptions.BadStatusLine: "the first line of the request is malformed",
    http_exceptions.InvalidURLError: "the target of the request is malformed",
    http_exceptions.TransferEncodingError: "the Transfer-Encoding of the request is malformed",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a Unix socket, as the kernel knows it; as it was when it connected."""

    pid: int
    uid: int


def connection_of(request: web.Request) -> Connection:
    return cast("Connection", request.protocol)


class Connections:
    """Those that are open. `limit`: of TCP ones; `patience`: seconds a client may let the server wait."""

    def __init__(self, *, limit: int = 1000, patience: float = 15.0) -> None:
        self._limit = limit
        self._patience = patience
        self._counted = 0
        # All that are open, by what they do, in the order in which they began to.
        self._idle: dict[Connection, None] = {}
        self._serving: dict[Connection, None] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._made_room = self._refused = 0  # since the last sweep
        self._changed = anyio.Event()  # since somebody waits for it

    def admit(self, one: Connection) -> bool:
        """Take up a new connection; False if there is no place for it."""
        if one.is_counted and self._counted >= self._limit:
            victim = self._longest_wait(one.now)
            if victim is not None:
                self._made_room += 1
                self.forget(victim)
                victim.abort()
            elif self._counted >= self._limit + SPARE:
                self._refused += 1
                return False
            else:
                one.is_spare = True
        self._counted += one.is_counted
        self._idle[one] = None
        if self._sweeper is None:
            self._sweep_later()
        return True

    def _longest_wait(self, now: float) -> Connection | None:
        """Whom the server has waited for longest; None if that is for nobody."""
        first = (
            next((one for one in self._idle if one.is_counted), None),
            next((one for one in self._serving if one.is_slow_to_send(now)), None),
        )
        waiting = [one for one in first if one is not None and now - one.wait_since >= YOUNG]
        return min(waiting, key=lambda one: one.wait_since, default=None)

    def serve(self, one: Connection) -> None:
        """`one` has a request in hand, from now on."""
        if one in self._idle:
            del self._idle[one]
            self._serving[one] = None
            self._changed.set()

    def rest(self, one: Connection) -> None:
        """`one` has none any more."""
        if one in self._serving:
            del self._serving[one]
            self._idle[one] = None

    def forget(self, one: Connection) -> None:
        """`one` is closed, or as good as closed."""
        for some in (self._idle, self._serving):
            if one in some:
                del some[one]
                self._counted -= one.is_counted
                self._changed.set()

    async def heard(self, *, within: float) -> None:
        """Return once a request of each that is open has wholly arrived; `within` seconds at most.

        What arrives of one after its connection was told to close is not read any more.
        """
        with anyio.move_on_after(within):
            while not (
                all(one.has_asked for one in self._idle)
                and all(one.has_whole_request for one in self._serving)
            ):
                self._changed = anyio.Event()
                await self._changed.wait()

    def note_more(self) -> None:
        """More of a request has arrived."""
        self._changed.set()

    def _sweep_later(self) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP, self._sweep)

    def _sweep(self) -> None:
        """Part with those who take too long; look again while any is open."""
        self._sweeper = None
        for one in [*self._idle, *self._serving]:
            one.end_if_late(self._patience)
        if self._made_room or self._refused:
            _log.warning(
                "too many connections", closed_for_others=self._made_room, refused=self._refused
            )
            self._made_room = self._refused = 0
        if self._idle or self._serving:
            self._sweep_later()


class Connection(web.RequestHandler):
    """One connection.

    Attributes:
        has_asked: for anything yet.
        is_counted: by the limit.
        is_spare: over the limit, so that only probes are answered.
        local_peer: who connected over the Unix socket; None over TCP.
        wait_since: when the wait for a request began, or the service of one.
    """

    __slots__ = (
        "_connections",
        "_first_body",
        "_has_sent_all",
        "_head_since",
        "_is_served",
        "_on_lost",
        "_passed_over",
        "_slow_since",
        "_stuck_since",
        "_taken_before",
        "has_asked",
        "is_counted",
        "is_spare",
        "local_peer",
        "wait_since",
    )

    def __init__(
        self,
        manager: web.Server,
        connections: Connections,
        *,
        is_counted: bool,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(
            manager,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]
            read_bufsize=READ_AHEAD,
            auto_decompress=False,  # `bodies` does, and sees whether all of it came
        )
        self._connections = connections
        self._is_served = False
        self._first_body: StreamReader | None = None  # of what it serves
        self._has_sent_all = False
        self.has_asked = False
        self.wait_since = loop.time()
        self._head_since: float | None = None  # when the first part of a request's head arrived
        self._stuck_since: float | None = None  # when the client took no more of its answer
        # When the client first let this answer wait, and how much of it it had taken by then.
        self._slow_since: float | None = None
        self._taken_before = 0
        self._passed_over: int | None = None  # bytes that came after the answer to them
        self._on_lost: set[anyio.Event] = set()
        self.is_counted = is_counted
        self.is_spare = False
        self.local_peer: Peer | None = None

    @property
    def now(self) -> float:
        return self._loop.time()

    @property
    def peer(self) -> str | None:
        """The client's address; None over the Unix socket."""
        return str(self.peername[0]) if isinstance(self.peername, tuple) else None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.local_peer = _peer_of(transport)
        if not self._connections.admit(self):
            self.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.forget(self)
        super().connection_lost(exc)
        self._tell()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's protocols may say so
        """Answer a client that has sent all it wants and closes its side, then close. It looks like one that left."""
        if not self._is_served or not self.has_whole_request:
            return False
        self._has_sent_all = True
        self._tell()
        return True

    @property
    def has_whole_request(self) -> bool:
        """Whether the body of the request in hand has arrived."""
        request = self._current_request  # None as long as aiohttp is about to take it up
        body = self._first_body if request is None else request.content
        return body is not None and body.is_eof()

    def _tell(self) -> None:
        for told in self._on_lost:
            told.set()

    @property
    def is_gone(self) -> bool:
        """Whether the client has closed it, or we have."""
        return self.transport is None

    @property
    def may_be_gone(self) -> bool:
        """Whether the client has at least closed its side."""
        return self.is_gone or self._has_sent_all

    @contextmanager
    def telling(self, told: anyio.Event) -> Iterator[None]:
        """Set `told` when the client may be gone, during the block or before it."""
        if self.may_be_gone:
            told.set()
        self._on_lost.add(told)
        try:
            yield
        finally:
            self._on_lost.discard(told)

    # -- what it waits for

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._passed_over is not None and not self._messages:
            self._passed_over += len(data)
            if self._passed_over > PASSED_OVER:
                self.abort()
                return
        if self._is_served:
            self._notice_broken_body()
            self._connections.note_more()
            return
        if self._messages:
            self._is_served = self.has_asked = True
            self._first_body = self._messages[0][1]
            self._head_since, self.wait_since = None, self.now
            self._passed_over = None
            self._connections.serve(self)
        elif self._waiter is not None and self._head_since is None:
            self._head_since = self.now

    def _notice_broken_body(self) -> None:
        """Tell who reads the body: aiohttp only notes, as a request to come, that what arrived is no part of it."""
        request = self._current_request
        if self._messages and request is not None and not request.content.is_eof():
            request.content.set_exception(web.RequestPayloadError("malformed"))

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):  # raised before the application had its say
            resp = problem(resp.status, "http.error", resp.reason)
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self.wait_since = self.now
            self._slow_since = None
            if not request.content.is_eof():
                self._passed_over = 0
            if not self._messages:
                self._is_served, self._first_body = False, None
                self._connections.rest(self)
                if self._has_sent_all:
                    self.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck_since = self.now
        if self._slow_since is None:
            self._slow_since, self._taken_before = self.now, self._taken()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stuck_since = None

    def _taken(self) -> int:
        """Bytes of the answer that have left."""
        if self.transport is None or self._current_request is None:
            return 0
        unsent = self.transport.get_write_buffer_size()
        return self._current_request.writer.output_size - unsent

    def _is_slow_to_take(self, now: float, patience: float) -> bool:
        """Whether it takes an answer too slowly, or not at all."""
        if self._stuck_since is not None and now - self._stuck_since > patience:
            return True
        if self._slow_since is None or self.transport is None:
            return False
        if self.transport.get_write_buffer_size() == 0:  # it has taken all there is
            self._slow_since = None
            return False
        late = now - self._slow_since - patience
        return self._taken() - self._taken_before < SLOWEST * late

    def is_slow_to_send(self, now: float) -> bool:
        """Whether it is served, and the server has waited for the body for longer than it should."""
        request, waited = self._current_request, now - self.wait_since
        return (
            self.is_counted
            and request is not None
            and not request.content.is_eof()
            and not self._reading_paused  # else it is the client who waits
            and request.content.total_bytes < SLOWEST * waited
        )

    def end_if_late(self, patience: float) -> None:
        """Close it if the client has let the server wait for too long. Bodies have limits of their own."""
        now = self.now
        if self._is_slow_to_take(now, patience):
            self.abort()
        if self._is_served:
            return
        since = self._head_since if self.has_asked else self.wait_since
        if since is not None and now - since > patience:
            self._say(problem(408, "client.too_slow", "the request did not arrive in time"))
            self.force_close()
        elif now - self.wait_since > KEEP_ALIVE:
            self.force_close()

    def abort(self) -> None:
        """Close it at once; what was not sent yet is lost."""
        if self.transport is not None:
            self.transport.abort()

    def _say(self, answer: web.Response) -> None:
        """Send an answer that nobody asked for."""
        body = answer.body
        if self.transport is None or not isinstance(body, bytes):
            return
        status = f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
        head = f"Content-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        self.transport.write((status + head).encode() + body)

    # -- what is told and logged of what the application never sees

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # aiohttp's; quotes what the client sent
    ) -> web.StreamResponse:
        """The answer to a request that is none: what is wrong, and nothing of what it held."""
        if isinstance(exc, ConnectionError):  # the client has gone: there is nobody to answer
            raise exc
        if isinstance(
            exc, UnicodeError
        ):  # of a header that is no text, which aiohttp wanted to quote
            status = 400
        if status < 500:
            said = _SAID.get(type(exc), "the request is malformed")
            _log.info("request refused", peer=self.peer, problem=said)
            answer = problem(status, "request.malformed", said)
        else:
            self.log_exception("request failed", exc_info=exc)
            answer = problem(status, "internal", "an internal error; the log has its cause")
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **kw: Any) -> None:  # noqa: ARG002  # aiohttp's words
        error = kw.get("exc_info")
        if isinstance(error, web.RequestPayloadError):  # met again while the rest was passed over
            _log.info("connection closed", peer=self.peer, problem="the body is malformed")
        else:
            _log.error("connection failed", peer=self.peer, exc_info=error)


def _peer_of(transport: asyncio.BaseTransport) -> Peer | None:
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(credentials)
    return Peer(pid, uid)
