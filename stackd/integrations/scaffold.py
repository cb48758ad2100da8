"""`connectors new`: the files of a connector that is about to be written, whole but for what only its author knows."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final, Literal

from stackd.core.errors import ConflictError, InputError
from stackd.core.json import Json
from stackd.integrations.backfill import written
from stackd.integrations.catalogue import NAME
from stackd.integrations.definition import APP_ID

Way = Literal["none", "bearer", "api_key", "basic"]

_FIELDS: Final[dict[Way, dict[str, Any]]] = {
    "none": {},
    "bearer": {"token": {"type": "string", "title": "Token", "x-secret": True}},
    "api_key": {"apiKey": {"type": "string", "title": "API key", "x-secret": True}},
    "basic": {
        "username": {"type": "string", "title": "Name"},
        "password": {"type": "string", "title": "Password", "x-secret": True},
    },
}
_AUTH: Final[dict[Way, dict[str, Json]]] = {
    "none": {"type": "none"},
    "bearer": {"type": "bearer", "value": "{{ conn.token }}"},
    "api_key": {"type": "api_key", "in": "header", "name": "X-Api-Key", "value": "{{ conn.apiKey }}"},
    "basic": {"type": "basic", "username": "{{ conn.username }}", "password": "{{ conn.password }}"},
}  # fmt: skip


def new_connector(
    folder: Path, app_id: str, *, name: str | None, base_url: str | None, way: Way, force: bool
) -> list[Path]:
    """Write the connector `app_id` below `folder`, whole or not at all; the files that were written.

    Args:
        base_url: None: the address is a field of the connection, as of an app that people run themselves.

    Raises:
        InputError: `app_id` or `base_url` cannot be one.
        ConflictError: there is one, and it is not to be replaced.
    """
    if not re.fullmatch(APP_ID, app_id):
        raise InputError(
            f"{app_id!r} cannot be an id",
            code="connector.id",
            hint="small letters, digits, _ and -, a letter first, at most 64",
        )
    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise InputError(
            f"{base_url!r} is no address",
            code="connector.base_url",
            hint="--base-url https://api.example.com",
        )
    place = folder / app_id
    if place.exists() and not force:
        raise ConflictError(
            f"{place} is there already", code="connector.exists", hint="--force writes over it"
        )
    files = {
        NAME: _definition(app_id, name or app_id.replace("_", " ").title(), base_url, way),
        "cases/_connection.json": {"fields": _made_up(base_url, way)},
        "cases/get_account.json": _cases(base_url or "https://app.example"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{app_id}.", dir=folder))
    try:
        for path, content in files.items():
            (made / path).parent.mkdir(exist_ok=True)
            (made / path).write_bytes(written(content))
        made.chmod(0o755)
        if place.exists():
            _replace(place, made, list(files))
        else:
            made.rename(place)
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(made)
    return [place / path for path in files]


def _replace(place: Path, made: Path, files: list[str]) -> None:
    """Put each new file in the place of the old one; what else is there stays."""
    for path in files:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(made / path, place / path)  # noqa: PTH105


def _definition(app_id: str, name: str, base_url: str | None, way: Way) -> dict[str, Any]:
    own = base_url is None
    fields: dict[str, Any] = dict(_FIELDS[way])
    if own:
        address = {"type": "string", "format": "uri", "title": "Address"}
        fields = {"baseUrl": address, **fields}
    return {
        "id": app_id,
        "name": name,
        "description": f"TODO: what {name} is, in a sentence.",
        "category": "TODO",
        "version": "1.0.0",
        "docs": "TODO: the address of its API's documentation",
        "authentication": _AUTH[way],
        "connection": {
            "fields": {"type": "object", "required": list(fields), "properties": fields}
        },
        "baseUrl": "{{ conn.baseUrl }}" if own else base_url,
        **({"privateNetwork": True} if own else {}),
        "testConnection": {"endpoint": "/account", "method": "GET", "label": "{{ body.name }}"},
        "errors": [{"status": [404], "as": "not_found", "message": "{{ body.message }}"}],
        "defaults": {"timeout": "30s"},
        "actions": [_action()],
        "triggers": [],
    }


def _action() -> dict[str, Any]:
    sample = {"id": 1, "name": "Ada"}
    return {
        "id": "get_account",
        "title": "Get account",
        "description": "TODO: what it does, in a sentence.",
        "endpoint": "/account",
        "method": "GET",
        "effect": "read",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
        "outputSchema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "required": ["id", "name"],
            "properties": {"id": {"type": "integer"}, "name": {"type": "string"}},
        },
        "sample": sample,
        "runtimes": ["http"],
        "fallback": None,
    }


def _made_up(base_url: str | None, way: Way) -> dict[str, str]:
    fields = {name: f"made-up-{name}" for name in _FIELDS[way]}
    return {"baseUrl": "https://app.example", **fields} if base_url is None else fields


def _cases(base_url: str) -> list[dict[str, Any]]:
    asked = {"method": "GET", "url": f"{base_url.rstrip('/')}/account"}
    missing = {"status": 404, "body": {"message": "no such account"}}
    return [
        {
            "name": "the account",
            "params": {},
            "exchanges": [{"request": asked, "response": {"body": {"id": 1, "name": "Ada"}}}],
            "output": {"id": 1, "name": "Ada"},
        },
        {
            "name": "an account that is gone",
            "params": {},
            "exchanges": [{"request": asked, "response": missing}],
            "error": {"code": "not_found", "contains": "no such account"},
        },
    ]
