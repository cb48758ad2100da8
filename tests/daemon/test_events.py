"""`/api/events` and `executions tail` against a real daemon: what happens is told as it happens."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
from support.daemon import ENVIRON, DaemonProcess, FarSide, eventually, running

from stackd.client.api import Api
from stackd.client.wire import ServerEvent

ENDED = "the stream has ended"
HELLO = """
id: hello
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: a, type: transform.data.set, params: {values: {v: '{{ start }}'}}}
edges: [{from: start, to: a}]
"""
FAILS = """
id: fails
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: a, type: transform.data.set, params: {values: {v: '{{ 1 // 0 }}'}}}
edges: [{from: start, to: a}]
"""
HELD = """
id: held
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: a, type: transform.data.set, params: {{values: {{}}}}}}
  - {{id: call, type: action.http.request, params: {{url: "{url}/held"}}}}
edges: [{{from: start, to: a}}, {{from: a, to: call}}]
"""


@contextlib.contextmanager
def listening(
    daemon: DaemonProcess, *, api: Api | None = None, **query: str
) -> Iterator[SimpleQueue[ServerEvent]]:
    """The events of a stream, in a queue, once it stands; ENDED after the last."""
    came: SimpleQueue[ServerEvent] = SimpleQueue()

    def listen() -> None:
        with contextlib.suppress(Exception):
            for event in (api or daemon.api).events("/api/events", timeout=20, **query):
                came.put(event)
            came.put(ServerEvent(None, ENDED, None))

    open_before = streams(daemon)
    threading.Thread(target=listen, daemon=True).start()
    eventually("the stream stands", lambda: streams(daemon) > open_before)
    yield came


def streams(daemon: DaemonProcess) -> int:
    text = daemon.http("GET", "/metrics").text
    line = next(one for one in text.splitlines() if one.startswith("stackd_event_streams "))
    return int(float(line.split()[1]))


def until(came: SimpleQueue[ServerEvent], name: str) -> list[ServerEvent]:
    found = [came.get(timeout=20)]
    while found[-1].name != name:
        found.append(came.get(timeout=20))
    return found


@pytest.fixture(scope="module", autouse=True)
def loaded(daemon: DaemonProcess, far_side: FarSide) -> None:
    for text in (HELLO, FAILS, HELD.format(url=far_side.url)):
        daemon.load(text)


def test_a_stream_tells_an_execution_from_its_beginning_to_its_end(daemon):
    with listening(daemon, workflowId="hello") as came:
        execution = daemon.begin("hello", 1)

        told = until(came, "ExecutionFinished")

    names = [event.name for event in told]
    assert names == [
        "ExecutionQueued",
        "ExecutionStarted",
        "NodeFinished",
        "NodeFinished",
        "ExecutionFinished",
    ]
    assert {event.data["executionId"] for event in told} == {execution}
    assert told[-1].data["status"] == "completed"
    assert len({event.id for event in told}) == 5


def test_a_stream_tells_one_execution_where_one_is_asked_for(daemon, far_side):
    far_side.is_open.clear()
    held = daemon.begin("held")
    far_side.arrived("/held")
    with listening(daemon, executionId=held) as came:
        daemon.until(daemon.begin("hello"))
        far_side.is_open.set()

        told = until(came, "ExecutionFinished")

    assert {event.data["executionId"] for event in told} == {held}


def test_an_event_that_is_none_is_refused_with_the_nearest(daemon):
    answer = daemon.http("GET", "/api/events?types=NodeFinshed")

    assert (answer.status, answer.code) == (422, "query.types")
    assert "NodeFinished" in answer.json["hint"]


def test_a_stream_needs_a_token_over_tcp(daemon):
    assert daemon.http("GET", "/api/events", authorized=False).status == 401


def test_a_stream_tells_of_tokens_only_who_may_know_of_them_and_ends_with_its_own(daemon):
    token = daemon.api.post("/api/tokens", {"name": "reads", "scopes": ["read"]})
    reader = Api(url=daemon.url, token=token["token"])
    with listening(daemon) as all_there_is, listening(daemon, api=reader) as told:
        other = daemon.api.post("/api/tokens", {"name": "other", "scopes": ["read"]})
        daemon.begin("hello")
        before_it = [event.name for event in until(told, "ExecutionFinished")]
        daemon.api.request("DELETE", f"/api/tokens/{token['id']}")

        assert until(told, ENDED)
        assert not [name for name in before_it if name.startswith("Token")]
        assert until(all_there_is, "TokenCreated")[-1].data["tokenId"] == other["id"]


def test_a_silent_stream_is_not_cut_off_as_slow_nor_is_one_that_paused(tmp_path):
    """A client has half a second; a stream may be silent for longer, also after much was written at once."""
    with running(tmp_path, STACKD_CLIENT_SECONDS="0.5") as daemon:
        daemon.load(HELLO)
        with listening(daemon) as came:
            for _ in range(200):
                daemon.begin("hello")
            eventually("all were told", lambda: came.qsize() > 200)
            quiet = threading.Event()
            quiet.wait(
                2.0
            )  # it would be cut off after half a second, found at the next look, one a second
            last = daemon.begin("hello")

            while (event := came.get(timeout=20)).data.get("executionId") != last:
                pass
            assert event.name


def test_a_stream_ends_with_the_daemon_at_once(tmp_path):
    with running(tmp_path) as daemon, listening(daemon):
        assert daemon.terminate() == 0
        daemon.start()


def test_who_leaves_a_stream_is_noticed(daemon):
    before = streams(daemon)
    child = subprocess.Popen(
        ["curl", "-sN", "--unix-socket", str(daemon.state / "stackd.sock"), "http://x/api/events"],
        stdout=subprocess.DEVNULL,
    )
    try:
        eventually("it stands", lambda: streams(daemon) == before + 1)
    finally:
        child.kill()
        child.wait()
    eventually("it is noticed", lambda: streams(daemon) == before)


# -- tail


def test_tail_follows_an_execution_to_its_end(stackd, daemon):
    execution = daemon.begin("hello", 1)
    daemon.until(execution)

    ran = stackd("executions", "tail", execution)

    assert ran.code == 0
    lines = ran.out.splitlines()
    assert [line.split()[2:4] for line in lines[:-1]] == [
        ["start", "completed"],
        ["a", "completed"],
    ]
    assert lines[-1] == f"{execution} is completed"


def test_tail_ends_with_1_if_the_execution_fails(stackd, daemon):
    execution = daemon.begin("fails")
    daemon.until(execution)

    ran = stackd("executions", "tail", execution)

    assert ran.code == 1
    assert "division by zero" in ran.out.splitlines()[-1]


def test_tail_of_an_execution_that_is_none_says_so(stackd):
    ran = stackd("executions", "tail", "nope")

    assert ran.code == 2
    assert "no execution 'nope'" in ran.err


def test_tail_tells_what_ended_before_and_what_ends_meanwhile_once_each(daemon, far_side, tmp_path):
    far_side.is_open.clear()
    before = sum(hits for (path, _), hits in far_side.hits.items() if path == "/held")
    execution = daemon.begin("held")
    far_side.arrived("/held", before + 1)
    with tailing(daemon, execution, "--json") as child:
        assert child.stdout is not None
        first = [json.loads(child.stdout.readline()) for _ in range(2)]

        far_side.is_open.set()
        rest = [json.loads(line) for line in child.stdout]

        assert child.wait(20) == 0
    told = [(one["event"], one.get("key")) for one in [*first, *rest]]
    assert sorted(told[:2]) == [("NodeFinished", "a"), ("NodeFinished", "start")]
    assert told.count(("NodeFinished", "call")) == 1
    assert told[-1] == ("Rested", None)


def test_tail_of_everything_goes_on_until_it_is_interrupted(daemon):
    before = streams(daemon)
    with tailing(daemon, "--workflow", "hello") as child:
        assert child.stdout is not None
        eventually("it listens", lambda: streams(daemon) > before)
        execution = daemon.begin("hello")

        line = child.stdout.readline()

        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 130
    assert execution.encode() in line


@contextlib.contextmanager
def tailing(daemon: DaemonProcess, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-m", "stackd", "executions", "tail", *words],
        env=ENVIRON | {"STACKD_STATE_DIR": str(daemon.state)},
        stdout=subprocess.PIPE,
        cwd=Path(daemon.state).parent,
    ) as child:
        try:
            yield child
        finally:
            child.kill()
