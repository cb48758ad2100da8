"""How fast a client must take its answer; time is the test's, the sockets are real."""

from __future__ import annotations

import asyncio
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


@pytest.mark.parametrize(
    ("taken", "is_cut_off"), [(SLOWEST * LATE * 0.7, True), (SLOWEST * LATE * 1.5, False)]
)
async def test_a_client_that_takes_some_of_a_large_answer_again_and_again_is_cut_off_if_it_is_too_slow(
    tmp_path: Path, taken: float, is_cut_off: bool
) -> None:
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
            (one,) = made

            loop.now += PATIENCE + LATE
            await reader.readexactly(int(taken))
            while one._stuck_since != loop.now:  # it has gone on, and waits again
                await anyio.lowlevel.checkpoint()
            one.end_if_late(PATIENCE)

            assert one.transport.is_closing() is is_cut_off
    finally:
        writer.transport.abort()
        server.close()
        await manager.shutdown(0.1)
