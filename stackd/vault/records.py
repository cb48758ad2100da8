"""What credentials are, on their way in, at rest and in use, and what is told of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from stackd.core.events import Event
from stackd.core.json import Json, loads
from stackd.vault.fields import FieldSchemas
from stackd.vault.keyring import Keyring


@dataclass(frozen=True, slots=True)
class CredentialCreated(Event):
    """A credential was made. `by`: who asked for it."""

    credential_id: str
    connector: str
    by: str


@dataclass(frozen=True, slots=True)
class CredentialChanged(Event):
    """A credential has other fields, or another kind of auth, from `version` on. `by`: who asked for it."""

    credential_id: str
    version: int
    by: str


@dataclass(frozen=True, slots=True)
class CredentialDisconnected(Event):
    """The far side takes a credential no more: it is not asked again until somebody changes it."""

    credential_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class CredentialTested(Event):
    """A credential was shown to its app. `ok`: whether that takes it. `by`: who asked for it."""

    credential_id: str
    ok: bool
    by: str


@dataclass(frozen=True, slots=True)
class CredentialRemoved(Event):
    """A credential is gone, with its secrets. `by`: who asked for it."""

    credential_id: str
    by: str


@dataclass(frozen=True, slots=True)
class Vault:
    """What credentials are kept with: the keys, and what connectors say of fields."""

    keyring: Keyring
    schemas: FieldSchemas


@dataclass(frozen=True, slots=True)
class NewCredential:
    """A credential about to be stored.

    Attributes:
        auth: which of the kinds that its connector knows; None: the one it has.
        fields: all of them, in clear.
        public: those that whoever gave them takes for no secret: refused where that is wrong.
    """

    id: str
    connector: str
    auth: str | None
    fields: Mapping[str, str] = field(repr=False)
    public: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """What shall be otherwise.

    Attributes:
        fields: their new values, in clear; None removes one. Those that are not named stay.
        public: as of `NewCredential`.
        auth: the kind from now on, if `sets_auth`.
    """

    fields: Mapping[str, str | None] = field(repr=False)
    public: Collection[str] = ()
    auth: str | None = None
    sets_auth: bool = False


@dataclass(frozen=True, slots=True)
class TestResult:
    """What came of a test; no secret stands in it.

    Attributes:
        tested_at: epoch seconds.
        status: of the app's answer, if there was one.
        error: code and message; None: the credential works.
        label: whose it is, as the app says.
    """

    __test__ = False  # pytest would take it for one

    tested_at: float
    status: int | None = None
    error: tuple[str, str] | None = None
    label: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True)
class CredentialRow:
    """A credential without its secrets. Instants: epoch seconds.

    Attributes:
        public: the fields that may be shown.
        secret: the names of those that may not.
        version: grows by one at each change.
        reconnect: why the far side takes it no more; None: as far as is known, it does.
        test: what came of its last test; None: it was not tested since a person changed it.
    """

    id: str
    connector: str
    auth: str | None
    public: Mapping[str, str]
    secret: tuple[str, ...]
    created_at: float
    updated_at: float
    version: int
    reconnect: str | None
    test: TestResult | None = None


@dataclass(frozen=True, slots=True)
class OpenCredential:
    """A credential in clear: nothing of this is logged, stored or shown."""

    row: CredentialRow
    fields: Mapping[str, str] = field(repr=False)

    def secrets(self) -> Iterator[str]:
        """Every text in it that must not get out: secrets, and the texts in those that are JSON."""
        return secret_texts(self.fields[name] for name in self.row.secret)


def secret_texts(secrets: Iterable[str]) -> Iterator[str]:
    """`secrets`, and the texts in those that are JSON."""
    for secret in secrets:
        yield secret
        if secret.lstrip()[:1] in ("{", "["):
            with suppress(ValueError):
                yield from _texts_in(loads(secret))


def _texts_in(value: Json) -> Iterator[str]:
    """The texts in a JSON value; its keys are no secrets."""
    open_values = [value]
    while open_values:
        match open_values.pop():
            case str(text):
                yield text
            case dict(inner):
                open_values += inner.values()
            case list(inner):
                open_values += inner
            case _:  # what else may be in JSON is too short to be told
                pass
