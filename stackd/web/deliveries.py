"""What a caller from outside sends to a workflow: a request of any kind, read in full, as the output of a node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio
from aiohttp import web
from multidict import MultiMapping

from stackd.core.aside import aside_if
from stackd.core.errors import StackdError, StoreCorruptError, StoreFailedError
from stackd.core.json import LARGE, Json
from stackd.core.large_json import check
from stackd.core.text import codec, decoded
from stackd.web.bodies import Body
from stackd.web.context import Context, header_text, of, storable
from stackd.web.forms import Field, FormFile, read_multipart, read_urlencoded

_FORMS: Final = ("application/x-www-form-urlencoded", "multipart/form-data")


@dataclass(slots=True)
class Delivery:
    """A request, read in full.

    Attributes:
        text: the node's output as JSON: `{body, …}`.
        blobs: those that were put for it.
        is_offered: to the store, so that it may be committed whatever is heard of it.
        is_kept: something refers to its blobs.
    """

    text: bytes = b""
    blobs: list[str] = field(default_factory=list)
    is_offered: bool = False
    is_kept: bool = True


def head_of(request: web.Request) -> dict[str, Json]:
    """`{headers, query, method}` of a request: names of headers in lower case, repeated query keys as lists."""
    headers = {
        name.lower(): header_text(", ".join(request.headers.getall(name)))
        for name in request.headers
    }
    return {"headers": headers, "query": _multi(request.query), "method": request.method}


@asynccontextmanager
async def delivery_of(request: web.Request, around: Mapping[str, Json]) -> AsyncIterator[Delivery]:
    """The request with its body, for the block to commit; the blobs it brings go again if that does not keep them.

    Args:
        around: the members of its text beside the body.

    Raises:
        StackdError: the body cannot be read: as of `Body.read` and of its type.
    """
    context, delivery = of(request), Delivery()
    try:
        with context.bodies.of(request) as body:
            await _read(context, request, body, around, delivery)
            yield delivery
    except BaseException as error:
        is_refused = isinstance(error, StackdError | web.HTTPException)
        if isinstance(error, StoreFailedError | StoreCorruptError) or (
            delivery.is_offered and not is_refused
        ):
            raise  # perhaps it is committed after all
        with anyio.CancelScope(shield=True):
            await context.blobs.drop(delivery.blobs)
        raise
    if not delivery.is_kept:
        await context.blobs.drop(delivery.blobs)


async def _read(
    context: Context,
    request: web.Request,
    body: Body,
    around: Mapping[str, Json],
    delivery: Delivery,
) -> None:
    content, rest = await body.read(), storable(dict(around))
    content_type = request.content_type
    if not content:
        delivery.text = _joined(b"null", rest)
    elif content_type in _FORMS:
        fields = await aside_if(len(content) > LARGE, _fields, request, content)
        form = await _with_blobs(context, fields, delivery)
        delivery.text = await aside_if(len(content) > LARGE, _joined_value, form, rest)
    elif content_type == "application/json" or content_type.endswith("+json"):
        delivery.text = await aside_if(len(content) > LARGE, _checked, content, rest)
    else:
        text = None
        if content_type.startswith("text/") or content_type.endswith("xml"):
            text = await aside_if(len(content) > LARGE, _quoted, content, request.charset, rest)
        if text is None:
            kept = await _put(context, content, delivery)
            blob = {"$blob": kept, "bytes": len(content), "contentType": content_type}
            text = _joined_value(blob, rest)
        delivery.text = text


def _joined(body: bytes | bytearray, rest: bytes) -> bytes:
    """The trigger's output: `body`, a JSON text, and the members of `rest`."""
    return b"".join((b'{"body":', body, b",", memoryview(rest)[1:]))


def _joined_value(body: Json, rest: bytes) -> bytes:
    return _joined(storable(body), rest)


def _checked(content: bytearray, rest: bytes) -> bytes:
    """As the JSON it is, once it has been read: written anew, it would be held three times."""
    check(content)
    return _joined(content, rest)


def _quoted(content: bytearray, charset: str | None, rest: bytes) -> bytes | None:
    """As text in its charset; None if it is none."""
    name = codec(charset)
    if name is None:
        return None
    try:
        return _joined_value(decoded(content, name), rest)
    except UnicodeError:
        return None


def _multi(pairs: MultiMapping[str]) -> dict[str, Json]:
    """Names with one value as text, repeated names as a list."""
    result: dict[str, Json] = {}
    for name in dict.fromkeys(pairs):
        values = pairs.getall(name)
        result[name] = values[0] if len(values) == 1 else list(values)
    return result


def _fields(request: web.Request, content: bytearray) -> list[Field]:
    if request.content_type == "multipart/form-data":
        return read_multipart(content, request.headers["Content-Type"])
    return read_urlencoded(content, request.charset)


async def _with_blobs(context: Context, fields: list[Field], delivery: Delivery) -> dict[str, Json]:
    """The form as JSON: names with one value as it is, repeated ones as a list, files as blobs."""
    values: dict[str, list[Json]] = {}
    for name, value in fields:
        shown: Json = value
        if isinstance(value, FormFile):
            shown = {
                "$blob": await _put(context, value.content, delivery),
                "bytes": len(value.content),
                "filename": value.filename,
                "contentType": value.content_type,
            }
        values.setdefault(name, []).append(shown)
    return {name: some[0] if len(some) == 1 else some for name, some in values.items()}


async def _put(context: Context, content: bytes | bytearray, delivery: Delivery) -> str:
    blob_id = await context.blobs.put(content)
    delivery.blobs.append(blob_id)
    return blob_id
