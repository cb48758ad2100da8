"""The bench: its floor keeps what it has answered, as the daemon does, and figures say how they stand to it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import aiohttp
import anyio
import pytest

from stackd.cli.bench.children import BareServer
from stackd.cli.bench.figures import Figure

DELIVERIES = 200


@pytest.fixture(autouse=True)
def no_blocking_calls() -> None:
    """Overrides the guard of the suite: the loop of a bench serves nobody else, and waits for its child on it."""


async def test_the_bare_server_has_on_disk_what_it_answered(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        server = BareServer(tmp_path, log)
        server.start()
        try:
            async with aiohttp.ClientSession() as session:
                await server.until_ready(session)

                async def deliver(number: int) -> None:
                    url = f"{server.url}/api/webhooks/bench"
                    async with session.post(url, data=b"%d" % number) as answer:
                        assert answer.status == 202

                async with anyio.create_task_group() as tasks:
                    for number in range(DELIVERIES):
                        tasks.start_soon(deliver, number)
        finally:
            server.kill()

    raw = sqlite3.connect(tmp_path / "floor.db")
    bodies = [int(body) for (body,) in raw.execute("SELECT body FROM deliveries")]
    (first,) = raw.execute("PRAGMA journal_mode").fetchone()
    raw.close()
    assert sorted(bodies) == list(range(DELIVERIES))
    assert first == "wal"


@pytest.mark.parametrize(
    ("figure", "shown"),
    [
        (Figure("x", 30, "s", 40, floor=20), (True, 20, 1.5)),
        (Figure("x", 30, "1/s", 40, higher=True, floor=20), (False, 20, 1.5)),
        (Figure("x", 30, "%", floor=0.0), (None, 0.0, None)),
    ],
)
def test_a_figure_tells_its_budget_floor_and_ratio(
    figure: Figure, shown: tuple[object, object, object]
) -> None:
    view = figure.as_json()

    assert (view["withinBudget"], view["floor"], view["ratio"]) == shown
