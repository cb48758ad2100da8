"""Requests to one daemon over one session of aiohttp, for programs with an event loop.

A request that is cancelled closes its connection; what the daemon was asked for it may do all the same.
"""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol, Self, TypeVar

import aiohttp
from yarl import URL

from stackd.client.models import Model
from stackd.client.wire import (
    CONNECT_TIMEOUT,
    PAGE,
    TIMEOUT,
    Address,
    Answer,
    EventReader,
    ServerEvent,
    target,
)
from stackd.core.errors import StackdError
from stackd.core.json import dumps
from stackd.core.sockets import unix_address

M = TypeVar("M", bound=Model)
Item = TypeVar("Item", covariant=True)


class Page(Protocol[Item]):
    """One page of a list."""

    @property
    def items(self) -> Sequence[Item]: ...
    @property
    def next_cursor(self) -> str | None: ...


class Channel:
    """Entered once, used by any number of tasks; at its end all of its connections are closed."""

    def __init__(self, address: Address, *, timeout: float = TIMEOUT) -> None:
        self.address = address
        self.timeout = timeout
        self._open = AsyncExitStack()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # Held as long as the session: it names a folder by a descriptor where the path is too long for a socket.
        path = self.address.socket_path
        connector: aiohttp.BaseConnector = (
            aiohttp.TCPConnector()
            if path is None
            else aiohttp.UnixConnector(self._open.enter_context(unix_address(path)))
        )
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept": "application/json"},
        )
        self._session = await self._open.enter_async_context(session)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._session = None
        await self._open.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,  # of silence, not of the whole: a cancel scope is that
        allow: frozenset[int] = frozenset(),
    ) -> Answer:
        """One request; its JSON answer. Arguments and errors as of `Api.request`; `timeout`: else the channel's."""
        seconds = self.timeout if timeout is None else timeout
        content = body if isinstance(body, bytes) or body is None else dumps(body)
        asking = self._asked(method, path, query, headers or {}, seconds, content)
        try:
            async with asking as response:
                raw = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise self._failure(method, error, seconds) from error
        return self.address.answer(
            response.status,
            response.content_type,
            raw,
            etag=response.headers.get("ETag"),
            allow=allow,
        )

    async def ask(self, shape: type[M], method: str, path: str, **how: Any) -> M:
        """One request; its answer as a `shape`. Arguments and errors as of `request`."""
        return self.address.read(await self.request(method, path, **how), shape)

    async def items(self, shape: type[Page[Item]], path: str, **query: Any) -> AsyncIterator[Item]:
        """What stands in the list at `path`, asked for page by page. Raises as `request`."""
        cursor: str | None = None
        while True:
            asked = {"cursor": cursor, "limit": PAGE, **query}
            page: Any = await self.ask(shape, "GET", path, query=asked)
            for item in page.items:
                yield item
            cursor = page.next_cursor
            if cursor is None:
                return

    @asynccontextmanager
    async def events(
        self, path: str, *, last_id: str | None, query: Mapping[str, Any]
    ) -> AsyncIterator[AsyncIterator[ServerEvent]]:
        """The server-sent events of `path` from now on, as they come, until the daemon ends the stream.

        Inside the block nothing that happens is missed; at its end the connection is closed. Raises as `request`,
        also while they are read.
        """
        headers = {"Accept": "text/event-stream"}
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        async with AsyncExitStack() as stack:
            try:
                asked = self._asked("GET", path, query, headers, self.timeout)
                response = await stack.enter_async_context(asked)
                if response.content_type != "text/event-stream":
                    self.address.answer(
                        response.status, response.content_type, await response.read()
                    )
                    raise self.address.foreign(response.status)
            except (aiohttp.ClientError, OSError) as error:
                raise self._failure("GET", error, self.timeout) from error
            yield self._events_in(response)

    async def _events_in(self, response: aiohttp.ClientResponse) -> AsyncIterator[ServerEvent]:
        reader, rest = EventReader(), b""
        try:
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if (event := reader.event(line)) is not None:
                        yield event
        except (aiohttp.ClientError, OSError) as error:
            raise self._failure("GET", error, self.timeout) from error

    def _asked(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        seconds: float,
        content: bytes | None = None,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        assert self._session is not None, "used outside of its `async with`"  # noqa: S101
        base = "http://localhost" if self.address.url is None else self.address.url.geturl()
        return self._session.request(
            method,
            URL(base.rstrip("/") + target(path, query), encoded=True),
            data=content if content is None else io.BytesIO(content),  # sent in pieces
            headers=self.address.signed(headers),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=min(seconds, CONNECT_TIMEOUT), sock_read=seconds
            ),
        )

    def _failure(self, method: str, error: Exception, seconds: float) -> StackdError:
        """What an error of the library says of the request."""
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return self.address.unreachable(TimeoutError("timed out"))
        if isinstance(error, aiohttp.ClientConnectorError):
            cause = getattr(error, "os_error", None) or OSError(str(error))
            number = cause.errno or 0
            if number > 0:  # asyncio tells of the address instead of the reason
                cause = OSError(number, os.strerror(number))
            return self.address.unreachable(cause)
        silent_for = seconds if isinstance(error, TimeoutError) else None
        return self.address.no_answer(method, silent_for=silent_for)
