"""`GET /api/blobs/{id}`: the content of a blob, a piece at a time, or a range of it."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from stackd.access.tokens import Scope
from stackd.runtime.blobs import BlobFile
from stackd.web.context import of
from stackd.web.problem import problem
from stackd.web.ranges import part_asked
from stackd.web.route import Content, Query, Route

SLICE: Final = 64 * 1024  # bytes read at a time: what each slow reader holds


async def _get(request: web.Request) -> web.StreamResponse:
    async with of(request).blobs.open(request.match_info["id"]) as blob:
        headers = {
            "ETag": f'"{blob.id}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, immutable, max-age=31536000",  # its id is its content
        }
        if any(tag.value in (blob.id, "*") for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return await _send(request, blob, headers)


async def _send(
    request: web.Request, blob: BlobFile, headers: dict[str, str]
) -> web.StreamResponse:
    asked = _range(request, blob)
    if asked is not None and not asked:
        refused = problem(416, "blob.range", f"the blob has {blob.size} bytes")
        refused.headers["Content-Range"] = f"bytes */{blob.size}"
        return refused
    part = range(blob.size) if asked is None else asked
    answer = web.StreamResponse(
        status=200 if asked is None else 206,
        headers=headers
        | {
            "Content-Type": "application/octet-stream",  # whatever its sender said: no browser shows it
            "Content-Disposition": f'attachment; filename="{blob.id}"',
            "X-Content-Type-Options": "nosniff",
        },
    )
    if asked is not None:
        answer.headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{blob.size}"
    answer.content_length = len(part)
    await answer.prepare(request)
    if request.method != "HEAD":
        for start in range(part.start, part.stop, SLICE):
            await answer.write(await blob.read_at(start, min(SLICE, part.stop - start)))
    await answer.write_eof()
    return answer


def _range(request: web.Request, blob: BlobFile) -> range | None:
    """The bytes asked for, none if there are no such; None if all are: only a GET asks for a part of what it knows."""
    asked = request.headers.getall("Range", [])
    known = request.headers.get("If-Range", f'"{blob.id}"')
    if request.method != "GET" or len(asked) != 1 or known != f'"{blob.id}"':
        return None
    return part_asked(asked[0], blob.size)


_CONTENT: Final = Content(("application/octet-stream",), {"type": "string", "format": "binary"})

ROUTES: Final = (
    Route(
        "GET", "/api/blobs/{id}", _get, Scope.READ, "The content of a blob, or a range of it",
        {200: _CONTENT, 206: _CONTENT, 304: None},
        headers=(
            Query("Range", {"type": "string"}, "which bytes"),
            Query("If-Range", {"type": "string"}, "the ETag of what a part is at hand of; of another, all is sent"),
            Query("If-None-Match", {"type": "string"}, "ETags of what is at hand"),
        ),
    ),
)  # fmt: skip
