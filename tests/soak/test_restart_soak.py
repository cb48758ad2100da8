"""Restarts under steady deliveries, the socket held by somebody else. By hand: `.venv/bin/pytest -n0 -s tests/soak -k restart`.

SOAK_RATE deliveries a second (200) for SOAK_SECONDS (30), a SIGTERM and a new start every SOAK_EVERY (3).
"""

from __future__ import annotations

import http.client
import os
import socket
import sys
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from support import activated, invariants
from support.daemon import DaemonProcess, FarSide, eventually

RATE = float(os.environ.get("SOAK_RATE", "200"))
SECONDS = float(os.environ.get("SOAK_SECONDS", "30"))
EVERY = float(os.environ.get("SOAK_EVERY", "3"))
AT_ONCE = 400  # deliveries that may wait: two seconds of them
FLOW = """
id: flow
nodes:
  - {{id: hook, type: trigger.webhook.inbound, params: {{path: flow}}}}
  - {{id: book, type: action.http.request,
     params: {{method: POST, url: "{url}/book", headers: {{x-execution: "{{{{ execution.id }}}}"}}}}}}
edges: [{{from: hook, to: book}}]
"""


@pytest.mark.timeout(0)
def test_restarts_at_full_rate_refuse_none_lose_none_and_run_none_again(tmp_path: Path) -> None:
    drains: list[float] = []
    with (
        socket.create_server(("127.0.0.1", 0), backlog=1024) as door,
        FarSide(delay=0.02).listening() as far_side,
    ):
        daemon = DaemonProcess(tmp_path / "state")
        daemon.files = (door.fileno(),)
        daemon.within = (sys.executable, str(activated.__file__), str(door.fileno()), "")
        daemon.port = door.getsockname()[1]
        try:
            daemon.start()
            daemon.load(FLOW.format(url=far_side.url))
            with ThreadPoolExecutor(AT_ONCE) as pool:
                sent = _send_and_restart(daemon, pool, drains)
            answers = [one.result() for one in sent]
            accepted = {execution for status, execution, _ in answers if status == "202"}
            eventually("all ended", lambda: _ended(daemon) >= len(accepted), within=120)
            with daemon.file() as raw:
                invariants.check(raw)
                (completed,) = raw.execute(
                    "SELECT count(*) FROM executions WHERE status = 'completed'"
                ).fetchone()
            assert daemon.terminate() == 0
        finally:
            daemon.kill()
    waits = sorted(seconds for *_, seconds in answers)
    statuses = Counter(status for status, *_ in answers)
    hits = Counter(hits for (path, _), hits in far_side.hits.items() if path == "/book")
    print(
        f"deliveries: {len(answers)} {dict(statuses)}  restarts: {len(drains)}  longest drain: {max(drains):.2f} s  "
        f"answer p50 {waits[len(waits) // 2] * 1000:.0f} ms, longest {waits[-1]:.2f} s  completed: {completed}"
    )
    assert set(statuses) == {"202"}
    assert completed == len(accepted) == len(answers)
    assert hits == Counter({1: len(accepted)})  # unsafe steps: each was sent, and once


def _send_and_restart(
    daemon: DaemonProcess, pool: ThreadPoolExecutor, drains: list[float]
) -> list[Future[tuple[str, str, float]]]:
    """Deliver at the rate, whatever becomes of it, and restart beside that; how long each end took is added."""
    sent: list[Future[tuple[str, str, float]]] = []
    restarting: Future[float] | None = None
    began = time.monotonic()
    restart_at = began + EVERY
    while (now := time.monotonic()) < began + SECONDS:
        while len(sent) < (now - began) * RATE:
            sent.append(pool.submit(_deliver, daemon))
        if restarting is None and now >= restart_at:
            restarting, restart_at = pool.submit(_restart, daemon), now + EVERY
        elif restarting is not None and restarting.done():
            drains.append(restarting.result())
            restarting = None
        time.sleep(0.001)
    if restarting is not None:
        drains.append(restarting.result())
    return sent


def _restart(daemon: DaemonProcess) -> float:
    began = time.monotonic()
    assert daemon.terminate() == 0
    took = time.monotonic() - began
    daemon.start()
    return took


def _deliver(daemon: DaemonProcess) -> tuple[str, str, float]:
    """Status or error, the execution, and how long it took."""
    began = time.monotonic()
    try:
        answer = daemon.http("POST", "/api/webhooks/flow", {"n": 1}, authorized=False)
    except (OSError, http.client.HTTPException) as error:
        return repr(error), "", time.monotonic() - began
    execution = answer.json["executionId"] if answer.status == 202 else ""
    return str(answer.status), execution, time.monotonic() - began


def _ended(daemon: DaemonProcess) -> int:
    with daemon.file() as raw:
        ended = "SELECT count(*) FROM executions WHERE finished_at IS NOT NULL"
        return int(raw.execute(ended).fetchone()[0])
