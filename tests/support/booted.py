"""A real systemd as the first process of namespaces of its own: what it does to a unit, without a machine for it.

Its root is this machine's, under a layer that takes what it writes and goes with it. Of the units of this machine
it starts the journal and nothing else. Cgroup controllers are there only where this kernel gives them to cgroup v2.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = Path("/lib/systemd/systemd")
TOOLS = ("unshare", "nsenter", "setpriv", "mount", "pivot_root", "systemctl", "systemd-sysusers")
BOOT_WITHIN = 20.0
PYTHON = "/opt/stackd/bin/python"

# Outside: the layer over the root, and a cgroup of its own.
OUTSIDE = """
set -eu
mount -t tmpfs -o mode=755 layer "$PLACE"
cd "$PLACE"; mkdir upper work root cgroups
mount -t overlay layer -o lowerdir=/,upperdir=upper,workdir=work root
mount -t cgroup2 cgroups cgroups; mkdir "cgroups/$NAME"; echo $$ > "cgroups/$NAME/cgroup.procs"
exec unshare --pid --fork --kill-child=KILL --mount --uts --ipc --net --cgroup --propagation private sh -c "$INSIDE"
"""
# Inside: file systems of the new namespaces, nothing of the kernel's that could be written, then the first process.
INSIDE = """
set -eu
cd "$PLACE/root"; mount --bind . .; cd "$PLACE/root"
mount -t proc proc proc; mount -t sysfs -o ro sys sys; mount -t cgroup2 cgroups sys/fs/cgroup
for part in sys sysrq-trigger irq bus; do
    if [ -e "proc/$part" ]; then mount --bind "proc/$part" "proc/$part"; mount -o remount,bind,ro "proc/$part"; fi
done
mount -t tmpfs -o mode=755 run run; mount -t tmpfs -o mode=1777 tmp tmp; mount -t tmpfs -o mode=755 dev dev
for node in null zero full random urandom tty; do : > "dev/$node"; mount --bind "/dev/$node" "dev/$node"; done
mkdir dev/pts dev/shm dev/mqueue; mount -t tmpfs -o mode=1777 shm dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 pts dev/pts; ln -s pts/ptmx dev/ptmx
rm -rf etc/systemd/system opt/stackd; mkdir -p etc/systemd/system opt/deps opt/source opt/python
for unit in lib/systemd/system/sysinit.target.wants/* lib/systemd/system/local-fs.target.wants/* \\
        lib/systemd/system/multi-user.target.wants/* lib/systemd/system/sockets.target.wants/*; do
    case "${unit##*/}" in
        systemd-journald*|'*') ;;
        *) ln -sf /dev/null "etc/systemd/system/${unit##*/}" ;;
    esac
done
rm -f etc/machine-id; echo "$MACHINE" > etc/machine-id; : > etc/fstab
mkdir -p etc/systemd/journald.conf.d; printf '[Journal]\\nStorage=volatile\\n' > etc/systemd/journald.conf.d/volatile.conf
mount --bind "$DEPS" opt/deps; mount --bind "$SOURCE" opt/source; mount --bind "$BASE" opt/python
mkdir -p opt/stackd/bin "opt/stackd/lib/$VERSION/site-packages"
ln -s "/opt/python/bin/$VERSION" opt/stackd/bin/python
printf 'home = /opt/python/bin\\n' > opt/stackd/pyvenv.cfg
printf '/opt/deps\\n/opt/source\\n' > "opt/stackd/lib/$VERSION/site-packages/booted.pth"
cat > opt/stackd/bin/stackd <<'PROGRAM'
#!/bin/sh
LD_LIBRARY_PATH=/opt/python/lib exec /opt/stackd/bin/python -m stackd "$@"
PROGRAM
chmod 755 opt/stackd/bin/stackd
mkdir run/old; pivot_root . run/old; umount -l /run/old; rmdir /run/old
mount --make-rshared /  # as the first process of a container finds it: credentials are mounted for units
exec setpriv --bounding-set=-sys_module,-sys_time,-sys_rawio,-syslog,-mac_admin,-mac_override,-wake_alarm \\
    env -i container=tests PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    "$SYSTEMD" --system --log-target=journal --unit=multi-user.target
"""


def hindrance() -> str | None:
    """Why systemd cannot be booted here; None if nothing is known to hinder it."""
    if os.geteuid() != 0:
        return "booting systemd in namespaces needs root"
    missing = [name for name in TOOLS if shutil.which(name) is None]
    if not SYSTEMD.exists() or missing:
        return f"systemd is not installed here (missing: {', '.join(missing) or SYSTEMD})"
    if "cgroup2" not in Path("/proc/filesystems").read_text():
        return "this kernel has no cgroup v2"
    return None


class CannotBootError(Exception):
    """The namespaces cannot be made here; says what the attempt said."""


class Booted:
    """A system that runs. Commands run in it as root."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.root = Path(f"/proc/{pid}/root")

    def command(self, *words: str) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--all", *words]

    def run(
        self, *words: str, check: bool = True, within: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `words` in it; unless told otherwise they have to succeed."""
        ended = subprocess.run(
            self.command(*words),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )
        if check and ended.returncode:
            raise AssertionError(f"{words}: {ended.returncode}\n{ended.stdout}{ended.stderr}")
        return ended

    def stackd(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("/opt/stackd/bin/stackd", *words, check=check)

    def shown(self, unit: str, name: str) -> str:
        """A property of `unit`."""
        return self.at_once(unit, name)[name]

    def at_once(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of `unit`, all as of one moment."""
        asked = [f"--property={name}" for name in names]
        lines = self.run("systemctl", "show", *asked, unit).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def journal(self, unit: str) -> str:
        words = ("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")
        return self.run(*words).stdout


@contextmanager
def booted(place: Path) -> Iterator[Booted]:
    """A systemd that has booted, and is gone afterwards. `place`: an empty folder.

    Raises:
        CannotBootError: this machine does not let us.
    """
    name = f"stackd-tests-{secrets.token_hex(4)}"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    kept = {
        "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
        "PLACE": str(place),
        "NAME": name,
        "INSIDE": INSIDE,
        "MACHINE": secrets.token_hex(16),
        "DEPS": sysconfig.get_path("purelib"),
        "SOURCE": str(ROOT),
        "BASE": sys.base_prefix,
        "VERSION": version,
        "SYSTEMD": str(SYSTEMD),
    }
    log = place.with_name(f"{place.name}.log")
    with log.open("w") as output:
        outer = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", OUTSIDE],
            env=kept,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield _once_up(outer, log)
    finally:
        outer.kill()  # its child, the first process, goes with it, and with that all others
        outer.wait()
        _remove_cgroup(name)


def _once_up(outer: subprocess.Popen[bytes], log: Path) -> Booted:
    """The system, once systemctl says that it runs."""
    deadline = time.monotonic() + BOOT_WITHIN
    while time.monotonic() < deadline and outer.poll() is None:
        children = _children(outer.pid)
        if children:
            system = Booted(int(children[0]))
            asked = system.run("systemctl", "is-system-running", check=False)
            if asked.stdout.strip() in ("running", "degraded"):
                return system
        time.sleep(0.05)
    said = log.read_text()[-2000:]
    if outer.poll() is not None:
        raise CannotBootError(said)
    raise AssertionError(f"systemd does not get up within {BOOT_WITHIN} s:\n{said}")


def _children(pid: int) -> list[str]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []


def _remove_cgroup(name: str) -> None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    top = next((Path(where) for _, where, kind, *_ in mounts if kind == "cgroup2"), None)
    if top is None:
        return
    deadline = time.monotonic() + 10
    while (top / name).exists() and time.monotonic() < deadline:
        for folder in sorted((top / name).rglob("*/"), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):  # not all of its processes have gone yet
            (top / name).rmdir()
        time.sleep(0.02)
