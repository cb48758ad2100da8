"""Scenarios 51 to 85: processes, memory, disk, descriptors and time."""

from __future__ import annotations

from typing import Final

from support.hostile.case import Case, attempt

CPU: Final = {"cpu_ms": 150, "timeout": 20.0}
SHORT: Final = {"timeout": 0.4}

PROCESSES: Final = [
    Case(51, "fork bomb", """
        def run(params, context):
            return each(os.fork, os.forkpty, lambda: call(58, None), lambda: os.posix_spawn("/bin/sh", ["sh"], {}),
                        lambda: __import__("subprocess").run(["sh"]))
    """, layers=("seccomp",)),
    Case(52, "thread bomb", """
        def run(params, context):
            threading.stack_size(32768)
            stop = threading.Event()
            count = 0
            try:
                while count < 3000:
                    threading.Thread(target=stop.wait, daemon=True).start()
                    count += 1
            except UNSEEN:
                pass
            return "held" if count < params["mostThreads"] else f"{count} threads"
    """, ("ok", "crash", "memory"), filtered=("ok", "crash", "memory", "timeout"), limits={"timeout": 1.5}),
    Case(53, "double fork", """
        def run(params, context):
            return each(os.setsid, lambda: os.setpgid(0, 0), lambda: call(112, 157), lambda: call(57, None))
    """, layers=("seccomp",)),
    attempt(54, "signals to all", """
        os.kill(-1, 0)
        os.kill(-1, 9)
        os.kill(0, 9)
        os.killpg(0, 9)
        os.killpg(os.getpgrp() or 1, 0)
    """, layers=("seccomp",)),
    attempt(55, "signals to the daemon", """
        call(234, 131, params["daemon"], params["daemon"], 0)
        call(234, 131, params["zygote"], params["zygote"], 9)
        call(200, 130, params["daemon"], 0)
        call(129, 138, params["daemon"], 9, ctypes.create_string_buffer(128))
        call(297, 240, params["daemon"], params["daemon"], 9, ctypes.create_string_buffer(128))
        os.kill(params["daemon"], 0)
        os.kill(params["zygote"], 9)
        os.kill(os.getppid() or params["zygote"], 9)
    """),
    attempt(56, "limits of the daemon", """
        resource.prlimit(params["daemon"], resource.RLIMIT_NOFILE, (0, 0))
        resource.prlimit(params["zygote"], resource.RLIMIT_NOFILE)
        resource.prlimit(os.getppid() or params["zygote"], resource.RLIMIT_CPU, (0, 0))
        call(141, 140, 0, params["daemon"], 19)
    """),
    Case(57, "stopping itself", """
        def run(params, context):
            call(234, 131, os.getpid(), threading.get_native_id(), signal.SIGSTOP)
            return "held"
    """, filtered=("timeout",), limits=SHORT, waits=True),
    Case(58, "zombies", """
        def run(params, context):
            return each(*[os.fork] * 10_000)
    """, layers=("seccomp",)),
    attempt(60, "locks of files", """
        __import__("fcntl").flock(os.open(os.__file__, 0), 2)
        __import__("fcntl").lockf(os.open(os.__file__, 0), 1)
        __import__("fcntl").fcntl(os.open(os.__file__, 0), 1024, 0)
        __import__("fcntl").fcntl(1, 1031, 1048576)
        __import__("fcntl").fcntl(1, 8, os.getppid() or 1)
        __import__("fcntl").fcntl(os.open(os.__file__, 0), 1026, 63)
    """, layers=("seccomp",)),
    Case(61, "exit beside the result", """
        def run(params, context):
            def leave():
                os._exit(0)
            threading.Timer(0.0, leave).start()
            return "held" + "x" * 900_000
    """, ("no result", "ok*")),
    Case(62, "what hangs after the result", """
        import atexit
        def run(params, context):
            atexit.register(time.sleep, 100)
            threading.Thread(target=time.sleep, args=(100,)).start()
            class Late:
                def __del__(self):
                    time.sleep(100)
            sys.late = Late()
            return "held"
    """),
]  # fmt: skip

MEMORY: Final = [
    Case(63, "an array that grows", """
        def run(params, context):
            found = bytearray()
            while True:
                found += bytes(8 << 20)
    """, ("memory",)),
    Case(64, "maps", """
        import mmap
        def run(params, context):
            kept = []
            try:
                while len(kept) < 64:
                    kept.append(mmap.mmap(-1, 8 << 20, flags=(mmap.MAP_SHARED, mmap.MAP_PRIVATE)[len(kept) % 2]))
            except OSError:
                return "held"
            return "512 MiB mapped"
    """),
    Case(65, "pipes as memory", """
        def run(params, context):
            kept = 0
            try:
                while True:
                    reader, writer = os.pipe()
                    os.set_blocking(writer, False)
                    kept += os.write(writer, bytes(1 << 20))
            except OSError:
                return "held" if kept < 4 << 20 else f"{kept} bytes"
    """),
    Case(66, "small objects", """
        def run(params, context):
            found = None
            while True:
                found = [found]
    """, ("memory", "cpu"), limits={"memory_mb": 16}),
    Case(67, "recursion", """
        def deeper(n):
            return deeper(n + 1)
        def run(params, context):
            sys.setrecursionlimit(10**9)
            return deeper(0)
    """, ("memory", "crash", "error", "cpu"), limits={"memory_mb": 16, "cpu_ms": 500}),
    Case(68, "a full disk", """
        def run(params, context):
            written = 0
            try:
                with open("/tmp/x", "wb", 0) as file:
                    while True:
                        written += file.write(bytes(1 << 20))
            except OSError:
                pass
            try:
                for at in range(100):
                    with open(f"/tmp/y{at}", "wb", 0) as file:
                        written += file.write(bytes(1 << 20))
            except OSError:
                pass
            return "held" if written <= 2 << 20 else f"{written} bytes"
    """, ("ok", "crash"), needs_scratch=True),
    Case(69, "a disk of empty files", """
        def run(params, context):
            count = 0
            try:
                while True:
                    open(f"/tmp/{count}", "w").close()
                    count += 1
            except OSError:
                return "held" if count <= 1024 else f"{count} files"
    """, needs_scratch=True),
    Case(70, "descriptors", """
        def run(params, context):
            try:
                while True:
                    os.dup(0)
            except OSError as error:
                return "held" if os.dup2(0, 63) == 63 else "more"
    """, ("ok",)),
    attempt(71, "limits raised", """
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
        resource.setrlimit(resource.RLIMIT_CORE, (-1, -1))
    """),
    Case(72, "abort", "def run(params, context):\n    os.abort()", ("crash",)),
    attempt(72, "a core after all", """
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30))
    """, layers=("seccomp",)),
]  # fmt: skip

TIME: Final = [
    Case(75, "busy", "def run(params, context):\n    while True:\n        pass", ("cpu",), limits=CPU),
    Case(76, "a power", "def run(params, context):\n    return 9**9**9", ("cpu", "memory"), limits=CPU),
    Case(77, "a regular expression", """
        import re
        def run(params, context):
            return re.match("(a+)+$", "a" * 60 + "b")
    """, ("cpu",), limits=CPU),
    Case(78, "deaf and busy", """
        def run(params, context):
            for number in range(1, signal.NSIG):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
            while True:
                pass
    """, ("cpu",), limits=CPU),
    Case(79, "asleep", "def run(params, context):\n    time.sleep(1000)", ("timeout",), limits=SHORT, waits=True),
    Case(79, "asleep without a sign", """
        def run(params, context):
            sys.setswitchinterval(100)
            threading.Thread.run = None
            lock = ctypes.PyDLL(None)
            ctypes.PyDLL(None).usleep(5_000_000)
    """, ("heartbeat",), silence=0.4, waits=True),
    Case(80, "asleep with a sign", """
        def run(params, context):
            while True:
                forge(b'{"type":"beat"}')
                time.sleep(0.02)
    """, ("timeout",), limits=SHORT, silence=0.2, waits=True),
    Case(81, "an honest long call", """
        import hashlib
        def run(params, context):
            until = time.thread_time() + 0.7
            while time.thread_time() < until:
                hashlib.pbkdf2_hmac("sha256", b"x", b"y", 200_000)
            return "held"
    """, silence=0.3, beat=5.0),
    Case(82, "four threads", """
        def burn():
            while True:
                sum(range(10_000))
        def run(params, context):
            for _ in range(3):
                threading.Thread(target=burn, daemon=True).start()
            burn()
    """, ("cpu",), limits=CPU),
    Case(83, "now and then", """
        def run(params, context):
            while True:
                sum(range(1000))
                time.sleep(0.01)
    """, ("timeout",), limits=SHORT, waits=True),
    Case(83, "alarms", """
        def run(params, context):
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            time.sleep(5)
    """, ("crash", "timeout"), limits=SHORT, waits=True),
]  # fmt: skip
