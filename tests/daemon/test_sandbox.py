"""What a real daemon tells of its sandbox: in its checks, its metrics and what it says that it can run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.cli import Command
from support.daemon import DaemonProcess, eventually, running

RUNS = """
id: runs
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: a, type: action.code.run, runtime: {code: "def run(params, context):\\n    return params['n'] + 1"}, params: {n: 1}}
edges: [{from: start, to: a}]
"""
SPINS = """
id: spins
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: a, type: action.code.run, runtime: {maxCpuMs: 20, code: "def run(params, context):\\n    while True: pass"}}
edges: [{from: start, to: a}]
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with running(tmp_path_factory.mktemp("sandbox"), SANDBOX_EXECUTOR="thread") as daemon:
        yield daemon


def check(daemon: DaemonProcess) -> Any:
    """The check of the sandbox, once it was found out how well that isolates."""

    def look() -> Any:
        found = daemon.http("GET", "/readyz?verbose").json["checks"]["sandbox"]
        return found if found["details"]["level"] is not None else None

    return eventually("the sandbox was tried", look)


def capabilities(daemon: DaemonProcess) -> tuple[Any, Any]:
    """All that is told, and what of it is about code."""
    told = daemon.http("GET", "/api/registry/capabilities?include=unavailable").json
    (code,) = (one for one in told["capabilities"] if one["app"] == "code")
    return told, code["actionDetails"]["run"]


def metric(daemon: DaemonProcess, name: str) -> float:
    """The figure of that name with its labels; 0 where there is none yet."""
    found = re.search(
        rf"^{re.escape(name)} (\S+)$", daemon.http("GET", "/metrics").text, re.MULTILINE
    )
    return float(found[1]) if found else 0.0


def test_readiness_tells_how_well_code_is_isolated(daemon: DaemonProcess):
    found = check(daemon)

    details = found["details"]
    assert (found["status"], found["reason"]) == ("pass", None)
    assert (details["mode"], details["required"], details["failed"]) == ("worker", 2, {})
    assert details["level"] >= 2
    assert details.keys() >= {"name", "layers", "limits", "missing"}
    assert daemon.http("GET", "/api/production/ready").json["checks"]["sandbox"] is True


def test_capabilities_tell_that_code_runs_and_how_well_it_is_isolated(daemon: DaemonProcess):
    level = check(daemon)["details"]["level"]

    told, code = capabilities(daemon)

    sandbox = told["environment"]["sandbox"]
    assert (sandbox["available"], sandbox["problem"], sandbox["level"]) == (True, None, level)
    assert (code["availability"], code["resolvedRuntime"]) == ("native", "python")


def test_metrics_count_runs_of_code_by_how_they_ended(daemon: DaemonProcess):
    names = [
        'stackd_sandbox_runs_total{mode="worker",verdict="ok"}',
        'stackd_sandbox_runs_total{mode="worker",verdict="cpu"}',
        'stackd_sandbox_run_seconds_count{mode="worker"}',
        'sandbox_policy_violations_total{type="resource-limit"}',
        "sandbox_quarantined",
    ]
    level = check(daemon)["details"]["level"]
    before = [metric(daemon, name) for name in names]
    daemon.load(RUNS)
    daemon.load(SPINS)

    ran = daemon.until(daemon.begin("runs"))
    spun = daemon.until(daemon.begin("spins"))

    assert (ran["output"], spun["error"]["code"]) == (2, "sandbox.cpu")
    after = [metric(daemon, name) for name in names]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 2, 1, 1]
    assert metric(daemon, 'stackd_sandbox_level{mode="worker"}') == level
    assert metric(daemon, 'stackd_sandbox_available{mode="worker"}') == 1
    assert metric(daemon, "sandbox_active") == metric(daemon, "stackd_sandbox_waiting") == 0


def test_where_isolation_is_not_enough_code_alone_does_not_run(command: Command, tmp_path: Path):
    required = {"STACKD_SANDBOX_REQUIRE_LEVEL": "3", "SANDBOX_CGROUP_ROOT": "none"}
    with running(tmp_path, **required) as daemon:  # which is ready
        found = check(daemon)
        told, code = capabilities(daemon)
        listed = command(
            "capabilities", "--app", "code", "--json", STACKD_STATE_DIR=str(daemon.state)
        )
        daemon.load(RUNS)
        ran = daemon.until(daemon.begin("runs"))

        (issue,) = code["issues"]
        assert found["status"] == "warn"
        assert found["reason"].startswith("this host isolates at level 2 (contained, soft limits)")
        assert "STACKD_SANDBOX_REQUIRE_LEVEL=2 would accept it" in found["reason"]
        assert told["environment"]["sandbox"]["available"] is False
        assert told["environment"]["sandbox"]["problem"] == found["reason"]
        assert code["availability"] == "unavailable"
        assert (issue["code"], issue["severity"]) == ("runtime.native_unavailable", "error")
        assert issue["message"] == f"code does not run: {found['reason']}"
        assert json.loads(listed.out)["capabilities"][0]["actionDetails"]["run"] == code
        assert (ran["status"], ran["error"]["code"]) == ("failed", "sandbox.unavailable")
        assert metric(daemon, 'stackd_sandbox_available{mode="process"}') == 0
        assert [one["level"] for one in daemon.logged("sandbox tried")] == ["warning"]


def test_quarantined_code_is_listed_and_runs_again_once_it_is_released(
    daemon: DaemonProcess, command: Command
):
    state = {"STACKD_STATE_DIR": str(daemon.state)}
    daemon.load(SPINS.replace("id: spins", "id: hot"))
    daemon.until(daemon.begin("hot"))

    refused = daemon.until(daemon.begin("hot"))
    listed = command("sandbox", "quarantine", "--json", **state).json
    released = command("sandbox", "release", "hot", "a", **state)
    again = daemon.until(daemon.begin("hot"))

    assert refused["error"]["code"] == "sandbox.quarantined"
    (entry,) = (one for one in listed["items"] if one["workflowId"] == "hot")
    assert (entry["version"], entry["node"], entry["reason"]["resource"]) == (1, "a", "cpu")
    assert (released.code, released.out.strip()) == (0, "runs again: 1")
    assert again["error"]["code"] == "sandbox.cpu"
    assert "no workflow" in command("sandbox", "release", "nothing", **state).err


def test_a_new_version_is_not_in_quarantine(daemon: DaemonProcess):
    daemon.load(SPINS.replace("id: spins", "id: mended"))
    daemon.until(daemon.begin("mended"))

    daemon.load(RUNS.replace("id: runs", "id: mended"))

    assert daemon.until(daemon.begin("mended"))["output"] == 2


SLEEPS = """
id: sleeps
nodes:
  - {id: start, type: trigger.time.manual}
  - id: a
    type: action.code.run
    runtime:
      code: |
        import time
        def run(params, context):
            time.sleep(params["seconds"])
            return "done"
    params: {seconds: "{{ start }}"}
edges: [{from: start, to: a}]
"""


@pytest.mark.crash
def test_a_killed_daemon_leaves_no_process_and_its_code_runs_again(tmp_path: Path):
    with running(tmp_path, SANDBOX_EXECUTOR="worker") as daemon:
        check(daemon)
        daemon.load(SLEEPS)
        execution = daemon.begin("sleeps", 2)
        eventually("the code runs", lambda: metric(daemon, "sandbox_active") == 1)
        below = {one.pid for one in psutil.Process(daemon.pid).children(recursive=True)}

        daemon.kill()

        assert len(below) >= 3
        eventually("nothing of it is left", lambda: not any(map(psutil.pid_exists, below)))
        daemon.start()
        ended = daemon.until(execution)
        assert (ended["status"], ended["output"]) == ("completed", "done")
