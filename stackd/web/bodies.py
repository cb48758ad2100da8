"""Reads the bodies of requests: within a limit each, within a budget all together, and in good time.

Bodies up to 64 KiB wait for nobody: there are no more of them than connections. A larger one is read no
further until there is room for all of it, so that those who have begun can also end.
"""

from __future__ import annotations

from typing import Self

import anyio
from aiohttp import web

from stackd.core.budget import Budget, Share
from stackd.core.clock import Clock
from stackd.core.errors import SlowClientError, TooLargeError
from stackd.core.json import LARGE

ROOM_PATIENCE = 10.0  # seconds a large body waits for room
SLOWEST = 16 * 1024  # bytes per second a client must send, once its time of grace is over


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
        self._waited = 0.0  # seconds, for room: that is not the client's doing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._share.resize(0)

    async def read(self) -> bytearray:
        """All of it.

        Raises:
            TooLargeError: it is over the limit.
            OverloadedError: it is large, and there was no room for it in time.
            SlowClientError: it did not come in time.
            RequestPayloadError, ConnectionError: as aiohttp says it: it broke off, or is badly encoded.
        """
        if (self._request.content_length or 0) > self._limit:
            raise self._too_large()
        clock, content = self._bodies.clock, bytearray()
        began = clock.monotonic()
        has_room = False
        while True:
            allowed = self._bodies.grace + len(content) / SLOWEST
            chunk = await self._chunk(began + self._waited + allowed - clock.monotonic())
            if not chunk:
                break
            if len(content) + len(chunk) > self._limit:
                raise self._too_large()
            if len(content) + len(chunk) > LARGE and not has_room:
                has_room = True
                await self._wait_for_room()
            content += chunk
        if has_room:
            self._share.resize(len(content))
        return content

    async def _chunk(self, within: float) -> bytes:
        """What has arrived by now, or arrives next; nothing at the end."""
        payload = self._request.content
        if payload.is_eof():  # all of it has arrived: as is usual
            return payload.read_nowait()
        with anyio.move_on_after(max(within, 0.0)):
            return await payload.readany()
        raise SlowClientError("the body did not arrive in time")

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
