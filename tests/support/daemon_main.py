"""The real daemon under the suite's guard against blocking calls, with listeners of the tests: one writes
every event down, one kills the process inside the chosen event, and one before the chosen line.

DIE_ON names an event class, or a class and the key of a node (`NodeSent:mail`); DIE_AT a line of a module, which
a thread other than the first runs, by a part of it (`migrations.py:COMMIT`); DIE_AFTER which one of its kind (from
1); RECORD the file that the events go to; QUICK patience of modules, in seconds (`stackd.web.answers:ROOM_PATIENCE=1`).
Nothing in the product knows of this.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import linecache
import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from stackd.core.loading import loading

if TYPE_CHECKING:
    from stackd.core.events import Event, Listener


class Recorder:
    """Writes each event down as it happens. What was written outlives a kill, unsynced as it is."""

    def __init__(self, path: str) -> None:
        # Non-blocking only in name: it tells the guard that this write is meant.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK
        self._file = os.open(path, flags, 0o600)

    def __call__(self, event: Event) -> None:
        line = json.dumps([type(event).__name__, dataclasses.asdict(event)], default=str)
        os.write(self._file, line.encode() + b"\n")


class Assassin:
    def __init__(self, target: str, count: int) -> None:
        self._kind, _, self._key = target.partition(":")
        self._left = count

    def __call__(self, event: Event) -> None:
        if type(event).__name__ != self._kind:
            return
        if self._key and getattr(event, "key", None) != self._key:
            return
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class LineAssassin:
    """Traces a thread, as `threading.settrace` has it."""

    def __init__(self, target: str, count: int) -> None:
        self._file, _, self._part = target.partition(":")
        self._left = count

    def __call__(self, frame: FrameType, what: str, _: Any) -> LineAssassin | None:
        if not frame.f_code.co_filename.endswith(f"/{self._file}"):
            return None
        if what == "line" and self._part in linecache.getline(
            frame.f_code.co_filename, frame.f_lineno
        ):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def fail_api(tries: int) -> None:
    """Let the first so many lives of the API end as soon as they serve."""
    from stackd.services.api import Api

    run, lives = Api.run, itertools.count(1)

    async def failing(self: Api, **given: Any) -> None:
        if self.name == "api" and next(lives) <= tries:
            raise OSError("it breaks")
        await run(self, **given)

    Api.run = failing  # type: ignore[method-assign]


def main() -> int:
    with loading():  # as `stackd` loads its own
        from blockbuster import blockbuster_ctx

        from stackd.daemon import run_daemon
        from stackd.settings import ensure_dev_secrets, load_settings

    for one in os.environ.pop("QUICK", "").split():
        place, _, seconds = one.partition("=")
        module, _, name = place.partition(":")
        assert hasattr(importlib.import_module(module), name), one
        setattr(sys.modules[module], name, float(seconds))
    listeners: list[Listener] = []
    if path := os.environ.pop("RECORD", ""):
        listeners.append(Recorder(path))  # first: the event of a death is recorded too
    count = int(os.environ.pop("DIE_AFTER", "1"))
    if target := os.environ.pop("DIE_ON", ""):
        listeners.append(Assassin(target, count))
    if tries := int(os.environ.pop("FAIL_API", "0")):
        fail_api(tries)
    if target := os.environ.pop("DIE_AT", ""):
        threading.settrace(LineAssassin(target, count))
    role = sys.argv[1] if len(sys.argv) > 1 else "stack"
    settings = ensure_dev_secrets(load_settings(mode="dev"))
    with blockbuster_ctx("stackd"):
        return run_daemon(settings, role, listeners=tuple(listeners))


if __name__ == "__main__":
    sys.exit(main())
