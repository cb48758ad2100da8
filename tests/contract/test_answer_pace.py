"""How fast a client must take its answer; time is the test's, the sockets are real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from stackd.web.bodies import SLOWEST
from stackd.web.connections import Connection, Connections

PATIENCE = 15.0
LATE = 100.0  # seconds over its patience
WITHIN = 10.0  # seconds of real time after which a test that hangs fails


class Loop:
    """The running loop, at a time of its own."""

    def __init__(self) -> None:
        self._real = asyncio.get_running_loop()
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def endless(request: web.BaseRequest) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    while True:
        await answer.write(b"x" * 65536)


class Reader:
    """A client in the middle of an endless answer, and the server's side of it."""

    def __init__(self, reader: asyncio.StreamReader, loop: Loop, connection: Connection) -> None:
        self._reader = reader
        self._loop = loop
        self._connection = connection

    def pause(self, seconds: float) -> None:
        self._loop.now += seconds

    async def take(self, size: float) -> None:
        """Return once that much is taken and the server waits again."""
        await self._reader.readexactly(int(size))
        while self._connection._stuck_since != self._loop.now:
            await anyio.lowlevel.checkpoint()

    def is_cut_off(self, *, after: float) -> bool:
        """Whether it is, `after` seconds from now."""
        self.pause(after)
        self._connection.end_if_late(PATIENCE)
        return self._connection.transport.is_closing()  # type: ignore[union-attr]  # it is open


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Reader]:
    loop, made = Loop(), []
    connections = Connections(limit=10, patience=PATIENCE)
    manager = web.Server(endless)

    def connection() -> Connection:
        made.append(Connection(manager, connections, is_counted=True, loop=loop))  # type: ignore[arg-type]
        return made[-1]

    server = await loop.create_unix_server(connection, tmp_path / "s")
    reader, writer = await asyncio.open_unix_connection(tmp_path / "s", limit=1)
    try:
        with anyio.fail_after(WITHIN):
            writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            while not made or made[0]._stuck_since is None:
                await anyio.lowlevel.checkpoint()
        yield Reader(reader, loop, made[0])
    finally:
        writer.transport.abort()
        server.close()
        await manager.shutdown(0.1)


@pytest.mark.parametrize(
    ("taken", "is_cut_off"), [(SLOWEST * LATE * 0.7, True), (SLOWEST * LATE * 1.5, False)]
)
async def test_who_takes_some_again_and_again_is_cut_off_if_it_is_too_slow(
    client: Reader, taken: float, is_cut_off: bool
) -> None:
    with anyio.fail_after(WITHIN):
        client.pause(PATIENCE + LATE)
        await client.take(taken)

    assert client.is_cut_off(after=0.0) is is_cut_off


async def test_who_took_much_is_cut_off_once_it_takes_no_more(client: Reader) -> None:
    with anyio.fail_after(WITHIN):
        client.pause(1.0)
        await client.take(SLOWEST * LATE)

    assert not client.is_cut_off(after=PATIENCE - 1.0)
    assert client.is_cut_off(after=2.0)
