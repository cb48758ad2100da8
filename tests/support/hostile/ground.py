"""Runs hostile cases in one sandbox, and tells what did not hold: verdict, next run, files, processes, memory, loop."""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import anyio
import psutil

from stackd.core.clock import SystemClock
from stackd.sandbox.child import seccomp
from stackd.sandbox.limits import Limits
from stackd.sandbox.process import INTERPRETER, ZygoteOptions
from stackd.sandbox.run import Job, Outcome
from stackd.sandbox.sandbox import Sandbox, SandboxOptions
from support.hostile.case import HELD, Case
from support.hostile.language import KERNEL, LANGUAGE
from support.hostile.places import FILES, NETWORK
from support.hostile.protocol import PROTOCOL
from support.hostile.resources import MEMORY, PROCESSES, TIME

CASES: Final[Sequence[Case]] = [
    *LANGUAGE, *KERNEL, *FILES, *NETWORK, *PROCESSES, *MEMORY, *TIME, *PROTOCOL,
]  # fmt: skip
LIMITS: Final = Limits(timeout=10.0, cpu_ms=5_000, memory_mb=64, threads=16)
TURN: Final = 0.1  # seconds of CPU that the loop's thread may work without a break
GROWTH: Final = 24 * 1024 * 1024  # bytes of the daemon's memory over all cases

LEFT: Final = ("/tmp/hostile-x", "/var/tmp/hostile-x", "/dev/shm/hostile-x")  # by one of the cases

CANARY: Final = """
import builtins, json, os, sys

def run(params, context):
    assert json.dumps({"a": [1]}) == '{"a": [1]}' and len("abc") == 3 and not os.environ
    assert "code" in sys.modules and sys.gettrace() is None and builtins.exec is exec
    assert not hasattr(sys, "late")
    return params["n"] + 1
"""


@dataclass(slots=True)
class Ground:
    """A sandbox, and what it is measured against. `judged_as`: the level whose verdicts are expected."""

    sandbox: Sandbox
    folder: Path
    level: int
    victim: Path
    judged_as: int
    secret: str = field(default_factory=lambda: f"hostile-{token_hex(16)}")
    turn: float = 0.0

    @property
    def mode(self) -> str:
        return self.sandbox.options.mode

    def offered(self) -> list[Case]:
        """The cases that concern this machine and level."""
        machine = os.uname().machine
        return [
            one
            for one in CASES
            if not (one.only_x86 and machine != "x86_64")
            and not (one.needs_scratch and self.level < 2)
        ]

    async def outcome(self, case: Case) -> Outcome:
        limits = {**{n: getattr(LIMITS, n) for n in Limits.__slots__}, **case.limits}
        limits["scratch_mb"] = 2 if case.needs_scratch else 0
        job = Job(
            case.source(), self._params(), {}, filename="<hostile>", limits=Limits(**limits), imports=case.imports,
        )  # fmt: skip
        # the operator's own: what a node cannot set
        self.sandbox.options = _with(self.sandbox.options, beat=case.beat, silence=case.silence)
        return await self.sandbox.run(job)

    def _params(self) -> dict[str, Any]:
        return {
            "daemon": os.getpid(), "zygote": self.sandbox.pid, "file": str(self.victim), "folder": str(self.folder),
            "hash": hashlib.sha256(self.secret.encode()).hexdigest(), "port": 9,
            "interpreter": INTERPRETER, "refused": _refused(),
            "mostThreads": LIMITS.threads + 2 if self.level > 1 else 1500,
        }  # fmt: skip

    async def canary(self) -> str | None:
        job = Job(CANARY, {"n": 41, "secret": self.secret}, {}, limits=LIMITS)
        found = await self.sandbox.run(job)
        if found.result == 42:
            return None
        return f"the next run: {found.verdict} {found.error} {found.result}"

    async def tried(self, cases: Iterable[Case]) -> dict[str, str]:
        """What did not hold, by case."""
        cases = list(cases)
        red: dict[str, str] = {}
        for case in cases:
            if not case.waits:
                await self._try([case], red)
        await self._try([case for case in cases if case.waits], red)
        return red

    async def _try(self, cases: list[Case], red: dict[str, str]) -> None:
        before, file = _held(), _state(self.victim, self.folder)
        self.turn = 0.0

        async def one(case: Case) -> None:
            if (problem := self.judged(case, await self.outcome(case))) is not None or (
                problem := await self.canary()
            ) is not None:
                red[case.id] = problem

        async with anyio.create_task_group() as tasks:
            for case in cases:
                tasks.start_soon(one, case)
                await anyio.sleep(0.02 if len(cases) > 1 else 0)
        for case in cases:
            if self.turn > TURN:
                red.setdefault(
                    case.id, f"the loop had no turn for {self.turn * 1000:.0f} ms of CPU"
                )
            if _state(self.victim, self.folder) != file:
                red.setdefault(case.id, "a file of the daemon's is another now")
            if (left := await _settled(before)) is not None:
                red.setdefault(case.id, left)

    def judged(self, case: Case, outcome: Outcome) -> str | None:
        expected = case.expected(self.mode, self.judged_as)
        shown = f"{outcome.verdict} {str(outcome.result)[:200]!r} {outcome.error or ''}"
        if case.shown is not None:
            lines = [str(one["message"]) for one in outcome.logs]
            if case.shown not in lines or "GOT OUT" in lines:
                return f"{shown}; said {lines}"
        if outcome.verdict == "ok":
            if "ok*" in expected or ("ok" in expected and outcome.result == HELD):
                return None
            if "got" in expected and outcome.result != HELD:
                return None  # documented, and no more than that
            return shown
        return None if outcome.verdict in expected else shown


def _with(options: SandboxOptions, **changed: Any) -> SandboxOptions:
    return replace(options, **changed)


def _refused() -> list[int]:
    """The numbers of all calls that shall get EPERM."""
    known = {
        335,
        336,
    }  # x86_64's uretprobe and uprobe pass every filter, and end who calls them by SIGILL
    known |= {
        seccomp._CLONE,
        seccomp._CLONE3,
        seccomp._TGKILL,
        seccomp._PRLIMIT,
        seccomp._FCNTL_CALL,
        seccomp._IOCTL_CALL,
    }
    for calls in (seccomp._PASS, seccomp._EXEC, seccomp._ATTACK):
        known |= set(seccomp._numbers(calls))
    return [number for number in range(600) if number not in known]


def _held() -> Counter[str]:
    """What this process holds: files by what they are, children by what they run."""
    found: Counter[str] = Counter()
    for number in Path("/proc/self/fd").iterdir():
        try:
            link = str(number.readlink())
        except OSError:
            continue
        found[link.partition(":")[0] if ":[" in link else link] += 1
    for child in psutil.Process().children(recursive=True):
        found[f"process {child.pid}"] += 1
    return found


async def _settled(before: Counter[str]) -> str | None:
    """Wait until no more is held than before; what is still held after 2 s."""
    end = time.monotonic() + 2
    while True:
        more = _held() - before
        if not more:
            return None
        if time.monotonic() > end:
            return f"left: {dict(more)}"
        await anyio.sleep(0.005)


def _state(victim: Path, folder: Path) -> tuple[Any, ...]:
    about = victim.stat()
    return (
        about.st_mode,
        about.st_mtime_ns,
        about.st_size,
        about.st_nlink,
        sorted(one.name for one in folder.iterdir()),
    )


def _victim(folder: Path, zygote: ZygoteOptions) -> Path:
    """A file that runs may do anything to, as far as its owner and mode go."""
    folder.chmod(0o777)
    victim = folder / "secrets.db"
    victim.write_text("the daemon's")
    victim.chmod(0o666)
    if os.geteuid() == 0:
        os.chown(victim, zygote.uid, zygote.gid)
    return victim


def _clear() -> None:
    for left in LEFT:  # where a layer was off
        with suppress(OSError):
            Path(left).unlink()


@asynccontextmanager
async def ground(
    mode: str, *, off: Sequence[str] = (), judged_as: int | None = None
) -> AsyncIterator[Ground]:
    """A sandbox whose isolation was found, with a file of the daemon's that all could read and write."""
    options = SandboxOptions(mode=mode, required_level=0, parked=0, zygote=ZygoteOptions(off=off))
    folder = Path(tempfile.mkdtemp(prefix="hostile-", dir="/var/tmp"))  # which no root covers
    try:
        victim = _victim(folder, options.zygote)
        async with Sandbox(options, clock=SystemClock()) as sandbox:
            found = await sandbox.check()
            made = Ground(
                sandbox,
                folder,
                found.level,
                victim,
                found.level if judged_as is None else judged_as,
            )
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_turns, made)
                yield made
                tasks.cancel_scope.cancel()
    finally:
        shutil.rmtree(folder)
        _clear()


async def _turns(made: Ground) -> None:
    """Measure how long the loop's thread works without a break, in CPU time: other processes do not count."""
    last = time.thread_time()
    while True:
        await anyio.sleep(0.004)
        now = time.thread_time()
        made.turn = max(made.turn, now - last)
        last = now


def rss() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss
