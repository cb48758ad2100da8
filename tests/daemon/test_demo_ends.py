"""However `stackd demo` or `stackd bench` ends, no daemon of theirs stays behind, and a folder only after a kill."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support.daemon import ENVIRON, eventually

pytestmark = pytest.mark.timeout(120)

ENDS_WITHIN = 5.0  # seconds; far less than a daemon may take to drain


@contextmanager
def command(
    folder: Path, *words: str, before: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """`stackd …` with its temporary files in `folder`."""
    with subprocess.Popen(
        [*before, sys.executable, "-m", "stackd", *words],
        env=ENVIRON | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            for one in daemons_in(folder):
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(one).kill()


def daemons_in(folder: Path) -> list[int]:
    """Processes whose state is in `folder`."""
    found = []
    for one in psutil.process_iter(["environ", "status"]):
        state = (one.info["environ"] or {}).get("STACKD_STATE_DIR", "")
        if Path(state).is_relative_to(folder) and one.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(one.pid)
    return found


def has_started(folder: Path) -> bool:
    return bool(daemons_in(folder))


def is_serving(folder: Path) -> bool:
    return any(any(folder.glob(place)) for place in ("*/stackd.sock", "*/ours/stackd.sock"))


@pytest.mark.parametrize(
    ("how", "moment"),
    [(signal.SIGINT, is_serving), (signal.SIGTERM, is_serving), (signal.SIGHUP, has_started)],
)
def test_a_demo_that_is_asked_to_end_leaves_nothing(
    tmp_path: Path, how: signal.Signals, moment: Callable[[Path], bool]
) -> None:
    with command(tmp_path, "demo", "--deliveries", "5000") as demo:
        eventually(moment.__name__, lambda: moment(tmp_path))

        demo.send_signal(how)
        told, errors = demo.communicate(timeout=ENDS_WITHIN)

    assert demo.returncode == 128 + how
    assert errors == ""
    assert told.startswith("starting the stack on ")
    assert daemons_in(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", [has_started, is_serving])
def test_a_killed_demo_takes_its_daemon_along(
    tmp_path: Path, moment: Callable[[Path], bool]
) -> None:
    with command(tmp_path, "demo", "--deliveries", "5000") as demo:
        eventually(moment.__name__, lambda: moment(tmp_path))

        demo.kill()
        demo.wait(ENDS_WITHIN)

        eventually("its daemon is gone", lambda: not daemons_in(tmp_path), within=ENDS_WITHIN)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_stays_ends_with_its_daemon_and_keeps_the_state(
    tmp_path: Path, how: signal.Signals
) -> None:
    with command(tmp_path, "demo", "--deliveries", "3", "--keep") as demo:
        until_it_stays(demo)
        assert daemons_in(tmp_path)

        demo.send_signal(how)
        demo.communicate(timeout=20)

        eventually("its daemon is gone", lambda: not daemons_in(tmp_path), within=ENDS_WITHIN)
        assert demo.returncode == (-how if how is signal.SIGKILL else 0)
    (state,) = tmp_path.iterdir()
    assert (state / "stackd.db").stat().st_size > 0


def test_a_demo_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    ignoring = (sys.executable, "-c", IGNORE_HANGUPS)
    with command(tmp_path, "demo", "--deliveries", "3", before=ignoring) as demo:
        eventually("it has started", lambda: has_started(tmp_path))

        demo.send_signal(signal.SIGHUP)
        told, _ = demo.communicate(timeout=60)

    assert demo.returncode == 0
    assert told.splitlines()[-1] == "lost: 0  doubled: 0  accepted: 3  completed: 3"


IGNORE_HANGUPS = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


def until_it_stays(demo: subprocess.Popen[str]) -> None:
    assert demo.stdout is not None
    assert demo.stderr is not None
    if not any("Ctrl-C ends it." in line for line in demo.stdout):
        raise AssertionError(f"it ended by itself:\n{demo.stderr.read()}")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_bench_that_ends_early_leaves_no_daemon(tmp_path: Path, how: signal.Signals) -> None:
    with command(tmp_path, "bench", "--only", "execution") as bench:
        eventually("it measures", lambda: is_serving(tmp_path))

        bench.send_signal(how)
        bench.communicate(timeout=20)

        eventually("its daemon is gone", lambda: not daemons_in(tmp_path), within=ENDS_WITHIN)
    if how is not signal.SIGKILL:
        assert bench.returncode == 128 + how
        assert list(tmp_path.iterdir()) == []
