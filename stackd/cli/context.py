"""What commands share: how to reach the daemon, and how to print."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from stackd.client.api import Api
from stackd.settings import connection_settings

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(slots=True)
class _Debug:
    on: bool = False


DEBUG = _Debug()


def daemon() -> Api:
    """The daemon of this environment: STACKD_URL if set, else the Unix socket of the state directory."""
    place = connection_settings()
    if place.url is not None:
        return Api(url=place.url, token=place.token)
    return Api(socket_path=place.socket_path)


def print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """A table on a terminal, tab-separated lines elsewhere; `empty` says what to do when there is nothing."""
    listed = list(rows)
    if not sys.stdout.isatty():
        for row in listed:
            print("\t".join(row))
        return
    if not listed:
        print(empty)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in listed:
        table.add_row(*row)
    Console().print(table)


def short_error(error: dict[str, Any] | None) -> str:
    return "" if error is None else f"{error.get('code')}: {error.get('message')}"


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"
