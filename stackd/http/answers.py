"""Reads the answers of far sides, which may be large, packed, or lie."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from typing import NoReturn

import aiohttp
from multidict import CIMultiDictProxy

from stackd.core.errors import NodeError
from stackd.core.unpack import ENCODINGS, STEP, Unpacker
from stackd.http.message import Request, Response, SinkFor


async def read(
    answer: aiohttp.ClientResponse, request: Request, redirects: int, sink_for: SinkFor | None
) -> Response:
    """The answer in full, its body unpacked, within the limits of `request`.

    Raises:
        NodeError: it is over a limit, or in an encoding that it was not offered or does not keep to.
    """
    headers = _flat(answer.headers)
    content_type = answer.content_type if "content-type" in headers else None
    sink = None if sink_for is None else sink_for(answer.status, content_type)
    limit = request.max_response_bytes if sink is None else sink.max_bytes
    body = bytearray()
    encoding = headers.get("content-encoding", "").strip().lower()
    pieces = _decoded(answer, encoding, limit) if encoding else answer.content.iter_any()
    async for chunk in pieces:
        if sink is not None:
            await sink.write(chunk)
        else:
            body += chunk
            if len(body) > limit:
                raise _too_large(answer, limit)
    return Response(
        status=answer.status,
        headers=headers,
        body=bytes(body),
        url=str(answer.url),
        content_type=content_type,
        charset=answer.charset if "charset" in headers.get("content-type", "").lower() else None,
        redirects=redirects,
    )


def _flat(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in headers.items():
        key, text = name.lower(), _readable(value)
        flat[key] = f"{flat[key]}, {text}" if key in flat else text
    return flat


def _readable(value: str) -> str:
    """A header's value as text that can be kept: in UTF-8, else in Latin-1, which it was for long.

    aiohttp hands on bytes that are no UTF-8 as half surrogates.
    """
    if value.isascii():
        return value
    raw = value.encode(errors="surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


async def _decoded(
    answer: aiohttp.ClientResponse, encoding: str, limit: int
) -> AsyncIterator[bytes]:
    """The body's bytes, unpacked from `encoding`."""
    if encoding == "identity":
        async for chunk in answer.content.iter_any():
            yield chunk
        return
    if encoding not in ENCODINGS:
        _refuse_content(answer, f"an encoding it was not offered: {encoding[:40]}")
    unpacker = Unpacker(encoding)
    packed_bytes = 0
    async for chunk in answer.content.iter_any():
        packed_bytes += len(chunk)
        if packed_bytes > limit + STEP:  # also ends a body that unpacks to nothing
            raise _too_large(answer, limit)
        try:
            for piece in unpacker.feed(chunk):
                yield piece
        except zlib.error:
            _refuse_content(answer, f"a body that is not {encoding}")
    if not unpacker.is_whole:
        _refuse_content(answer, f"a {encoding} body that ends too soon")


def _refuse_content(answer: aiohttp.ClientResponse, what: str) -> NoReturn:
    raise NodeError(
        f"answered {answer.status} with {what}",
        kind="invalid",
        code="http.bad_content",
        sent=True,
        answered=True,
    )


def _too_large(answer: aiohttp.ClientResponse, limit: int) -> NodeError:
    return NodeError(
        f"answered {answer.status} with more than {limit:,} bytes",
        kind="limit",
        code="http.response_too_large",
        sent=True,
        answered=True,
    )
