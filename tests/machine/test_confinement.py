"""What the unit forbids and leaves, on a kernel that has all it is made of: tried as the daemon, and seen at the daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import confined
from support.machine import Machine
from support.operated import SERVICE, Service

SCRIPT = "/usr/local/lib/confined.py"
FOUND = "/run/confined.json"
# The unit as it is installed; only what it runs is another program.
INSTEAD = f"""
Type=oneshot
ExecStart=
ExecStart=/usr/bin/python3 -B {SCRIPT} --cgroups
StandardOutput=file:{FOUND}
Restart=no
WatchdogSec=0
"""
REFUSED = {
    "write_etc": "EROFS",
    "list_home": "EACCES",
    "list_modules": "EACCES",
    "load_module": "EPERM",
    "set_clock": "EPERM",
    "see_others": "ENOENT",
    "see_disk": "ENOENT",
    "see_files_of_others": "ENOENT",
    "set_user_on_execution": "EPERM",
    "other_socket": "EAFNOSUPPORT",
    "change_personality": "EPERM",
    "be_traced": "EPERM",
    "run_first": "EPERM",
    "be_root": "EPERM",
    "make_cgroup_of_others": "EACCES",
    "set_hostname": "EPERM",
}
BOXES = 6  # tries with a cgroup below its own
REFUSED_TO_ANY_USER = {
    "write_etc": "EACCES",
    "load_module": "EPERM",
    "set_clock": "EPERM",
    "run_first": "EPERM",
    "be_root": "EPERM",
    "make_cgroup_of_others": "EACCES",
}


@pytest.fixture(scope="module")
def tried(service: Service) -> dict[str, str]:
    """What became of each try, made in place of the daemon."""
    service.machine.write(SCRIPT, Path(confined.__file__).read_text())
    service.machine.write("/tmp/of-others", "")
    service.ctl("stop", SERVICE)
    with service.edited(INSTEAD):
        service.ctl("start", SERVICE)
        found: dict[str, str] = json.loads(service.machine.run("cat", FOUND).stdout)
    service.ctl("start", SERVICE)
    return found


def test_what_the_unit_forbids_is_refused(tried: dict[str, str]) -> None:
    assert {name: tried[name] for name in REFUSED} == REFUSED


def test_what_sandboxes_will_be_made_of_is_left(tried: dict[str, str]) -> None:
    needed = {name: became for name, became in tried.items() if name not in REFUSED}

    assert len(needed) == len(confined.NEEDED) + BOXES
    assert {name: became for name, became in needed.items() if became != "ok"} == {}


def test_without_the_unit_most_of_it_would_not_be_refused(
    tried: dict[str, str], booted: Machine
) -> None:
    """Else the tests above prove nothing."""
    as_user = ("systemd-run", "--quiet", "--wait", "--pipe", "--property=User=stackd")
    found = json.loads(booted.run(*as_user, "/usr/bin/python3", "-B", SCRIPT).stdout)

    refused = {name: found[name] for name in REFUSED if found[name] != "ok"}
    assert refused == REFUSED_TO_ANY_USER


def test_the_daemon_has_no_rights_and_cannot_get_any(service: Service) -> None:
    status = service.machine.run("cat", f"/proc/{service.pid}/status").stdout
    found = dict(line.split(":\t", 1) for line in status.splitlines())

    rights = {found[name].strip("0") for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")}
    assert rights == {""}
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"


@pytest.mark.parametrize("path", ["/etc/new", "/usr/new", "/proc/sys/kernel/hostname"])
def test_where_the_daemon_is_not_even_root_could_write(service: Service, path: str) -> None:
    seen = ("nsenter", f"--target={service.pid}", "--mount")

    tried = service.machine.run(*seen, "sh", "-c", f"echo machine > {path}", check=False)

    assert tried.returncode != 0
    assert "Read-only file system" in tried.stderr


def test_where_the_daemon_is_its_state_can_be_written(service: Service) -> None:
    """Else the test above proves nothing."""
    seen = ("nsenter", f"--target={service.pid}", "--mount")

    service.machine.run(*seen, "sh", "-c", "touch /var/lib/stackd/new && rm /var/lib/stackd/new")
