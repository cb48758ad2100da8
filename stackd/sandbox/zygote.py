"""The daemon's end of the zygote: asks it for processes, and hears how they ended. What it tells is the kernel's word."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio

from stackd.core.clock import Clock
from stackd.sandbox.cgroups import Group
from stackd.sandbox.errors import SandboxLostError, SandboxUnavailableError
from stackd.sandbox.process import Started, ZygoteOptions, start_zygote

START_WITHIN: Final = 10.0  # seconds for a zygote to be ready
FORK_WITHIN: Final = 10.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended, as its zygote was told by the kernel. `status`: as of waitpid; None: nobody knows."""

    status: int | None
    cpu_ms: float = 0.0
    max_rss_bytes: int = 0


_UNKNOWN: Final = Ended(None)


@dataclass(slots=True)
class Child:
    """A process that waits for its job, isolated.

    Attributes:
        job: our end of its socket.
        out, err: our ends of its pipes.
        pidfd: names it, whatever becomes of its number.
        group: its cgroup, removed once it is closed and has ended.
        born: by the monotonic clock.
    """

    number: int
    mode: str
    job: socket.socket
    out: int
    err: int
    born: float
    group: Group | None = None
    pidfd: int = -1
    pid: int = 0
    problem: str | None = None
    started: anyio.Event = field(default_factory=anyio.Event)
    ending: Ended = _UNKNOWN
    ended: anyio.Event = field(default_factory=anyio.Event)

    def over(self, ending: Ended) -> None:
        """It has ended so."""
        self.ending = ending
        self.started.set()
        self.ended.set()
        if self.out < 0:
            self._leave()

    def failed(self, problem: str) -> None:
        """It was never there."""
        self.problem = problem
        self.over(_UNKNOWN)

    def kill(self) -> None:
        """End it and all it has started: it is the first process of its namespace."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        if self.group is not None and not self.ended.is_set():
            self.group.kill()

    def cpu_ms(self) -> float:
        """CPU time of all its threads so far, by the kernel's clock of that process (clock_getcpuclockid(3)).

        0 before `give_way` and after its end.
        """
        if self.pid <= 0 or self.ended.is_set():
            return 0.0
        try:
            return time.clock_gettime(~self.pid << 3 | 2) * 1000
        except OSError:  # it has just ended
            return 0.0

    async def give_way(self, priority: int) -> None:
        """Learn its number here, in our own namespace of processes (0 if it has ended), and let others go first.

        All its threads have `priority`, as of nice(1), from now on, and those that they start.
        """

        def lower() -> int:
            with contextlib.suppress(OSError, StopIteration):
                text = Path(f"/proc/self/fdinfo/{self.pidfd}").read_text(encoding="ascii")
                pid = next(int(line[4:]) for line in text.splitlines() if line.startswith("Pid:"))
                for thread in os.listdir(f"/proc/{pid}/task") if pid > 0 else ():  # noqa: PTH208
                    with contextlib.suppress(OSError):
                        os.setpriority(os.PRIO_PROCESS, int(thread), priority)
                return pid
            return 0

        self.pid = await anyio.to_thread.run_sync(lower)

    def close(self) -> None:
        """Let go of everything. It must have ended, or ends by that."""
        self.kill()
        self.job.close()
        for number in (self.out, self.err, self.pidfd):
            if number >= 0:
                os.close(number)
        self.out = self.err = self.pidfd = -1
        if self.ended.is_set():
            self._leave()

    def _leave(self) -> None:
        if self.group is not None:
            self.group.remove()


class Zygote:
    """One zygote, from `started` to `aclose`. Once it is gone, it stays gone: `is_alive` says so.

    `has_asyncio`: what is forked from now on finds it loaded.
    """

    def __init__(self, started: Started) -> None:
        self._started = started
        self._control = started.control
        self._children: dict[int, Child] = {}
        self._ready = anyio.Event()
        self.layers: dict[str, Any] = {}
        self.forks = 0
        self.has_asyncio = False

    @classmethod
    async def started(cls, options: ZygoteOptions, *, clock: Clock) -> Zygote:
        """A zygote that is ready to fork.

        Raises:
            SandboxUnavailableError: it did not come up; says what it said.
        """
        try:
            zygote = cls(await anyio.to_thread.run_sync(start_zygote, options))
        except OSError as error:
            raise SandboxUnavailableError(f"the sandbox cannot be started: {error}") from error
        asyncio.get_running_loop().add_reader(zygote._control.fileno(), zygote._hear)
        try:
            await clock.wait(zygote._ready, START_WITHIN)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await zygote.aclose()
            raise
        if not zygote.layers:
            words = await zygote.aclose()
            raise SandboxUnavailableError(
                f"the sandbox did not start{f': {words}' if words else ''}"
            )
        return zygote

    @property
    def pid(self) -> int:
        return self._started.process.pid

    @property
    def is_alive(self) -> bool:
        return self._control.fileno() >= 0

    @property
    def children(self) -> int:
        return len(self._children)

    async def fork(
        self, mode: str, *, scratch_mb: int, born: float, group: Group | None = None
    ) -> Child:
        """A process that waits for its job.

        Raises:
            SandboxUnavailableError: it could not be forked.
            SandboxLostError: the zygote has ended meanwhile.
        """
        try:
            while True:
                try:
                    child = self.ask(mode, scratch_mb=scratch_mb, born=born, group=group)
                except BlockingIOError:
                    await anyio.wait_writable(self._control)
                else:
                    return await self.begun(child)
        except BaseException:
            if group is not None:
                group.remove()
            raise

    def ask(self, mode: str, *, scratch_mb: int, born: float, group: Group | None = None) -> Child:
        """A process that was asked for, and may not have begun. `group`: its cgroup, which is its own once this returns.

        Raises:
            SandboxUnavailableError: there is nobody to ask.
            BlockingIOError: so much is asked for that this has to wait.
        """
        if not self.is_alive:
            raise SandboxUnavailableError("the sandbox has ended")
        try:
            (job, out, err), (theirs, their_out, their_err) = _ways()
        except OSError as error:
            raise SandboxUnavailableError(f"the sandbox could not fork: {error}") from error
        self.forks += 1
        child = Child(self.forks, mode, job, out, err, born, group)
        asked = {
            "run": child.number,
            "mode": mode,
            "scratchMb": scratch_mb,
            "asyncio": self.has_asyncio,
        }
        files = [theirs.fileno(), their_out, their_err, *([] if group is None else [group.fd])]
        try:
            socket.send_fds(self._control, [json.dumps(asked).encode()], files)
        except BaseException:
            child.close()
            raise
        finally:
            theirs.close()
            os.close(their_out)
            os.close(their_err)
        self._children[child.number] = child
        return child

    async def begun(self, child: Child) -> Child:
        """`child`, once it has begun.

        Raises:
            SandboxUnavailableError: it could not be forked. It is closed then, as it is when this is cancelled.
            SandboxLostError: the zygote has ended meanwhile.
        """
        try:
            if child.pidfd < 0:
                with anyio.move_on_after(FORK_WITHIN):
                    await child.started.wait()
            if child.pidfd < 0 and not self.is_alive:
                raise SandboxLostError  # noqa: TRY301
            if child.pidfd < 0:
                words = child.problem or f"no answer within {FORK_WITHIN:g} s"
                raise SandboxUnavailableError(f"the sandbox could not fork: {words}")  # noqa: TRY301
        except BaseException:
            child.close()
            raise
        return child

    # -- what it tells

    def _hear(self) -> None:
        while True:
            try:
                content, files, _, _ = socket.recv_fds(
                    self._control, 65_536, 4, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                content, files = b"", []
            if not content:
                self._gone()
                return
            self._take(json.loads(content), files)

    def _take(self, told: dict[str, Any], files: list[int]) -> None:
        if told["event"] == "ready":
            self.layers = told["layers"]
            self._ready.set()
            return
        child = self._children.get(told["run"])
        match told["event"]:
            case "started" if child is not None and child.out >= 0 and files:
                child.pidfd = files.pop()
                child.started.set()
            case "started" if child is not None and child.out >= 0:  # it ends with its socket
                child.problem = "there is no descriptor left to hold it by"
                child.started.set()
            case "started" if files:  # nobody waits for it any more
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(files[0], signal.SIGKILL)
            case "failed" if child is not None:
                del self._children[child.number]
                child.failed(str(told["error"]))
            case "ended" if child is not None:
                del self._children[child.number]
                child.over(Ended(told["status"], told["cpuMs"], told["maxRssBytes"]))
        for one in files:
            os.close(one)

    def _gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        self._control.close()
        self._ready.set()
        for child in self._children.values():
            child.failed("the sandbox has ended")
        self._children.clear()

    async def aclose(self) -> str:
        """End it and all that it has forked, and wait for that; what it had to say."""
        if self.is_alive:
            self._gone()
        return await anyio.to_thread.run_sync(self._started.reaped)


def _ways() -> tuple[tuple[socket.socket, int, int], tuple[socket.socket, int, int]]:
    """A socket and two pipes: our ends, which do not block, and theirs. Raises OSError; then nothing is left open."""
    with contextlib.ExitStack() as opened:
        job, theirs = socket.socketpair()
        opened.enter_context(job)
        opened.enter_context(theirs)
        out, their_out = os.pipe2(os.O_CLOEXEC)
        opened.callback(os.close, out)
        opened.callback(os.close, their_out)
        err, their_err = os.pipe2(os.O_CLOEXEC)
        opened.pop_all()
    for number in (out, err):
        os.set_blocking(number, False)  # its own signature
    job.setblocking(False)  # noqa: FBT003  # as above
    return (job, out, err), (theirs, their_out, their_err)
