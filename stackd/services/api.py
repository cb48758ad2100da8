"""Serves HTTP on the main port and on a Unix socket for local use."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import structlog
from aiohttp import web
from anyio.abc import TaskStatus

from stackd.core.errors import StackdError

BACKLOG = 1024
CLOSE_WITHIN = 1.0  # seconds open requests get once the API ends

Announce = Callable[[str, int], None]  # told host and port once both can be connected to

_log = structlog.get_logger(__name__)


class Api:
    """The HTTP side. `socket_path` None: no Unix socket."""

    name = "api"

    def __init__(
        self,
        app: web.Application,
        *,
        host: str,
        port: int,
        socket_path: Path | None,
        announce: Announce,
    ) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._socket_path = socket_path
        self._announce = announce
        self._drained = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        runner = web.AppRunner(
            self._app,
            access_log=None,
            shutdown_timeout=CLOSE_WITHIN
            / 2,  # which aiohttp waits twice: to finish, and to be cancelled
            handle_signals=False,
        )
        try:
            with anyio.CancelScope(
                shield=True
            ):  # what is bound must reach the runner, which closes it
                await runner.setup()
                await self._listen(runner)
            task_status.started()
            await self._drained.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await runner.cleanup()
                if self._socket_path is not None:
                    await anyio.to_thread.run_sync(
                        partial(self._socket_path.unlink, missing_ok=True)
                    )

    def drain(self) -> None:
        self._drained.set()

    async def _listen(self, runner: web.AppRunner) -> None:
        try:
            sock = await anyio.to_thread.run_sync(_bind, self._host, self._port)
        except OSError as error:
            raise StackdError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror}",
                code="api.address_in_use",
                hint="set PORT to a free one, or end the other program",
            ) from error
        await web.SockSite(runner, sock, backlog=BACKLOG).start()
        host, port = sock.getsockname()[:2]
        if self._socket_path is not None:
            unix = await anyio.to_thread.run_sync(_bind_unix, self._socket_path)
            await web.SockSite(runner, unix, backlog=BACKLOG).start()
        _log.info("listening", host=host, port=port, socket=str(self._socket_path or ""))
        self._announce(host, port)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)  # noqa: FBT003  # the socket API
    return sock


def _bind_unix(path: Path) -> socket.socket:
    """A socket only this user can connect to; one left by a dead process is replaced."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(0o600)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)  # noqa: FBT003  # the socket API
    return sock
