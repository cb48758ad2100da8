"""The real daemon under the suite's guard against blocking calls, with one listener of the tests: it kills
the process inside the chosen event.

DIE_ON names an event class, DIE_AFTER which one of its kind (from 1). Nothing in the product knows of this.
"""

from __future__ import annotations

import os
import signal
import sys

from blockbuster import blockbuster_ctx

from stackd.core.events import Event
from stackd.daemon import run_daemon
from stackd.settings import ensure_dev_secrets, load_settings


class Assassin:
    def __init__(self, kind: str, count: int) -> None:
        self._kind = kind
        self._left = count

    def __call__(self, event: Event) -> None:
        if type(event).__name__ == self._kind:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    kind = os.environ.pop("DIE_ON", "")
    listeners = (Assassin(kind, int(os.environ.pop("DIE_AFTER", "1"))),) if kind else ()
    role = sys.argv[1] if len(sys.argv) > 1 else "stack"
    settings = ensure_dev_secrets(load_settings(mode="dev"))
    with blockbuster_ctx("stackd"):
        return run_daemon(settings, role, listeners=listeners)


if __name__ == "__main__":
    sys.exit(main())
