"""Whose name an operation acts in: the fields of a credential, and which of them are secrets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from stackd.core.errors import NodeError
from stackd.core.json import Json
from stackd.integrations.definition import App, Auth

# The usual names of what is sent, the surest first: of definitions that name none.
KEYS: Final = (
    "apiKey",
    "api_key",
    "key",
    "token",
    "accessToken",
    "access_token",
    "secretKey",
    "value",
)
TOKENS: Final = (
    "accessToken", "access_token", "token", "botToken", "integrationToken", "bearerToken",
    "personalAccessToken", "apiToken", "apiKey", "api_key",
)  # fmt: skip
USERNAMES: Final = ("username", "user", "email", "accountSid", "clientId", "apiKey")
PASSWORDS: Final = ("password", "apiToken", "token", "authToken", "clientSecret", "apiSecret")


@dataclass(frozen=True, slots=True)
class Account:
    """A credential in use.

    Attributes:
        source: where it comes from: of the node itself, or of a connection by its id.
        fields: all of them, in clear.
        secrets: the names of those that are secret.
        auth: which of the connector's ways in it was made for.
        grants_private: whether it may lead to hosts of the user's own network.
        connector: which it was made for; None: for whoever is given it.
        searched: texts in it that must not get out, besides the secret fields themselves.
        changed_at: epoch seconds.
        fetched: what was fetched with it since it was opened.
    """

    source: Literal["inline", "connection"]
    id: str | None = None
    fields: Mapping[str, Json] = field(default_factory=dict, repr=False)
    secrets: frozenset[str] = frozenset()
    auth: str | None = None
    version: int = 0
    grants_private: bool = False
    connector: str | None = None
    searched: tuple[str, ...] = field(default=(), repr=False)
    changed_at: float = 0.0
    fetched: set[str] = field(default_factory=set, repr=False, compare=False)

    @property
    def public(self) -> dict[str, Json]:
        """What expressions outside of authentication see."""
        return {name: value for name, value in self.fields.items() if name not in self.secrets}

    @property
    def secret_values(self) -> list[str]:
        """Every text of it that must not get out."""
        own = [value for name, value in self.fields.items() if name in self.secrets]
        return [*(one for one in own if isinstance(one, str)), *self.searched, *self.fetched]

    def learned(self, token: str) -> str:
        """`token`, which is a secret of this account from now on."""
        self.fetched.add(token)
        return token


UNSIGNED: Final = Auth(type="none")
NOBODY: Final = Account("inline")


def way_in(app: App, chosen: str | None, account: Account) -> Auth:
    """How `account` signs in: as the operation says, as the credential was made for, or the first way there is.

    Raises:
        NodeError: the connector has no such way, or one that is not supported.
    """
    ways = app.ways_in
    name = chosen or account.auth
    if name == "none":
        return UNSIGNED
    if name is not None and name not in ways and name not in {one.type for one in ways.values()}:
        raise NodeError(
            f"{app.id} has no authentication {name!r}; it has {', '.join(ways)}",
            kind="invalid",
            code="credential.unknown_auth",
        )
    found = next((one for key, one in ways.items() if name in (None, key, one.type)), UNSIGNED)
    if found.unsupported is not None:
        raise NodeError(
            _unsupported(app, found), kind="invalid", code="credential.unsupported_auth"
        )
    return found


def no_way_in(app: App, chosen: str | None) -> str | None:
    """Why nobody can sign in to `app`, by any way that the operation leaves open; None if somebody may."""
    if chosen == "none":
        return None
    ways = [one for key, one in app.ways_in.items() if chosen in (None, key, one.type)]
    if not ways or any(one.unsupported is None for one in ways):
        return None
    return _unsupported(app, ways[0])


def _unsupported(app: App, way: Auth) -> str:
    return f"{app.id} signs in by {way.unsupported}, which is not supported"


def first(fields: Mapping[str, Json], names: tuple[str, ...]) -> str | None:
    """The first of `names` that has a text."""
    for name in names:
        if found := fields.get(name):
            return str(found)
    return None
