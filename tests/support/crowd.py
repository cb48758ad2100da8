"""Thousands of clients that are slow, in a process of their own: `python crowd.py PORT COUNT NEWCOMERS KIND…`.

Each kind is what its clients send at first and what they add at each turn, in hexadecimal with a colon between.
Nobody reads an answer. Whoever is made to go comes again. It prints a line once all have come, and at the end
of standard input another with what happened.
"""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILES_KEPT = 100  # of those a process may open
TURN = 1.0  # seconds in which each client adds something
SHARE = 50  # parts of a turn


@dataclass
class Client:
    first: bytes
    more: bytes
    connection: socket.socket | None = None
    has_sent: bool = False


class Crowd:
    """`newcomers`: a second, at most; each costs the other side as much as an honest request."""

    def __init__(
        self, port: int, kinds: list[tuple[bytes, bytes]], count: int, newcomers: int
    ) -> None:
        self._port = port
        self._newcomers = newcomers
        self.clients = [Client(*kinds[number % len(kinds)]) for number in range(count)]
        self.came = self.lost = self.sent = 0

    def come(self, client: Client) -> None:
        client.connection = socket.socket()
        client.connection.setblocking(False)
        client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.has_sent = False
        client.connection.connect_ex(("127.0.0.1", self._port))
        self.came += 1

    def add(self, client: Client) -> bool:
        """Send what comes next; whether the client is still there."""
        if client.connection is None:
            return False
        try:
            text = client.more if client.has_sent else client.first
            self.sent += client.connection.send(text) if text else 0
            client.has_sent = True
        except BlockingIOError:  # it takes no more for now, or has not taken the connection yet
            return True
        except OSError:
            client.connection.close()
            client.connection = None
            self.lost += 1
            return False
        return True

    def turn(self, part: int) -> None:
        """One share of the clients adds something; those of it that were made to go come again."""
        room = self._newcomers // SHARE
        for client in self.clients[part % SHARE :: SHARE]:
            if not self.add(client) and room > 0:
                room -= 1
                self.come(client)

    @property
    def is_complete(self) -> bool:
        return self.came >= len(self.clients)


def main() -> None:
    port, count, newcomers = (int(word) for word in sys.argv[1:4])
    kinds = [(bytes.fromhex(a), bytes.fromhex(b)) for a, b in (k.split(":") for k in sys.argv[4:])]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    crowd = Crowd(port, kinds, min(count, most - FILES_KEPT), newcomers)
    part, has_told = 0, False
    while not select.select([sys.stdin], [], [], TURN / SHARE)[0]:
        crowd.turn(part)
        part += 1
        if crowd.is_complete and not has_told:
            has_told = True
            print(json.dumps({"clients": len(crowd.clients)}), flush=True)
    there = sum(client.connection is not None for client in crowd.clients)
    print(json.dumps({"came": crowd.came, "lost": crowd.lost, "sent": crowd.sent, "there": there}))


@contextmanager
def coming(
    port: int, kinds: list[tuple[bytes, bytes]], count: int, *, newcomers: int
) -> Iterator[dict[str, Any]]:
    """`count` clients, or as many as the machine lets one process have; what happened to them is there at the end."""
    words = [f"{first.hex()}:{more.hex()}" for first, more in kinds]
    told: dict[str, Any] = {"began": time.monotonic()}
    with subprocess.Popen(
        [sys.executable, str(Path(__file__)), str(port), str(count), str(newcomers), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            told |= json.loads(child.stdout.readline())
            told["seconds"] = time.monotonic() - told.pop("began")
            yield told
        finally:
            with contextlib.suppress(OSError):
                child.stdin.close()
            told |= json.loads(child.stdout.readline() or "{}")


if __name__ == "__main__":
    main()
