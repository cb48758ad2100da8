"""Every statement of the queue and of executions finds its rows by an index, however many rows have ended.

SQLite plans without statistics here, as it does for us: nothing runs ANALYZE.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from stackd.access import statements as of_tokens
from stackd.queue import statements as of_jobs
from stackd.sandbox import statements as of_code
from stackd.store.migrations import migrate
from stackd.vault import statements as of_vault
from stackd.workflows import statements as of_workflows

ROWS = 3_000

# Tables and indexes that stay small: a walk over all of one is no fault.
FEW_ROWS = {
    "processes",
    "tokens",
    "vault_keys",
    "credentials",
    "code_nodes",
    "sqlite_schema",
    "json_each",
    "going",
    "counted",
    "CONSTANT",
}
LIVE_ROWS = {
    "jobs_available",
    "jobs_due",
    "jobs_live_dedupe",
    "jobs_live_subject",
    "jobs_on_probation",
    "jobs_running",
    "jobs_running_key",
    "jobs_waiting",
}

SORTS = {
    "COUNT_LIVE_BY_STATE": "groups every live row",
    "COUNT_ENDED_BY_STATE": "groups the ended rows that are kept; only the queue's status asks",
    "LIST_PROCESSES": "there is one row per process",
    "NODE_RUNS": "sorts the node runs of one execution",
    "MOST_TELLING_NODE_RUNS": "as above",
    "RUNNING_OWNERS": "there is one owner per process",
}
COUNTS_ALL = {"COUNT_ENDED_BY_STATE"}  # as above


def statements(module: ModuleType) -> dict[str, str]:
    return {
        name: text
        for name, text in vars(module).items()
        if name.isupper() and not name.startswith("_") and isinstance(text, str)
    }


ALL = (
    statements(of_jobs)
    | statements(of_workflows)
    | statements(of_tokens)
    | statements(of_vault)
    | statements(of_code)
)

# What a list narrows down by must be part of the search, or it reads back through everything else.
NARROWED_BY = {
    "LIST_EXECUTIONS_OF_WORKFLOW": "workflow_id=?",
    "LIST_EXECUTIONS_BY_STATUS": "status=?",
    "LIST_EXECUTIONS_OF_WORKFLOW_BY_STATUS": "status=?",
    "LIST_NOTICED_OF_WORKFLOW": "workflow_id=? AND status=?",
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A migrated file in which most rows have ended."""
    path: Path = tmp_path_factory.mktemp("plans") / "stackd.db"
    raw = sqlite3.connect(path, isolation_level=None)
    migrate(raw, path, now=0.0)
    raw.execute("BEGIN")
    raw.execute(
        "INSERT INTO workflows (id, name, version, active, created_at, updated_at)"
        " VALUES ('w', 'w', 1, 1, 0, 0)"
    )
    raw.execute("INSERT INTO workflow_versions VALUES ('w', 1, 'hash', x'', 0)")
    raw.executemany(
        "INSERT INTO jobs (kind, subject, state, priority, due_at, created_at, finished_at)"
        " VALUES ('execution.run', ?, iif(?1 % 10, 'completed', 'available'), 0, ?1, 0, iif(?1 % 10, 1, NULL))",
        ((n,) for n in range(ROWS)),
    )
    raw.executemany(
        "INSERT INTO executions (seq, id, workflow_id, version, status, trigger_type, trigger_node, input, created_at)"
        " VALUES (?, 'x' || ?1, 'w', 1, iif(?1 % 10, 'completed', 'running'), '', '', x'', 0)",
        ((n,) for n in range(ROWS)),
    )
    raw.executemany(
        "INSERT INTO node_runs (execution, key, type, status, attempt, effect)"
        " VALUES (?, 'n', 't', 'completed', 1, 'read')",
        ((n,) for n in range(ROWS)),
    )
    raw.execute("COMMIT")
    yield raw
    raw.close()


def plan(file: sqlite3.Connection, text: str) -> list[str]:
    parameters = (None,) * text.count("?")
    return [row[3] for row in file.execute(f"EXPLAIN QUERY PLAN {text}", parameters)]


def is_walk(step: str) -> bool:
    """Whether `step` reads a whole table or index that grows with what has ended."""
    scan = re.match(r"SCAN (\S+)(?: USING (?:COVERING )?INDEX (\S+))?", step)
    if scan is None or scan[1].startswith(
        "(subquery"
    ):  # how that finds its rows is a step of its own
        return False
    return scan[1] not in FEW_ROWS and scan[2] not in LIVE_ROWS


def test_file_has_no_statistics(file):
    assert not file.execute("SELECT 1 FROM sqlite_schema WHERE name LIKE 'sqlite_stat%'").fetchall()


@pytest.mark.parametrize(
    "name", [name for name in ALL if name not in COUNTS_ALL | NARROWED_BY.keys()]
)
def test_statement_walks_over_no_table_that_grows(file, name):
    steps = plan(file, ALL[name])

    assert [step for step in steps if is_walk(step)] == []
    if name not in SORTS:
        assert [step for step in steps if "TEMP B-TREE" in step] == []


@pytest.mark.parametrize("name", NARROWED_BY)
def test_list_is_narrowed_down_by_an_index(file, name):
    (step,) = plan(file, ALL[name])

    assert step.startswith("SEARCH executions ")
    assert NARROWED_BY[name] in step


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("FIND_")])
def test_what_looks_at_all_live_rows_looks_the_rest_up(file, name):
    """A walk for each of a hundred thousand rows, even over no more, takes minutes."""
    steps = [step for step in plan(file, ALL[name]) if step.startswith(("SCAN", "SEARCH"))]

    assert [step for step in steps[1:] if re.match("SCAN (?!k$)", step)] == []
    assert [step for step in steps if "PRIMARY KEY (rowid>?" in step] == []


@pytest.mark.parametrize(
    ("text", "walks"),
    [
        ("SELECT * FROM jobs WHERE error = ?", True),
        ("SELECT * FROM executions e WHERE created_at < ?", True),
        ("SELECT * FROM node_runs ORDER BY execution, key", True),
        ("SELECT * FROM jobs WHERE id = ?", False),
        ("SELECT id FROM jobs WHERE state = 'running'", False),
    ],
)
def test_a_walk_is_told_from_a_search(file, text, walks):
    assert any(is_walk(step) for step in plan(file, text)) is walks
