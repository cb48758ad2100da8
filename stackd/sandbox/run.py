"""One run, from its job to its outcome. What is believed of it comes from the kernel; its own bytes are a claim."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import anyio.lowlevel

from stackd.core.aside import aside_if
from stackd.core.clock import Clock
from stackd.core.errors import InputError
from stackd.core.json import LARGE, Json, dumps, loads_strict
from stackd.sandbox.cgroups import Usage
from stackd.sandbox.child.frames import LENGTH
from stackd.sandbox.errors import (
    SandboxCodeError,
    SandboxError,
    SandboxHeartbeatTimeoutError,
    SandboxLostError,
    SandboxPolicyViolationError,
    SandboxResourceLimitError,
    SandboxTimeoutError,
)
from stackd.sandbox.limits import Limits
from stackd.sandbox.zygote import Child, Ended

FLOOD: Final = 8 * 1024 * 1024  # bytes of output, kept or not, after which a run is ended
FRAME_COSTS: Final = (
    512  # bytes that a frame counts at least: each takes our time, however short it is
)
TURN: Final = 64  # frames in a row; then others have theirs
FRAME: Final = 4 * 1024 * 1024  # bytes of a frame that is no result
CALLS: Final = 1000  # requests asked for, made or refused, after which a run is ended
LINES: Final = 2000  # of the log that are kept
LEVELS: Final = frozenset({"debug", "info", "warn", "error"})
PIPE: Final = 64 * 1024  # bytes that a pipe holds; code cannot let it hold more
VIOLATIONS: Final = 100  # of a run that are kept
EXIT_WITHIN: Final = 1.0  # seconds for a process to end by itself once it has told its result
DRAIN_WITHIN: Final = 1.0
CPU_LOOKS: Final = (
    0.01,
    0.25,
)  # seconds between looks at the CPU clock: near the limit, far from it
LATE: Final = 1.0  # seconds by which a look that comes late says that the daemon itself stood still

Fetch = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be run.

    Attributes:
        code: the text of a module.
        filename: what tracebacks call it.
        imports: the modules that it may import; None: all there are.
        fetch: makes its requests; None: it may make none.
        beat: seconds between signs of life; 0: none are asked for.
        silence: seconds without any sign after which it is taken for dead.
        is_large: whether its parameters or context may be: then they are written aside.
    """

    code: str
    params: Json
    context: Json
    entry_point: str = "run"
    filename: str = "<code>"
    imports: tuple[str, ...] | None = None
    fetch: Fetch | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)
    beat: float = 0.5
    silence: float = 10.0
    is_large: bool = False

    def told(self, *, packages: bool) -> bytes:
        """The frame that its process is sent."""
        limits = self.limits
        content = dumps(
            {
                "code": self.code,
                "filename": self.filename,
                "entryPoint": self.entry_point,
                "params": self.params,
                "context": self.context,
                "imports": None if self.imports is None else list(self.imports),
                "packages": packages,
                "beatMs": round(self.beat * 1000),
                "limits": {
                    "memoryMb": limits.memory_mb,
                    "cpuMs": limits.cpu_ms,
                    "threads": limits.threads,
                    "scratchMb": limits.scratch_mb,
                },
            }
        )
        return LENGTH.pack(len(content)) + content


@dataclass(slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        error: None: `result` is what the code returned.
        logs: `{level, message}` each, in order; `is_truncated`: there were more.
        verdict: ok, error, timeout, heartbeat, cpu, memory, output, policy, crash, lost, no result, bad result.
        duration_ms: from the job's sending to its answer; to the end of its process, where it gave none.
        peak_bytes: memory that its cgroup has counted at most; None: it had none, or its kernel is older than 5.19.
        throttled: in how many periods of 100 ms it had to wait for its CPU quota.
        fetches: how many requests were made for it.
        is_calling: whether it was ended while one was under way.
        not_enforced: limits that were asked for and that nothing here enforces.
        was_parked: whether a process waited for it; else one was made.
    """

    result: Json = None
    error: SandboxError | None = None
    logs: list[dict[str, Json]] = field(default_factory=list)
    is_truncated: bool = False
    violations: list[dict[str, Json]] = field(default_factory=list)
    duration_ms: float = 0.0
    cpu_ms: float = 0.0
    max_rss_bytes: int = 0
    peak_bytes: int | None = None
    throttled: int = 0
    verdict: str = "ok"
    fetches: int = 0
    is_calling: bool = False
    was_parked: bool = False
    not_enforced: tuple[str, ...] = ()

    @property
    def limited_by(self) -> str | None:
        """What noticed that it took too much, where that is how it ended."""
        error = self.error
        return error.source if isinstance(error, SandboxResourceLimitError) else None


class Run:
    """A process and its job. `conduct` once. `priority`: as of nice(1), once it has run for more than a moment."""

    def __init__(
        self, child: Child, job: Job, *, clock: Clock, memory_by: str, priority: int
    ) -> None:
        self._child = child
        self._job = job
        self._clock = clock
        self._memory_by = memory_by
        self._priority = priority
        self._outcome = Outcome()
        self._kept = self._received = self._calls = 0
        self._is_cut = False
        self._usage = Usage()
        self._done: dict[str, Any] | None = None
        self._ended_for: tuple[str, SandboxError] | None = None
        self._seen = clock.monotonic()
        self._buffer = bytearray()
        self._talking = anyio.CancelScope()

    async def conduct(self, frame: bytes) -> Outcome:
        """Send the job, hear what it tells, and end it. Cancelled, the process is killed."""
        began = self._seen = self._clock.monotonic()
        loop = asyncio.get_running_loop()
        pipes = {self._child.out: _Lines(self, "info"), self._child.err: _Lines(self, "error")}
        try:
            for number, lines in pipes.items():
                loop.add_reader(number, lines.read, number)
            async with anyio.create_task_group() as tasks:
                self._talking = tasks.cancel_scope
                tasks.start_soon(self._watch, began)
                tasks.start_soon(self._send, loop, frame)
                await self._hear(loop)
                tasks.cancel_scope.cancel()
            answered = self._clock.monotonic()
            ended = await self._end()
            if self._child.group is not None:
                self._usage = await anyio.to_thread.run_sync(self._child.group.usage)
            over = answered if self._done is not None else self._clock.monotonic()
            for number, lines in pipes.items():
                lines.read(number)
                lines.finish()
        finally:
            for number in pipes:
                loop.remove_reader(number)
            self._child.kill()
        outcome = self._outcome
        outcome.duration_ms = round((over - began) * 1000, 3)
        outcome.cpu_ms = max(ended.cpu_ms, self._usage.cpu_ms)
        outcome.max_rss_bytes = ended.max_rss_bytes
        outcome.peak_bytes, outcome.throttled = self._usage.peak_bytes, self._usage.throttled
        self._judge(ended)
        return outcome

    # -- what it tells

    async def _send(self, loop: asyncio.AbstractEventLoop, frame: bytes) -> None:
        with suppress(OSError):  # its end is heard of on the other side
            await loop.sock_sendall(self._child.job, frame)

    async def _hear(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take frames until the result, or the end of the process."""
        with suppress(OSError):
            for count in itertools.count(1):
                content = await self._frame(loop)
                if content is None:
                    return
                await self._take(loop, content)
                if self._done is not None or self._ended_for is not None:
                    return
                if count % TURN == 0:
                    await anyio.lowlevel.checkpoint()

    async def _frame(self, loop: asyncio.AbstractEventLoop) -> bytes | None:
        """The next frame; None at the end of the stream, or where its length is over what it may be."""
        if not await self._fill(loop, LENGTH.size):
            return None
        (size,) = LENGTH.unpack_from(self._buffer)
        most = max(FRAME, self._job.limits.result_bytes + 4096)
        if size > most:
            self._end_for(
                "output",
                SandboxResourceLimitError("output", size, self._job.limits.result_bytes, "frame"),
            )
            return None
        if not await self._fill(loop, LENGTH.size + size):
            return None
        content = bytes(self._buffer[LENGTH.size : LENGTH.size + size])
        del self._buffer[: LENGTH.size + size]
        return content

    async def _fill(self, loop: asyncio.AbstractEventLoop, size: int) -> bool:
        while len(self._buffer) < size:
            chunk = await loop.sock_recv(self._child.job, 64 * 1024)
            if not chunk:
                return False
            self._seen = self._clock.monotonic()
            self._buffer += chunk
        return True

    async def _take(self, loop: asyncio.AbstractEventLoop, content: bytes) -> None:
        try:
            told: Any = await aside_if(len(content) > LARGE, loads_strict, content)
            kind = told["type"]
        except (InputError, TypeError, KeyError) as error:
            words = error.message if isinstance(error, InputError) else "it is no message"
            self._end_for(
                "bad result",
                SandboxCodeError(
                    "BadResult", f"what the code's process told cannot be read: {words}"
                ),
            )
            return
        assert isinstance(told, dict)  # noqa: S101  # it was asked for a member
        cost = max(len(content), FRAME_COSTS)
        match kind:
            case "done":
                if len(content) > self._job.limits.result_bytes + 64:
                    limit = self._job.limits.result_bytes
                    self._end_for(
                        "output", SandboxResourceLimitError("output", len(content), limit, "result")
                    )
                else:
                    self._done = told
            case "log":
                level = told.get("level")
                known = level if isinstance(level, str) and level in LEVELS else "info"
                self.note(known, str(told.get("message")), cost)
            case "violation":
                self._count(cost)
                self._mark(told.get("event"))
            case "call":
                await self._answer(loop, told.get("call"))
            case _:
                self._count(cost)

    def _mark(self, event: Any) -> None:
        if isinstance(event, dict) and len(self._outcome.violations) < VIOLATIONS:
            self._outcome.violations.append(event)

    async def _answer(self, loop: asyncio.AbstractEventLoop, call: Any) -> None:
        self._calls += 1
        if self._calls > CALLS:
            self._end_for(
                "output", SandboxResourceLimitError("output", self._calls, CALLS, "requests")
            )
            return
        if not isinstance(call, dict):
            answer: dict[str, Any] = {"error": "it is no request", "code": "fetch.invalid"}
        elif self._job.fetch is None:
            answer = {
                "error": "this node may not use the network; set runtime.fetch",
                "code": "fetch.off",
            }
        else:
            self._outcome.is_calling = True
            self._outcome.fetches += 1
            answer = await self._job.fetch(call)
            self._outcome.is_calling = False
            self._seen = self._clock.monotonic()
            self._mark(answer.pop("violation", None))
        content = dumps(answer)
        with suppress(OSError):  # it need not wait for the answer: its result may be there already
            await loop.sock_sendall(self._child.job, LENGTH.pack(len(content)) + content)

    def note(self, level: str, message: str, size: int) -> None:
        """Keep a line of the log, as long as there is room. `size`: what was received for it."""
        left = self._job.limits.output_bytes - self._kept
        if self.is_full:
            self._outcome.is_truncated = True
        else:
            text = message.encode("utf-8", "replace")
            self._outcome.is_truncated |= len(text) > left
            self._kept += len(text) + 1
            self._outcome.logs.append(
                {"level": level, "message": text[:left].decode("utf-8", "ignore")}
            )
        self._count(size)

    @property
    def is_full(self) -> bool:
        """Whether no more of the log is kept."""
        return self._kept >= self._job.limits.output_bytes or len(self._outcome.logs) >= LINES

    def drop(self, size: int) -> None:
        """That much was printed for which there is no room."""
        self._outcome.is_truncated = True
        self._count(size)

    def _count(self, size: int) -> None:
        self._received += size
        if self._received > FLOOD:
            self._end_for(
                "output", SandboxResourceLimitError("output", self._received, FLOOD, "stream")
            )

    # -- what it takes

    async def _watch(self, began: float) -> None:
        """Look at the kernel's clocks until the run is over, or has to be."""
        limits, job = self._job.limits, self._job
        used = 0.0
        throttled = 0
        looked = began
        group = self._child.group if limits.cpu_quota_ms is not None else None
        while self._done is None and self._ended_for is None:
            left = limits.timeout - (self._clock.monotonic() - began)
            if left <= 0:
                self._end_for("timeout", SandboxTimeoutError(limits.timeout))
                return
            to_cpu = (limits.cpu_ms - used) / 1000 / 4
            nap = min(left, max(CPU_LOOKS[0], min(to_cpu, CPU_LOOKS[1])))
            await self._clock.sleep(nap)
            now = self._clock.monotonic()
            if not self._child.pid:  # it is none of the short ones, which have the CPU as we do
                await self._child.give_way(self._priority)
            before, used = used, max(used, self._child.cpu_ms())
            if used > limits.cpu_ms:
                self._end_for("cpu", SandboxResourceLimitError("cpu", used, limits.cpu_ms, "clock"))
                return
            if used > before + 0.5 or self._outcome.is_calling or now - looked > nap + LATE:
                self._seen = now  # it works, or waits for us, or we are who stood still
            if group is not None and (count := group.throttled()) > throttled:
                throttled, self._seen = count, now  # it would work if it might
            looked = now
            if job.beat and now - self._seen > job.silence:
                self._end_for(
                    "heartbeat", SandboxHeartbeatTimeoutError(now - self._seen, job.silence)
                )
                return

    def _end_for(self, verdict: str, error: SandboxError) -> None:
        if self._ended_for is None:
            self._ended_for = verdict, error
            self._child.kill()
            self._talking.cancel()  # a request that it waits for, too

    async def _end(self) -> Ended:
        """How the process ended; it is killed where it does not by itself."""
        if not await self._clock.wait(self._child.ended, EXIT_WITHIN):
            self._is_cut = True
            self._child.kill()
            await self._child.ended.wait()
        return self._child.ending

    # -- what it comes to

    def _judge(self, ended: Ended) -> None:
        outcome, limits = self._outcome, self._job.limits
        if self._ended_for is not None:
            outcome.verdict, outcome.error = self._ended_for
        elif self._done is not None and "error" in self._done:
            self._judge_error(self._done["error"])
        elif self._done is not None:
            outcome.result = self._done.get("result")
        else:
            outcome.verdict, outcome.error = self._unfinished(ended, limits)

    def _judge_error(self, told: Any) -> None:
        outcome = self._outcome
        given = told if isinstance(told, dict) else {}
        name, message, trace = (
            str(given.get(key) or "")[:4000] for key in ("name", "message", "trace")
        )
        if name == "MemoryError":
            limit = self._job.limits.memory_mb * 1024 * 1024
            outcome.verdict = "memory"
            outcome.error = SandboxResourceLimitError("memory", limit, limit, self._memory_by)
            return
        outcome.verdict = "error"
        outcome.error = SandboxCodeError(name or "Error", message, trace)

    def _unfinished(self, ended: Ended, limits: Limits) -> tuple[str, SandboxError]:
        """Why a process is gone that has told nothing."""
        status = ended.status
        if self._is_cut:
            return "no result", SandboxCodeError(
                "NoResult", "the code closed the way on which its result is told, and was ended"
            )
        if status is None:
            return "lost", SandboxLostError()
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            name = signal.Signals(number).name if number < signal.SIGRTMIN else str(number)
            if number == signal.SIGKILL and self._usage.oom_kills:
                limit = limits.memory_mb * 1024 * 1024
                used = self._usage.peak_bytes or limit
                return "memory", SandboxResourceLimitError("memory", used, limit, "cgroup")
            if number == signal.SIGSYS:
                return "policy", SandboxPolicyViolationError(
                    "the code made a system call that only attacks make, and was ended by the kernel",
                    {"type": "syscall-denied", "signal": name},
                )
            if number in (signal.SIGXCPU, signal.SIGKILL) and ended.cpu_ms >= limits.cpu_ms:
                return "cpu", SandboxResourceLimitError(
                    "cpu", ended.cpu_ms, limits.cpu_ms, "rlimit"
                )
            return "crash", SandboxCodeError(
                "ProcessDied", f"Sandbox process terminated due to signal {name}"
            )
        code = os.WEXITSTATUS(status)
        if code == 0:
            return "no result", SandboxCodeError(
                "NoResult", "Sandbox process exited unexpectedly without a result"
            )
        words = "; ".join(
            str(one["message"])
            for one in self._outcome.logs
            if str(one["message"]).startswith("sandbox:")
        )
        return "crash", SandboxCodeError(
            "ProcessDied",
            f"Sandbox process exited with code {code}{f' ({words})' if words else ''}",
        )


class _Lines:
    """What is printed, as lines of the log."""

    def __init__(self, run: Run, level: str) -> None:
        self._run = run
        self._level = level
        self._rest = b""

    def read(self, number: int) -> None:
        """Take what is there, as much as a pipe holds; then others have their turn."""
        taken = 0
        while taken < PIPE:
            try:
                chunk = os.read(number, PIPE)
            except BlockingIOError:
                return
            if not chunk:
                asyncio.get_running_loop().remove_reader(number)
                return
            taken += len(chunk)
            self._take(chunk)

    def _take(self, chunk: bytes) -> None:
        if self._run.is_full:
            self._run.drop(len(self._rest) + len(chunk))
            self._rest = b""
            return
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > PIPE:
            lines.append(self._rest)
            self._rest = b""
        for at, line in enumerate(lines):
            if self._run.is_full:
                self._run.drop(sum(map(len, lines[at:])) + len(lines) - at)
                return
            self._run.note(self._level, line.decode("utf-8", "replace")[:4000], len(line) + 1)

    def finish(self) -> None:
        if self._rest:
            self._run.note(
                self._level, self._rest.decode("utf-8", "replace")[:4000], len(self._rest)
            )
            self._rest = b""
