"""What a sandbox stands on, bare: an interpreter that is started, and a fork server that isolates nothing. For benchmarks."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stackd.core.json import dumps, loads
from stackd.sandbox.process import start_bare

# It has loaded what our zygote has; a fork of it takes one job and is gone.
_SERVER: Final = """
import base64, ctypes, datetime, decimal, hashlib, json, linecache, math, os, random, re, signal, socket, sys, traceback, uuid
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
server = socket.socket(fileno=0)
while True:
    client, _ = server.accept()
    if os.fork() == 0:
        job = json.loads(client.recv(65536))
        scope = {}
        exec(compile(job["code"], "<code>", "exec"), scope)
        client.sendall(json.dumps(scope["run"](job["params"], job["context"])).encode())
        os._exit(0)
    client.close()
"""
_FORKS: Final = """
import os, time
took = []
for _ in range(20):
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    took.append(time.perf_counter() - began)
print(sorted(took)[10])
"""


class BareZygote:
    """A fork server without a sandbox, and how long a round trip through it takes."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    async def run(self, code: str, params: object) -> object:
        """What the code returns, once its process is gone."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)  # noqa: FBT003  # its own signature
            await loop.sock_connect(client, self._path)
            await loop.sock_sendall(client, dumps({"code": code, "params": params, "context": {}}))
            found = b""
            while chunk := await loop.sock_recv(client, 65_536):
                found += chunk
        return loads(found)


@contextmanager
def bare_zygote(folder: Path) -> Iterator[BareZygote]:
    path = folder / "bare.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(64)
        process = start_bare(_SERVER, server.fileno())
    try:
        yield BareZygote(path)
    finally:
        with process:
            process.kill()


def spawned() -> float:
    """Seconds that an interpreter takes, from its start to its end, that loads json and does nothing. Blocks."""
    began = time.perf_counter()
    with start_bare("import json"):
        pass
    return time.perf_counter() - began


def forked() -> float:
    """Seconds that a fork takes of an interpreter that has loaded nothing, to its end; the median. Blocks."""
    with start_bare(_FORKS) as process:
        assert process.stdout is not None  # noqa: S101  # as it was started
        return float(process.stdout.read())
