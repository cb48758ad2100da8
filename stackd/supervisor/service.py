"""The contract every supervised loop keeps."""

from __future__ import annotations

from typing import Protocol

from anyio.abc import TaskStatus


class Service(Protocol):
    """One supervised loop. Used once: a restart builds a new one.

    `run` reports `started()` when it does its work, and returns only after `drain`. `drain` is safe at any
    time and any number of times: no new work, finish what is in hand, return.
    """

    name: str

    async def run(self, *, task_status: TaskStatus[None]) -> None: ...

    def drain(self) -> None: ...
