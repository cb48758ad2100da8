"""System calls that the standard library has no name for, on x86_64 and aarch64. Each raises OSError, named."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
from typing import Any, Final

MACHINE: Final = platform.machine()
IS_X86: Final = MACHINE == "x86_64"

# Flags of unshare and clone3, from sched.h.
NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000
NEWUSER, NEWPID, NEWNET = 0x1000_0000, 0x2000_0000, 0x4000_0000
_PIDFD, _INTO_CGROUP = 0x1000, 0x2_0000_0000
_CHILD_SETTID, _CHILD_CLEARTID = 0x0100_0000, 0x0020_0000
# Flags of mount and mount_setattr, from mount.h.
NOSUID, NODEV, NOEXEC = 2, 4, 8
_BIND, _REC, _PRIVATE, _DETACH = 4096, 16384, 1 << 18, 2
ATTR_READ_ONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
# Options of prctl.
_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP = 1, 4, 22
_NO_NEW_PRIVS, _GET_TID_ADDRESS = 38, 40
_SECCOMP_FILTER = 2
_CAPABILITY_VERSION_3 = 0x2008_0522

_NUMBERS: Final = {  # (x86_64, aarch64)
    "pivot_root": (155, 41), "capset": (126, 91), "clone3": (435, 435), "close_range": (436, 436),
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446), "mount_setattr": (442, 442),
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _fail(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def _syscall(name: str, *arguments: Any) -> int:
    number = _NUMBERS[name][0 if IS_X86 else 1]
    given = [
        ctypes.c_long(one) if isinstance(one, int) else ctypes.c_void_p() if one is None else one
        for one in arguments
    ]
    found = int(_libc.syscall(ctypes.c_long(number), *given))
    if found < 0:
        raise _fail(name)
    return found


def _prctl(what: str, option: int, *arguments: int) -> None:
    given = [ctypes.c_ulong(one) for one in (*arguments, 0, 0, 0, 0)[:4]]
    if _libc.prctl(ctypes.c_int(option), *given) < 0:
        raise _fail(what)


# -- namespaces and mounts


def unshare(flags: int) -> None:
    if _libc.unshare(ctypes.c_int(flags)) != 0:
        raise _fail("unshare")


def map_ids(uid: int, gid: int) -> None:
    """Let this process, new in a user namespace, be `uid` and `gid` in it too, and nobody else (user_namespaces(7))."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        file = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    given = [None if one is None else os.fsencode(one) for one in (source, target, kind)]
    if _libc.mount(*given, ctypes.c_ulong(flags), options.encode()) != 0:
        raise _fail(f"mount on {target}")


def keep_mounts_private() -> None:
    mount(None, "/", None, _REC | _PRIVATE)


def bind(source: str, target: str) -> None:
    mount(source, target, None, _BIND | _REC)


def set_mount(target: str, attributes: int) -> None:
    """Add attributes to a mount and all below it (mount_setattr(2), Linux 5.12)."""
    attr = struct.pack("<QQQQ", attributes, 0, 0, 0)
    _syscall(
        "mount_setattr", _AT_FDCWD, ctypes.c_char_p(os.fsencode(target)), _AT_RECURSIVE,
        ctypes.c_char_p(attr), len(attr),
    )  # fmt: skip


def pivot_into(folder: str) -> None:
    """Let `folder`, a mount, be the root of all there is; what was above it is gone."""
    os.chdir(folder)
    _syscall("pivot_root", ctypes.c_char_p(b"."), ctypes.c_char_p(b"."))
    if _libc.umount2(b".", _DETACH) != 0:
        raise _fail("umount of the old root")
    os.chdir("/")


# -- processes


class _CloneArgs(ctypes.Structure):
    _fields_ = tuple(  # type: ignore[mutable-override]  # it may be any sequence
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls",
            "set_tid", "set_tid_size", "cgroup",
        )
    )  # fmt: skip


def fork(flags: int, cgroup: int | None = None) -> tuple[int, int]:
    """As os.fork, in one call into new namespaces and a cgroup (clone3, Linux 5.7): (pid, pidfd), (0, -1) in the child."""
    pidfd, tid = ctypes.c_int(-1), ctypes.c_void_p()
    _prctl("prctl(GET_TID_ADDRESS)", _GET_TID_ADDRESS, ctypes.addressof(tid))
    arguments = _CloneArgs(
        # glibc remembers the thread's id where the kernel is told to write the new one
        flags=flags | _PIDFD | _CHILD_SETTID | _CHILD_CLEARTID,
        pidfd=ctypes.addressof(pidfd),
        child_tid=tid.value or 0,
        exit_signal=signal.SIGCHLD,
    )
    if cgroup is not None:
        arguments.flags |= _INTO_CGROUP
        arguments.cgroup = cgroup
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _libc.syscall(
        ctypes.c_long(_NUMBERS["clone3"][0]),
        ctypes.byref(arguments),
        ctypes.c_long(ctypes.sizeof(arguments)),
    )
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    error = _fail("clone3")
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise error
    return int(pid), pidfd.value


def close_from(first: int) -> None:
    _syscall("close_range", first, 0xFFFF_FFFF, 0)


def die_with_parent() -> None:
    _prctl("prctl(PDEATHSIG)", _PDEATHSIG, signal.SIGKILL)


def stay_dumpable() -> None:
    """Own the files of this process in /proc, also after a change of user."""
    _prctl("prctl(DUMPABLE)", _SET_DUMPABLE, 1)


def keep_memory_private() -> None:
    """No core, and nothing of this process to read in /proc, for others of the same user either. An exec ends it."""
    _prctl("prctl(DUMPABLE)", _SET_DUMPABLE, 0)


def limit_arenas() -> None:
    """One arena of malloc for all threads: each more would reserve 64 MiB of what RLIMIT_AS leaves."""
    _libc.mallopt(ctypes.c_int(-8), ctypes.c_int(1))  # M_ARENA_MAX; not there with musl, nor needed


def drop_capabilities() -> None:
    """Have none, for good once there are no new privileges: then no program that is started gives any (capabilities(7))."""
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    _syscall("capset", ctypes.c_char_p(header), ctypes.c_char_p(bytes(24)))


def no_new_privileges() -> None:
    _prctl("prctl(NO_NEW_PRIVS)", _NO_NEW_PRIVS, 1)


# -- seccomp and Landlock


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))  # type: ignore[mutable-override]  # as above


def filter_calls(program: bytes) -> None:
    """Judge every system call of this thread, and of those it starts, by a BPF program from now on."""
    buffer = ctypes.create_string_buffer(program, len(program))
    one = _Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    _prctl("prctl(SECCOMP)", _SET_SECCOMP, _SECCOMP_FILTER, ctypes.addressof(one))


def landlock_version() -> int:
    """0 where the kernel has none, or does not use it."""
    try:
        return _syscall("landlock_create_ruleset", None, 0, 1)
    except OSError:
        return 0


_FILE, _READ, _EVERYTHING = 0b0111, 0b1101, (1 << 13) - 1  # execute write read; execute read list


def restrict_files(readable: list[str], writable: list[str]) -> None:
    """Landlock: read and execute below `readable`, all below `writable`, nothing else; no TCP, no signals out.

    As far as the kernel's version goes (landlock(7)).
    """
    version = landlock_version()
    files = _EVERYTHING
    for since, right in ((2, 13), (3, 14), (5, 15)):
        files |= (1 << right) if version >= since else 0
    attr = struct.pack("<Q", files)
    attr += struct.pack("<Q", 3) if version >= 4 else b""
    attr += struct.pack("<Q", 3) if version >= 6 else b""
    rules = _syscall("landlock_create_ruleset", ctypes.c_char_p(attr), len(attr), 0)
    for paths, rights in ((readable, _READ), (writable, files)):
        for path in paths:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = rights if os.path.isdir(path) else rights & _FILE & files
            rule = struct.pack("<Qi", allowed, place)
            _syscall("landlock_add_rule", rules, 1, ctypes.c_char_p(rule), 0)
            os.close(place)
    _syscall("landlock_restrict_self", rules, 0)
    os.close(rules)
