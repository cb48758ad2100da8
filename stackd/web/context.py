"""What the routes work with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from stackd.core.budget import Budget
from stackd.core.clock import Clock
from stackd.core.errors import InputError
from stackd.core.events import EventBus
from stackd.core.json import Json, dumps
from stackd.core.process import ProcessIdentity
from stackd.core.text import shown
from stackd.integrations.registry import Registry
from stackd.queue.admission import Admission
from stackd.runtime.blobs import BlobFolder
from stackd.runtime.credential_tests import CredentialTests
from stackd.runtime.links import Links
from stackd.runtime.versions import Versions
from stackd.sandbox.sandbox import Sandbox
from stackd.settings import Settings
from stackd.store.database import Database
from stackd.supervisor.lag import LoopLag
from stackd.supervisor.supervisor import Supervisor
from stackd.vault.records import Vault
from stackd.web.bodies import Bodies
from stackd.web.event_stream import EventStream
from stackd.web.metrics import Metrics
from stackd.web.notes import Notes
from stackd.web.readiness import Readiness
from stackd.web.reload import Reloader
from stackd.web.waiting import Waiting
from stackd.workflows.code import SyntaxOf
from stackd.workflows.coverage import CoverageOf

LONGEST_KEY = 255

_SECONDS: Final = re.compile(r"\d{1,20}(?:\.\d{1,20})?(?:[eE][-+]?\d{1,2})?", re.ASCII)
_SWITCH: Final = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


@dataclass(frozen=True, slots=True)
class Context:
    """Shared by every request.

    Attributes:
        answers: memory for large answers; not that of bodies, or who reads slowly would stop deliveries.
        coverage: what can run an operation now, as the registry says.
        sandbox: what runs code; None in a process that runs none.
        syntax: whether code can run; asked on a thread; None where none is run.
        reloader: the settings that may change while the process runs, as they are now.
        token: the bearer token, None if none was made.
    """

    settings: Settings
    reloader: Reloader
    store: Database
    vault: Vault
    credential_tests: CredentialTests
    versions: Versions
    registry: Registry
    coverage: CoverageOf
    sandbox: Sandbox | None
    syntax: SyntaxOf | None
    blobs: BlobFolder
    links: Links
    bodies: Bodies
    answers: Budget
    admission: Admission
    clock: Clock
    events: EventBus
    identity: ProcessIdentity
    supervisor: Supervisor
    lag: LoopLag
    readiness: Readiness
    waiting: Waiting
    stream: EventStream
    metrics: Metrics
    notes: Notes
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
    if not (is_number(text, most=500) and int(text) >= 1):
        raise InputError(f"limit {shown(text)!r} is not a number from 1 to 500", code="query.limit")
    return int(text)


def is_number(text: str, *, most: int) -> bool:
    """Whether `text` is a whole number up to `most`, in plain digits."""
    is_short = len(text) <= len(str(most))  # Python converts no number of thousands of digits
    return text.isascii() and text.isdecimal() and is_short and int(text) <= most


def switch_of(request: web.Request, name: str) -> bool:
    """The query parameter `name` as true or false; by itself it is true, absent false."""
    text = request.query.get(name)
    if text is None:
        return False
    if text.lower() not in _SWITCH:
        raise InputError(f"{name} {shown(text)!r} is neither true nor false", code=f"query.{name}")
    return _SWITCH[text.lower()]


def seconds_of(request: web.Request, name: str, *, longest: float) -> float | None:
    """The query parameter `name` as seconds, at most `longest`; None if absent."""
    text = request.query.get(name)
    if text is None:
        return None
    if _SECONDS.fullmatch(text) is None:  # Python would read `1_0`, `+1` and digits of all scripts
        raise InputError(f"{name} {shown(text)!r} is not a number of seconds", code=f"query.{name}")
    return min(float(text), longest)
