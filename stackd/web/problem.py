"""Errors as RFC 9457 problems. Nothing of an unexpected error is shown but that it happened."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from stackd.core.errors import AuthError, BusyError, StackdError
from stackd.core.json import dumps

CONTENT_TYPE = "application/problem+json"


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    hint: str | None = None,
    retry_after: float | None = None,
    extra: dict[str, object] | None = None,
) -> web.Response:
    """A problem answer. `code` is stable; `detail` is for people."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,  # as RFC 9457 §4.2.1 asks of this type
        "status": status,
        "code": code,
        "detail": detail,
    }
    if hint is not None:
        body["hint"] = hint
    headers = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
    return web.Response(
        status=status,
        body=dumps(body | (extra or {})),
        content_type=CONTENT_TYPE,
        headers=headers,
    )


def of_error(error: StackdError) -> web.Response:
    """`error` as the problem its class stands for."""
    retry_after = 1.0 if error.status == 503 else None
    if isinstance(error, BusyError):
        retry_after = error.retry_after
    findings = getattr(error, "findings", None)
    extra: dict[str, object] = {}
    if findings:
        extra["findings"] = [
            {
                "severity": f.severity,
                "code": f.code,
                "message": f.message,
                "line": f.line,
                "column": f.column,
                "hint": f.hint,
            }
            for f in findings
        ]
    answer = problem(
        error.status,
        error.code,
        error.message,
        hint=error.hint,
        retry_after=retry_after,
        extra=extra,
    )
    if isinstance(error, AuthError):
        answer.headers["WWW-Authenticate"] = error.challenge
    return answer
