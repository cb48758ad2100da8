"""What is wrong outside: a full or read-only disk, a broken, foreign or locked file, a taken port, bad settings."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import termios
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from support.daemon import ENVIRON, Answer, DaemonProcess, FarSide, eventually, locked
from support.disk import fill, mounted, remount

Daemons = Callable[..., DaemonProcess]

HOOKED = """
id: hooked
nodes:
  - {id: hook, type: trigger.webhook.inbound, params: {path: hooked}}
  - {id: out, type: transform.data.set, params: {values: {n: "{{ hook.body.n }}"}}}
edges: [{from: hook, to: out}]
"""
BOOKING = """
id: booking
nodes:
  - {{id: start, type: trigger.time.manual}}
  - id: book
    type: action.http.request
    effect: keyed
    params: {{method: POST, url: "{url}/book", headers: {{x-execution: "{{{{ execution.id }}}}"}}}}
edges: [{{from: start, to: book}}]
"""
SERVICES = ("worker", "scheduler", "timers", "rotation", "api")
LOCKED_OUT = 10.0  # seconds; what is told of a commit may be 5 old, and of a look too
KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCD"


@pytest.fixture(scope="module")
def left_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory a daemon left when it was asked to stop, with one finished execution."""
    daemon = DaemonProcess(tmp_path_factory.mktemp("left") / "state")
    try:
        daemon.start()
        daemon.load(HOOKED)
        daemon.until(daemon.deliver("hooked", {"n": 1}).json["executionId"], "completed")
        assert daemon.terminate() == 0
    finally:
        daemon.kill()
    (daemon.state / "stackd.sock").unlink(missing_ok=True)
    (daemon.state / "stackd.db.reserve").unlink(
        missing_ok=True
    )  # some tests copy it to a small disk
    return daemon.state


@pytest.fixture
def state(left_state: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return shutil.copytree(left_state, tmp_path / "state")


def command(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`stackd …` as its own process, which must end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "stackd", *words],
        env=ENVIRON | {"STACKD_LOG_STYLE": "json"} | environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def refuses_to_start(daemon: DaemonProcess, code: str, role: str = "stack") -> str:
    """It must end with 78 and name `code`; the reason it gave."""
    daemon.spawn(role)
    assert daemon.wait() == 78, daemon.tail()
    (line,) = daemon.logged("cannot go on")
    assert (line["code"], bool(line["hint"])) == (code, True)
    assert not daemon.unforeseen()
    return str(line["reason"])


# -- the log


def test_a_log_that_nobody_reads_holds_nothing_up(daemons: Daemons) -> None:
    reader, writer = os.pipe()
    daemon = daemons(STACKD_LOG_LEVEL="debug")
    daemon.stderr = writer
    try:
        daemon.start()
        daemon.load(HOOKED)
        accepted = [daemon.deliver("hooked", {"n": n}).json["executionId"] for n in range(200)]
        for execution in accepted:  # their events are more than a pipe holds
            daemon.until(execution, "completed")
        left = array("i", [0])
        fcntl.ioctl(reader, termios.FIONREAD, left)
        assert left[0] > 60_000, "the pipe is not full: this proves nothing"
        assert daemon.terminate() == 0
    finally:
        os.close(reader)
        os.close(writer)


# -- the disk


def test_a_full_disk_is_answered_507_and_everything_acknowledged_ends_once_there_is_room(
    daemons: Daemons, tmp_path: Path, far_side: FarSide
) -> None:
    with mounted(tmp_path / "state", "size=4m"):
        daemon = daemons()
        daemon.start()
        daemon.load(HOOKED)
        daemon.load(BOOKING.format(url=far_side.url))
        far_side.is_open.clear()
        held = daemon.begin("booking")
        far_side.arrived("/book")
        accepted = {daemon.deliver("hooked", {"n": 0}).json["executionId"]}

        ballast = daemon.state / "ballast"
        fill(ballast)
        refused = eventually(
            "a delivery is refused",
            lambda: (a := send(daemon, accepted)).status != 202 and a,
        )
        binary = daemon.deliver("hooked", b"\0" * 100_000, Content_Type="application/octet-stream")
        far_side.is_open.set()
        unready = eventually(
            "it says so", lambda: (a := daemon.http("GET", "/readyz?verbose")).status == 503 and a
        )
        eventually(
            "the run waits",
            lambda: held in [e.get("execution_id") for e in daemon.logged("waiting for the store")],
        )
        ballast.unlink()

        for answer in (refused, binary):
            assert (answer.status, answer.code) == (507, "store.full")
        assert "no space left" in unready.json["checks"]["store.write"]["reason"]
        assert daemon.until(held)["status"] == "completed"
        eventually("a delivery is taken", lambda: send(daemon, accepted).status == 202)
        for execution_id in accepted:
            daemon.until(execution_id, "completed")
        eventually("it is ready", lambda: daemon.http("GET", "/readyz").status == 200)
        stored = daemon.api.get("/api/executions", limit=500)["items"]
        assert {item["id"] for item in stored} == accepted | {held}
        assert far_side.keys[held] == {f"{held}:book"}
        assert far_side.hits["/book", held] == 1
        assert daemon.terminate() == 0
        assert not daemon.unforeseen()


def test_with_a_reserve_what_was_taken_in_ends_on_a_full_disk_and_nothing_new_is_taken_in(
    daemons: Daemons, tmp_path: Path, far_side: FarSide
) -> None:
    with mounted(tmp_path / "state", "size=64m"):
        daemon = daemons(TRIGGER_SCHEDULER_INTERVAL_MS="1000")
        daemon.start()
        reserve = daemon.state / "stackd.db.reserve"
        eventually("the reserve is made", lambda: reserve.exists() and reserve.stat().st_size)
        daemon.load(HOOKED)
        daemon.load(BOOKING.format(url=far_side.url))
        far_side.is_open.clear()
        held = daemon.begin("booking")
        far_side.arrived("/book")
        accepted: set[str] = set()

        ballast = daemon.state / "ballast"
        fill(ballast)
        refused = eventually(
            "a delivery is refused",
            lambda: (a := send(daemon, accepted)).status != 202 and a,
        )
        far_side.is_open.set()
        for execution_id in accepted | {held}:
            daemon.until(execution_id, "completed")
        unready = daemon.http("GET", "/readyz?verbose")

        assert (refused.status, refused.code) == (507, "store.full")
        assert reserve.stat().st_size == 0
        assert unready.status == 503
        assert "disk is full" in unready.json["checks"]["store.space"]["reason"]
        for _ in range(50):
            assert send(daemon, accepted).status == 507
        ballast.unlink()
        eventually("a delivery is taken", lambda: send(daemon, accepted).status == 202)
        assert reserve.stat().st_size == 16 * 1024 * 1024
        for execution_id in accepted:
            daemon.until(execution_id, "completed")
        assert daemon.http("GET", "/readyz").status == 200
        assert daemon.terminate() == 0
        lines = daemon.logged(
            "refused"
        )  # one a second, not one each: there is little room for a log
        assert sum(line["count"] for line in lines) > 50 > len(lines)
        assert not daemon.logged("request failed")
        assert not daemon.unforeseen()


def test_a_start_on_a_full_disk_ends_with_75_and_names_the_place(
    daemons: Daemons, left_state: Path
) -> None:
    daemon = daemons()
    with mounted(daemon.state, "size=4m"):
        shutil.copytree(left_state, daemon.state, dirs_exist_ok=True)
        fill(daemon.state / "ballast")

        daemon.spawn()
        code = daemon.wait()

    (line,) = daemon.logged("cannot go on")
    assert code == 75
    assert str(daemon.state) in line["reason"]
    assert not daemon.unforeseen()


def send(daemon: DaemonProcess, accepted: set[str]) -> Answer:
    answer = daemon.deliver("hooked", {"n": len(accepted)})
    if answer.status == 202:
        accepted.add(answer.json["executionId"])
    return answer


@pytest.mark.parametrize(
    "inodes", [4, 5, 6, 7, 8]
)  # for the locks, the token, the socket, SQLite's files; 12 are enough
def test_a_start_on_a_disk_without_inodes_ends_with_75_and_names_the_place(
    daemons: Daemons, inodes: int
) -> None:
    daemon = daemons()
    with mounted(daemon.state, f"size=64m,nr_inodes={inodes}"):
        daemon.spawn()
        assert daemon.wait() == 75, daemon.tail()

    (line,) = daemon.logged("cannot go on")
    assert line["code"] == "store.full"
    assert str(daemon.state) in line["reason"]
    assert not daemon.unforeseen()


def test_a_read_only_state_directory_is_refused_by_name(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with mounted(state, "ro"):
        ran = command("start", STACKD_STATE_DIR=str(state), ENCRYPTION_MASTER_KEY=KEY)

    assert ran.returncode == 78
    assert f"STACKD_STATE_DIR {state} cannot be written (Read-only file system)" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_store_that_became_read_only_is_refused_by_name(
    daemons: Daemons, left_state: Path
) -> None:
    daemon = daemons()
    with mounted(daemon.state, "size=4m"):
        shutil.copytree(left_state, daemon.state, dirs_exist_ok=True)
        remount(daemon.state, "ro")

        reason = refuses_to_start(daemon, "store.read_only", "worker")  # which takes no lock file

    assert str(daemon.state) in reason


def test_a_file_where_the_state_directory_should_be_is_refused_by_name(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text("mine")

    ran = command("dev", STACKD_STATE_DIR=str(state))

    assert ran.returncode == 78
    assert str(state) in ran.stderr
    assert "Traceback" not in ran.stderr
    assert state.read_text() == "mine"


# -- the file


def test_a_state_directory_removed_in_service_is_noticed_before_anything_is_acknowledged(
    daemons: Daemons, tmp_path: Path
) -> None:
    daemon = daemons()
    daemon.start()
    daemon.load(HOOKED)
    (tmp_path / "state").rename(tmp_path / "elsewhere")

    answer = daemon.deliver("hooked", {"n": 1})

    assert (answer.status, answer.code) == (503, "store.replaced")
    assert daemon.wait() == 75
    (line,) = daemon.logged("gave up")
    assert line["code"] == "store.replaced"
    assert str(tmp_path / "state" / "stackd.db") in line["reason"]
    assert not daemon.unforeseen()


def test_a_log_of_the_store_removed_in_service_costs_nothing(
    daemons: Daemons, tmp_path: Path
) -> None:
    daemon = daemons()
    daemon.start()
    daemon.load(HOOKED)
    accepted = daemon.deliver("hooked", {"n": 1}).json["executionId"]
    daemon.until(accepted, "completed")
    (tmp_path / "state" / "stackd.db-wal").unlink()

    assert daemon.deliver("hooked", {"n": 2}).code == "store.replaced"
    assert daemon.wait() == 75

    daemon.start()
    assert daemon.execution(accepted)["status"] == "completed"


@pytest.mark.parametrize(
    ("first", "last"), [(0, 1), (1, None)], ids=["header", "everything-after-the-header"]
)
def test_a_corrupt_file_is_refused_by_name_and_left_as_it_is(
    daemons: Daemons, state: Path, first: int, last: int | None
) -> None:
    file, page = state / "stackd.db", 4096
    broken = bytearray(file.read_bytes())
    end = len(broken) if last is None else last * page
    broken[first * page : end] = b"\xa5" * (end - first * page)
    file.write_bytes(broken)

    reason = refuses_to_start(daemons(), "store.corrupt")

    assert str(file) in reason
    assert file.read_bytes() == broken


def test_a_page_found_corrupt_in_service_ends_it_with_78(daemons: Daemons, state: Path) -> None:
    file = state / "stackd.db"
    with sqlite3.connect(file) as raw:
        (page,) = raw.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'jobs_running'"
        ).fetchone()
    raw.close()
    with file.open("r+b") as broken:
        broken.seek((page - 1) * 4096)
        broken.write(b"\xa5" * 4096)
    daemon = daemons()

    daemon.spawn()
    code = daemon.wait()

    (line,) = daemon.logged("gave up")
    assert (code, line["code"]) == (78, "store.corrupt")
    assert str(file) in line["reason"]
    assert not daemon.unforeseen()


def test_the_database_of_another_program_is_refused_by_name_and_left_as_it_is(
    daemons: Daemons,
) -> None:
    daemon = daemons()
    daemon.state.mkdir()
    file = daemon.state / "stackd.db"
    with sqlite3.connect(file) as other:
        other.execute("CREATE TABLE theirs (value)")
        other.execute("INSERT INTO theirs VALUES (42)")
    other.close()
    file.chmod(0o644)
    before = file.read_bytes()

    reason = refuses_to_start(daemon, "store.corrupt")

    assert reason == f"{file} is a database of another program"
    assert file.read_bytes() == before
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_fifo_where_the_store_should_be_is_refused_by_name(daemons: Daemons) -> None:
    daemon = daemons()
    daemon.state.mkdir()
    os.mkfifo(daemon.state / "stackd.db")

    reason = refuses_to_start(daemon, "store.corrupt")

    assert reason == f"{daemon.state / 'stackd.db'} is no regular file"


def test_a_file_of_a_newer_stackd_is_refused_by_name(daemons: Daemons, state: Path) -> None:
    with sqlite3.connect(state / "stackd.db") as raw:
        raw.execute("INSERT INTO schema_migrations VALUES (999, 'later', 'sum', 0)")
    raw.close()

    reason = refuses_to_start(daemons(), "store.schema")

    assert f"{state / 'stackd.db'} has schema 999" in reason


# -- the state directory


def test_a_state_directory_too_long_for_a_socket_address_serves_after_a_kill_too(
    daemons: Daemons, tmp_path: Path
) -> None:
    state = tmp_path.joinpath(*["d" * 60] * 3)
    state.parent.mkdir(parents=True)
    daemon = daemons(state)
    daemon.start()
    daemon.load(HOOKED)
    daemon.kill()

    daemon.start()

    ran = command("workflows", "list", STACKD_STATE_DIR=str(state))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("hooked")
    assert daemon.terminate() == 0
    assert not daemon.unforeseen()


# -- the lock


def test_a_start_waits_for_a_store_that_is_locked_and_says_so(
    daemons: Daemons, state: Path
) -> None:
    daemon = daemons(STACKD_STORE_BUSY_SECONDS="0.1")

    with locked(state / "stackd.db"):
        daemon.spawn()
        eventually("it tries again and again", lambda: daemon.logged("the store is being opened"))
        (line,) = daemon.logged("waiting for the store")
        live = daemon.http("GET", "/livez", authorized=False)
        ready = daemon.http("GET", "/readyz?verbose", authorized=False)

    assert line["reason"] == f"{state / 'stackd.db'} is locked by another process"
    assert live.status == 200
    assert (ready.status, ready.json["checks"]["store.open"]["reason"]) == (503, line["reason"])
    daemon.until_ready()
    assert daemon.api.get("/api/executions")["items"][0]["status"] == "completed"
    assert daemon.terminate() == 0
    assert not daemon.unforeseen()


@pytest.mark.parametrize("received", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_asked_to_stop_while_its_store_opens_it_ends_at_once_with_0(
    daemons: Daemons, state: Path, received: signal.Signals
) -> None:
    daemon = daemons(STACKD_STORE_BUSY_SECONDS="30")

    with locked(state / "stackd.db"):
        daemon.spawn()
        eventually("it opens", lambda: daemon.logged("the store is being opened"))
        os.kill(daemon.pid, received)

        assert daemon.wait(5) == 0

    assert not (state / "stackd.sock").exists()
    assert daemon.logged("stopped before the store was open")
    assert not daemon.unforeseen()
    daemon.start()
    assert daemon.terminate() == 0


def test_a_hang_up_while_the_store_of_a_service_opens_changes_nothing(
    daemons: Daemons, state: Path
) -> None:
    daemon = daemons(STACKD_STORE_BUSY_SECONDS="30")
    daemon.entry = ("-m", "stackd", "start")
    _, _, key = (state / "secrets.env").read_text().strip().partition("=")
    with locked(state / "stackd.db"):
        daemon.spawn(ENCRYPTION_MASTER_KEY=key)
        eventually("it opens", lambda: daemon.logged("the store is being opened"))
        os.kill(daemon.pid, signal.SIGHUP)

    daemon.until_ready()
    assert daemon.terminate() == 0


def test_a_crowd_that_comes_while_the_store_opens_does_not_end_the_start(
    daemons: Daemons, state: Path
) -> None:
    daemon = daemons(STACKD_STORE_BUSY_SECONDS="30")
    daemon.within = ("prlimit", "--nofile=512:2048")
    with contextlib.ExitStack() as crowd:
        with locked(state / "stackd.db"):
            daemon.spawn()
            eventually("it opens", lambda: daemon.logged("the store is being opened"))
            for _ in range(700):
                crowd.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
            assert daemon.http("GET", "/livez", authorized=False).status == 200

        daemon.until_ready()
        assert daemon.terminate() == 0
    assert not daemon.unforeseen()


def test_a_lock_in_service_is_answered_503_and_passes(
    daemons: Daemons, state: Path, far_side: FarSide
) -> None:
    daemon = daemons(STACKD_STORE_BUSY_SECONDS="0.1")
    daemon.start()
    daemon.load(BOOKING.format(url=far_side.url))
    far_side.is_open.clear()
    held = daemon.begin("booking")
    eventually("its request has arrived", lambda: far_side.hits["/book", held] == 1)

    with locked(state / "stackd.db"):
        refused = daemon.deliver("hooked", {"n": 1})
        far_side.is_open.set()
        eventually("the run waits", lambda: daemon.logged("waiting for the store"))
    taken = eventually(
        "a delivery is taken", lambda: (a := daemon.deliver("hooked", {"n": 2})).status == 202 and a
    )

    assert (refused.status, refused.code) == (503, "store.busy")
    assert int(refused.headers["retry-after"]) >= 1
    assert daemon.until(held)["status"] == "completed"
    assert daemon.until(taken.json["executionId"])["output"] == {"n": 2}
    assert far_side.hits["/book", held] == 1
    assert daemon.terminate() == 0
    assert not daemon.unforeseen()


def test_while_its_store_is_locked_it_lives_and_is_not_ready_and_nothing_is_started_again(
    daemons: Daemons, state: Path, far_side: FarSide
) -> None:
    daemon = daemons(STACKD_STORE_BUSY_SECONDS="1")
    daemon.start()
    daemon.load(BOOKING.format(url=far_side.url))
    far_side.is_open.clear()
    held = daemon.begin("booking")
    eventually("its request has arrived", lambda: far_side.hits["/book", held] == 1)

    def answers() -> tuple[int, int]:
        """Of /livez and of /readyz."""
        asked = [daemon.http("GET", path, authorized=False) for path in ("/livez", "/readyz")]
        return asked[0].status, asked[1].status

    with locked(state / "stackd.db"):
        far_side.is_open.set()
        eventually("it is not ready", lambda: answers() == (200, 503), within=LOCKED_OUT)
        eventually("the run waits", lambda: daemon.logged("waiting for the store"))
        refused = daemon.deliver("hooked", {"n": 1})
        assert answers() == (200, 503)
        assert daemon.http("GET", "/readyz/store.write").status == 503
    eventually("it is ready again", lambda: answers() == (200, 200))

    assert (refused.status, refused.code) == (503, "store.busy")
    assert daemon.until(held)["status"] == "completed"
    assert far_side.hits["/book", held] == 1
    services = daemon.api.get("/readyz", verbose="1")["services"]
    assert {one["name"]: one["restarts"] for one in services} == dict.fromkeys(SERVICES, 0)
    assert daemon.terminate() == 0
    assert not daemon.unforeseen()


# -- settings


@pytest.mark.parametrize("word", ["start", "dev"])
def test_bad_settings_are_refused_all_at_once(tmp_path: Path, word: str) -> None:
    bad = {
        "STACKD_STATE_DIR": str(tmp_path),
        "PORT": "99999",
        "STACKD_MAX_JOBS": "many",
        "EXECUTION_LOCK_DURATION_MS": "1",
        "ENCRYPTION_MASTER_KEY": "weak-and-secret",
        "STACKD_DRAIN_SECOND": "5",
    }

    ran = command(word, **bad)

    assert (ran.returncode, ran.stdout) == (78, "")
    problems = [line for line in ran.stderr.splitlines() if line.startswith("  - ")]
    for name in ("PORT", "STACKD_MAX_JOBS", "EXECUTION_LOCK_DURATION_MS"):
        assert any(line.startswith(f"  - {name}=") for line in problems), ran.stderr
    assert ("STACKD_DRAIN_SECONDS" in ran.stderr) is (word == "start")
    assert "weak-and-secret" not in ran.stderr
    assert "Traceback" not in ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\xc2\xa0\n"], ids=["empty", "no-break-space"])
def test_a_blank_token_file_is_refused_by_name(daemons: Daemons, content: bytes) -> None:
    daemon = daemons()
    daemon.state.mkdir()
    file = daemon.state / "dev-token"
    file.write_bytes(content)

    daemon.spawn()
    code = daemon.wait()

    (line,) = daemon.logged("cannot go on")
    assert (code, line["code"]) == (78, "settings.invalid")
    assert f"{file} holds no token" in line["reason"]
    assert file.read_bytes() == content
    assert not daemon.unforeseen()


# -- the port


def test_a_taken_port_is_named_and_ends_with_75_before_anything_is_made_of_the_store(
    daemons: Daemons,
) -> None:
    daemon = daemons()
    with socket.create_server(("127.0.0.1", daemon.port)):
        daemon.spawn()
        code = daemon.wait()

    (line,) = daemon.logged("cannot go on")
    assert (code, line["code"]) == (75, "api.address_in_use")
    assert line["reason"] == f"cannot listen on 127.0.0.1:{daemon.port}: Address already in use"
    assert "PORT" in line["hint"]
    assert not (daemon.state / "stackd.db").exists()
    assert not daemon.unforeseen()
