"""The recent events of this process, for those who listen (server-sent events, WHATWG HTML 9.2).

All streams read the same bounded ring of recent events. Who comes back with Last-Event-ID goes on after that one.
Who has missed some is told so by an event `Missed`, with their `count`, null where nobody knows it. Nothing is kept
while nobody listens.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import anyio
from pydantic.alias_generators import to_camel

from stackd.core.clock import Clock, rfc3339
from stackd.core.errors import OverloadedError
from stackd.core.events import Event, EventBus
from stackd.core.json import dumps
from stackd.web.waiting import Client

KEPT = 5000  # events; a second or two at full load
KEPT_FOR = 60.0  # seconds after the last stream has ended: who was cut off comes back sooner
BEAT = 15.0  # seconds of silence after which a stream says that it is there
ASK_AGAIN = 2.0  # seconds after which it is asked again whether a listener may still listen
MAX_STREAMS = 100
BATCH = 200  # events written at a time; then others have their turn


@dataclass(frozen=True, slots=True)
class Told:
    """One event with its number and its moment."""

    number: int
    at: float
    event: Event


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events a stream asks for; empty: all."""

    types: frozenset[str] = frozenset()
    execution_id: str | None = None
    workflow_id: str | None = None
    hidden: tuple[type[Event], ...] = ()  # from who may not know

    def fits(self, event: Event) -> bool:
        return (
            (not self.types or type(event).__name__ in self.types)
            and not isinstance(event, self.hidden)
            and self.execution_id in (None, getattr(event, "execution_id", None))
            and self.workflow_id in (None, getattr(event, "workflow_id", None))
        )


class EventStream:
    """The ring, and the streams that read it."""

    def __init__(self, events: EventBus, clock: Clock) -> None:
        self._events = events
        self._clock = clock
        self._name = secrets.token_hex(
            4
        )  # of these numbers: those of another process mean nothing here
        self._ring: deque[Told] = deque(maxlen=KEPT)
        self._number = 0
        self._streams = 0
        self._silent_since = clock.monotonic()
        self._stop: Callable[[], None] | None = None
        self._news = anyio.Event()
        self.releases = 0  # each ends the streams that are open then

    def _hear(self, event: Event) -> None:
        if not self._streams and self._clock.monotonic() - self._silent_since > KEPT_FOR:
            self._forget()
            return
        self._number += 1
        self._ring.append(Told(self._number, self._clock.time(), event))
        self._news.set()

    def _forget(self) -> None:
        if self._stop is not None:
            self._stop()
        self._stop = None
        self._ring.clear()
        self._name = secrets.token_hex(4)  # what is told again later does not follow on this

    def release(self) -> None:
        """End all streams that are open: who serves them ends."""
        self.releases += 1
        self._news.set()

    def open(self, last_id: str | None) -> Reader:
        """A reader of what is told from now on, or after the event `last_id`, as far as that is still here.

        Raises:
            OverloadedError: there are as many as there may be.
        """
        if self._streams >= MAX_STREAMS:
            raise OverloadedError(
                f"{MAX_STREAMS} event streams are open", code="events.too_many", retry_after=5.0
            )
        self._streams += 1
        if self._stop is None:
            self._stop = self._events.subscribe(self._hear)
        name, _, number = (last_id or "").partition("-")
        if name == self._name and number.isdecimal() and len(number) < 20:
            return Reader(self, self._clock, min(int(number), self._number))
        return Reader(self, self._clock, self._number, is_lost=bool(last_id))

    @property
    def readers(self) -> int:
        """How many streams are open."""
        return self._streams

    def close(self) -> None:
        self._streams -= 1
        self._silent_since = self._clock.monotonic()

    def id_of(self, number: int) -> str:
        return f"{self._name}-{number}"

    def after(self, number: int) -> Iterator[Told]:
        """What the ring still holds after `number`."""
        if self._ring:
            first = max(number + 1 - self._ring[0].number, 0)
            for index in range(first, min(len(self._ring), first + BATCH)):
                yield self._ring[index]

    def has_more(self, after: int, releases: int) -> bool:
        """Whether there is something to do for who has read up to `after`, and was opened after `releases`."""
        return self.releases != releases or self._number != after

    def news(self) -> anyio.Event:
        """What is set by the next event, and when the streams are to end."""
        if self._news.is_set():
            self._news = anyio.Event()
        return self._news


class Reader:
    """One stream's place in the ring."""

    def __init__(
        self, stream: EventStream, clock: Clock, position: int, *, is_lost: bool = False
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._position = position
        self._releases = stream.releases
        self._is_lost = is_lost  # it has read before, and nobody knows how far
        self._spoke_at = clock.monotonic()

    def close(self) -> None:
        self._stream.close()

    async def next(self, wanted: Wanted, client: Client) -> bytes | None:
        """What to send next: events, nothing, or a comment after a silence; None once the stream ends.

        Who closes its side of the connection has left: one that only listens looks the same.
        """
        if self._is_lost:
            self._is_lost = False
            return _message("Missed", {"count": None}, self._stream.id_of(self._position))
        silence = self._spoke_at + BEAT - self._clock.monotonic()
        if not self._stream.has_more(self._position, self._releases):
            with client.telling(news := self._stream.news()):
                await self._clock.wait(news, min(max(silence, 0.0), ASK_AGAIN))
        if self._stream.releases != self._releases or client.may_be_gone:
            return None
        text = self._read(wanted)
        if not text and self._clock.monotonic() - self._spoke_at >= BEAT:
            text = b": beat\n\n"
        if text:
            self._spoke_at = self._clock.monotonic()
        return text

    def _read(self, wanted: Wanted) -> bytes:
        told = list(self._stream.after(self._position))
        if not told:
            return b""
        parts = []
        if (missed := told[0].number - self._position - 1) > 0:
            number = self._stream.id_of(told[0].number - 1)
            parts.append(_message("Missed", {"count": missed}, number))
        self._position = told[-1].number
        parts += [
            _message(type(one.event).__name__, _facts(one), self._stream.id_of(one.number))
            for one in told
            if wanted.fits(one.event)
        ]
        return b"".join(parts)


def _message(name: str, data: dict[str, object], number: str) -> bytes:
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (number.encode(), name.encode(), dumps(data))


def _facts(told: Told) -> dict[str, object]:
    names = _names(type(told.event))
    facts: dict[str, object] = {"at": rfc3339(told.at)}
    for name, shown in names.items():
        value = getattr(told.event, name)
        facts[shown] = rfc3339(value) if name.endswith("_at") and value is not None else value
    return facts


_SHOWN: dict[type[Event], dict[str, str]] = {}


def _names(kind: type[Event]) -> dict[str, str]:
    """The fields of an event and how they are shown; the number of an execution is for ourselves."""
    if kind not in _SHOWN:
        _SHOWN[kind] = _names_of(kind)
    return _SHOWN[kind]


def _names_of(kind: type[Event]) -> dict[str, str]:
    return {f.name: to_camel(f.name) for f in fields(kind) if f.name != "execution"}


def known_types() -> list[str]:
    """The names of all events."""
    # A class with slots is made twice, and the first one may live on.
    return sorted({kind.__name__ for kind in Event.__subclasses__()})
