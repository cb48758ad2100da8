"""Where the daemon's cgroup is, and what a run's is told, from texts alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackd.sandbox.cgroups import (
    CgroupsError,
    base_of,
    counts,
    mounted_at,
    own_group,
    settings_of,
)
from stackd.sandbox.levels import judged
from stackd.sandbox.limits import Limits

UNIFIED = "25 20 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = (
    "30 20 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "31 20 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n"
)
LAYERS = {"namespaces": True, "seccomp": True, "landlock": 2, "uid": 1, "problems": {}}


def test_own_group_is_that_of_version_2() -> None:
    assert own_group("4:memory:/a\n0::/system.slice/stackd.service\n") == (
        "/system.slice/stackd.service"
    )


@pytest.mark.parametrize("text", ["", "4:memory:/a\n", "0::\n"], ids=["empty", "v1", "odd"])
def test_a_process_in_no_group_of_version_2_is_told_so(text: str) -> None:
    with pytest.raises(CgroupsError, match="in no cgroup of version 2"):
        own_group(text)


@pytest.mark.parametrize(
    ("mounts", "group", "folder"),
    [
        (UNIFIED, "/system.slice/a.service", "/sys/fs/cgroup/system.slice/a.service"),
        (HYBRID, "/a", "/sys/fs/cgroup/unified/a"),
        (UNIFIED.replace(" / /sys", " /box /sys"), "/box/a", "/sys/fs/cgroup/a"),
        (UNIFIED.replace("/sys/fs/cgroup", r"/my\040groups"), "/a", "/my groups/a"),
    ],
    ids=["unified", "hybrid", "part", "blank"],
)
def test_a_group_is_where_its_file_system_is_mounted(mounts: str, group: str, folder: str) -> None:
    assert mounted_at(mounts, group) == Path(folder)


@pytest.mark.parametrize(
    ("mounts", "group"),
    [("", "/a"), (UNIFIED.replace(" / /sys", " /box /sys"), "/boxes/a"), ("garbage", "/a")],
    ids=["none", "elsewhere", "garbage"],
)
def test_a_group_that_is_mounted_nowhere_is_told_of(mounts: str, group: str) -> None:
    with pytest.raises(CgroupsError, match="no cgroup file system"):
        mounted_at(mounts, group)


@pytest.mark.parametrize("name", ["a.service", "a.service/supervisor"], ids=["top", "leaf"])
def test_the_delegated_group_is_the_same_from_its_leaf(name: str) -> None:
    assert base_of(Path("/sys/fs/cgroup") / name) == Path("/sys/fs/cgroup/a.service")


def test_a_run_is_told_its_limits_in_the_units_of_the_kernel() -> None:
    limits = Limits(memory_mb=64, cpu_quota_ms=20, threads=4)

    assert settings_of(limits) == {
        "memory.max": "67108864",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "20000 100000",
        "pids.max": "5",
    }


def test_what_a_run_may_write_comes_on_top_of_its_memory() -> None:
    assert settings_of(Limits(memory_mb=64, scratch_mb=16))["memory.max"] == "83886080"


def test_a_run_without_a_quota_has_as_much_cpu_as_there_is() -> None:
    assert settings_of(Limits())["cpu.max"] == "max 100000"


def test_lines_that_are_no_counts_are_left_out() -> None:
    assert counts("oom 1\noom_kill 2\nodd\nmax max\n") == {"oom": 1, "oom_kill": 2}


@pytest.mark.parametrize("name", ["group", "bomb", "memory"])
def test_a_cgroup_that_does_not_hold_is_no_level_3(name: str) -> None:
    found = judged(LAYERS, {name: "was not denied"}, cgroup=None)

    assert found.level == 2
    assert any(words.startswith(name) for words in found.missing)


def test_a_cgroup_that_does_not_hold_bounds_nothing() -> None:
    found = judged(LAYERS, {"group": "was not denied"}, cgroup=None)

    assert found.limits == {"memory": "rlimit", "cpuQuota": "none", "processes": "seccomp"}


def test_with_a_cgroup_that_holds_it_is_level_3() -> None:
    found = judged(LAYERS, {}, cgroup=None)

    assert (found.level, found.missing) == (3, ())
    assert set(found.limits.values()) == {"cgroup"}
