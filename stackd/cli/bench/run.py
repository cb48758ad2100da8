"""All measurements, one JSON line per figure.

Figures stand beside a floor taken in the same run on the same disk, in turn with them: for the queue what plain
sqlite3 does with the same number of synced transactions, for the daemon a bare server that keeps each delivery
and runs nothing (`stackd/store/floor_server.py`). Machines differ and are noisy; the ratio carries over.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from stackd.cli.bench.connectors import measure_connectors
from stackd.cli.bench.growth import measure_growth
from stackd.cli.bench.idle import measure_idle
from stackd.cli.bench.queue import measure_queue
from stackd.cli.bench.sandbox import measure_sandbox
from stackd.cli.bench.shapes import measure_shapes
from stackd.cli.bench.steps import measure_http
from stackd.cli.bench.webhooks import measure_single, measure_webhooks
from stackd.cli.demo import run_until_signalled

Measure = Callable[[Path, float], Any]
MEASURES: Final[dict[str, Measure]] = {
    "queue": measure_queue,
    "webhook": measure_webhooks,
    "execution": measure_single,
    "shape": measure_shapes,
    "http": measure_http,
    "connectors": measure_connectors,
    "sandbox": measure_sandbox,
    "growth": measure_growth,
    "daemon": measure_idle,
}


def run_bench(*, only: str | None, scale: float) -> int:
    """Measure and print; 0 if every budget is held, else 1."""
    held = True
    for name, measure in MEASURES.items():
        if only is not None and only not in name:
            continue
        with _folder() as folder:
            for figure in run_until_signalled(measure, folder, scale, use_uvloop=True):
                held &= figure.is_within is not False
                print(json.dumps(figure.as_json()), flush=True)
    return 0 if held else 1


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="stackd-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
