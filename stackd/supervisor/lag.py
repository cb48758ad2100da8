"""How late the event loop is, and what holds it up: seen from inside, by a thread beside it, and by a timer in C.

The thread sees a loop that sleeps in a call, and the stacks of all threads with it. Where a call keeps the
interpreter to itself (a pattern that backtracks, a huge sort) no thread runs; the timer prints all the same.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
from collections import deque
from typing import NamedTuple

import structlog

from stackd.core.clock import Clock

STEP = 0.25  # seconds between two looks; at 0.1 an idle daemon took a tenth of a percent more of a core
KEPT = 60.0  # seconds of them
TELL_AFTER = 2.0  # seconds without a turn of the loop, then the thread prints the stacks
TELL_REGARDLESS_AFTER = 8.0  # seconds, then the timer does
END_AFTER = 20.0  # seconds, once nobody else would end the process: as long as the unit lets it hang while it runs
REARM_EVERY = 2.0  # seconds; each time starts a thread in C

_log = structlog.get_logger(__name__)


class Lags(NamedTuple):
    """Seconds that the loop was late, over some time."""

    most: float
    p50: float
    p99: float


class LoopLag:
    """Watches the loop that runs it. The service manager's watchdog is fed by this loop alone, never by the thread.

    `run` returns when it is cancelled; the thread and the timer end with it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._late: deque[float] = deque(maxlen=round(KEPT / STEP))
        self._turned_at = self._clock.monotonic()  # seen by the thread
        self._over = threading.Event()
        self._ends = False

    @property
    def silent_for(self) -> float:
        """Seconds since the loop last turned, as far as this saw."""
        return self._clock.monotonic() - self._turned_at

    def over(self, seconds: float) -> Lags:
        """How late it was in the last `seconds`."""
        count = round(seconds / STEP)
        some = sorted(list(self._late)[-count:]) or [0.0]
        last = len(some) - 1
        return Lags(some[-1], some[last // 2], some[int(last * 0.99)])

    def end_if_held_up(self) -> None:
        """From now on let the timer end the process, with status 1, where the loop is held up for `END_AFTER`.

        For one that drains: a service manager's watchdog does not watch it any more, and no signal is seen.
        """
        self._ends = True
        self._arm()

    async def run(self) -> None:
        sentinel = threading.Thread(target=self._watch, name="loop-sentinel", daemon=True)
        sentinel.start()
        armed_at = -REARM_EVERY
        try:
            while True:
                began = self._turned_at = self._clock.monotonic()
                if began - armed_at >= REARM_EVERY:
                    armed_at = began
                    self._arm()
                await self._clock.sleep(STEP)
                self._late.append(max(self._clock.monotonic() - began - STEP, 0.0))
        finally:
            self._over.set()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        """Print the stacks once for each time that the loop is held up."""
        told_of = 0.0
        while not self._over.wait(TELL_AFTER / 2):
            turned_at = self._turned_at
            if self._clock.monotonic() - turned_at >= TELL_AFTER and told_of != turned_at:
                told_of = turned_at
                _log.error("the event loop is held up; the stacks follow", seconds=TELL_AFTER)
                faulthandler.dump_traceback(all_threads=True)

    def _arm(self) -> None:
        if sys.__stderr__ is None:  # a process without one has nowhere to print to
            return
        after = END_AFTER if self._ends else TELL_REGARDLESS_AFTER
        faulthandler.dump_traceback_later(after, exit=self._ends)
