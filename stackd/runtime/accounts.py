"""Credentials as operations use them: out of the vault, for as long as one try lasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, TypeVar

import structlog

from stackd.core.clock import Clock
from stackd.core.errors import (
    InputError,
    NodeError,
    NotFoundError,
    SealError,
    StoreBusyError,
    StoreFullError,
)
from stackd.core.process import ProcessIdentity
from stackd.integrations.account import Account, first
from stackd.integrations.definition import App
from stackd.integrations.pairs import ACCESS, EXPIRES, REFRESH
from stackd.integrations.registry import Registry
from stackd.integrations.token_endpoint import CLIENT_IDS, CLIENT_SECRETS
from stackd.runtime.tools import STORE_RETRY
from stackd.store.connection import Tx
from stackd.store.database import Database
from stackd.vault import credentials, inline
from stackd.vault.fields import FieldSpec, is_secret
from stackd.vault.records import OpenCredential, Vault, secret_texts
from stackd.workflows.graph import InlineCredentials

T = TypeVar("T")

PRIVATE: Final = (
    "privateNetwork"  # a field of apps that are made for hosts of the user's own network
)
TRUE: Final = frozenset({"true", "1", "yes", "on"})

_log = structlog.get_logger(__name__)


class StoredAccounts:
    """The credentials of a store; also the `Keeper` of token pairs."""

    def __init__(
        self, store: Database, vault: Vault, clock: Clock, identity: ProcessIdentity
    ) -> None:
        self._store = store
        self._vault = vault
        self._clock = clock
        self._identity = identity

    async def account(self, connection_id: str) -> Account:
        """As of `Accounts`."""
        try:
            found = await self._store.read(
                lambda tx: credentials.opened(tx, self._vault, connection_id)
            )
        except (NotFoundError, SealError) as error:
            raise NodeError(error.message, kind="invalid", code=error.code) from None
        if found.row.reconnect is not None:
            raise _disconnected(found.row.id, found.row.reconnect)
        return account_of(found)

    async def inline(self, owner: InlineCredentials) -> Account:
        """As of `Accounts`. It leads into nobody's own network: only who may change stored ones may grant that."""
        try:
            fields = await self._store.read(lambda tx: inline.opened(tx, self._vault, owner))
        except (NotFoundError, SealError) as error:
            raise NodeError(error.message, kind="invalid", code=error.code) from None
        specs = self._vault.schemas.fields_of(owner.connector)
        secrets = frozenset(name for name in fields if is_secret(specs, name))
        searched = tuple(secret_texts(fields[name] for name in secrets))
        return Account("inline", fields=fields, secrets=secrets, searched=searched)

    # -- as the keeper of token pairs

    async def claim(self, account: Account, *, until: float) -> bool:
        """As of `Keeper`."""
        now, name, version = self._clock.time(), str(account.id), account.version
        try:
            return await self._store.write(
                lambda tx: credentials.claim_renewal(
                    tx, name, version, by=self._identity, until=until, now=now
                )
            )
        except (StoreBusyError, StoreFullError) as error:  # what was renewed could not be kept now
            _log.warning("waiting for the store", reason=error.message)
            return False

    async def release(self, account: Account, *, until: float) -> None:
        """As of `Keeper`."""
        name = str(account.id)
        with suppress(StoreBusyError, StoreFullError):  # it ends by itself
            await self._store.write(lambda tx: credentials.release_renewal(tx, name, until=until))

    async def keep(self, account: Account, fields: dict[str, str], *, until: float) -> Account:
        """As of `Keeper`. Waits while the store is full or locked: the pair is nowhere else."""
        name, now = str(account.id), self._clock.time()

        def keep(tx: Tx) -> OpenCredential:
            credentials.release_renewal(tx, name, until=until)
            there = credentials.opened(tx, self._vault, name)
            if first(there.fields, REFRESH) == first(account.fields, REFRESH):
                credentials.renew(tx, self._vault, there.row, fields, by="oauth2", now=now)
                there = credentials.opened(tx, self._vault, name)
            return there

        try:
            return account_of(await self._written(keep, until))
        except (NotFoundError, SealError) as error:  # it was removed, say
            raise NodeError(error.message, kind="invalid", code=error.code) from None

    async def disconnect(self, account: Account, reason: str, *, until: float) -> NodeError:
        """As of `Keeper`."""
        name, version = str(account.id), account.version

        def disconnect(tx: Tx) -> None:
            credentials.release_renewal(tx, name, until=until)
            credentials.disconnect(tx, name, version, reason)

        await self._written(disconnect, until)
        return _disconnected(name, reason)

    async def _written(self, change: Callable[[Tx], T], until: float) -> T:
        """What `change` gives once the store takes it; not after `until`, for then another may be at it."""
        while True:
            try:
                return await self._store.write(change)
            except (StoreBusyError, StoreFullError) as error:
                if self._clock.time() > until:
                    raise
                _log.warning("waiting for the store", reason=error.message)
            await self._clock.sleep(STORE_RETRY)


def account_of(found: OpenCredential) -> Account:
    """A credential as operations are given it."""
    row = found.row
    return Account(
        "connection",
        row.id,
        found.fields,
        frozenset(row.secret),
        row.auth,
        row.version,
        grants_private=found.fields.get(PRIVATE, "").strip().lower() in TRUE,
        connector=row.connector,
        searched=tuple(found.secrets()),
        changed_at=row.updated_at,
    )


def _disconnected(name: str, reason: str) -> NodeError:
    return NodeError(
        f"credential {name!r} has to be connected again: {reason}; nothing was sent. Give it new tokens: "
        f"`stackd credentials set {name} --secret accessToken --secret refreshToken`",
        kind="invalid",
        code="credential.reconnect",
    )


class DefinedFields:
    """What the definitions of connectors say of the fields of their credentials.

    `registry`: asked for each time, since it may be made later.
    """

    def __init__(self, registry: Callable[[], Registry]) -> None:
        self._registry = registry

    def fields_of(self, connector: str) -> Mapping[str, FieldSpec] | None:
        """As of `FieldSchemas`."""
        found = self._registry().catalogue.find(connector)
        if found is None or not found.packed:
            return None
        try:
            app = found.definition.app
        except InputError:
            return None
        written = app.connection.fields
        members = written.get("properties")
        if not isinstance(members, dict) or not members:
            return None
        required = written.get("required")
        specs = {
            name: FieldSpec(
                is_secret=bool(one.get("x-secret")) if isinstance(one, dict) else True,
                required=isinstance(required, list) and name in required,
                title=str(one.get("title") or "") if isinstance(one, dict) else "",
            )
            for name, one in members.items()
        }
        if app.private_network:
            title = "Whether it may lead into your own network: true or false"
            specs.setdefault(PRIVATE, FieldSpec(is_secret=False, title=title))
        for name, spec in _of_pairs(app):
            specs.setdefault(name, spec)
        return specs


def _of_pairs(app: App) -> list[tuple[str, FieldSpec]]:
    """What the token pairs of an app are kept in, whether or not its definition says so."""
    if not any(one.type == "oauth2" for one in app.ways_in.values()):
        return []
    public = {*EXPIRES, *CLIENT_IDS}
    names = (*ACCESS, *REFRESH, *EXPIRES, *CLIENT_IDS, *CLIENT_SECRETS)
    return [(name, FieldSpec(is_secret=name not in public)) for name in names]
