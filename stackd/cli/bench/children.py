"""Daemons and bare servers as children of a benchmark, and how work is given to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Any, Final

import aiohttp
import anyio

from stackd.cli.bench.figures import clock
from stackd.cli.demo import ChildDaemon
from stackd.core.json import dumps, loads

SENDERS: Final = 16
THREE_STEPS: Final[dict[str, Any]] = {
    "id": "bench",
    "nodes": [
        {"id": "hook", "type": "trigger.webhook.inbound", "params": {"path": "bench"}},
        {
            "id": "first",
            "type": "transform.data.set",
            "params": {"values": {"number": "{{ hook.body.number }}"}},
        },
        {
            "id": "second",
            "type": "transform.data.set",
            "params": {"values": {"text": "order {{ first.number }}"}},
        },
        {
            "id": "third",
            "type": "transform.data.set",
            "params": {"values": {"text": "{{ second.text | upper }}"}},
        },
    ],
    "edges": [
        {"from": "hook", "to": "first"},
        {"from": "first", "to": "second"},
        {"from": "second", "to": "third"},
    ],
}


class BareServer(ChildDaemon):
    """The floor of the daemon: what takes the same deliveries and keeps them, in as few words as that takes."""

    @property
    def words(self) -> list[str]:
        file = self.state / "floor.db"
        return ["-m", "stackd.store.floor_server", str(file), str(self.port)]


@asynccontextmanager
async def ready(
    kind: type[ChildDaemon], folder: Path
) -> AsyncIterator[tuple[ChildDaemon, aiohttp.ClientSession, float]]:
    """A ready daemon or bare server, a session to it, and the seconds from exec to ready."""
    connector = aiohttp.TCPConnector(limit=0)
    with _log_in(folder) as log:
        daemon = kind(folder, log)
        try:
            async with aiohttp.ClientSession(connector=connector) as session:
                began = clock.monotonic()
                daemon.start()
                await daemon.until_ready(session)
                yield daemon, session, clock.monotonic() - began
        finally:
            daemon.stop()


@contextmanager
def _log_in(folder: Path) -> Iterator[IO[bytes]]:
    folder.mkdir()
    with (folder / "daemon.log").open("wb") as log:
        yield log


def token(folder: Path) -> dict[str, str]:
    return {"Authorization": f"Bearer {(folder / 'dev-token').read_text().strip()}"}


async def import_workflow(
    daemon: ChildDaemon, session: aiohttp.ClientSession, document: Any
) -> None:
    async with session.post(
        f"{daemon.url}/api/workflows?activate=true",
        data=dumps(document),
        headers=token(daemon.state),
    ) as answer:
        answer.raise_for_status()


async def flood(daemon: ChildDaemon, session: aiohttp.ClientSession, count: int) -> None:
    numbers = iter(range(count))

    async def send() -> None:
        for number in numbers:
            await post(daemon, session, number)

    async with anyio.create_task_group() as tasks:
        for _ in range(SENDERS * 4):
            tasks.start_soon(send)


async def post(daemon: ChildDaemon, session: aiohttp.ClientSession, number: int) -> float:
    began = clock.monotonic()
    async with session.post(
        f"{daemon.url}/api/webhooks/bench",
        data=b'{"number": %d}' % number,
        headers={"Content-Type": "application/json"},
    ) as answer:
        answer.raise_for_status()
        await answer.read()
    return clock.monotonic() - began


async def until_idle(daemon: ChildDaemon, session: aiohttp.ClientSession) -> None:
    while True:
        async with session.get(f"{daemon.url}/api/queue", headers=token(daemon.state)) as answer:
            counts = loads(await answer.read())["counts"]
        if not any(
            counts.get(state) for state in ("available", "running", "scheduled", "retryable")
        ):
            return
        await clock.sleep(0.01)
