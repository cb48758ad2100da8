"""kill -9 at every event of a job's life and at random moments, some thirty times; `tests/soak` has a thousand.

And in the middle of an upgrade.
"""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from support.crash.far_side import Witness
from support.crash.record import Ledger
from support.crash.run import AT_ONCE, MOVES, Account, CrashRun, Death, crash_run, deaths
from support.crash.stories import LIMIT, STORIES
from support.daemon import DaemonProcess

from stackd.core.clock import SystemClock
from stackd.core.events import EventBus
from stackd.store.database import open_database
from stackd.store.migrations import known_migrations

LIVES = 8  # at most
SHIPPED = known_migrations()
OLD = 5  # a schema

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Death, Future[Account]]]:
    """The crash runs of all deaths that were asked for, under way side by side."""
    here = (item for item in request.session.items if isinstance(item, pytest.Function))
    asked = [item.callspec.params["death"] for item in here if "runs" in item.fixturenames]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            death: pool.submit(crash_run, tmp_path_factory.mktemp("crash"), death)
            for death in asked
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("death", deaths(33, seed=1), ids=str)
def test_a_kill_loses_nothing_and_does_nothing_twice(
    death: Death, runs: dict[Death, Future[Account]]
) -> None:
    account = runs[death].result()

    assert account.died >= (2 if death.again == "JobRescued" else 1)
    if death.event in ("NodeSent:mail", "NodeAnswered:mail", "NodeSent:each[1].send"):
        assert account.uncertain >= 1


@pytest.fixture(scope="module")
def peaceful(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[Ledger, int]]:
    """What a life without a death was, and how many executions the far side saw at once."""

    def live() -> tuple[Ledger, int]:
        with Witness(STORIES).listening() as witness:
            run = CrashRun(tmp_path_factory.mktemp("peaceful"), Death(), witness)
            try:
                run.through()
            finally:
                run.daemon.kill()
        return run.ledger, witness.most_at_once

    return live


def test_a_life_without_a_death_meets_every_event_as_often_as_deaths_count_on(
    peaceful: Callable[[], tuple[Ledger, int]],
) -> None:
    ledger, _ = peaceful()

    met = ledger.lives[0].counts()
    rare = {move for move, least in MOVES.items() if met[move] < least}
    assert rare == {"JobRescued", "TimerFired"}  # only after a death, only in a run with patience


def test_the_stories_fill_the_places_that_there_are(
    peaceful: Callable[[], tuple[Ledger, int]],
) -> None:
    """Else nothing would be shown by there never being more. In a busy hour one life in fifteen does not."""
    assert any(peaceful()[1] == LIMIT for _ in range(LIVES))


@pytest.mark.parametrize(
    ("line", "times"),
    [("raw.execute(_CREATE_TABLE)", 1), ("raw.execute(statement)", 8), ('"COMMIT"', 1)],
    ids=["begun", "half done", "all but committed"],
)
def test_a_kill_in_an_upgrade_leaves_what_was_and_the_next_start_upgrades_and_goes_on(
    daemons: Callable[[], DaemonProcess], line: str, times: int
) -> None:
    daemon = daemons()
    daemon.start()
    daemon.load(SETTING)
    daemon.api.post("/api/queue/pause")
    execution_id = daemon.begin("setting")
    assert daemon.terminate() == 0
    file = daemon.state / "stackd.db"
    make_older(file)

    daemon.spawn(DIE_AT=f"migrations.py:{line}", DIE_AFTER=str(times))
    assert daemon.wait() == -signal.SIGKILL
    assert (schema(file), tables(file)) == (OLD, tables(file.with_suffix(".old")))

    daemon.start()
    assert schema(file) == len(SHIPPED)
    daemon.api.post("/api/queue/resume")
    assert daemon.until(execution_id)["status"] == "completed"
    assert daemon.terminate() == 0
    assert not daemon.unforeseen()


SETTING = """
id: setting
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: out, type: transform.data.set, params: {values: {n: 1}}}
edges: [{from: start, to: out}]
"""


def make_older(file: Path) -> None:
    """Let the store be as a stackd of the schema `OLD` would have it; a copy of that is beside it."""
    newer, older = file.with_suffix(".new"), file.with_suffix(".old")
    file.rename(newer)

    async def make() -> None:
        async with open_database(
            older, clock=SystemClock(), events=EventBus(), migrations=SHIPPED[:OLD]
        ):
            pass

    anyio.run(make)
    with closing(sqlite3.connect(older, isolation_level=None)) as raw:
        raw.execute("ATTACH ? AS newer", (str(newer),))
        for table in tables(older) - {"schema_migrations"}:
            columns = ", ".join(row[1] for row in raw.execute(f"PRAGMA table_info({table})"))
            raw.execute(f"DELETE FROM {table}")
            raw.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM newer.{table}")
    file.write_bytes(older.read_bytes())
    file.chmod(0o600)


def tables(file: Path) -> set[str]:
    query = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as raw:
        return {str(name) for (name,) in raw.execute(query)}


def schema(file: Path) -> int:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as raw:
        ((version,),) = raw.execute("SELECT max(version) FROM schema_migrations")
    return int(version)
