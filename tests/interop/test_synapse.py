"""The shipped matrix connector against Synapse: an app that people run themselves, and that counts what one sends."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.daemon import free_port
from support.desk import Desk, shipped
from support.foreign import needs_program, running

from stackd.core.errors import NodeError
from stackd.integrations.account import Account

USER, PASSWORD = "butler", "made-up-password"
SETTINGS = """
listeners: [{{port: {port}, bind_addresses: [127.0.0.1], type: http, resources: [{{names: [client]}}]}}]
trusted_key_servers: []
rc_message: {{per_second: 0.1, burst_count: 20}}
"""

pytestmark = needs_program("synapse_homeserver", "pip install matrix-synapse, beside stackd")


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """A user of a homeserver of its own."""
    folder = Path(tmp_path_factory.mktemp("synapse"))
    made = ("--generate-config", "--server-name=localhost", "--report-stats=no")
    config = ("-c", "hs.yaml")
    subprocess.run(
        ("synapse_homeserver", *config, *made), cwd=folder, check=True, capture_output=True
    )
    port = free_port()
    (folder / "own.yaml").write_text(SETTINGS.format(port=port))
    words = ("synapse_homeserver", *config, "-c", "own.yaml")
    with running(folder / "log", *words, port=port) as server:
        user = ("register_new_matrix_user", *config, "-u", USER, "-p", PASSWORD, "--no-admin")
        subprocess.run((*user, server.url), cwd=folder, check=True, capture_output=True)
        body = {"type": "m.login.password", "user": USER, "password": PASSWORD}
        login = urllib.request.Request(
            f"{server.url}/_matrix/client/v3/login", data=json.dumps(body).encode(), method="POST"
        )
        with urllib.request.urlopen(login) as answer:
            token = json.load(answer)["access_token"]
        fields = {"baseUrl": server.url, "accessToken": token}
        yield Account("inline", fields=fields, secrets=frozenset({"accessToken"}))


class Matrix:
    def __init__(self, desk: Desk, account: Account) -> None:
        self._desk = desk
        self._account = account

    async def ask(self, operation: str, *, as_: Account | None = None, **params: Any) -> Any:
        plan = await shipped("matrix", operation)
        return await self._desk.run(plan, plan.schema.fitted(params), as_ or self._account)


@pytest.fixture
def matrix(desk: Desk, account: Account) -> Matrix:
    return Matrix(desk, account)


async def test_a_message_that_is_sent_twice_under_one_key_is_there_once(matrix: Matrix) -> None:
    room = (await matrix.ask("create_room", name="Ops & Söhne"))["room_id"]

    first = await matrix.ask("send_message", room_id=room, body="Backup: fünf GB", txn_id="key/1")
    again = await matrix.ask("send_message", room_id=room, body="Backup: fünf GB", txn_id="key/1")
    listed = await matrix.ask("list_messages", room_id=room)

    assert first == again
    texts = [one["content"] for one in listed["items"] if one["type"] == "m.room.message"]
    assert texts == [{"msgtype": "m.text", "body": "Backup: fünf GB"}]


async def test_the_messages_of_a_room_are_listed_page_by_page(matrix: Matrix) -> None:
    room = (await matrix.ask("create_room", name="Pages"))["room_id"]
    for number in range(5):
        await matrix.ask("send_message", room_id=room, body=str(number), txn_id=f"page-{number}")

    listed = await matrix.ask("list_messages", room_id=room, limit=2)

    texts = [one["content"]["body"] for one in listed["items"] if one["type"] == "m.room.message"]
    assert texts == ["4", "3", "2", "1", "0"]
    assert listed["meta"]["pages"] > 2


async def test_who_may_not_is_told_in_its_words(matrix: Matrix, account: Account) -> None:
    stranger = Account("inline", fields={**account.fields, "accessToken": "syt_of_nobody"})

    with pytest.raises(NodeError, match="token") as unknown:
        await matrix.ask("list_joined_rooms", as_=stranger)
    with pytest.raises(NodeError) as outside:
        await matrix.ask("send_message", room_id="!elsewhere:localhost", body="x", txn_id="n-1")

    assert (unknown.value.code, outside.value.code) == ("unauthorized", "forbidden")


async def test_too_many_messages_are_told_with_the_time_to_come_again(matrix: Matrix) -> None:
    room = (await matrix.ask("create_room", name="Flood"))["room_id"]

    async def flood() -> None:
        for number in range(40):
            await matrix.ask("send_message", room_id=room, body="x", txn_id=f"flood-{number}")

    with pytest.raises(NodeError) as caught:
        await flood()

    assert caught.value.kind == "rate_limit"
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 10
