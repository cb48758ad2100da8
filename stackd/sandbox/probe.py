"""Tries to get out, as code would, and tells what held. Read as a text and run in the sandbox itself, never imported."""

import ctypes
import os
import resource
import signal
import socket

DENIED = (OSError, ValueError, MemoryError)


def run(params, context):
    """`{name: what happened where it should not}`: empty where everything held."""
    attempts = {
        "files": lambda: open(params["file"], "rb").read(1),
        "names": lambda: os.stat(params["file"]),
        "processes": lambda: os.listdir("/proc"),
        "network": lambda: socket.socket(),
        "fork": fork,
        "writing": lambda: open("/tmp/stackd-probe", "w").close(),  # noqa: S108
        "signals": lambda: os.kill(os.getppid() or 1, 0),
        "limits": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)),
        "calls": lambda: os.memfd_create("probe"),
        "group": lambda: leave(params["group"]),
        "memory": lambda: bytearray((params["memoryMb"] + 128) << 20),
    }
    return {name: found for name, one in attempts.items() if (found := tried(one)) is not None}


def attack(params, context):
    """Ends the process, by the kernel."""
    calls().unshare(signal.SIGCHLD)
    return "it was not ended"


def bomb(params, context):
    """Outgrows its cgroup with memory that it has really written to."""
    return len([b"x" * (1 << 20) for _ in range(params["memoryMb"] + 16)])


def leave(group):
    """Raise what its own cgroup may take, or go to the one above."""
    denied = 0
    for name in ("memory.max", "cpu.max", "pids.max", "cgroup.procs", "../cgroup.procs"):
        try:
            open(f"{group}/{name}", "w").close()
        except OSError:
            denied += 1
    if denied == 5:
        raise PermissionError


def calls():
    return ctypes.CDLL(None, use_errno=True)


def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)


def tried(attempt):
    try:
        attempt()
    except DENIED:
        return None
    return "was not denied"
