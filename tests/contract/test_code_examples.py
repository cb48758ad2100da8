"""The code in config/examples/code does what it says, in the sandbox."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from stackd.core.clock import SystemClock
from stackd.sandbox.run import Job
from stackd.sandbox.sandbox import Sandbox, SandboxOptions

FOLDER = Path(__file__).resolve().parents[2] / "config" / "examples" / "code"
EXAMPLES = sorted(FOLDER.glob("*.py"))


def said(source: str) -> dict[str, Any]:
    """What an example says of itself: `params` and, unless it needs a network, `result`."""
    text = ast.get_docstring(ast.parse(source), clean=False) or ""
    raw = source.partition('"""')[2].partition('"""')[0]  # as written: its backslashes are JSON's
    assert text
    lines = (line.partition(": ") for line in raw.splitlines())
    return {name: json.loads(value) for name, _, value in lines if name in ("params", "result")}


async def test_every_example_gives_what_it_says() -> None:
    async with Sandbox(SandboxOptions(mode="worker"), clock=SystemClock()) as sandbox:
        for path in EXAMPLES:
            source = await anyio.Path(path).read_text(encoding="utf-8")
            given = said(source)
            if "result" in given:
                outcome = await sandbox.run(Job(source, given["params"], {}, filename=path.name))
                assert outcome.result == given["result"], (path.name, outcome)


async def test_pages_are_asked_for_until_one_is_empty() -> None:
    asked = []

    async def answer(call: dict[str, Any]) -> dict[str, Any]:
        asked.append(call["url"])
        body = "WzEsIDJd" if len(asked) < 3 else "W10="  # [1, 2], []
        return {"status": 200, "headers": {}, "url": call["url"], "body": body}

    source = await anyio.Path(FOLDER / "all_pages.py").read_text(encoding="utf-8")
    async with Sandbox(SandboxOptions(mode="worker"), clock=SystemClock()) as sandbox:
        job = Job(source, said(source)["params"], {}, fetch=answer)
        outcome = await sandbox.run(job)

    assert outcome.result == [1, 2, 1, 2], outcome.error
    assert [url.rpartition("=")[2] for url in asked] == ["1", "2", "3"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_what_it_takes(path: Path) -> None:
    assert "params" in said(path.read_text(encoding="utf-8"))
