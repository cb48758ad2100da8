"""What the built-in nodes do, once their parameters are rendered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from stackd.core.aside import aside_if
from stackd.core.clock import epoch, rfc3339
from stackd.core.errors import NodeError
from stackd.core.json import Json, dumps
from stackd.http.exchange import exchange, opened
from stackd.http.message import Body, FormBody, JsonBody, RawBody, Request, Response, Source
from stackd.http.reading import is_declined, kind_of_status, retry_after, words_of
from stackd.http.tls import DEFAULT_TLS, Tls
from stackd.http.values import (
    blob_in,
    blobs_in,
    multipart_of,
    pairs_of,
    query_of,
    scalar,
)
from stackd.runtime.context import Handler, NodeContext


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
    headers = {name: scalar(value) for name, value in (params.get("headers") or {}).items()}
    if context.idempotency_key is not None and not _has(headers, "idempotency-key"):
        headers["Idempotency-Key"] = context.idempotency_key
    names = blobs_in([params.get("body"), *(params.get("multipart") or {}).values()])
    if not names:
        return await _exchange(params, headers, {}, context)
    async with opened(context.blobs, names) as files:
        return await _exchange(params, headers, files, context)


async def _exchange(
    params: dict[str, Json],
    headers: dict[str, str],
    files: Mapping[str, Source],
    context: NodeContext,
) -> Json:
    allowed = params.get("allowStatus")
    answer = await exchange(
        Request(
            method=str(params.get("method", "GET")).upper(),
            url=params["url"],
            query=query_of(params.get("query")),
            headers=headers,
            body=await aside_if(context.is_large, _body, params, headers, files),
            timeout=context.timeout,
            follow_redirects=params.get("followRedirects", True) is not False,
            max_response_bytes=context.max_bytes,
            fresh_connection=context.unsafe,
            tls=_tls(params["tls"]) if params.get("tls") else DEFAULT_TLS,
        ),
        context,
        wanted=str(params.get("responseType", "auto")),
        is_answer=lambda status: not _is_refused(status, allowed),
    )
    _refuse_status(answer.response, allowed, now=context.clock.time())
    if answer.unread is not None:
        raise answer.unread
    return {
        "status": answer.response.status,
        "headers": dict(answer.response.headers),
        "body": answer.body,
    }


def _tls(params: dict[str, Json]) -> Tls:
    return Tls(params.get("verify", True), params.get("minVersion", "1.2"))


def _has(headers: dict[str, str], name: str) -> bool:
    return any(key.lower() == name for key in headers)


def _body(
    params: dict[str, Json], headers: dict[str, str], files: Mapping[str, Source]
) -> Body | None:
    if "json" in params:
        return JsonBody(dumps(params["json"]))
    if "form" in params:
        return FormBody(pairs_of(params["form"]))
    if "multipart" in params:
        return multipart_of(params["multipart"], files)
    if (raw := params.get("body")) is not None:
        own = _has(headers, "content-type")
        if (blob_id := blob_in(raw)) is not None:
            return RawBody(files[blob_id], None if own else raw.get("contentType"))
        content = raw if isinstance(raw, str) else dumps(raw).decode()
        return RawBody(content.encode(), None if own else "text/plain; charset=utf-8")
    return None


def _refuse_status(response: Response, allowed: Json, *, now: float) -> None:
    status = response.status
    if not _is_refused(status, allowed):
        return
    wait = retry_after(response, now=now)
    words = words_of(response)
    raise NodeError(
        f"answered {status}{f': {words}' if words else ''}",
        kind=kind_of_status(status),
        code=f"http.status_{status}",
        sent=True,
        answered=True,
        declined=is_declined(response, wait),
        retry_after=wait,
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


HANDLERS: Final[dict[str, Handler]] = {"action.http.request": request}
