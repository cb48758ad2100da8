"""A cgroup for each run, below the one that the service manager delegated to the daemon (cgroups(7), version 2).

    own group/supervisor            the daemon, which has to leave its own group before that gives controllers away
    own group/sandbox-PID-N         one sandbox, locked by its daemon: a lock that is free says that the daemon is dead
    own group/sandbox-PID-N/zygote  what forks the runs; the only move of a process, and one per zygote
    own group/sandbox-PID-N/7       a run, which is born in it (CLONE_INTO_CGROUP) and sees no file of it

What is made, limited and read for a run is done on a thread. What is written on the loop is `cgroup.kill` and rmdir(2)
of an empty group, each of which takes less than a fork by far.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stackd.sandbox.limits import MIB, Limits

LEAF: Final = "supervisor"  # as DelegateSubgroup= of our unit has it, too
CONTROLLERS: Final = ("cpu", "memory", "pids")
PERIOD_US: Final = 100_000  # of a CPU quota
BUSY_TRIES: Final = 50  # to remove a group whose processes were killed and are not gone yet
BUSY_NAP: Final = 0.02  # seconds between them
_DELEGATED: Final = ("user.delegate", "trusted.delegate")  # set to 1 by systemd


class CgroupsError(Exception):
    """There are no cgroups for runs. `reason`: why, as people are told."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Usage:
    """What a group has counted. `peak_bytes` is None before Linux 5.19."""

    oom_kills: int = 0
    peak_bytes: int | None = None
    cpu_ms: float = 0.0
    throttled: int = 0


# -- where we are


def own_group(cgroups: str) -> str:
    """Our group of version 2 from /proc/self/cgroup; raises CgroupsError."""
    for line in cgroups.splitlines():
        if line.startswith("0::/"):
            return line.removeprefix("0::")
    raise CgroupsError("this process is in no cgroup of version 2")


def mounted_at(mounts: str, group: str) -> Path:
    """The folder of `group`, by /proc/self/mountinfo; raises CgroupsError."""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if not after.startswith("cgroup2 "):
            continue
        top, place = (_unescaped(one) for one in before.split(" ")[3:5])
        if Path(group).is_relative_to(top):
            return Path(place) / Path(group).relative_to(top)
    raise CgroupsError(f"no cgroup file system of version 2 is mounted that has {group}")


def _unescaped(word: str) -> str:
    return word.encode().decode("unicode_escape") if "\\" in word else word


def base_of(group: Path) -> Path:
    """The delegated group: the one above, where we are in its leaf already."""
    return group.parent if group.name == LEAF else group


def counts(text: str) -> dict[str, int]:
    """The numbers of a file like memory.events, by name."""
    pairs = (line.split(" ", 1) for line in text.splitlines() if " " in line)
    return {name: int(value) for name, value in pairs if value.isdigit()}


def settings_of(limits: Limits) -> dict[str, str]:
    """What is written to which file of a run's group."""
    quota = limits.cpu_quota_ms
    return {
        # Files in the run's folder are memory, too, and counted here.
        "memory.max": str((limits.memory_mb + limits.scratch_mb) * MIB),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": f"{'max' if quota is None else quota * 1000} {PERIOD_US}",
        "pids.max": str(limits.threads + 1),
    }


# -- the groups


class Group:
    """The cgroup of one run, which has begun in it or will. `remove` once it has ended."""

    def __init__(self, owner: Cgroups, name: str, fd: int) -> None:
        self._owner = owner
        self.name = name
        self.fd = fd
        self._cpu_stat = -1

    @property
    def path(self) -> Path:
        return self._owner.path / self.name

    def limit(self, limits: Limits) -> None:
        """Bound it. Raises OSError; a kernel without swap accounting has no file for swap."""
        for file, value in settings_of(limits).items():
            try:
                _write(file, value, self.fd)
            except FileNotFoundError:
                if file != "memory.swap.max":
                    raise
        self._cpu_stat = os.open("cpu.stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)

    def kill(self) -> None:
        """End all that is in it (Linux 5.14); before its processes have begun there is nobody to end."""
        if self.fd >= 0:
            # It may be older, or gone: the end of the first process of its namespace is theirs, too.
            with contextlib.suppress(OSError):
                _write("cgroup.kill", "1", self.fd)

    def throttled(self) -> int:
        """In how many periods it has had to wait for its CPU quota. Reads a file that is open; takes microseconds."""
        if self._cpu_stat < 0:
            return 0
        try:
            return counts(os.pread(self._cpu_stat, 4096, 0).decode()).get("nr_throttled", 0)
        except OSError:  # somebody has removed the group
            return 0

    def usage(self) -> Usage:
        """What it has counted so far."""
        if self.fd < 0:
            return Usage()
        cpu, events = counts(_read("cpu.stat", self.fd)), counts(_read("memory.events", self.fd))
        peak = _read("memory.peak", self.fd).strip()
        return Usage(
            events.get("oom_kill", 0),
            int(peak) if peak.isdigit() else None,
            cpu.get("usage_usec", 0) / 1000,
            cpu.get("nr_throttled", 0),
        )

    def remove(self) -> None:
        """Remove it; where a process is on its way out of it still, that is done when the next one is made."""
        for number in (self.fd, self._cpu_stat):
            if number >= 0:
                os.close(number)
        if self.fd >= 0:
            self.fd = self._cpu_stat = -1
            self._owner.drop(self.name)


class Cgroups:
    """The cgroup of a sandbox, from `opened` to `close`. All that blocks; `spare` and `drop` do so for microseconds."""

    def __init__(self, path: Path, fd: int, *, uid: int | None) -> None:
        self.path = path
        self._fd = fd
        self._uid = uid  # who forks into it, where that is not who we are
        self._numbers = itertools.count(1)
        self._spares: deque[Group] = deque()
        self._busy: deque[str] = deque()

    @classmethod
    def opened(cls, root: str, *, uid: int | None = None) -> Cgroups:
        """A group for runs below `root`, which is `auto` or the path of a group; leftovers of dead daemons are removed.

        The process is moved to a leaf of its own group. Raises CgroupsError.
        """
        if root == "none":
            raise CgroupsError("SANDBOX_CGROUP_ROOT=none")
        try:
            own = mounted_at(_text("/proc/self/mountinfo"), own_group(_text("/proc/self/cgroup")))
            base = base_of(own)
            place = base if root == "auto" else _given(root, base)
            _check(base)
            _leave(base, own)
            for level in _from_to(base, place):
                _give(level)
            _sweep(place)
            path, fd = _locked(place)
            found = cls(path, fd, uid=uid)
            try:
                _give(path)
                (path / "zygote").mkdir()
                found._allow(path)
                found._allow(path / "zygote")
            except BaseException:
                found.close()
                raise
        except OSError as error:
            raise CgroupsError(_words(error)) from error
        return found

    def adopt(self, pid: int) -> None:
        """Move the zygote `pid` beside its runs to be: who forks into a group must be allowed to write where both are."""
        try:
            # The one that forks is the first process of its namespace, and a child of the one that was started.
            for one in [str(pid), *_text(f"/proc/{pid}/task/{pid}/children").split()]:
                (self.path / "zygote" / "cgroup.procs").write_text(one, encoding="ascii")
        except OSError as error:
            raise CgroupsError(_words(error)) from error

    def made(self) -> Group:
        """A group for one run, without limits yet. Raises OSError."""
        self._retry()
        name = str(next(self._numbers))
        os.mkdir(name, 0o755, dir_fd=self._fd)
        try:
            self._allow(self.path / name)
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        except BaseException:
            self.drop(name)
            raise
        return Group(self, name, fd)

    def stock(self, most: int) -> None:
        """Have `most` groups for runs that nobody has asked for yet."""
        while len(self._spares) < most:
            self._spares.append(self.made())

    def spare(self) -> Group | None:
        """One of the stock."""
        return self._spares.popleft() if self._spares else None

    def drop(self, name: str) -> None:
        """Remove the group `name`, now or later."""
        if self._fd < 0:
            return
        try:
            os.rmdir(name, dir_fd=self._fd)
        except FileNotFoundError:
            pass
        except OSError:
            self._busy.append(name)

    def close(self) -> None:
        """End all that is in it, and remove it; what cannot be is left for the next daemon."""
        if self._fd < 0:
            return
        while self._spares:
            self._spares.popleft().remove()
        fd, self._fd = self._fd, -1
        _remove(self.path)
        os.close(fd)  # and with it the lock

    def _retry(self) -> None:
        for _ in range(len(self._busy)):
            self.drop(self._busy.popleft())

    def _allow(self, path: Path) -> None:
        if self._uid is not None:
            os.chown(path / "cgroup.procs", self._uid, -1)


def _given(root: str, base: Path) -> Path:
    path = Path(root)
    if not path.is_dir():
        raise CgroupsError(f"{root} is no cgroup that is there")
    path = path.resolve()
    if not path.is_relative_to(base.resolve()):
        raise CgroupsError(f"{root} is not below the daemon's own cgroup, {base}")
    if LEAF in path.relative_to(base.resolve()).parts:
        raise CgroupsError(f"{root} is where the daemon itself is")
    return base / path.relative_to(base.resolve())


def _check(base: Path) -> None:
    """Whether `base` was given to us to make groups in. Root may write everywhere, and shall not."""
    if not os.access(base / "cgroup.procs", os.W_OK) or not os.access(base, os.W_OK):
        raise CgroupsError(f"{base} is not delegated: under systemd, Delegate=cpu memory pids")
    there = _text(base / "cgroup.controllers").split()
    if missing := [name for name in CONTROLLERS if name not in there]:
        raise CgroupsError(f"{base} has no {' and no '.join(missing)} controller")
    if os.geteuid() == 0 and not any(_has_mark(base, name) for name in _DELEGATED):
        raise CgroupsError(
            f"{base} is not marked as delegated: under systemd, Delegate=cpu memory pids"
        )


def _has_mark(path: Path, name: str) -> bool:
    try:
        return os.getxattr(path, name) == b"1"
    except OSError:
        return False


def _leave(base: Path, own: Path) -> None:
    """Go into the leaf: a group with processes of its own gives no controllers away (EBUSY)."""
    if own != base:
        return
    leaf = base / LEAF
    leaf.mkdir(exist_ok=True)
    (leaf / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    if others := _text(base / "cgroup.procs").split():
        (base / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        raise CgroupsError(f"{base} has other processes in it: {', '.join(others[:5])}")


def _from_to(base: Path, place: Path) -> Iterator[Path]:
    yield base
    for part in place.relative_to(base).parts:
        base /= part
        yield base


def _give(path: Path) -> None:
    """Let what is below `path` have limits."""
    wanted = " ".join(f"+{name}" for name in CONTROLLERS)
    (path / "cgroup.subtree_control").write_text(wanted, encoding="ascii")


def _locked(place: Path) -> tuple[Path, int]:
    for number in itertools.count():
        path = place / f"sandbox-{os.getpid()}-{number}"
        try:
            path.mkdir()
        except FileExistsError:  # of another sandbox of this process
            continue
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path, fd
    raise AssertionError  # numbers do not end


def _sweep(place: Path) -> None:
    """Remove what dead daemons have left."""
    for path in place.glob("sandbox-*-*"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:  # another one has removed it
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        except BlockingIOError:  # its daemon lives
            pass
        finally:
            os.close(fd)


def _remove(path: Path) -> None:
    """End all below `path` and remove it, within a second."""
    with contextlib.suppress(
        OSError
    ):  # Linux before 5.14; then it is for the end of the zygote to end them
        (path / "cgroup.kill").write_text("1", encoding="ascii")
    for _ in range(BUSY_TRIES):
        try:
            for child in path.iterdir():
                if child.is_dir():
                    child.rmdir()
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            time.sleep(BUSY_NAP)
        else:
            return


def _text(path: str | Path) -> str:
    return Path(path).read_text(encoding="utf-8")


def _read(file: str, directory: int) -> str:
    """The text of a file; nothing where the kernel has no such file, or somebody has removed the group."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return ""
    try:
        return os.read(fd, 4096).decode()
    except OSError:
        return ""
    finally:
        os.close(fd)


def _write(file: str, value: str, directory: int) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _words(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
