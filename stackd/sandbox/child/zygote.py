"""The process that all others in here are forked from. It reads no byte that code or its authors have written.

It is started by the daemon with a socket of datagrams as file descriptor 3, goes into namespaces of its own
where the host allows that, and forks what it is asked for until the socket ends.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import socket
import sys
from typing import Any, Final, NoReturn

# Loaded here, once: what most jobs use.
import base64, datetime, decimal, hashlib, linecache, math, random, re, traceback, uuid  # noqa: E401, F401, isort: skip

from stackd.sandbox.child import bundle, linux, root, runner, seccomp
from stackd.sandbox.child.frames import CONTROL
from stackd.sandbox.child.places import SCRATCH

FILES: Final = 64  # open at once, in a run
TASKS: Final = 1000  # more of the user's, where a run cannot be counted by itself
# Of a core of 0 bytes a program that takes cores still gets all; of 1 byte nothing is made (core(5), `do_coredump`).
CORE: Final = 1


class Zygote:
    """Forks runs, and tells how they ended."""

    def __init__(
        self,
        control: socket.socket,
        layers: dict[str, Any],
        stage: str | None,
        packages: str | None,
        bundle_file: int,
    ) -> None:
        self._control = control
        self._layers = layers
        self._is_contained = stage is not None
        self._runs: dict[int, int] = {}  # pid: number
        self._packages = packages
        self._interpreter = root.interpreter()
        self._words = [
            self._interpreter,
            "-I",
            "-S",
            "-B",
            "-X",
            "utf8",
            "-c",
            bundle.BEGIN,
            "counts" if self._is_contained else "shares",
        ]
        self._bundle = bundle_file
        self._readable = self._shown()
        self._tasks = None if self._is_contained else _tasks_of(os.geteuid()) + TASKS
        self._programs = {
            (1, scratch, execs): seccomp.program(own_pid=1, scratch=scratch, execs=execs)
            for scratch in (False, True)
            for execs in (False, True)
        }  # for the first process of a namespace, which every run is that has one

    def _shown(self) -> list[str]:
        if self._is_contained:
            return ["/"]
        return [path for path in root.sources(self._packages).values() if os.path.exists(path)]

    def serve(self) -> None:
        """Until the socket ends, which it does with the daemon."""
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(woken, select.POLLIN)
        self._tell({"event": "ready", "layers": self._layers})
        while True:
            for number, _ in poll.poll():
                if number == woken:
                    os.read(woken, 4096)
                    self._reap()
                elif not self._take():
                    return

    def _tell(self, message: dict[str, Any], *files: int) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], list(files))
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise

    def _take(self) -> bool:
        """Do what is asked next; whether there is anybody to ask."""
        content, files, _, _ = socket.recv_fds(self._control, 65_536, 8)
        if not content:
            return False
        asked = json.loads(content)
        if asked["asyncio"]:
            self._load_asyncio()
        try:
            pid, pidfd = self._fork(asked, files)
        except OSError as error:
            self._tell({"event": "failed", "run": asked["run"], "error": str(error)})
        else:
            self._runs[pid] = asked["run"]
            self._tell({"event": "started", "run": asked["run"], "pid": pid}, pidfd)
            os.close(pidfd)
        finally:
            for one in files:
                os.close(one)
        return True

    def _load_asyncio(self) -> None:
        """Load it once for all that are forked from now on: each then takes a sixth longer, and is spared ten times that."""
        import stackd.sandbox.child.loop  # noqa: F401

    def _reap(self) -> None:
        while self._runs:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            run = self._runs.pop(pid, None)
            if run is not None:
                self._tell(
                    {
                        "event": "ended",
                        "run": run,
                        "status": status,
                        "cpuMs": round((used.ru_utime + used.ru_stime) * 1000, 3),
                        "maxRssBytes": used.ru_maxrss * 1024,
                    }
                )

    # -- a run

    def _fork(self, asked: dict[str, Any], files: list[int]) -> tuple[int, int]:
        if asked["scratchMb"] and not self._is_contained:  # it would be everybody's
            raise OSError(
                errno.EOPNOTSUPP, "a scratch folder needs namespaces, which are not to be had here"
            )
        flags = linux.NEWPID if self._is_contained else 0
        cgroup = files[3] if len(files) > 3 else None
        pid, pidfd = linux.fork(flags, cgroup)
        if pid == 0:
            self._become(asked, files)
        return pid, pidfd

    def _become(self, asked: dict[str, Any], files: list[int]) -> NoReturn:
        """The child's side: everything is closed and given up, then the job is awaited."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, place in zip(files[:3], (runner.JOB, 1, 2), strict=True):
                os.dup2(number, place)
            is_process = asked["mode"] == "process"
            if is_process:
                os.dup2(self._bundle, bundle.FILE)
                os.set_inheritable(bundle.FILE, True)  # noqa: FBT003  # it may have that number already
            linux.close_from(bundle.FILE + is_process)
            self._isolate(scratch=asked["scratchMb"], execs=is_process)
            if is_process:
                os.execve(self._interpreter, self._words, {})
            runner.main(counts_threads=self._is_contained)
        except BaseException as error:
            os.write(2, f"sandbox: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(70)

    def _isolate(self, *, scratch: int, execs: bool) -> None:
        linux.die_with_parent()
        os.umask(0o077)
        if self._is_contained:
            if scratch:
                root.mount_scratch(scratch)
            # Owns nothing, counts its threads by itself, and has no cgroup but its own to speak of.
            linux.unshare(linux.NEWUSER | linux.NEWCGROUP)
        for kind, most in (
            (resource.RLIMIT_CORE, CORE), (resource.RLIMIT_NOFILE, FILES), (resource.RLIMIT_MEMLOCK, 0),
            (resource.RLIMIT_MSGQUEUE, 0), (resource.RLIMIT_NPROC, self._tasks),
        ):  # fmt: skip
            _bound(kind, most)
        if self._is_contained or os.geteuid() != 0:
            linux.drop_capabilities()
        linux.no_new_privileges()
        linux.keep_memory_private()
        off = self._layers["off"]
        if self._layers["landlock"] and "landlock" not in off:
            linux.restrict_files(self._readable, [SCRATCH] if scratch else [])
        if self._layers["seccomp"] and "seccomp" not in off:
            linux.filter_calls(self._program(scratch=bool(scratch), execs=execs))

    def _program(self, *, scratch: bool, execs: bool) -> bytes:
        number = os.getpid()
        made = self._programs.get((number, scratch, execs))
        return made or seccomp.program(own_pid=number, scratch=scratch, execs=execs)


def main(asked: dict[str, Any]) -> None:
    """Take what the host gives of isolation, then serve. `asked`: what the daemon wants of it."""
    off = asked["off"]
    problems: dict[str, str] = {}
    stage: str | None = None
    is_root = os.geteuid() == 0
    uid, gid = (asked["uid"], asked["gid"]) if is_root else (os.geteuid(), os.getegid())
    os.umask(0o022)
    linux.limit_arenas()
    bundle_file = bundle.opened()
    bundle.keep_finding()
    sys.path.remove(asked["path"])
    try:
        if "namespaces" in off:
            _refuse()
        if is_root:
            linux.unshare(linux.NEWNS)
            stage = root.build(asked["packages"])
            _become_user(uid, gid)
        linux.unshare(
            linux.NEWUSER | linux.NEWNS | linux.NEWPID | linux.NEWNET | linux.NEWIPC | linux.NEWUTS
        )  # each run has a namespace of cgroups: we fork into groups that are beside ours
        linux.map_ids(uid, gid)
        if stage is None:
            stage = root.build(asked["packages"])
    except OSError as error:
        problems["namespaces"] = str(error)
        stage = None
        if is_root:
            _become_user(uid, gid)
    control = socket.socket(fileno=CONTROL)
    layers = {
        "namespaces": stage is not None,
        "seccomp": linux.MACHINE in ("x86_64", "aarch64"),
        "landlock": linux.landlock_version(),
        "uid": uid,
        "off": off,
        "problems": problems,
    }
    if stage is None:
        Zygote(control, layers, None, asked["packages"], bundle_file).serve()
        return
    if (
        pid := os.fork()
    ) > 0:  # the first one in a new namespace of processes is the one that all die with
        control.close()
        os.waitpid(pid, 0)
        return
    linux.die_with_parent()
    root.enter(stage)
    Zygote(control, layers, stage, asked["packages"], bundle_file).serve()


def _bound(kind: int, most: int | None) -> None:
    """Let that be the limit for good, or what is lower already. None: it stays."""
    if most is not None:
        _, hard = resource.getrlimit(kind)
        lowest = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (lowest, lowest))


def _tasks_of(uid: int) -> int:
    """How many threads of a user there are now, as far as they can be seen."""
    found = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdecimal() and os.stat(f"/proc/{name}").st_uid == uid:
                found += len(os.listdir(f"/proc/{name}/task"))
        except OSError:  # it has just ended
            continue
    return found


def _refuse() -> None:
    raise OSError(0, "switched off")


def _become_user(uid: int, gid: int) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        linux.stay_dumpable()  # else the maps of its ids are not its own to write


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
