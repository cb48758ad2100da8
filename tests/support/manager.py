"""Stands where a service manager stands: a socket that hears what a daemon tells it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.daemon import eventually

Message = dict[str, str]


class Manager:
    """Hears the messages sent to `address`, whose @ stands for an abstract name."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[Message] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def listen(self) -> None:
        self._socket.bind(self.address.replace("@", "\0", 1))

    def hear(self) -> list[Message]:
        """All messages so far, oldest first."""
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return self.heard
            lines = data.decode().split("\n")
            self.heard.append(dict(line.split("=", 1) for line in lines))

    def told(self, name: str) -> list[str]:
        """The values that were told of `name`, oldest first."""
        return [message[name] for message in self.hear() if name in message]

    def until(self, name: str, *, count: int = 1, value: str = "", within: float = 20.0) -> str:
        """The last value told of `name` that begins with `value`, once there are `count` of those."""

        def look() -> list[str] | None:
            found = [told for told in self.told(name) if told.startswith(value)]
            return found if len(found) >= count else None

        what = f"{count} times {name}={value}… among {self.heard}"
        return str(eventually(what, look, within=within)[-1])

    def close(self) -> None:
        self._socket.close()


@contextmanager
def listening(address: str | Path) -> Iterator[Manager]:
    manager = Manager(str(address))
    try:
        manager.listen()
        yield manager
    finally:
        manager.close()
