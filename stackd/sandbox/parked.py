"""Processes that wait for their jobs in advance: a job that finds one begins at once."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from stackd.core.clock import Clock
from stackd.sandbox.cgroups import Cgroups, Group
from stackd.sandbox.errors import SandboxUnavailableError
from stackd.sandbox.zygote import Child, Zygote

PARKED_FOR: Final = 60.0  # seconds that one waits for a job; on an idle box there is none


class Parked:
    """Up to `most` children of one zygote. Nothing is waited for here: who takes one waits until it has begun."""

    def __init__(
        self, zygote: Zygote, *, mode: str, most: int, clock: Clock, groups: Cgroups | None = None
    ) -> None:
        self.zygote = zygote
        self._mode = mode
        self._groups = groups
        self._most = most
        self._clock = clock
        self._waiting: deque[Child] = deque()  # the oldest first
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> Child | None:
        """The one that has waited longest, to be used once; None: there is none."""
        self._drop_old()
        while self._waiting:
            child = self._waiting.popleft()
            if not child.ended.is_set():
                return child
            child.close()
        return None

    def refill(self) -> None:
        """Ask for those that are missing, after a use. What cannot be had now is asked for after the next."""
        self._drop_old()
        group: Group | None = None
        try:
            while self.zygote.is_alive and len(self._waiting) < self._most:
                group = None
                if self._groups is not None and (group := self._groups.spare()) is None:
                    break  # the next use makes more, on a thread
                now = self._clock.monotonic()
                asked = self.zygote.ask(self._mode, scratch_mb=0, born=now, group=group)
                self._waiting.append(asked)
        except (OSError, SandboxUnavailableError):
            if group is not None:
                group.remove()
        self._arm()

    def close(self) -> None:
        """Let go of them all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            self._waiting.pop().close()

    def _arm(self) -> None:
        """Look again when the oldest has waited long enough; where none waits, nothing wakes us."""
        if self._timer is None and self._waiting:
            left = self._waiting[0].born + PARKED_FOR - self._clock.monotonic()
            self._timer = asyncio.get_running_loop().call_later(max(left, 0.0), self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._drop_old()
        self._arm()

    def _drop_old(self) -> None:
        now = self._clock.monotonic()
        while self._waiting and (
            self._waiting[0].ended.is_set() or now - self._waiting[0].born >= PARKED_FOR
        ):
            self._waiting.popleft().close()
