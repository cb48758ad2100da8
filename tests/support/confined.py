"""Runs in place of the daemon, as its unit has it run: tries what must be refused, and what sandboxes will be made of.

Prints an object of JSON: each try by its name, with "ok" or the name of the error. A try is a child of its own, so that
none spoils the next. It is a script for any Python 3.11; what namespaces and filters need is called by number (x86-64).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
INTO_CGROUP = 0x200000000
PTRACE, PERSONALITY, PIVOT_ROOT, INIT_MODULE = 101, 135, 155, 175
SECCOMP, CLONE3, LANDLOCK_CREATE = 317, 435, 444
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 262144
CGROUPS = Path("/sys/fs/cgroup")
HOG_BYTES = 80 << 20

libc = ctypes.CDLL(None, use_errno=True)


def call(function: Callable[..., int], *words: object) -> int:
    ctypes.set_errno(0)
    result = function(*words)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def system_call(number: int, *words: object) -> int:
    return call(libc.syscall, ctypes.c_long(number), *words)


def mount(source: str, place: Path, kind: str | None = None, flags: int = 0) -> None:
    kind_given = kind.encode() if kind else None
    call(libc.mount, source.encode(), bytes(place), kind_given, ctypes.c_ulong(flags), None)


def unshare(more: int = 0) -> None:
    """Be root of a user namespace, and of what else is asked for."""
    user, group = os.getuid(), os.getgid()
    call(libc.unshare, NEWUSER | more)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def folder() -> Path:
    return Path(tempfile.mkdtemp())


# -- what must be refused


def write_etc() -> None:
    Path("/etc/confined").write_text("")


def list_home() -> None:
    list(Path("/home").iterdir())


def list_modules() -> None:
    list(Path("/usr/lib/modules").iterdir())


def load_module() -> None:
    system_call(INIT_MODULE, None, ctypes.c_ulong(0), b"")


def set_clock() -> None:
    time.clock_settime(time.CLOCK_REALTIME, time.time())


def see_others() -> None:
    Path("/proc/1/status").read_text()


def see_disk() -> None:
    Path("/dev/nvme0n1").stat()


def see_files_of_others() -> None:
    Path("/tmp/of-others").read_text()


def set_user_on_execution() -> None:
    (folder() / "file").touch(mode=0o4700)
    file = folder() / "file"
    file.touch()
    file.chmod(0o4700)


def other_socket() -> None:
    socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).close()


def change_personality() -> None:
    system_call(PERSONALITY, ctypes.c_ulong(0x0040000))  # no addresses by chance


def be_traced() -> None:
    system_call(PTRACE, 0, 0, 0, 0)


def run_first() -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def be_root() -> None:
    os.setuid(0)


def make_cgroup_of_others() -> None:
    (CGROUPS / "system.slice/confined").mkdir()


def set_hostname() -> None:
    """Its own, even: a sandbox has the name that it is born with."""
    unshare(NEWUTS)
    socket.sethostname("box")


# -- what sandboxes will be made of


def user_namespace() -> None:
    unshare()


def mounts() -> None:
    unshare(NEWNS)
    place = folder()
    mount("none", place, "tmpfs")
    (place / "usr").mkdir()
    mount("/usr", place / "usr", None, BIND | REC)
    # What the unit has forbidden of a mount stays so, and has to be said again.
    mount("none", place / "usr", None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)


def root_of_its_own() -> None:
    unshare(NEWNS)
    mount("none", Path("/"), None, REC | PRIVATE)
    place = folder()
    mount("none", place, "tmpfs")
    (place / "before").mkdir()
    os.chdir(place)
    system_call(PIVOT_ROOT, b".", b"before")


def processes() -> None:
    unshare(NEWPID)
    if (child := os.fork()) == 0:
        os._exit(os.getpid() != 1)
    assert os.waitpid(child, 0)[1] == 0


def network() -> None:
    unshare(NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1 | 64))  # up, running


def names() -> None:
    unshare(NEWUTS | NEWIPC | NEWCGROUP)


def system_call_filter() -> None:
    call(libc.prctl, 38, 1, 0, 0, 0)  # no new privileges
    allow = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(allow)))
    system_call(SECCOMP, 1, 0, program)


def landlock() -> None:
    system_call(LANDLOCK_CREATE, None, ctypes.c_ulong(0), 1)  # which version there is


def signals_by_descriptor() -> None:
    if (child := os.fork()) == 0:
        signal.pause()
    descriptor = os.pidfd_open(child)
    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    os.waitpid(child, 0)


def limits() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    os.nice(5)


# -- and cgroups below its own, which need one after the other


class Box:
    """A cgroup with limits below our own."""

    def __init__(self) -> None:
        path = Path("/proc/self/cgroup").read_text().strip().split("::")[1]
        top = CGROUPS / path.lstrip("/")
        leaf = top / "supervisor"  # a cgroup gives controllers away only while no process is in it
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text(str(os.getpid()))
        (top / "cgroup.subtree_control").write_text("+cpu +memory +pids")
        self.path = top / "box"
        self.path.mkdir()
        for name, value in {
            "memory.max": "24M", "pids.max": "5", "cpu.max": "20000 100000"
        }.items():  # fmt: skip
            (self.path / name).write_text(value)

    def ended(self, act: Callable[[], object]) -> int:
        """How a child in it ends that does `act`: as Popen.returncode has it, an error as its number."""
        if (child := os.fork()) == 0:
            try:
                (self.path / "cgroup.procs").write_text("0")
                act()
            except OSError as error:
                os._exit(error.errno or 255)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def bounds_processes(self) -> None:
        def fork() -> None:
            for _ in range(10):
                if os.fork() == 0:
                    signal.pause()

        assert self.ended(fork) == errno.EAGAIN

    def bounds_memory(self) -> None:
        assert self.ended(lambda: bytearray(HOG_BYTES)) == -signal.SIGKILL

    def bounds_time(self) -> None:
        def burn() -> None:
            until = time.monotonic() + 2
            while time.monotonic() < until:
                pass
            os._exit(0 if time.process_time() < 1.2 else 1)  # of what was ours before, too

        assert self.ended(burn) == 0

    def takes_children(self) -> None:
        """Born in it, in namespaces of its own: no moment outside."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        flags = NEWUSER | NEWPID | NEWNS | INTO_CGROUP
        given = struct.pack("11Q", flags, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, descriptor)
        child = system_call(CLONE3, ctypes.create_string_buffer(given), ctypes.c_ulong(len(given)))
        if child == 0:
            signal.pause()
        inside = str(child) in (self.path / "cgroup.procs").read_text().split()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert inside

    def is_killed(self) -> None:
        """All that is in it, those of the tries before included."""
        (self.path / "cgroup.kill").write_text("1")

    def goes(self) -> None:
        deadline = time.monotonic() + 20
        while "populated 1" in (self.path / "cgroup.events").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.path.rmdir()


REFUSED = (
    write_etc, list_home, list_modules, load_module, set_clock, see_others, see_disk, see_files_of_others,
    set_user_on_execution, other_socket, change_personality, be_traced, run_first, be_root, make_cgroup_of_others,
    set_hostname,
)  # fmt: skip
NEEDED = (
    user_namespace, mounts, root_of_its_own, processes, network, names, system_call_filter, landlock,
    signals_by_descriptor, limits,
)  # fmt: skip


def outcome(act: Callable[[], object]) -> str:
    try:
        act()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except Exception as error:  # noqa: BLE001  # what was tried did nothing, or something else
        return repr(error)
    return "ok"


def apart(act: Callable[[], object]) -> str:
    """`outcome`, in a child."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        tell(writer, outcome(act))
    os.close(writer)
    with os.fdopen(reader) as told:
        found = told.read()
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return found or f"ended with {ended}"


def tell(descriptor: int, text: str) -> NoReturn:
    os.write(descriptor, text.encode())
    os._exit(0)


def main() -> None:
    found = {act.__name__: apart(act) for act in (*REFUSED, *NEEDED)}
    if "--cgroups" in sys.argv:
        box = Box()
        for act in (
            box.bounds_processes, box.bounds_memory, box.bounds_time, box.takes_children, box.is_killed, box.goes,
        ):  # fmt: skip
            found[f"box_{act.__name__}"] = outcome(act)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
