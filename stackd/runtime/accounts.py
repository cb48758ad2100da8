"""Credentials as operations use them: out of the vault, for as long as one try lasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from stackd.core.errors import InputError, NodeError, NotFoundError, SealError
from stackd.integrations.account import Account
from stackd.integrations.registry import Registry
from stackd.store.database import Database
from stackd.vault import credentials
from stackd.vault.credentials import Vault
from stackd.vault.fields import FieldSpec

PRIVATE: Final = (
    "privateNetwork"  # a field of apps that are made for hosts of the user's own network
)
TRUE: Final = frozenset({"true", "1", "yes", "on"})


class StoredAccounts:
    """The credentials of a store."""

    def __init__(self, store: Database, vault: Vault) -> None:
        self._store = store
        self._vault = vault

    async def account(self, connection_id: str) -> Account:
        """As of `Accounts`."""
        try:
            found = await self._store.read(
                lambda tx: credentials.opened(tx, self._vault, connection_id)
            )
        except (NotFoundError, SealError) as error:
            raise NodeError(error.message, kind="invalid", code=error.code) from None
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
        return specs
