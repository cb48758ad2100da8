"""Replays recorded cases: each runs as its operation does in a workflow, but for the network.

Every request is held against the recorded one, and answered as that was. What came otherwise is told, never raised.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import Message
from itertools import islice
from typing import Any, Final

import anyio
from yarl import URL

from stackd.core.clock import Clock
from stackd.core.errors import NodeError, NotFoundError, StackdError
from stackd.core.json import Json, dumps, loads
from stackd.core.redact import LIVE, Redactor
from stackd.http.message import (
    FilePart,
    FormBody,
    JsonBody,
    MultipartBody,
    RawBody,
    Request,
    Response,
    SinkFor,
)
from stackd.http.reading import is_json
from stackd.integrations.account import Account
from stackd.integrations.cases import (
    Case,
    CaseConnection,
    CaseRequest,
    CaseResponse,
    Exchange,
    Recorded,
)
from stackd.integrations.catalogue import Connector
from stackd.integrations.differences import HEADER, Difference, as_text, differences
from stackd.integrations.manager import IntegrationManager, Trace
from stackd.integrations.registry import Target
from stackd.workflows.nodetypes import Effect

KEY: Final = "case-key-0001"  # the idempotency key of keyed operations
NOW: Final = 1_750_000_000.0  # the moment of every case: 2025-06-15T15:06:40Z
TIMEOUT: Final = 10.0  # seconds; nothing in a case has to wait
MOST: Final = 1_000  # differences of one case that are told

NOT_RECORDED: Final = "cases.not_recorded"
END: Final = "end"  # the place of how a case ends
OUTPUT: Final = "output"


async def replay(
    case: Case, recorded: Recorded, operation: str, manager: IntegrationManager, app: str
) -> list[Difference]:
    """What comes otherwise than `case` has it, without secrets of its credential; nothing, if all is well.

    Generic HTTP has to be on in the options of `manager`.
    """
    try:
        target = manager.registry.target(app, operation)
    except NodeError as error:
        return [Difference(END, None, _words(error))]
    account = _account(case.connection or recorded.connection, target.connector)
    far_side = _FarSide(case.exchanges)
    secrets = Redactor(account.secret_values)
    before = LIVE.set(secrets)
    ends: Iterator[Difference]
    try:
        with anyio.fail_after(TIMEOUT):
            output = await _output(case, target, account, far_side, manager)
        ends = _output_differs(output, case)
    except StackdError as error:
        ends = _failure_differs(error, case)
    except TimeoutError:
        ends = iter([Difference(END, _expected(case), f"nothing within {TIMEOUT:g} s")])
    finally:
        LIVE.reset(before)
    found = [*far_side.differences, *far_side.left(), *islice(ends, MOST)]
    return [one.without(secrets) for one in found[:MOST]]


async def _output(
    case: Case, target: Target, account: Account, far_side: _FarSide, manager: IntegrationManager
) -> Json:
    situation = _Situation(far_side, _Blobs(case.blobs), target.plan.effect)
    trace = Trace(target.connector.id, target.plan.operation.id)
    params = await manager.fitted(target, case.params, situation.idempotency_key)
    if case.runtime == "http":
        return await manager.execute_generic(target.plan, params, account, situation, trace)
    if case.runtime == "python" and target.handler is None:
        raise NodeError("there is no handler", kind="invalid", code="cases.no_handler")
    return await manager.execute(target, params, account, situation, trace)


def _output_differs(output: Json, case: Case) -> Iterator[Difference]:
    try:
        text = as_text(output)
    except TypeError as error:  # a handler's, which may be anything
        yield Difference(END, _expected(case), f"no JSON: {error}")
        return
    if case.error is not None:
        yield Difference(END, _expected(case), f"output {text}")
    else:
        yield from (one.within(OUTPUT) for one in differences(loads(text), case.output))


def _failure_differs(failure: StackdError, case: Case) -> Iterator[Difference]:
    wanted = case.error
    if failure.code == NOT_RECORDED:
        return  # the request is told
    if wanted is None or failure.code != wanted.code or wanted.contains not in failure.message:
        yield Difference(END, _expected(case), _words(failure))


def _expected(case: Case) -> str:
    """The end that is recorded."""
    if case.error is None:
        return f"output {as_text(case.output)}"
    return f"{case.error.code}: …{case.error.contains}…" if case.error.contains else case.error.code


def _words(failure: StackdError) -> str:
    return f"{failure.code}: {failure.message}"


def _account(connection: CaseConnection, connector: Connector) -> Account:
    members = connector.definition.app.connection.fields.get("properties")
    known = members if isinstance(members, dict) else {}
    public = {
        name for name, one in known.items() if isinstance(one, dict) and not one.get("x-secret")
    }
    return Account(
        "connection", "case", dict(connection.fields), frozenset(connection.fields) - public, connection.auth,
        grants_private=True, connector=connector.id,
    )  # fmt: skip


# -- the far side


class _FarSide:
    """Stands in place of the outbound client: answers what is recorded, in order, and nothing else."""

    def __init__(self, exchanges: tuple[Exchange, ...]) -> None:
        self._exchanges = exchanges
        self.count = 0
        self.differences: list[Difference] = []

    async def request(
        self,
        request: Request,
        *,
        on_sent: Callable[[], None] | None = None,
        sink_for: SinkFor | None = None,
    ) -> Response:
        self.count += 1
        if self.count > len(self._exchanges):
            self.differences.append(Difference(f"request {self.count}", None, _shown(request)))
            raise NodeError("nothing is recorded", kind="network", code=NOT_RECORDED)
        exchange = self._exchanges[self.count - 1]
        found = islice(_asked_otherwise(request, exchange.request), MOST)
        self.differences += [one.within(f"request {self.count} ") for one in found]
        if on_sent is not None:
            on_sent()
        response = _response(exchange.response, request.url)
        sink = None if sink_for is None else sink_for(response.status, response.content_type)
        if sink is None:
            return response
        await sink.write(response.body)
        return _response(exchange.response.model_copy(update={"body": None}), request.url)

    def left(self) -> Iterator[Difference]:
        """What was to be asked and was not."""
        for number, exchange in enumerate(self._exchanges[self.count :], self.count + 1):
            wanted = exchange.request
            yield Difference(
                f"request {number}", f"{wanted.method} {wanted.url or wanted.path}", None
            )


def _asked_otherwise(request: Request, wanted: CaseRequest) -> Iterator[Difference]:
    if request.method != wanted.method:
        yield Difference("method", wanted.method, request.method)
    url = URL(request.url)
    asked, named = _place(url, wanted), _place(URL(wanted.url or str(wanted.path)), wanted)
    if asked != named:
        yield Difference("address", named, asked)
    query: dict[str, Json] = {}
    for name, value in [*url.query.items(), *_pairs(request.query or {})]:
        _add(query, name, value)
    yield from (one.within("query") for one in differences(query, dict(wanted.query)))
    headers = {name.lower(): value for name, value in request.headers.items()}
    for name, value in wanted.headers.items():
        if (came := headers.get(name.lower())) != value:
            yield Difference(f"{HEADER}{name}", value, came)
    (found, actual), (kind, expected) = _body_of(request), _expected_body(wanted)
    if found != kind:
        yield Difference("body", f"{kind} {as_text(expected)}", f"{found} {as_text(actual)}")
    else:
        yield from (one.within(kind) for one in differences(actual, expected))


def _place(url: URL, wanted: CaseRequest) -> str:
    """What counts of an address, as the client writes it: `%40` and `@` in a path are one."""
    return url.raw_path if wanted.url is None else f"{url.origin()}{url.raw_path}"


def _shown(request: Request) -> str:
    url = URL(request.url)
    return f"{request.method} {url.origin()}{url.raw_path}"


def _expected_body(wanted: CaseRequest) -> tuple[str, Json]:
    if wanted.form is not None:
        return "form", dict(wanted.form)
    if wanted.multipart is not None:
        return "multipart", [one.model_dump(by_alias=True) for one in wanted.multipart]
    return ("body", wanted.body) if wanted.text is None else ("text", wanted.text)


def _body_of(request: Request) -> tuple[str, Json]:
    match request.body:
        case None:
            return "body", None
        case JsonBody(content):
            return "body", loads(content)
        case FormBody(pairs):
            form: dict[str, Json] = {}
            for name, value in pairs:
                _add(form, name, value)
            return "form", form
        case MultipartBody(parts):
            return "multipart", [_part(one) for one in parts]
        case RawBody(raw, _):
            return "text", _text(raw)


def _part(part: FilePart) -> Json:
    return {
        "name": part.name,
        "content": _text(part.content),
        "filename": part.filename,
        "contentType": part.content_type,
    }


def _text(content: Any) -> str:
    if isinstance(content, _Kept):
        content = content.content
    return content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)


def _pairs(query: Mapping[str, str | list[str]]) -> Iterator[tuple[str, str]]:
    for name, value in query.items():
        yield from ((name, one) for one in (value if isinstance(value, list) else [value]))


def _add(query: dict[str, Json], name: str, value: str) -> None:
    """Names that come more than once have a list."""
    before = query.get(name)
    if before is None:
        query[name] = value
    elif isinstance(before, list):
        before.append(value)
    else:
        query[name] = [before, value]


def _response(recorded: CaseResponse, url: str) -> Response:
    headers = {name.lower(): value for name, value in recorded.headers.items()}
    body = recorded.body
    if "content-type" not in headers:
        headers["content-type"] = (
            "text/plain; charset=utf-8" if isinstance(body, str) else "application/json"
        )
    head = Message()
    head["Content-Type"] = headers["content-type"]
    content_type, charset = head.get_content_type(), head.get_content_charset()
    if body is None:
        content = b""
    elif isinstance(body, str) and not is_json(content_type):
        content = body.encode()
    else:
        content = dumps(body) if recorded.raw is None else recorded.raw
    return Response(
        status=recorded.status,
        headers=headers,
        body=content,
        url=url,
        content_type=content_type,
        charset=charset,
    )


# -- what a run stands in


class _StillClock:
    """Time that stands: what a case records holds on any day."""

    def time(self) -> float:
        return NOW

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:  # noqa: ARG002  # as the protocol has it
        await anyio.lowlevel.checkpoint()

    async def wait(self, event: anyio.Event, timeout: float) -> bool:  # noqa: ARG002
        await anyio.lowlevel.checkpoint()
        return event.is_set()


@dataclass(slots=True)
class _Situation:
    """One try, as `generic.Try` has it."""

    http: _FarSide
    blobs: _Blobs
    effect: Effect
    clock: Clock = field(default_factory=_StillClock)
    is_large: bool = False
    sent: bool = False
    timeout: float = TIMEOUT
    max_bytes: int = 1024 * 1024

    @property
    def idempotency_key(self) -> str | None:
        return KEY if self.effect is Effect.KEYED else None

    @property
    def unsafe(self) -> bool:
        return self.effect is Effect.UNSAFE

    async def turn(self) -> None:
        pass

    def acted(self) -> None:
        pass

    def exhausted(self, seconds: float) -> None:
        pass

    def on_sent(self) -> None:
        self.sent = True

    def on_answered(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Kept:
    """The content of a blob, as it is sent."""

    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    async def read_at(self, offset: int, size: int) -> bytes:
        return self.content[offset : offset + size]


class _Blobs:
    """Blobs of one case. What comes in is counted and thrown away; its id is `received`."""

    max_bytes = 1024 * 1024

    def __init__(self, contents: Mapping[str, str]) -> None:
        self._contents = contents

    def receive(self) -> _Incoming:
        return _Incoming()

    @asynccontextmanager
    async def open(self, blob_id: str) -> AsyncIterator[_Kept]:
        if blob_id not in self._contents:
            raise NotFoundError(f"no blob {blob_id}", code="blob.not_found")
        yield _Kept(self._contents[blob_id].encode())


class _Incoming:
    is_heavy = False

    def __init__(self) -> None:
        self.size = 0

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)

    async def spill(self) -> None:
        pass

    async def keep(self) -> str:
        return "received"

    async def aclose(self) -> None:
        pass
