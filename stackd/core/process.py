"""Which process this is, in a way that survives pid reuse, reboots and containers; what it keeps of freed memory."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

LARGE_BUFFER: Final = 1024 * 1024  # bytes
_M_MMAP_THRESHOLD: Final = -3  # of glibc's malloc.h


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process on this machine; equal only if it is the same run of the same process."""

    boot_id: str
    namespace: (
        int  # inode of its pid namespace: pids mean something only inside one (pid_namespaces(7))
    )
    pid: int
    start_ticks: int  # clock ticks after boot, field 22 of /proc/PID/stat (proc(5))

    @property
    def id(self) -> str:
        return f"{self.boot_id}:{self.namespace}:{self.pid}:{self.start_ticks}"

    @classmethod
    def of(cls, process_id: str) -> ProcessIdentity:
        """The process of that `id`."""
        boot, *numbers = process_id.split(":")
        return cls(boot, *map(int, numbers))


def current_process() -> ProcessIdentity:
    pid = os.getpid()
    return ProcessIdentity(boot_id(), pid_namespace(), pid, start_ticks("self") or 0)


def boot_id() -> str:
    return BOOT_ID.read_text().strip()


def pid_namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def start_ticks(pid: int | str) -> int | None:
    """When `pid` started, in ticks since boot; None if there is no such process (a zombie counts as none)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(b")")[2].split()  # the name in parentheses may hold anything
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def is_gone(identity: ProcessIdentity) -> bool:
    """Whether this process is proven to have ended.

    False also where nothing can be known: of a process in another pid namespace, such as another container
    on the same state directory, or where /proc shows another namespace than ours.
    """
    if identity.boot_id != boot_id():
        return True
    if identity.namespace != pid_namespace() or not _shows_our_pids():
        return False
    return start_ticks(identity.pid) != identity.start_ticks


def _shows_our_pids() -> bool:
    return Path("/proc/self").readlink().name == str(os.getpid())


def give_back_large_buffers() -> None:
    """From now on, freed buffers of a MiB or more go back to the system at once.

    Left to itself, glibc learns from each such buffer to keep the next: after a few bodies of ten megabytes
    it holds hundreds of them. Other C libraries have no such switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BUFFER)
