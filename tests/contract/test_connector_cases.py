"""The shipped connectors, each by its recorded cases: what is asked, and what comes of the answers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import anyio
import pytest

from stackd.core.errors import InputError
from stackd.core.redact import Redactor
from stackd.integrations.cases import (
    Case,
    CaseConnection,
    CaseRequest,
    CaseResponse,
    Exchange,
    Recorded,
    read_cases,
)
from stackd.integrations.catalogue import read_catalogue
from stackd.integrations.differences import LONGEST, Difference, differences
from stackd.integrations.manager import IntegrationManager
from stackd.integrations.registry import Options, Registry
from stackd.integrations.replay import replay
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
        f"{operation}: {case.name}": told
        for operation, cases in own.by_operation.items()
        for case in cases
        if (told := await replay(case, own, operation, manager(), app))
    }

    assert found == {}


# -- a case that does not hold is told


REPOSITORY = "https://api.github.com/repos/octo-org/hello"
GET = Exchange(
    request=CaseRequest(method="GET", url=REPOSITORY), response=CaseResponse(body={"id": 1})
)
PARAMS = {"owner": "octo-org", "repo": "hello"}
SECRET = "made-up-secret-0123456789"


async def differing(
    change: dict[str, Any], connection: CaseConnection | None = None
) -> list[Difference]:
    """What is told of a case of github's get_repository that would hold but for `change`."""
    case = Case.model_validate(
        {"name": "x", "params": PARAMS, "exchanges": (GET,), "output": {"id": 1}}
        | ({} if connection is None else {"connection": connection})
        | change
    )
    own = await anyio.to_thread.run_sync(recorded, "github")
    return await replay(case, own, "get_repository", manager(), "github")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, []),
        ({"output": {"id": 2}}, [("output.id", "2", "1")]),
        ({"output": {"id": True}}, [("output.id", "true", "1")]),
        ({"output": {"id": 2, "x": 3}}, [("output.id", "2", "1"), ("output.x", "3", None)]),
        ({"params": {**PARAMS, "repo": "bye"}}, [("request 1 address", REPOSITORY, REPOSITORY.replace("hello", "bye"))]),
        ({"exchanges": (GET, GET)}, [("request 2", f"GET {REPOSITORY}", None)]),
        ({"exchanges": ()}, [("request 1", None, f"GET {REPOSITORY}")]),
        ({"runtime": "python"}, [("request 1", f"GET {REPOSITORY}", None), ("end", 'output {"id":1}', "cases.no_handler: there is no handler")]),
    ],
    ids=["as recorded", "another value", "another type", "two", "another address", "too little", "too much", "no handler"],
)  # fmt: skip
async def test_what_differs_is_told_with_its_place(change: dict[str, Any], told: list[Any]):
    assert await differing(change) == [Difference(*one) for one in told]


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"method": "POST"}, ("method", "POST", "GET")),
        ({"query": {"a": "1"}}, ("query.a", '"1"', None)),
        ({"headers": {"Accept": "text/html"}}, ("header Accept", "text/html", "application/vnd.github+json")),
        ({"body": {"a": 1}}, ("body", '{"a":1}', "null")),
        ({"form": {"a": "1"}}, ("body", 'form {"a":"1"}', "body null")),
    ],
    ids=["method", "query", "header", "body", "kind of body"],
)  # fmt: skip
async def test_what_is_asked_otherwise_is_told(request_: dict[str, Any], told: Any):
    wanted = {"method": "GET", "url": REPOSITORY, **request_}
    change = {"exchanges": [{"request": wanted, "response": {"body": {}}}], "output": {}}

    assert await differing(change) == [Difference(*told).within("request 1 ")]


@pytest.mark.parametrize(
    ("wanted", "hidden"),
    [
        ("Bearer another-one", ("[REDACTED]", "Bearer [REDACTED]")),
        (f"Basic {SECRET}", ("Basic [REDACTED]", "Bearer [REDACTED]")),
    ],
    ids=["another", "in another way"],
)
async def test_no_secret_is_told(wanted: str, hidden: tuple[str, str]):
    request = {"method": "GET", "url": REPOSITORY, "headers": {"Authorization": wanted}}
    answer = {"body": {"id": SECRET}}
    change = {"exchanges": [{"request": request, "response": answer}]}

    told = await differing(change, CaseConnection(fields={"token": SECRET}))

    assert told == [
        Difference("request 1 header Authorization", *hidden),
        Difference("output.id", "[REDACTED]", '"[REDACTED]"'),
    ]


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ('[{"name": "x", "outptu": 1}]', "outptu"),
        ('[{"name": "x"', "not valid JSON at line 1"),
        ('[{"name": "x", "output": 1, "exchanges": [{"request": {"method": "GET", "url": "http://[::"}, "response": {}}]}]', "url must be whole"),
        ('[{"name": "x", "output": 1, "exchanges": [{"request": {"method": "GET", "path": "/"}, "response": {"body": {"$base64": "!"}}}]}]', "must be Base64"),
    ],
    ids=["unknown", "no JSON", "no address", "no Base64"],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_named_with_the_place(tmp_path: Path, case: str, told: str):
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "do.json").write_text(case)

    with pytest.raises(InputError, match=rf"cases/do.json: .*{told}"):
        read_cases(tmp_path)


def test_what_one_list_has_more_than_the_other_is_told():
    assert [*differences([1], [1, 2])] == [Difference("[1]", "2", None)]
    assert [*differences({"a": [1, {"b": 1}]}, {"a": [1, {"b": 2}]})] == [
        Difference(".a[1].b", "2", "1")
    ]


@pytest.mark.parametrize("end", ["x" * 1000, ""], ids=["another", "more"])
def test_long_texts_are_shown_where_they_part(end: str):
    same = "x" * 1000

    [told] = differences(f"{same}a{'x' * 1000}", f"{same}b{end}" if end else same)
    shown = told.without(Redactor([]))

    assert shown.recorded is not None
    assert shown.came is not None
    assert ("xb" if end else 'x"') in shown.recorded
    assert "xa" in shown.came
    assert len(shown.came) == LONGEST + len("……")
