"""What stands where, beyond the imports that import-linter checks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "stackd"
MODULES = sorted(PACKAGE.rglob("*.py"))

# How each statement we could write begins; case as written, so that prose does not count.
SQL = re.compile(
    r"""\s*(
        SELECT\s | INSERT\s+(OR\s+\w+\s+)?INTO\s | REPLACE\s+INTO\s | UPDATE\s+\w+\s+SET\s
        | DELETE\s+FROM\s | WITH\s+(RECURSIVE\s+)?\w+\s+AS\s | (CREATE|DROP|ALTER)\s+\w+\s
        | PRAGMA\s | EXPLAIN\s | ANALYZE\b | VACUUM\b | ATTACH\s | REINDEX\b
        | BEGIN\b | COMMIT\b | ROLLBACK\b | SAVEPOINT\s | RELEASE\s
    )""",
    re.VERBOSE,
)
READS_ENVIRONMENT = {
    "settings.py",
    "sandbox/child/runner.py",
}  # the latter clears what a C library has set
HOMES = re.compile(r"(?<![\w.~])/(?:home|root|Users)/\w|[A-Z]:\\\\?Users\b")  # of whoever wrote it
TEXTS = ("stackd", "connectors", "config", "tests", ".ci")


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def strings(module: ast.Module) -> Iterator[ast.Constant]:
    """Every string constant, pieces of f-strings too, but no docstring."""
    documents = {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(module):
        match node:
            case ast.Constant(value=str()) if id(node) not in documents:
                yield node


def sql_in(module: ast.Module) -> list[str]:
    return [node.value.strip()[:60] for node in strings(module) if SQL.match(node.value)]


def reads_environment(module: ast.Module) -> bool:
    for node in ast.walk(module):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "environb" | "getenv"):
                return True
            case ast.ImportFrom(module="os", names=names):
                if {alias.name for alias in names} & {"environ", "environb", "getenv"}:
                    return True
    return False


def may_hold_sql(path: Path) -> bool:
    return path.name == "statements.py" or path.is_relative_to(PACKAGE / "store")


@pytest.mark.parametrize("path", [p for p in MODULES if not may_hold_sql(p)], ids=place)
def test_module_outside_the_store_holds_no_sql(path):
    assert sql_in(tree(path)) == []


def test_sql_is_found_where_it_may_stand():
    """Else the search above proves nothing."""
    found = [place(path) for path in MODULES if may_hold_sql(path) and sql_in(tree(path))]

    assert {"queue/statements.py", "workflows/statements.py", "store/database.py"} <= set(found)


@pytest.mark.parametrize(
    "source",
    [
        "x = 'SELECT 1'",
        "x = f'UPDATE jobs SET {y}'",
        "def f():\n    return 'INSERT OR IGNORE INTO t VALUES (1)'",
        "run('''\n  DELETE FROM t''')",
    ],
)
def test_a_statement_in_a_string_is_found(source):
    assert sql_in(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    ["'SELECT 1 is what this module is about'", "x = 'update the set, begin again'", "BEGIN = 1"],
)
def test_prose_is_no_statement(source):
    assert sql_in(ast.parse(source)) == []


def test_environment_is_read_in_settings_only():
    assert {place(path) for path in MODULES if reads_environment(tree(path))} == READS_ENVIRONMENT


def texts() -> Iterator[Path]:
    """The files of the project that people write, without what tools leave behind."""
    for name in TEXTS:
        yield from (
            path
            for path in (ROOT / name).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        )
    yield from (path for path in ROOT.iterdir() if path.suffix in {".md", ".toml", ".txt"})


def test_no_file_names_a_place_of_the_machine_it_was_written_on():
    here = str(ROOT)
    guilty = []
    for path in texts():
        text = path.read_text(errors="replace")
        if HOMES.search(text) or (len(ROOT.parts) > 2 and here in text):
            guilty.append(path.relative_to(ROOT).as_posix())

    assert guilty == []
