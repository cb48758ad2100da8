"""Four processes on one file, one of them killed every second. By hand: `.venv/bin/pytest tests/soak -k processes -s`.

SOAK_COUNT executions (10,000), kills for SOAK_SECONDS (60).
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import invariants
from support.daemon import DaemonProcess, FarSide, eventually

from stackd.core.errors import ApiError, NoAnswerError, UnreachableError

COUNT = int(os.environ.get("SOAK_COUNT", "10000"))
SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
SEED = int(os.environ.get("SOAK_SEED", "7"))
WORKERS = 3
FLOW = """
id: flow
nodes:
  - {{id: start, type: trigger.time.manual}}
  - {{id: book, type: action.http.request, effect: keyed,
     params: {{method: POST, url: "{url}/book", headers: {{x-execution: "{{{{ execution.id }}}}"}}}}}}
  - {{id: mail, type: action.http.request, effect: unsafe,
     params: {{method: POST, url: "{url}/mail", headers: {{x-execution: "{{{{ execution.id }}}}"}}}}}}
edges: [{{from: start, to: book}}, {{from: book, to: mail}}]
"""


@pytest.mark.timeout(0)
def test_whoever_is_killed_every_key_counts_once_and_nothing_is_stuck(tmp_path: Path) -> None:
    roll, state = random.Random(SEED), tmp_path / "state"
    stack = DaemonProcess(state)
    workers = [DaemonProcess(state, PORT="0") for _ in range(WORKERS)]
    kills: Counter[str] = Counter()
    with FarSide().listening() as far_side:
        try:
            stack.start()
            stack.load(FLOW.format(url=far_side.url))
            stack.api.post("/api/queue/pause")
            with ThreadPoolExecutor(8) as pool:
                ids = list(pool.map(lambda n: stack.begin("flow", n), range(COUNT)))
            for worker in workers:
                worker.spawn("worker")
            stack.api.post("/api/queue/resume")
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                time.sleep(1.0)
                victim = roll.choice([stack, *workers])
                victim.kill()
                kills["stack" if victim is stack else "worker"] += 1
                if victim is stack:
                    stack.spawn()
                else:
                    victim.spawn("worker")
            stack.until_ready()
            _settle(stack)
            rests = Counter(_statuses(stack).values())
            _skip_the_uncertain(stack)
            ends = _statuses(stack)
            for one in (*workers, stack):
                one.terminate()
            with stack.file() as raw:
                invariants.check(raw)
                assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        finally:
            for one in (stack, *workers):
                one.kill()
    print(f"executions: {COUNT}  kills: {dict(kills)}  rested: {dict(rests)}")
    assert set(ends) == set(ids)
    assert set(ends.values()) == {"completed"}
    assert {execution: {f"{execution}:book"} for execution in ids} == far_side.keys
    assert max(far_side.hits["/mail", execution] for execution in ids) <= 1
    never = [execution for execution in ids if not far_side.hits["/mail", execution]]
    assert len(never) <= rests["uncertain"]
    assert "database is locked" not in stack.log.read_text()
    assert not stack.unforeseen()


def _statuses(stack: DaemonProcess) -> dict[str, str]:
    with stack.file() as raw:
        return dict(raw.execute("SELECT id, status FROM executions"))


def _settle(stack: DaemonProcess) -> None:
    def is_still() -> bool:
        return not {"queued", "running"}.intersection(_statuses(stack).values())

    eventually("nothing is to be done any more", is_still, within=300.0)


def _skip_the_uncertain(stack: DaemonProcess) -> None:
    for execution, status in _statuses(stack).items():
        if status == "uncertain":
            _asked(stack, f"/api/executions/{execution}/resolve", {"decision": "skip"})
    _settle(stack)


def _asked(stack: DaemonProcess, path: str, body: Any) -> None:
    try:
        stack.api.post(path, body)
    except (ApiError, NoAnswerError, UnreachableError) as error:
        raise AssertionError(f"{path}: {error}") from error
