"""Commands print through one place, which lets no text from outside do anything to a terminal."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CLI = Path(__file__).resolve().parents[2] / "stackd" / "cli"
PRINTS = {"context.py"}
OWN_WORDS = {"demo.py", "bench.py"}  # what they print is theirs, down to the last word


def prints(tree: ast.Module) -> list[int]:
    """The lines that write to a standard stream."""
    found = []
    for node in ast.walk(tree):
        match node:
            case (
                ast.Call(func=ast.Name(id="print"))
                | ast.Call(func=ast.Attribute(attr="echo" | "secho"))
                | ast.Call(
                    func=ast.Attribute(
                        value=ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr"),
                        attr="write",
                    )
                )
            ):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda path: path.name)
def test_a_command_prints_through_the_one_place_for_it(path: Path) -> None:
    may_print = path.name in PRINTS | OWN_WORDS

    assert bool(prints(ast.parse(path.read_text()))) is may_print
