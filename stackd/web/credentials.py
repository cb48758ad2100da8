"""`/api/credentials`: make, list, show, change, test, remove. No answer holds a secret.

Looking takes the scope `read`: who writes workflows has to know the names. A test takes `write`: it
sends what is sealed to its app. Whatever changes one takes `admin`, as
tokens do: who may point a credential's public fields elsewhere, as its host, gets to see what is sealed in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import anyio
from aiohttp import web

from stackd.access.tokens import Scope
from stackd.client.models import (
    CredentialChange,
    CredentialError,
    CredentialList,
    CredentialTest,
    CredentialView,
    PublicField,
    SecretField,
)
from stackd.client.models import NewCredential as NewCredentialBody
from stackd.core.aside import aside_if
from stackd.core.clock import rfc3339
from stackd.core.errors import InputError
from stackd.core.json import LARGE, Json, dumps, loads
from stackd.vault import credentials, envelope
from stackd.vault.records import Change, CredentialRow, NewCredential, TestResult
from stackd.web.auth import caller_of
from stackd.web.context import limit_of, of, switch_of
from stackd.web.route import CURSOR, LIMIT, Query, Route
from stackd.web.workflows import members_of


async def create_credential(request: web.Request) -> web.Response:
    context = of(request)
    with context.bodies.of(request) as body:
        given = await members_of(body, "id", "connector", "auth", "fields", "public")
        size = sum(map(len, given.values()))
        fields = await _fields_in(given)
    wanted = NewCredential(
        _text_in(given, "id"),
        _text_in(given, "connector"),
        _auth_in(given),
        {name: text for name, text in fields.items() if text is not None},
        _names_in(given),
    )
    if len(wanted.fields) < len(fields):
        raise InputError("a field of a new credential has a text", code="credential.field_value")
    now, by = context.clock.time(), caller_of(request).name
    await anyio.to_thread.run_sync(
        envelope.load
    )  # not on the writer's thread, where all would wait
    row = await context.store.write(
        lambda tx: credentials.create(tx, context.vault, wanted, by=by, now=now), size_bytes=size
    )
    return _answer(row, status=201)


async def change_credential(request: web.Request) -> web.Response:
    context, credential_id = of(request), request.match_info["id"]
    with context.bodies.of(request) as body:
        given = await members_of(body, "fields", "public", "auth", "version")
        size = sum(map(len, given.values()))
        fields = await _fields_in(given)
    change = Change(fields, _names_in(given), auth=_auth_in(given), sets_auth="auth" in given)
    expected = loads(given.get("version", b"null"))
    if expected is not None and type(expected) is not int:
        raise InputError("version must be a whole number", code="input.version")
    now, by = context.clock.time(), caller_of(request).name
    await anyio.to_thread.run_sync(envelope.load)
    row = await context.store.write(
        lambda tx: credentials.replace(
            tx, context.vault, credential_id, change, by=by, now=now, expected_version=expected
        ),
        size_bytes=size,
    )
    return _answer(row)


async def list_credentials(request: web.Request) -> web.Response:
    context, limit = of(request), limit_of(request)
    after = request.query.get("cursor", "")
    rows = await context.store.read(
        lambda tx: credentials.listed(tx, context.vault, after=after, limit=limit + 1)
    )
    page = CredentialList(
        items=[_view(row) for row in rows[:limit]],
        next_cursor=rows[limit - 1].id if len(rows) > limit else None,
    )
    return web.Response(body=dumps(page.as_json()), content_type="application/json")


async def show_credential(request: web.Request) -> web.Response:
    context, credential_id = of(request), request.match_info["id"]
    row = await context.store.read(lambda tx: credentials.get(tx, context.vault, credential_id))
    return _answer(row)


async def test_credential(request: web.Request) -> web.Response:
    await anyio.to_thread.run_sync(envelope.load)
    tests, credential_id = of(request).credential_tests, request.match_info["id"]
    operation = request.query.get("operation")
    if operation is not None:
        result = await tests.try_operation(
            credential_id, operation, writes=switch_of(request, "writes")
        )
    else:
        result = await tests.test(credential_id, by=caller_of(request).name)
    body = dumps(_test_view(result).as_json())
    return web.Response(body=body, content_type="application/json")


async def remove_credential(request: web.Request) -> web.Response:
    credential_id, by = request.match_info["id"], caller_of(request).name
    await of(request).store.write(lambda tx: credentials.remove(tx, credential_id, by=by))
    return web.Response(status=204)


def _answer(row: CredentialRow, *, status: int = 200) -> web.Response:
    body = dumps(_view(row).as_json())
    return web.Response(status=status, body=body, content_type="application/json")


def _view(row: CredentialRow) -> CredentialView:
    shown: dict[str, SecretField | PublicField] = {name: SecretField() for name in row.secret}
    shown |= {name: PublicField(value=text) for name, text in row.public.items()}
    return CredentialView(
        id=row.id,
        connector=row.connector,
        auth=row.auth,
        fields=dict(sorted(shown.items())),
        created_at=rfc3339(row.created_at) or "",
        updated_at=rfc3339(row.updated_at) or "",
        version=row.version,
        reconnect=row.reconnect,
        test=None if row.test is None else _test_view(row.test),
    )


def _test_view(result: TestResult) -> CredentialTest:
    error = result.error
    return CredentialTest(
        ok=result.ok,
        tested_at=rfc3339(result.tested_at) or "",
        status=result.status,
        error=None if error is None else CredentialError(code=error[0], message=error[1]),
        label=result.label,
    )


# -- what was sent; no message shows a value


async def _fields_in(given: Mapping[str, bytes]) -> dict[str, str | None]:
    text = given.get("fields", b"{}")
    fields: Json = await aside_if(len(text) > LARGE, loads, text)
    if not isinstance(fields, dict):
        raise InputError("fields must be a map of names and texts", code="credential.field_value")
    if not all(value is None or isinstance(value, str) for value in fields.values()):
        raise InputError(
            "each of the fields must be a text",
            code="credential.field_value",
            hint="give a structured value, such as a pair of tokens, as the text of its JSON",
        )
    return fields


def _text_in(given: Mapping[str, bytes], name: str) -> str:
    value = loads(given.get(name, b"null"))
    if not isinstance(value, str):
        what = "is missing" if value is None else "must be text"
        raise InputError(f"{name} {what}", code=f"credential.{name}")
    return value


def _auth_in(given: Mapping[str, bytes]) -> str | None:
    return None if loads(given.get("auth", b"null")) is None else _text_in(given, "auth")


def _names_in(given: Mapping[str, bytes]) -> list[str]:
    names = loads(given.get("public", b"[]"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError("public must be a list of names", code="credential.field_name")
    return names


ROUTES: Final = (
    Route(
        "GET", "/api/credentials", list_credentials, Scope.READ, "Credentials by id, without secrets",
        {200: CredentialList}, query=(LIMIT, CURSOR),
    ),
    Route(
        "POST", "/api/credentials", create_credential, Scope.ADMIN,
        "Make a credential; its secrets are sealed, and shown in no answer", {201: CredentialView},
        takes=NewCredentialBody,
    ),
    Route(
        "GET", "/api/credentials/{id}", show_credential, Scope.READ, "A credential, without its secrets",
        {200: CredentialView},
    ),
    Route(
        "PATCH", "/api/credentials/{id}", change_credential, Scope.ADMIN,
        "Set the fields that are given, remove those given as null; all others stay",
        {200: CredentialView}, takes=CredentialChange,
    ),
    Route(
        "POST", "/api/credentials/{id}/test", test_credential, Scope.WRITE,
        "Show the credential to its app, by the request that the connector names for that",
        {200: CredentialTest},
        query=(
            Query("operation", {"type": "string"}, "by that action instead, which needs no parameter"),
            Query("writes", {"type": "boolean"}, "also by one that does more than read"),
        ),
    ),
    Route(
        "DELETE", "/api/credentials/{id}", remove_credential, Scope.ADMIN,
        "Remove a credential with its secrets", {204: None},
    ),
)  # fmt: skip
