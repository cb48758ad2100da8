"""A real machine: QEMU, which here emulates every instruction, a kernel of its own, Debian's systemd, and stackd in it.

What takes minutes is kept in a cache folder until something that goes into it changes: Debian, the wheels, and the disk
made of both and of this stackd. Every machine begins with that disk and writes beside it. A power cut takes its memory,
and with it all that its kernel had not written; the disk itself keeps what it was given.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import queue
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import machine_agent

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(
    os.environ.get("TESTS_MACHINE_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stackd-tests-machine"
)

SUITE = "bookworm"  # the oldest systemd that stackd supports, 252
PYTHON = "3.11"  # of that suite
GLIBC = 36  # likewise, 2.36
PACKAGES = (
    "curl", "dbus", "e2fsprogs", "iproute2", "kmod", "linux-image-cloud-amd64", "procps", "python3", "python3-venv",
    "systemd", "systemd-sysv",
)  # fmt: skip
# What a machine of a minute needs not.
MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "getty@tty1.service", "serial-getty@ttyS0.service",
)  # fmt: skip
# The cloud kernel has drivers for this disk and its file system in it, and modules for the port: no initramfs is needed.
MODULES = "virtio_pci\nvirtio_console\n"
AGENT = """
[Unit]
Description=Commands of the tests

[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/machine_agent.py
Environment=HOME=/root LANG=C.UTF-8
StandardError=journal+console
OOMScoreAdjust=-900
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"""
KERNEL = (
    "root=/dev/nvme0n1 rw console=ttyS0 panic=-1 loglevel=4 mitigations=off nokaslr audit=0 random.trust_cpu=on"
)  # fmt: skip

TOOLS = {  # and the package of each
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "debootstrap": "debootstrap",
    "mke2fs": "e2fsprogs",
    "setpriv": "util-linux",
}
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"

BOOT_WITHIN = 240.0  # seconds; 15 to 30 where nothing else runs
RUN_WITHIN = 120.0


def hindrance() -> str | None:
    """Why there can be no such machine here; None if nothing is known to hinder it."""
    if os.geteuid() != 0:
        return "making the disk of a virtual machine needs root"
    missing = sorted({of for tool, of in TOOLS.items() if shutil.which(tool, path=PATH) is None})
    if missing:
        return f"no virtual machine here: apt-get install {' '.join(missing)}"
    if _mirror() is None:
        return "no virtual machine here: apt knows no mirror of Debian (apt-get update?)"
    return None


class Running:
    """A command that runs in a machine."""

    def __init__(self, machine: Machine, number: int) -> None:
        self._machine = machine
        self._number = number
        self._told: queue.Queue[dict[str, Any]] = queue.Queue()
        self.stdout = ""
        self.stderr = ""
        self.returncode: int | None = None  # stays None if the machine went first

    def hear(self, told: dict[str, Any]) -> None:
        self._told.put(told)

    def until(self, wanted: str, *, within: float = RUN_WITHIN) -> None:
        """Wait until it has printed `wanted`."""
        deadline = time.monotonic() + within
        while wanted not in self.stdout:
            if not self._take(deadline):
                raise AssertionError(f"it never printed {wanted!r}:\n{self.stdout}{self.stderr}")

    def lines(self, count: int, *, within: float = RUN_WITHIN) -> list[str]:
        """All that it has printed, once that is at least `count` lines."""
        deadline = time.monotonic() + within
        while self.stdout.count("\n") < count:
            if not self._take(deadline):
                raise AssertionError(f"it printed too little:\n{self.stdout}{self.stderr}")
        return self.stdout.splitlines()

    def end(self, *, within: float = RUN_WITHIN) -> list[str]:
        """End its standard input, and wait for it to end too; all that it has printed."""
        self._machine.say(of=self._number, end=True)
        return self.wait(within=within)

    def wait(self, *, within: float = RUN_WITHIN) -> list[str]:
        deadline = time.monotonic() + within
        while self._take(deadline):
            pass
        return self.stdout.splitlines()

    def kill(self) -> None:
        if self.returncode is None:
            self._machine.say(of=self._number, kill=True)

    def _take(self, deadline: float) -> bool:
        """Take up what is told next; False once it has ended."""
        if self.returncode is not None:
            return False
        try:
            told = self._told.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise AssertionError(f"not in time; printed:\n{self.stdout}{self.stderr}") from None
        self.stdout += told.get("out", "")
        self.stderr += told.get("err", "")
        self.returncode = told.get("ended")
        if "gone" in told:
            self._told.put(told)
        return self.returncode is None and "gone" not in told


class Machine:
    """A machine that runs. Commands run in it as root."""

    def __init__(self, disk: Disk, overlay: Path) -> None:
        self._disk = disk
        self._overlay = overlay
        self._console = overlay.with_name("console.log")
        self._numbers = itertools.count(1)
        self._running: dict[int, Running] = {}

    # -- its life

    def boot(self) -> None:
        """Start it; when this returns systemd has started all there is to start."""
        ours, theirs = socket.socketpair()
        with self._console.with_name("qemu.log").open("w") as output, theirs:
            self._qemu = subprocess.Popen(
                # Whatever ends the tests ends it too.
                ["setpriv", "--pdeathsig", "KILL", *self._command(theirs.fileno())],
                env={"PATH": PATH},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(),),
            )
        self._port = ours
        self._has_booted = threading.Event()
        self._listener = threading.Thread(target=self._listen, args=(ours,))
        self._listener.start()
        deadline = time.monotonic() + BOOT_WITHIN
        while not self._has_booted.wait(0.1):
            if self._qemu.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the machine does not boot:\n{self.console()[-4000:]}")
        left = deadline - time.monotonic()
        state = self.run("systemctl", "is-system-running", "--wait", check=False, within=left)
        assert state.stdout.strip() in ("running", "degraded"), state.stdout

    def cut_power(self) -> None:
        """It is gone at once: what runs in it, and its memory."""
        self._qemu.send_signal(signal.SIGKILL)
        self._qemu.wait()
        self._listener.join()
        self._port.close()

    def console(self) -> str:
        """What kernel and systemd have printed, with what QEMU complained of."""
        files = (self._console.with_name("qemu.log"), self._console)
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def _command(self, port: int) -> list[str]:
        return [
            "qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off",
            "-machine", "q35,vmport=off", "-smp", "2", "-m", "1024", "-nodefaults", "-display", "none", "-no-reboot",
            "-nic", "none", "-kernel", str(self._disk.kernel), "-append", KERNEL,
            "-serial", f"file:{self._console}",
            # writethrough: on this machine's disk before the machine is told so. With a cache of QEMU's it is not certain
            # what a flush has kept: ext4 ends a commit with a FUA write, and the NVMe of QEMU 7.2 ignores that flag.
            "-drive", f"if=none,id=disk,format=qcow2,cache=writethrough,file={self._overlay}",
            "-device", "nvme,drive=disk,serial=tests",
            "-device", "virtio-serial-pci", "-chardev", f"socket,id=port,fd={port}",
            "-device", f"virtserialport,chardev=port,name={machine_agent.PORT}",
        ]  # fmt: skip

    # -- commands

    def say(self, **asked: object) -> None:
        with contextlib.suppress(OSError):  # the machine has gone, which who waits is told
            self._port.sendall(json.dumps(asked).encode() + b"\n")

    @contextmanager
    def started(self, *words: str) -> Iterator[Running]:
        """`words` as they run, with their standard input open; killed at the end if they still do."""
        number = next(self._numbers)
        running = self._running[number] = Running(self, number)
        self.say(run=number, words=words)
        try:
            yield running
        finally:
            running.kill()
            del self._running[number]

    def run(
        self, *words: str, given: str = "", check: bool = True, within: float = RUN_WITHIN
    ) -> Running:
        """Run `words`, with `given` as their standard input; unless told otherwise they have to succeed."""
        with self.started(*words) as running:
            if given:
                self.say(of=running._number, put=given)
            running.end(within=within)
        assert running.returncode is not None, f"{words}: the machine has gone"
        if check and running.returncode:
            raise AssertionError(
                f"{shlex.join(words)}: {running.returncode}\n{running.stdout}{running.stderr}"
            )
        return running

    def stackd(self, *words: str, check: bool = True) -> Running:
        return self.run("/opt/stackd/bin/stackd", *words, check=check)

    def shown(self, unit: str, name: str) -> str:
        """A property of `unit`."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def journal(self, *words: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", *words).stdout

    def write(self, path: str, text: str) -> None:
        """Let the file at `path`, and its folder, be there."""
        self.run("sh", "-c", 'mkdir -p "${1%/*}" && cat > "$1"', "sh", path, given=text)

    def _listen(self, port: socket.socket) -> None:
        lines = port.makefile(encoding="utf-8", errors="replace")
        with lines, contextlib.suppress(OSError):
            for line in lines:
                self._hear(line)
        for running in list(self._running.values()):
            running.hear({"gone": True})

    def _hear(self, line: str) -> None:
        try:
            told = json.loads(line)
        except ValueError:  # cut off with the power
            return
        if "booted" in told:
            self._has_booted.set()
        elif running := self._running.get(told["of"]):
            running.hear(told)


@contextmanager
def machine(place: Path) -> Iterator[Machine]:
    """A machine that has booted from a disk of its own, and is gone afterwards. `place`: an empty folder.

    One at a time on this machine: it would only be slow, and the cache has one disk.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        disk = _disk()
        overlay = place / "disk.qcow2"
        _do("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk.image, overlay)
        made = Machine(disk, overlay)
        try:
            made.boot()
            yield made
        finally:
            made.cut_power()


# -- what is kept


@dataclass(frozen=True, slots=True)
class Disk:
    kernel: Path
    image: Path


def _disk() -> Disk:
    """Debian with this stackd in /opt/stackd, as an operator would have installed it there."""
    debian, wheels = _debian(), _wheels()
    image = _kept("disk", debian.name, wheels.name, *_content(), Path(__file__).read_text())
    if not image.exists():
        _install(debian, wheels)
        partial = CACHE / "disk.partial"
        partial.unlink(missing_ok=True)
        _do("mke2fs", "-q", "-t", "ext4", "-d", debian, partial, "4G")
        partial.rename(image)
    (kernel,) = (debian / "boot").glob("vmlinuz-*")
    return Disk(kernel, image)


def _debian() -> Path:
    """The root of a Debian, not started yet."""
    folder = _kept("debian", SUITE, *PACKAGES)
    if not folder.exists():
        partial = CACHE / "debian.partial"
        mirror = _mirror()
        assert mirror is not None
        _remove(partial)
        _do(
            # What it mounts goes with it, whatever ends it.
            "unshare", "--mount", "--propagation=private",
            "debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, partial, mirror,
        )  # fmt: skip
        for useless in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
            _remove(partial / useless)
        for initramfs in (partial / "boot").glob("initrd*"):
            initramfs.unlink()
        partial.rename(folder)
    return folder


def _wheels() -> Path:
    """What stackd depends on, for the Python of `SUITE`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    constraints = ROOT / "constraints.txt"
    folder = _kept("wheels", PYTHON, *project["dependencies"], constraints.read_text())
    if not folder.exists():
        partial = CACHE / "wheels.partial"
        _remove(partial)
        platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(17, GLIBC + 1)]
        _do(
            sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", f"--python-version={PYTHON}",
            "--platform=manylinux2014_x86_64", *platforms, f"--constraint={constraints}", f"--dest={partial}",
            *project["dependencies"],
        )  # fmt: skip
        partial.rename(folder)
    return folder


def _install(debian: Path, wheels: Path) -> None:
    """Put into `debian` what a machine of the tests needs."""
    built = debian / "wheels"
    _remove(built)
    _remove(debian / "opt/stackd")
    shutil.copytree(wheels, built)
    _do(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={built}", ROOT)
    within = ("chroot", debian, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
    _do(*within, "python3", "-m", "venv", "/opt/stackd")
    pip = ("/opt/stackd/bin/pip", "install", "--quiet", "--no-index", "--find-links=/wheels")
    _do(*within, *pip, "stackd")
    _remove(built)

    def put(path: str, text: str) -> None:
        (debian / path).parent.mkdir(parents=True, exist_ok=True)
        (debian / path).write_text(text)

    # Empty or not there, it would be a first boot, in which systemd enables every unit that it finds.
    put("etc/machine-id", f"{secrets.token_hex(16)}\n")
    put("etc/hostname", "machine\n")
    put("etc/hosts", "127.0.0.1 localhost machine\n")
    put("etc/fstab", "")
    put("etc/modules-load.d/tests.conf", MODULES)
    put("etc/systemd/journald.conf.d/tests.conf", "[Journal]\nRateLimitIntervalSec=0\n")
    put("usr/local/lib/machine_agent.py", Path(machine_agent.__file__).read_text())
    put("etc/systemd/system/machine-agent.service", AGENT)
    _do("systemctl", f"--root={debian}", "--quiet", "enable", "machine-agent.service")
    _do("systemctl", f"--root={debian}", "--quiet", "mask", *MASKED)


def _content() -> Iterator[str]:
    """Names and contents of all that becomes a part of the disk."""
    yield Path(machine_agent.__file__).read_text()
    yield (ROOT / "pyproject.toml").read_text()
    for folder in ("stackd", "config", "connectors"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.is_file() and file.suffix != ".pyc":
                yield str(file.relative_to(ROOT))
                yield hashlib.sha256(file.read_bytes()).hexdigest()


def _kept(kind: str, *of: str) -> Path:
    """Where in the cache what is made of `of` has its place; what was made of something else goes."""
    path = CACHE / f"{kind}-{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]}"
    for other in CACHE.glob(f"{kind}-*"):
        if other != path:
            _remove(other)
    return path


def _mirror() -> str | None:
    """Where apt on this machine has Debian from."""
    ended = subprocess.run(
        ["apt-get", "indextargets", "--format=$(REPO_URI)", "Label: Debian", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    return next(iter(ended.stdout.split()), None)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _do(*words: str | Path) -> None:
    ended = subprocess.run(
        words,
        env={**os.environ, "PATH": PATH},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if ended.returncode:
        said = ended.stdout[-4000:]
        raise AssertionError(f"{shlex.join(map(str, words))}: {ended.returncode}\n{said}")
