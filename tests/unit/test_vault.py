"""Envelopes and keys as values: what was altered or put elsewhere does not open, and no secret shows."""

from __future__ import annotations

import hmac

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from stackd.core.errors import InputError, SealError, TooLargeError
from stackd.vault import envelope, fields
from stackd.vault.envelope import Owner
from stackd.vault.fields import LONGEST_VALUE, MAX_FIELDS, FieldSpec, NoSchemas
from stackd.vault.keyring import Keyring, KeyRow, KeyState, derived
from stackd.vault.records import (
    Change,
    CredentialRow,
    NewCredential,
    OpenCredential,
    Vault,
)

SECRET = "s3cret-value-of-a-token"
MASTER = "0123456789abcdefghijklmnopqrstuvwxyzABCD"
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
GITHUB = Owner("main", "github")


def sealed(value: str = SECRET, *, credential: str = "main", name: str = "token") -> bytes:
    return envelope.seal_field(KEY, value, credential=credential, name=name)


# -- envelopes


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_was_sealed_opens_as_it_was(value: str) -> None:
    assert envelope.open_field(KEY, sealed(value), credential="main", name="token") == value


def test_an_envelope_shows_nothing_and_is_never_the_same_twice() -> None:
    first, second = sealed(), sealed()

    assert SECRET.encode() not in first
    assert first[1:13] != second[1:13]
    assert first != second
    assert len(first) == 1 + 12 + len(SECRET) + 16


@pytest.mark.parametrize("bit", [0, 7])
def test_an_envelope_with_any_byte_altered_does_not_open(bit: int) -> None:
    whole = sealed()

    for at in range(len(whole)):
        altered = bytearray(whole)
        altered[at] ^= 1 << bit
        with pytest.raises(SealError):
            envelope.open_field(KEY, bytes(altered), credential="main", name="token")


def test_an_envelope_cut_or_longer_does_not_open() -> None:
    whole = sealed()

    for other in (*(whole[:size] for size in range(len(whole))), whole + b"\0", b"\0" + whole):
        with pytest.raises(SealError):
            envelope.open_field(KEY, other, credential="main", name="token")


@pytest.mark.parametrize(
    ("key", "credential", "name"),
    [
        (OTHER_KEY, "main", "token"),
        (KEY, "other", "token"),
        (KEY, "main", "password"),
        (KEY, "maint", "oken"),  # as long together, and the same letters
        (KEY, "mai", "ntoken"),
    ],
    ids=[
        "another key",
        "another credential",
        "another field",
        "a boundary moved on",
        "a boundary moved back",
    ],
)
def test_a_secret_opens_nowhere_but_in_its_place(key: bytes, credential: str, name: str) -> None:
    with pytest.raises(SealError) as caught:
        envelope.open_field(key, sealed(), credential=credential, name=name)

    assert name in caught.value.message
    assert credential in caught.value.message


@pytest.mark.parametrize(
    ("key", "owner", "version"),
    [
        (OTHER_KEY, GITHUB, 1),
        (KEY, Owner("other", "github"), 1),
        (KEY, Owner("main", "gitlab"), 1),
        (KEY, Owner("maing", "ithub"), 1),
        (KEY, GITHUB, 2),
    ],
    ids=[
        "another key",
        "another credential",
        "another connector",
        "a moved boundary",
        "another version",
    ],
)
def test_a_data_key_opens_for_nothing_but_its_credential_connector_and_key_version(
    key: bytes, owner: Owner, version: int
) -> None:
    data_key = envelope.new_data_key()
    kept = envelope.seal_data_key(KEY, data_key, owner=GITHUB, key_version=1)

    with pytest.raises(SealError):
        envelope.open_data_key(key, kept, owner=owner, key_version=version)
    assert envelope.open_data_key(KEY, kept, owner=GITHUB, key_version=1) == data_key


def test_a_data_key_is_not_taken_for_a_field_nor_a_field_for_a_data_key() -> None:
    owner = Owner("main", "1")

    with pytest.raises(SealError):
        envelope.open_data_key(KEY, sealed(name="1"), owner=owner, key_version=1)
    kept = envelope.seal_data_key(KEY, b"k" * 32, owner=owner, key_version=1)
    with pytest.raises(SealError):
        envelope.open_field(KEY, kept, credential="main", name="1")


# -- keys


def test_keys_are_derived_as_rfc_5869_has_it() -> None:
    """Its first test case, as far as one block goes; and as another program does it."""
    label = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")
    extracted = hmac.digest(bytes.fromhex("000102030405060708090a0b0c"), b"\x0b" * 22, "sha256")
    other = HKDF(SHA256(), 32, salt=b"salt", info=b"what for").derive(MASTER.encode())

    assert hmac.digest(extracted, label + b"\x01", "sha256").hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    )
    assert derived(MASTER.encode(), b"salt", "what for") == other


def test_a_master_key_knows_its_own_keys_and_no_others() -> None:
    mine, other = Keyring(MASTER), Keyring(MASTER + "x")
    first, second = mine.new(1), mine.new(2)

    assert mine.knows(first)
    assert mine.knows(second)
    assert not other.knows(first)
    assert not mine.knows(KeyRow(2, first.state, first.salt, first.proof))
    assert not mine.knows(KeyRow(1, first.state, second.salt, first.proof))
    assert mine.key(first) != mine.key(second)
    assert first.state is KeyState.ACTIVE


def test_a_key_is_neither_its_proof_nor_what_makes_that() -> None:
    ring = Keyring(MASTER)
    row = ring.new(1)

    assert ring.key(row) != row.proof
    assert hmac.digest(ring.key(row), b"this is the master key", "sha256") != row.proof


# -- what shows


def test_a_data_key_that_was_sealed_before_public_fields_were_bound_to_it_opens() -> None:
    bound = envelope._bound(envelope._DATA_KEY_ALONE, GITHUB.credential, GITHUB.connector, "1")
    before = envelope._seal(KEY, OTHER_KEY, bound)

    assert envelope.open_data_key(KEY, before, owner=GITHUB, key_version=1) == OTHER_KEY
    assert envelope.seal_data_key(KEY, OTHER_KEY, owner=GITHUB, key_version=1)[:1] == b"\x02"


def test_no_repr_shows_a_secret_or_what_could_help_to_find_one() -> None:
    ring = Keyring(MASTER)
    row = ring.new(1)
    kept = CredentialRow("main", "github", None, {}, ("token",), 0.0, 0.0, 1, None)
    given = {"token": SECRET}

    told = repr(
        [
            ring,
            row,
            Vault(ring, NoSchemas()),
            NewCredential("main", "github", None, given),
            Change(given),
            OpenCredential(kept, given),
        ]
    )

    assert SECRET not in told
    assert MASTER not in told
    assert repr(row.salt) not in told
    assert repr(row.proof) not in told


def test_every_text_in_a_secret_that_is_json_is_told_as_one() -> None:
    pair = '{"access": "abcdefghij", "more": [{"refresh": "klmnopqrst"}], "n": 1}'
    row = CredentialRow(
        "main", "github", None, {"host": "h"}, ("broken", "pair"), 0.0, 0.0, 1, None
    )
    opened = OpenCredential(row, {"pair": pair, "broken": "{no json", "host": "h"})

    assert set(opened.secrets()) == {pair, "{no json", "abcdefghij", "klmnopqrst"}


# -- fields

SPECS = {
    "token": FieldSpec(required=True, title="Token"),
    "host": FieldSpec(is_secret=False),
}


@pytest.mark.parametrize(
    ("names", "code", "hint"),
    [
        (["tokn"], "credential.unknown_field", "did you mean 'token'?"),
        (["zzz"], "credential.unknown_field", "known: token, host"),
        (["s3cret value"], "credential.field_name", None),
        ([""], "credential.field_name", None),
        (["a" * 65], "credential.field_name", None),
    ],
)
def test_a_field_that_there_is_not_is_refused_with_the_nearest(
    names: list[str], code: str, hint: str | None
) -> None:
    with pytest.raises(InputError) as caught:
        fields.refuse_unfit_names(SPECS, names, connector="github")

    assert (caught.value.code, caught.value.hint) == (code, hint)
    assert "s3cret" not in caught.value.message


def test_a_missing_field_and_all_that_are_needed_are_named() -> None:
    with pytest.raises(InputError) as caught:
        fields.refuse_unfit_whole(SPECS, ["host"], connector="github")

    assert caught.value.code == "credential.missing_field"
    assert "'token'" in caught.value.message


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("", InputError),
        (f"{SECRET}\ud800", InputError),
        ("é" * (LONGEST_VALUE // 2 + 1), TooLargeError),
    ],
)
def test_a_value_that_cannot_be_kept_is_refused_and_not_shown(
    value: str, error: type[InputError]
) -> None:
    with pytest.raises(error) as caught:
        fields.refuse_unfit_values({"token": value})

    assert SECRET not in caught.value.message
    assert caught.value.__context__ is None


def test_a_credential_has_1_to_64_fields() -> None:
    fields.refuse_unfit_whole(None, [f"f{n}" for n in range(MAX_FIELDS)], connector="x")
    for names in ([], [f"f{n}" for n in range(MAX_FIELDS + 1)]):
        with pytest.raises(InputError):
            fields.refuse_unfit_whole(None, names, connector="x")


@pytest.mark.parametrize(
    ("specs", "name", "secret"),
    [(None, "host", True), (SPECS, "host", False), (SPECS, "token", True), (SPECS, "new", True)],
)
def test_what_nobody_calls_public_is_secret(
    specs: dict[str, FieldSpec] | None, name: str, secret: bool
) -> None:
    assert fields.is_secret(specs, name) is secret
