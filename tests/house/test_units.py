"""The shipped units: systemd finds nothing wrong with them, they expose little, and say what the code does."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stackd.cli import systemd
from stackd.cli.systemd import service_unit, socket_unit
from stackd.daemon import EXIT_CONFIG, INTERRUPT_WITHIN
from stackd.settings import Settings
from stackd.supervisor.herald import EXTENSION

EXPOSED_AT_MOST = 31  # tenths, of ten; what is left is what sandboxes need, and the network
PROGRAM = Path(sys.executable).with_name("stackd")
SHIPPED = Path(__file__).resolve().parents[2] / "config" / "systemd"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here"
)


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *words], capture_output=True, text=True, timeout=50, check=False
    )


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder with the units as they are installed."""
    (tmp_path / systemd.SERVICE).write_text(service_unit(PROGRAM, systemd.USER, systemd.STATE))
    (tmp_path / systemd.SOCKET).write_text(socket_unit(Settings()))
    return tmp_path


@needs_systemd
@pytest.mark.parametrize("with_socket", [True, False], ids=["with socket", "alone"])
def test_systemd_finds_nothing_wrong_with_the_units(units: Path, with_socket: bool):
    if not with_socket:
        (units / systemd.SOCKET).unlink()

    found = analyze("verify", "--man=no", *units.iterdir())

    assert (found.returncode, found.stdout + found.stderr) == (0, "")


@needs_systemd
def test_what_is_wrong_with_a_unit_is_found(units: Path):
    """Else the test above proves nothing."""
    (units / systemd.SERVICE).write_text(
        "[Service]\nExecStart=/bin/true\nRestartSteps=often\nOh=no\n"
    )

    assert "Oh" in analyze("verify", "--man=no", units / systemd.SERVICE).stderr


@needs_systemd
def test_the_service_exposes_no_more_than_it_needs(units: Path):
    threshold = f"--threshold={EXPOSED_AT_MOST}"
    found = analyze("security", "--offline=true", "--no-pager", threshold, units / systemd.SERVICE)

    assert found.returncode == 0, found.stdout


@needs_systemd
def test_the_dropin_is_understood_by_the_systemd_that_it_is_for(units: Path):
    version = re.search(r"systemd (\d+)", analyze("--version").stdout)
    assert version is not None
    if int(version[1]) < systemd.DROPIN_SINCE:
        pytest.skip(f"systemd {version[1]} is older than {systemd.DROPIN_SINCE}")
    dropins = units / f"{systemd.SERVICE}.d"
    dropins.mkdir()
    (dropins / systemd.DROPIN).write_text((SHIPPED / systemd.DROPIN).read_text())

    found = analyze("verify", "--man=no", units / systemd.SERVICE)

    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def values(name: str) -> list[str]:
    """What the shipped service sets `name` to."""
    return re.findall(rf"(?m)^{name}=(.*)$", (SHIPPED / systemd.SERVICE).read_text())


def test_the_shipped_service_has_what_is_replaced_in_it():
    assert values("ExecStart") == [f"{systemd.PROGRAM} start"]
    assert values("ExecReload") == [f"{systemd.PROGRAM} config reload"]
    assert values("User") == values("Group") == values("StateDirectory") == [systemd.USER]
    assert values("WorkingDirectory") == [str(systemd.STATE)]
    assert f"STACKD_STATE_DIR={systemd.STATE}" in values("Environment")
    assert values("LoadCredential") == [f"encryption_master_key:{systemd.KEY.name}"]


def test_the_shipped_service_knows_the_codes_and_times_of_the_daemon():
    assert values("RestartPreventExitStatus") == [str(EXIT_CONFIG)]
    (stop_within,) = (int(text.removesuffix("s")) for text in values("TimeoutStopSec"))
    assert stop_within > Settings().drain_timeout + 2 * INTERRUPT_WITHIN
    assert EXTENSION > 2 * INTERRUPT_WITHIN + 1


def test_another_user_and_state_are_all_that_differ():
    usual = service_unit(PROGRAM, systemd.USER, systemd.STATE).splitlines()

    below = service_unit(PROGRAM, "me", Path("/var/lib/mine/state")).splitlines()
    beside = service_unit(PROGRAM, "me", Path("/srv/mine")).splitlines()

    assert [line for line in below if line not in usual] == [
        "Environment=STACKD_STATE_DIR=/var/lib/mine/state",
        "User=me",
        "Group=me",
        "StateDirectory=mine/state",
        "WorkingDirectory=/var/lib/mine/state",
    ]
    assert [line for line in beside if line not in usual] == [
        "Environment=STACKD_STATE_DIR=/srv/mine",
        "User=me",
        "Group=me",
        "ReadWritePaths=/srv/mine",
        "WorkingDirectory=/srv/mine",
    ]
    assert not any(line.startswith("StateDirectory") for line in beside)


@pytest.mark.parametrize(
    ("host", "port", "listens"),
    [("127.0.0.1", 5000, "127.0.0.1:5000"), ("::1", 80, "[::1]:80"), ("0.0.0.0", 1, "0.0.0.0:1")],
)
def test_the_socket_unit_listens_where_the_settings_say(host: str, port: int, listens: str):
    text = socket_unit(Settings(HOST=host, PORT=port))

    assert re.findall(r"(?m)^ListenStream=(.*)$", text) == [listens]
