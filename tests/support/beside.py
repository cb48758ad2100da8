"""What a daemon answers beside what it is busy with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from support.daemon import Answer, DaemonProcess


@contextmanager
def asked(again: Callable[[], Answer], *, every: float = 0.005) -> Iterator[list[float]]:
    """`again` is called over and over during the block; how long each answer took, in seconds, so far.

    Each has to be a success.
    """
    took: list[float] = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(every):
            began = time.monotonic()
            answer = again()
            took.append(time.monotonic() - began)
            assert answer.status < 300, answer

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield took
        finally:
            done.set()
            asking.result()


@contextmanager
def asked_for_health(daemon: DaemonProcess) -> Iterator[Callable[[], float]]:
    """Asks whether the loop turns, again and again; the longest it took to answer, in seconds."""
    with asked(lambda: daemon.http("GET", "/livez", authorized=False)) as took:
        yield lambda: max(took, default=0.0)


def p99(took: list[float]) -> float:
    return sorted(took)[len(took) * 99 // 100]
