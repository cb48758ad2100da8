"""What generic HTTP does after a handler has failed: never an unsafe thing twice, and always with the reason."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from support.connectors import action, catalogue_of, write_connector
from support.runs import World

from stackd.core.errors import NodeError
from stackd.core.json import loads
from stackd.integrations.account import Account
from stackd.integrations.catalogue import Catalogue, read_catalogue
from stackd.integrations.registry import Fallback
from stackd.store.database import Database
from stackd.testing import ok
from stackd.workflows.executions import NodeStatus

COMPLETED, FAILED, UNCERTAIN = NodeStatus.COMPLETED, NodeStatus.FAILED, NodeStatus.UNCERTAIN

EFFECTS = ("read", "idempotent", "keyed", "unsafe")
# How a handler fails: (how many requests it has made, what became of them)
ENDS: dict[str, tuple[int, Any]] = {
    "before": (0, None),
    "not_handled": (0, None),
    "in_flight": (1, NodeError("connection lost", kind="network", code="http.reset", sent=True)),
    "after": (1, ok(b'{"by": "handler"}')),
    "refused": (1, ok(b'{"message": "no such channel"}', 422)),
    "busy": (1, ok(b"{}", 503)),
    "unreached": (0, NodeError("no connection", kind="network", code="http.connect")),
}

HANDLERS = """
async def before(params, ctx):
    raise KeyError("a fault")

async def not_handled(params, ctx):
    raise ctx.not_handled()

async def in_flight(params, ctx):
    await ctx.http.post("/handler", json=params)

async def after(params, ctx):
    await ctx.http.post("/handler", json=params)
    raise SystemExit("a fault")  # no reason to end whoever runs it

async def _ask(params, ctx):
    await ctx.http.post("/handler", json=params)

async def refused(params, ctx):
    await _ask(params, ctx)

async def busy(params, ctx):
    await _ask(params, ctx)

async def unreached(params, ctx):
    await _ask(params, ctx)

async def works(params, ctx):
    answer = await ctx.http.get("/handler", query={"n": 1})
    return answer.body
"""


def definition() -> dict[str, Any]:
    return {
        "id": "desk",
        "name": "Desk",
        "baseUrl": "http://desk.example/api",
        "actions": [
            *(action(name, "POST", "/generic") for name in ENDS),
            action("works"),
            action("generic_only", "POST", "/generic"),
            {"id": "native_only"},
        ],
    }


@pytest.fixture
def desk(tmp_path: Path) -> Catalogue:
    write_connector(tmp_path, definition(), handlers=HANDLERS)
    return read_catalogue([tmp_path])


def node(operation: str, *, effect: str | None = None, extra: str = "") -> str:
    own = "" if effect is None else f"effect: {effect}, "
    return (
        "id: flow\nnodes:\n  - {id: start, type: trigger.time.manual}\n"
        f"  - {{id: a, type: action.desk.{operation}, {own}{extra}"
        "retry: {maxAttempts: 1}, params: {text: hello}}\nedges:\n  - {from: start, to: a}\n"
    )


def falls_back(end: str, effect: str, *, flag: bool, mode: str) -> bool:
    """The rule of the README, said again."""
    if not flag:
        return False
    if end == "not_handled":
        return True
    if mode != "safe":
        return mode == "always"
    if end == "refused":
        return False
    return ENDS[end][0] == 0 or effect != "unsafe"


@pytest.mark.parametrize(
    ("end", "effect", "flag", "mode"),
    list(itertools.product(ENDS, EFFECTS, (True, False), ("safe", "always", "never"))),
)
async def test_after_a_handler_that_failed_generic_http_asks_only_where_that_doubles_nothing(
    database: Database, desk: Catalogue, end: str, effect: str, flag: bool, mode: str
) -> None:
    made, answer = ENDS[end]
    world = World(database, *([] if answer is None else [answer]), connectors=desk)
    world.made_up.set(generic=flag, fallback=Fallback(mode))

    execution = await world.run(node(end, effect=effect))

    asks_again = falls_back(end, effect, flag=flag, mode=mode)
    row = (await world.nodes(execution))["a"]
    told = loads(row.metadata or b"{}")
    paths = [request.url.rpartition("/")[2] for request in world.http.requests]
    tried = 1 if answer is not None else 0
    assert paths == ["handler"] * tried + ["generic"] * asks_again
    if asks_again:
        assert row.status is COMPLETED
        assert told["executor"] == "generic"
        assert told["integrationFallbackReason"]
        assert [one["executor"] for one in told["attempts"]] == ["integration", "generic"]
    else:
        in_flight = made == 1 and end in ("in_flight", "after")
        assert row.status is (UNCERTAIN if in_flight and effect == "unsafe" else FAILED)
        assert told["executor"] == "integration"
        if end != "not_handled":
            assert told["fallbackSuppressedReason"]
        assert [one["executor"] for one in told["attempts"]] == ["integration"]
    assert told["connectorId"] == told["appId"] == "desk"
    assert told["functionId"] == end
    assert told["executionTimeMs"] >= 0


async def test_a_keyed_action_has_the_same_key_by_handler_and_generic_http(
    database: Database, desk: Catalogue
) -> None:
    lost = NodeError("connection lost", kind="network", code="http.reset", sent=True)
    world = World(database, lost, connectors=desk)

    execution = await world.run(node("in_flight", effect="keyed"))

    keys = [request.headers.get("Idempotency-Key") for request in world.http.requests]
    assert keys == [f"{execution}:a", f"{execution}:a"]


async def test_a_generic_try_that_is_lost_after_a_handler_leaves_an_unsafe_action_uncertain(
    database: Database, desk: Catalogue
) -> None:
    lost = NodeError("connection lost", kind="network", code="http.reset", sent=True)
    world = World(database, lost, connectors=desk)

    execution = await world.run(node("before", effect="unsafe"))

    row = (await world.nodes(execution))["a"]
    assert row.status is UNCERTAIN
    assert [r.url for r in world.http.requests] == ["http://desk.example/api/generic"]
    assert loads(row.metadata)["executor"] == "generic"


async def test_what_has_no_handler_runs_by_generic_http_and_says_so(
    database: Database, desk: Catalogue
) -> None:
    world = World(database, ok(b'{"n": 1}'), connectors=desk)

    execution = await world.run(node("generic_only", effect="keyed"))

    row = (await world.nodes(execution))["a"]
    told = loads(row.metadata)
    assert loads(row.output) == {"n": 1}
    assert told["executor"] == "generic"
    assert told["integrationFallbackReason"].startswith("Function generic_only not implemented")


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ("generic_only", "runtime.fallback_disabled"),
        ("native_only", "runtime.missing_capability"),
        ("nothing", "operation.unknown"),
    ],
)
async def test_with_the_flag_off_what_only_generic_http_can_run_fails_and_sends_nothing(
    database: Database, desk: Catalogue, operation: str, code: str
) -> None:
    world = World(database, connectors=desk)
    world.made_up.set(generic=False)

    execution = await world.run(node(operation))

    assert (await world.row(execution)).error is not None
    row = (await world.nodes(execution))["a"]
    assert loads(row.error)["code"] == code
    assert world.http.requests == []


async def test_a_handler_that_works_is_the_answer_and_nothing_else_is_asked(
    database: Database, desk: Catalogue
) -> None:
    world = World(database, ok(b'{"by": "handler"}'), connectors=desk)

    execution = await world.run(node("works"))

    row = (await world.nodes(execution))["a"]
    told = loads(row.metadata)
    assert loads(row.output) == {"by": "handler"}
    assert told["executor"] == "integration"
    assert "integrationFallbackReason" not in told
    assert [(r.method, r.url) for r in world.http.requests] == [
        ("GET", "http://desk.example/api/handler")
    ]


async def test_a_credential_is_named_and_its_secrets_are_in_no_error(
    database: Database, tmp_path: Path
) -> None:
    secret = "canary-secret-0123456789"
    app = {
        "id": "desk",
        "baseUrl": "http://desk.example",
        "authentication": {"type": "bearer"},
        "actions": [action("post", "POST", "/p", effect="keyed")],
    }
    desk = await catalogue_of(tmp_path, app)
    echo = ok(b'{"message": "bad token ' + secret.encode() + b'"}', 401)
    world = World(database, echo, connectors=desk)
    world.made_up.accounts.known["main"] = Account(
        "connection", "main", {"token": secret}, frozenset({"token"})
    )

    execution = await world.run(node("post", extra="connection: main, "))

    row = (await world.nodes(execution))["a"]
    assert world.http.requests[0].headers["Authorization"] == f"Bearer {secret}"
    assert loads(row.error) == {
        "code": "unauthorized",
        "message": "unauthorized: bad token [REDACTED]",
    }
    told = loads(row.metadata)
    assert told["credentialSource"] == "connection"
    assert told["connectionId"] == "main"
    assert secret.encode() not in row.metadata


async def test_a_node_without_the_credential_it_needs_sends_nothing(
    database: Database, tmp_path: Path
) -> None:
    app = {
        "id": "desk",
        "baseUrl": "http://desk.example",
        "authentication": {"type": "bearer"},
        "actions": [action("post", "POST", "/p")],
    }
    desk = await catalogue_of(tmp_path, app)
    world = World(database, connectors=desk)

    execution = await world.run(node("post"))

    row = (await world.nodes(execution))["a"]
    assert 'No connection configured for node "a"' in loads(row.error)["message"]
    assert world.http.requests == []


async def test_an_action_of_a_connector_that_was_in_flight_in_a_crash_is_as_its_definition_says(
    database: Database, tmp_path: Path
) -> None:
    app = {
        "id": "desk",
        "baseUrl": "http://desk.example",
        "actions": [action("post", "POST", "/p"), action("read", "GET", "/r")],
    }
    desk = await catalogue_of(tmp_path, app)
    for operation, expected in (("post", UNCERTAIN), ("read", COMPLETED)):
        world = World(database, connectors=desk)
        text = node(operation).replace("id: flow", f"id: flow-{operation}")
        execution = await world.start(await world.load(text))
        await world.claim()  # it dies with what it has written
        row = (await world.row(execution)).seq
        await world.store.write(
            lambda tx, row=row, operation=operation: tx.execute(
                "INSERT INTO node_runs (execution, key, type, status, attempt, effect, started_at)"
                " VALUES (?, 'a', ?, 'running', 1, ?, 0)",
                (row, f"action.desk.{operation}", "unsafe" if operation == "post" else "read"),
            )
        )
        await world.crash_and_rescue()
        await world.work()
        assert (await world.nodes(execution))["a"].status is expected


@pytest.mark.parametrize(("status", "code"), [(200, None), (503, "http.status_503")])
async def test_a_request_of_a_workflow_is_told_as_an_operation_is(
    database: Database, desk: Catalogue, status: int, code: str | None
) -> None:
    world = World(database, ok(b"{}", status), connectors=desk)
    text = node("works").replace("action.desk.works", "action.http.request")

    execution = await world.run(text.replace("{text: hello}", "{url: http://desk.example}"))

    told = loads((await world.nodes(execution))["a"].metadata)
    assert (told["connectorId"], told["functionId"]) == ("http", "request")
    assert told["executor"] == "integration"
    assert [one.get("error", {}).get("code") for one in told["attempts"]] == [code]


@pytest.mark.parametrize("also", [True, False], ids=["generic answers", "generic fails too"])
async def test_a_failure_that_quotes_half_a_character_is_told_as_any_other(
    database: Database, tmp_path: Path, also: bool
) -> None:
    fails = (
        "from stackd.core.errors import NodeError\n\n\nasync def odd(params, ctx):\n"
        "    raise NodeError('half \\ud800 of one', kind='network', code='mail.odd')\n"
    )
    more = {"effect": "idempotent"} if also else {}
    own = {
        **definition(),
        "actions": [action("odd", *(("POST", "/g") if also else (None, None)), **more)],
    }
    desk = await catalogue_of(tmp_path, own, handlers=fails)
    world = World(database, ok(b"{}"), connectors=desk)

    execution = await world.run(node("odd"))

    row = (await world.nodes(execution))["a"]
    told = loads(row.metadata)
    assert row.status is (COMPLETED if also else FAILED)
    assert told["attempts"][0]["error"]["message"] == r"half \ud800 of one"
    assert also == ("integrationFallbackReason" in told)


OWN_WAY = """
TRANSPORT = "own"

async def breaks(params, ctx):
    raise KeyError("somewhere on its way")

async def hands_over(params, ctx):
    raise ctx.not_handled()
"""


@pytest.mark.parametrize("operation", ["breaks", "hands_over"])
async def test_a_handler_with_a_transport_of_its_own_may_have_sent_something_unless_it_hands_over(
    database: Database, tmp_path: Path, operation: str
) -> None:
    own = {**definition(), "actions": [action(operation, "POST", "/generic", effect="unsafe")]}
    world = World(database, connectors=await catalogue_of(tmp_path, own, handlers=OWN_WAY))

    execution = await world.run(node(operation))

    row = (await world.nodes(execution))["a"]
    if operation == "breaks":
        assert row.status is UNCERTAIN
        assert world.http.requests == []
    else:
        assert row.status is COMPLETED
