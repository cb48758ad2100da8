"""Ten thousand slow clients and uploads without end, for minutes. By hand: `.venv/bin/pytest tests/soak -k flood -s`."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from daemon.test_flood import CROWD, ECHO, MIB, SLOW, upload
from support.beside import p99
from support.crowd import coming
from support.daemon import DaemonProcess, running

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
UPLOADERS = 4  # at a time, of a gibibyte each, who do not listen
NEWCOMERS = 2000  # slow ones a second


def deliveries(daemon: DaemonProcess, seconds: float) -> list[float]:
    """How long each took, in seconds, one after another; each must be taken."""
    took: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        assert daemon.deliver("echo", {"n": len(took)}).status == 200
        took.append(time.monotonic() - began)
    return took


def upload_again(port: int, until: float) -> int:
    """Bytes that were sent, one refused upload after another."""
    sent = 0
    while time.monotonic() < until:
        sent += upload(port, "/api/webhooks/echo", chunked=True, listens=False).sent
    return sent


def told(name: str, daemon: DaemonProcess, took: list[float]) -> None:
    middle = sorted(took)[len(took) // 2]
    print(
        f"{name}: {len(took)} deliveries, p50 {middle * 1000:.1f} ms, p99 {p99(took) * 1000:.1f} ms,"
        f" longest {max(took) * 1000:.0f} ms, RSS {daemon.memory() / MIB:.0f} MiB"
    )


@pytest.mark.timeout(0)
def test_a_flood_of_minutes_harms_nobody_else(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        daemon.load(ECHO)
        told("before", daemon, deliveries(daemon, 5))
        before = daemon.memory()
        with coming(daemon.port, SLOW, CROWD, newcomers=NEWCOMERS) as crowd:
            told(f"{crowd['clients']} slow clients", daemon, deliveries(daemon, SECONDS))
            with ProcessPoolExecutor(UPLOADERS, get_context("spawn")) as pool:
                until = time.monotonic() + SECONDS / 4 + 2
                uploads = [pool.submit(upload_again, daemon.port, until) for _ in range(UPLOADERS)]
                took = deliveries(daemon, SECONDS / 4)
                sent = sum(one.result() for one in uploads)
            told(f"and {sent / MIB / 1024:.1f} GiB uploaded", daemon, took)
            grown = daemon.memory() - before
        told("after", daemon, deliveries(daemon, 5))
        print(crowd)
        assert grown < 100 * MIB
