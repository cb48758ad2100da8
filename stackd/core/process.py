"""Which process this is, in a way that survives pid reuse and reboots."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process on this machine; equal only if it is the same run of the same process."""

    boot_id: str
    pid: int
    start_ticks: int  # clock ticks after boot, field 22 of /proc/PID/stat (proc(5))

    @property
    def id(self) -> str:
        return f"{self.boot_id}:{self.pid}:{self.start_ticks}"


def current_process() -> ProcessIdentity:
    pid = os.getpid()
    return ProcessIdentity(boot_id(), pid, start_ticks(pid) or 0)


def boot_id() -> str:
    return BOOT_ID.read_text().strip()


def start_ticks(pid: int) -> int | None:
    """When `pid` started, in ticks since boot; None if there is no such process (a zombie counts as none)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(b")")[2].split()  # the name in parentheses may hold anything
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether exactly this process still runs. A pid namespace that hides it makes this False."""
    return identity.boot_id == boot_id() and start_ticks(identity.pid) == identity.start_ticks
