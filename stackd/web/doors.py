"""The sockets this process is reached by: they listen before anything else begins, and who comes early waits.

Whoever serves them serves copies, one after the other: while the store opens, then as the API, and after that has
crashed as the next one. Between two of them nobody is refused.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog

from stackd.core.errors import StackdError
from stackd.core.locks import unusable
from stackd.core.sockets import unix_address

BACKLOG: Final = 1024

_log = structlog.get_logger(__name__)


class Doors:
    """Sockets that listen.

    Attributes:
        address: host and port; None without TCP.
    """

    def __init__(
        self,
        own: Sequence[socket.socket],
        handed: Sequence[socket.socket],
        *,
        address: tuple[str, int] | None,
        unlinks: Path | None,
    ) -> None:
        self._own = list(own)
        self._handed = tuple(handed)
        self._unlinks = unlinks
        self.address = address

    @property
    def are_handed(self) -> bool:
        """Whether somebody else holds them too, so that they stay when this process goes."""
        return bool(self._handed)

    def copies(self) -> list[socket.socket]:
        """Each once more, to be closed by who takes it."""
        return [sock.dup() for sock in (*self._handed, *self._own)]

    def close(self) -> None:
        """Refuse whoever comes from now on. Those handed over stay: who connects waits for the next process."""
        while self._own:
            self._own.pop().close()
        if self._unlinks is not None:
            self._unlinks.unlink(missing_ok=True)
            self._unlinks = None


def open_doors(
    *,
    host: str = "",
    port: int | None = None,
    socket_path: Path | None = None,
    handed: Sequence[socket.socket] = (),
) -> Doors:
    """Sockets at `host` and `port` and at `socket_path`, but of a kind that is among `handed` none of its own.

    Args:
        port: 0: any; None: no TCP.
        handed: sockets that listen already.

    Raises:
        StackdError: one cannot be had, and why.
    """
    tcp = [sock for sock in handed if sock.family != socket.AF_UNIX]
    own: list[socket.socket] = []
    unlinks: Path | None = None
    try:
        if not tcp and port is not None:
            own.append(_bind(host, port))
        if socket_path is not None and len(tcp) == len(handed):
            own.append(_bind_unix(socket_path))
            unlinks = socket_path
    except BaseException:
        for sock in own:
            sock.close()
        raise
    address = next((s.getsockname()[:2] for s in (*tcp, *own) if s.family != socket.AF_UNIX), None)
    if tcp and address != (host, port):
        _log.warning("the handed socket wins over HOST and PORT", **_facts(address))
    _log.info("listening", **_facts(address), socket=str(socket_path or ""), handed=len(handed))
    return Doors(own, handed, address=address, unlinks=unlinks)


def _facts(address: tuple[str, int] | None) -> dict[str, Any]:
    return {} if address is None else {"host": address[0], "port": address[1]}


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
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _cannot_listen(host, port, error) from error
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
            sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise _taken(path, str(error.strerror)) from error
        raise unusable(path.parent, error) from error
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
