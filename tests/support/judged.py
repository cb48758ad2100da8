"""Requests of imported documents and of shipped connectors, for a server that judges them by the document."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest

from stackd.core.errors import NodeError
from stackd.integrations.account import Account
from stackd.integrations.definition import App, Operation
from stackd.integrations.importer.document import import_document
from stackd.integrations.importer.reading import read_file
from stackd.integrations.importer.report import Report
from stackd.integrations.importer.samples import synthesised
from stackd.integrations.plan import Plan
from support.desk import CONNECTORS, Desk, shipped
from support.foreign import Foreign

FOLDER = os.environ.get("STACKD_TEST_OPENAPI_DIR", "")

Asked = tuple[Plan, dict[str, Any]]


def document(name: str) -> Path:
    """A document that a service publishes. They are no part of the project: a folder of them is named."""
    path = Path(FOLDER) / name
    if not FOLDER or not path.is_file():
        pytest.skip(f"STACKD_TEST_OPENAPI_DIR names no folder with {name}")
    return path


class Imported:
    """A document as it was imported, its app at `server`."""

    def __init__(self, name: str, server: Foreign) -> None:
        report = Report()
        made = import_document(read_file(document(name), report), "tried", report).definition
        assert made is not None
        self.made = made
        base = str(made["baseUrl"]).replace("{{ conn.baseUrl }}", "http://it")
        self.url = server.url + urlsplit(base).path
        self._app = App.model_validate(made).model_copy(update={"base_url": self.url})

    def requests(self, *, auth: str | None) -> Iterator[Asked]:
        """Each operation with values for all that it takes, made of their schemas. `auth`: as of operations."""
        for one in self.made["actions"]:
            operation = Operation.model_validate({**one, "baseUrl": None, "auth": auth})
            plan = Plan(self._app, operation)
            members = one["parameters"]["properties"]
            values = {
                key: synthesised(schema, self._app.schemas) for key, schema in members.items()
            }
            yield plan, plan.schema.fitted(values)


async def recorded(connector: str, *, at: str | None = None) -> list[Asked]:
    """What the recorded cases of a shipped connector ask for, where they succeed. `at`: as of `shipped`."""

    def read() -> list[tuple[str, dict[str, Any]]]:
        return [
            (path.stem, case["params"])
            for path in sorted((CONNECTORS / connector / "cases").glob("[a-z]*.json"))
            for case in json.loads(path.read_bytes())
            if "error" not in case
        ]

    found = []
    for name, params in await anyio.to_thread.run_sync(read):
        plan = await shipped(connector, name, at=at)
        found.append((plan, plan.schema.fitted(params)))
    return found


async def refused(desk: Desk, asked: Iterator[Asked], account: Account) -> tuple[int, list[str]]:
    """How many were taken, and what was wrong with the others."""
    taken, told = 0, []
    for plan, params in asked:
        try:
            await desk.run(plan, params, account)
            taken += 1
        except NodeError as error:
            told.append(f"{plan.operation.id}: {error.message}")
    return taken, told
