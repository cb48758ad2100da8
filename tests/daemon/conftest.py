"""Real daemons for the tests of this folder: one that a whole module shares, and others made to order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.daemon import DaemonProcess, FarSide, running

Daemons = Callable[..., DaemonProcess]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A stack that runs for the length of a module. Tests use workflows of their own."""
    with running(tmp_path_factory.mktemp("shared")) as started:
        yield started


@pytest.fixture(scope="module")
def far_side() -> Iterator[FarSide]:
    with FarSide().listening() as listening:
        yield listening


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    """Makes daemons, not started yet, on one state directory; ends them with the test."""
    made: list[DaemonProcess] = []

    def make(state: Path | None = None, **environ: str) -> DaemonProcess:
        made.append(DaemonProcess(state or tmp_path / "state", **environ))
        return made[-1]

    yield make
    for one in made:
        one.kill()
