"""Servers that somebody else wrote, on loopback, each a process of its own for as long as a block lasts."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.daemon import eventually, free_port

MAIN = Path(__file__).with_name("foreign_main.py")
UP_WITHIN = 60.0  # seconds
EXTRA = "install the extra `interop`"


@dataclass(frozen=True, slots=True)
class Foreign:
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def needs_module(name: str) -> pytest.MarkDecorator:
    """Skips where a Python server is not installed."""
    absent = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(absent, reason=f"{name} is not installed: {EXTRA}")


def needs_program(name: str, how: str) -> pytest.MarkDecorator:
    """Skips where a program is not on the path."""
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"no {name} on the path: {how}")


@contextmanager
def served(name: str, log: Path, *arguments: str) -> Iterator[Foreign]:
    """One of `foreign_main.py`. It listens before it is up: what comes meanwhile waits."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        port = listening.getsockname()[1]
        words = (sys.executable, str(MAIN), name, str(listening.fileno()), *arguments)
        with log.open("wb") as out:
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=out, stderr=out,
                pass_fds=(listening.fileno(),), cwd=log.parent,
            )  # fmt: skip
    with _ended(process):
        yield Foreign(port, log)


@contextmanager
def running(
    log: Path, *words: str, port: int | None = None, environ: Mapping[str, str] | None = None
) -> Iterator[Foreign]:
    """A program that listens by itself, at `{port}` of its words, once that takes connections."""
    port = port or free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [word.replace("{port}", str(port)) for word in words],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=log.parent,
            env=None if environ is None else dict(environ),
        )  # fmt: skip
    with _ended(process):
        eventually(f"{words[0]} listens", lambda: _takes(process, port, log), within=UP_WITHIN)
        yield Foreign(port, log)


def _takes(process: subprocess.Popen[bytes], port: int, log: Path) -> bool:
    assert process.poll() is None, log.read_text(errors="replace")[-2000:]
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
