"""What commands share: how to reach the daemon, and how to print.

All that a command prints goes through here, so that text from outside is shown and never obeyed: by the
terminal, or by what reads our lines.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar

import typer

from stackd.cli.columns import GAP, Column, fitted
from stackd.client.api import Api
from stackd.core.errors import InputError, StackdError
from stackd.core.json import loads_strict
from stackd.core.text import plain, plain_json
from stackd.settings import connection_settings

if TYPE_CHECKING:
    from stackd.client.client import Client

T = TypeVar("T")
Line = list[tuple[str, str]]  # texts and the styles they have on a terminal

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether it is meant.")]


class OutputError(StackdError):
    """Standard output cannot be written."""

    code = "output.failed"


@dataclass(slots=True)
class _Debug:
    on: bool = False


DEBUG = _Debug()


def daemon() -> Api:
    """The daemon that the settings name: STACKD_URL if set, else the Unix socket of the state directory.

    Raises:
        InputError: STACKD_URL or STACKD_TOKEN cannot be used.
    """
    return Api(**_place())


def client(timeout: float) -> Client:
    """As `daemon`, for what is asked for with an event loop. `timeout`: seconds without a byte of an answer."""
    from stackd.client.client import Client

    return Client(**_place(), timeout=timeout)


def _place() -> dict[str, Any]:
    place = connection_settings()
    if place.url is not None:
        return {"url": place.url, "token": place.token}
    return {"socket_path": place.socket_path}


def say(line: str) -> None:
    """Print one line."""
    _write(plain(line) + "\n")


def complain(text: str) -> None:
    """Print `text` on standard error, as far as that can be written; further lines of it are indented."""
    if sys.stderr is None:
        return
    first, *further = text.split("\n")
    try:
        print(plain(first), file=sys.stderr)
        for line in further:
            print(f"  {plain(line.strip())}", file=sys.stderr)
        sys.stderr.flush()
    except (OSError, ValueError):
        _drop(sys.stderr)


def say_styled(lines: Iterable[Line]) -> None:
    """Print lines, in colours on a terminal that has some."""
    if not is_terminal():
        for line in lines:
            say("".join(text for text, _ in line).rstrip())
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    with console.capture() as drawn:
        for line in lines:
            console.print(
                Text.assemble(*((plain(text), style) for text, style in line)), soft_wrap=True
            )
    _write(drawn.get())


def progressing(items: Sequence[T], doing: str) -> Iterator[T]:
    """Go through `items`; with a bar on standard error if that is a terminal and there are several."""
    with _progress(doing, total=len(items)) if len(items) > 1 else nullcontext() as advance:
        for item in items:
            yield item
            if advance is not None:
                advance(1)


@contextmanager
def progress(
    doing: str, *, total: int | None, is_bytes: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how far something is; yields what counts so many more of the `total`."""
    with _progress(doing, total=total, is_bytes=is_bytes) as advance:
        yield advance or (lambda _: None)


@contextmanager
def waiting(doing: str) -> Iterator[None]:
    """Show on a terminal that something lasts, and for how long by now."""
    with _progress(doing, total=None):
        yield


@contextmanager
def _progress(
    doing: str, *, total: int | None, is_bytes: bool = False
) -> Iterator[Callable[[int], None] | None]:
    """Shows how far it is, gone without a trace at the end; yields what counts more. None: nobody would see it."""
    if not is_watched():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    console = Console(stderr=True)
    if not console.is_interactive:  # a terminal that cannot take back what it shows
        yield None
        return
    figures = DownloadColumn() if is_bytes else MofNCompleteColumn()
    counts = () if total is None else (BarColumn(), figures)
    words = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), words, *counts, TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=is_terminal()
    ) as shown:
        task = shown.add_task(doing, total=total)
        yield lambda more: shown.advance(task, more)


def print_safe(text: str) -> None:
    """Print lines that do nothing to a terminal, as they are."""
    _write(text)


def print_json(value: Any) -> None:
    _write(plain_json(json.dumps(value, indent=2, ensure_ascii=False)) + "\n")


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """A table on a terminal, as wide as that; elsewhere tab-separated lines of all there is.

    `empty` says what to do when there is nothing.
    """
    listed = [[plain(cell) for cell in row] for row in rows]
    if not is_terminal():
        _write("".join("\t".join(row) + "\n" for row in listed))
        return
    if not listed:
        say(empty)
        return
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    longest = [
        max(map(cell_len, (column.title, *cells)))
        for column, *cells in zip(columns, *listed, strict=True)
    ]
    widths = fitted(columns, longest, shutil.get_terminal_size().columns)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, width in widths.items():
        column = columns[place]
        if column.shown == "folded":
            table.add_column(column.title, width=width, overflow="fold")
        else:
            table.add_column(column.title, width=width, no_wrap=True, overflow="ellipsis")
    for row in listed:
        table.add_row(
            *(Text(row[place]) for place in widths)
        )  # as they are: markup of others is theirs
    # With the width alone rich takes that of a dumb terminal to be 80.
    console = Console(width=sum(widths.values()) + GAP * (len(widths) - 1), height=1)
    with console.capture() as drawn:
        console.print(table)
    _write(drawn.get())


def confirm(question: str, *, yes: bool) -> None:
    """Go on if the person at the terminal says so, or if `yes` did.

    Raises:
        InputError: nobody can be asked.
        typer.Exit: the answer was no.
    """
    if not yes:
        refuse_unasked()
        if not typer.confirm(plain(question), err=True):
            raise typer.Exit(1)


def ask_hidden(name: str) -> str:
    """What the person at the terminal types for `name`, which is not shown.

    Raises:
        InputError: nobody can be asked, or nothing was typed.
    """
    if not (is_watched() and sys.stdin is not None and sys.stdin.isatty()):
        raise InputError(
            f"nobody is there to be asked for {name!r}",
            code="input.unasked",
            hint="give it by --secret-file NAME=PATH or --stdin, or type it at a terminal",
        )
    typed: str = typer.prompt(
        plain(name), default="", show_default=False, hide_input=True, err=True
    )
    if not typed:
        raise InputError(f"nothing was typed for {name!r}", code="input.empty")
    return typed


def refuse_unasked() -> None:
    """Return if there is somebody who can be asked.

    Raises:
        InputError: nobody is.
    """
    if not (is_watched() and sys.stdin is not None and sys.stdin.isatty()):
        raise InputError(
            "nobody is there to be asked whether this is meant",
            code="input.unconfirmed",
            hint="say --yes, or type it at a terminal",
        )


def is_watched() -> bool:
    """Whether somebody sees what is told beside the output."""
    return sys.stderr is not None and sys.stderr.isatty()


def is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _write(text: str) -> None:
    """Write to standard output; who has closed it wants nothing.

    Raises:
        OutputError: it cannot be written, as on a full disk.
        BrokenPipeError: its reader has gone.
    """
    if sys.stdout is not None:
        with _writing():
            sys.stdout.write(text)


def finish_output() -> None:
    """Write out what is still held back. Raises as `_write`."""
    if sys.stdout is not None:
        with _writing():
            sys.stdout.flush()


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _drop(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(f"standard output cannot be written: {error.strerror}") from error


def _drop(stream: TextIO) -> None:
    """Let what was not written go: the interpreter would try once more at its end, and complain."""
    with suppress(OSError, ValueError):  # no file behind it
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


def json_of(option: str, given: str) -> Any:
    """The JSON value that was given with `option`.

    Raises:
        InputError: it is none.
    """
    try:
        return loads_strict(os.fsencode(given))
    except InputError as error:
        raise InputError(
            f"{option}: {error.message}",
            code=error.code,
            hint=f"""give it as JSON in UTF-8: {option} '{{"name": "Ada"}}'""",
        ) from None


def short_error(error: dict[str, Any] | None) -> str:
    return "" if error is None else f"{error.get('code')}: {error.get('message')}"


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"
