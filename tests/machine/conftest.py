"""One machine for each file of this folder, and stackd installed in it as an operator would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.machine import Machine, hindrance, machine
from support.operated import SERVICE, Service

HINDRANCE = hindrance()
FOLDER = Path(__file__).parent
TIMEOUT = 1200.0  # seconds; the first test builds the disk


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.timeout(TIMEOUT))
            if HINDRANCE is not None:
                item.add_marker(pytest.mark.skip(reason=HINDRANCE))


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with machine(tmp_path_factory.mktemp("machine")) as running:
        yield running


@pytest.fixture(scope="module")
def service(booted: Machine) -> Service:
    """Installed, started, and with a workflow that takes deliveries."""
    ran = booted.stackd("systemd", "install", "--now")
    assert ran.stdout.splitlines()[-1] == f"started {SERVICE}"
    installed = Service(booted)
    installed.load()
    return installed


@pytest.fixture(autouse=True)
def journal(booted: Machine) -> Iterator[None]:
    """What the service and the kernel have said, for a test that fails. Restarts are counted anew for each."""
    booted.run("systemctl", "reset-failed")
    yield
    print(booted.journal("--lines=60", f"--unit={SERVICE}"))
    print(booted.journal("--lines=20", "--dmesg"))
