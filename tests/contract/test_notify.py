"""What a service manager hears of us, over a real socket; and that nobody waits for it or fails because of it."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

import pytest
from support.manager import Manager, listening

from stackd.core.handover import handed_over
from stackd.core.notify import STATUS_LENGTH, UNSENT, Notifier


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        str(tmp_path / "notify") if request.param == "path" else f"@stackd-{secrets.token_hex(8)}"
    )


def fill(manager: Manager) -> int:
    """Send until the manager's queue is full; how many went."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        for count in range(100_000):
            try:
                sock.sendto(b"FILLED=1", manager.address.replace("@", "\0", 1))
            except BlockingIOError:
                return count
    raise AssertionError("it is never full")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_each_word_is_told_as_the_protocol_has_it(address: str) -> None:
    with listening(address) as manager:
        notifier = Notifier(address)
        notifier.ready("ready: 5 services")
        notifier.status("degraded: worker restarting")
        notifier.reloading("reloading", at=12.3456789)
        notifier.stopping("draining")
        notifier.extend(2.5)
        notifier.beat()

        assert manager.hear() == [
            {"READY": "1", "STATUS": "ready: 5 services"},
            {"STATUS": "degraded: worker restarting"},
            {"RELOADING": "1", "MONOTONIC_USEC": "12345678", "STATUS": "reloading"},
            {"STOPPING": "1", "STATUS": "draining"},
            {"EXTEND_TIMEOUT_USEC": "2500000"},
            {"WATCHDOG": "1"},
        ]


def test_a_status_is_one_line_of_bounded_length(address: str) -> None:
    with listening(address) as manager:
        Notifier(address).status("a\nREADY=1\x1b" + "x" * STATUS_LENGTH)

        (heard,) = manager.hear()
        assert heard["STATUS"].startswith("a\\nREADY=1\\x1bxxx")
        assert len(heard["STATUS"]) == STATUS_LENGTH
        assert heard.keys() == {"STATUS"}


@pytest.mark.parametrize("address", [None, "", "relative", "vsock:2:1234"])
def test_nobody_is_told_where_no_manager_is(address: str | None) -> None:
    notifier = Notifier(address)

    notifier.ready("ready")
    notifier.beat()

    assert not notifier.is_heard


async def test_on_a_full_queue_nobody_waits_and_what_was_told_arrives_later_in_order(
    address: str,
) -> None:
    with listening(address) as manager:
        notifier = Notifier(address)
        full = fill(manager)

        notifier.ready("first")  # on the loop: the guard of this suite fails what would block it
        notifier.beat()
        notifier.status("second")
        assert len(manager.hear()) == full
        notifier.beat()

        assert manager.hear()[full:] == [
            {"READY": "1", "STATUS": "first"},
            {"STATUS": "second"},
            {"WATCHDOG": "1"},
        ]


def test_a_manager_that_is_gone_hears_the_latest_once_it_is_back(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "notify"))
    for number in range(2 * UNSENT):
        notifier.status(str(number))

    with listening(tmp_path / "notify") as manager:
        notifier.ready("ready")
        manager.hear()  # its queue may be shorter than what waited
        notifier.beat()

        assert manager.hear().pop() == {"WATCHDOG": "1"}
        heard = [message["STATUS"] for message in manager.hear()]
    assert heard == [*map(str, range(UNSENT, 2 * UNSENT)), "ready"]


def test_no_descriptor_is_left_open(address: str) -> None:
    with listening(address):
        before = descriptors()
        for _ in range(3):
            Notifier(address).beat()

        assert descriptors() == before


@pytest.mark.parametrize(
    ("told", "interval"),
    [
        ({"WATCHDOG_USEC": "20000000"}, 20.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}, 20.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "me"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_PID": str(os.getpid())}, None),
        ({}, None),
    ],
)
def test_watchdog_interval_is_what_is_meant_for_this_process(
    told: dict[str, str], interval: float | None
) -> None:
    assert handed_over(told).watchdog == interval
