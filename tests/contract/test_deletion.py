"""Deleting a workflow with its history, a part at a time, and what of it is remembered."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest
from support import past

from stackd.core.errors import ConflictError, NotFoundError
from stackd.core.events import Event, EventBus
from stackd.store.connection import Tx
from stackd.store.database import Database
from stackd.workflows import catalogue, deletion, executions
from stackd.workflows.catalogue import NewVersion, WebhookNode, WorkflowChanged
from stackd.workflows.deletion import CANDIDATES, VERSIONS, WorkflowDeleted
from stackd.workflows.executions import NewExecution
from stackd.workflows.history import ROWS

NOW = 1_700_000_000.0
TABLES = ("workflows", "workflow_versions", "webhooks", "dedupe_keys", "executions", "node_runs")


def document(version: int, workflow_id: str = "w") -> NewVersion:
    return NewVersion(
        workflow_id, workflow_id, f"hash {version}", b"{}", None, [WebhookNode("hook", None)]
    )


async def load(store: Database, *, versions: int = 1, workflow_id: str = "w") -> int:
    """Import that many versions; the number of the last."""
    last = 0
    for n in range(versions):
        new = document(n, workflow_id)
        done = await store.write(
            lambda tx, new=new: catalogue.import_version(tx, new, activate=True, now=NOW)
        )
        last = done.row.version
    return last


def remember(tx: Tx, *, keys: int) -> None:
    new = NewExecution("w", 1, "t", "hook", b"", None)
    for n in range(keys):
        executions.remember_key(tx, new, key=f"k{n}", execution_id="x", now=NOW, window=3600.0)


async def delete(store: Database) -> list[int]:
    """Delete the workflow `w`; how many executions went at each part."""
    parts = []
    while True:
        part = await store.write(partial(deletion.delete_part, workflow_id="w", now=NOW))
        parts.append(part.executions)
        if part.is_done:
            return parts


async def counts(store: Database) -> dict[str, int]:
    def look(tx: Tx) -> dict[str, Any]:
        assert tx.rows("PRAGMA foreign_key_check") == []
        return {name: tx.rows(f"SELECT count(*) FROM {name}")[0][0] for name in TABLES}

    return await store.read(look)


async def test_all_that_belongs_to_it_goes_in_small_parts_and_nothing_of_others(
    database: Database,
) -> None:
    await load(database, versions=3 * VERSIONS)
    await load(database, workflow_id="other")
    before = await counts(database)

    def make(tx: Tx) -> None:
        for _ in range(ROWS + 10):
            past.add(tx, NOW, nodes=2)
        past.add(tx, NOW, nodes=3 * ROWS)
        past.add(tx, NOW, workflow_id="other")
        remember(tx, keys=2 * CANDIDATES)

    await database.write(make)

    parts = await delete(database)

    assert sum(parts) == ROWS + 11
    assert max(parts) <= ROWS
    assert await counts(database) == {
        "workflows": 1, "workflow_versions": 1, "webhooks": 1, "dedupe_keys": 0, "executions": 1, "node_runs": 1,
    }  # fmt: skip
    assert before["workflow_versions"] == 3 * VERSIONS + 1


async def test_it_is_told_and_addresses_of_it_are_forgotten(
    database: Database, bus: EventBus
) -> None:
    heard: list[Event] = []
    await load(database)
    bus.subscribe(heard.append, WorkflowChanged, WorkflowDeleted)

    await delete(database)

    assert heard[0] == WorkflowChanged("w")  # inactive
    assert heard[-2:] == [WorkflowChanged("w"), WorkflowDeleted("w")]


@pytest.mark.parametrize("status", ["queued", "running", "waiting", "uncertain"])
async def test_it_is_refused_while_an_execution_is_open(database: Database, status: str) -> None:
    await load(database)
    seq = await database.write(lambda tx: past.add(tx, None, status=status))

    with pytest.raises(ConflictError) as caught:
        await database.read(lambda tx: deletion.refuse_open(tx, "w"))
    with pytest.raises(ConflictError):
        await delete(database)

    (name,) = await database.read(lambda tx: tx.rows("SELECT id FROM executions"))
    assert caught.value.code == "workflow.in_use"
    assert f"{name[0]} ({status})" in caught.value.message
    assert await database.read(past.seqs) == {seq}
    assert (await database.read(lambda tx: catalogue.get(tx, "w"))).active  # all or nothing


async def test_one_that_began_meanwhile_is_kept_and_the_next_call_goes_on(
    database: Database,
) -> None:
    await load(database)
    await database.write(lambda tx: [past.add(tx, NOW, nodes=9) for _ in range(ROWS)])
    first = await database.write(partial(deletion.delete_part, workflow_id="w", now=NOW))
    assert not first.is_done
    seq = await database.write(lambda tx: past.add(tx, None, status="running"))

    with pytest.raises(ConflictError):
        await delete(database)
    assert await database.read(past.seqs) == {seq}
    assert not (await database.read(lambda tx: catalogue.get(tx, "w"))).active

    await database.write(
        lambda tx: tx.execute("UPDATE executions SET status = 'cancelled', finished_at = 1.0")
    )
    await delete(database)
    with pytest.raises(NotFoundError):
        await delete(database)


async def test_what_it_was_called_by_stays_and_what_it_had_called_goes(database: Database) -> None:
    await load(database)
    await load(database, workflow_id="other")

    def make(tx: Tx) -> set[int]:
        caller = past.add(tx, NOW, workflow_id="other")
        own = past.add(tx, NOW, parent=caller)
        past.add(tx, NOW, workflow_id="other", parent=own)
        return {caller}

    kept = await database.write(make)

    await delete(database)

    assert await database.read(past.seqs) == kept


async def test_a_version_number_is_never_given_to_another_document(database: Database) -> None:
    assert await load(database, versions=3) == 3
    await delete(database)

    assert await load(database) == 4
    await delete(database)
    assert await load(database, versions=2) == 6


async def test_others_have_their_turn_between_two_parts(database: Database) -> None:
    await load(database)
    await database.write(lambda tx: [past.add(tx, NOW, nodes=4) for _ in range(2000)])
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await database.write(lambda tx: tx.execute("SELECT 1"))
            turns += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        parts = await delete(database)
        tasks.cancel_scope.cancel()

    assert turns >= len(parts) - 2 > 10
