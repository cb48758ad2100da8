"""The sandbox: a zygote, children that wait, and a queue of jobs before them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import anyio

from stackd.core.aside import aside_if
from stackd.core.clock import Clock
from stackd.core.events import EventBus
from stackd.core.json import Json
from stackd.sandbox.cgroups import Cgroups, CgroupsError, Group
from stackd.sandbox.errors import (
    SandboxError,
    SandboxPolicyViolationError,
    SandboxUnavailableError,
)
from stackd.sandbox.events import CodeRan, SandboxTried
from stackd.sandbox.levels import NAMES, Isolation, judged
from stackd.sandbox.limits import Limits
from stackd.sandbox.parked import Parked
from stackd.sandbox.process import INTERPRETER, ZygoteOptions
from stackd.sandbox.run import Job, Outcome, Run
from stackd.sandbox.zygote import Child, Zygote
from stackd.workflows.code import Slip
from stackd.workflows.model import Code

FORKS: Final = 10_000  # of one zygote; then another takes its place
INTERPRETER_LOOKS: Final = 10.0  # seconds between looks whether the interpreter was upgraded
CROWD: Final = 4 * (os.cpu_count() or 1)  # runs at a time that leave us our share of the CPU
# Priorities as of nice(1): a tenth of the CPU beside who wants all of it, which honest code needs on a busy machine;
# and a hundredth, for those beyond the crowd, without which they would leave us nothing.
LOWER: Final = 10
LOWEST: Final = 19
PROBE: Final = Path(__file__).with_name("probe.py")
SYNTAX: Final = Path(__file__).with_name("syntax.py")
PROBED: Final = "/etc/passwd"  # is there everywhere, and nobody's business
UNKNOWN: Final = "how well code is isolated here is being found out"
PROBE_LIMITS: Final = Limits(timeout=20.0, cpu_ms=10_000, memory_mb=64)
# Types of rules that are counted by themselves; what a run tells of itself may say anything.
RULES: Final = frozenset({"network-denied", "import-denied", "syscall-denied", "resource-limit"})


@dataclass(frozen=True, slots=True)
class SandboxOptions:
    """What the operator has chosen.

    Attributes:
        mode: `process` (an interpreter of its own for each run) or `worker` (a fork of a loaded one).
        required_level: below it nothing runs.
        at_once: runs at a time, in this process; more wait.
        parked: children that wait for their jobs in advance, once there has been a job.
        timeout: seconds of a run that nobody has given another.
        limits: that no workflow and no node can go over.
        beat, silence: seconds; as of `Job`.
        cgroup_root: the cgroup below which runs get theirs: `auto`, `none` or a path.
    """

    mode: str = "process"
    required_level: int = 2
    at_once: int = 16
    parked: int = 2
    timeout: float = 15.0
    limits: Limits = field(default_factory=lambda: Limits(timeout=300.0, scratch_mb=64))
    beat: float = 0.5
    silence: float = 3.0
    cgroup_root: str = "auto"
    zygote: ZygoteOptions = field(default_factory=ZygoteOptions)


class Sandbox:
    """Runs code. Used in its own `async with`; the zygote is started when it is first needed, or by `check`."""

    def __init__(
        self, options: SandboxOptions, *, clock: Clock, events: EventBus | None = None
    ) -> None:
        self.options = options
        self._clock = clock
        self._events = events
        self._places = anyio.Semaphore(options.at_once)
        self._starting = anyio.Lock()
        self._zygote: Zygote | None = None
        self._old: list[Zygote] = []
        self._interpreter: tuple[int, int] | None = None
        self._looked_at = 0.0
        self._parked: Parked | None = None
        self._groups: Cgroups | None = None
        self._ungrouped: str | None = None  # why runs have no cgroups
        self.isolation: Isolation | None = None
        self.trouble: str | None = None  # why there was no zygote when one was needed last
        self.waiting = self.running = 0

    async def __aenter__(self) -> Sandbox:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._drop_parked()
        with anyio.CancelScope(shield=True):
            for zygote in [*self._old, *filter(None, [self._zygote])]:
                await zygote.aclose()
            if self._groups is not None:
                await anyio.to_thread.run_sync(self._groups.close)

    # -- what it can do

    async def check(self) -> Isolation:
        """How well this host isolates, found out now if nobody has; raises SandboxUnavailableError."""
        await self._ready()
        assert self.isolation is not None  # noqa: S101  # a zygote is only taken once it is judged
        return self.isolation

    @property
    def pid(self) -> int | None:
        """Of the zygote, if there is one."""
        return None if self._zygote is None else self._zygote.pid

    @property
    def parked(self) -> int:
        """Children that wait for a job now."""
        return 0 if self._parked is None else len(self._parked)

    def problem(self) -> str | None:
        """Why no code is run now; also that nobody has found out yet how well it would be isolated."""
        found, needed = self.isolation, self.options.required_level
        if self.trouble is not None:
            return self.trouble
        if found is None:
            return UNKNOWN
        if found.level >= needed:
            return None
        return (
            f"this host isolates at level {found.level} ({found.name}), and {needed} ({NAMES[needed]}) is required: "
            f"{'; '.join(found.missing)}. STACKD_SANDBOX_REQUIRE_LEVEL={found.level} would accept it"
        )

    def told(self) -> dict[str, Json]:
        """What is known of how it isolates, as it is shown."""
        found = self.isolation if self.trouble is None else None
        known: dict[str, Json] = {"level": None} if found is None else found.told()
        return {"mode": self.options.mode, "required": self.options.required_level} | known

    # -- running

    async def run(self, job: Job) -> Outcome:
        """Run `job` and return how it ended, whatever the code did.

        Its own limits hold where they are tighter than the operator's. It waits for a place first.

        Raises:
            SandboxUnavailableError: nothing runs here; no code was run.
        Cancellation: the process is killed.
        """
        outcome = Outcome(verdict="aborted")
        try:
            outcome = await self._run(job)
        except SandboxUnavailableError:
            outcome.verdict = "unavailable"
            raise
        finally:
            self._tell(outcome)
        return outcome

    async def _run(self, job: Job) -> Outcome:
        own = self.options.limits
        limits = own.tightened(**{name: getattr(job.limits, name) for name in Limits.__slots__})
        job = replace(job, limits=limits, beat=self.options.beat, silence=self.options.silence)
        packages = self.options.zygote.packages is not None
        frame = await aside_if(job.is_large, lambda: job.told(packages=packages))
        async with self._place():
            zygote = await self._ready()
            if (problem := self.problem()) is not None:
                raise SandboxUnavailableError(problem)
            try:
                return await self._conduct(zygote, job, frame, self.options.mode)
            finally:
                if self._parked is not None:
                    self._parked.refill()
                if self._old:
                    await self._close_old()

    async def syntax(self, sources: Sequence[tuple[str, str]]) -> list[Slip | None]:
        """What keeps code from running, for each of (its text, its entry point); None where nothing does.

        It is read in a process of its own, never here: reading alone can take all memory there is.

        Raises:
            SandboxUnavailableError: nothing runs here.
            SandboxError: it could not be read within the limits.
        """
        code = await anyio.to_thread.run_sync(SYNTAX.read_text, "utf-8")
        params: dict[str, Json] = {"sources": [list(one) for one in sources]}
        job = Job(code, params, {}, filename="<syntax>", limits=PROBE_LIMITS, is_large=True)
        outcome = await self._run(job)
        if outcome.error is not None:
            raise outcome.error
        found = outcome.result
        assert isinstance(found, list)  # noqa: S101  # it is our own code
        return [
            None if one is None else Slip(one["message"], one["line"], one["column"])
            for one in found
        ]

    def syntax_from_thread(self, codes: Sequence[Code]) -> list[Slip | None] | str:
        """As of `SyntaxOf`, for a thread that the loop has started."""
        sources = [(one.code, one.entry_point) for one in codes]
        try:
            return anyio.from_thread.run(self.syntax, sources)
        except SandboxError as error:
            return error.message

    def _tell(self, outcome: Outcome) -> None:
        """Say how a run ended."""
        if self._events is None:
            return
        broken = [one.get("type") for one in outcome.violations]
        if isinstance(outcome.error, SandboxPolicyViolationError):
            broken.append(outcome.error.violation["type"])
        self._events.emit(
            CodeRan(
                self.options.mode,
                outcome.verdict,
                outcome.duration_ms / 1000,
                outcome.cpu_ms / 1000,
                outcome.was_parked,
                tuple(one if isinstance(one, str) and one in RULES else "other" for one in broken),
            )
        )

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._places.release()

    async def _conduct(self, zygote: Zygote, job: Job, frame: bytes, mode: str) -> Outcome:
        if mode == "worker" and not zygote.has_asyncio and "asyncio" in job.code:
            zygote.has_asyncio = True
            if self._parked is not None:
                self._parked.close()
        child, was_parked = await self._child(zygote, mode, job.limits)
        try:
            crowded = self.running > CROWD
            priority = LOWEST if crowded else LOWER
            run = Run(child, job, clock=self._clock, memory_by="rlimit", priority=priority)
            outcome = await run.conduct(frame)
            if job.limits.cpu_quota_ms is not None and child.group is None:
                outcome.not_enforced = ("cpuQuota",)
        finally:
            child.close()
        outcome.was_parked = was_parked
        return outcome

    async def _child(self, zygote: Zygote, mode: str, limits: Limits) -> tuple[Child, bool]:
        """A process for one job, and whether it was parked."""
        pool = self._parked
        if pool is not None and pool.zygote is zygote and not limits.scratch_mb:
            while (child := pool.take()) is not None:
                with suppress(SandboxUnavailableError):  # then there is another, or a fresh one
                    await zygote.begun(child)
                    await self._limited(child, limits)
                    return child, True
        born = self._clock.monotonic()
        group = await self._group(limits)
        child = await zygote.fork(mode, scratch_mb=limits.scratch_mb, born=born, group=group)
        return child, False

    async def _group(self, limits: Limits) -> Group | None:
        """A cgroup for one run, with its limits."""
        groups, most = self._groups, self._spares()
        if groups is None:
            return None

        def make() -> Group:
            made = groups.made()
            try:
                made.limit(limits)
                groups.stock(most)
            except BaseException:
                made.remove()
                raise
            return made

        try:
            return await anyio.to_thread.run_sync(make)
        except OSError as error:
            raise SandboxUnavailableError(f"there is no cgroup for a run: {error}") from error

    async def _limited(self, child: Child, limits: Limits) -> None:
        """`child`, which was parked, is bounded by its cgroup as `limits` say."""
        groups, group, most = self._groups, child.group, self._spares()
        if groups is None or group is None:
            return

        def limit() -> None:
            group.limit(limits)
            groups.stock(most)

        try:
            await anyio.to_thread.run_sync(limit)
        except BaseException as error:
            child.close()
            if isinstance(error, OSError):
                words = f"the cgroup of a run cannot be limited: {error}"
                raise SandboxUnavailableError(words) from error
            raise

    def _spares(self) -> int:
        """Groups that shall be there for processes that are parked next."""
        return 0 if self._parked is None else self.options.parked

    # -- the zygote

    async def _ready(self) -> Zygote:
        """A zygote that is alive, not worn out, of the interpreter that is there now, and whose runs were tried."""
        async with self._starting:
            zygote = self._zygote
            if zygote is not None and zygote.is_alive and zygote.forks < FORKS:
                if self._clock.monotonic() - self._looked_at < INTERPRETER_LOOKS:
                    return zygote
                if await self._identity() == self._interpreter:
                    return zygote
            if zygote is not None:
                self._zygote = None
                self._old.append(zygote)
                self._drop_parked()
            await self._close_old()
            self._interpreter = await self._identity()
            try:
                made = await self._fresh()
            except SandboxUnavailableError as error:
                self._note(error.message)
                raise
            except Exception as error:
                self._note(f"the sandbox cannot be tried: {error!r}")
                raise
            self._note(None)
            self._zygote = made
            self._parked = Parked(
                made,
                mode=self.options.mode,
                most=self.options.parked,
                clock=self._clock,
                groups=self._groups,
            )
            return made

    async def _close_old(self) -> None:
        """End those zygotes that were replaced and whose last run is over."""
        over = [one for one in self._old if not one.children]
        self._old = [one for one in self._old if one.children]
        with anyio.CancelScope(shield=True):
            for one in over:
                await one.aclose()

    async def _fresh(self) -> Zygote:
        """Another zygote, and how well it isolates."""
        await self._have_groups()
        made = await Zygote.started(self.options.zygote, clock=self._clock)
        try:
            if self._groups is not None:
                try:
                    await anyio.to_thread.run_sync(self._groups.adopt, made.pid)
                except CgroupsError as error:
                    await self._have_no_groups(error.reason)
            self.isolation = await self._tried(made)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await made.aclose()
            if self._groups is None or not isinstance(error, SandboxUnavailableError):
                raise
            # It may be for the cgroups that nothing runs, as where a daemon that is root forks as another user.
            await self._have_no_groups(
                f"runs cannot be had in {self._groups.path}: {error.message}"
            )
            return await self._fresh()
        return made

    async def _have_groups(self) -> None:
        """Cgroups for runs, where there can be any; an operator who names a place gets that or nothing."""
        if self._groups is not None or self._ungrouped is not None:
            return
        root = self.options.cgroup_root
        uid = self.options.zygote.uid if os.geteuid() == 0 else None
        try:
            self._groups = await anyio.to_thread.run_sync(lambda: Cgroups.opened(root, uid=uid))
        except CgroupsError as error:
            await self._have_no_groups(error.reason)

    async def _have_no_groups(self, reason: str) -> None:
        """Go on without cgroups, unless the operator has named a place for them."""
        groups, self._groups = self._groups, None
        if groups is not None:
            await anyio.to_thread.run_sync(groups.close)
        if self.options.cgroup_root not in ("auto", "none"):
            raise SandboxUnavailableError(f"SANDBOX_CGROUP_ROOT: {reason}")
        self._ungrouped = reason

    def _note(self, trouble: str | None) -> None:
        """Keep, and say, what came of making a zygote."""
        self.trouble = trouble
        if self._events is not None:
            found = self.isolation if trouble is None else None
            level = None if found is None else found.level
            needed = self.options.required_level
            self._events.emit(SandboxTried(self.options.mode, level, needed, self.problem()))

    async def _identity(self) -> tuple[int, int]:
        """Which interpreter there is now: an upgrade puts another file in its place."""
        self._looked_at = self._clock.monotonic()
        try:
            found = await anyio.to_thread.run_sync(Path(INTERPRETER).stat)
        except OSError:
            return (0, 0)
        return found.st_ino, found.st_mtime_ns

    async def _tried(self, zygote: Zygote) -> Isolation:
        """How well it isolates: what tries to get out of a run is told by what it managed."""
        groups = self._groups
        params: dict[str, Json] = {
            "file": PROBED,
            "memoryMb": PROBE_LIMITS.memory_mb,
            "group": "/sys/fs/cgroup" if groups is None else str(groups.path / "zygote"),
        }
        code = await anyio.to_thread.run_sync(PROBE.read_text, "utf-8")
        job = Job(code, params, {}, filename="<probe>", limits=PROBE_LIMITS)
        found = await self._conduct(zygote, job, job.told(packages=False), self.options.mode)
        if not isinstance(found.result, dict):
            words = found.error.message if found.error is not None else "it told nothing"
            raise SandboxUnavailableError(f"the sandbox does not run code here: {words}")
        failed = {str(name): str(what) for name, what in found.result.items()}
        job = replace(job, entry_point="attack")
        ended = await self._conduct(zygote, job, job.told(packages=False), self.options.mode)
        if ended.verdict != "policy":
            failed["attack"] = "was not ended"
        if groups is not None:
            job = replace(job, entry_point="bomb")
            ended = await self._conduct(zygote, job, job.told(packages=False), self.options.mode)
            if (by := ended.limited_by) != "cgroup":
                failed["bomb"] = f"took all memory of its cgroup and was ended by {by or 'nothing'}"
        return judged(zygote.layers, failed, cgroup=self._ungrouped)

    def _drop_parked(self) -> None:
        if self._parked is not None:
            self._parked.close()
            self._parked = None


__all__ = ["Sandbox", "SandboxOptions"]
