"""What a service manager hands to the process that it starts, as systemd.exec(5) has it in the environment."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from stackd.core.errors import SettingsError
from stackd.core.notify import Notifier

NAMES: Final = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
)
FIRST: Final = 3  # the descriptor after standard error, sd_listen_fds(3)


@dataclass(frozen=True, slots=True)
class Handover:
    """All empty where no service manager is.

    Attributes:
        watchdog: seconds within which a beat is to be heard, or the process is taken for hung; None: no matter.
        files: descriptors that were opened for this process, and their names.
    """

    notifier: Notifier = field(default_factory=Notifier)
    watchdog: float | None = None
    files: tuple[tuple[int, str], ...] = ()


def handed_over(told: Mapping[str, str]) -> Handover:
    """What `told`, the variables of `NAMES` that were set, says. From now on no child gets the files."""
    files = tuple(_files(told))
    for descriptor, _ in files:
        with contextlib.suppress(OSError):  # there is none: told by who wants to use it
            os.set_inheritable(descriptor, False)  # noqa: FBT003  # the os API
    return Handover(Notifier(told.get("NOTIFY_SOCKET")), _watchdog(told), files)


def _watchdog(told: Mapping[str, str]) -> float | None:
    """What is meant for another process, such as a wrapper around this one, is not meant for it."""
    with contextlib.suppress(ValueError):
        interval = int(told.get("WATCHDOG_USEC", "0")) / 1e6
        if interval > 0 and int(told.get("WATCHDOG_PID", os.getpid())) == os.getpid():
            return interval
    return None


def _files(told: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    with contextlib.suppress(ValueError):
        count = int(told.get("LISTEN_FDS", "0"))
        if count > 0 and int(told.get("LISTEN_PID", "0")) == os.getpid():
            names = told.get("LISTEN_FDNAMES", "").split(":")
            for number in range(count):
                yield FIRST + number, (names[number] if number < len(names) else "") or "unknown"


def listening_sockets(handover: Handover) -> tuple[socket.socket, ...]:
    """The files of `handover`, which all have to be sockets that HTTP can be served on.

    Raises:
        SettingsError: some are not; names each.
    """
    sockets: list[socket.socket] = []
    problems: list[str] = []
    for descriptor, name in handover.files:
        try:
            sockets.append(socket.socket(fileno=descriptor))
            misfit = _misfit(sockets[-1])
        except OSError as error:
            misfit = f"is none ({error.strerror})"
        if misfit is not None:
            problems.append(f"the socket {name!r} that the service manager handed over {misfit}")
    if problems:
        for sock in sockets:
            sock.detach()
        raise SettingsError(problems)
    for sock in sockets:
        sock.setblocking(False)  # noqa: FBT003  # the socket API
    return tuple(sockets)


def _misfit(sock: socket.socket) -> str | None:
    """Why HTTP cannot be served on `sock`; None if it can."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        return "is neither one of TCP nor a Unix socket"
    if sock.type != socket.SOCK_STREAM:
        return "takes no connections; its unit needs ListenStream="
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen; its unit needs Accept=no"
    return None
