"""What the routes work with."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from stackd.core.budget import Budget
from stackd.core.clock import Clock
from stackd.core.errors import InputError
from stackd.core.events import EventBus
from stackd.core.json import Json, dumps
from stackd.core.process import ProcessIdentity
from stackd.queue.admission import Admission
from stackd.runtime.blobs import BlobFolder
from stackd.runtime.versions import Versions
from stackd.settings import Settings
from stackd.store.database import Database
from stackd.supervisor.supervisor import Supervisor
from stackd.web.bodies import Bodies
from stackd.web.event_stream import EventStream
from stackd.web.metrics import Metrics
from stackd.web.waiting import Waiting

LONGEST_KEY = 255


@dataclass(frozen=True, slots=True)
class Context:
    """Shared by every request.

    Attributes:
        answers: memory for large answers; not that of bodies, or who reads slowly would stop deliveries.
        token: the bearer token, None if none was made.
    """

    settings: Settings
    store: Database
    versions: Versions
    blobs: BlobFolder
    bodies: Bodies
    answers: Budget
    admission: Admission
    clock: Clock
    events: EventBus
    identity: ProcessIdentity
    supervisor: Supervisor
    waiting: Waiting
    stream: EventStream
    metrics: Metrics
    token: str | None


CONTEXT: web.AppKey[Context] = web.AppKey("context", Context)


def of(request: web.Request) -> Context:
    return request.app[CONTEXT]


def storable(value: Json) -> bytes:
    """`value` from outside as JSON text.

    Raises:
        InputError: it cannot be written, as half a surrogate pair cannot.
    """
    try:
        return dumps(value)
    except TypeError as error:
        raise InputError(f"the input cannot be kept as JSON: {error}", code="json.text") from None


def header_text(value: str) -> str:
    r"""A header's value as text that can be stored; bytes that are no UTF-8 show as \xNN.

    aiohttp hands such bytes on as half surrogates.
    """
    return value.encode(errors="surrogateescape").decode(errors="backslashreplace")


def usable_key(key: str) -> str:
    """The idempotency key `key`.

    Raises:
        InputError: it is too long.
    """
    if len(key) > LONGEST_KEY:
        raise InputError(
            f"the idempotency key is longer than {LONGEST_KEY} characters",
            code="dedupe.key_too_long",
        )
    return key


def limit_of(request: web.Request) -> int:
    """The page size asked for: 1 to 500, 50 unless said."""
    text = request.query.get("limit", "50")
    if not (text.isdecimal() and len(text) <= 3 and 1 <= int(text) <= 500):
        raise InputError(f"limit {text!r} is not a number from 1 to 500", code="query.limit")
    return int(text)


def seconds_of(request: web.Request, name: str, *, longest: float) -> float | None:
    """The query parameter `name` as seconds, at most `longest`; None if absent."""
    text = request.query.get(name)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        raise InputError(
            f"{name} {text!r} is not a number of seconds", code=f"query.{name}"
        ) from None
    if not 0 <= seconds < float("inf"):
        raise InputError(f"{name} {text!r} is not a number of seconds", code=f"query.{name}")
    return min(seconds, longest)
