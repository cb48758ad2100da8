"""Changes of connector folders: for `dev`, where a definition is tried while it is written."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from stackd.core.aside import Aside
from stackd.core.clock import Clock
from stackd.integrations.catalogue import HANDLERS, NAME

EVERY: Final = 1.0  # seconds; a look at 149 connectors takes 2 ms of a thread


async def changes(folders: Sequence[Path], clock: Clock) -> AsyncIterator[None]:
    """One item after each change of a definition or of handlers below `folders`; ends only by cancel.

    By looking, not by inotify: that tells nothing of network and container mounts, and a definition is often edited there.
    """
    looking = Aside(lambda: _stamps(folders))
    before = await looking.result()
    while True:
        await clock.sleep(EVERY)
        now = await looking.result()
        if now != before:
            yield
        before = now


def _stamps(folders: Sequence[Path]) -> dict[str, tuple[int, int, int]]:
    """Each file there is, by inode, moment of its last change and size."""
    found: dict[str, tuple[int, int, int]] = {}
    for folder in folders:
        try:
            places = [entry.path for entry in os.scandir(folder)]
        except OSError:
            continue
        for place in places:
            for name in (NAME, HANDLERS):
                path = os.path.join(place, name)  # noqa: PTH118  # twice as fast, twice a second
                try:
                    told = os.stat(path)  # noqa: PTH116
                except OSError:
                    continue
                found[path] = told.st_ino, told.st_mtime_ns, told.st_size
    return found
