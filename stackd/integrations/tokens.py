"""Tokens that are fetched once and sent with many requests: of a session, or for the client itself by OAuth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import anyio
from cachetools import LRUCache

from stackd.core.clock import Clock
from stackd.core.errors import InputError, NodeError
from stackd.core.json import Json, dumps, loads_strict
from stackd.http.exchange import Answer
from stackd.http.message import FormBody, JsonBody, Request
from stackd.http.values import pairs_of, scalar
from stackd.integrations import token_endpoint
from stackd.integrations.account import Account
from stackd.integrations.answers import matches
from stackd.integrations.definition import Auth
from stackd.integrations.expressions import Reader
from stackd.integrations.generic import Caller
from stackd.integrations.pairs import TokenPairs, is_renewed
from stackd.integrations.signing import fill
from stackd.integrations.token_endpoint import GrantOverError, absolute, seconds_of

KEPT: Final = 1_000
MOST: Final = 8 * 3600.0  # seconds a token is used whose end nobody told


_Key = tuple[str, int, str, str]  # app and account, its version, what is asked for, and where


@dataclass(frozen=True, slots=True)
class _Token:
    value: str
    until: float  # by the wall clock


class MemoryTokens:
    """Tokens by account, in memory: whoever asks meanwhile waits for the one who fetches.

    `pairs`: those that stand in the credentials themselves; None: they are sent as they are.
    """

    def __init__(self, clock: Clock, pairs: TokenPairs | None = None) -> None:
        self._clock = clock
        self._pairs = pairs
        self._tokens: LRUCache[_Key, _Token] = LRUCache(KEPT)
        self._failed: LRUCache[_Key, tuple[NodeError, float]] = LRUCache(KEPT)
        self._locks: LRUCache[_Key, anyio.Lock] = LRUCache(KEPT)

    async def current(self, auth: Auth, account: Account, caller: Caller) -> str | None:
        """As of `Tokens`."""
        if self._pairs is not None and is_renewed(auth, account):
            return account.learned(await self._pairs.current(auth, account, caller))
        if not _is_fetched(auth, account):
            return None
        key = _key(auth, account, caller)
        known = self._tokens.get(key)
        if known is None or known.until <= self._clock.time():
            over = None if known is None else known.value
            return account.learned(await self._fetch(auth, account, caller, over=over))
        return account.learned(known.value)

    def may_be_over(self, auth: Auth, status: int) -> bool:
        """As of `Tokens`."""
        if auth.type == "session":
            return matches(status, auth.renew_on)
        told = auth.expired_when
        return matches(status, told.status) or (told.when is not None and not told.status)

    def is_over(self, auth: Auth, answer: Answer) -> bool:
        """As of `Tokens`."""
        if not self.may_be_over(auth, answer.response.status):
            return False
        when = None if auth.type == "session" else auth.expired_when.when
        reader = Reader(answer.response, answer.body, {}, now=self._clock.time())
        return when is None or reader.truth(when)

    async def renewed(
        self, auth: Auth, account: Account, caller: Caller, *, over: str
    ) -> str | None:
        """As of `Tokens`."""
        if self._pairs is not None and is_renewed(auth, account):
            return account.learned(await self._pairs.renewed(auth, account, caller, over=over))
        return account.learned(await self._fetch(auth, account, caller, over=over))

    async def _fetch(
        self, auth: Auth, account: Account, caller: Caller, *, over: str | None
    ) -> str:
        key = _key(auth, account, caller)
        lock, came = self._locks.setdefault(key, anyio.Lock()), self._clock.monotonic()
        async with lock:
            known = self._tokens.get(key)
            if known is not None and known.value != over and known.until > self._clock.time():
                return known.value  # another has fetched it meanwhile
            failure, at = self._failed.get(key, (None, 0.0))
            if failure is not None and at > came:
                raise _again(failure)  # who has waited for one that failed asks no more
            try:
                made = await (
                    self._log_in(auth, account, caller)
                    if auth.type == "session"
                    else self._client_token(auth, account, caller)
                )
            except NodeError as error:
                self._failed[key] = error, self._clock.monotonic()
                raise
            self._tokens[key] = made
            return made.value

    async def _log_in(self, auth: Auth, account: Account, caller: Caller) -> _Token:
        login = auth.login
        assert login is not None  # noqa: S101  # as its model has it
        filled = _filled(login.body, account)
        body: FormBody | JsonBody | None = None
        if login.encode == "form" and isinstance(filled, dict):
            body = FormBody(pairs_of(filled))
        elif filled is not None:
            body = JsonBody(dumps(filled))
        request = Request(
            method=login.method,
            url=absolute(caller, fill(login.endpoint, account)),
            query={name: scalar(_filled(value, account)) for name, value in login.query.items()}
            or None,
            headers={name: fill(value, account) for name, value in login.headers.items()},
            body=body,
            timeout=caller.situation.timeout,
            grants_private=caller.plan.app.private_network and account.grants_private,
            follow_redirects=False,  # it would take the secrets of its body along
        )
        reader = await self._answer(request, caller)
        lasts = auth.expires_in
        if isinstance(lasts, str):
            lasts = reader.value(lasts)
        return self._made(reader.value(auth.token), auth, lasts, reader.status)

    async def _client_token(self, auth: Auth, account: Account, caller: Caller) -> _Token:
        grant: dict[str, Json] = {"grant_type": "client_credentials"}
        if auth.scopes:
            grant["scope"] = auth.scope_separator.join(auth.scopes)
        try:
            found = await token_endpoint.ask(auth, account, caller, grant, now=self._clock.time())
        except GrantOverError as error:
            raise NodeError(
                f"unauthorized: {error.message}", kind="rejected", code="credential.sign_in"
            ) from error
        return self._made(found.access, auth, found.lasts, 200)

    async def _answer(self, request: Request, caller: Caller) -> Reader:
        """The answer to a request for a token: it does nothing but sign in, so it counts as nothing sent."""
        try:
            response = await caller.situation.http.request(request)
        except NodeError as error:
            error.sent = False
            raise
        reader = Reader(response, _json_of(response.body), {}, now=self._clock.time())
        if response.status >= 400:
            raise NodeError(
                f"unauthorized: signing in was answered with {response.status}",
                kind="rejected" if response.status < 500 else "service_unavailable",
                code="credential.sign_in",
            )
        return reader

    def _made(self, value: Json, auth: Auth, lasts: Json, status: int) -> _Token:
        if not isinstance(value, str) or not value:
            missing = "the answer to signing in has no token where the definition says"
            if status >= 300:
                missing = f"signing in was answered with {status}; where it leads is not followed"
            raise NodeError(
                f"unauthorized: {missing}",
                kind="rejected",
                code="credential.sign_in",
            )
        told = seconds_of(lasts, now=self._clock.time())
        seconds = MOST if told is None else told
        lead = min(auth.refresh_lead, seconds / 2)
        return _Token(value, self._clock.time() + max(seconds - lead, 1.0))


def _is_fetched(auth: Auth, account: Account) -> bool:
    if auth.type == "session":
        return True
    return (
        auth.type == "oauth2"
        and auth.grant == "client_credentials"
        and not account.fields.get("accessToken")
    )


def _again(error: NodeError) -> NodeError:
    """The same for another node: an error belongs to who raises it."""
    return NodeError(error.message, kind=error.kind, code=error.code, retry_after=error.retry_after)


def _key(auth: Auth, account: Account, caller: Caller) -> _Key:
    # An inline credential has no name: it is told from others by what it holds. A stored one may have been removed
    # and another have its name, whose versions begin anew.
    name = (
        f"{account.id}:{account.changed_at}"
        if account.id is not None
        else f"{hash(tuple(sorted(map(repr, account.fields.items()))))}"
    )
    # One app may have several ways in of a kind: each has tokens of its own.
    asked = repr(
        (auth.type, auth.login, auth.token, auth.token_url, auth.scopes, auth.token_params)
    )
    return f"{caller.plan.app.id}:{name}", account.version, asked, caller.base_url


def _filled(value: Json, account: Account) -> Json:
    if isinstance(value, str):
        return fill(value, account)
    if isinstance(value, Mapping):
        return {key: _filled(one, account) for key, one in value.items()}
    return [_filled(one, account) for one in value] if isinstance(value, list) else value


def _json_of(body: bytes) -> Json:
    try:
        return loads_strict(body) if body else None
    except InputError:
        return None
