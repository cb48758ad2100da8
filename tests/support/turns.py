"""Counts the turns that another thread has while a test works."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def turns() -> Iterator[Callable[[], int]]:
    """How often another thread, which asks every millisecond, has had its turn."""
    taken = 0
    begun, done = threading.Event(), threading.Event()

    def take() -> None:
        nonlocal taken
        begun.set()
        while not done.wait(0.001):
            taken += 1

    watcher = threading.Thread(target=take)
    watcher.start()
    begun.wait(5)
    try:
        yield lambda: taken
    finally:
        done.set()
        watcher.join()
