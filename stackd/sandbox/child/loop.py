"""An event loop without sockets, which code in here may not have: it wakes itself through a pipe."""

from __future__ import annotations

import asyncio
import os
import selectors
from collections.abc import Awaitable, Callable
from typing import Any


class _Loop(asyncio.SelectorEventLoop):
    _add_reader: Callable[..., Any]
    _remove_reader: Callable[[int], Any]

    def __init__(self) -> None:
        super().__init__(selectors.PollSelector())

    def _make_self_pipe(self) -> None:
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)
        self._internal_fds = 1
        self._add_reader(
            self._woken, self._read_from_self
        )  # the public one needs what is not there yet

    def _close_self_pipe(self) -> None:
        self._remove_reader(self._woken)
        os.close(self._woken)
        os.close(self._wake)

    def _read_from_self(self) -> None:
        try:
            os.read(self._woken, 4096)
        except BlockingIOError:
            pass

    def _write_to_self(self) -> None:
        try:
            os.write(self._wake, b"\0")
        except OSError:
            pass


async def _waited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def run(awaitable: Awaitable[Any]) -> Any:
    """What it comes to. Tasks that are left are cancelled."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(_waited(awaitable))
