"""Whatever a node is given and whatever answers it, it ends as a node: done, failed or waiting, and nothing beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from support.held import held
from support.outbound import client
from support.runs import World
from support.servers import Link, Names, far_side

from stackd.core.clock import epoch
from stackd.core.errors import NodeError
from stackd.core.json import dumps, loads
from stackd.store.database import Database
from stackd.testing import FakeClock, ok
from stackd.workflows.executions import ExecutionStatus, NodeStatus
from stackd.workflows.findings import DocumentError

FUZZ = settings(
    max_examples=60,
    deadline=None,  # an example writes to disk
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


def flow(workflow_id: str, node: str) -> str:
    return (
        f"id: {workflow_id}\nnodes:\n  - {{id: start, type: trigger.time.manual}}\n  - {node}\n"
        "edges: [{from: start, to: a}]\n"
    )


def call(method: str = "POST", more: str = "") -> str:
    return flow(
        "call",
        f"{{id: a, type: action.http.request, retry: {{maxAttempts: 1}}, "
        f"params: {{url: 'http://far.example/', method: {method}{more}}}}}",
    )


async def failure(world: World, execution_id: str) -> dict[str, Any]:
    """The error of the node `a`, which is the execution's too."""
    row, node = await world.row(execution_id), (await world.nodes(execution_id))["a"]
    assert (row.status, node.status) == (ExecutionStatus.FAILED, NodeStatus.FAILED)
    assert loads(row.error) == {**loads(node.error), "nodeId": "a"}
    return loads(node.error)


# -- what is given


@pytest.mark.parametrize(
    "params",
    [
        {"until": 1e300},
        {"until": -1e300},
        {"until": 10**400},
        {"until": 253_402_300_800},
        {"until": "9999-12-31T23:59:59-01:00"},
        {"until": "0001-01-01T00:00:00+01:00"},
        {"until": "9999-12-31"},
        {"until": "soon"},
        {"until": "\x00"},
        {"until": ""},
        {"until": True},
        {"delayMs": 1e300},
        {"delayMs": 10**400},
        {"delayHours": 31_622_400_000},
        {"delaySeconds": -1},
        {"delayMinutes": "5"},
    ],
    ids=repr,
)
async def test_a_delay_that_is_none_fails_its_node(world, params):
    asked = ", ".join(f"{name}: '{{{{ start.{name} }}}}'" for name in params)
    text = flow("nap", f"{{id: a, type: action.time.delay, params: {{{asked}}}}}")

    done = await world.run(text, params)

    assert (await failure(world, done))["code"] == "params.invalid"


@pytest.mark.parametrize(
    ("params", "at"),
    [
        ({"until": "9999-12-31T23:59:59Z"}, "9999-12-31T23:59:59.000Z"),
        ({"until": "9999-12-31T23:59:59+14:00"}, "9999-12-31T09:59:59.000Z"),
        ({"until": 253_402_300_799}, "9999-12-31T23:59:59.000Z"),
        ({"delayHours": 8784, "delayMinutes": 527_040}, "2025-11-15T22:13:20.000Z"),
    ],
    ids=repr,
)
async def test_a_delay_as_long_as_the_calendar_waits(world, params, at):
    asked = ", ".join(f"{name}: '{{{{ start.{name} }}}}'" for name in params)
    text = flow("nap", f"{{id: a, type: action.time.delay, params: {{{asked}}}}}")

    done = await world.run(text, params)

    assert (await world.row(done)).status is ExecutionStatus.WAITING
    world.clock.advance(epoch(at) - world.clock.time())
    assert await world.fire_timers() == 1
    await world.work()
    assert loads((await world.row(done)).output)["resumeAt"] == at


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\udfff": 1}', '["a\\uD83Db"]'])
async def test_half_a_character_read_from_json_fails_its_node(world, text):
    done = await world.run(
        flow(
            "set",
            "{id: a, type: transform.data.set, params: {values: {v: '{{ start | fromjson }}'}}}",
        ),
        text,
    )

    error = await failure(world, done)
    assert (error["code"], "half a character" in error["message"]) == ("expression.invalid", True)


async def test_an_output_nested_too_deep_fails_its_node(world):
    values = "{v: '{{ start }}', w: [['{{ start }}']]}"
    deep: Any = 2**70
    for _ in range(499):
        deep = [deep]

    done = await world.run(
        flow("set", f"{{id: a, type: transform.data.set, params: {{values: {values}}}}}"), deep
    )

    error = await failure(world, done)
    assert (error["code"], "deeper than 500" in error["message"]) == ("node.bad_output", True)


async def test_an_error_that_quotes_half_a_character_or_at_length_is_kept(world):
    world.http.script.append(NodeError(f"\ud800{'x' * 5000}", kind="rejected", code="far.odd"))

    done = await world.run(call())

    error = await failure(world, done)
    assert error["message"].startswith("\\ud800xxx")
    assert len(error["message"]) < 2100


async def test_any_number_of_nodes_in_a_row_may_be_skipped(world):
    ids = [f"n{number}" for number in range(1_200)]  # Python calls itself a thousand times at most
    nodes = [{"id": one, "type": "transform.data.set", "params": {"values": {}}} for one in ids]
    edges = [{"from": a, "to": b} for a, b in pairwise(ids)]
    start = {"id": "start", "type": "trigger.time.manual"}
    first = {"from": "start", "to": "n0", "when": False}

    done = await world.run(
        dumps({"id": "long", "nodes": [start, *nodes], "edges": [first, *edges]}).decode()
    )

    states = await world.states(done)
    assert (await world.row(done)).status is ExecutionStatus.COMPLETED
    assert states == {"start": NodeStatus.COMPLETED} | dict.fromkeys(ids, NodeStatus.SKIPPED)


# -- faults of ours


@pytest.mark.parametrize(("method", "ends"), [("GET", "failed"), ("POST", "uncertain")])
async def test_an_error_nobody_foresaw_is_the_nodes_and_in_the_log_under_its_id(
    world, method, ends
):
    world.http.script.append(ZeroDivisionError("of the far side's making"))

    with capture_logs() as lines:
        done = await world.run(call(method))

    node = (await world.nodes(done))["a"]
    error = loads(node.error)
    (line,) = [line for line in lines if line["event"] == "a fault of stackd"]
    assert (await world.row(done)).status.value == node.status.value == ends  # it was sent
    assert "ZeroDivisionError" in error["message"]
    assert line["fault"] in error["message"]
    assert isinstance(line["exc_info"], ZeroDivisionError)
    assert "far side's making" not in error["message"]


async def test_an_error_nobody_foresaw_after_the_answer_leaves_nothing_uncertain(world):
    world.http.script.append(replace(ok(b"{}", 503), headers={"retry-after": 5}))  # no text

    done = await world.run(call("POST"))

    assert (await failure(world, done))["code"] == "node.internal"


async def test_what_follows_a_fault_of_ours_is_up_to_the_node_as_for_any_failure(world):
    world.http.script.append(replace(ok(b"{}", 503), headers={"retry-after": 5}))
    text = (
        call("POST")
        .replace("id: a,", "id: a, onError: continue,")
        .replace(
            "edges: [",
            "  - {id: b, type: transform.data.set, params: {values: {v: '{{ a.error.code }}'}}}\n"
            "edges: [{from: a, to: b}, ",
        )
    )

    done = await world.run(text)

    assert loads((await world.row(done)).output) == {"v": "node.internal"}


# -- whatever it is


TEXTS = st.sampled_from(
    ["", " ", "\x00", "a\nb", "\r\nX-Evil: 1", "\x85\u2028", "ü€😀", "{{", "'", '"', "\\", "%", "%zz", "..", "/../",
     "?a=b#c", "1e999", "٣", "9" * 400, "Infinity", "null", "application/json; charset=", "x" * 3000]
) | st.text(max_size=20)  # fmt: skip
NUMBERS = st.sampled_from(
    [0, -1, 1.5, 1e300, -1e300, 5e-324, -0.0, 2**63, 2**64, 10**400, 253_402_300_800, 86_400_000]
) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)  # fmt: skip
ODD = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
ESCAPED = st.sampled_from(
    ['"\\ud800"', '{"a": "\\uDFFF"}', "[1]", "{", '"\\ud83d\\ude00"', "1e400"]
)
SCALARS = st.dictionaries(TEXTS, TEXTS | NUMBERS | st.lists(TEXTS, max_size=2), max_size=3)
FILES = st.fixed_dictionaries(
    {"content": ODD}, optional={"filename": ODD, "contentType": TEXTS | ODD}
)


def mostly(plausible: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what a request can be made of, so that most are."""
    return st.one_of(plausible, plausible, plausible, ODD)


REQUESTS = st.fixed_dictionaries(
    {"path": TEXTS | NUMBERS},
    optional={
        "method": mostly(st.sampled_from(["POST", "PUT", "GET", "PATCH"])),
        "query": mostly(SCALARS),
        "headers": mostly(st.dictionaries(st.sampled_from(["x-a", "Host", "Content-Type", "Accept"]) | TEXTS, TEXTS | NUMBERS, max_size=2)),
        "timeoutMs": st.sampled_from([5000, 86_400_000, 10**400, 1e300, "5", -1]),
        "followRedirects": mostly(st.booleans()),
        "responseType": mostly(st.sampled_from(["auto", "json", "text", "blob"])),
        "allowStatus": mostly(st.just(True) | st.lists(st.sampled_from([404, "500", "400-599"]))),
    },
).flatmap(
    lambda base: st.one_of(
        st.just({}),
        st.fixed_dictionaries({"json": ODD}),
        st.fixed_dictionaries({"form": mostly(SCALARS)}),
        st.fixed_dictionaries({"multipart": mostly(st.dictionaries(TEXTS, FILES | TEXTS, max_size=2))}),
        st.fixed_dictionaries({"body": ODD}),
        st.fixed_dictionaries({"text": ESCAPED}),
    ).map(lambda body: base | body)
)  # fmt: skip

HEADER_TEXT = st.text(st.characters(max_codepoint=0xFF, exclude_characters="\r\n\x00"), max_size=30)
DATES = st.sampled_from(
    ["Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 31 Dec 99999999 23:59:59 GMT", "Mon, 01 Jan 0000 00:00:00 GMT",
     "Mon, 01 Jan 2024 00:00:00 +999999999999999999", "Mon, 01 Jan 2024 99:99:99 GMT", "1 Jan 1 1:1:1 -2359",
     "9" * 400, "-1", "1e9", "٣", "Mon", ",", "1 1 1 1 1", "2024-01-01T00:00:00Z"]
) | HEADER_TEXT  # fmt: skip
ANSWERS = st.builds(
    lambda status, fields, body: b"".join(
        [
            f"HTTP/1.1 {status} Said\r\nConnection: close\r\nContent-Length: {len(body)}\r\n".encode(),
            *(f"{name}: {value}\r\n".encode("latin-1", "replace") for name, value in fields.items()),
            b"\r\n",
            body,
        ]
    ),
    st.sampled_from([200, 200, 201, 204, 301, 304, 400, 404, 429, 500, 503, 599]),
    st.dictionaries(
        st.sampled_from(["Retry-After", "Content-Type", "Location", "X-A", "Content-Encoding", "Set-Cookie"]),
        DATES | st.sampled_from(["application/json", "text/plain; charset=utf-16", "a/b; charset=\"", "gzip", "/x", "http://["]),
    ),
    st.sampled_from([b"", b"{}", b'"\\ud800"', b"[" * 600 + b"]" * 600, b"\xff\xfe\x00", b"1e999", b"x" * 70_000])
    | st.binary(max_size=40),
)  # fmt: skip


@dataclass
class Saying:
    """A far side that gives every request the answer of the moment."""

    answer: bytes = b""
    asked: list[str] = field(default_factory=list)

    async def behave(self, link: Link) -> None:
        seen = await link.request()
        if seen is not None:
            self.asked.append(seen.target)
            await link.send(self.answer)


HTTP_FLOW = """
id: call
nodes:
  - {id: start, type: trigger.time.manual}
  - id: a
    type: action.http.request
    retry: {maxAttempts: 1}
    params:
      url: "URL{{ start.path }}"
      method: "{{ start.method | default('POST') }}"
      query: "{{ start.query | omit }}"
      headers: "{{ start.headers | omit }}"
      timeoutMs: "{{ start.timeoutMs | omit }}"
      followRedirects: "{{ start.followRedirects | omit }}"
      responseType: "{{ start.responseType | omit }}"
      allowStatus: "{{ start.allowStatus | omit }}"
      BODY: "{{ start.BODY }}"
edges: [{from: start, to: a}]
"""


def http_flow(url: str, body: str | None) -> str:
    """The workflow `call_BODY` for one kind of body."""
    text = HTTP_FLOW.replace("URL", url).replace("id: call", f"id: call_{body}")
    if body is None:
        return text.replace('      BODY: "{{ start.BODY }}"\n', "")
    if body == "text":
        return text.replace('BODY: "{{ start.BODY }}"', 'json: "{{ start.text | fromjson }}"')
    return text.replace("BODY", body)


BODIES = ("json", "form", "multipart", "body", "text")


async def rest_of(world: World, workflow_id: str, given: Any) -> tuple[ExecutionStatus, Any]:
    """(the state an execution came to, its error)."""
    done = await world.start(workflow_id, given)
    await world.work()
    row = await world.row(done)
    return row.status, None if row.error is None else loads(row.error)


@pytest.fixture
async def saying(world: World) -> AsyncIterator[Saying]:
    """What answers the nodes of `world`, over real sockets; no name but its address exists."""
    said = Saying()
    async with held(_listening(world, said)):
        yield said


@asynccontextmanager
async def _listening(world: World, said: Saying) -> AsyncIterator[None]:
    async with far_side(said.behave) as far, client(names=Names({})) as http:
        world.http = http  # type: ignore[assignment]
        world.runtime = world.process()
        for body in (None, *BODIES):
            await world.load(http_flow(far.url("/"), body))
        yield


@FUZZ
@given(request=REQUESTS, answer=ANSWERS)
async def test_any_request_and_any_answer_end_as_a_node(world, saying, request, answer):
    saying.answer = answer
    body = next((name for name in BODIES if name in request), None)

    status, error = await rest_of(world, f"call_{body}", request)

    if status is ExecutionStatus.UNCERTAIN:
        assert error["message"].endswith("the answer is not HTTP")  # so nobody knows
    else:
        assert status in (ExecutionStatus.COMPLETED, ExecutionStatus.FAILED), error
    assert (error or {}).get("code") != "node.internal", error


@FUZZ
@given(
    given=st.dictionaries(
        st.sampled_from(["until", "delayMs", "delaySeconds", "delayMinutes", "delayHours"]),
        NUMBERS | TEXTS | st.datetimes().map(lambda at: f"{at.isoformat()}+23:59"),
        max_size=2,
    )
)
async def test_any_delay_ends_as_a_node(world, given):
    asked = ", ".join(f"{name}: '{{{{ start.{name} }}}}'" for name in sorted(given))
    name = "nap_" + "_".join(sorted(given))
    try:
        await world.load(flow(name, f"{{id: a, type: action.time.delay, params: {{{asked}}}}}"))
    except DocumentError:
        assert "until" in given  # beside another
        return

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(time_passes, world.clock)
        status, error = await rest_of(world, name, given)
        tasks.cancel_scope.cancel()

    assert status is not ExecutionStatus.RUNNING
    assert error is None or error["code"] == "params.invalid"


async def time_passes(clock: FakeClock) -> None:
    """Whoever sleeps wakes."""
    while True:
        clock.advance(await clock.someone_sleeps())


VALUES = """
id: set
nodes:
  - {id: start, type: trigger.time.manual}
  - id: a
    type: transform.data.set
    params:
      values:
        whole: "{{ start.value | omit }}"
        text: "{{ start.value | json }} {{ start.text | string }}"
        read: "{{ start.text | fromjson | default('') }}"
        sum: "{{ [start.number, start.number] | sum }}"
        round: "{{ start.number | round(15) }}"
        whole_number: "{{ start.number | int }}"
        parts: "{{ start.text | split(start.sep) | join('|') | upper | lower }}"
        key: "{{ start.value[start.text] | default(none) }}"
        product: "{{ start.number * start.number - start.number // 7 }}"
edges: [{from: start, to: a, when: "start.number == start.number or start.value"}]
"""


@FUZZ
@given(value=ODD, text=TEXTS | ESCAPED, number=NUMBERS, sep=st.sampled_from(["", ",", "\x00", "a"]))
async def test_any_values_end_as_a_node(world, value, text, number, sep):
    await world.load(VALUES)

    status, error = await rest_of(
        world, "set", {"value": value, "text": text, "number": number, "sep": sep}
    )

    assert status in (ExecutionStatus.COMPLETED, ExecutionStatus.FAILED), error
    assert (error or {}).get("code") != "node.internal", error
