"""How well this host isolates: found by trying to get out, never from what is configured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stackd.core.json import Json

NAMES: Final = {3: "contained", 2: "contained, soft limits", 1: "filtered", 0: "bare"}
# What `probe.py` tries, as people are told.
PROBES: Final = {
    "files": "read a file of the host",
    "network": "open a socket",
    "fork": "start a process",
    "writing": "write a file",
    "signals": "send a signal to another process",
    "limits": "raise a limit of its own",
    "calls": "take memory that no limit counts",
    "attack": "make namespaces of its own",
    "names": "see which files the host has",
    "processes": "list processes",
    "group": "leave its cgroup or raise its limits",
    "memory": "take more memory than it may",
}
_ALWAYS: Final = ("files", "network", "fork", "writing", "signals", "limits", "calls", "attack")
_REMEDIES: Final = (  # (file, what it says where it is in the way, what to do)
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
        "kernel.apparmor_restrict_unprivileged_userns=1: load a profile with `userns,` for the interpreter, "
        "or set it to 0",
    ),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "set kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/user/max_user_namespaces", "0", "set user.max_user_namespaces to 1000 or more"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Isolation:
    """What holds here.

    Attributes:
        level: 3, 2, 1 or 0, as of `NAMES`.
        layers: namespaces, seccomp, landlock (its version), as the zygote could have them.
        limits: by what memory, CPU quota and processes are bounded: cgroup, rlimit, seccomp or none.
        missing: why it is no higher level, and what to do about it.
        failed: probes that got out, by name.
    """

    level: int
    layers: Mapping[str, Json] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return NAMES[self.level]

    def told(self) -> dict[str, Json]:
        """As it is shown."""
        return {
            "level": self.level,
            "name": self.name,
            "layers": dict(self.layers),
            "limits": dict(self.limits),
            "missing": list(self.missing),
            "failed": dict(self.failed),
        }


def judged(
    layers: Mapping[str, Any], failed: Mapping[str, str], *, cgroup: str | None
) -> Isolation:
    """The level, from what got out. `cgroup`: why there is none to bound runs by; None: there is one."""
    missing = []
    by_cgroup = cgroup is None and "group" not in failed and "bomb" not in failed
    if any(name in failed for name in _ALWAYS):
        level = 0
    elif not layers["namespaces"] or "names" in failed or "processes" in failed:
        level = 1
    elif not by_cgroup or "memory" in failed:
        level = 2
    else:
        level = 3
    if not layers["namespaces"]:
        why = layers["problems"].get("namespaces", "not permitted")
        missing.append(f"no user namespaces ({why}): {remedy()}")
    if not layers["seccomp"]:
        missing.append("no seccomp filter for this architecture: x86_64 and aarch64 have one")
    if not layers["landlock"] and not layers["namespaces"]:
        missing.append("no Landlock: Linux 5.13 or later, with lsm=landlock,…")
    if cgroup is not None:
        missing.append(
            f"no cgroup of its own ({cgroup}): memory is bounded per process, and there is no CPU quota"
        )
    missing += [f"{name}: {what}" for name, what in failed.items()]
    return Isolation(
        level,
        {name: layers[name] for name in ("namespaces", "seccomp", "landlock", "uid")},
        {
            "memory": "cgroup" if by_cgroup else "rlimit",
            "cpuQuota": "cgroup" if by_cgroup else "none",
            "processes": "cgroup" if by_cgroup else "seccomp",
        },
        tuple(missing),
        dict(failed),
    )


def remedy() -> str:
    """What stands in the way of user namespaces on this host, as far as it says so."""
    for path, value, words in _REMEDIES:
        try:
            if Path(path).read_text(encoding="ascii").strip() == value:
                return words
        except OSError:
            continue
    return "under systemd, leave RestrictNamespaces= out of the unit; in a container, allow them"
