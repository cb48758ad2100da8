"""Who may call what: anyone probes and webhooks; the rest takes a bearer token or the Unix socket."""

from __future__ import annotations

import hmac
import socket

from aiohttp import web

from stackd.web.problem import problem

OPEN_PATHS = frozenset({"/livez", "/readyz", "/startupz"})
WEBHOOKS = "/api/webhooks/"


def refusal(request: web.Request, token: str | None) -> web.Response | None:
    """The answer to a caller who may not; None if it may.

    The Unix socket needs no token: its file mode lets only the daemon's own user connect.
    """
    if request.path in OPEN_PATHS or request.path.startswith(WEBHOOKS):
        return None
    if _is_local_socket(request):
        return None
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if not given:
        return _unauthorized("send a bearer token", token)
    if (
        scheme.lower() != "bearer"
        or token is None
        or not hmac.compare_digest(given.strip().encode(errors="replace"), token.encode())
    ):
        return _unauthorized("this token is not known", token)
    return None


def _is_local_socket(request: web.Request) -> bool:
    transport = request.transport
    peer = None if transport is None else transport.get_extra_info("socket")
    return peer is not None and peer.family == socket.AF_UNIX


def _unauthorized(detail: str, token: str | None) -> web.Response:
    """Refuses, and says which token it would be. Only `dev` has one in this version."""
    hint = "set STACKD_TOKEN to what dev-token in the daemon's state directory holds"
    if token is None:
        hint = "no token would do: use the Unix socket stackd.sock in the daemon's state directory"
    answer = problem(401, "auth.required", detail, hint=hint)
    answer.headers["WWW-Authenticate"] = "Bearer"
    return answer
