"""Outputs that hold a secret of their execution: sealed in the store, true for expressions, shown without it."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support.connectors import action, catalogue_of
from support.runs import World

from stackd.core.json import dumps
from stackd.integrations.account import Account
from stackd.store.connection import Tx
from stackd.store.database import Database
from stackd.testing import ok
from stackd.vault import keyring, texts
from stackd.vault.fields import NoSchemas
from stackd.vault.keyring import Keyring
from stackd.vault.records import Vault

SECRET = 'cAnary "s3cret"/7Qw9z+é'  # every encoder changes it
DEFINITION = {
    "id": "desk",
    "baseUrl": "http://desk.example",
    "authentication": {"type": "api_key", "name": "X-Key", "value": "fixed"},
    "actions": [action("look")],
}
VAULT = Vault(Keyring("k" * 32), NoSchemas())


async def world_of(database: Database, folder: Path, *answers: Any, **more: Any) -> World:
    world = World(database, *answers, connectors=await catalogue_of(folder, DEFINITION), **more)
    world.made_up.accounts.known["main"] = Account(
        "connection", "main", {"token": SECRET}, frozenset({"token"})
    )
    await database.write(lambda tx: keyring.ensure(tx, VAULT.keyring, place=database.path, now=1.0))
    return world


def flow(*nodes: str, edges: str, name: str = "flow") -> str:
    lines = "".join(f"  - {node}\n" for node in nodes)
    return (
        f"id: {name}\nnodes:\n  - {{id: start, type: trigger.time.manual}}\n"
        f"  - {{id: a, type: action.desk.look, connection: main}}\n{lines}edges: [{edges}]\n"
    )


COPY = '{id: b, type: transform.data.set, params: {values: {size: "{{ a.token | length }}", copy: "{{ a.token }}"}}}'
TO_A, TO_B = "{from: start, to: a}", "{from: a, to: b}"


async def stored(world: World) -> bytes:
    """All bytes of the store."""
    await world.store.write(lambda tx: None)
    return b"".join(file.read_bytes() for file in world.store.path.parent.glob("stackd.db*"))


def shown(world: World, tx: Tx, text: bytes | None) -> Any:
    return json.loads(texts.shown(tx, VAULT, text or b"null"))


FORMS = {
    "raw": SECRET,
    "in a URL": quote(SECRET, safe=""),
    "in Base64": b64encode(f"user:{SECRET}".encode()).decode(),
    "in JSON in a text": json.dumps({"k": SECRET}),
}


@pytest.mark.parametrize("form", FORMS)
async def test_an_output_with_a_secret_is_sealed_whole_and_true_for_expressions(
    database: Database, tmp_path: Path, form: str
) -> None:
    given = {"token": FORMS[form], "other": "harmless"}
    world = await world_of(database, tmp_path, ok(dumps(given)))

    execution = await world.run(flow(COPY, edges=f"{TO_A}, {TO_B}"))

    nodes, row = await world.nodes(execution), await world.row(execution)
    found = await database.read(lambda tx: texts.opened(tx, VAULT, row.output or b""))
    assert row.status == "completed"
    assert json.loads(found[0]) == {"size": len(FORMS[form]), "copy": FORMS[form]}
    assert found[1] == {SECRET}
    assert all(texts.MARK in (nodes[key].output or b"") for key in "ab")
    assert b"harmless" not in (nodes["a"].output or b"")
    told = await database.read(lambda tx: shown(world, tx, nodes["a"].output))
    assert "[REDACTED]" in told["token"]
    assert told["other"] == "harmless"


async def test_a_later_claim_reads_the_truth_and_seals_what_it_makes_of_it(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, ok(dumps({"token": SECRET})))
    pause = "{id: pause, type: action.time.delay, params: {delayHours: 1}}"
    edges = f"{TO_A}, {{from: a, to: pause}}, {{from: pause, to: b}}"
    execution = await world.run(flow(pause, COPY, edges=edges))
    world.runtime = world.process()  # another process, which was told nothing

    world.clock.advance(3601.0)
    await world.fire_timers()
    await world.work()

    row = await world.row(execution)
    found = await database.read(lambda tx: texts.opened(tx, VAULT, row.output or b""))
    assert json.loads(found[0]) == {"size": len(SECRET), "copy": SECRET}
    assert json.dumps(SECRET)[1:-1].encode() not in await stored(world)
    assert dumps(SECRET)[1:-1] not in await stored(world)


async def test_a_called_workflow_is_given_the_truth_and_keeps_it_sealed(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, ok(dumps({"token": SECRET})))
    await world.load(
        "id: callee\nnodes:\n  - {id: start, type: trigger.time.manual}\n"
        '  - {id: c, type: transform.data.set, params: {values: {n: "{{ start.t | length }}", t: "{{ start.t }}"}}}\n'
        "edges: [{from: start, to: c}]\n"
    )
    call = '{id: b, type: action.workflow.run, params: {workflowId: callee, wait: true, input: {t: "{{ a.token }}"}}}'
    execution = await world.run(flow(call, edges=f"{TO_A}, {TO_B}", name="caller"))
    await world.work()
    await world.work()

    row = await world.row(execution)
    found = await database.read(lambda tx: texts.opened(tx, VAULT, row.output or b""))
    assert json.loads(found[0]) == {"n": len(SECRET), "t": SECRET}
    assert dumps(SECRET)[1:-1] not in await stored(world)


async def test_iterations_that_give_a_secret_are_sealed_and_collected_as_they_are(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, *[ok(dumps({"token": SECRET}))] * 3)
    text = (
        "id: looped\nnodes:\n  - {id: start, type: trigger.time.manual}\n"
        "  - id: loop\n    type: logic.foreach\n    params: {items: [1, 2]}\n"
        "    nodes: [{id: a, type: action.desk.look, connection: main}]\n    edges: []\n"
        "edges: [{from: start, to: loop}]\n"
    )

    execution = await world.run(text)

    row = await world.row(execution)
    found = await database.read(lambda tx: texts.opened(tx, VAULT, row.output or b""))
    assert json.loads(found[0]) == [{"token": SECRET}] * 2
    assert dumps(SECRET)[1:-1] not in await stored(world)


async def test_errors_of_other_nodes_show_no_secret_of_the_execution(
    database: Database, tmp_path: Path
) -> None:
    world = await world_of(database, tmp_path, ok(dumps({"token": SECRET})))
    bad = '{id: b, type: transform.data.set, params: {values: {x: "{{ a.token | int }}"}}}'

    execution = await world.run(flow(bad, edges=f"{TO_A}, {TO_B}"))

    row = await world.row(execution)
    assert row.status == "failed"
    assert dumps(SECRET)[1:-1] not in await stored(world)


ECHOING = {
    "id": "echo",
    "baseUrl": "http://echo.example",
    "actions": [action("say", "POST", "/say", effect="keyed")],
}
FAILING = "async def say(params, ctx):\n    await ctx.http.post('/first', json=params)\n"


@pytest.mark.parametrize("status", [422, 503], ids=["refused", "broken"])
@pytest.mark.parametrize("handlers", [None, FAILING], ids=["generic", "handler"])
async def test_what_another_app_says_of_the_secret_that_it_was_sent_stands_nowhere(
    database: Database, tmp_path: Path, handlers: str | None, status: int
) -> None:
    echo = ok(dumps({"message": f"no such thing as {SECRET} here"}), status)
    world = await world_of(database, tmp_path, ok(dumps({"token": SECRET})), *[echo] * 4)
    desk = await catalogue_of(tmp_path, ECHOING, handlers=handlers)  # both are below it
    world.made_up.registry.use(desk)
    say = '{id: b, type: action.echo.say, retry: {maxAttempts: 1}, params: {text: "{{ a.token }}"}}'

    execution = await world.run(flow(say, edges=f"{TO_A}, {TO_B}"))

    row = (await world.nodes(execution))["b"]
    assert b"REDACTED" in (row.error or b"")
    assert b"REDACTED" in (row.metadata or b"")
    assert dumps(SECRET)[1:-1] not in await stored(world)


async def test_a_sealed_output_still_refers_to_its_blobs(
    database: Database, tmp_path: Path
) -> None:
    blob = "ab" * 32
    text = dumps({"token": SECRET, "file": {"$blob": blob}, "again": {"$blob": blob}})

    def seal(tx: Tx) -> bytes:
        keyring.ensure(tx, VAULT.keyring, place=database.path, now=1.0)
        return texts.sealed(tx, VAULT, text, [SECRET])

    sealed = await database.write(seal)
    opened = await database.read(lambda tx: texts.opened(tx, VAULT, b"[" + sealed + b"]"))

    assert sealed.count(b'{"$blob":"' + blob.encode()) == 1
    assert opened == (b"[" + text + b"]", {SECRET})


async def test_what_only_looks_sealed_stays_as_it_is(database: Database, tmp_path: Path) -> None:
    given = {"$secret": "1.YWJj.YWJj"}
    world = await world_of(database, tmp_path, ok(dumps(given)))

    execution = await world.run(flow(edges=TO_A))

    row = await world.row(execution)
    told = await database.read(lambda tx: shown(world, tx, row.output))
    assert told == given


@pytest.mark.parametrize(
    "text",
    ["1.A.A", "1.AAAA.AAAA", "999999999999999999.AAAA.AAAA", "0.AAAA.AAAA", "1.====.===="],
)
async def test_what_only_looks_sealed_is_what_it_is(database: Database, text: str) -> None:
    written = dumps({"a": {"$secret": text}})
    await database.write(lambda tx: keyring.ensure(tx, VAULT.keyring, place=database.path, now=1.0))

    whole, found = await database.write(lambda tx: texts.opened(tx, VAULT, written))

    assert (whole, found) == (written, set())
