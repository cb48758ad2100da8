"""The page of the expression language says what the language does: every example of its tables is run."""

from __future__ import annotations

import json
import re

import pytest
from support import documents

from stackd.workflows import compiler, expressions
from stackd.workflows.expressions import evaluate, parse_expression
from stackd.workflows.filters import instants, lists, patterns, values
from stackd.workflows.filters.table import FILTERS, TESTS
from stackd.workflows.scope import FUNCTIONS, NODE_FUNCTIONS, Scope

PAGE = (documents.ROOT / "stackd" / "workflows" / "README.md").read_text()
TABLES = {"Functions": FUNCTIONS | NODE_FUNCTIONS, "Filters": FILTERS, "Tests": TESTS}
SAMPLE = json.loads(PAGE.partition("```json\n")[2].partition("```")[0])
NOW = 1_700_000_000.123


def rows(title: str) -> list[list[str]]:
    """The cells of the table in the section `title`, without its head."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return cells[2:]


def code(cell: str) -> str:
    """What a cell holds that is one piece of code."""
    assert cell.startswith("`"), cell
    assert cell.endswith("`"), cell
    return cell.strip("`").replace("\\|", "|")


def link(node: str) -> str:
    return f"https://box.example/api/runs/0k/nodes/{node}/resume?token=5d&signature=9c"


EXAMPLES = [
    (code(example), code(gives))
    for title in ("Operators", *TABLES)
    for _, _, example, gives in rows(title)
]


@pytest.mark.parametrize(("example", "gives"), EXAMPLES, ids=[text for text, _ in EXAMPLES])
def test_example_gives_what_the_page_says(example, gives):
    expected = json.loads(gives)

    value = evaluate(parse_expression(example), Scope(SAMPLE, now=NOW, seed="page", link=link))

    assert json.dumps(value) == json.dumps(expected)  # so that 1, 1.0 and true differ


@pytest.mark.parametrize("title", TABLES)
def test_table_has_a_row_for_every_name_and_no_other(title):
    named = [name for row in rows(title) for name in re.findall(r"`([^`]+)`", row[0])]

    assert sorted(named) == sorted(TABLES[title])


@pytest.mark.parametrize("title", TABLES)
def test_example_uses_the_name_whose_row_it_is_in(title):
    names: list[str] = []
    for first, _, example, _ in rows(title):
        names = re.findall(r"`([^`]+)`", first) or names
        assert any(name in code(example) for name in names), example


def test_every_parameter_of_a_filter_is_on_the_page():
    told: dict[str, str] = {}
    name = ""
    for first, what, *_ in rows("Filters"):
        name = first.strip("`") or name
        told[name] = told.get(name, "") + what

    missing = [
        (name, parameter.name)
        for name, entry in FILTERS.items()
        for parameter in entry.parameters
        if parameter.name not in told[name]
    ]

    assert missing == []


def test_limits_are_those_of_the_code():
    limits = [
        expressions.MAX_TEXT,
        compiler.MAX_DEPTH,
        values.MAX_RESULT_BYTES,
        values.MAX_RENDERED_BYTES,
        values.MAX_STEPS,
        values.MAX_INTEGER_BITS,
        patterns.MAX_PATTERN,
        patterns.MAX_PROGRAM,
        lists.MAX_ATTRIBUTE,
        instants.MAX_FORMAT,
    ]

    assert [gives for _, gives in rows("Limits")] == [f"{limit:,}" for limit in limits]


def test_every_part_of_a_format_is_on_the_page():
    missing = [directive for directive in instants.DIRECTIVES if f"`{directive}`" not in PAGE]

    assert missing == []
