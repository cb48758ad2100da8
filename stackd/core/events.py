"""Every state move is one typed event: it feeds the log, metrics, live streams and the crash tests.

Event classes are defined beside their noun; this module only carries them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import structlog

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events. Fields are plain values, safe to log."""


Listener = Callable[[Event], None]


class EventBus:
    """Calls the listeners of an event, in order of subscription, synchronously inside `emit`.

    A listener must not block; one that raises is logged and does not hinder the others.
    """

    def __init__(self) -> None:
        self._listeners: list[tuple[Listener, tuple[type[Event], ...]]] = []
        self._by_kind: dict[type[Event], tuple[Listener, ...]] = {}

    def subscribe(self, listener: Listener, *kinds: type[Event]) -> Callable[[], None]:
        """Deliver further events of `kinds`, all if none is named; the returned function ends that."""
        entry = (listener, kinds or (Event,))
        self._listeners.append(entry)
        self._by_kind.clear()

        def unsubscribe() -> None:
            if entry in self._listeners:
                self._listeners.remove(entry)
                self._by_kind.clear()

        return unsubscribe

    def emit(self, event: Event) -> None:
        kind = type(event)
        listeners = self._by_kind.get(kind)
        if listeners is None:
            listeners = self._by_kind[kind] = tuple(
                listener for listener, kinds in self._listeners if issubclass(kind, kinds)
            )
        for listener in listeners:
            try:
                listener(event)
            except Exception:  # noqa: BLE001  # one bad listener must not undo a committed move
                with contextlib.suppress(Exception):  # nor may a log that cannot be written
                    _log.exception("event listener failed", event_type=kind.__name__)
