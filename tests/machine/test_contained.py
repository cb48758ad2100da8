"""Level 3: runs in cgroups of their own below the unit's, as its unprivileged user, on a kernel that has the controllers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import contained
from support.operated import SERVICE, Service

SCRIPT = "/usr/local/lib/contained.py"
FOUND, SAID = "/run/contained.json", "/run/contained.txt"
# The unit as it is installed; only what it runs is another program.
INSTEAD = f"""
Type=oneshot
ExecStart=
ExecStart=/opt/stackd/bin/python -B {SCRIPT}
StandardOutput=file:{FOUND}
StandardError=file:{SAID}
Restart=no
WatchdogSec=0
TimeoutStartSec=10min
"""
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def found(service: Service) -> dict[str, Any]:
    """What became of each try, made in place of the daemon."""
    service.machine.write(SCRIPT, Path(contained.__file__).read_text())
    service.ctl("stop", SERVICE)
    with service.edited(INSTEAD):
        service.machine.run("systemctl", "start", SERVICE, check=False, within=600)
        told = service.machine.run("cat", FOUND).stdout
        print(told, service.machine.run("cat", SAID).stdout)
    service.ctl("start", SERVICE)
    told_of: dict[str, Any] = json.loads(told)
    print(json.dumps(told_of["figures"]))
    return told_of


@pytest.fixture(params=["worker", "process"], scope="module")
def tried(request: pytest.FixtureRequest, found: dict[str, Any]) -> dict[str, Any]:
    of_mode: dict[str, Any] = found[request.param]
    return of_mode


def test_the_level_is_3_and_a_cgroup_bounds_what_can_be_bounded(tried: dict[str, Any]) -> None:
    isolation = tried["isolation"]

    assert (isolation["level"], isolation["missing"], isolation["failed"]) == (3, [], {})
    assert isolation["limits"] == dict.fromkeys(("memory", "cpuQuota", "processes"), "cgroup")


@pytest.mark.parametrize("run", ["bomb", "bomb parked"])
def test_a_run_that_takes_all_memory_is_ended_and_told_so_by_its_cgroup(
    tried: dict[str, Any], run: str
) -> None:
    ended = tried[run]

    assert (ended["verdict"], ended["by"]) == ("memory", "cgroup")
    assert ended["parked"] == (run == "bomb parked")
    assert tried["fits"]["verdict"] == "ok"


def test_a_cpu_quota_slows_a_run_down(tried: dict[str, Any]) -> None:
    slow, fast = tried["quota"], tried["no quota"]

    assert slow["throttled"] >= 5
    assert slow["cpuMs"] < 0.4 * slow["ms"]
    assert fast["throttled"] == 0


def test_a_run_that_waits_for_its_quota_is_not_taken_for_dead(tried: dict[str, Any]) -> None:
    assert tried["silent, throttled"]["verdict"] != "heartbeat"


def test_a_run_has_no_more_threads_than_it_may(tried: dict[str, Any]) -> None:
    assert 0 < tried["threads"]["result"] <= 4


def test_a_run_cannot_leave_its_cgroup_or_raise_its_limits(tried: dict[str, Any]) -> None:
    became = tried["leave"]["result"]

    assert len(became) >= 4
    assert "ok" not in became.values()


def test_a_run_leaves_no_cgroup_behind(tried: dict[str, Any]) -> None:
    assert tried["after"]["verdict"] == "ok"
    assert len(tried["groups while it waits"]) <= 2  # of the process that waits, and of the next
    assert tried["groups afterwards"] == []


def test_what_a_daemon_that_was_killed_left_is_removed_by_the_next(found: dict[str, Any]) -> None:
    assert found["left behind"] == ["1 before"]


def test_a_cgroup_costs_less_than_half_a_fork(found: dict[str, Any]) -> None:
    took = found["figures"]

    assert took["make"] + took["remove"] <= 0.5 * took["fork"], took


def test_the_daemon_tells_that_it_isolates_at_level_3(
    service: Service, found: dict[str, Any]
) -> None:
    assert found
    service.until_ready()

    checks = service.ask("/readyz?verbose").json
    assert '"level": 3' in json.dumps(checks) or '"level":3' in json.dumps(checks)
