"""The daemon of `stackd start`, whose loop is held up once: `held_up.py HOW WHERE [NAME=SECONDS…] ROLE`.

HOW is a function below; WHERE the workflow at whose start that happens, or the state of a service. NAMEs are
the patience of `stackd.supervisor.lag`. A state directory in which it has happened is spared.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stackd.core.loading import loading

if TYPE_CHECKING:
    from stackd.core.events import Event

HELD_UP: Final = "the loop is held up from here on"


def sleeps() -> None:
    time.sleep(600)


def matches() -> None:
    """Keeps the interpreter to itself: no other thread runs."""
    re.match("(a+)+$", "a" * 64 + "b")


HOW: Final[dict[str, Callable[[], None]]] = {one.__name__: one for one in (sleeps, matches)}


class HoldUp:
    """Hears the events, and does not come back from one of them."""

    def __init__(self, how: str, where: str, mark: Path) -> None:
        self._how = HOW[how]
        self._where = where
        self._mark = mark

    def __call__(self, event: Event) -> None:
        is_it = self._where in (getattr(event, "workflow_id", None), getattr(event, "state", None))
        if type(event).__name__ not in ("ExecutionStarted", "ServiceMoved") or not is_it:
            return
        if not self._mark.exists():
            self._mark.touch()
            print(HELD_UP, file=sys.stderr, flush=True)
            self._how()


def main() -> int:
    with loading():  # as `stackd` loads its own
        from stackd.daemon import run_daemon
        from stackd.settings import load_settings
        from stackd.supervisor import lag

    how, where, *quickened, role = sys.argv[1:]
    for name, _, seconds in (one.partition("=") for one in quickened):
        setattr(lag, name, float(seconds))
    settings = load_settings("start", role=role)
    return run_daemon(
        settings, role, listeners=(HoldUp(how, where, settings.state_dir / "held-up"),)
    )


if __name__ == "__main__":
    sys.exit(main())
