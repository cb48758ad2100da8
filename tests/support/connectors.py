"""Connectors made up for a test, and what runs them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from stackd.core.clock import Clock
from stackd.core.errors import NodeError
from stackd.integrations.account import Account
from stackd.integrations.catalogue import Catalogue, read_catalogue
from stackd.integrations.circuits import Circuits
from stackd.integrations.limits import RateLimiter
from stackd.integrations.manager import IntegrationManager
from stackd.integrations.registry import Options, Registry
from stackd.integrations.tokens import MemoryTokens
from stackd.runtime.connectors import Connectors
from stackd.store.database import Database
from stackd.workflows.graph import InlineCredentials


class KnownAccounts:
    """Credentials by name."""

    def __init__(self, accounts: Mapping[str, Account] | None = None) -> None:
        self.known = dict(accounts or {})

    async def account(self, connection_id: str) -> Account:
        if connection_id not in self.known:
            raise NodeError(
                f"no credential {connection_id!r}", kind="invalid", code="credential.not_found"
            )
        return self.known[connection_id]

    async def inline(self, owner: InlineCredentials) -> Account:
        return self.known[owner.id]


class MadeUp:
    """A catalogue, the options it runs under, and its credentials."""

    def __init__(
        self, store: Database, catalogue: Catalogue | None = None, *, clock: Clock
    ) -> None:
        self.options = Options(generic=True, development=True)
        self.accounts = KnownAccounts()
        self.registry = Registry(catalogue or Catalogue([]), lambda: self.options)
        self.manager = IntegrationManager(self.registry, MemoryTokens(clock))
        self.connectors = Connectors(
            self.manager, self.accounts, RateLimiter(store, clock), Circuits(store, clock)
        )

    def set(self, **options: Any) -> None:
        self.options = replace(self.options, **options)


async def catalogue_of(
    folder: Path, definition: Mapping[str, Any], *, handlers: str | None = None
) -> Catalogue:
    """The catalogue of one connector, written to `folder`."""

    def make() -> Catalogue:
        write_connector(folder, definition, handlers=handlers)
        return read_catalogue([folder])

    return await anyio.to_thread.run_sync(make)


def write_connector(
    folder: Path, definition: Mapping[str, Any] | str, *, handlers: str | None = None
) -> Path:
    """A connector below `folder`, under its id."""
    text = definition if isinstance(definition, str) else json.dumps(definition, indent=2)
    name = "broken" if isinstance(definition, str) else str(definition["id"])
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "definition.json").write_text(text)
    if handlers is not None:
        (place / "handlers.py").write_text(handlers)
        (place / "handlers.py").chmod(0o644)
    return place


def action(
    name: str, method: str | None = "GET", endpoint: str | None = "/x", **more: Any
) -> dict[str, Any]:
    """An action of a definition."""
    how = {"method": method, "endpoint": endpoint}
    return {"id": name, **{k: v for k, v in how.items() if v is not None}, **more}
