"""A hostile case: code, and what must become of it.

`run` of a case returns "held", or what it got. What stands in `PRELUDE` is there for all of them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

HELD: Final = "held"

PRELUDE: Final = '''
import ctypes, errno, os, platform, resource, signal, struct, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
IS_X86 = platform.machine() == "x86_64"
UNSEEN = (OSError, MemoryError, ValueError, RuntimeError)


def call(x86, arm, *given):
    """A system call by its numbers."""
    number = x86 if IS_X86 else arm
    if number is None:
        raise OSError("not on this machine")
    found = libc.syscall(ctypes.c_long(number), *[
        ctypes.c_long(one) if isinstance(one, int) else one for one in given
    ])
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found


def each(*attempts):
    """Nothing of it may work."""
    got = []
    for at, one in enumerate(attempts):
        try:
            got.append(f"{at}: {one()!r}"[:200])
        except UNSEEN:
            pass
    return "; ".join(got) or "held"


def frame(content):
    return struct.pack(">I", len(content)) + content


def forge(content):
    """What the sandbox's own end would send."""
    view = memoryview(frame(content))
    while view:
        view = view[os.write(3, view):]
'''


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        number: in the list of scenarios; 0: one of our own beyond it.
        verdicts: any of these; with `ok`, the result must be `HELD`.
        process, filtered: the verdicts instead, in mode `process` and at level 1.
        limits: in place of the ground's.
        layers: those without which the case turns red, each alone.
        waits: it takes its time and no CPU: such cases are run beside each other.
        silence: seconds, of the guard against the dead.
        shown: must be found in the log.
    """

    number: int
    name: str
    code: str
    verdicts: Collection[str] = ("ok",)
    process: Collection[str] | None = None
    filtered: Collection[str] | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    layers: Collection[str] = ()
    imports: tuple[str, ...] | None = None
    waits: bool = False
    silence: float = 10.0
    beat: float = 0.05
    shown: str | None = None
    only_x86: bool = False
    needs_scratch: bool = False

    @property
    def id(self) -> str:
        return f"{self.number}-{self.name.replace(' ', '-')}"

    def source(self) -> str:
        return PRELUDE + textwrap.dedent(self.code)

    def expected(self, mode: str, level: int) -> Collection[str]:
        if level == 1 and self.filtered is not None:
            return self.filtered
        return self.process if mode == "process" and self.process is not None else self.verdicts


def attempt(number: int, name: str, expressions: str, **more: Any) -> Case:
    """None of some expressions, one a line, may work."""
    lines = ",\n".join(
        f"        lambda: {line.strip()}" for line in expressions.strip().splitlines()
    )
    return Case(
        number, name, f"def run(params, context):\n    return each(\n{lines},\n    )\n", **more
    )
