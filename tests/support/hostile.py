"""Code that means harm, by what it tries: each with what must become of it. The numbers are those of the catalogue of
hostile scenarios that the sandbox is held against.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any, Final

# What `attempt` gives where a thing was denied: the code is told so, and goes on.
DENIED: Final = "denied"

_ATTEMPT: Final = """
def attempt(function, *arguments):
    try:
        found = function(*arguments)
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        return "denied"
    return f"got {found!r}"[:100]
"""


@dataclass(frozen=True)
class Case:
    """One scenario.

    Attributes:
        verdicts: what may become of the run.
        result: what it gives where it ends well; DENIED: it says so, or a list of that.
        layers: those without which it would not hold.
        modes: in which it means something.
        level: from which on it holds.
        limits: of the run, besides the usual ones.
        quick: whether it ends by itself in a moment; others are ended by a limit.
    """

    number: str
    name: str
    source: str
    verdicts: tuple[str, ...] = ("ok",)
    result: Any = DENIED
    layers: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("worker", "process")
    level: int = 1
    limits: tuple[tuple[str, Any], ...] = ()

    @property
    def code(self) -> str:
        return _ATTEMPT + textwrap.dedent(self.source)


def _syscall(number: int, *arguments: int) -> str:
    given = ", ".join(map(str, (number, *arguments)))
    return f"""
        import ctypes
        def run(params, context):
            libc = ctypes.CDLL(None, use_errno=True)
            return "denied" if libc.syscall({given}) == -1 else "got it"
    """


def _case(number: str, name: str, source: str, **more: Any) -> Case:
    return Case(number, name, source, **more)


def _attacks() -> list[Case]:
    """System calls that only attacks make: the kernel ends the process."""
    calls = {  # x86_64
        "13 ptrace": (101, 0, 0, 0, 0), "14 process_vm_readv": (310, 1, 0, 0, 0, 0, 0), "15 unshare": (272, 0x10000000),
        "16 setns": (308, 0, 0), "17 mount": (165, 0, 0, 0, 0, 0), "17 pivot_root": (155, 0, 0), "17 chroot": (161, 0),
        "18 bpf": (321, 0, 0, 0), "19 perf_event_open": (298, 0, 0, 0, 0, 0), "20 userfaultfd": (323, 1),
        "21 io_uring_setup": (425, 1, 0), "22 add_key": (248, 0, 0, 0, 0, 0), "22 keyctl": (250, 0, 0, 0, 0, 0),
        "23 pidfd_getfd": (438, 3, 0, 0), "24 open_by_handle_at": (304, 0, 0, 0), "25 clone with NEWUSER": (56, 0x10000011, 0, 0, 0, 0),
        "27 personality": (135, 0x0040000),
    }  # fmt: skip
    return [
        _case(*name.split(" ", 1), _syscall(*call), verdicts=("policy",), layers=("seccomp",))
        for name, call in calls.items()
    ]


def _refused() -> list[Case]:
    """System calls that are refused: libraries may try them in good faith."""
    calls = {
        "23 pidfd_open": (434, 1, 0), "25 clone3": (435, 0, 0), "26 memfd_create": (319, 0, 0), "26 shmget": (29, 0, 4096, 0o1600),
        "26 mq_open": (240, 0, 0, 0, 0), "27 capset": (126, 0, 0), "27 seccomp": (317, 1, 0, 0), "27 setuid": (105, 0),
        "27 chmod": (90, 0, 0), "27 prctl": (157, 1, 0, 0, 0, 0), "29 clock_settime": (227, 0, 0), "29 timerfd": (283, 0, 0),
        "29 setpriority": (141, 0, 0, 5), "29 sched_setaffinity": (203, 0, 8, 0), "30 splice": (275, 0, 0, 1, 0, 1, 0),
        "30 inotify": (294, 0), "48 vsock": (41, 40, 1, 0), "48 netlink": (41, 16, 3, 0), "48 raw": (41, 2, 3, 1), "46 inet": (41, 2, 1, 0),
        "47 unix": (41, 1, 1, 0), "49 socketpair": (53, 1, 1, 0, 0), "42 symlink": (88, 0, 0), "42 mknod": (133, 0, 0, 0),
    }  # fmt: skip
    return [
        _case(*name.split(" ", 1), _syscall(*call), layers=("seccomp",))
        for name, call in calls.items()
    ]


CASES: Final[tuple[Case, ...]] = (
    _case("1", "the way over subclasses to a shell", """
        def run(params, context):
            import os
            found = [one for one in object.__subclasses__() if one.__name__ == "_wrap_close"]
            system = found[0].__init__.__globals__["system"] if found else os.system
            return "denied" if system("id") != 0 else "a shell"
    """, layers=("seccomp",)),
    _case("2", "exec of the interpreter", """
        import os, sys
        def run(params, context):
            return attempt(os.execv, sys.executable or "/bin/sh", ["x", "-c", "print(1)"])
    """, modes=("worker",), layers=("seccomp",)),
    _case("2", "exec of a shell", """
        import os
        def run(params, context):
            return attempt(os.execv, "/bin/sh", ["sh", "-c", "id"])
    """),
    _case("3", "a null pointer", """
        import ctypes
        def run(params, context):
            ctypes.string_at(0)
    """, verdicts=("crash",)),
    _case("4", "machine code with the calls of 32 bits", """
        import ctypes, mmap
        def run(params, context):
            page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            page.write(b"\\xb8\\x02\\x00\\x00\\x00\\xcd\\x80\\xc3")  # fork by int 0x80
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            return ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    """, verdicts=("policy", "crash"), layers=("seccomp",)),
    _case("5", "a call of the x32 ABI", _syscall(0x40000000 + 39), verdicts=("policy",), layers=("seccomp",)),
    _case("6", "what the collector knows", """
        import gc
        def run(params, context):
            texts = [one for one in gc.get_objects() if isinstance(one, dict)]
            return any("ENCRYPTION_MASTER_KEY" in one for one in texts) or "denied"
    """),
    _case("8", "builtins and json are other ones now", """
        import builtins, json, sys
        def run(params, context):
            json.dumps = lambda *a, **k: '{"type":"done","result":"forged"}'
            builtins.exec = builtins.compile = None
            sys.modules.clear()
            return "denied"
    """, verdicts=("ok", "error", "no result", "crash"), result=None),
    _case("10", "tracing and exits in destructors", """
        import sys
        class Late:
            def __del__(self):
                sys.exit(3)
        def run(params, context):
            sys.settrace(lambda *a: sys.exit(4))
            late = Late()
            del late
            return "denied"
    """, verdicts=("ok", "error"), result=None),
    _case("11", "constant folding", """
        def run(params, context):
            return len('a' * 2**34)
    """, verdicts=("memory",)),
    _case("12", "a module that is named like one of the library", """
        import json
        def run(params, context):
            return "denied" if json.__file__.startswith(("/usr", "/root", "/opt", "/home", "/")) else json.__file__
    """),
    *_attacks(),
    *_refused(),
    _case("27", "setuid by the library", """
        import os
        def run(params, context):
            return [attempt(os.setuid, 0), attempt(os.setgroups, [0])]
    """, result=[DENIED, DENIED]),
    _case("28", "typing into a terminal", """
        import fcntl
        def run(params, context):
            return attempt(fcntl.ioctl, 1, 0x5412, b"x")
    """),
    _case("31", "the users of the host", """
        def run(params, context):
            return attempt(lambda: open("/etc/passwd").read())
    """),
    _case("32", "what stands in /proc", """
        import os
        def run(params, context):
            places = ["/proc/1/environ", "/proc/self/environ", f"/proc/{os.getppid()}/environ", "/proc/self/maps"]
            return [attempt(lambda: open(place).read()) for place in places]
    """, result=[DENIED] * 4),
    _case("33", "the database", """
        import os
        def run(params, context):
            return attempt(lambda: open(params["store"], "rb").read(16))
    """),
    _case("34", "the environment", """
        import os
        def run(params, context):
            return "denied" if not os.environ else dict(os.environ)
    """),
    _case("35", "files that are open", """
        import os
        def run(params, context):
            found = []
            for number in range(1024):
                try:
                    os.fstat(number)
                except OSError:
                    continue
                found.append(number)
            return "denied" if found == [0, 1, 2, 3] else found
    """),
    _case("37", "names outside of the root", """
        import os
        def run(params, context):
            return attempt(os.stat, params["store"])
    """, level=2, layers=("namespaces",)),
    _case("38", "writing anywhere", """
        import os, sys
        def run(params, context):
            places = ["/", "/tmp", "/usr/lib", "/var/tmp", "/dev/shm", "/opt", os.path.dirname(os.__file__)]
            return [attempt(lambda: open(f"{place}/stackd-hostile", "w")) for place in places]
    """, result=[DENIED] * 7),
    _case("41", "leaving the cgroup", """
        def run(params, context):
            return attempt(lambda: open("/sys/fs/cgroup/cgroup.procs", "w").write("1"))
    """),
    _case("42", "links and pipes as results", """
        import os
        def run(params, context):
            return [attempt(os.symlink, "/etc/passwd", "/tmp/x"), attempt(os.link, "/tmp/y", "/tmp/x"), attempt(os.mkfifo, "/tmp/f")]
    """, result=[DENIED] * 3, limits=(("scratch_mb", 1),), level=2),
    _case("45", "the daemon's own API", """
        import socket
        def run(params, context):
            return attempt(socket.create_connection, ("127.0.0.1", 5000))
    """, layers=("seccomp",)),
    _case("46", "names and web pages", """
        import urllib.request
        def run(params, context):
            return attempt(urllib.request.urlopen, "http://127.0.0.1:5000/")
    """, layers=("seccomp",)),
    _case("51", "a fork bomb", """
        import os
        def run(params, context):
            return attempt(lambda: [os.fork() for _ in range(100)])
    """, layers=("seccomp",)),
    _case("52", "a thread bomb", """
        import threading, time
        def run(params, context):
            try:
                for _ in range(10_000):
                    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            except RuntimeError:
                return "denied"
    """, verdicts=("ok", "memory"), level=2),
    _case("53", "a child that outlives it", """
        import os
        def run(params, context):
            def leave():
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        import time
                        time.sleep(600)
                    os._exit(0)
            return attempt(leave)
    """, layers=("seccomp",)),
    _case("54", "killing everybody", """
        import os, signal
        def run(params, context):
            return [attempt(os.kill, -1, signal.SIGKILL), attempt(os.kill, 0, signal.SIGTERM), attempt(os.killpg, 0, signal.SIGTERM)]
    """, result=[DENIED] * 3, layers=("seccomp",)),
    _case("55", "a signal to a thread of another", """
        import ctypes, os
        def run(params, context):
            libc = ctypes.CDLL(None)
            return ["denied" if libc.syscall(234, pid, pid, 9) == -1 else "sent" for pid in (params["daemon"], os.getppid() or 2)]
    """, result=[DENIED] * 2),
    _case("56", "limits of another", """
        import resource
        def run(params, context):
            return attempt(resource.prlimit, params["daemon"], resource.RLIMIT_NOFILE, (0, 0))
    """),
    _case("57", "stopping itself", """
        import os, signal
        def run(params, context):
            signal.raise_signal(signal.SIGSTOP)
            return "denied"
    """, verdicts=("ok", "timeout", "heartbeat"), limits=(("timeout", 1.0),)),
    _case("60", "locks as a channel", """
        import fcntl, os
        def run(params, context):
            file = open(os.__file__)
            return [attempt(fcntl.lockf, file, fcntl.LOCK_SH | fcntl.LOCK_NB), attempt(fcntl.flock, file, fcntl.LOCK_SH | fcntl.LOCK_NB)]
    """, result=[DENIED] * 2, layers=("seccomp",)),
    _case("61", "leaving while a thread writes", """
        import os, threading
        def run(params, context):
            def shout():
                while True:
                    os.write(1, b"x" * 1000 + b"\\n")
            threading.Thread(target=shout, daemon=True).start()
            os._exit(0)
    """, verdicts=("no result",)),
    _case("62", "threads and handlers that hang at the end", """
        import atexit, threading, time
        def run(params, context):
            atexit.register(time.sleep, 600)
            threading.Thread(target=time.sleep, args=(600,)).start()
            return "denied"
    """),
    _case("63", "a large array", """
        def run(params, context):
            return len(bytearray(1 << 30))
    """, verdicts=("memory",)),
    _case("64", "large maps, private and shared", """
        import mmap
        def run(params, context):
            return [attempt(mmap.mmap, -1, 1 << 30), attempt(lambda: mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))]
    """, verdicts=("ok", "memory"), result=[DENIED] * 2),
    _case("65", "memory in pipes", """
        import fcntl, os
        def run(params, context):
            read, write = os.pipe()
            return attempt(fcntl.fcntl, write, 1031, 1 << 20)
    """, layers=("seccomp",)),
    _case("66", "many small objects", """
        def run(params, context):
            chain = None
            while True:
                chain = (chain, [None] * 10)
    """, verdicts=("memory", "cpu", "crash")),
    _case("67", "deep recursion", """
        import sys
        def run(params, context):
            sys.setrecursionlimit(10**9)
            def deeper():
                deeper()
            deeper()
    """, verdicts=("crash", "memory", "error", "cpu")),
    _case("68", "a full disk", """
        def run(params, context):
            return attempt(lambda: open("/tmp/x", "wb").write(bytes(8 << 20)))
    """, limits=(("scratch_mb", 1),), level=2),
    _case("69", "all inodes", """
        def run(params, context):
            return attempt(lambda: [open(f"/tmp/{n}", "w").close() for n in range(100_000)])
    """, limits=(("scratch_mb", 1),), level=2),
    _case("70", "all file descriptors", """
        import os
        def run(params, context):
            return attempt(lambda: [os.dup(1) for _ in range(100_000)])
    """),
    _case("71", "raising limits", """
        import resource
        def run(params, context):
            most = resource.RLIM_INFINITY
            kinds = (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)
            return [attempt(resource.setrlimit, kind, (most, most)) for kind in kinds]
    """, result=[DENIED] * 5),
    _case("72", "abort", """
        import os
        def run(params, context):
            os.abort()
    """, verdicts=("crash",)),
    _case("75", "a busy loop", """
        def run(params, context):
            while True:
                pass
    """, verdicts=("cpu",)),
    _case("76", "a tower of powers", """
        def run(params, context):
            return 9**9**9
    """, verdicts=("cpu", "memory")),
    _case("77", "a regular expression that backtracks", """
        import re
        def run(params, context):
            return re.match(r"(a+)+$", "a" * 64 + "b")
    """, verdicts=("cpu",)),
    _case("78", "every signal ignored", """
        import signal
        def run(params, context):
            for number in range(1, 32):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
            while True:
                pass
    """, verdicts=("cpu",)),
    _case("79", "sleep for ever", """
        import time
        def run(params, context):
            time.sleep(10**6)
    """, verdicts=("timeout",), limits=(("timeout", 0.5),)),
    _case("82", "four threads that burn", """
        import threading
        def run(params, context):
            def burn():
                while True:
                    pass
            threads = [threading.Thread(target=burn, daemon=True) for _ in range(4)]
            [one.start() for one in threads]
            burn()
    """, verdicts=("cpu",)),
    _case("86", "a flood of output", """
        import os
        def run(params, context):
            while True:
                os.write(1, b"x" * 65536)
    """, verdicts=("output", "cpu")),
    _case("87", "output that looks like a result", """
        def run(params, context):
            print('{"type":"done","result":"forged"}')
            return "denied"
    """),
    _case("88", "a flood as the result", """
        def run(params, context):
            return "x" * (64 << 20)
    """, verdicts=("output", "memory")),
    _case("89", "a lie about the length", """
        import os
        def run(params, context):
            os.write(3, b"\\xff\\xff\\xff\\xff" + b"x" * 100)
            import time
            time.sleep(60)
    """, verdicts=("output",)),
    _case("90", "two results", """
        import os, struct
        def run(params, context):
            for text in (b'{"type":"done","result":"first"}', b'{"type":"done","result":"second"}'):
                os.write(3, struct.pack(">I", len(text)) + text)
            return "third"
    """, result="first"),
    _case("91", "a byte at a time", """
        import os, struct, time
        def run(params, context):
            for one in struct.pack(">I", 1000) + b"x" * 1000:
                os.write(3, bytes([one]))
                time.sleep(0.05)
    """, verdicts=("timeout",), limits=(("timeout", 0.5),)),
    *(
        _case("92", name, f"""
        import os, struct
        def run(params, context):
            text = {text}
            os.write(3, struct.pack(">I", len(text)) + text)
            import time
            time.sleep(60)
    """, verdicts=("bad result",))
        for name, text in {
            "a result too deep": "b'{\"type\":\"done\",\"result\":' + b'[' * 200_000 + b']' * 200_000 + b'}'",
            "a result that is no number": "b'{\"type\":\"done\",\"result\":NaN}'",
            "a result with a key twice": "b'{\"type\":\"done\",\"type\":\"done\"}'",
            "a result that is no message": "b'[1]'",
            "a result that is half a character": "b'{\"type\":\"done\",\"result\":\"\\\\ud800\"}'",
            "a result that is no JSON": "b'hello'",
        }.items()
    ),
    _case("93", "an object with a trap", """
        import os
        class Trap:
            def __reduce__(self):
                return os.system, ("id",)
        def run(params, context):
            return Trap()
    """, verdicts=("error",)),
    _case("94", "an end without a result", """
        import os
        def run(params, context):
            os._exit(0)
    """, verdicts=("no result",)),
    _case("95", "closing all files", """
        import os
        def run(params, context):
            os.closerange(0, 1024)
            return "denied"
    """, verdicts=("no result", "crash")),
    _case("96", "escapes and log lines", """
        def run(params, context):
            print("\\x1b[2J\\x1b]0;title\\x07" + '{"level":"error","event":"forged"}')
            return "denied"
    """),
    _case("97", "claims about itself", """
        import os, struct
        def run(params, context):
            text = b'{"type":"done","result":"denied","cpuMs":0,"status":0,"isolation":{"level":3}}'
            os.write(3, struct.pack(">I", len(text)) + text)
            import time
            time.sleep(60)
    """),
    _case("x1", "a flood of beats", """
        import os, struct
        def run(params, context):
            text = b'{"type":"beat"}'
            frame = (struct.pack(">I", len(text)) + text) * 1000
            while True:
                os.write(3, frame)
    """, verdicts=("output", "cpu")),
    _case("x2", "a flood of violations", """
        import os, struct
        def run(params, context):
            text = b'{"type":"violation","event":{"type":"' + b"x" * 1000 + b'"}}'
            frame = (struct.pack(">I", len(text)) + text) * 100
            while True:
                os.write(3, frame)
    """, verdicts=("output", "cpu")),
    _case("x3", "a flood of requests", """
        import os, struct
        def run(params, context):
            text = b'{"type":"call","call":{"url":"http://x"}}'
            frame = (struct.pack(">I", len(text)) + text) * 1000
            while True:
                os.write(3, frame)
    """, verdicts=("output", "cpu", "timeout", "heartbeat"), limits=(("timeout", 1.0),)),
    _case("x4", "living on without a parent", """
        import ctypes
        def run(params, context):
            return "denied" if ctypes.CDLL(None).prctl(1, 0) == -1 else "it may"
    """, layers=("seccomp",)),
    _case("x5", "exec of the interpreter again, and out", """
        import os, sys
        def run(params, context):
            os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", "import os; os.fork(); os.write(3, b'hello')"])
    """, modes=("process",), verdicts=("bad result", "no result", "crash", "output")),
)  # fmt: skip
