"""Credentials that stand in a node: sealed when their workflow is imported, so that only their id is in its document.

The id is a keyed digest of them and of what they belong to. So the same document imported again is the same version;
and one that was exported keeps them where it is imported again, for that workflow, node and connector alone: all of
them, since who could change the address next to a sealed secret would get to see it.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from stackd.core.errors import InputError, NotFoundError, StackdError
from stackd.core.json import Json, dumps, loads
from stackd.store.connection import Tx
from stackd.vault import envelope, keyring
from stackd.vault import statements as sql
from stackd.vault.envelope import Owner
from stackd.vault.fields import refuse_unfit_names, refuse_unfit_values, refuse_unfit_whole
from stackd.vault.keyring import KeyRow, derived
from stackd.vault.records import Vault
from stackd.workflows.document import Document, with_content
from stackd.workflows.graph import InlineCredentials
from stackd.workflows.model import LOOP, SEALED
from stackd.workflows.nodetypes import connector_of

_IDENTIFIES: Final = "stackd/vault/inline/1"
_ID_BYTES: Final = 16
_FIELD: Final = "credentials"


@dataclass(frozen=True, slots=True)
class SealedDocument:
    """A document that shows no credential; `credentials`: those in its nodes, to be stored with it."""

    document: Document
    credentials: tuple[tuple[InlineCredentials, dict[str, str]], ...] = ()


def without_secrets(tx: Tx, vault: Vault, document: Document) -> SealedDocument:
    """`document` with the ids of its credentials in their place.

    Raises:
        InputError: or TooLargeError: some cannot be kept, or are of an export whose workflow is not here.
    """
    content: dict[str, Any] = loads(document.text)
    nodes = [node for node in _nodes(content) if node.get(_FIELD) is not None]
    if not nodes:
        return SealedDocument(document)
    key = keyring.active(tx)
    found = []
    for node in nodes:
        operation = connector_of(node["type"])
        assert operation is not None  # noqa: S101  # as it was judged
        given: dict[str, str] = node[_FIELD]
        connector = operation[0]
        if SEALED in given:
            owner = InlineCredentials(document.id, node["id"], connector, given[SEALED])
            _refuse_foreign(tx, vault, owner)
            continue
        _refuse_unfit(vault, node["id"], connector, given)
        digest = _digest(vault.keyring.key(key), document.id, node["id"], connector, given)
        owner = InlineCredentials(document.id, node["id"], connector, digest)
        found.append((owner, given))
        node[_FIELD] = {SEALED: digest}
    return SealedDocument(with_content(document, content), tuple(found))


def put(tx: Tx, vault: Vault, sealed: SealedDocument, *, now: float) -> None:
    """The credentials of a document are sealed and stored; its workflow is there."""
    key = keyring.active(tx)
    for owner, fields in sealed.credentials:
        if tx.one(sql.GET_INLINE, (owner.workflow_id, owner.id)) is not None:
            continue
        data_key = envelope.new_data_key()
        name = _name(owner)
        text = envelope.seal_field(data_key, dumps(fields).decode(), credential=name, name=_FIELD)
        sealed_key = envelope.seal_data_key(
            vault.keyring.key(key),
            data_key,
            owner=Owner(name, owner.connector),
            key_version=key.version,
        )
        tx.execute(
            sql.INSERT_INLINE, (owner.workflow_id, owner.id, sealed_key, key.version, text, now)
        )


def opened(tx: Tx, vault: Vault, owner: InlineCredentials) -> Mapping[str, str]:
    """The fields of a node's credentials, in clear: nothing of this is logged, stored or shown.

    Raises:
        NotFoundError: they are not there.
        SealError: they are not what was sealed there, or not for that node.
    """
    row = tx.one(sql.GET_INLINE, (owner.workflow_id, owner.id))
    if row is None:
        raise NotFoundError(
            f"the credentials of node {owner.node_id!r} are not in this store",
            code="credential.not_found",
        )
    sealed_key, version, sealed = row
    name = _name(owner)
    key: KeyRow = keyring.with_version(tx, version)
    data_key = envelope.open_data_key(
        vault.keyring.key(key), sealed_key, owner=Owner(name, owner.connector), key_version=version
    )
    text = envelope.open_field(data_key, sealed, credential=name, name=_FIELD)
    fields: dict[str, str] = loads(text)
    return fields


def _nodes(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes of a document, those in loops too, wherever their bodies stand."""
    for node in content.get("nodes") or ():
        yield node
        if node["type"] == LOOP:
            yield from _nodes(node)
            yield from _nodes(node.get("params") or {})


def _digest(key: bytes, workflow_id: str, node_id: str, connector: str, given: Json) -> str:
    fields = given if isinstance(given, dict) else {}
    text = dumps([workflow_id, node_id, connector, sorted(fields.items())])
    own = derived(key, b"", _IDENTIFIES)
    return hmac.digest(own, text, "sha256")[:_ID_BYTES].hex()


def _name(owner: InlineCredentials) -> str:
    """What they are bound to, as a credential to its name; none of those has a blank in it."""
    return f"{owner.workflow_id} {owner.node_id} {owner.id}"


def _refuse_unfit(vault: Vault, node_id: str, connector: str, given: dict[str, str]) -> None:
    specs = vault.schemas.fields_of(connector)
    try:
        refuse_unfit_names(specs, given, connector=connector)
        refuse_unfit_values(given)
        refuse_unfit_whole(specs, given, connector=connector)
    except StackdError as error:
        error.message = f"credentials of node {node_id}: {error.message}"
        error.args = (error.message,)
        raise


def _refuse_foreign(tx: Tx, vault: Vault, owner: InlineCredentials) -> None:
    try:
        opened(tx, vault, owner)
    except StackdError:
        raise InputError(
            f"the credentials of node {owner.node_id} were left out of this document when it was exported, "
            f"and are not here for that workflow, node and connector",
            code="credential.sealed_elsewhere",
            hint="give them anew, or make a credential with `stackd credentials add` and name it by connection",
        ) from None
