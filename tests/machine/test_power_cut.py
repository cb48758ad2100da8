"""The power is cut in the middle of deliveries: what was acknowledged is there when the machine has booted again.

MACHINE_CUTS times (2).
"""

from __future__ import annotations

import os
import random

import pytest
from support.operated import SERVICE, STATE, Service, accepted

CUTS = int(os.environ.get("MACHINE_CUTS", "2"))
AT_A_TIME = 6
INTACT = f"""
import sqlite3
store = sqlite3.connect("{STATE}/stackd.db")
print(*[row[0] for row in store.execute("PRAGMA integrity_check")])
"""


@pytest.mark.parametrize("cut", range(CUTS))
def test_after_a_power_cut_all_that_was_acknowledged_is_there_and_ends(
    service: Service, cut: int
) -> None:
    machine = service.machine
    deliveries = random.Random(cut).randint(20, 200)
    unsynced = f"/srv/unsynced-{cut}"
    with service.delivering(AT_A_TIME) as running:
        running.lines(deliveries)
        machine.run("sh", "-c", f"head -c 100000 /dev/zero > {unsynced}")
        running.lines(running.stdout.count("\n") + 10)
        machine.cut_power()
        told = running.wait()

    machine.boot()

    assert service.shown("ActiveState") == "active"  # by itself
    assert service.shown("NRestarts") == "0"
    assert is_lost(service, unsynced), "nothing was lost with the power: this proves nothing"
    assert len(accepted(told)) >= deliveries
    service.all_complete(accepted(told))
    service.fits_together()
    service.until_ready()
    service.ctl("stop", SERVICE)
    assert machine.run("python3", "-c", INTACT).stdout == "ok\n"
    service.ctl("start", SERVICE)


def is_lost(service: Service, path: str) -> bool:
    """Whether the file is gone, or empty."""
    return service.machine.run("test", "-s", path, check=False).returncode != 0
