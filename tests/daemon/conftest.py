"""Real daemons for the tests of this folder: one that a whole module shares, and others made to order."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cli import Command, Ran
from support.daemon import ENVIRON, DaemonProcess, FarSide, running

from stackd.cli.app import main

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


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Runs `stackd …` as its entry point does, in an environment of its own; `environ` adds to that."""

    def run(*words: str, **environ: str) -> Ran:
        with monkeypatch.context() as patch:
            for name in set(os.environ) - set(ENVIRON):
                patch.delenv(name)
            for name, value in environ.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["stackd", *words])
            patch.chdir(tmp_path)
            with pytest.raises(SystemExit) as ended:
                main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return Ran(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def stackd(command: Command, daemon: DaemonProcess) -> Command:
    """`command`, talking to the daemon of this module."""
    return lambda *words: command(*words, STACKD_STATE_DIR=str(daemon.state))
