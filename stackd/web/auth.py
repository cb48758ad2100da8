"""Who may call what: anyone probes and webhooks; the rest takes a bearer token, or the Unix socket and its owner."""

from __future__ import annotations

import hmac
import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import web

from stackd.access import tokens
from stackd.access.tokens import USE_NOTED_EVERY, Scope, TokenRow
from stackd.core.clock import rfc3339
from stackd.core.errors import AuthError, ScopeError
from stackd.web.connections import Peer, connection_of
from stackd.web.context import Context, of

PROBES: Final = frozenset({"/livez", "/readyz", "/startupz"})

# The scope that each route needs, by method and path; None: nobody is asked.
NEEDS: Final[web.AppKey[dict[tuple[str, str], Scope | None]]] = web.AppKey("needs", dict)

_INVALID: Final = 'Bearer error="invalid_token"'

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `name` is for the log."""

    name: str
    scopes: Collection[Scope]


_CALLER: Final = web.RequestKey("caller", Caller)


def caller_of(request: web.Request) -> Caller:
    """Who made a request that `authorize` let pass; not for open paths, which nobody is asked at."""
    return request[_CALLER]


async def authorize(request: web.Request) -> None:
    """Let the request pass if its caller may make it.

    Raises:
        AuthError: it does not say who it is, or is nobody we know.
        ScopeError: it may do less than this.
        StoreError: or a subclass: its token cannot be looked up.
    """
    route = request.match_info.route
    path = "" if route.resource is None else route.resource.canonical
    needed = request.app[NEEDS].get((route.method, path), Scope.READ)  # of no route: told next
    if needed is None or request.path in PROBES:  # of another method: told next, to anybody
        return
    caller = request[_CALLER] = await _caller(request)
    if route.resource is not None and not needed.is_within(caller.scopes):
        raise ScopeError(
            f"{request.method} {path} needs the scope {needed.value}, "
            f"which {caller.name} does not hold",
            scope=needed.value,
        )


async def _caller(request: web.Request) -> Caller:
    context, peer = of(request), connection_of(request).local_peer
    if peer is not None and may_use_socket(peer.uid, own=os.geteuid()):
        return Caller(f"uid {peer.uid} (pid {peer.pid})", {Scope.ADMIN})
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if not given:
        raise _unknown(_missing(peer), context)
    text = given.strip()
    if scheme.lower() != "bearer":
        raise _unknown("send a bearer token", context)
    if context.token is not None and hmac.compare_digest(
        text.encode(errors="replace"), context.token.encode()
    ):
        return Caller("the dev token", {Scope.ADMIN})
    return await _holder(context, text)


def may_use_socket(uid: int, *, own: int) -> bool:
    """Whether a process of user `uid` may use the Unix socket without a token; `own`: the daemon's user.

    The mode of the file keeps others out already, as long as nobody changes it.
    """
    return uid in (own, 0)


def _missing(peer: Peer | None) -> str:
    if peer is None:
        return "send a bearer token"
    _log.warning("a foreign user came by the Unix socket", uid=peer.uid, pid=peer.pid)
    return f"uid {peer.uid} is not the daemon's user: send a bearer token"


async def _holder(context: Context, text: str) -> Caller:
    row = None
    if tokens.id_in(text) is not None:  # else there is nothing to look up
        row = await context.store.read(lambda tx: tokens.holder(tx, text))
    if row is None:
        raise _unknown("this token is not known", context, challenge=_INVALID)
    now = context.clock.time()
    for at, code, ended in (
        (row.revoked_at, "auth.revoked", "was revoked"),
        (row.expires_at, "auth.expired", "expired"),
    ):
        if at is not None and at <= now:
            raise AuthError(
                f"the token {_named(row)} {ended} at {rfc3339(at)}",
                code=code,
                hint="make another one: `stackd token create NAME --scope SCOPE`",
                challenge=_INVALID,
            )
    if row.last_used_at is None or now - row.last_used_at >= USE_NOTED_EVERY:
        token_id = row.id
        context.store.write_soon(lambda tx: tokens.note_use(tx, token_id, now=now))
    return Caller(f"the token {_named(row)}", row.scopes)


def _named(row: TokenRow) -> str:
    return f"{row.id} ({row.name})"


def _unknown(detail: str, context: Context, *, challenge: str = "Bearer") -> AuthError:
    """Refuses, and says which token it could be."""
    hint = "set STACKD_TOKEN to what dev-token in the daemon's state directory holds"
    if context.token is None:
        hint = (
            "set STACKD_TOKEN to one made on the daemon's machine: "
            "`stackd token create NAME --scope SCOPE`"
        )
    return AuthError(detail, hint=hint, challenge=challenge)
