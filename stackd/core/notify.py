"""Tells a service manager how this process is, in the words of sd_notify(3): datagrams to a Unix socket.

Nobody waits for it and nothing fails because of it. What the socket would not take goes out before what is
told next.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from stackd.core.text import plain

UNSENT: Final = 16  # messages that wait for a manager that takes none; of more, the oldest go
STATUS_LENGTH: Final = 500  # characters: it is one line for people


class Notifier:
    """Tells the manager at `address`, a path or an abstract name that begins with @; of none, nobody."""

    def __init__(self, address: str | None = None) -> None:
        self._address: str | None = None
        if address is not None and address[:1] in ("/", "@"):
            self._address = address.replace("@", "\0", 1) if address[0] == "@" else address
        self._unsent: list[bytes] = []

    @property
    def is_heard(self) -> bool:
        """Whether there is somebody to tell."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """Started, or done with reloading."""
        self._tell("READY=1", _status(status))

    def status(self, status: str) -> None:
        self._tell(_status(status))

    def reloading(self, status: str, *, at: float) -> None:
        """`ready` has to follow. `at`: now by the monotonic clock; tells the manager which request this answers."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={int(at * 1e6)}", _status(status))

    def stopping(self, status: str) -> None:
        self._tell("STOPPING=1", _status(status))

    def extend(self, seconds: float) -> None:
        """Ask for so much time from now, to start or to stop in."""
        self._tell(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def beat(self) -> None:
        """Alive. One that cannot be sent is not worth keeping."""
        self._tell("WATCHDOG=1", is_kept=False)

    def _tell(self, *lines: str, is_kept: bool = True) -> None:
        if self._address is None:
            return
        message = "\n".join(lines).encode()
        waiting = [*self._unsent, message]
        with contextlib.suppress(OSError), _datagrams() as sock:
            while waiting:
                sock.sendto(waiting[0], self._address)
                del waiting[0]
        self._unsent = [one for one in waiting if is_kept or one is not message][-UNSENT:]


def _datagrams() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)  # noqa: FBT003  # the socket API
    return sock


def _status(text: str) -> str:
    return f"STATUS={plain(text)[:STATUS_LENGTH]}"
