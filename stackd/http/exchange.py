"""One request and its answer, bodies of any size and kind included: what a node does between its parameters and output."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog

from stackd.core.aside import aside
from stackd.core.clock import Clock
from stackd.core.errors import InputError, NodeError, StoreFullError
from stackd.core.json import LARGE, Json, loads_strict
from stackd.core.large_json import read_strictly
from stackd.http.message import Request, Response, Sink, SinkFor, Source
from stackd.http.reading import filename_of, kind_of, text_of

T = TypeVar("T")

SPACE_RETRY = 0.5  # seconds between tries while there is no space for what was answered

_log = structlog.get_logger(__name__)


class Http(Protocol):
    """The outbound seam, as far as nodes use it."""

    async def request(
        self,
        request: Request,
        *,
        on_sent: Callable[[], None] | None = None,
        sink_for: SinkFor | None = None,
    ) -> Response: ...


class Incoming(Protocol):
    """Content that comes in pieces; kept, or gone once it is closed."""

    @property
    def size(self) -> int: ...

    @property
    def is_heavy(self) -> bool: ...

    def add(self, chunk: bytes) -> None: ...

    async def spill(self) -> None: ...

    async def keep(self) -> str: ...

    async def aclose(self) -> None: ...


class Blobs(Protocol):
    """Where bodies that are no text go."""

    @property
    def max_bytes(self) -> int:
        """The most that one may have."""

    def receive(self) -> Incoming:
        """Content that comes in pieces."""

    def open(self, blob_id: str) -> AbstractAsyncContextManager[Source]:
        """The content, to be read in the block, or NotFoundError."""


class Situation(Protocol):
    """What an exchange stands in: one try of a node."""

    clock: Clock
    is_large: bool

    @property
    def http(self) -> Http: ...

    @property
    def blobs(self) -> Blobs: ...

    def on_sent(self) -> None: ...

    def on_answered(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and its body as JSON: what was JSON, a text, or `{"$blob", bytes, contentType, filename?}`.

    `unread`: why a body that was to be JSON is none; then `body` is None.
    """

    response: Response
    body: Json
    unread: NodeError | None = None


@asynccontextmanager
async def opened(blobs: Blobs, names: Iterable[str]) -> AsyncIterator[dict[str, Source]]:
    """The content of the blobs `names`, by name.

    Raises:
        NotFoundError: one is not there.
    """
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(blobs.open(name)) for name in names}


async def exchange(
    request: Request,
    situation: Situation,
    *,
    wanted: str,
    is_answer: Callable[[int], bool],
    is_last: Callable[[int], bool] = lambda _: True,
) -> Answer:
    """Send `request` and read its answer, a refused one in memory for its words.

    Args:
        wanted: how the body is read: `auto`, `json`, `text` or `blob`.
        is_answer: whether an answer of that status is one; the body of any other is only text.
        is_last: whether nothing more is asked of the far side after an answer of that status.

    Raises:
        NodeError: no answer, or one over a limit.
        StackdError: the blob that was answered is over a limit, or cannot be kept.
    """
    sink: _BlobSink | None = None

    def sink_for(status: int, content_type: str | None) -> Sink | None:
        nonlocal sink
        if is_answer(status) and kind_of(content_type, wanted) == "blob":
            sink = _BlobSink(situation)
        return sink

    try:
        response = await situation.http.request(
            request, on_sent=situation.on_sent, sink_for=sink_for
        )
        if is_last(response.status):
            situation.on_answered()
        if not is_answer(response.status):
            return Answer(response, None)
        if sink is not None:
            return Answer(response, await sink.keep(response))
        try:
            return Answer(response, await _read_body(response, wanted, situation))
        except NodeError as error:
            return Answer(response, None, error)
    except NodeError as error:
        if error.code == "http.response_too_large":
            error.message += f"; responseType: blob takes up to {situation.blobs.max_bytes:,}"
        raise
    finally:
        if sink is not None:
            await sink.incoming.aclose()


class _BlobSink:
    """Keeps a body that comes in pieces."""

    def __init__(self, situation: Situation) -> None:
        self.incoming = situation.blobs.receive()
        self._clock = situation.clock
        self.max_bytes = situation.blobs.max_bytes

    async def write(self, chunk: bytes) -> None:
        self.incoming.add(chunk)
        if self.incoming.is_heavy:
            await _patiently(self.incoming.spill, self._clock)

    async def keep(self, response: Response) -> Json:
        """What came in, as the output tells of it: `{"$blob", bytes, contentType, filename?}`."""
        blob: dict[str, Json] = {
            "$blob": await _patiently(self.incoming.keep, self._clock),
            "bytes": self.incoming.size,
            "contentType": (response.content_type or "").lower(),
        }
        name = filename_of(response)
        return blob if name is None else blob | {"filename": name}


async def _patiently(keep: Callable[[], Awaitable[T]], clock: Clock) -> T:
    """Do `keep` as soon as there is space for it: the action is done, and its answer shall not be lost."""
    while True:
        try:
            return await keep()
        except StoreFullError as error:
            _log.warning("waiting for space", reason=error.message)
        await clock.sleep(SPACE_RETRY)


async def _read_body(response: Response, wanted: str, situation: Situation) -> Json:
    situation.is_large = situation.is_large or len(response.body) > LARGE
    if kind_of(response.content_type, wanted) == "text":
        return text_of(response)
    if not response.body:
        return None
    try:
        return await _json(response.body.removeprefix(BOM_UTF8))  # as RFC 8259, 8.1 lets a reader
    except InputError as error:
        raise NodeError(
            f"answered {response.status} with a body that cannot be used: {error.message}",
            kind="invalid",
            code=error.code,
            sent=True,
            answered=True,
        ) from error


async def _json(body: bytes) -> Json:
    return loads_strict(body) if len(body) <= LARGE else await aside(read_strictly, body)
