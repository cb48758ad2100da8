"""Actions of several requests: what was done before one of them failed is not done again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread
from support.connectors import action, write_connector
from support.runs import World

from stackd.core.errors import NodeError
from stackd.integrations.catalogue import read_catalogue
from stackd.integrations.registry import Options, Registry
from stackd.store.database import Database
from stackd.testing import ok
from stackd.workflows.executions import NodeStatus

LATER: dict[str, Any] = {
    "declined": lambda: ok(b"{}", 429),
    "unreached": lambda: NodeError("no connection", kind="network", code="http.connect"),
}
HANDLERS = """
async def twice(params, ctx):
    await ctx.http.post("/first", json=params)
    await ctx.http.post("/second", json=params)

async def leaves(params, ctx):
    raise SystemExit(3)
"""
FLOW = (
    "id: flow\nnodes:\n  - {id: start, type: trigger.time.manual}\n"
    "  - {id: a, type: action.desk.%s, effect: %s, "
    "retry: {maxAttempts: 2, initialMs: 5000, maxMs: 5000}, params: {text: hello}}\n"
    "edges:\n  - {from: start, to: a}\n"
)


async def run(
    database: Database, folder: Path, operation: str, *answers: Any, effect: str = "unsafe"
) -> Any:
    paged = action(
        "paged", "POST", "/first",
        paginate={"type": "cursor", "items": "body.items", "source": "body.next", "send": {"body": "cursor"}},
    )  # fmt: skip
    definition = {
        "id": "desk",
        "name": "Desk",
        "baseUrl": "http://desk.example/api",
        "actions": [
            action("twice", "POST", "/generic"),
            {"id": "leaves"},
            paged,
            action("lines", response="ndjson"),
        ],
    }
    await to_thread.run_sync(lambda: write_connector(folder, definition, handlers=HANDLERS))
    world = World(database, *answers, connectors=await to_thread.run_sync(read_catalogue, [folder]))
    world.made_up.set(generic=True)
    execution = await world.run(FLOW % (operation, effect))
    return world, (await world.nodes(execution))["a"]


@pytest.mark.parametrize("later", list(LATER))
async def test_an_unsafe_handler_whose_second_request_is_not_taken_does_not_make_the_first_again(
    database: Database, tmp_path: Path, later: str
) -> None:
    world, row = await run(
        database, tmp_path, "twice", ok(b"{}"), LATER[later](), ok(b"{}"), ok(b"{}")
    )

    paths = [request.url.rpartition("/")[2] for request in world.http.requests]
    assert paths == ["first", "second"]
    assert row.status in (NodeStatus.FAILED, NodeStatus.UNCERTAIN)


@pytest.mark.parametrize("later", list(LATER))
async def test_an_unsafe_operation_whose_second_page_is_not_given_is_not_begun_again(
    database: Database, tmp_path: Path, later: str
) -> None:
    page = ok(b'{"items": [1], "next": "b"}')
    world, row = await run(
        database, tmp_path, "paged", page, LATER[later](), page, ok(b'{"items": []}')
    )

    assert len(world.http.requests) == 2
    assert row.status in (NodeStatus.FAILED, NodeStatus.UNCERTAIN)


async def test_a_handler_that_leaves_the_process_fails_its_node(
    database: Database, tmp_path: Path
) -> None:
    _, row = await run(database, tmp_path, "leaves")

    assert row.status is NodeStatus.FAILED


async def test_a_line_of_ndjson_ends_at_a_line_feed_only(
    database: Database, tmp_path: Path
) -> None:
    lines = ok(
        '{"text": "a\u2028b\u0085c"}\r\n{"n": 1}\n'.encode(), content_type="application/x-ndjson"
    )
    _, row = await run(database, tmp_path, "lines", lines, effect="read")

    assert row.status is NodeStatus.COMPLETED


async def test_handlers_that_are_refused_since_are_not_told_as_what_runs(tmp_path: Path) -> None:
    def told() -> tuple[bytes, bytes]:
        write_connector(
            tmp_path,
            {"id": "desk", "name": "Desk", "actions": [{"id": "twice"}]},
            handlers=HANDLERS,
        )
        registry = Registry(read_catalogue([tmp_path]), Options)
        before = registry.payload().body
        (tmp_path / "desk" / "handlers.py").chmod(0o666)
        registry.use(read_catalogue([tmp_path]))
        return before, registry.payload().body

    before, after = await to_thread.run_sync(told)

    assert b"desk" in before
    assert b"desk" not in after
