"""Scenarios 31 to 50: secrets, files and the network."""

from __future__ import annotations

from typing import Final

from support.hostile.case import Case, attempt

FILES: Final = [
    attempt(31, "the list of users", """
        open("/etc/passwd").read(10)
        open("/etc/shadow").read(10)
        os.listdir("/etc")
        os.listdir("/home")
    """, layers=("namespaces+landlock",)),
    Case(32, "the processes", """
        def run(params, context):
            numbers = [*range(1, 400), params["daemon"], params["zygote"], os.getpid(), os.getppid()]
            names = [f"/proc/{n}/{name}" for n in numbers for name in ("environ", "mem", "maps", "cmdline", "stat")]
            names += ["/proc/self/mem", "/proc/self/environ", "/proc/self/maps", "/proc/meminfo", "/proc/self/fd/0"]
            got = [name for name in names if opens(name)]
            listed = [name for name in ("/proc", "/proc/self/fd", f"/proc/{params['daemon']}/fd") if lists(name)]
            linked = [name for name in ("exe", "cwd", "root", "fd/0", "fd/3") if links(params, name)]
            return str(got + listed + linked) if got or listed or linked else "held"
        def opens(name):
            try:
                os.close(os.open(name, os.O_RDONLY))
            except OSError:
                return False
            return True
        def lists(name):
            try:
                return bool(os.listdir(name))
            except OSError:
                return False
        def links(params, name):
            for pid in ("daemon", "zygote"):
                try:
                    return os.readlink(f"/proc/{params[pid]}/{name}")
                except OSError:
                    pass
    """, layers=("namespaces+landlock",)),
    attempt(33, "a file of the daemon's", """
        open(params["file"]).read(1)
        open(params["file"], "r+").read(1)
        os.open(params["file"], os.O_WRONLY | os.O_TRUNC)
        os.listdir(params["folder"])
    """, layers=("namespaces+landlock",)),
    attempt(33, "a file of the daemon's, changed", """
        os.truncate(params["file"], 0)
        os.chmod(params["file"], 0o777)
        os.chown(params["file"], os.getuid(), os.getgid())
        os.utime(params["file"], (0, 0))
        call(280, 88, -100, ctypes.c_char_p(params["file"].encode()), 0, 0)
        call(132, None, ctypes.c_char_p(params["file"].encode()), 0)
        call(235, None, ctypes.c_char_p(params["file"].encode()), 0)
        os.rename(params["file"], params["file"] + "2")
        os.unlink(params["file"])
        os.link(params["file"], params["file"] + "2")
        os.symlink("/etc/passwd", params["folder"] + "/link")
        os.mkfifo(params["folder"] + "/fifo")
        os.mkdir(params["folder"] + "/more")
        os.setxattr(params["file"], "user.x", b"x")
        open(params["folder"] + "/new", "w").close()
        os.open(params["folder"], os.O_TMPFILE | os.O_RDWR)
    """, layers=("namespaces+landlock",)),
    attempt(33, "a file of the daemon's, by a handle that only names", """
        os.read(os.open(params["file"], os.O_PATH), 1)
        open(f"/proc/self/fd/{os.open(params['folder'], os.O_PATH)}/{os.path.basename(params['file'])}").read(1)
        os.open(os.path.basename(params["file"]), os.O_RDONLY, dir_fd=os.open(params["folder"], os.O_PATH))
        os.fchdir(os.open(params["folder"], os.O_PATH))
    """, layers=("namespaces+landlock",)),
    Case(34, "the environment", """
        def run(params, context):
            environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
            found, at = [], 0
            while environ and environ[at]:
                found.append(environ[at])
                at += 1
            secret = [one for one in found if b"hostile" in one]
            return str((dict(os.environ), secret)) if os.environ or secret else "held"
    """),
    Case(35, "files that are open", """
        def run(params, context):
            got = []
            for number in range(4, 64):
                try:
                    os.fstat(number)
                    got.append(number)
                except OSError:
                    pass
            return got or "held"
    """),
    Case(35, "the one file that is read", """
        def run(params, context):
            return "held" if os.read(0, 100) == b"" else "something stands there"
    """),
    Case(36, "memory of others", """
        import hashlib, re
        def run(params, context):
            reader, writer = os.pipe()
            libc.sbrk.restype = ctypes.c_void_p
            libc.write.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
            top = libc.sbrk(0)
            starts = [top - 48 * 2**20, id(object()) & ~0xFFFFFF, id(params) & ~0xFFFFFF, ctypes.addressof(ctypes.c_int()) & ~0xFFFFFF]
            before, seen = b"", 0
            for start in starts:
                for page in range(start & ~4095, (start & ~4095) + 48 * 2**20, 4096):
                    if libc.write(writer, page, 4096) != 4096:
                        before = b""
                        continue
                    seen += 1
                    content = os.read(reader, 4096)
                    for found in re.findall(rb"hostile-[0-9a-f]{32}", before[-50:] + content):
                        if hashlib.sha256(found).hexdigest() == params["hash"]:
                            return "the secret of another run"
                    before = content
            return "held" if seen > 100 else f"only {seen} pages seen"
    """, limits={"cpu_ms": 20_000, "timeout": 30.0}),
    attempt(37, "names outside", """
        os.stat("/etc/passwd")
        os.stat(params["file"])
        os.stat(params["folder"])
    """, filtered=("got",), layers=("namespaces", "namespaces+landlock")),
    attempt(38, "writing", """
        open("/tmp/hostile-x", "w").close()
        open("/var/tmp/hostile-x", "w").close()
        open("/dev/shm/hostile-x", "w").close()
        open("/hostile-x", "w").close()
        open("/usr/lib/hostile-x", "w").close()
        open(os.__file__, "r+").close()
        os.mkdir("/tmp/hostile-d")
        os.truncate(os.__file__, 0)
        os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
        open("/dev/null", "w").close()
        open("/dev/tty", "r+").close()
    """, layers=("namespaces+landlock",)),
    Case(40, "what a run leaves", """
        def run(params, context):
            found = os.listdir("/tmp")
            with open("/tmp/left", "w") as file:
                file.write("for the next one")
            return found or "held"
    """, needs_scratch=True),
    Case(40, "what another run has left", """
        def run(params, context):
            return os.listdir("/tmp") or "held"
    """, needs_scratch=True),
    attempt(41, "its own bounds", """
        open("/sys/fs/cgroup/cgroup.procs", "w").write("1")
        os.listdir("/sys/fs/cgroup")
        open("/proc/self/oom_score_adj", "w").write("-1000")
        open("/proc/self/uid_map", "w").write("0 0 1")
        open("/proc/sys/kernel/core_pattern", "w").write("x")
    """),
    Case(42, "things that are no files", """
        def run(params, context):
            found = each(
                lambda: os.symlink("/etc/passwd", "/tmp/a"), lambda: os.mkfifo("/tmp/b"),
                lambda: os.mknod("/tmp/c", 0o020666, os.makedev(1, 3)), lambda: os.link("/tmp", "/tmp/d"),
                lambda: os.chmod("/tmp", 0o4777), lambda: open("/tmp/../etc/passwd").read(),
            )
            with open("/tmp/e", "w") as file:
                file.write("#!/bin/sh")
            return "; ".join(one for one in (found, each(lambda: os.execv("/tmp/e", ["e"]))) if one != "held") or "held"
    """, needs_scratch=True),
]  # fmt: skip

NETWORK: Final = [
    attempt(45, "a port of this host", """
        __import__("socket").create_connection(("127.0.0.1", params["port"]), timeout=1)
        __import__("socket").socketpair()
        call(41, 198, 2, 1, 0)
        call(53, 199, 1, 1, 0, ctypes.create_string_buffer(8))
    """, layers=("seccomp",)),
    attempt(46, "a name, and a page", """
        __import__("socket").getaddrinfo("localhost", 80)
        __import__("urllib.request").request.urlopen("http://127.0.0.1:%d/" % params["port"], timeout=1)
    """),
    attempt(47, "sockets without a place", """
        call(41, 198, 1, 1, 0)
        call(41, 198, 1, 2, 0)
    """, layers=("seccomp",)),
    attempt(48, "sockets of other kinds", """
        call(41, 198, 40, 1, 0)
        call(41, 198, 16, 3, 0)
        call(41, 198, 2, 3, 1)
        call(41, 198, 17, 3, 0)
        call(41, 198, 38, 5, 0)
        call(41, 198, 10, 2, 0)
    """, layers=("seccomp",)),
    attempt(49, "files through the job's socket", """
        call(47, 212, 3, ctypes.create_string_buffer(56), 0x40)
        call(46, 211, 3, ctypes.create_string_buffer(56), 0x40)
        call(45, 207, 3, ctypes.create_string_buffer(8), 8, 0x40, 0, 0)
        call(55, 209, 3, 1, 17, ctypes.create_string_buffer(12), ctypes.create_string_buffer(4))
        call(54, 208, 3, 1, 7, ctypes.create_string_buffer(4), 4)
        call(48, 210, 3, 0)
        __import__("socket").socket(fileno=3).getpeername()
    """, layers=("seccomp",)),
    attempt(50, "lo brought up", """
        call(16, 29, 3, 0x8914, ctypes.create_string_buffer(b"lo", 40))
    """),
]  # fmt: skip
