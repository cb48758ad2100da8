"""What aiohttp sends of the body of a request."""

from __future__ import annotations

from typing import Any

import aiohttp

from stackd.http.message import Body, FilePart, FormBody, JsonBody, MultipartBody, RawBody, Source

PIECE = 256 * 1024  # bytes of a source read at a time


def encoded(body: Body | None, headers: dict[str, str]) -> tuple[Any, dict[str, str]]:
    """(what aiohttp sends, the headers that go with it); its content type stands unless they name one."""
    match body:
        case None:
            return None, headers
        case JsonBody(content):
            return aiohttp.BytesPayload(content, content_type="application/json"), headers
        case FormBody(pairs):
            return aiohttp.FormData(list(pairs)), headers
        case MultipartBody(parts):
            return _form_of(parts), _untyped(headers)  # only the body knows the boundary
        case RawBody(content, content_type):
            own = content_type or "application/octet-stream"
            if isinstance(content, bytes):
                return aiohttp.BytesPayload(content, content_type=own), headers
            return _SourcePayload(content, content_type=own), headers


def _untyped(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() != "content-type"}


def _form_of(parts: tuple[FilePart, ...]) -> aiohttp.FormData:
    # Unquoted: names go out as browsers and curl send them, in UTF-8.
    form = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
    for part in parts:
        content = _sendable(part.content, part.content_type)
        if part.filename is None and isinstance(content, bytes):  # bare, it would become a file
            own = part.content_type or "text/plain; charset=utf-8"
            content = aiohttp.BytesPayload(content, content_type=own)
        form.add_field(part.name, content, filename=part.filename, content_type=part.content_type)
    return form


def _sendable(content: bytes | Source, content_type: str | None) -> Any:
    if isinstance(content, bytes):
        return content
    return _SourcePayload(content, content_type=content_type)


class _SourcePayload(aiohttp.Payload):
    """Reads its source anew each time it is sent, a piece at a time."""

    _default_content_type = "application/octet-stream"
    _consumed = False

    def __init__(self, source: Source, **more: Any) -> None:
        super().__init__(source, **more)
        self._source = source
        self._size = source.size

    def decode(self, encoding: str = "", errors: str = "") -> str:  # noqa: ARG002  # its signature
        raise TypeError("what is read from a source is not text")

    async def write(self, writer: aiohttp.abc.AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(
        self, writer: aiohttp.abc.AbstractStreamWriter, content_length: int | None
    ) -> None:
        end = self._source.size if content_length is None else content_length
        at = 0
        while at < end:
            chunk = await self._source.read_at(at, min(PIECE, end - at))
            if not chunk:  # the rest is missing: better no request than a false one
                raise aiohttp.ClientConnectionError("the content ended before its time")
            await writer.write(chunk)
            at += len(chunk)
