"""A number of bytes that those who hold large things share, so that all of them together fit into memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import anyio

from stackd.core.clock import Clock
from stackd.core.errors import OverloadedError

RETRY_AFTER = 5.0  # seconds after which one that found no room may try again
MOST_WAITING = 100  # each holds something already


class Budget:
    """`total` bytes. Who asks for more than is free waits, first come, first served; only little ones pass.

    A share larger than the whole is granted once no other is held.
    """

    def __init__(self, total: int, *, clock: Clock) -> None:
        self._total = total
        self._clock = clock
        self._taken = 0
        self._little = total // 64
        self._waiting: list[_Asked] = []

    @property
    def is_short(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    @property
    def taken(self) -> int:
        """Bytes held at this moment."""
        return self._taken

    async def obtain(self, size: int, *, patience: float) -> None:
        """Take `size` bytes, as `Share.obtain` does; the caller gives them back."""
        if self._fits(size) and (size <= self._little or not self._waiting):
            self._taken += size
            return
        asked = _Asked(size)
        self._waiting.append(asked)
        try:
            if len(self._waiting) <= MOST_WAITING:
                await self._clock.wait(asked.granted, patience)
        except BaseException:
            if asked.granted.is_set():
                self.change(-asked.size)
            raise
        finally:
            if not asked.granted.is_set():
                self._waiting.remove(asked)
                self._grant()  # it may have stood before smaller ones
        if not asked.granted.is_set():
            raise OverloadedError(
                f"no room for {asked.size:,} bytes beside what is in hand", retry_after=RETRY_AFTER
            )

    def change(self, by: int) -> None:
        """What is held has become `by` bytes more, or less."""
        self._taken += by
        self._grant()

    def _grant(self) -> None:
        for asked in tuple(self._waiting):
            is_next = asked is self._waiting[0] or asked.size <= self._little
            if is_next and self._fits(asked.size):
                self._waiting.remove(asked)
                self._taken += asked.size
                asked.granted.set()

    def _fits(self, size: int) -> bool:
        return self._taken == 0 or self._taken + size <= self._total


@dataclass(slots=True, eq=False)
class _Asked:
    size: int
    granted: anyio.Event = field(default_factory=anyio.Event)


class Share:
    """Bytes held of a budget: none at first, and none after the `with` block."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.resize(0)

    async def obtain(self, size: int, *, patience: float) -> None:
        """Hold `size` bytes more, from the moment they are free. Nothing is had at once.

        Only while it holds none: those who hold some and wait for more may wait for each other.

        Raises:
            OverloadedError: they did not become free in `patience` seconds, or too many wait already.
        """
        if size:
            await self._budget.obtain(size, patience=patience)
        self._size += size

    def resize(self, size: int) -> None:
        """Hold `size` bytes from now on."""
        self._budget.change(size - self._size)
        self._size = size

    def grow(self, by: int) -> None:
        """Hold `by` bytes more. It does not wait, as it holds some already: those who come later do."""
        self.resize(self._size + by)
