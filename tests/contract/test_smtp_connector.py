"""E-mail by a real server: what it gets, and what becomes of it when it does not take all of it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.mail import MailServer, mail_server
from support.runs import World
from support.servers import nobody_listens, self_signed

from stackd.core.json import dumps, loads
from stackd.integrations.account import Account
from stackd.integrations.catalogue import Catalogue, read_catalogue
from stackd.store.database import Database
from stackd.workflows.executions import NodeStatus

CONNECTORS = Path(__file__).parents[2] / "connectors"
CATALOGUE = Catalogue([one for one in read_catalogue([CONNECTORS]).connectors if one.id == "smtp"])
PASSWORD = "test-password-000"
MAIL = {"to": ["Mona <mona@example.org>"], "subject": "Backup: fünf GB", "text": "Done\n"}


class Desk:
    """One workflow that sends a mail."""

    def __init__(self, database: Database) -> None:
        self.world = World(database, connectors=CATALOGUE)

    async def send(self, port: int, *, tries: int = 1, connection: Any = None, **more: Any) -> Any:
        """(status, output, error) of its node."""
        fields = {
            "host": "127.0.0.1",
            "port": str(port),
            "security": "none",
            "from": "Butler <b@example.org>",
        }
        self.world.made_up.accounts.known["main"] = Account(
            "connection", "main", fields | (connection or {}), frozenset({"password"})
        )
        document = {
            "id": "flow",
            "nodes": [
                {"id": "start", "type": "trigger.time.manual"},
                {
                    "id": "mail", "type": "action.smtp.send_email", "connection": "main", "params": {**MAIL, **more},
                    "retry": {"maxAttempts": tries, "initialMs": 1, "maxMs": 1},
                },
            ],
            "edges": [{"from": "start", "to": "mail"}],
        }  # fmt: skip
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._pass_time)
            execution = await self.world.run(dumps(document).decode())
            tasks.cancel_scope.cancel()
        row = (await self.world.nodes(execution))["mail"]
        return row.status, loads(row.output or b"null"), row.error and loads(row.error)

    async def _pass_time(self) -> None:
        """Let every wait between two tries be over."""
        while True:
            self.world.clock.advance(await self.world.clock.someone_sleeps())
            await anyio.lowlevel.checkpoint()


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


async def test_a_mail_arrives_with_all_its_parts(desk: Desk) -> None:
    async with mail_server(MailServer()) as server:
        status, output, _ = await desk.send(
            server.port,
            cc=["ops@example.org"],
            bcc=["log@example.org"],
            html="<p>Done</p>",
            reply_to="help@example.org",
            attachments=[{"filename": "größe.csv", "content": base64.b64encode(b"a,b").decode(), "contentType": "text/csv"}],
        )  # fmt: skip

    [message] = server.messages
    assert status is NodeStatus.COMPLETED
    assert message["From"] == "Butler <b@example.org>"
    assert message["To"] == "Mona <mona@example.org>"
    assert message["Cc"] == "ops@example.org"
    assert message["Bcc"] is None
    assert message["Subject"] == "Backup: fünf GB"
    assert message["Reply-To"] == "help@example.org"
    assert message["Message-ID"] == output["messageId"]
    assert output["messageId"].endswith("@example.org>")
    bodies = {part.get_content_type(): part.get_content() for part in message.walk() if not part.is_multipart()}  # fmt: skip
    assert bodies["text/plain"].strip() == "Done"
    assert bodies["text/html"].strip() == "<p>Done</p>"
    assert bodies["text/csv"].strip() == "a,b"
    assert [part.get_filename() for part in message.iter_attachments()] == ["größe.csv"]
    to = [one for one in server.commands if one.startswith("RCPT")]
    assert to == [f"RCPT TO:<{one}@example.org>" for one in ("mona", "ops", "log")]
    assert output["accepted"] == ["mona@example.org", "ops@example.org", "log@example.org"]
    assert output["refused"] == {}


async def test_whom_the_server_refuses_is_told_where_it_takes_others(desk: Desk) -> None:
    refusing = MailServer({"RCPT TO:<gone@": "550 no such user"})
    async with mail_server(refusing) as server:
        status, output, _ = await desk.send(
            server.port, to=["gone@example.org", "mona@example.org"]
        )

    assert status is NodeStatus.COMPLETED
    assert output["accepted"] == ["mona@example.org"]
    assert output["refused"] == {"gone@example.org": "550 no such user"}


REFUSALS = {
    "all of them": ("RCPT", "550 no such user", "smtp.refused", 1),
    "the sender": ("MAIL", "553 not yours", "smtp.refused", 1),
    "the content": ("content", "554 looks like spam", "smtp.refused", 1),
    "for now": ("RCPT", "451 come again later", "smtp.later", 3),
    "the content, for now": ("content", "452 full", "smtp.later", 3),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_what_the_server_refuses_was_not_sent_and_is_tried_again_only_if_it_says_later(
    desk: Desk, case: str
) -> None:
    at, answer, code, tries = REFUSALS[case]
    async with mail_server(MailServer({at: answer})) as server:
        status, _, error = await desk.send(server.port, tries=3)

    assert status is NodeStatus.FAILED
    assert error["code"] == code
    assert answer in error["message"].replace(": ", " ")
    assert sum(one.startswith("MAIL") for one in server.commands) == tries


@pytest.mark.parametrize("at", ["MAIL", "RCPT", "DATA", "content"])
async def test_a_mail_whose_connection_was_lost_is_uncertain_and_not_sent_again(
    desk: Desk, at: str
) -> None:
    async with mail_server(MailServer(hang_up=at)) as server:
        status, _, _ = await desk.send(server.port, tries=3)

    assert status is NodeStatus.UNCERTAIN
    assert sum(one.startswith("MAIL") for one in server.commands) == 1


async def test_a_server_that_is_not_there_has_sent_nothing(desk: Desk) -> None:
    with nobody_listens() as port:
        status, _, error = await desk.send(port, tries=2)

    assert status is NodeStatus.FAILED
    assert error["code"] == "smtp.connect"


async def test_no_word_is_said_to_a_server_that_will_not_speak_tls(desk: Desk) -> None:
    secure = {"security": "starttls", "username": "butler", "password": PASSWORD}
    async with mail_server(MailServer()) as server:
        status, _, error = await desk.send(server.port, connection=secure)

    assert status is NodeStatus.FAILED
    assert error["code"] == "smtp.connect"
    assert not any(one.startswith(("AUTH", "MAIL")) for one in server.commands)


async def test_a_certificate_that_nobody_vouches_for_ends_it(desk: Desk, tmp_path: Path) -> None:
    if (tls := self_signed(tmp_path)) is None:
        pytest.skip("no openssl program")
    secure = {"security": "starttls", "username": "butler", "password": PASSWORD}
    async with mail_server(MailServer(tls=tls)) as server:
        status, _, error = await desk.send(server.port, connection=secure)

    assert status is NodeStatus.FAILED
    assert error["code"] == "smtp.connect"
    assert not any(one.startswith(("AUTH", "MAIL")) for one in server.commands)


async def test_over_tls_it_signs_in_and_a_wrong_password_is_told(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (tls := self_signed(tmp_path)) is None:
        pytest.skip("no openssl program")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    secure = {"security": "starttls", "username": "butler", "password": PASSWORD}
    async with mail_server(MailServer(tls=tls)) as server:
        status, _, _ = await desk.send(server.port, connection=secure)
    async with mail_server(MailServer({"AUTH": "535 no"}, tls=tls)) as wrong:
        _, _, error = await desk.send(wrong.port, connection=secure)

    assert status is NodeStatus.COMPLETED
    assert server.secured
    plain = base64.b64encode(f"\0butler\0{PASSWORD}".encode()).decode()
    assert f"AUTH PLAIN {plain}" in server.commands
    assert error["code"] == "unauthorized"
    assert PASSWORD not in error["message"]


async def test_a_header_cannot_be_slipped_in(desk: Desk) -> None:
    async with mail_server(MailServer()) as server:
        for more in ({"subject": "x\r\nBcc: all@example.org"}, {"reply_to": "a@b.c\nBcc: d@e.f"}):
            status, _, error = await desk.send(server.port, **more)
            assert status is NodeStatus.FAILED
            assert error["code"] == "smtp.bad_header"

    assert server.commands == []
