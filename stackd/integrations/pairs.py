"""Token pairs that stand in credentials: an access token, and what a new one is had for (RFC 6749, 6).

A refresh token may be good for one use, and a second one may end all that was granted with it. So one renewal of a
credential is under way at a time, in all processes of a store; the new pair is on disk before it is used; and whoever
comes later reads it there. A process that dies between the far side's answer and the disk loses the pair: the next
one asks with the old refresh token, for nobody knows whether the request arrived.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

import anyio
import structlog
from cachetools import LRUCache

from stackd.core.clock import Clock, rfc3339
from stackd.core.errors import NodeError
from stackd.core.json import Json
from stackd.integrations import token_endpoint
from stackd.integrations.account import Account, first
from stackd.integrations.definition import Auth
from stackd.integrations.generic import Caller
from stackd.integrations.token_endpoint import WITHIN, GrantOverError, seconds_of

ACCESS: Final = ("accessToken", "access_token")
REFRESH: Final = ("refreshToken", "refresh_token")
EXPIRES: Final = ("expiresAt", "expires_at")
CLAIM: Final = WITHIN + 20.0  # seconds: one request, and what it takes to write down its answer
REST: Final = 30.0  # seconds a token endpoint that is down is left alone, while there is a token
OF_THE_MOMENT: Final = frozenset({"network", "timeout", "rate_limit", "service_unavailable"})
KEPT: Final = 1_000
LOOK_AGAIN: Final = 0.1  # seconds between looks at what another process renews

_log = structlog.get_logger(__name__)


class Keeper(Protocol):
    """Where such credentials are."""

    async def account(self, connection_id: str) -> Account:
        """The credential as it is now. Raises NodeError: it cannot be used."""

    async def claim(self, account: Account, *, until: float) -> bool:
        """Whether the caller alone may renew that version of it until then."""

    async def release(self, account: Account, *, until: float) -> None:
        """That claim is over."""

    async def keep(self, account: Account, fields: dict[str, str], *, until: float) -> Account:
        """The credential with these fields, or as somebody has made it anew meanwhile; the claim is over."""

    async def disconnect(self, account: Account, reason: str, *, until: float) -> NodeError:
        """Nobody asks with that version again; the claim is over. What the node that found out fails with."""


@dataclass(slots=True)
class _Flight:
    """A renewal under way; `failure`: what it ended with, for all who waited."""

    done: anyio.Event = field(default_factory=anyio.Event)
    token: str | None = None
    failure: NodeError | None = None


class TokenPairs:
    """Renews them: shortly before their end, and where the far side says that they are over."""

    def __init__(self, keeper: Keeper, clock: Clock) -> None:
        self._keeper = keeper
        self._clock = clock
        self._flights: dict[str, _Flight] = {}
        self._rests: LRUCache[str, float] = LRUCache(KEPT)  # until when not to ask, monotonic

    async def current(self, auth: Auth, account: Account, caller: Caller) -> str:
        """An access token that is not about to end; the one there is until its end, where no new one is to be had now.

        Raises:
            NodeError: there is none; the app was sent nothing.
        """
        token = self._usable(auth, account)
        if token is not None:
            return token
        if self._is_resting(account) and (token := self._still_good(account)):
            return token
        try:
            return await self.renewed(auth, account, caller, over=None)
        except NodeError as error:
            token = self._still_good(account)
            if token is None or error.kind not in OF_THE_MOMENT:
                raise
            if not self._is_resting(account):  # of all that waited for it, one says so
                self._rests[str(account.id)] = self._clock.monotonic() + REST
                _log.warning(
                    "a token is used that could not be renewed yet",
                    credential=account.id, app=caller.plan.app.id, reason=error.message,
                )  # fmt: skip
            return token

    async def renewed(
        self, auth: Auth, account: Account, caller: Caller, *, over: str | None
    ) -> str:
        """An access token other than `over`; as of `current`.

        Cancellation: a request that has begun is waited for, up to `WITHIN` seconds, and its answer is kept.
        """
        assert account.id is not None  # noqa: S101  # as of `is_renewed`
        while True:
            flight = self._flights.get(account.id)
            if flight is None:
                return await self._fly(auth, account.id, caller, over)
            await flight.done.wait()
            if flight.failure is not None:
                raise _again(flight.failure)
            if flight.token is not None and flight.token != over:
                return flight.token

    async def _fly(self, auth: Auth, name: str, caller: Caller, over: str | None) -> str:
        flight = self._flights[name] = _Flight()
        try:
            flight.token = await self._renew(auth, name, caller, over)
        except NodeError as error:
            flight.failure = _again(error)
            raise
        finally:
            del self._flights[name]
            flight.done.set()
        return flight.token

    async def _renew(self, auth: Auth, name: str, caller: Caller, over: str | None) -> str:
        while True:
            account = await self._keeper.account(name)
            token = self._usable(auth, account)
            if token is not None and token != over:
                return token  # somebody has renewed it meanwhile
            if not first(account.fields, REFRESH):
                return token or first(account.fields, ACCESS) or ""
            with anyio.CancelScope(shield=True):  # once it was used, what it was used for is kept
                until = self._clock.time() + CLAIM
                if await self._keeper.claim(account, until=until):
                    return await self._ask(auth, account, caller, until)
            await self._clock.sleep(LOOK_AGAIN)

    async def _ask(self, auth: Auth, account: Account, caller: Caller, until: float) -> str:
        grant: dict[str, Json] = {
            "grant_type": "refresh_token",
            "refresh_token": first(account.fields, REFRESH),
        }
        now = self._clock.time()
        try:
            found = await token_endpoint.ask(auth, account, caller, grant, now=now)
        except GrantOverError as error:
            raise await self._keeper.disconnect(account, error.message, until=until) from error
        except NodeError:
            await self._keeper.release(account, until=until)
            raise
        fields = {**found.captured, _named(account, ACCESS): found.access}
        if found.refresh is not None:
            fields[_named(account, REFRESH)] = found.refresh
        if found.lasts is not None:
            fields[_named(account, EXPIRES)] = rfc3339(now + found.lasts) or ""
        kept = await self._keeper.keep(account, fields, until=until)
        return first(kept.fields, ACCESS) or found.access

    def _is_resting(self, account: Account) -> bool:
        return self._rests.get(str(account.id), 0.0) > self._clock.monotonic()

    def _still_good(self, account: Account) -> str | None:
        """Its access token, if that is known not to have ended yet."""
        left = seconds_of(first(account.fields, EXPIRES), now=self._clock.time())
        return first(account.fields, ACCESS) if left is not None and left > 0 else None

    def _usable(self, auth: Auth, account: Account) -> str | None:
        """Its access token, unless that is about to end. A short-lived one is used for half of its time at least."""
        token = first(account.fields, ACCESS)
        ends = first(account.fields, EXPIRES)
        now = self._clock.time()
        left = None if ends is None else seconds_of(ends, now=now)
        if token is None or left is None:
            return token
        lasted = now + left - account.changed_at
        return token if left > min(auth.refresh_lead, max(lasted / 2, 0.0)) else None


def is_renewed(auth: Auth, account: Account) -> bool:
    """Whether its access token is one of a pair that can be renewed, and kept."""
    return auth.type == "oauth2" and account.id is not None and bool(first(account.fields, REFRESH))


def _named(account: Account, names: tuple[str, ...]) -> str:
    """What the credential calls it; of one that it does not have, as it spells the refresh token."""
    spelt = next(at for at, name in enumerate(REFRESH) if account.fields.get(name))
    return next((name for name in names if account.fields.get(name)), names[spelt])


def _again(error: NodeError) -> NodeError:
    """The same failure, for another node."""
    return NodeError(error.message, kind=error.kind, code=error.code, retry_after=error.retry_after)
