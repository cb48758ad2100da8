"""kill -9 at every event of a job's life and at random moments, some thirty times; `tests/soak` has a thousand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from support.crash.far_side import Witness
from support.crash.record import Ledger
from support.crash.run import AT_ONCE, MOVES, Account, CrashRun, Death, crash_run, deaths
from support.crash.stories import LIMIT, STORIES

LIVES = 8  # at most

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
