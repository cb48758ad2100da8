"""`connectors lint`: each rule of the checklist finds what breaks it, and what is shipped keeps them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from stackd.integrations import backfill
from stackd.integrations.cases import read_cases
from stackd.integrations.catalogue import read_catalogue
from stackd.integrations.lint import RULES, lint_connector
from stackd.integrations.manager import IntegrationManager
from stackd.integrations.registry import Options, Registry
from stackd.integrations.replay import replay
from stackd.integrations.scaffold import new_connector
from stackd.integrations.tokens import MemoryTokens
from stackd.testing import FakeClock

CONNECTORS = Path(__file__).parents[2] / "connectors"
SHIPPED = sorted(path.parent.name for path in CONNECTORS.glob("*/definition.json"))

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The folder of a connector that is whole."""
    new_connector(tmp_path, "desk", name="Desk", base_url=None, way="bearer", force=False)
    path = tmp_path / "desk" / "definition.json"
    path.write_text(re.sub(r"TODO(: )?", "Of desks ", path.read_text()))
    return path.parent


def change(folder: Path, how: Change, file: str = "definition.json") -> None:
    path = folder / file
    content = json.loads(path.read_text())
    how(content)
    path.write_bytes(backfill.written(content))


def codes(folder: Path) -> list[str]:
    return [told.finding.code for told in lint_connector(folder).findings]


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shipped_is_bronze_without_a_remark(name: str) -> None:
    report = lint_connector(CONNECTORS / name)

    assert [(told.file, told.finding) for told in report.findings] == []
    assert report.grade == "bronze"


def test_nothing_of_what_is_shipped_is_left_for_backfill() -> None:
    assert backfill.patches(CONNECTORS, backfill.both) == []


def test_what_new_writes_lacks_only_what_its_author_knows(tmp_path: Path) -> None:
    new_connector(
        tmp_path, "desk", name=None, base_url="https://x.example", way="none", force=False
    )

    assert set(codes(tmp_path / "desk")) == {"connector.todo"}


@pytest.mark.parametrize("way", ["none", "bearer", "api_key", "basic"])
@pytest.mark.parametrize("base_url", [None, "https://api.example.com/v1"], ids=["own", "one"])
def test_the_cases_that_new_writes_hold(tmp_path: Path, way: Any, base_url: str | None) -> None:
    new_connector(tmp_path, "desk", name=None, base_url=base_url, way=way, force=False)
    registry = Registry(read_catalogue([tmp_path]), lambda: Options(generic=True))
    manager = IntegrationManager(registry, MemoryTokens(FakeClock()))
    recorded = read_cases(tmp_path / "desk")

    for case in recorded.by_operation["get_account"]:
        assert anyio.run(replay, case, recorded, "get_account", manager, "desk") == []


def the_action(definition: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = definition["actions"][0]
    return found


def action(**given: Any) -> Change:
    return lambda definition: the_action(definition).update(given)


def no_action(*names: str) -> Change:
    return lambda definition: [the_action(definition).pop(name) for name in names]


def parameter(name: str, **schema: Any) -> Change:
    def add(definition: dict[str, Any]) -> None:
        the_action(definition)["parameters"]["properties"][name] = {"description": "x", **schema}

    return add


def trigger(kind: str, **given: Any) -> Change:
    seen = {"key": ["item.id"], "window": {"items": 100, "age": "30d"}}
    poll = {
        "type": "polling", "endpoint": "/x", "method": "GET", "items": "body",
        "cursor": {"type": "none"}, "firstRun": "baseline", "interval": {"default": "5m", "min": "1m"},
    }  # fmt: skip
    webhook = {"type": "webhook", "verify": {"scheme": "hmac"}, "event": {"id": "body.id"}}
    whole = {
        "id": "made", "title": "Made", "description": "Made.", "parameters": {"type": "object"},
        "dedupe": seen, "outputSchema": {}, "sample": {}, "runtimes": ["http"], "fallback": None,
        **(poll if kind == "poll" else webhook), **given,
    }  # fmt: skip
    return lambda definition: definition["triggers"].append(
        {key: value for key, value in whole.items() if value is not ...}
    )


def listed(**more: Any) -> Change:
    return action(sample={"items": [], "meta": {}}, outputSchema={}, **more)


BROKEN: list[tuple[str, str, Change]] = [
    ("another id", "connector.id", lambda d: d.update(id="table")),
    ("no docs", "connector.about", lambda d: d.pop("docs")),
    ("a word of TODO", "connector.todo", lambda d: d.update(description="TODO")),
    ("a foreign key", "connector.unknown_key", lambda d: d.update(baseURL="https://x.example")),
    ("a foreign key within", "connector.unknown_key", lambda d: d["testConnection"].update(path="/")),
    ("no duration", "connector.invalid", lambda d: d["defaults"].update(timeout="soon")),
    ("a way in that is not supported", "connector.invalid", lambda d: d.update(authentication={"type": "digest"})),
    ("a claim", "connector.quality", lambda d: d.update(quality="gold")),
    ("a secret", "connector.secret", lambda d: d.update(description="as xoxb-1234")),
    ("a secret that is shown", "connection.secret", lambda d: d["connection"]["fields"]["properties"]["token"].pop("x-secret")),
    ("an address of its own", "connection.address", lambda d: d.pop("privateNetwork")),
    ("no test", "connection.test", lambda d: d.pop("testConnection")),
    ("a test that writes", "connection.test", lambda d: d["testConnection"].update(method="DELETE")),
    ("twice", "operation.id", lambda d: d["actions"].append(d["actions"][0])),
    ("an id in capitals", "operation.id", action(id="GetAccount")),
    ("no title", "operation.about", no_action("title")),
    ("no schema", "operation.parameters", action(parameters={"type": "objekt"})),
    ("required and not there", "operation.parameters", lambda d: the_action(d)["parameters"].update(required=["id"])),
    ("not described", "operation.parameters", parameter("id", description="")),
    ("a placeholder of nothing", "operation.placeholder", action(endpoint="/account/{id}")),
    ("a path parameter of nothing", "operation.placeholder", parameter("id", **{"x-in": "path"})),
    ("no expression", "operation.expression", action(select="body.[")),
    ("no template", "operation.expression", action(send={"query": {"q": "{{ params. }}"}})),
    ("no endpoint", "operation.endpoint", no_action("endpoint")),
    ("nothing to run it", "operation.endpoint", no_action("endpoint", "method")),
    ("no effect", "operation.effect", no_action("effect")),
    ("keyed by nothing", "operation.effect", action(effect="keyed")),
    ("a runtime that is not", "operation.runtimes", action(runtimes=["python", "http"])),
    ("no fallback", "operation.runtimes", no_action("fallback")),
    ("no sample", "operation.sample", no_action("sample")),
    ("another sample", "operation.sample", action(sample={"id": "x", "name": "y"})),
    ("a list without pages", "operation.paging", listed()),
    ("pages without a size", "operation.paging", listed(paginate={"type": "link"})),
    ("no key", "trigger.dedupe", trigger("poll", dedupe={"strategy": "cursor"})),
    ("no window", "trigger.dedupe", trigger("poll", dedupe={"key": ["item.id"]})),
    ("no cursor", "trigger.cursor", trigger("poll", cursor=...)),
    ("no interval", "trigger.cursor", trigger("poll", interval={"default": "5m"})),
    ("no verification", "trigger.event", trigger("webhook", verify=...)),
    ("no id of events", "trigger.event", trigger("webhook", event={})),
    ("catches up with nothing", "trigger.event", trigger("webhook", catchUp="other")),
]  # fmt: skip


@pytest.mark.parametrize(("code", "how"), [pytest.param(c, h, id=n) for n, c, h in BROKEN])
def test_what_breaks_a_rule_is_found_by_it(made: Path, code: str, how: Change) -> None:
    assert codes(made) == []

    change(made, how)

    assert code in codes(made)


@pytest.mark.parametrize("kind", ["poll", "webhook"])
def test_a_trigger_that_is_whole_breaks_none(made: Path, kind: str) -> None:
    change(made, trigger(kind))

    assert codes(made) == []


@pytest.mark.parametrize(
    ("source", "code", "told"),
    [
        (
            "import requests\n\nasync def get_account(params, ctx): ...\n",
            "handlers.network",
            "requests",
        ),
        (
            "def f():\n    from urllib.request import urlopen\n",
            "handlers.network",
            "urllib.request",
        ),
        ("async def get_acount(params, ctx): ...\n", "handlers.load", "'get_acount'"),
        ("async def (\n", "handlers.load", "SyntaxError"),
    ],
    ids=["a library", "inside a function", "of no action", "no Python"],
)
def test_handlers_that_are_not_as_they_must_be_are_told(
    made: Path, source: str, code: str, told: str
) -> None:
    (made / "handlers.py").write_text(source)
    (made / "handlers.py").chmod(0o644)

    found = {one.finding.code: one for one in lint_connector(made).findings}

    assert found[code].file == "handlers.py"
    assert told in found[code].finding.message


def test_a_handler_that_speaks_for_itself_may_use_what_it_speaks_with(made: Path) -> None:
    (made / "handlers.py").write_text(
        'TRANSPORT = "own"\nimport smtplib\nimport urllib.parse\n\nasync def get_account(p, c): ...\n'
    )
    (made / "handlers.py").chmod(0o644)
    change(made, action(runtimes=["python", "http"]))

    assert codes(made) == []


@pytest.mark.parametrize(
    ("how", "code"),
    [
        (lambda cases: cases.pop(0), "cases.success"),
        (lambda cases: cases.pop(1), "cases.failure"),
        (lambda cases: cases[0].update(outptu=1), "cases.invalid"),
        (lambda cases: cases[0].update(name="of ghp_abcdefgh"), "connector.secret"),
    ],
    ids=["no success", "no failure", "no case", "a secret"],
)
def test_cases_that_are_lacking_are_told(made: Path, how: Change, code: str) -> None:
    change(made, how, "cases/get_account.json")

    assert codes(made) == [code]


def test_a_paged_list_needs_a_case_of_an_empty_page(made: Path) -> None:
    change(made, listed(paginate={"type": "link", "size": {"query": "n", "max": 50}}))

    assert codes(made) == ["cases.empty"]


def test_a_file_of_cases_of_no_action_is_told(made: Path) -> None:
    (made / "cases" / "get_acount.json").write_text("[]\n")

    assert codes(made) == ["cases.invalid"]


@pytest.mark.parametrize(
    ("text", "place"),
    [(b'{\n  "id": "desk",\n}', (3, 1)), (b"\xff", (1, 1)), (b'{"a": 1,\n "a": 2}', (2, 2)), (b"[]", (1, 1))],
    ids=["a comma", "no UTF-8", "twice", "a list"],
)  # fmt: skip
def test_what_is_no_definition_is_told_with_its_place(
    made: Path, text: bytes, place: tuple[int, int]
) -> None:
    (made / "definition.json").write_bytes(text)

    (one,) = lint_connector(made).findings

    assert one.finding.code == "connector.unreadable"
    assert (one.finding.line, one.finding.column) == place


def test_a_finding_has_its_line_and_what_may_have_been_meant(made: Path) -> None:
    change(made, lambda d: d.update(categroy="x"))
    line = (made / "definition.json").read_text().splitlines().index('  "categroy": "x"') + 1

    (one,) = lint_connector(made).findings

    assert one.finding.line == line
    assert one.finding.hint == "did you mean 'category'?"


def test_how_it_is_written_is_a_warning_and_keeps_no_grade(made: Path) -> None:
    path = made / "definition.json"
    path.write_text(json.dumps(json.loads(path.read_text())))

    report = lint_connector(made)

    assert [one.finding.code for one in report.findings] == ["connector.format"]
    assert report.grade == "bronze"


def test_what_a_person_says_of_a_rule_holds_and_what_nobody_says_keeps_the_grade(
    made: Path,
) -> None:
    change(made, lambda d: d.update(rateLimits=[{"limit": 1, "per": "1s"}]))
    busy = {
        "name": "too many",
        "exchanges": [
            {"request": {"method": "GET", "path": "/account"}, "response": {"status": 429}}
        ],
        "error": {"code": "rate_limited"},
    }
    change(made, lambda cases: cases.append(busy), "cases/get_account.json")
    before = lint_connector(made)
    (made / "quality.json").write_text('{"requests.judged": {"done": "2026-11-02"}}')
    after = lint_connector(made)

    assert (before.grade, after.grade) == ("bronze", "silver")
    assert "requests.judged" in before.lacking
    assert "live.checked" in after.lacking


@pytest.mark.parametrize(
    "said",
    [
        '{"requests.jugded": {"done": "2026-11-02"}}',
        '{"requests.judged": {"done": "soon"}}',
        '{"requests.judged": {"exempt": " "}}',
        '{"connector.about": {"exempt": "x"}}',
        "{",
    ],
    ids=["no rule", "no date", "no reason", "bronze", "no JSON"],
)
def test_what_nobody_can_say_of_a_rule_is_an_error(made: Path, said: str) -> None:
    (made / "quality.json").write_text(said)

    assert codes(made) == ["connector.quality"]


def test_the_checklist_of_the_readme_is_the_one_that_is_held() -> None:
    text = (CONNECTORS / "README.md").read_text()
    rows = re.findall(r"^\| `([a-z_.]+)` \| (\w+) \| (.*) \|$", text, re.MULTILINE)

    assert rows == [
        (code, rule.grade, rule.about + ("; a person says so" if rule.by_hand else ""))
        for code, rule in RULES.items()
    ]
