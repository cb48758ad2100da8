"""Running `stackd …`: as a process of its own, on a terminal, or as its entry point in this one."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from support.daemon import ENVIRON


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code in (0, 1), self
        return json.loads(self.out)


Command = Callable[..., Ran]


def child(
    *words: str, stdin: bytes | None = None, **environ: str
) -> subprocess.CompletedProcess[bytes]:
    """`stackd …` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "stackd", *words],
        env=ENVIRON | environ,
        input=stdin,
        capture_output=True,
        timeout=30,
        check=False,
    )


def in_terminal(*words: str, **environ: str) -> str:
    """What `stackd …` prints on a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "stackd", *words],
        env=ENVIRON | {"TERM": "dumb", "COLUMNS": "200"} | environ,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ):
        os.close(theirs)
        printed = b""
        with contextlib.suppress(OSError):  # the terminal is gone with its last user
            while piece := os.read(ours, 65536):
                printed += piece
    os.close(ours)
    return printed.decode().replace("\r\n", "\n")
