"""Starts the zygote. Nothing else in stackd's daemon starts a process."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from stackd.sandbox.child.frames import CONTROL

# Whatever environment we were started through.
INTERPRETER: Final = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
_PACKAGE: Final = Path(__file__).resolve().parents[2]  # what holds `stackd`
NOBODY: Final = 65534  # the user of that name, where it has no other number
END_WITHIN: Final = 5.0  # seconds
_BOOT: Final = (
    "import sys, json; sys.path.insert(0, sys.argv[1]); "
    "from stackd.sandbox.child.zygote import main; main(json.loads(sys.argv[2]))"
)


@dataclass(frozen=True, slots=True)
class ZygoteOptions:
    """Who runs what, and behind what.

    Attributes:
        uid, gid: who the runs are where the daemon is root; else they are who the daemon is.
        packages: a folder of modules, the operator's, that code may import.
        off: layers that are left out: `namespaces`, `seccomp`, `landlock`; for tests of what each one stops.
    """

    uid: int = NOBODY
    gid: int = NOBODY
    packages: Path | None = None
    off: Collection[str] = field(default=())


@dataclass(frozen=True, slots=True)
class Started:
    """A process, and our end of its socket."""

    process: subprocess.Popen[bytes]
    control: socket.socket

    def reaped(self) -> str:
        """Wait for its end, which the end of its socket brings; what it had to say. Blocks, at most `END_WITHIN`."""
        with self.process as process:
            try:
                process.wait(END_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stderr is not None  # noqa: S101  # as it was started
            ready, _, _ = select.select([process.stderr], [], [], 0)
            words = os.read(process.stderr.fileno(), 4096) if ready else b""
        lines = words.decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:500] if lines else ""


def start_zygote(options: ZygoteOptions) -> Started:
    """The zygote and our end of its socket: its environment is empty, and no other file of ours is open in it.

    Blocks for about a millisecond. Raises OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        asked = {
            "uid": options.uid,
            "gid": options.gid,
            "packages": None if options.packages is None else str(options.packages),
            "off": sorted(options.off),
            "path": str(_PACKAGE),
        }
        number = theirs.fileno()
        # The socket shall be descriptor 3 over there; the shell-less way to say so is to hand it on and move it.
        move = f"import os; os.dup2({number}, {CONTROL}); os.set_inheritable({CONTROL}, False); "
        move += f"os.closerange({CONTROL + 1}, {number + 1}); "
        try:
            process = subprocess.Popen(  # our own interpreter and modules
                [
                    INTERPRETER,
                    "-I", "-S", "-B", "-X", "utf8", "-c", (move if number != CONTROL else "") + _BOOT,
                    str(_PACKAGE), json.dumps(asked),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
                pass_fds=(number,),
                start_new_session=True,  # what a terminal sends us, Ctrl-C above all, is ours to act on
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
    ours.setblocking(False)  # noqa: FBT003  # its own signature
    return Started(process, ours)


def start_bare(code: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """An interpreter that runs `code` with nothing around it: a floor that the sandbox is measured by."""
    words = [INTERPRETER, "-I", "-S", "-B", "-c", code]
    return subprocess.Popen(words, stdin=stdin, stdout=subprocess.PIPE, env={}, cwd="/")
