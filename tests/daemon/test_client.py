"""The client for programs with an event loop, against a running daemon."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.daemon import DaemonProcess

from stackd.client.client import Client
from stackd.core.errors import ApiError

README = Path(__file__).parents[2] / "README.md"
FLOW = """
id: {id}
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: a, type: {type}, params: {params}}}
edges: [{{from: start, to: a}}]
"""


def flow(name: str, node_type: str = "transform.data.set", params: str = "{values: {n: 1}}") -> str:
    return FLOW.format(id=name, type=node_type, params=params)


@pytest.fixture(params=["socket", "tcp"])
def client(request: pytest.FixtureRequest, daemon: DaemonProcess) -> Client:
    if request.param == "socket":
        return Client(socket_path=daemon.state / "stackd.sock")
    return Client(url=daemon.url, token=daemon.token)


async def test_the_readmes_example_runs_as_it_stands_there(daemon, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)

    await names["greet"](daemon.state)

    greeted, known, listed = capsys.readouterr().out.splitlines()
    assert greeted == "completed Hello, Ada!"
    assert known == "True"
    assert listed.endswith(" completed None")


async def test_workflows_are_imported_switched_run_listed_and_deleted(client, request):
    name = f"orders-{request.node.callspec.id}"
    async with client as stackd:
        first = await stackd.workflows.import_(flow(name))
        second = await stackd.workflows.import_(
            flow(name, params="{values: {n: 2}}"), activate=True
        )
        shown = await stackd.workflows.get(name)
        ended = await stackd.workflows.run(name, wait=30)
        again = [
            await stackd.workflows.run(name, wait=30, idempotency_key="once") for _ in range(2)
        ]

        assert (first.version, first.active, second.version, second.active) == (1, False, 2, True)
        assert shown.document is not None
        assert shown.document["nodes"][1]["params"] == {"values": {"n": 2}}
        assert (ended.status, ended.output) == ("completed", {"n": 2})
        assert again[0].id == again[1].id
        assert [one.version async for one in stackd.workflows.versions(name)] == [2, 1]
        assert name in [one.id async for one in stackd.workflows.list()]
        assert (await stackd.why(name)).state == "active"
        assert not (await stackd.workflows.deactivate(name)).active
        assert (await stackd.workflows.activate(name)).active
        assert await stackd.workflows.delete(name) == 2
        with pytest.raises(ApiError) as caught:
            await stackd.workflows.get(name)
        assert caught.value.code == "workflow.not_found"


async def test_executions_are_waited_for_cancelled_and_retried_and_told_of_as_it_happens(client):
    async with client as stackd:
        nap = flow("nap", "action.time.delay", "{delayHours: 1}")
        await stackd.workflows.import_(nap, activate=True)
        types = ["ExecutionParked", "ExecutionFinished"]
        async with stackd.executions.events(workflow_id="nap", types=types) as events:
            started = await stackd.workflows.start("nap")
            nap_id = started.execution_id
            with anyio.fail_after(10):
                parked = await anext(events)
                seen = await stackd.workflows.run("nap", wait=0.01)
                await stackd.executions.cancel(seen.id)
                await stackd.executions.cancel(nap_id)
                finished = await anext(events)
                while finished.data["executionId"] != nap_id:
                    finished = await anext(events)

        assert (parked.name, parked.data["executionId"]) == ("ExecutionParked", nap_id)
        assert (finished.name, finished.data["status"]) == ("ExecutionFinished", "cancelled")
        assert seen.status in ("queued", "running", "waiting")
        cancelled = [one.id async for one in stackd.executions.list(status="cancelled")]
        assert nap_id in cancelled
        assert (await stackd.executions.retry(nap_id)).success
        assert (await stackd.executions.cancel(nap_id)).success


async def test_credentials_are_made_listed_and_removed_and_no_secret_comes_back(client):
    async with client as stackd:
        made = await stackd.credentials.create(
            "mine", connector="github", fields={"token": "s3cret-canary"}
        )
        listed = [one async for one in stackd.credentials.list()]
        await stackd.credentials.delete("mine")

        assert made.id == "mine"
        assert [one.id for one in listed] == ["mine"]
        assert "s3cret-canary" not in repr((made, listed))
        assert [one async for one in stackd.credentials.list()] == []


async def test_what_can_run_and_how_the_daemon_is(client):
    async with client as stackd:
        found = await stackd.registry.capabilities()
        renewed = await stackd.registry.capabilities(refresh=True)  # 304: as it was

        assert renewed is found
        assert found.check("github", "create_issue").native_supported
        assert found.check("slack", "post_message").code == "runtime.fallback_disabled"
        assert found.check("http", "request").native_supported
        assert "slack" in [one.id async for one in stackd.registry.connectors()]
        assert (await stackd.registry.connector("slack")).operations
        assert (await stackd.health()).status in ("pass", "warn")


async def test_a_document_that_is_far_too_large_is_refused_as_that(client):
    async with client as stackd:
        with pytest.raises(ApiError) as caught:
            await stackd.workflows.import_(b"#" * (20 * 1024 * 1024))

    assert caught.value.http_status == 413
