"""Cgroups on the kernel's own tree: what is refused, what is left and removed, and a run's where controllers are."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackd.core.clock import SystemClock
from stackd.sandbox import cgroups
from stackd.sandbox.cgroups import Cgroups, CgroupsError, mounted_at, own_group
from stackd.sandbox.errors import SandboxUnavailableError
from stackd.sandbox.limits import Limits
from stackd.sandbox.run import Job
from stackd.sandbox.sandbox import Sandbox, SandboxOptions

ONE = "def run(params, context):\n    return 1"


def own() -> Path:
    try:
        return mounted_at(
            Path("/proc/self/mountinfo").read_text(),
            own_group(Path("/proc/self/cgroup").read_text()),
        )
    except CgroupsError as error:
        pytest.skip(error.reason)


@pytest.fixture
def place() -> Iterator[Path]:
    """A group of this test's, without controllers."""
    path = own() / f"stackd-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no group can be made here: {error}")
    yield path
    for child in path.iterdir():
        if child.is_dir():
            child.rmdir()
    path.rmdir()


def test_no_cgroups_are_made_where_none_are_wanted() -> None:
    with pytest.raises(CgroupsError, match="SANDBOX_CGROUP_ROOT=none"):
        Cgroups.opened("none")


def test_a_place_that_is_not_there_is_refused() -> None:
    own()
    with pytest.raises(CgroupsError, match="/nowhere/at/all is no cgroup that is there"):
        Cgroups.opened("/nowhere/at/all")


def test_a_place_that_is_not_below_the_daemons_own_is_refused(tmp_path: Path) -> None:
    own()
    with pytest.raises(CgroupsError, match="is not below the daemon's own cgroup"):
        Cgroups.opened(str(tmp_path))


async def test_an_operator_who_names_a_place_gets_that_or_nothing(tmp_path: Path) -> None:
    own()
    options = SandboxOptions(mode="worker", cgroup_root=str(tmp_path))
    async with Sandbox(options, clock=SystemClock()) as sandbox:
        with pytest.raises(SandboxUnavailableError, match=r"SANDBOX_CGROUP_ROOT: .* is not below"):
            await sandbox.run(Job(ONE, {}, {}))


async def test_a_quota_that_nothing_enforces_is_told_with_the_run() -> None:
    options = SandboxOptions(mode="worker", required_level=0, cgroup_root="none")
    async with Sandbox(options, clock=SystemClock()) as sandbox:
        asked = await sandbox.run(Job(ONE, {}, {}, limits=Limits(cpu_quota_ms=50)))
        other = await sandbox.run(Job(ONE, {}, {}))

        assert sandbox.isolation is not None
        limits = sandbox.isolation.limits

    assert (asked.result, asked.not_enforced, other.not_enforced) == (1, ("cpuQuota",), ())
    assert limits["cpuQuota"] == "none"


def test_what_a_dead_daemon_left_is_ended_and_removed(place: Path) -> None:
    left = place / "sandbox-1-0"
    (left / "7").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as run:
        (left / "7" / "cgroup.procs").write_text(str(run.pid))

        cgroups._sweep(place)

        assert run.wait() == -signal.SIGKILL
    assert not left.exists()


def test_what_a_daemon_that_lives_has_is_let_be(place: Path) -> None:
    (place / "sandbox-1-0").mkdir()
    held = os.open(place / "sandbox-1-0", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)

    cgroups._sweep(place)

    os.close(held)
    assert (place / "sandbox-1-0").exists()


async def test_a_run_has_a_cgroup_of_its_own_where_there_can_be_one() -> None:
    options = SandboxOptions(mode="worker", required_level=0)
    async with Sandbox(options, clock=SystemClock()) as sandbox:
        isolation = await sandbox.check()
        if isolation.limits["memory"] != "cgroup":
            pytest.skip(next(words for words in isolation.missing if "cgroup" in words))
        outcome = await sandbox.run(Job(ONE, {}, {}, limits=Limits(cpu_quota_ms=50)))

    assert (outcome.result, outcome.not_enforced) == (1, ())
    assert outcome.peak_bytes != 0
