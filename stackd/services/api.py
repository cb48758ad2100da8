"""Serves HTTP on the main port and on a Unix socket for local use."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import structlog
from aiohttp import web
from anyio.abc import TaskStatus

from stackd.core.errors import StackdError
from stackd.core.sockets import unix_address
from stackd.web.connections import Connection, Connections

BACKLOG = 1024
CLOSE_WITHIN = 1.0  # seconds open requests get once the API ends
ASK_WITHIN = 0.25  # seconds who has just connected gets then to ask, and to send all of it: it found an open door

Announce = Callable[[str, int], None]  # told host and port once both can be connected to

_log = structlog.get_logger(__name__)


class Api:
    """The HTTP side.

    Args:
        port: None: no TCP.
        socket_path: None: no Unix socket.
        handed: sockets that listen already. They stay open when it ends, so that whoever connects then waits
            for the next process; of a kind that is among them none is bound.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        host: str,
        port: int | None,
        socket_path: Path | None,
        announce: Announce,
        connections: Connections | None = None,
        name: str = "api",
        handed: Sequence[socket.socket] = (),
    ) -> None:
        self.name = name
        self._handed = handed
        self._app = app
        self._connections = connections or Connections()
        self._host = host
        self._port = port
        self._socket_path = socket_path
        self._announce = announce
        self._has_bound_unix = False
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
            with anyio.CancelScope(shield=True):  # what is bound must be known, to be closed
                await runner.setup()
                await self._listen(runner, servers)
            task_status.started()
            await self._drained.wait()
        finally:
            for server in servers:
                server.close()
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()  # who was let in just now is counted first
                await self._connections.heard(within=ASK_WITHIN)
                await runner.cleanup()
                if self._socket_path is not None and self._has_bound_unix:
                    await anyio.to_thread.run_sync(
                        partial(self._socket_path.unlink, missing_ok=True)
                    )

    def drain(self) -> None:
        self._drained.set()

    async def _listen(self, runner: web.AppRunner, servers: list[asyncio.AbstractServer]) -> None:
        """Open the sockets there shall be; each is added to `servers`."""
        tcp = [sock for sock in self._handed if sock.family != socket.AF_UNIX]
        unix = [sock for sock in self._handed if sock.family == socket.AF_UNIX]
        for sock in self._handed:
            copy = (
                sock.dup()
            )  # the server closes its own, and a restart of this service needs another
            servers.append(await self._serve(runner, copy, is_counted=sock in tcp))
        host, port = self._host, self._port or 0
        if tcp:
            host, port = tcp[0].getsockname()[:2]
            if (host, port) != (self._host, self._port):
                _log.warning("the handed socket wins over HOST and PORT", host=host, port=port)
        elif self._port is not None:
            try:
                own = await anyio.to_thread.run_sync(_bind, self._host, self._port)
            except OSError as error:
                raise _cannot_listen(self._host, self._port, error) from error
            servers.append(await self._serve(runner, own, is_counted=True))
            host, port = own.getsockname()[:2]
        if self._socket_path is not None and not unix:
            local = await anyio.to_thread.run_sync(_bind_unix, self._socket_path)
            self._has_bound_unix = True
            servers.append(await self._serve(runner, local, is_counted=False))
        _log.info(
            "listening",
            host=host,
            port=port,
            socket=str(self._socket_path or ""),
            handed=len(self._handed),
        )
        self._announce(host, port)

    async def _serve(
        self, runner: web.AppRunner, sock: socket.socket, *, is_counted: bool
    ) -> asyncio.AbstractServer:
        loop, manager = asyncio.get_running_loop(), runner.server
        assert manager is not None  # noqa: S101  # `setup` makes it

        def connection() -> Connection:
            return Connection(manager, self._connections, is_counted=is_counted, loop=loop)

        return await loop.create_server(connection, sock=sock, backlog=BACKLOG)


def _cannot_listen(host: str, port: int, error: OSError) -> StackdError:
    """What to do about it depends on what is wrong: the name, the address, the right to it, or another program."""
    reason = f"cannot listen on {host}:{port}: {error.strerror}"
    if isinstance(error, socket.gaierror):
        hint = "set HOST to an address of this machine, or to a name that resolves to one"
        return StackdError(reason, code="api.host_unknown", hint=hint)
    if error.errno == errno.EADDRNOTAVAIL:
        hint = "set HOST to an address of this machine, or to 0.0.0.0 for all of them"
        return StackdError(reason, code="api.not_our_address", hint=hint)
    code, hint = "api.address_in_use", "set PORT to a free one, or end the other program"
    if error.errno == errno.EACCES:
        code, hint = (
            "api.port_reserved",
            "set PORT to one above 1023, or allow this user to bind lower ones",
        )
    return StackdError(reason, code=code, hint=hint)


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
    """A socket only this user can connect to; one left by a dead process is replaced.

    Raises:
        StackdError: something else is at `path`.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _sweep(path)
        with unix_address(path) as address:
            _remove_if_dead(path, address)
            os.fchmod(
                sock.fileno(), 0o600
            )  # the file is made with it: nobody else gets in meanwhile
            sock.bind(address)
    except OSError as error:
        sock.close()
        raise _taken(path, str(error.strerror or error)) from error
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)  # noqa: FBT003  # the socket API
    return sock


def _sweep(path: Path) -> None:
    """Remove the sockets `ROLE-PID.sock` that dead processes of the same role have left."""
    role, dash, _ = path.stem.rpartition("-")
    for other in path.parent.glob(f"{role}-*.sock") if dash else ():
        with suppress(OSError, StackdError), unix_address(other) as address:
            _remove_if_dead(other, address)


def _remove_if_dead(path: Path, address: str) -> None:
    """Make room at `path` if nothing is there but a socket that nobody listens on."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise _taken(path, "something that is no socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # noqa: FBT003  # the socket API
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # it listens, and others wait before us
    raise _taken(path, "another process listens there")


def _taken(path: Path, reason: str) -> StackdError:
    return StackdError(
        f"cannot listen on {path}: {reason}",
        code="api.address_in_use",
        hint="move it away, or end the other program",
    )
