"""The state directory on a small disk that gets full: of space, of the reserve too, of inodes."""

from __future__ import annotations

import json

import pytest
from support.daemon import eventually
from support.machine import Machine
from support.operated import SERVICE, STATE, Service, accepted, others

DISK = "/srv/disk.img"
SIZE, INODES = "256M", "2048"  # more than what `disk` warns of
BALLAST = f"{STATE}/ballast"
RESERVE_BYTES = "16777216"
LARGE = json.dumps({"n": "n" * 500_000})  # what ends has as much again to store
WAITS = "waiting for the store"
# Until not a block is left.
FILL = """
mkdir -p "$1"; n=0
for size in 16M 1M 64K 4K; do
    while fallocate -l "$size" "$1/$size-$n" 2> /dev/null; do n=$((n + 1)); done
    rm -f "$1/$size-$n"
done
"""
# Until not a file more can be made.
FILL_WITH_FILES = 'mkdir -p "$1"; n=0; while true > "$1/$n"; do n=$((n + 1)); done 2> /dev/null; :'


@pytest.fixture(scope="module")
def service(booted: Machine) -> Service:
    """Installed, on a disk of its own that was mounted before."""
    booted.run("truncate", f"--size={SIZE}", DISK)
    booted.run("mkfs.ext4", "-q", "-m", "0", "-N", INODES, DISK)
    booted.run("mkdir", STATE)
    booted.run("mount", "-o", "loop", DISK, STATE)
    booted.stackd("systemd", "install", "--now")
    installed = Service(booted)
    installed.load()
    return installed


@pytest.fixture
def process(service: Service) -> int:
    """Which it is, ready and with its reserve."""
    service.until_ready()
    eventually("the reserve is made", lambda: reserve(service) == RESERVE_BYTES, within=60)
    return service.pid


def test_on_a_full_disk_nothing_new_is_taken_in_and_what_was_taken_in_ends(
    service: Service, process: int
) -> None:
    with service.delivering() as deliveries:
        deliveries.lines(40)
        fill(service)
        deliveries.until("507 ")
        unready, live = service.ask("/readyz?verbose"), service.ask("/livez")
        told = deliveries.end()

    assert (unready.status, live.status) == (503, 200)
    assert "disk is full" in unready.json["checks"]["store.space"]["reason"]
    assert others(told) == {"507 store.full"}
    service.all_complete(accepted(told))  # still on a full disk, in the reserve
    assert reserve(service) == "0"
    assert service.deliver().status == 507
    never_restarted(service, process)

    clear(service)
    eventually("a delivery is taken", lambda: service.deliver().status == 202, within=60)
    service.until_ready()
    service.fits_together()


def test_when_the_reserve_is_used_up_too_it_waits_for_space_and_goes_on(
    service: Service, process: int
) -> None:
    service.ask("/api/queue/pause", method="POST")
    large = {service.deliver(LARGE).json["executionId"] for _ in range(20)}
    with service.delivering() as deliveries:
        deliveries.lines(20)
        fill(service)
        deliveries.until("507 ")
        fill(service)  # with what the reserve has given
        service.ask("/api/queue/resume", method="POST")
        eventually("a run waits", lambda: WAITS in journal(service), within=60)
        unready = service.ask("/readyz?verbose")
        live = service.ask("/livez")
        deliveries.lines(deliveries.stdout.count("\n") + 100)
        told = deliveries.end()

    assert (unready.status, live.status) == (503, 200)
    assert "no space left" in unready.json["checks"]["store.write"]["reason"]
    assert others(told) == {"507 store.full"}
    waiting = {one for one, status in service.statuses().items() if status != "completed"}
    assert waiting & large
    never_restarted(service, process)

    clear(service)
    service.all_complete(accepted(told) | large)
    eventually("a delivery is taken", lambda: service.deliver().status == 202, within=60)
    service.until_ready()
    service.fits_together()
    never_restarted(service, process)


def test_without_an_inode_left_deliveries_are_taken_and_files_are_refused(
    service: Service, process: int
) -> None:
    service.machine.run("sh", "-c", FILL_WITH_FILES, "sh", BALLAST)
    assert service.machine.run("df", "--output=iavail", STATE).stdout.split()[1] == "0"

    taken = service.deliver()
    refused = service.deliver("\x00\x01" * 50_000, kind="application/octet-stream")
    warned = eventually(
        "it warns",
        lambda: (
            (a := service.ask("/readyz?verbose")).json["checks"]["disk"]["status"] == "warn" and a
        ),
        within=60,
    )

    assert taken.status == 202
    service.all_complete({taken.json["executionId"]})
    assert (refused.status, refused.json["code"]) == (507, "store.full")
    assert warned.status == 200
    assert "0 inodes free" in warned.json["checks"]["disk"]["reason"]
    never_restarted(service, process)
    clear(service)
    assert service.deliver("\x00\x01" * 50_000, kind="application/octet-stream").status == 202


def fill(service: Service) -> None:
    service.machine.run("sh", "-c", FILL, "sh", BALLAST)


def clear(service: Service) -> None:
    service.machine.run("rm", "-r", BALLAST)


def journal(service: Service) -> str:
    return service.machine.journal(f"--unit={SERVICE}")


def reserve(service: Service) -> str:
    """Its size."""
    words = ("stat", "--format=%s", f"{STATE}/stackd.db.reserve")
    return service.machine.run(*words, check=False).stdout.strip()


def never_restarted(service: Service, process: int) -> None:
    assert service.shown("ActiveState") == "active"
    assert service.shown("NRestarts") == "0"
    assert service.pid == process
