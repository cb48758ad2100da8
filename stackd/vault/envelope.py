"""Envelopes: a secret sealed under the data key of its credential, and that data key under a key of the keyring.

AES-256-GCM with a random nonce of 96 bits. What an envelope belongs to is bound to it: a data key to its credential with
all that is public of it and the version of the key that it is sealed under, a secret to its credential and its field, and by its data
key to all of these. So one that was altered, or put in another's place, does not open; and another version of the key
needs the data keys sealed anew, not the secrets.

`cryptography` is loaded at first use: it takes 14 ms and 9 MiB, which a daemon without credentials does without.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stackd.core.errors import SealError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
NONCE_BYTES: Final = (
    12  # as NIST SP 800-38D, 8.2.2 has it for random ones: good for 2^32 envelopes per key
)

_FORMAT: Final = b"\x01"
_FORMAT_OF_WHOLE: Final = b"\x02"  # of data keys; before, what is public was not bound to them
_TAG_BYTES: Final = 16
_DATA_KEY: Final = "stackd/vault/data-key/2"
_DATA_KEY_ALONE: Final = "stackd/vault/data-key/1"
_FIELD: Final = "stackd/vault/field/1"


@dataclass(frozen=True, slots=True)
class Owner:
    """The credential that a data key belongs to, with all of it that stands in the store as it is."""

    credential: str
    connector: str
    auth: str | None = None
    public: bytes = b""


def load() -> None:
    """Load what seals: for a thread, before somebody waits for the first envelope."""
    import cryptography.hazmat.primitives.ciphers.aead  # noqa: F401


def new_data_key() -> bytes:
    """A key that nobody has seen."""
    return secrets.token_bytes(KEY_BYTES)


def seal_data_key(key: bytes, data_key: bytes, *, owner: Owner, key_version: int) -> bytes:
    """`data_key` sealed under `key`, the one with that version."""
    return _seal(key, data_key, _of_data_key(owner, key_version), _FORMAT_OF_WHOLE)


def open_data_key(key: bytes, envelope: bytes, *, owner: Owner, key_version: int) -> bytes:
    """The data key in `envelope`. Raises SealError: it is not what was sealed there."""
    what = f"the data key of credential {owner.credential!r}"
    if envelope.startswith(_FORMAT):
        bound = _bound(_DATA_KEY_ALONE, owner.credential, owner.connector, str(key_version))
        return _open(key, envelope, bound, what)
    return _open(key, envelope, _of_data_key(owner, key_version), what, _FORMAT_OF_WHOLE)


def seal_field(data_key: bytes, value: str, *, credential: str, name: str) -> bytes:
    """The secret `value` sealed under the data key of its credential."""
    return _seal(data_key, value.encode(), _bound(_FIELD, credential, name))


def open_field(data_key: bytes, envelope: bytes, *, credential: str, name: str) -> str:
    """The secret in `envelope`. Raises SealError: it is not what was sealed there."""
    what = f"field {name!r} of credential {credential!r}"
    return _open(data_key, envelope, _bound(_FIELD, credential, name), what).decode()


def _of_data_key(owner: Owner, key_version: int) -> bytes:
    auth = "" if owner.auth is None else owner.auth
    whole = _bound(_DATA_KEY, owner.credential, owner.connector, str(key_version), auth)
    return whole + owner.public


def _bound(*parts: str) -> bytes:
    """`parts` so that no other ones read the same."""
    encoded = [part.encode() for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


def _seal(key: bytes, text: bytes, bound: bytes, form: bytes = _FORMAT) -> bytes:
    nonce = secrets.token_bytes(NONCE_BYTES)
    return form + nonce + _cipher(key).encrypt(nonce, text, bound)


def _open(key: bytes, envelope: bytes, bound: bytes, what: str, form: bytes = _FORMAT) -> bytes:
    from cryptography.exceptions import InvalidTag

    start = len(_FORMAT) + NONCE_BYTES
    if not envelope.startswith(form) or len(envelope) < start + _TAG_BYTES:
        raise _broken(what)
    try:
        return _cipher(key).decrypt(envelope[len(_FORMAT) : start], envelope[start:], bound)
    except InvalidTag:
        raise _broken(what) from None


def _broken(what: str) -> SealError:
    return SealError(
        f"{what} does not open: what is stored was altered, or put there from elsewhere",
        hint="restore a backup, or remove the credential and add it anew",
    )


def _cipher(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)
