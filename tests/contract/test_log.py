"""The log sink on a real pipe: its reader may be slow, stopped or gone."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from stackd.core.log import LogSink

LINE = "x" * 1023 + "\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        with contextlib.suppress(OSError):  # a test may have closed it
            os.close(fd)


def read_all(fd: int) -> str:
    with open(fd, closefd=False) as file:
        return file.read()


def ignore(_: int) -> None:
    pass


def test_every_line_arrives_in_order(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = LogSink(writer, ignore)
    sink.start()
    for number in range(1000):
        sink.write(f"{number}\n")
    sink.close(10)
    os.close(writer)
    assert read_all(reader).split() == [str(number) for number in range(1000)]


def test_a_reader_that_does_not_read_holds_up_nobody_and_is_told_what_it_missed(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    missed: queue.Queue[int] = queue.Queue()
    sink = LogSink(writer, missed.put, lines=100)
    for _ in range(150):  # until it starts, lines wait
        sink.write(LINE)
    sink.start()
    told = missed.get(timeout=10)  # once half of those that waited are in the pipe
    assert told == 50

    for _ in range(1000):  # a pipe holds 64 KiB: were a write waited for, this would never return
        sink.write(LINE)
    with ThreadPoolExecutor(1) as threads:
        read = threads.submit(read_all, reader)
        sink.close(10)
        os.close(writer)

    while not missed.empty():  # told whenever there is room, so perhaps in parts
        told += missed.get()
    assert told >= 1150 - 100 - 65
    assert read.result().count("\n") + told == 1150


def test_lines_without_a_reader_are_forgotten(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    sink = LogSink(writer, ignore)
    sink.start()
    for _ in range(10):
        sink.write(LINE)
    sink.close(10)


def test_what_cannot_be_encoded_is_escaped(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = LogSink(writer, ignore)
    sink.start()
    sink.write("a\ud800b\n")
    sink.close(10)
    os.close(writer)
    assert read_all(reader) == "a\\ud800b\n"


def test_a_log_for_people_shows_what_others_wrote_and_does_not_obey_it() -> None:
    code = (
        "import structlog; from stackd.core.log import configure_logging\n"
        "configure_logging(level='info', style='console')\n"
        "structlog.get_logger().info('refused', reason='\\x1b[2Jgone\\n', count=2)"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)

    (line,) = ran.stderr.decode().splitlines()
    assert r"\x1b[2Jgone\n" in line
    assert "count=2" in line
