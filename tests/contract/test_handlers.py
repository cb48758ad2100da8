"""Files of handlers whose code does not come to an end."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
from support.connectors import action, write_connector

from stackd.integrations.catalogue import read_catalogue
from stackd.integrations.handlers import load_handlers
from stackd.integrations.registry import Options, Registry

NAME = "gate_of_this_test"
HANGS = f"""
import {NAME}
{NAME}.runs.append(1)
{NAME}.opened.wait()

async def look(params, ctx): ...
"""


class Gate(ModuleType):
    """What the code of a file comes by."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self.runs: list[int] = []
        self.opened = threading.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    made = Gate()
    monkeypatch.setitem(sys.modules, NAME, made)
    return made


def test_a_file_that_hangs_is_given_up_run_once_and_used_after_all_when_it_ends(
    tmp_path: Path, gate: Gate
) -> None:
    folder = write_connector(tmp_path, {"id": "desk", "actions": [action("look")]}, handlers=HANGS)
    path = folder / "handlers.py"

    first = load_handlers(path, within=0.01)
    registry = Registry(read_catalogue([tmp_path]), Options)  # at once: it waits for no limit again
    (issue, *_) = registry.capabilities("desk")[0].issues
    gate.opened.set()
    for thread in threading.enumerate():
        if thread.name == "handlers of desk":
            thread.join()
    last = load_handlers(path)

    assert "has not come to an end within 0.01 s" in (first.problem or "")
    assert (issue.code, "come to an end" in issue.message) == ("runtime.native_unavailable", True)
    assert (list(last.by_name), last.problem, gate.runs) == (["look"], None, [1])


def test_a_file_that_hangs_is_mended_by_writing_it_anew(tmp_path: Path, gate: Gate) -> None:
    definition = {"id": "desk", "actions": [action("look")]}
    path = write_connector(tmp_path, definition, handlers=HANGS) / "handlers.py"

    assert load_handlers(path, within=0.01).problem is not None
    write_connector(tmp_path, definition, handlers="async def look(params, ctx): ...\n")
    mended = load_handlers(path)
    gate.opened.set()

    assert (list(mended.by_name), mended.problem) == (["look"], None)
