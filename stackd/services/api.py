"""Serves HTTP at the doors of this process."""

from __future__ import annotations

import asyncio
import socket

import anyio
from aiohttp import web
from anyio.abc import TaskStatus

from stackd.web.connections import Connection, Connections
from stackd.web.doors import BACKLOG, Doors

CLOSE_WITHIN = 1.0  # seconds open requests get once the API ends
ASK_WITHIN = 0.25  # seconds who has just connected gets then to ask, and to send all of it: it found an open door


class Api:
    """The HTTP side. Drained, it closes the doors; cancelled or crashed, it leaves them to the next one."""

    def __init__(
        self,
        app: web.Application,
        doors: Doors,
        *,
        connections: Connections | None = None,
        name: str = "api",
    ) -> None:
        self.name = name
        self._app = app
        self._doors = doors
        self._connections = connections or Connections()
        self._drained = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        runner = web.AppRunner(
            self._app,
            shutdown_timeout=CLOSE_WITHIN
            / 2,  # which aiohttp waits twice: to finish, and to be cancelled
            handle_signals=False,
        )
        servers: list[asyncio.AbstractServer] = []
        try:
            with anyio.CancelScope(shield=True):  # what serves must be known, to be closed
                await runner.setup()
                for copy in self._doors.copies():
                    servers.append(await self._serve(runner, copy))  # noqa: PERF401  # each counts at once
            task_status.started()
            await self._drained.wait()
            await anyio.to_thread.run_sync(self._doors.close)
        finally:
            for server in servers:
                server.close()
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()  # who was let in just now is counted first
                await self._connections.heard(within=ASK_WITHIN)
                await runner.cleanup()

    def drain(self) -> None:
        self._drained.set()

    async def _serve(self, runner: web.AppRunner, sock: socket.socket) -> asyncio.AbstractServer:
        loop, manager = asyncio.get_running_loop(), runner.server
        assert manager is not None  # noqa: S101  # `setup` makes it
        is_counted = sock.family != socket.AF_UNIX

        def connection() -> Connection:
            return Connection(manager, self._connections, is_counted=is_counted, loop=loop)

        return await loop.create_server(connection, sock=sock, backlog=BACKLOG)
