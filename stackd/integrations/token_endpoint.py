"""Asking a token endpoint (RFC 6749): how the client shows who it is, and what the answer means."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote_plus

from stackd.core.errors import InputError, NodeError, StackdError
from stackd.core.json import Json, dumps, loads_strict
from stackd.http.message import FormBody, JsonBody, Request, Response
from stackd.http.values import pairs_of, scalar
from stackd.integrations.account import Account, first
from stackd.integrations.answers import read_moment
from stackd.integrations.definition import Auth
from stackd.integrations.generic import Caller
from stackd.integrations.signing import fill, missing

WITHIN: Final = 20.0  # seconds of one request
LONGEST: Final = 10 * 365 * 86400.0  # seconds; what lasts longer than that is a mistake
LONGEST_CAPTURED: Final = 4_096  # characters of an address or an id
CLIENT_IDS: Final = ("clientId", "client_id")
CLIENT_SECRETS: Final = ("clientSecret", "client_secret")
# What says that a grant is over (RFC 6749, 5.2), and what GitHub and Slack say in its place, with status 200.
OVER: Final = frozenset({"invalid_grant", "bad_refresh_token", "invalid_refresh_token"})


class GrantOverError(StackdError):
    """The endpoint takes that grant no more: asking again is in vain."""

    code = "credential.reconnect"


@dataclass(frozen=True, slots=True)
class Granted:
    """What a token endpoint gave. `lasts`: seconds; `refresh`, `lasts`: None where it does not say.

    `captured`: fields of the credential besides its tokens, as `capture` of the definition has them.
    """

    access: str
    refresh: str | None
    lasts: float | None
    captured: Mapping[str, str]


async def ask(
    auth: Auth, account: Account, caller: Caller, grant: dict[str, Json], *, now: float
) -> Granted:
    """Ask for a token. The app itself is sent nothing, whatever becomes of it.

    Raises:
        GrantOverError: the grant is over.
        NodeError: there is none to be had now; `sent` is False.
    """
    response = await _answered(_request(auth, account, caller, grant), caller)
    body = _json_of(response.body)
    told = body.get("error") if isinstance(body, dict) else None
    if told in OVER:
        raise GrantOverError(f"the token endpoint of {caller.plan.app.id} answered {told}")
    if response.status >= 300:
        raise _refused(response, told, caller)
    access = dotted(body, auth.paths.access)
    if not isinstance(access, str) or not access:
        raise NodeError(
            "unauthorized: the answer to signing in has no token where the definition says",
            kind="rejected",
            code="credential.sign_in",
        )
    refresh = dotted(body, auth.paths.refresh)
    lasts = seconds_of(dotted(body, auth.paths.expires_in), now=now)
    return Granted(
        access,
        refresh if isinstance(refresh, str) and refresh else None,
        None if lasts is None else min(max(lasts, 0.0), LONGEST),
        _captured(auth, body),
    )


def _captured(auth: Auth, body: Json) -> dict[str, str]:
    """What is there of it and fits a field: for what does not, no pair is given up."""
    found = {name: dotted(body, place) for name, place in auth.capture.items()}
    return {
        name: scalar(value)
        for name, value in found.items()
        if isinstance(value, str | int | float) and 0 < len(scalar(value)) <= LONGEST_CAPTURED
    }


def _request(auth: Auth, account: Account, caller: Caller, grant: dict[str, Json]) -> Request:
    client_id = first(account.fields, CLIENT_IDS)
    secret = first(account.fields, CLIENT_SECRETS)
    form: dict[str, Json] = {**auth.token_params, **grant}
    headers = {"Accept": "application/json"}
    is_public = auth.client_auth == "none"
    if client_id is None and not is_public and "client_id" not in form:
        raise missing("clientId")
    # A client without a secret only says who it is (RFC 6749, 6), and gets nothing but what it was granted.
    needs_secret = auth.client_auth == "basic" or grant["grant_type"] == "client_credentials"
    if secret is None and needs_secret and not is_public:
        raise missing("clientSecret")
    if auth.client_auth == "basic":  # both as of a form (RFC 6749, 2.3.1)
        pair = f"{quote_plus(client_id or '')}:{quote_plus(secret or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    else:
        form |= {} if client_id is None else {"client_id": client_id}
        form |= {} if secret is None or is_public else {"client_secret": secret}
    return Request(
        method="POST",
        url=absolute(caller, fill(auth.token_url or "", account)),
        headers=headers,
        body=JsonBody(dumps(form)) if auth.token_body == "json" else FormBody(pairs_of(form)),  # noqa: S105
        timeout=min(caller.situation.timeout / 2, WITHIN),  # the rest of the try is for the app
        follow_redirects=False,  # what it carries is for that place alone
        fresh_connection=True,  # and at most once: a grant may be good for one use
        grants_private=caller.plan.app.private_network and account.grants_private,
    )


async def _answered(request: Request, caller: Caller) -> Response:
    try:
        return await caller.situation.http.request(request)
    except NodeError as error:
        raise NodeError(
            f"the token endpoint of {caller.plan.app.id} cannot be asked ({error.message}); "
            "the app itself was sent nothing",
            kind=error.kind,
            code="credential.token_endpoint",
            retry_after=error.retry_after,
        ) from error


def _refused(response: Response, told: Json, caller: Caller) -> NodeError:
    """Words of the answer itself are not told: they may quote what was sent."""
    status = response.status
    kind = (
        "rate_limit"
        if status == 429
        else "service_unavailable"
        if status >= 500 or status == 408
        else "rejected"
    )
    word = f" {told}" if isinstance(told, str) and told.replace("_", "").isalpha() else ""
    after = response.headers.get("retry-after")
    return NodeError(
        f"unauthorized: signing in to {caller.plan.app.id} was answered with {status}{word[:65]}; "
        "the app itself was sent nothing",
        kind=kind,
        code="credential.sign_in",
        retry_after=None
        if after is None
        else read_moment(after, "auto", now=caller.situation.clock.time()),
    )


def seconds_of(lasts: Json, *, now: float) -> float | None:
    """How long something lasts, of a number or a text of one, or of a moment; None: that is not told."""
    if isinstance(lasts, str):
        return read_moment(lasts, "auto", now=now)
    return float(lasts) if isinstance(lasts, int | float) and not isinstance(lasts, bool) else None


def absolute(caller: Caller, url: str) -> str:
    """A URL of the app's own, or one that the definition names in full."""
    if url.startswith(("http://", "https://")):
        return url
    if not url:
        raise NodeError(
            f"{caller.plan.app.id} says nowhere where to sign in",
            kind="invalid",
            code="definition.invalid",
        )
    return f"{caller.base_url}/{url.lstrip('/')}"


def dotted(value: Json, place: str) -> Json:
    """What stands at that place; None if nothing does."""
    for key in place.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _json_of(body: bytes) -> Json:
    try:
        return loads_strict(body) if body else None
    except InputError:
        return None
