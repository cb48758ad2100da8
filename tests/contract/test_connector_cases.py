"""The shipped connectors, each by its recorded cases: what is asked, and what comes of the answers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import anyio
import pytest

from stackd.core.errors import InputError
from stackd.integrations.cases import (
    Case,
    CaseRequest,
    CaseResponse,
    Exchange,
    Recorded,
    first_difference,
    problems_of,
    read_cases,
)
from stackd.integrations.catalogue import read_catalogue
from stackd.integrations.manager import IntegrationManager
from stackd.integrations.registry import Options, Registry
from stackd.integrations.tokens import MemoryTokens
from stackd.testing import FakeClock

CONNECTORS = Path(__file__).parents[2] / "connectors"
OPTIONS = Options(generic=True)
REGISTRY = Registry(read_catalogue([CONNECTORS]), lambda: OPTIONS)


@cache
def recorded(connector: str) -> Recorded:
    return read_cases(CONNECTORS / connector)


def manager() -> IntegrationManager:
    return IntegrationManager(REGISTRY, MemoryTokens(FakeClock()))


@pytest.mark.parametrize("app", [one.id for one in REGISTRY.catalogue.connectors])
async def test_every_case_holds(app: str):
    own = await anyio.to_thread.run_sync(recorded, app)
    found = {
        f"{operation}: {case.name}": problems
        for operation, cases in own.by_operation.items()
        for case in cases
        if (problems := await problems_of(case, own, operation, manager(), app))
    }

    assert found == {}


# -- a case that does not hold is told


GET = Exchange(
    request=CaseRequest(method="GET", url="https://api.github.com/repos/octo-org/hello"),
    response=CaseResponse(body={"id": 1}),
)
PARAMS = {"owner": "octo-org", "repo": "hello"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, []),
        ({"output": {"id": 2}}, ["output.id is 1, not 2"]),
        ({"output": {"id": True}}, ["output.id is 1, not true"]),
        ({"params": {**PARAMS, "repo": "bye"}}, ["request 1: address is https://api.github.com/repos/octo-org/bye, not https://api.github.com/repos/octo-org/hello"]),
        ({"exchanges": (GET, GET)}, ["was not asked: GET https://api.github.com/repos/octo-org/hello"]),
        ({"exchanges": ()}, ["request 1 is not recorded: GET /repos/octo-org/hello", "failed: cases.not_recorded: nothing is recorded"]),
    ],
    ids=["as recorded", "another value", "another type", "another address", "too little", "too much"],
)  # fmt: skip
async def test_what_differs_is_told_with_its_place(change: dict[str, Any], told: list[str]):
    case = Case.model_validate(
        {"name": "x", "params": PARAMS, "exchanges": (GET,), "output": {"id": 1}} | change
    )

    found = await problems_of(case, recorded("github"), "get_repository", manager(), "github")

    assert found == told


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"method": "POST"}, "method is GET, not POST"),
        ({"query": {"a": "1"}}, "query.a is missing"),
        ({"headers": {"Accept": "text/html"}}, "header Accept is 'application/vnd.github+json', not 'text/html'"),
        ({"body": {"a": 1}}, 'body is null, not {"a":1}'),
        ({"form": {"a": "1"}}, 'is sent with body null, not with form {"a":"1"}'),
    ],
    ids=["method", "query", "header", "body", "kind of body"],
)  # fmt: skip
async def test_what_is_asked_otherwise_is_told(request_: dict[str, Any], told: str):
    wanted = {"method": "GET", "url": "https://api.github.com/repos/octo-org/hello", **request_}
    case = Case.model_validate(
        {
            "name": "x",
            "params": PARAMS,
            "exchanges": [{"request": wanted, "response": {"body": {}}}],
            "output": {},
        }
    )

    found = await problems_of(case, recorded("github"), "get_repository", manager(), "github")

    assert found == [f"request 1: {told}"]


def test_a_file_that_cannot_be_used_is_named_with_the_place(tmp_path: Path):
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "do.json").write_text('[{"name": "x", "outptu": 1}]')

    with pytest.raises(InputError, match=r"cases/do.json: .*outptu"):
        read_cases(tmp_path)


def test_lists_of_different_length_differ():
    assert first_difference([1], [1, 2]) == " is [1], not [1,2]"
    assert first_difference({"a": [1, {"b": 1}]}, {"a": [1, {"b": 2}]}) == ".a[1].b is 1, not 2"
