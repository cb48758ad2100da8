"""Encryption-key rotation. There are no sealed values yet, so a round finds nothing to re-seal."""

from __future__ import annotations

import anyio
from anyio.abc import TaskStatus


class Rotation:
    """Waits until drained; credentials bring its work."""

    name = "rotation"

    def __init__(self) -> None:
        self._drained = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await self._drained.wait()

    def drain(self) -> None:
        self._drained.set()
