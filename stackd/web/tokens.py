"""`/api/tokens`: make, list, revoke."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from stackd.access import tokens
from stackd.access.tokens import Scope, TokenRow
from stackd.client.models import NewToken, NewTokenView, TokenList, TokenView
from stackd.core.clock import epoch, rfc3339
from stackd.core.errors import InputError
from stackd.core.json import Json, dumps, loads
from stackd.web.auth import caller_of
from stackd.web.context import limit_of, of
from stackd.web.route import CURSOR, LIMIT, Route
from stackd.web.workflows import members_of


async def create_token(request: web.Request) -> web.Response:
    """Make a token. This answer is the only place where its secret ever stands."""
    context = of(request)
    with context.bodies.of(request) as body:
        given = await members_of(body, "name", "scopes", "expiresAt")
    name, scopes, expires_at = (
        loads(given.get(key, b"null")) for key in ("name", "scopes", "expiresAt")
    )
    if not isinstance(name, str):
        what = "is missing" if name is None else "must be text"
        raise InputError(f"name {what}", code="token.name")
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise InputError("scopes must be a list of names", code="token.scope")
    now = context.clock.time()
    new = tokens.new_token(name, scopes, expires_at=_instant(expires_at), now=now)
    by = caller_of(request).name
    await context.store.write(lambda tx: tokens.add(tx, new, by=by, now=now))
    view = NewTokenView(**_view(new.row, now).model_dump(), token=new.text)
    return web.Response(
        status=201,
        body=dumps(view.as_json()),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def _instant(given: Json) -> float | None:
    if given is None:
        return None
    if not isinstance(given, str):
        raise InputError("expiresAt must be an RFC 3339 instant", code="token.expiry")
    try:
        return epoch(given)
    except ValueError as error:
        raise InputError(f"expiresAt {error}", code="token.expiry") from None


async def list_tokens(request: web.Request) -> web.Response:
    context, limit = of(request), limit_of(request)
    before = request.query.get("cursor")
    rows = await context.store.read(lambda tx: tokens.listed(tx, before=before, limit=limit + 1))
    now = context.clock.time()
    page = TokenList(
        items=[_view(row, now) for row in rows[:limit]],
        next_cursor=rows[limit - 1].id if len(rows) > limit else None,
    )
    return web.Response(body=dumps(page.as_json()), content_type="application/json")


async def revoke_token(request: web.Request) -> web.Response:
    context, token_id = of(request), request.match_info["id"]
    now, by = context.clock.time(), caller_of(request).name
    row = await context.store.write(lambda tx: tokens.revoke(tx, token_id, by=by, now=now))
    return web.Response(body=dumps(_view(row, now).as_json()), content_type="application/json")


def _view(row: TokenRow, now: float) -> TokenView:
    state = "expired" if row.is_expired(now) else "usable"
    return TokenView(
        id=row.id,
        name=row.name,
        scopes=[scope.value for scope in row.scopes],
        state=state if row.revoked_at is None else "revoked",
        created_at=rfc3339(row.created_at) or "",
        last_used_at=rfc3339(row.last_used_at),
        expires_at=rfc3339(row.expires_at),
        revoked_at=rfc3339(row.revoked_at),
    )


ROUTES: Final = (
    Route(
        "POST", "/api/tokens", create_token, Scope.ADMIN,
        "Make a token; its text is in this answer and nowhere else", {201: NewTokenView}, takes=NewToken,
    ),
    Route(
        "GET", "/api/tokens", list_tokens, Scope.ADMIN, "Tokens, the newest first", {200: TokenList},
        query=(LIMIT, CURSOR),
    ),
    Route(
        "DELETE", "/api/tokens/{id}", revoke_token, Scope.ADMIN, "Revoke a token, for good",
        {200: TokenView},
    ),
)  # fmt: skip
