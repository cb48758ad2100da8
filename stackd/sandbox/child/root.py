"""The root folder of all that runs inside: the interpreter and nothing else, and nothing of it can be written."""

from __future__ import annotations

import os
import sys
from typing import Final

from stackd.sandbox.child import linux
from stackd.sandbox.child.places import PACKAGES, SCRATCH

_STAGES: Final = ("/tmp", "/var/tmp", "/run", "/mnt")  # noqa: S108  # covered, in our own view of the mounts
_LINKS: Final = ("/lib", "/lib64", "/lib32")


def interpreter() -> str:
    """The interpreter itself, whatever environment it was started through."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def sources(packages: str | None) -> dict[str, str]:
    """What is shown inside, and where it comes from."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    base = os.path.realpath(sys.base_prefix)
    found = {path: path for path in ("/usr/lib", "/usr/lib64", *_LINKS, "/usr/share/zoneinfo")}
    if not base.startswith("/usr/lib"):
        found[f"{base}/lib"] = f"{base}/lib"
    found[interpreter()] = interpreter()
    found[f"{base}/lib/{version}"] = f"{base}/lib/{version}"
    if packages is not None:
        found[PACKAGES] = packages
    # /usr/lib holds /usr/lib/python3.11: what lies below another is shown with it
    return {
        inside: outside
        for inside, outside in found.items()
        if os.path.exists(outside)
        and not any(inside != other and inside.startswith(f"{other}/") for other in found)
    }


def build(packages: str | None) -> str:
    """Put the root together in this process's own view of the mounts; where it is."""
    shown = sources(packages)
    # Opened first: the stage may cover them.
    opened = {
        inside: os.open(outside, os.O_PATH | os.O_CLOEXEC)
        for inside, outside in shown.items()
        if not (inside in _LINKS and os.path.islink(inside))
    }
    links = {path: os.readlink(path) for path in _LINKS if os.path.islink(path)}
    stage = next(path for path in _STAGES if os.path.isdir(path))
    linux.keep_mounts_private()
    linux.mount(
        "stackd", stage, "tmpfs", linux.NOSUID | linux.NODEV, "size=1m,nr_inodes=4k,mode=755"
    )
    for inside, number in opened.items():
        target = f"{stage}{inside}"
        if os.path.isdir(f"/proc/self/fd/{number}"):
            os.makedirs(target)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
        linux.bind(f"/proc/self/fd/{number}", target)
        linux.set_mount(target, linux.ATTR_READ_ONLY | linux.ATTR_NOSUID | linux.ATTR_NODEV)
        os.close(number)
    for path, target in links.items():
        os.symlink(target, f"{stage}{path}")
    os.mkdir(f"{stage}{SCRATCH}")
    return stage


def enter(stage: str) -> None:
    """Let the root that was built be ours."""
    linux.bind(stage, stage)  # a mount of this namespace's own: others cannot be pivoted into
    linux.pivot_into(stage)
    linux.set_mount("/", linux.ATTR_READ_ONLY)


def mount_scratch(megabytes: int) -> None:
    """A folder that can be written, in a view of the mounts that is this process's own."""
    linux.unshare(linux.NEWNS)
    flags = linux.NOSUID | linux.NODEV | linux.NOEXEC
    linux.mount("scratch", SCRATCH, "tmpfs", flags, f"size={megabytes}m,nr_inodes=1k,mode=700")
