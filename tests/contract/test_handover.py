"""Sockets that a service manager hands over: which are taken, and what is said of the others."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from stackd.core.errors import SettingsError
from stackd.core.handover import NAMES, Handover, handed_over, listening_sockets
from stackd.settings import take_handed


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def handing(*sockets: socket.socket) -> Handover:
    return Handover(files=tuple((sock.fileno(), f"one{i}") for i, sock in enumerate(sockets)))


def test_sockets_that_listen_are_taken_whatever_their_address(
    opened: ExitStack, tmp_path: Path
) -> None:
    tcp = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    unix = opened.enter_context(socket.socket(socket.AF_UNIX))
    unix.bind(str(tmp_path / "socket"))
    unix.listen()

    taken = listening_sockets(handing(tcp, unix))

    assert [sock.getsockname() for sock in taken] == [tcp.getsockname(), unix.getsockname()]
    assert [sock.family for sock in taken] == [socket.AF_INET, socket.AF_UNIX]
    assert not any(sock.getblocking() for sock in taken)
    for sock in taken:
        sock.detach()


def test_every_socket_that_cannot_be_served_on_is_named_with_what_is_wrong(
    opened: ExitStack, tmp_path: Path
) -> None:
    datagram = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    connected, _ = map(opened.enter_context, socket.socketpair())
    netlink = opened.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
    good = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    file = opened.enter_context((tmp_path / "file").open("w"))
    handover = handing(datagram, connected, netlink, good)
    closed = Handover(files=(*handover.files, (file.fileno(), "file"), (9999, "")))

    with pytest.raises(SettingsError) as caught:
        listening_sockets(closed)

    of = "that the service manager handed over"
    assert caught.value.problems == [
        f"the socket 'one0' {of} takes no connections; its unit needs ListenStream=",
        f"the socket 'one1' {of} does not listen; its unit needs Accept=no",
        f"the socket 'one2' {of} is neither one of TCP nor a Unix socket",
        f"the socket 'file' {of} is none (Socket operation on non-socket)",
        f"the socket '' {of} is none (Bad file descriptor)",
    ]
    assert good.getsockname()  # it is still the caller's


@pytest.mark.parametrize(
    ("told", "files"),
    [
        ({"LISTEN_FDS": "2", "LISTEN_PID": "me"}, ()),
        ({"LISTEN_FDS": "2", "LISTEN_PID": "1"}, ()),
        ({"LISTEN_FDS": "2"}, ()),
        ({"LISTEN_FDS": "many", "LISTEN_PID": str(os.getpid())}, ()),
        ({"LISTEN_FDS": "-1", "LISTEN_PID": str(os.getpid())}, ()),
        ({"LISTEN_PID": str(os.getpid())}, ()),
        ({}, ()),
    ],
)
def test_files_are_only_taken_by_the_process_that_they_are_meant_for(
    told: dict[str, str], files: tuple[tuple[int, str], ...]
) -> None:
    assert handed_over(told).files == files


def test_what_was_handed_over_is_taken_out_of_the_environment() -> None:
    environ = {**dict.fromkeys(NAMES, "1"), "HOME": "/nowhere"}

    assert take_handed(environ) == dict.fromkeys(NAMES, "1")
    assert environ == {"HOME": "/nowhere"}
