"""The secrets that one claimed execution has to do with, so that what is stored of it shows none of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import islice

from stackd.core.json import dumps, loads
from stackd.core.redact import LONGEST, MAX_SECRETS, SHORTEST, Redactor
from stackd.store.connection import Tx
from stackd.vault import texts
from stackd.vault.records import Vault
from stackd.workflows.executions import NodeRow


class LiveSecrets:
    """Secrets of the credentials that its nodes were given, and those found in what an earlier claim has stored."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._known: frozenset[str] = frozenset()

    @property
    def known(self) -> frozenset[str]:
        """Those that are looked for."""
        return self._known

    def learn(self, secrets: Iterable[str]) -> None:
        """Look for these too from now on; what is too short stands in texts by chance."""
        self._known |= {one for one in secrets if SHORTEST <= len(one) <= LONGEST}

    def sealed(self, tx: Tx, text: bytes) -> bytes:
        """A JSON text as it is stored: as it is, or sealed if a secret is in it."""
        if not self._known or not self._redactor.finds(text):
            return text
        return texts.sealed(tx, self._vault, text, self._known)

    def redacted(self, text: bytes) -> bytes:
        """A JSON text without the secrets, for good: of errors and notes, on which nothing builds."""
        if not self._known or not self._redactor.finds(text):
            return text
        return dumps(self._redactor.json(loads(text)))

    def words(self, text: str) -> str:
        """A text without the secrets."""
        return self._redactor.text(text) if self._known else text

    def opened(self, tx: Tx, text: bytes) -> bytes:
        """What `sealed` was given; its secrets are known from now on."""
        whole, found = texts.opened(tx, self._vault, text)
        self.learn(found)
        return whole

    def opened_rows(self, tx: Tx, rows: list[NodeRow]) -> list[NodeRow]:
        """Node runs as they were recorded."""
        return [
            row._replace(output=self.opened(tx, row.output))
            if row.output is not None and texts.MARK in row.output
            else row
            for row in rows
        ]

    @property
    def _redactor(self) -> Redactor:
        return redactor_of(self._known)


@lru_cache(maxsize=64)
def redactor_of(secrets: frozenset[str]) -> Redactor:
    """What knows these; one for all who ask for the same, for it takes a millisecond to make."""
    return Redactor(islice(sorted(secrets), MAX_SECRETS))
