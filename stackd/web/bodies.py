"""Reads the bodies of requests: within a limit each, within a budget all together, and in good time.

Bodies up to 64 KiB wait for nobody: there are no more of them than connections. A larger one is read no
further until there is room for all of it, so that those who have begun can also end.
"""

from __future__ import annotations

import zlib
from typing import Final, Self

import anyio
from aiohttp import web
from anyio.lowlevel import checkpoint

from stackd.core.budget import Budget, Share
from stackd.core.clock import Clock
from stackd.core.errors import MalformedError, SlowClientError, TooLargeError, UnsupportedError
from stackd.core.json import LARGE
from stackd.core.text import shown
from stackd.core.unpack import ENCODINGS, Unpacker

ROOM_PATIENCE = 10.0  # seconds a large body waits for room
SLOWEST = 16 * 1024  # bytes per second a client must send, once its time of grace is over
HURRY = 8  # times as fast who holds room must be while others wait for it
LOOKS_EVERY = 1.0  # seconds until one that waits for a client looks whether others wait


# What clients say of a body when they were not told what it is: curl the second.
_UNSAID: Final = frozenset(
    {"application/octet-stream", "application/x-www-form-urlencoded", "text/plain"}
)


class Bodies:
    """`grace`: seconds a client may take for any body, beside what its size allows."""

    def __init__(self, budget: Budget, *, max_bytes: int, grace: float, clock: Clock) -> None:
        self.budget = budget
        self.max_bytes = max_bytes
        self.grace = grace
        self.clock = clock

    def of(self, request: web.Request, *, max_bytes: int | None = None) -> Body:
        """The body of `request`."""
        limit = self.max_bytes if max_bytes is None else min(max_bytes, self.max_bytes)
        return Body(self, request, limit)


class Body:
    """A request's body, not read yet. What it takes of the budget is held for the length of the `with` block."""

    def __init__(self, bodies: Bodies, request: web.Request, limit: int) -> None:
        self._bodies = bodies
        self._request = request
        self._limit = limit
        self._share = Share(bodies.budget)
        self._has_room = False
        self._received = 0  # bytes, as they were sent
        self._began = bodies.clock.monotonic()
        self._waited = 0.0  # seconds, for room: that is not the client's doing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._share.resize(0)

    def must_be(self, *types: str) -> None:
        """Refuse a body that says it is something else.

        Raises:
            UnsupportedError: its Content-Type is none of `types`, nor one that says nothing.
        """
        said = self._request.content_type
        suffixes = tuple(f"+{one.partition('/')[2]}" for one in types)
        is_fit = said in types or said in _UNSAID or said.endswith(suffixes)
        if self._request.body_exists and not is_fit:
            raise UnsupportedError(
                f"a body of the type {shown(said)!r} is not taken here",
                code="body.type_unknown",
                hint=f"send Content-Type: {types[0]}",
            )

    async def read(self) -> bytearray:
        """All of it, unpacked.

        Raises:
            TooLargeError: it is over the limit.
            UnsupportedError: it is packed in a way that is not known.
            MalformedError: it is not packed as it says, or ends too early for that.
            OverloadedError: it is large, and there was no room for it in time.
            SlowClientError: it did not come in time.
            RequestPayloadError, ConnectionError: as aiohttp says it: it broke off.
        """
        unpacker = self._unpacker()
        if (self._request.content_length or 0) > self._limit:
            raise self._too_large()
        content = bytearray()
        if unpacker is None:
            while chunk := await self._chunk():
                await self._add(content, chunk)
        else:
            await self._unpack(unpacker, content)
        if self._has_room:
            self._share.resize(len(content))
        return content

    def _unpacker(self) -> Unpacker | None:
        transfer = self._request.headers.get("Transfer-Encoding", "chunked").strip().lower()
        if transfer != "chunked":  # aiohttp minds no other, and hands it on as it came
            raise UnsupportedError(
                "a Transfer-Encoding other than chunked is not known", code="body.encoding_unknown"
            )
        encoding = self._request.headers.get("Content-Encoding", "").strip().lower()
        if encoding in ("", "identity"):
            return None
        if encoding not in ENCODINGS:
            raise UnsupportedError(
                f"a Content-Encoding other than {', '.join(sorted(ENCODINGS))} is not known",
                code="body.encoding_unknown",
            )
        return Unpacker(encoding)

    async def _unpack(self, unpacker: Unpacker, content: bytearray) -> None:
        try:
            while chunk := await self._chunk():
                for piece in unpacker.feed(chunk):
                    await self._add(content, piece)
                    await checkpoint()  # a small chunk may hold many pieces
        except zlib.error:
            raise MalformedError(
                "the body is not in its Content-Encoding", code="body.malformed"
            ) from None
        if not unpacker.is_whole:
            raise MalformedError(
                "the body ends before its Content-Encoding does", code="body.malformed"
            )

    async def _add(self, content: bytearray, piece: bytes) -> None:
        if len(content) + len(piece) > self._limit:
            raise self._too_large()
        if len(content) + len(piece) > LARGE and not self._has_room:
            self._has_room = True
            await self._wait_for_room()
        content += piece

    async def _chunk(self) -> bytes:
        """What has arrived by now, or arrives next; nothing at the end."""
        payload, chunk = self._request.content, b""
        while not payload.is_eof():
            left = self._seconds_left()
            with anyio.move_on_after(min(max(left, 0.0), LOOKS_EVERY)):
                chunk = await payload.readany()
            if chunk:
                self._received += len(chunk)
                if self._received > self._limit:  # packed, it may be nothing and have no end
                    raise self._too_large()
                return chunk
            if left <= 0:
                raise SlowClientError("the body did not arrive in time")
        return payload.read_nowait()  # all of it has arrived: as is usual

    def _seconds_left(self) -> float:
        """Until the client has taken too long for what it has sent."""
        is_in_the_way = self._has_room and self._bodies.budget.is_short
        allowed = self._bodies.grace + self._received / SLOWEST
        since = self._began + self._waited
        return since + allowed / (HURRY if is_in_the_way else 1) - self._bodies.clock.monotonic()

    async def _wait_for_room(self) -> None:
        clock = self._bodies.clock
        since = clock.monotonic()
        length = self._request.content_length
        is_as_sent = "Content-Encoding" not in self._request.headers
        size = length if length is not None and is_as_sent else self._limit
        await self._share.obtain(size, patience=ROOM_PATIENCE)
        self._waited += clock.monotonic() - since

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            f"the body is over the limit of {self._limit} bytes", code="body.too_large"
        )
