"""Log set-up: structlog, one line per event, JSON for machines and columns for people."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final, Literal, TextIO, cast

import structlog

from stackd.core.json import Json
from stackd.core.redact import LIVE
from stackd.core.text import plain

LINES_WAITING = (
    10_000  # lines that may wait for a slow reader; past this they are dropped and counted
)
LAST_WORDS = 1.0  # seconds the process waits at its end for a slow reader

_log = structlog.get_logger(__name__)


class LogSink:
    """A file descriptor written to by a thread: who logs never waits for the reader and never fails.

    The reader may be slow, stopped or gone, its disk full. What cannot wait is dropped, and a later line
    says how many were. Before `start`, lines wait.

    `report`: called with that number, on the thread.
    """

    def __init__(
        self, fd: int, report: Callable[[int], None], *, lines: int = LINES_WAITING
    ) -> None:
        self._fd = fd
        self._report = report
        self._room = lines
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to write; again: nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
            self._thread.start()

    def write(self, text: str) -> int:
        if self._lines.qsize() < self._room:
            self._lines.put(text)
        else:
            self._dropped += 1
        return len(text)

    def flush(self) -> None:
        """Nothing to do: the thread writes each line as it comes."""

    def close(self, timeout: float = LAST_WORDS) -> None:
        """Write what waits; give up after `timeout` seconds."""
        self._lines.put(None)
        if self._thread is not None:
            self._thread.join(timeout)

    def _write_all(self) -> None:
        while (text := self._lines.get()) is not None:
            with contextlib.suppress(OSError):
                self._write_one(text.encode(errors="backslashreplace"))
            if self._dropped and self._lines.qsize() <= self._room // 2:
                dropped, self._dropped = self._dropped, 0
                self._report(dropped)

    def _write_one(self, data: bytes) -> None:
        while data:  # a pipe takes a long line in parts
            data = data[os.write(self._fd, data) :]


def _say_dropped(lines: int) -> None:
    _log.warning("log lines dropped: their reader was too slow", lines=lines)


STDERR: Final = LogSink(2, _say_dropped)


def _plain(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What others wrote does nothing to the terminal; JSON escapes it by itself."""
    found = {key: plain(value) if isinstance(value, str) else value for key, value in event.items()}
    if isinstance(trace := event.get("exception"), str):  # its lines stay
        found["exception"] = "\n".join(plain(line) for line in trace.splitlines())
    return found


def _redacted(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """No secret that is in use here; what is no JSON is shown as the renderer would."""
    live = LIVE.get()
    if live is None:
        return event
    return {key: live.json(_shown(value)) for key, value in event.items()}


def _shown(value: object) -> Json:
    return value if isinstance(value, str | int | float | list | dict | None) else repr(value)


class _Redacting(logging.Filter):
    """The same for what libraries log."""

    def filter(self, record: logging.LogRecord) -> bool:
        if (live := LIVE.get()) is not None:
            text = record.getMessage()
            if record.exc_info:
                text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
            record.msg, record.args, record.exc_info = live.text(text), (), None
        return True


def configure_logging(*, level: str, style: Literal["json", "console"]) -> None:
    """Send every log line to standard error in `style`; ids bound with contextvars are on each line."""
    STDERR.start()
    atexit.register(STDERR.close)
    structlog.configure(
        processors=_processors(style),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", STDERR)),
        cache_logger_on_first_use=False,  # the level is reloadable
    )
    logging.basicConfig(
        level=logging.WARNING,
        format="%(levelname)s %(name)s %(message)s",
        stream=cast("TextIO", STDERR),
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Redacting())


def _processors(style: Literal["json", "console"]) -> list[structlog.typing.Processor]:
    found: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,  # others print local variables: secrets
        _redacted,
    ]
    if style == "json":
        return [*found, structlog.processors.JSONRenderer()]
    shown = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=32)
    return [*found, _plain, shown]


@contextlib.contextmanager
def logging_to(file: TextIO, *, level: str) -> Iterator[None]:
    """Within it what is logged at `level` or above goes to `file`, for people; afterwards where it went before."""
    before = structlog.get_config()
    structlog.configure(
        processors=_processors("console"),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=file),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def end_log() -> None:
    """Write what waits, as the interpreter's end does."""
    STDERR.close()


def set_log_level(level: str) -> None:
    """From now on, log what is of `level` or above."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
