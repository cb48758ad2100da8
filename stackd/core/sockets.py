"""Addresses of sockets: Unix ones at a path of any length, and ports of loopback."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOWEST_PORT = 10_000  # below are those of well-known servers
ADDRESS_BYTES = 107  # an address holds 108, a zero at their end; unix(7)


@contextmanager
def unix_address(path: Path) -> Iterator[str]:
    """What `bind` and `connect` take for `path`; good inside the block only.

    What is too long for an address is named through its folder.
    """
    if len(os.fsencode(path)) <= ADDRESS_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def free_port() -> int:
    """A port of loopback that nobody has, and that the kernel gives to nobody who connects.

    So it stays free while the server that it is for is down, however many try to connect to that.
    """
    kernels = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(LOWEST_PORT, max(kernels, 2 * LOWEST_PORT))  # noqa: S311  # no secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
