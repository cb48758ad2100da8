"""Stored JSON texts that hold a secret: sealed whole, opened to go on with, and shown without it.

In place of one stands `{"$secret": ENVELOPE}`, a JSON value itself: so it may stand in a larger text, as the output of
one node does in that of its execution, and be copied from one execution to another. The secrets that were found are
sealed with the text: so it can be shown without them, and they are known again, whatever has become of the credential.
The blobs that it names stand beside, for those who look for references.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from typing import Any, Final

from stackd.core.errors import SealError
from stackd.core.json import dumps, loads
from stackd.core.redact import Redactor
from stackd.store.connection import Tx
from stackd.vault import envelope, keyring
from stackd.vault.envelope import Owner
from stackd.vault.records import Vault

MARK: Final = b'"$secret"'

_OWNER: Final = Owner("stored texts", "stackd")
_FIELD: Final = "text"
_SEALED: Final = re.compile(
    rb'\{"\$secret":"(\d+)\.([A-Za-z0-9+/=]+)\.([A-Za-z0-9+/=]+)"(?:,"refers":\[[^\]]*\])?\}'
)
_BLOB: Final = re.compile(rb'"\$blob"\s*:\s*"([0-9a-f]{64})"')


def sealed(tx: Tx, vault: Vault, text: bytes, secrets: Iterable[str]) -> bytes:
    """`text`, which holds some of the `secrets`, as it is stored."""
    key, data_key = keyring.active(tx), envelope.new_data_key()
    whole, found = opened(tx, vault, text)  # what stood sealed in it is sealed with it
    held = dumps({"secrets": sorted({*secrets, *found}), "text": whole.decode()})
    wrapped = envelope.seal_data_key(
        vault.keyring.key(key), data_key, owner=_OWNER, key_version=key.version
    )
    body = envelope.seal_field(data_key, held.decode(), credential=_OWNER.credential, name=_FIELD)
    value = b"%d.%s.%s" % (key.version, b64encode(wrapped), b64encode(body))
    blobs = b",".join(b'{"$blob":"%s"}' % one for one in sorted(set(_BLOB.findall(whole))))
    refers = b',"refers":[%s]' % blobs if blobs else b""
    return b'{"$secret":"%s"%s}' % (value, refers)


def opened(tx: Tx, vault: Vault, text: bytes) -> tuple[bytes, set[str]]:
    """`text` as it was, and the secrets that are in it."""
    secrets: set[str] = set()

    def fill(held: dict[str, Any]) -> bytes:
        secrets.update(held["secrets"])
        return str(held["text"]).encode()

    return _filled(tx, vault, text, fill), secrets


def shown(tx: Tx, vault: Vault, text: bytes) -> bytes:
    """`text` without the secrets in it."""

    def fill(held: dict[str, Any]) -> bytes:
        return dumps(Redactor(held["secrets"]).json(loads(held["text"])))

    return _filled(tx, vault, text, fill)


def _filled(tx: Tx, vault: Vault, text: bytes, fill: Callable[[dict[str, Any]], bytes]) -> bytes:
    if MARK not in text:
        return text

    def value_of(found: re.Match[bytes]) -> bytes:
        try:
            return fill(_held(tx, vault, found))
        except (SealError, ValueError):  # somebody wrote what looks like one, in Base64 or not
            return found[0]

    return _SEALED.sub(value_of, text)


def _held(tx: Tx, vault: Vault, found: re.Match[bytes]) -> dict[str, Any]:
    version = int(found[1][:18])
    key = vault.keyring.key(keyring.with_version(tx, version))
    data_key = envelope.open_data_key(key, b64decode(found[2]), owner=_OWNER, key_version=version)
    text = envelope.open_field(
        data_key, b64decode(found[3]), credential=_OWNER.credential, name=_FIELD
    )
    held: dict[str, Any] = loads(text)
    return held
