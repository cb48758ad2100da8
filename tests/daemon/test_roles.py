"""Stopping, and roles as processes of their own on one file."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.cli import Command
from support.connectors import action, write_connector
from support.daemon import Answer, DaemonProcess, FarSide, eventually

from stackd.client.api import Api
from stackd.core.errors import ApiError, StackdError
from stackd.queue.job import PROBATION

Daemons = Callable[..., DaemonProcess]

HELD = """
id: {method}
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: call, type: action.http.request, params: {{method: {method}, url: "{url}/{method}"}}}}
edges: [{{from: start, to: call}}]
"""
HOOKED = """
id: hooked
nodes:
  - {id: hook, type: trigger.webhook.inbound, params: {path: hooked}}
  - {id: nap, type: action.time.delay, params: {delayMs: 1100}}
  - {id: out, type: transform.data.set, params: {values: {n: "{{ hook.body.n }}"}}}
edges: [{from: hook, to: nap}, {from: nap, to: out}]
"""


@pytest.fixture
def closed(far_side: FarSide) -> Iterator[FarSide]:
    """The far side, answering nothing until the test opens it; nothing has been sent to it yet."""
    far_side.hits.clear()
    far_side.is_open.clear()
    yield far_side
    far_side.is_open.set()


def hold(daemon: DaemonProcess, far_side: FarSide, method: str = "GET") -> str:
    """An execution whose request has arrived at the closed far side."""
    daemon.load(HELD.format(method=method, url=far_side.url))
    execution_id = daemon.begin(method)
    far_side.arrived(f"/{method}")
    return execution_id


def ask_to_stop(daemon: DaemonProcess) -> None:
    """Send SIGTERM and wait until it drains."""
    before = len(daemon.logged("draining"))
    os.kill(daemon.pid, signal.SIGTERM)
    eventually("it drains", lambda: len(daemon.logged("draining")) > before)


REPLYING = """
id: replying
nodes:
  - {id: hook, type: trigger.webhook.inbound, params: {path: replying, respond: last}}
  - {id: nap, type: action.time.delay, params: {delayHours: 1}}
edges: [{from: hook, to: nap}]
"""


def stored(daemon: DaemonProcess, execution_id: str) -> str:
    """The status of an execution, with no daemon to ask."""
    with daemon.file() as raw:
        (status,) = raw.execute(
            "SELECT status FROM executions WHERE id = ?", (execution_id,)
        ).fetchone()
    return str(status)


# -- stopping


def test_sigterm_lets_what_runs_finish_while_deliveries_are_still_taken(
    daemons: Daemons, closed: FarSide
) -> None:
    daemon = daemons()
    daemon.start()
    daemon.load(HOOKED)
    daemon.load(HELD.format(method="GET", url=closed.url))
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(daemon.http, "POST", "/api/workflows/GET/run?wait=20", {})
        closed.arrived("/GET")

        ask_to_stop(daemon)
        late = daemon.deliver("hooked", {"n": 7})
        ready = daemon.http("GET", "/readyz", authorized=False)
        live = daemon.http("GET", "/livez", authorized=False)
        closed.is_open.set()
        code = daemon.wait()
        asked = asking.result(10)

    assert code == 0
    assert (asked.status, asked.json["status"]) == (200, "completed")
    assert (late.status, ready.status, live.status) == (202, 503, 200)
    late_id = late.json["executionId"]
    assert stored(daemon, asked.json["id"]) == "completed"
    assert stored(daemon, late_id) == "queued"
    daemon.start()
    assert daemon.until(late_id)["output"] == {"n": 7}


def test_callers_who_wait_for_what_will_not_end_here_any_more_are_answered_before_the_end(
    daemons: Daemons,
) -> None:
    daemon = daemons()
    daemon.start()
    daemon.load(REPLYING)
    with ThreadPoolExecutor(2) as pool:
        delivery = pool.submit(daemon.deliver, "replying", {})
        run = pool.submit(daemon.http, "POST", "/api/workflows/replying/run?wait=30", {})
        eventually(
            "both wait",
            lambda: len(daemon.api.get("/api/executions", status="waiting")["items"]) == 2,
        )

        code = daemon.terminate()
        answers = [delivery.result(10), run.result(10)]

    assert code == 0
    assert [answer.status for answer in answers] == [202, 202]
    assert {stored(daemon, answer.json["executionId"]) for answer in answers} == {"waiting"}


def test_a_daemon_that_nobody_probed_before_says_in_its_drain_that_it_had_started(
    daemons: Daemons, closed: FarSide
) -> None:
    daemon = daemons()
    daemon.spawn()
    eventually(
        "the api is ready",
        lambda: [m for m in daemon.logged("service moved") if m["state"] == "ready" and m["service"] == "api"],
    )  # fmt: skip
    hold(daemon, closed)

    ask_to_stop(daemon)
    started = daemon.http("GET", "/startupz", authorized=False)
    ready = daemon.http("GET", "/readyz", authorized=False)
    closed.is_open.set()

    assert daemon.wait() == 0
    assert (started.status, ready.status) == (200, 503)


def test_a_second_sigterm_stops_now_and_the_next_start_goes_on(
    daemons: Daemons, closed: FarSide
) -> None:
    daemon = daemons()
    daemon.start()
    execution_id = hold(daemon, closed)
    ask_to_stop(daemon)

    os.kill(daemon.pid, signal.SIGTERM)
    code = daemon.wait(5)

    assert code == 0
    assert stored(daemon, execution_id) == "running"
    closed.is_open.set()
    daemon.start()
    assert daemon.until(execution_id)["status"] == "completed"


@pytest.mark.parametrize("word", ["start", "dev"])
def test_sighup_ends_dev_with_its_terminal_and_lets_a_service_read_its_settings_again(
    daemons: Daemons, word: str
) -> None:
    daemon = daemons(ENCRYPTION_MASTER_KEY="0123456789abcdefghijklmnopqrstuvwxyzABCD")
    daemon.entry = ("-m", "stackd", word)
    daemon.start()

    os.kill(daemon.pid, signal.SIGHUP)

    if word == "start":
        eventually("it says so", lambda: daemon.logged("settings reloaded"))
        assert daemon.terminate() == 0
    else:
        assert daemon.wait() == 0
        assert daemon.logged("draining")


def test_start_serves_production_and_keeps_no_token(daemons: Daemons) -> None:
    key = "0123456789abcdefghijklmnopqrstuvwxyzABCD"
    daemon = daemons(ENCRYPTION_MASTER_KEY=key)
    daemon.entry = ("-m", "stackd", "start")
    daemon.start()

    local = daemon.api.get("/api/queue")
    guessed = daemon.http("GET", "/api/queue", Authorization="Bearer None")
    empty = daemon.http("GET", "/api/queue", Authorization="Bearer ")
    daemon.load(HOOKED)
    delivered = daemon.deliver("hooked", {"n": 1})

    assert local["paused"] is False
    assert (guessed.status, empty.status, delivered.status) == (401, 401, 202)
    assert "`stackd token create NAME --scope SCOPE`" in guessed.json["hint"]
    assert not (daemon.state / "dev-token").exists()
    assert daemon.terminate() == 0
    assert key not in daemon.log.read_text()


# -- one process per role


@pytest.fixture(scope="module")
def split(
    tmp_path_factory: pytest.TempPathFactory, far_side: FarSide
) -> Iterator[dict[str, DaemonProcess]]:
    """api, worker, scheduler and timers, each a process, started at once on one new state directory."""
    state = tmp_path_factory.mktemp("split") / "state"
    by_handler = (
        "async def handled(params, ctx):\n    return (await ctx.http.get('/handled')).body\n"
    )
    actions = [action("handled"), action("asked", "GET", "/asked")]
    desk = {"id": "desk", "baseUrl": far_side.url, "actions": actions}
    write_connector(state / "connectors", desk, handlers=by_handler)
    quick = {
        "ENABLE_INLINE_WORKER": "false",
        "GENERIC_EXECUTOR_ENABLED": "true",
        "WORKFLOW_TIMER_POLL_INTERVAL_MS": "500",
        "EXECUTION_LOCK_DURATION_MS": "2000",  # renewed, and the dead looked for, every 500 ms
    }
    roles = {
        role: DaemonProcess(state, **quick) for role in ("api", "worker", "scheduler", "timers")
    }
    try:
        for role in ("worker", "scheduler", "timers"):
            roles[role].spawn(role)
        roles["api"].start("api")
        eventually("all are there", lambda: running_roles(roles["api"]) == sorted(roles))
        yield roles
        for one in roles.values():
            assert one.terminate() == 0
        assert not roles["api"].unforeseen()
    finally:
        for one in roles.values():
            one.kill()


def running_roles(api: DaemonProcess) -> list[str]:
    return sorted(process["role"] for process in api.api.get("/api/queue")["processes"])


def test_separate_roles_run_an_execution_with_a_long_wait_end_to_end(
    split: dict[str, DaemonProcess],
) -> None:
    api = split["api"]
    api.load(HOOKED)

    answer = api.deliver("hooked", {"n": 7})

    assert answer.status == 202
    ended = api.until(answer.json["executionId"])
    assert (ended["status"], ended["output"]) == ("completed", {"n": 7})
    (nap,) = [node for node in ended["nodes"] if node["id"] == "nap"]
    assert nap["durationMs"] >= 1100


def test_a_worker_by_itself_knows_the_connectors_and_runs_them_as_the_api_says(
    split: dict[str, DaemonProcess],
) -> None:
    api = split["api"]
    text = (
        "id: by-the-worker\nnodes:\n  - {id: start, type: trigger.time.manual}\n"
        "  - {id: one, type: action.desk.handled}\n  - {id: two, type: action.desk.asked}\n"
        "edges: [{from: start, to: one}, {from: one, to: two}]\n"
    )

    ended = api.until(api.begin(api.load(text)["id"]))

    capabilities = api.http("GET", "/api/registry/capabilities").json["capabilities"]
    (desk,) = [one["actionDetails"] for one in capabilities if one["app"] == "desk"]
    said = [desk[name]["availability"] for name in ("handled", "asked")]
    nodes = {node["id"]: node for node in ended["nodes"]}
    ran = [(nodes[name]["output"], nodes[name]["metadata"]["executor"]) for name in ("one", "two")]
    assert said == ["native", "fallback"]
    assert ran == [({"path": "/handled"}, "integration"), ({"path": "/asked"}, "generic")]


def test_a_cancel_at_the_api_reaches_the_worker_process(
    split: dict[str, DaemonProcess], closed: FarSide
) -> None:
    api = split["api"]
    execution_id = hold(api, closed)

    asked = api.http("POST", f"/api/executions/{execution_id}/cancel")

    assert asked.status == 202
    assert api.until(execution_id)["status"] == "cancelled"


def test_a_killed_worker_is_replaced_by_another_at_once(
    split: dict[str, DaemonProcess], closed: FarSide
) -> None:
    api = split["api"]
    execution_id = hold(api, closed)
    other = DaemonProcess(split["worker"].state, **api.environ)
    other.spawn("worker")
    try:
        eventually("a second worker is there", lambda: running_roles(api).count("worker") == 2)

        split["worker"].kill()
        closed.arrived("/GET", 2)
        closed.is_open.set()

        assert api.until(execution_id)["status"] == "completed"
        assert closed.hits["/GET", ""] == 2
        assert other.terminate() == 0
    finally:
        other.kill()
        split["worker"].spawn("worker")


OWN_PIDS = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")  # as a container has them


@pytest.fixture
def own_pids() -> tuple[str, ...]:
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare command")
    tried = subprocess.run([*OWN_PIDS, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"a pid namespace is not allowed here: {tried.stderr.strip()}")
    return OWN_PIDS


def test_a_worker_whose_pid_cannot_be_seen_is_not_taken_for_dead(
    daemons: Daemons, closed: FarSide, own_pids: tuple[str, ...]
) -> None:
    renewed = {"EXECUTION_LOCK_RENEW_MS": "250", "TRIGGER_SCHEDULER_INTERVAL_MS": "1000"}
    stack, worker = daemons(**renewed), daemons(**renewed)
    worker.within = own_pids
    stack.start("api")
    worker.spawn("worker")
    execution_id = hold(stack, closed, "POST")
    judge = daemons(**renewed)
    judge.spawn("scheduler")
    eventually("the scheduler has looked twice", lambda: looks(judge) > 1)

    closed.is_open.set()

    assert stack.until(execution_id)["status"] == "completed"
    with stack.file() as raw:
        assert raw.execute("SELECT max(fence), max(rescues) FROM jobs").fetchone() == (1, 0)


def looks(scheduler: DaemonProcess) -> int:
    """How many of its rounds, one a second, it has begun."""
    with scheduler.file() as raw:
        row = raw.execute(
            "SELECT heartbeat_at - started_at FROM processes WHERE role = 'scheduler'"
        ).fetchone()
    return 1 + round(row[0]) if row else 0


def test_a_stack_in_a_new_container_takes_back_at_once_what_the_last_one_held(
    daemons: Daemons, closed: FarSide, own_pids: tuple[str, ...]
) -> None:
    daemon = daemons()
    daemon.within = own_pids
    daemon.start()
    execution_id = hold(daemon, closed)

    daemon.kill()
    closed.is_open.set()
    daemon.start()

    assert daemon.until(execution_id)["status"] == "completed"


def test_a_second_stack_on_the_same_state_exits_78_and_names_the_role_and_pid_in_its_way(
    split: dict[str, DaemonProcess], tmp_path: Path
) -> None:
    state = split["api"].state
    late = DaemonProcess(state)
    late.log = tmp_path / "late.log"

    late.spawn("stack")
    code = late.wait()

    (line,) = late.logged("cannot go on")
    assert code == 78
    assert line["code"] == "role.locked"
    holder = split["api"].pid
    assert line["reason"] == f"role api already runs on {state} (pid {holder})"
    assert line["hint"]


# -- the inline worker


def test_the_api_runs_a_worker_in_dev_but_not_in_ci_unless_told_to(tmp_path: Path) -> None:
    rules: list[tuple[dict[str, str], bool]] = [
        ({"CI": ""}, True),
        ({"CI": "true"}, False),
        ({"CI": "true", "ENABLE_INLINE_WORKER": "true"}, True),
    ]
    started = [
        DaemonProcess(tmp_path / str(number), **environ)
        for number, (environ, _) in enumerate(rules)
    ]

    def services(daemon: DaemonProcess) -> set[str]:
        checks: dict[str, Any] = daemon.api.get("/readyz", verbose="1")["checks"]
        return {name for name in checks if name.startswith("service.")}

    try:
        with ThreadPoolExecutor(len(started)) as pool:
            list(pool.map(lambda daemon: daemon.start("api"), started))
        seen = [services(daemon) for daemon in started]
        for daemon in started:
            os.kill(daemon.pid, signal.SIGINT)  # as Ctrl-C does
        codes = [daemon.wait() for daemon in started]
    finally:
        for daemon in started:
            daemon.kill()

    assert codes == [0] * len(rules)
    assert seen == [
        {"service.api", "service.worker"} if inline else {"service.api"} for _, inline in rules
    ]


def test_executions_that_were_in_bad_company_are_not_all_held_to_be_the_cause(
    daemons: Daemons, closed: FarSide
) -> None:
    daemon = daemons()
    daemon.start()
    daemon.load(HELD.format(method="GET", url=closed.url))
    held = [daemon.begin("GET") for _ in range(5)]
    closed.arrived("/GET", 5)

    for crash in range(1, PROBATION + 3):
        daemon.kill()
        before = sum(closed.hits.values())
        daemon.spawn()
        # Before that all of them are taken up again; from then on one at a time.
        closed.arrived("/GET", before + (5 if crash < PROBATION else 1))
    with daemon.file() as raw:
        rescues = sorted(
            row[0] for row in raw.execute("SELECT rescues FROM jobs WHERE kind = 'execution.run'")
        )
    closed.is_open.set()
    daemon.until_ready()

    assert rescues == [PROBATION] * 3 + [PROBATION + 1] * 2
    for execution_id in held:
        daemon.until(execution_id, "completed")


# -- how each process says how it is


@pytest.mark.parametrize("role", ["worker", "scheduler", "timers", "rotation"])
def test_a_role_by_itself_answers_probes_on_a_socket_of_its_own(
    daemons: Daemons, role: str
) -> None:
    daemon = daemons()
    daemon.spawn(role)
    path = daemon.state / f"{role}-{daemon.pid}.sock"
    probes = Api(socket_path=path)

    eventually("it answers", lambda: path.exists() and daemon.logged("ready"))
    answers = {name: probes.get(f"/{name}", verbose="1") for name in ("livez", "startupz")}
    ready = probes.request("GET", "/readyz", query={"verbose": "1"}, allow=frozenset({503})).body
    with pytest.raises(ApiError) as refused:
        probes.get("/api/workflows")

    assert {name: answer["status"] for name, answer in answers.items()} == {
        "livez": "pass",
        "startupz": "pass",
    }
    assert {service["name"] for service in ready["services"]} == {role, "probes"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert refused.value.http_status == 404
    assert daemon.terminate() == 0
    assert not path.exists()


def test_while_the_api_waits_for_its_next_try_who_comes_is_told_so(daemons: Daemons) -> None:
    # With waits of 0.5, 1 and 2 s between.
    daemon = daemons(FAIL_API="3", QUICK="stackd.daemon:OPENS_WITHIN=0.1")
    daemon.spawn()
    (told,) = eventually(
        "it is answered",
        lambda: (a := asked(daemon, "/readyz?verbose")) and a.status == 503 and [a],
    )
    live = daemon.http("GET", "/livez", authorized=False)
    taken = daemon.http("POST", "/api/webhooks/x", {}, authorized=False)

    assert told.json["checks"]["service.api"]["status"] == "fail"
    assert live.status == 200
    assert (taken.status, taken.code) == (503, "starting")
    daemon.until_ready()
    (api,) = [s for s in daemon.api.get("/readyz", verbose="1")["services"] if s["name"] == "api"]
    assert api["restarts"] == 3
    assert daemon.terminate() == 0


def asked(daemon: DaemonProcess, path: str) -> Answer | None:
    try:
        return daemon.http("GET", path, authorized=False)
    except (OSError, http.client.HTTPException):
        return None


def test_health_shows_every_process(split: dict[str, DaemonProcess], command: Command) -> None:
    environ = {"STACKD_STATE_DIR": str(split["api"].state)}

    healthy = eventually(
        "all are ready", lambda: (ran := command("health", **environ)).code == 0 and ran
    )
    as_json = command("health", "--json", **environ).json
    in_full = command("health", "--verbose", **environ).out

    names = {f"  {role} (pid {one.pid})  healthy" for role, one in split.items() if role != "api"}
    lines = [line for line in healthy.out.splitlines() if not line.startswith("    warn ")]
    assert lines[:2] == ["healthy", "  api  healthy"]
    assert set(lines[2:]) == names
    assert as_json["status"] == "pass"
    assert {one["role"]: one["pid"] for one in as_json["processes"]} == {
        role: None if role == "api" else one.pid for role, one in split.items()
    }
    assert in_full.count("  pass store.write") == len(split)
    assert "\n    timers ready since " in in_full


def test_health_tells_a_process_that_died_from_one_that_hangs_and_from_an_api_that_is_not_there(
    daemons: Daemons, command: Command
) -> None:
    api, died, hangs = daemons(), daemons(), daemons()
    environ = {"STACKD_STATE_DIR": str(api.state)}
    for one in (died, hangs):
        one.spawn("worker")
        path = api.state / f"worker-{one.pid}.sock"
        eventually("it answers", lambda path=path: probed(path))
    alone = command("health", **environ)
    api.start("stack")
    died.kill()
    good = command("health", **environ)
    os.kill(hangs.pid, signal.SIGSTOP)
    try:
        bad = command("health", **environ)
    finally:
        os.kill(hangs.pid, signal.SIGCONT)

    assert (alone.code, alone.out.splitlines()[:1]) == (1, ["not healthy"])
    assert f"  api  not healthy: no daemon answers at {api.state}/stackd.sock" in alone.out
    gone = f"\n  worker (pid {died.pid})  gone: it has ended without a word\n"
    assert good.code == 0
    assert gone in good.out
    assert bad.code == 1
    assert gone in bad.out
    assert f"\n  worker (pid {hangs.pid})  not healthy: " in bad.out


def test_health_tells_of_a_role_that_died_and_whose_work_nobody_does(
    daemons: Daemons, command: Command
) -> None:
    api, timers = daemons(), daemons()
    environ = {"STACKD_STATE_DIR": str(api.state)}
    api.start("api")
    timers.spawn("timers")
    path = api.state / f"timers-{timers.pid}.sock"
    eventually("it answers", lambda: probed(path))
    (api.state / "worker-1.sock").write_text("no socket")
    timers.kill()

    told = command("health", **environ)

    assert told.code == 1
    said = f"  timers (pid {timers.pid})  not healthy: it has ended without a word, and nobody does its work"
    assert said in told.out.splitlines()
    assert "worker (pid 1)" not in told.out
    assert command("health", "--live", **environ).code == 0


def probed(path: Path) -> bool:
    try:
        return bool(Api(socket_path=path).get("/startupz", verbose="1"))
    except StackdError:
        return False
