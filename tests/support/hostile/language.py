"""Scenarios 1 to 30: the language, and the kernel's calls."""

from __future__ import annotations

from typing import Final

from support.hostile.case import Case, attempt

BAD: Final = ("policy", "crash")

LANGUAGE: Final = [
    Case(1, "subclasses to os.system", """
        def run(params, context):
            system = [
                one.__init__.__globals__["system"] for one in object.__subclasses__()
                if "system" in getattr(one.__init__, "__globals__", {})
            ]
            found = [one("echo out") for one in system]
            assert found, "nothing to call"
            return "held" if all(found) else "a command ran"
    """),
    Case(2, "exec of the interpreter", """
        def run(params, context):
            code = (
                "import os, sys\\nfor one in (lambda: open('/etc/passwd'), os.fork, lambda: os.kill(1, 0) or 1/0):\\n"
                " try: one(); sys.stdout.write('GOT OUT\\\\n')\\n except OSError: pass\\n"
                "sys.stdout.write('STILL IN\\\\n'); sys.stdout.flush()"
            )
            interpreter = params["interpreter"]
            try:
                os.execve(interpreter, [interpreter, "-I", "-S", "-c", code], {"HOME": "/"})
            except OSError:
                print("STILL IN")
                return "held"
    """, process=("no result",), shown="STILL IN", layers=("seccomp",)),
    attempt(2, "exec of what else is there", """
        os.execv("/bin/sh", ["sh"])
        os.execv("/usr/bin/env", ["env"])
        os.execv("/usr/lib/os-release", ["x"])
    """),
    Case(3, "null pointer", "def run(params, context):\n    return ctypes.string_at(0)", ("crash",)),
    Case(4, "machine code, int 0x80", """
        import mmap
        def run(params, context):
            area = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            area.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
            at = ctypes.addressof(ctypes.c_char.from_buffer(area))
            return f"got {ctypes.CFUNCTYPE(ctypes.c_int)(at)()}"
    """, BAD, only_x86=True, layers=("seccomp",)),
    Case(5, "x32 numbers", "def run(params, context):\n    return call(0x4000_0000 + 39, None)",
         ("policy",), only_x86=True, layers=("seccomp",)),
    Case(6, "walk of frames and objects", """
        import gc, hashlib, re
        def run(params, context):
            held = []
            frame_ = sys._getframe()
            while frame_ is not None:
                held.append(repr(frame_.f_locals)[:1_000_000])
                frame_ = frame_.f_back
            for one in gc.get_objects():
                if type(one) in (dict, list, tuple):
                    held.append(repr(one)[:100_000])
            for one in held:
                for found in re.findall("hostile-[0-9a-f]{32}", one):
                    if hashlib.sha256(found.encode()).hexdigest() == params["hash"]:
                        return "the secret of another run"
            return "held"
    """),
    Case(6, "attribute error's object and a format string", """
        def run(params, context):
            try:
                "{0.nothing}".format(sys)
            except AttributeError as error:
                os_ = error.obj.modules["os"]
                return each(lambda: os_.listdir("/etc"), lambda: os_.open("/etc/passwd", 0))
    """, layers=("namespaces+landlock",)),
    Case(7, "import behind the list of allowed ones", """
        import json
        def run(params, context):
            found = list(map(__import__, ["socket"])) if False else [json.codecs.sys.modules["os"]]
            return each(lambda: found[0].open("/etc/passwd", 0), lambda: found[0].fork())
    """, imports=("json", "ctypes", "errno", "os", "platform", "resource", "signal", "struct", "sys",
                  "threading", "time")),
    Case(8, "everything patched", """
        import builtins, json
        def run(params, context):
            json.dumps = lambda *_, **__: "{}"
            json.loads = None
            builtins.exec = builtins.compile = builtins.len = None
            sys.modules.clear()
            return "held"
    """, ("ok", "error", "crash", "no result")),
    Case(10, "hooks that raise", """
        def hook(*_):
            raise SystemExit(1)
        class Late:
            def __del__(self):
                sys.exit(3)
        def run(params, context):
            late = Late()
            del late
            sys.addaudithook(lambda name, _: hook() if name == "import" else None)
            sys.settrace(hook)
            sys.setprofile(None)
            return "held"
    """, ("ok", "error")),
    Case(10, "exit as a result", "def run(params, context):\n    sys.exit('held')", ("error",)),
    Case(10, "a class without a name", """
        class Meta(type):
            @property
            def __name__(cls):
                raise KeyboardInterrupt
        class Odd(Exception, metaclass=Meta):
            def __str__(self):
                raise SystemExit
        def run(params, context):
            raise Odd
    """, ("error",)),
    Case(10, "a stream that raises", """
        class Stream:
            def write(self, *_): raise SystemExit
            def flush(self): raise KeyboardInterrupt
        def run(params, context):
            sys.stdout = sys.stderr = Stream()
            return "held"
    """),
    Case(11, "a NUL in the source", "x = '\0'\ndef run(params, context):\n    return 1", ("error",)),
    Case(11, "brackets without end", "x = " + "(" * 100_000, ("error", "memory")),
    Case(11, "nested without end", "x = " + "-" * 200_000 + "1", ("error", "memory", "crash")),
    Case(11, "a constant of 16 GiB", "x = 'a' * 2**34\ndef run(params, context):\n    return x", ("memory",)),
    Case(11, "a coding of one's own", "# coding: utf-7\ndef run(params, context):\n    return 'held'"),
    Case(12, "a module named as another", """
        def run(params, context):
            with open("/tmp/json.py", "w") as file:
                file.write("def dumps(*_): return 'forged'")
            sys.path.insert(0, "/tmp")
            sys.modules.pop("json", None)
            import json
            return "held" if json.dumps({}) == "forged" else "it is not even mine"
    """, needs_scratch=True),
]  # fmt: skip


def _kills(number: int, name: str, x86: int, arm: int | None, *given: str) -> Case:
    arguments = ", ".join((str(x86), str(arm), *given))
    return Case(
        number, f"call of {name}", f"def run(params, context):\n    return f'got {{call({arguments})}}'",
        ("policy",), layers=("seccomp",),
    )  # fmt: skip


KERNEL: Final = [
    _kills(13, "ptrace", 101, 117, "16", "1", "0", "0"),
    _kills(14, "process_vm_readv", 310, 270, "1", "0", "0", "0", "0", "0"),
    _kills(14, "process_vm_writev", 311, 271, "1", "0", "0", "0", "0", "0"),
    _kills(15, "unshare", 272, 97, "0x10000000"),
    _kills(16, "setns", 308, 268, "0", "0"),
    _kills(17, "mount", 165, 40, "0", "0", "0", "0", "0"),
    _kills(17, "pivot_root", 155, 41, "0", "0"),
    _kills(17, "chroot", 161, 51, "0"),
    _kills(17, "fsopen", 430, 430, "0", "0"),
    _kills(18, "bpf", 321, 280, "0", "0", "0"),
    _kills(19, "perf_event_open", 298, 241, "0", "0", "-1", "-1", "0"),
    _kills(20, "userfaultfd", 323, 282, "1"),
    _kills(21, "io_uring_setup", 425, 425, "1", "0"),
    _kills(22, "add_key", 248, 217, "0", "0", "0", "0", "0"),
    _kills(22, "keyctl", 250, 219, "0", "-3", "0"),
    _kills(23, "pidfd_getfd", 438, 438, "0", "0", "0"),
    _kills(24, "open_by_handle_at", 304, 265, "-100", "0", "0"),
    _kills(25, "clone into a user namespace", 56, 220, "0x10000011", "0", "0", "0", "0"),
    _kills(27, "personality", 135, 92, "0x0040000"),
    Case(25, "clone3 and clone", """
        def run(params, context):
            arguments = ctypes.create_string_buffer(88)
            return each(lambda: call(435, 435, arguments, 88), lambda: call(56, 220, 17, 0, 0, 0, 0))
    """, layers=("seccomp",)),
    attempt(23, "pidfds", """
        call(434, 434, params["daemon"], 0)
        call(434, 434, os.getppid() or 1, 0)
        call(424, 424, 0, 0, 0, 0)
        call(312, 272, 1, 1, 0, 0, 0)
    """, layers=("seccomp",)),
    attempt(26, "memory that is shared", """
        os.memfd_create("x")
        call(447, 447, 0)
        call(29, 194, 0, 4096, 0o1777)
        call(64, 190, 0, 1, 0o1777)
        call(68, 186, 0, 0o1777)
        call(240, 180, ctypes.c_char_p(b"/x"), 0o102, 0o600, 0)
    """, layers=("seccomp",)),
    attempt(27, "what a process is", """
        call(157, 167, 1, 0, 0, 0, 0)
        call(157, 167, 4, 1, 0, 0, 0)
        call(157, 167, 22, 2, 0, 0, 0)
        call(157, 167, 35, 8, 0, 0, 0)
        call(157, 167, 36, 1, 0, 0, 0)
        call(126, 91, 0, 0)
        call(317, 277, 1, 0, 0)
        call(105, 146, os.getuid())
        call(106, 144, os.getgid())
        call(116, 159, 0, 0)
        call(112, 157)
        call(109, 154, 0, 0)
        call(95, 166, 0)
        os.chmod("/tmp", 0o777)
        os.chown("/tmp", -1, -1)
        call(188, 5, ctypes.c_char_p(b"/tmp"), ctypes.c_char_p(b"user.x"), ctypes.c_char_p(b"x"), 1, 0)
    """, layers=("seccomp",)),
    attempt(28, "ioctls of terminals", """
        [__import__("fcntl").ioctl(number, 0x5412, b"x") for number in (0, 1, 2)]
        __import__("fcntl").ioctl(1, 0x541C, b"\\x03")
        __import__("fcntl").ioctl(3, 0x8901, struct.pack("i", 1))
    """),
    attempt(29, "clocks, timers, priorities", """
        call(227, 112, 0, ctypes.create_string_buffer(16))
        call(159, 171, ctypes.create_string_buffer(208))
        call(283, 85, 1, 0)
        call(222, 107, 1, 0, ctypes.create_string_buffer(8))
        call(141, 140, 0, 0, 5)
        os.sched_setaffinity(0, {0})
        call(144, 119, 0, 3, ctypes.create_string_buffer(4))
        call(251, 30, 1, 0, 0x6000)
        call(149, 228, ctypes.create_string_buffer(4096), 4096)
    """, layers=("seccomp",)),
    attempt(30, "ways for bytes and news of files", """
        os.splice(0, 1, 1)
        call(278, 75, 1, 0, 0, 0)
        call(276, 77, 0, 1, 1, 0)
        call(294, 26, 0)
        call(300, 262, 0, 0)
        os.eventfd(0)
        call(289, 74, -1, ctypes.create_string_buffer(8), 8, 0)
        call(206, 0, 1, ctypes.create_string_buffer(8))
        os.sendfile(1, 0, 0, 1)
        os.copy_file_range(0, 1, 1)
        call(303, 264, -100, ctypes.c_char_p(b"/"), ctypes.create_string_buffer(136), ctypes.create_string_buffer(4), 0)
        call(103, 116, 3, ctypes.create_string_buffer(64), 64)
        call(306, 267, 0)
    """, layers=("seccomp",)),
    Case(30, "every call that is not meant", """
        def run(params, context):
            got = []
            for number in params["refused"]:
                ctypes.set_errno(0)
                found = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(0)] * 6)
                if found >= 0 or ctypes.get_errno() != errno.EPERM:
                    got.append((number, found, ctypes.get_errno()))
            return got or "held"
    """),
]  # fmt: skip
