"""The system calls that code may make, as a BPF program: what is listed passes, attacks end the process, the rest is refused.

A list of what passes holds against calls that kernels do not have yet. A call that only an attack makes ends
the process (SIGSYS) and is told as a violation; any other gets EPERM, as libraries expect it.
"""

from __future__ import annotations

import errno
import struct
from resource import RLIMIT_CORE
from typing import Final

from stackd.sandbox.child.linux import IS_X86

_KILL, _ERRNO, _ALLOW = 0x8000_0000, 0x0005_0000, 0x7FFF_0000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST, _SECOND = (
    0,
    4,
    16,
    24,
)  # offsets in struct seccomp_data; low halves of arguments
_AUDIT_ARCH: Final = 0xC000_003E if IS_X86 else 0xC000_00B7
_X32: Final = 0x4000_0000  # calls of the x32 ABI are numbered from here on

_CLONE_THREAD, _CLONE_NEW = 0x0001_0000, 0x7E02_0080  # any namespace
# F_DUPFD F_GETFD F_SETFD F_GETFL F_SETFL F_DUPFD_CLOEXEC: no locks, leases or sizes of pipes, which are channels
_FCNTL: Final = (0, 1, 2, 3, 4, 1030)
_IOCTL: Final = (0x541B, 0x5451, 0x5450, 0x5421, 0x5401)  # FIONREAD FIOCLEX FIONCLEX FIONBIO TCGETS

# name: (x86_64, aarch64); None: that architecture has none
_PASS: Final[dict[str, tuple[int | None, int | None]]] = {
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None),
    "fstat": (5, 80), "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67), "pwrite64": (18, 68),
    "readv": (19, 65), "writev": (20, 66), "access": (21, None), "pipe": (22, None), "select": (23, None),
    "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None),
    "nanosleep": (35, 101), "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103),
    "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160), "getcwd": (79, 17), "chdir": (80, 49),
    "readlink": (89, None), "gettimeofday": (96, 169), "getrlimit": (97, 163), "getrusage": (98, 165),
    "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176),
    "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "getpgrp": (111, None),
    "getgroups": (115, 158), "getresuid": (118, 148), "getresgid": (120, 150), "getpgid": (121, 155),
    "getsid": (124, 156), "sigaltstack": (131, 132), "statfs": (137, 43), "fstatfs": (138, 44),
    "gettid": (186, 178), "time": (201, None), "futex": (202, 98), "sched_getaffinity": (204, 123),
    "getdents64": (217, 61), "restart_syscall": (219, 128), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "openat": (257, 56), "newfstatat": (262, 79), "readlinkat": (267, 78), "faccessat": (269, 48),
    "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99), "dup3": (292, 24),
    "pipe2": (293, 59), "getcpu": (309, 168), "getrandom": (318, 278), "membarrier": (324, 283),
    "statx": (332, 291), "rseq": (334, 293), "close_range": (436, 436), "faccessat2": (439, 439),
    "futex_waitv": (449, 449),
}  # fmt: skip

# With a scratch folder of its own, which is all that can be written.
_SCRATCH: Final[dict[str, tuple[int | None, int | None]]] = {
    "fsync": (74, 82), "fdatasync": (75, 83), "truncate": (76, 45), "ftruncate": (77, 46),
    "rename": (82, None), "mkdir": (83, None), "rmdir": (84, None), "unlink": (87, None),
    "mkdirat": (258, 34), "unlinkat": (263, 35), "renameat": (264, 38), "renameat2": (316, 276),
    "utimensat": (280, 88), "fallocate": (285, 47),
}  # fmt: skip

# The exec of a fresh interpreter, by ourselves; what runs then may exec again, and finds only that interpreter.
_EXEC: Final[dict[str, tuple[int | None, int | None]]] = {
    "execve": (59, 221), "arch_prctl": (158, None), "set_tid_address": (218, 96),
}  # fmt: skip

_ATTACK: Final[dict[str, tuple[int | None, int | None]]] = {
    "ptrace": (101, 117), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kexec_load": (246, 104),
    "init_module": (175, 105), "finit_module": (313, 273), "open_by_handle_at": (304, 265),
    "pidfd_getfd": (438, 438), "fsopen": (430, 430), "open_tree": (428, 428), "move_mount": (429, 429),
    "swapon": (167, 224), "reboot": (169, 142), "personality": (135, 92), "mount_setattr": (442, 442),
}  # fmt: skip

_CLONE: Final = 56 if IS_X86 else 220
_CLONE3: Final = 435
_FCNTL_CALL: Final = 72 if IS_X86 else 25
_IOCTL_CALL: Final = 16 if IS_X86 else 29
_TGKILL: Final = 234 if IS_X86 else 131
_PRLIMIT: Final = 302 if IS_X86 else 261


def program(*, own_pid: int, scratch: bool, execs: bool) -> bytes:
    """The program, as an array of struct sock_filter.

    Args:
        own_pid: the only process that may be signalled or limited, but for cores, of which there are none.
        scratch: whether files can be written at all.
        execs: whether a fresh interpreter is started under it.
    """
    passed = _PASS | (_SCRATCH if scratch else {}) | (_EXEC if execs else {})
    refused = _ERRNO | errno.EPERM
    found = [_one(_LOAD, _ARCH), _one(_EQUAL, _AUDIT_ARCH, 1, 0), _one(_RETURN, _KILL)]
    found += [_one(_LOAD, _NUMBER)]
    if IS_X86:
        found += [_one(_AT_LEAST, _X32, 0, 1), _one(_RETURN, _KILL)]
    for calls, verdict in ((passed, _ALLOW), (_ATTACK, _KILL)):
        for number in _numbers(calls):
            found += [_one(_EQUAL, number, 0, 1), _one(_RETURN, verdict)]
    # glibc falls back to clone, whose flags can be judged: they are no pointer
    found += [_one(_EQUAL, _CLONE3, 0, 1), _one(_RETURN, _ERRNO | errno.ENOSYS)]
    found += _when(
        _CLONE,
        [
            _one(_LOAD, _FIRST),
            _one(_ANY_BIT, _CLONE_NEW, 0, 1), _one(_RETURN, _KILL),
            _one(_ANY_BIT, _CLONE_THREAD, 0, 1), _one(_RETURN, _ALLOW),
            _one(_RETURN, refused),
        ],
    )  # fmt: skip
    found += _when(_TGKILL, _among(_FIRST, (own_pid,), refused))
    found += _when(
        _PRLIMIT,
        [
            _one(_LOAD, _FIRST), _one(_EQUAL, 0, 1, 0), _one(_EQUAL, own_pid, 0, 3),
            _one(_LOAD, _SECOND), _one(_EQUAL, RLIMIT_CORE, 1, 0), _one(_RETURN, _ALLOW),
            _one(_RETURN, refused),
        ],
    )  # fmt: skip
    found += _when(_FCNTL_CALL, _among(_SECOND, _FCNTL, refused))
    found += _when(_IOCTL_CALL, _among(_SECOND, _IOCTL, refused))
    found += [_one(_RETURN, refused)]
    return b"".join(found)


def _numbers(calls: dict[str, tuple[int | None, int | None]]) -> list[int]:
    return sorted(one for pair in calls.values() if (one := pair[0 if IS_X86 else 1]) is not None)


def _one(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _when(call: int, judged: list[bytes]) -> list[bytes]:
    """What judges one call; each way through it must return."""
    return [_one(_EQUAL, call, 0, len(judged)), *judged]


def _among(argument: int, allowed: tuple[int, ...], refused: int) -> list[bytes]:
    found = [_one(_LOAD, argument)]
    for value in allowed:
        found += [_one(_EQUAL, value, 0, 1), _one(_RETURN, _ALLOW)]
    return [*found, _one(_RETURN, refused)]
