"""Every state move is one typed event: it feeds the log, metrics, live streams and the crash tests.

Event classes are defined beside their noun; this module only carries them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events. Fields are plain values, safe to log."""


Listener = Callable[[Event], None]


class EventBus:
    """Calls every listener, in order of subscription, synchronously inside `emit`.

    A listener must not block; one that raises is logged and does not hinder the others.
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Deliver all further events to `listener`; the returned function ends that."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    def emit(self, event: Event) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:  # noqa: BLE001  # one bad listener must not undo a committed move
                _log.exception("event listener failed", event_type=type(event).__name__)
