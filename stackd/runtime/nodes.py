"""What the built-in nodes do, once their parameters are rendered."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

import structlog

from stackd.core.aside import aside, aside_if
from stackd.core.clock import Clock, epoch, rfc3339
from stackd.core.errors import InputError, NodeError, StoreFullError
from stackd.core.json import LARGE, Json, dumps, loads_strict
from stackd.core.large_json import read_strictly
from stackd.core.text import codec
from stackd.http.message import (
    Body,
    FilePart,
    FormBody,
    JsonBody,
    MultipartBody,
    RawBody,
    Request,
    Response,
    Sink,
    Source,
)
from stackd.http.tls import DEFAULT_TLS, Tls
from stackd.runtime.blobs import Incoming
from stackd.runtime.context import Handler, NodeContext
from stackd.runtime.tools import STORE_RETRY

T = TypeVar("T")

RETRY_AFTER_LONGEST = 24 * 3600.0  # seconds; a far side that asks for more is not believed
LONGEST_DATE = 100  # characters; an HTTP date has 29

_log = structlog.get_logger(__name__)


def delay_until(params: dict[str, Json], *, now: float) -> tuple[float, Json]:
    """When a delay ends (epoch seconds), and its output.

    The parameters are what `NODE_TYPES` says of them.
    """
    until = params.get("until")
    if until is not None:
        due_at = epoch(until) if isinstance(until, str) else float(until)
    else:
        units = (
            ("delayMs", 0.001),
            ("delaySeconds", 1),
            ("delayMinutes", 60),
            ("delayHours", 3600),
        )
        due_at = now + sum(float(params.get(name) or 0) * unit for name, unit in units)
    delayed = max(due_at - now, 0.0)
    return due_at, {"delayedMs": round(delayed * 1000), "resumeAt": rfc3339(due_at)}


async def request(params: dict[str, Json], context: NodeContext) -> Json:
    """`action.http.request`: `{status, headers, body}` of the answer.

    Raises:
        NodeError: no answer, or a status of 400 and above that `allowStatus` does not name.
        NotFoundError: a blob that was to be sent is not there; nothing was sent.
        StackdError: the blob that was answered is over a limit, or cannot be kept.
    """
    headers = {name: _scalar(value) for name, value in (params.get("headers") or {}).items()}
    if context.idempotency_key is not None and not _has(headers, "idempotency-key"):
        headers["Idempotency-Key"] = context.idempotency_key
    names = _named_blobs(params)
    if not names:
        return await _exchange(params, headers, {}, context)
    async with AsyncExitStack() as opened:
        files = {name: await opened.enter_async_context(context.blobs.open(name)) for name in names}
        return await _exchange(params, headers, files, context)


async def _exchange(
    params: dict[str, Json],
    headers: dict[str, str],
    files: Mapping[str, Source],
    context: NodeContext,
) -> Json:
    wanted, allowed = str(params.get("responseType", "auto")), params.get("allowStatus")
    async with context.blobs.receive() as incoming:

        def sink_for(status: int, content_type: str | None) -> Sink | None:
            if _is_refused(status, allowed) or _kind_of(content_type, wanted) != "blob":
                return None
            return _BlobSink(incoming, context)

        response = await _ask(
            Request(
                method=str(params.get("method", "GET")).upper(),
                url=params["url"],
                query=_query(params.get("query")),
                headers=headers,
                body=await aside_if(context.is_large, _body, params, headers, files),
                timeout=context.timeout,
                follow_redirects=params.get("followRedirects", True) is not False,
                max_response_bytes=context.max_bytes,
                fresh_connection=context.unsafe,
                tls=_tls(params["tls"]) if params.get("tls") else DEFAULT_TLS,
                sink_for=sink_for,
            ),
            context,
        )
        context.on_answered()
        _refuse_status(response, allowed, now=context.clock.time())
        return {
            "status": response.status,
            "headers": dict(response.headers),
            "body": await _read_body(response, wanted, incoming, context),
        }


async def _ask(request: Request, context: NodeContext) -> Response:
    try:
        return await context.http.request(request, on_sent=context.on_sent)
    except NodeError as error:
        if error.code == "http.response_too_large":
            error.message += f"; responseType: blob takes up to {context.blobs.max_bytes:,}"
        raise


class _BlobSink:
    """Keeps a body that comes in pieces."""

    def __init__(self, incoming: Incoming, context: NodeContext) -> None:
        self._incoming = incoming
        self._clock = context.clock
        self.max_bytes = context.blobs.max_bytes

    async def write(self, chunk: bytes) -> None:
        self._incoming.add(chunk)
        if self._incoming.is_heavy:
            await _patiently(self._incoming.spill, self._clock)


async def _patiently(keep: Callable[[], Awaitable[T]], clock: Clock) -> T:
    """Do `keep` as soon as there is space for it: the action is done, and its answer shall not be lost."""
    while True:
        try:
            return await keep()
        except StoreFullError as error:
            _log.warning("waiting for space", reason=error.message)
        await clock.sleep(STORE_RETRY)


def _blob_in(value: Json) -> str | None:
    """The id of the blob that `value` stands for: `{"$blob": id}`, and whatever else is said of it."""
    found = value.get("$blob") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def _named_blobs(params: dict[str, Json]) -> set[str]:
    """The blobs that are to be sent."""
    values = [params.get("body")]
    for item in (params.get("multipart") or {}).values():
        for part in _listed(item):
            values += [part, part.get("content") if isinstance(part, dict) else None]
    return {blob_id for value in values if (blob_id := _blob_in(value)) is not None}


def _tls(params: dict[str, Json]) -> Tls:
    return Tls(params.get("verify", True), params.get("minVersion", "1.2"))


def _has(headers: dict[str, str], name: str) -> bool:
    return any(key.lower() == name for key in headers)


def _query(value: Json) -> dict[str, str | list[str]] | None:
    if not value:
        return None
    return {
        key: [_scalar(one) for one in _listed(item)] if isinstance(item, list) else _scalar(item)
        for key, item in value.items()
        if item is not None
    }


def _listed(item: Json) -> list[Json]:
    """What a name stands for: a list repeats it, null is left out."""
    return [one for one in (item if isinstance(item, list) else [item]) if one is not None]


def _scalar(value: Json) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return dumps(value).decode()
    return str(value)


def _body(
    params: dict[str, Json], headers: dict[str, str], files: Mapping[str, Source]
) -> Body | None:
    if "json" in params:
        return JsonBody(dumps(params["json"]))
    if "form" in params:
        return FormBody(_pairs(params["form"]))
    if "multipart" in params:
        return _multipart(params["multipart"], files)
    if (raw := params.get("body")) is not None:
        own = _has(headers, "content-type")
        if (blob_id := _blob_in(raw)) is not None:
            return RawBody(files[blob_id], None if own else raw.get("contentType"))
        content = raw if isinstance(raw, str) else dumps(raw).decode()
        return RawBody(content.encode(), None if own else "text/plain; charset=utf-8")
    return None


def _pairs(form: dict[str, Json]) -> tuple[tuple[str, str], ...]:
    return tuple((name, _scalar(value)) for name, item in form.items() for value in _listed(item))


def _multipart(parts: dict[str, Json], files: Mapping[str, Source]) -> MultipartBody:
    """Plain members are fields; `{content, filename?, contentType?}` is a file, and so is a blob."""
    return MultipartBody(
        tuple(_part(name, value, files) for name, item in parts.items() for value in _listed(item))
    )


def _part(name: str, value: Json, files: Mapping[str, Source]) -> FilePart:
    content = value
    if _blob_in(value) is None:
        if not (isinstance(value, dict) and "content" in value):
            return FilePart(name=name, content=_scalar(value).encode())
        content = value["content"]
    return FilePart(
        name=name,
        content=_content(content, files),
        filename=str(value.get("filename") or name),
        content_type=str(value.get("contentType") or "application/octet-stream"),
    )


def _content(value: Json, files: Mapping[str, Source]) -> bytes | Source:
    if (blob_id := _blob_in(value)) is not None:
        return files[blob_id]
    return value.encode() if isinstance(value, str) else dumps(value)


def _refuse_status(response: Response, allowed: Json, *, now: float) -> None:
    status = response.status
    if not _is_refused(status, allowed):
        return
    retry_after = _retry_after(response, now=now)
    kinds = {
        429: "rate_limit",
        408: "timeout",
        502: "service_unavailable",
        503: "service_unavailable",
        504: "service_unavailable",
    }
    kind = kinds.get(status, "server_error" if status >= 500 else "rejected")
    raise NodeError(
        f"answered {status}{_detail(response)}",
        kind=kind,
        code=f"http.status_{status}",
        sent=True,
        answered=True,
        # After a redirect the first far side may have done it, whatever the last one says.
        declined=response.redirects == 0
        and (status == 429 or (status == 503 and retry_after is not None)),
        retry_after=retry_after,
    )


def _is_refused(status: int, allowed: Json) -> bool:
    return status >= 400 and not _is_allowed(status, allowed)


def _is_allowed(status: int, allowed: Json) -> bool:
    if allowed is True:
        return True
    for entry in allowed if isinstance(allowed, list) else []:
        if isinstance(entry, str) and "-" in entry:
            low, _, high = entry.partition("-")
            if int(low) <= status <= int(high):
                return True
        elif str(entry) == str(status):
            return True
    return False


def _retry_after(response: Response, *, now: float) -> float | None:
    """Seconds asked for by Retry-After, as a number or as a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return min(float(value), RETRY_AFTER_LONGEST)
    try:
        at = parsedate_to_datetime(value[:LONGEST_DATE])
        wait = at.replace(tzinfo=at.tzinfo or UTC).timestamp() - now
    except (ValueError, TypeError, OverflowError, IndexError):  # as it meets dates that are none
        return None
    return min(max(wait, 0.0), RETRY_AFTER_LONGEST)


def _detail(response: Response) -> str:
    """The far side's own words, if it sent some that are short and text."""
    content_type = (response.content_type or "").lower()
    if len(response.body) > 64 * 1024 or "html" in content_type:
        return ""
    if _is_json(content_type):
        words = _message_in(response.body)
        if words is not None:
            return f": {words[:200]}"
    elif not _is_text(content_type):
        return ""
    words = response.body[:400].decode("utf-8", "replace").strip()
    return f": {words[:200]}" if words else ""


def _message_in(body: bytes) -> str | None:
    """Where JSON APIs put their words: a member of the document, or of its `error`."""
    try:
        document = loads_strict(body)
    except InputError:
        return None
    if not isinstance(document, dict):
        return None
    names = ("detail", "message", "error", "title")
    found = next((document[name] for name in names if document.get(name)), None)
    if isinstance(found, dict):
        found = found.get("message")
    return found if isinstance(found, str) else None


def _kind_of(content_type: str | None, wanted: str) -> str:
    """How a body is read: as `json`, `text` or `blob`."""
    if wanted != "auto":
        return wanted
    given = (content_type or "").lower()
    return "json" if _is_json(given) else "text" if _is_text(given) else "blob"


async def _read_body(
    response: Response, wanted: str, incoming: Incoming, context: NodeContext
) -> Json:
    wanted = _kind_of(response.content_type, wanted)
    if wanted == "blob":
        content_type = (response.content_type or "").lower()
        blob_id = await _patiently(incoming.keep, context.clock)
        return {"$blob": blob_id, "bytes": incoming.size, "contentType": content_type}
    context.is_large = len(response.body) > LARGE
    if wanted == "text":
        return _text(response)
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


def _text(response: Response) -> str:
    """The body in the charset it names; in UTF-8 if that is none."""
    return response.body.decode(codec(response.charset) or "utf-8", "replace")


def _is_json(content_type: str) -> bool:
    return content_type == "application/json" or content_type.endswith("+json")


def _is_text(content_type: str) -> bool:
    return (
        not content_type
        or content_type.startswith("text/")
        or content_type.split(";")[0] in {"application/xml", "application/x-www-form-urlencoded"}
        or content_type.endswith("+xml")
    )


HANDLERS: Final[dict[str, Handler]] = {"action.http.request": request}
