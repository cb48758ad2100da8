"""Recorded cases of connectors: parameters in, what was asked and answered, and what must come of it.

`connectors/<id>/cases/<operation>.json` holds those of one operation; connectors/README.md shows the form. A case
runs as its operation does in a workflow, but for the network: each request is held against the recorded one, and
answered as that was.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import anyio
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from yarl import URL

from stackd.core.clock import Clock
from stackd.core.errors import InputError, NodeError, NotFoundError, StackdError
from stackd.core.json import Json, dumps, loads_strict
from stackd.http.message import (
    FilePart,
    FormBody,
    JsonBody,
    MultipartBody,
    RawBody,
    Request,
    Response,
)
from stackd.http.reading import is_json
from stackd.integrations.account import Account
from stackd.integrations.catalogue import Connector, first_problem
from stackd.integrations.manager import IntegrationManager, Trace
from stackd.integrations.registry import Target
from stackd.workflows.nodetypes import Effect

FOLDER: Final = "cases"
CONNECTION: Final = "_connection.json"  # the credential of cases that name none
KEY: Final = "case-key-0001"  # the idempotency key of keyed operations
NOW: Final = 1_750_000_000.0  # the moment of every case: 2025-06-15T15:06:40Z
LONGEST: Final = 4 * 1024 * 1024  # bytes of one file
TIMEOUT: Final = 30.0

M = TypeVar("M", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, frozen=True, populate_by_name=True, extra="forbid"
    )


class CaseConnection(_Part):
    """A made-up credential. `auth`: which of the connector's ways in it is for."""

    fields: dict[str, str] = {}
    auth: str | None = None


class CasePart(_Part):
    """A part of a multipart body."""

    name: str
    content: str
    filename: str | None = None
    content_type: str | None = None


class CaseRequest(_Part):
    """What must be asked. What is not named of `query` and body must not be there; other headers may.

    Attributes:
        url: without its query, encoded as it is sent; `path`: the same without scheme and host.
        body: as JSON; `form`, `multipart` and `text` take its place.
    """

    method: str
    url: str | None = None
    path: str | None = None
    query: dict[str, str | list[str]] = {}
    headers: dict[str, str] = {}
    body: Json = None
    form: dict[str, str | list[str]] | None = None
    multipart: tuple[CasePart, ...] | None = None
    text: str | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.url is None) == (self.path is None):
            raise ValueError("must name one of url and path")
        given = ("body", "form", "multipart", "text")
        if sum(name in self.model_fields_set for name in given) > 1:
            raise ValueError(f"must name one of {', '.join(given)} at most")
        return self


class CaseResponse(_Part):
    """What is answered. `body`: JSON, or a text where `content-type` says that it is another thing."""

    status: Annotated[int, Field(ge=100, le=599)] = 200
    headers: dict[str, str] = {}
    body: Json = None


class Exchange(_Part):
    request: CaseRequest
    response: CaseResponse


class CaseError(_Part):
    """How it must fail. `contains`: a piece of what it says."""

    code: str
    contains: str = ""


class Case(_Part):
    """One run of an operation.

    Attributes:
        runtime: `http`: by generic HTTP, though there may be a handler; None: as a workflow would.
        connection: None: that of the folder.
        blobs: what blobs among the parameters hold, by their ids.
    """

    name: Annotated[str, Field(min_length=1)]
    runtime: Literal["python", "http"] | None = None
    params: dict[str, Json] = {}
    connection: CaseConnection | None = None
    blobs: dict[str, str] = {}
    exchanges: tuple[Exchange, ...] = ()
    output: Json = None
    error: CaseError | None = None

    @model_validator(mode="after")
    def _ends_one_way(self) -> Self:
        if ("output" in self.model_fields_set) == (self.error is not None):
            raise ValueError("must name one of output and error")
        return self


class _Cases(BaseModel):
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is recorded of one connector. `by_operation`: by the names of the files."""

    connection: CaseConnection
    by_operation: Mapping[str, tuple[Case, ...]]


def read_cases(folder: Path) -> Recorded:
    """The cases of the connector in `folder`; none if it has no folder of cases.

    Raises:
        InputError: a file cannot be used; names it and the place.
    """
    place = folder / FOLDER
    own = place / CONNECTION
    connection = _read(own, CaseConnection, _json_in(own)) if own.is_file() else CaseConnection()
    found = {
        path.stem: _read(path, _Cases, {"cases": _json_in(path)}).cases
        for path in sorted(place.glob("*.json"))
        if path.name != CONNECTION
    }
    return Recorded(connection, found)


def _json_in(path: Path) -> Json:
    with path.open("rb") as file:
        text = file.read(LONGEST + 1)
    if len(text) > LONGEST:
        raise InputError(f"{path} is over {LONGEST:,} bytes", code="cases.invalid")
    try:
        return loads_strict(text)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", code="cases.invalid") from None


def _read(path: Path, model: type[M], value: Json) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error, '')}", code="cases.invalid") from None


async def problems_of(
    case: Case, recorded: Recorded, operation: str, manager: IntegrationManager, app: str
) -> list[str]:
    """What came otherwise than `case` has it; nothing, if all is well. Never touches the network.

    Generic HTTP has to be on in the options of `manager`.
    """
    try:
        target = manager.registry.target(app, operation)
    except NodeError as error:
        return [error.message]
    far_side = _FarSide(case.exchanges)
    situation = _Situation(far_side, _Blobs(case.blobs), target.plan.effect)
    account = _account(case.connection or recorded.connection, target.connector)
    trace = Trace(app, operation)
    output: Json = None
    failure: StackdError | None = None
    try:
        params = await manager.fitted(target, case.params, situation.idempotency_key)
        output = await _run(case, target, params, account, situation, trace, manager)
    except StackdError as error:
        failure = error
    return [*far_side.problems, *far_side.left(), *_end(case, output, failure)]


async def _run(
    case: Case,
    target: Target,
    params: dict[str, Json],
    account: Account,
    situation: _Situation,
    trace: Trace,
    manager: IntegrationManager,
) -> Json:
    if case.runtime == "python" and target.handler is None:
        raise InputError("the case is of a handler, and there is none", code="cases.invalid")
    with anyio.fail_after(TIMEOUT):
        if case.runtime == "http":
            return await manager.execute_generic(target.plan, params, account, situation, trace)
        return await manager.execute(target, params, account, situation, trace)


def _end(case: Case, output: Json, failure: StackdError | None) -> Iterator[str]:
    """How what came of it differs from what is recorded."""
    if case.error is None:
        if failure is not None:
            yield f"failed: {failure.code}: {failure.message}"
        elif (place := first_difference(output, case.output)) is not None:
            yield f"output{place}"
    elif failure is None:
        yield f"did not fail, as {case.error.code} was to come; output: {_brief(output)}"
    elif failure.code != case.error.code or case.error.contains not in failure.message:
        yield (
            f"failed with {failure.code}: {failure.message}, "
            f"not with {case.error.code}: …{case.error.contains}…"
        )


def _account(connection: CaseConnection, connector: Connector) -> Account:
    members = connector.definition.app.connection.fields.get("properties", {})
    secrets = frozenset(
        name for name in connection.fields if members.get(name, {}).get("x-secret", True)
    )
    public = {name for name, one in members.items() if not one.get("x-secret")}
    return Account(
        "connection", "case", dict(connection.fields), secrets - public, connection.auth,
        grants_private=True, connector=connector.id,
    )  # fmt: skip


# -- the far side


class _FarSide:
    """Stands in place of the outbound client: answers what is recorded, in order, and nothing else."""

    def __init__(self, exchanges: tuple[Exchange, ...]) -> None:
        self._exchanges = exchanges
        self.count = 0
        self.problems: list[str] = []

    async def request(
        self, request: Request, *, on_sent: Callable[[], None] | None = None
    ) -> Response:
        number = self.count + 1
        if self.count >= len(self._exchanges):
            self.problems.append(f"request {number} is not recorded: {_shown(request)}")
            raise NodeError("nothing is recorded", kind="network", code="cases.not_recorded")
        exchange = self._exchanges[self.count]
        self.count = number
        self.problems += [f"request {number}: {one}" for one in differences(request, exchange)]
        if on_sent is not None:
            on_sent()
        response = _response(exchange.response, request.url)
        sink = None
        if request.sink_for is not None:
            sink = request.sink_for(response.status, response.content_type)
        if sink is None:
            return response
        await sink.write(response.body)
        return _response(exchange.response.model_copy(update={"body": None}), request.url)

    def left(self) -> Iterator[str]:
        for exchange in self._exchanges[self.count :]:
            wanted = exchange.request
            yield f"was not asked: {wanted.method} {wanted.url or wanted.path}"


def differences(request: Request, exchange: Exchange) -> Iterator[str]:
    """How a request differs from the recorded one; each names the place."""
    wanted = exchange.request
    if request.method != wanted.method:
        yield f"method is {request.method}, not {wanted.method}"
    url = URL(request.url)
    asked, named = _place(url, wanted), _place(URL(wanted.url or str(wanted.path)), wanted)
    if asked != named:
        yield f"address is {asked}, not {named}"
    query: dict[str, str | list[str]] = {}
    for name, value in [*url.query.items(), *_pairs(request.query or {})]:
        _add(query, name, value)
    if (place := first_difference(query, wanted.query)) is not None:
        yield f"query{place}"
    headers = {name.lower(): value for name, value in request.headers.items()}
    for name, value in wanted.headers.items():
        if headers.get(name.lower()) != value:
            yield f"header {name} is {headers.get(name.lower())!r}, not {value!r}"
    yield from _in_body(request, wanted)


def _place(url: URL, wanted: CaseRequest) -> str:
    """What counts of an address, as the client writes it: `%40` and `@` in a path are one."""
    return url.raw_path if wanted.url is None else f"{url.origin()}{url.raw_path}"


def _in_body(request: Request, wanted: CaseRequest) -> Iterator[str]:
    kind, expected = _expected_body(wanted)
    found, actual = _body_of(request)
    if found != kind:
        yield f"is sent with {found} {_brief(actual)}, not with {kind} {_brief(expected)}"
    elif (place := first_difference(actual, expected)) is not None:
        yield f"{kind}{place}"


def _expected_body(wanted: CaseRequest) -> tuple[str, Json]:
    if wanted.form is not None:
        return "form", wanted.form
    if wanted.multipart is not None:
        return "multipart", [one.model_dump(by_alias=True) for one in wanted.multipart]
    return ("body", wanted.body) if wanted.text is None else ("text", wanted.text)


def _body_of(request: Request) -> tuple[str, Json]:
    match request.body:
        case None:
            return "body", None
        case JsonBody(content):
            return "body", loads_strict(content)
        case FormBody(pairs):
            form: dict[str, str | list[str]] = {}
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


def _add(query: dict[str, str | list[str]], name: str, value: str) -> None:
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
    elif isinstance(body, dict) and set(body) == {"$base64"}:
        content = base64.b64decode(str(body["$base64"]))
    else:
        content = dumps(body)
    return Response(
        status=recorded.status,
        headers=headers,
        body=content,
        url=url,
        content_type=content_type,
        charset=charset,
    )


def _shown(request: Request) -> str:
    return f"{request.method} {URL(request.url).raw_path}"


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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


# -- comparing


def first_difference(actual: Json, expected: Json) -> str | None:
    """The first place where two values differ, and how; None if they do not. `true` is no 1."""
    if isinstance(actual, dict) and isinstance(expected, dict):
        for name in expected:
            if name not in actual:
                return f".{name} is missing"
        for name, value in actual.items():
            if name not in expected:
                return f".{name} is there, with {_brief(value)}"
            inner = first_difference(value, expected[name])
            if inner is not None:
                return f".{name}{inner}"
        return None
    if isinstance(actual, list) and isinstance(expected, list) and len(actual) == len(expected):
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            inner = first_difference(one, other)
            if inner is not None:
                return f"[{index}]{inner}"
        return None
    if actual == expected and isinstance(actual, bool) == isinstance(expected, bool):
        return None
    return f" is {_brief(actual)}, not {_brief(expected)}"


def _brief(value: Json) -> str:
    text = dumps(value).decode()
    return text if len(text) <= 200 else f"{text[:200]}…"
