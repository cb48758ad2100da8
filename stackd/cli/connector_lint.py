"""`stackd connectors lint` and `new`: writing a connector, without a daemon."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stackd.cli.columns import Column
from stackd.cli.context import DEBUG, JsonFlag, print_json, print_table, say
from stackd.core.errors import NotFoundError
from stackd.core.names import nearest
from stackd.core.text import plain, shown

if TYPE_CHECKING:
    from stackd.integrations.lint import Report

FOLDER = Path("connectors")
NAME = "definition.json"


class Grade(StrEnum):
    """Of a connector; each includes those before it."""

    BRONZE = "bronze"
    SILVER = "silver"
    GOLD = "gold"


class Way(StrEnum):
    """How an app signs in."""

    NONE = "none"
    BEARER = "bearer"
    API_KEY = "api_key"
    BASIC = "basic"


def lint(
    connectors: Annotated[
        list[str] | None,
        typer.Argument(help="Ids below the folder, or folders of connectors. Default: all."),
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Where connectors are.")] = FOLDER,
    grade: Annotated[Grade, typer.Option("--grade", help="What each must reach.")] = Grade.BRONZE,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write definitions as they are to be.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Hold connectors against the checklist; exit 1 if one does not reach the grade."""
    from stackd.integrations.lint import lint_connector

    found = places(connectors, folder)
    if fix:
        _write_well(found)
    with handlers_apart():
        reports = [lint_connector(place) for place in found]
    bad = [one for one in reports if not _reaches(one, grade) or (strict and one.warnings)]
    if as_json:
        print_json({"ok": not bad, "connectors": [_as_json(one) for one in reports]})
    else:
        _tell(reports, grade)
        of = f"{len(reports)} connector{'' if len(reports) == 1 else 's'}"
        say(f"{of}: all reach {grade}" if not bad else f"{len(bad)} of {of}: not {grade}")
    sys.exit(1 if bad else 0)


@contextlib.contextmanager
def handlers_apart() -> Iterator[None]:
    """What handlers print goes to standard error; so does what they log, with --debug."""
    from stackd.core.log import logging_to

    aside = sys.stderr or io.StringIO()
    with (
        contextlib.redirect_stdout(aside),
        logging_to(aside, level="debug" if DEBUG.on else "critical"),
    ):
        yield


def places(given: list[str] | None, folder: Path) -> list[Path]:
    """The folders that are meant, each of a connector.

    Raises:
        NotFoundError: there is none of that name, or none at all.
    """
    below = sorted(one.parent for one in folder.glob(f"*/{NAME}"))
    if not given:
        if not below:
            raise NotFoundError(
                f"no connector below {folder}",
                code="connector.not_found",
                hint="name one, or --folder DIR",
            )
        return below
    return [_place(name, folder, below) for name in given]


def _place(name: str, folder: Path, below: Sequence[Path]) -> Path:
    place = folder / name
    for one in (place, Path(name)):
        if (one / NAME).is_file():
            return one.resolve() if one.name in ("", ".", "..") else one
    meant = nearest(name, [one.name for one in below])
    raise NotFoundError(
        f"no connector {shown(name)!r}: neither {place / NAME} nor {Path(name) / NAME} is there",
        code="connector.not_found",
        hint=f"did you mean {meant!r}?" if meant else "`stackd connectors new ID` makes one",
    )


def _write_well(found: Sequence[Path]) -> None:
    from stackd.core.errors import InputError
    from stackd.core.json import loads_strict
    from stackd.integrations import backfill

    for place in found:
        path = place / NAME
        before = path.read_bytes()
        try:
            after = backfill.written(loads_strict(before))
        except InputError:
            continue  # which lint tells
        if after != before:
            backfill.write([backfill.Patch(path, before, after, 0)])
            say(f"Wrote {path}")


def _reaches(report: Report, wanted: Grade) -> bool:
    grades = [one.value for one in Grade]
    return report.grade is not None and grades.index(report.grade) >= grades.index(wanted.value)


def _tell(reports: Sequence[Report], wanted: Grade) -> None:
    from stackd.integrations.lint import RULES

    print_table(
        (Column("connector"), Column("grade"), Column("errors"), Column("warnings", goes=1)),
        ((one.id, one.grade or "-", str(one.errors), str(one.warnings)) for one in reports),
        empty="",
    )
    for one in reports:
        for told in one.findings:
            found = told.finding
            hint = f" ({plain(found.hint)})" if found.hint else ""
            place = f"{one.folder / told.file}:{found.line}:{found.column}"
            say(f"{place}: {found.severity} {found.code}: {plain(found.message)}{hint}")
        for code, why in one.lacking.items():
            if not one.errors and RULES[code].grade in _up_to(wanted):
                say(f"{one.folder}: not {RULES[code].grade}: {code}: {why} ({RULES[code].about})")


def _up_to(wanted: Grade) -> list[str]:
    grades = [one.value for one in Grade]
    return grades[: grades.index(wanted.value) + 1]


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "id": report.id,
        "folder": str(report.folder),
        "grade": report.grade,
        "findings": [
            {"file": told.file, **dataclasses.asdict(told.finding)} for told in report.findings
        ],
        "lacking": report.lacking,
    }


def new(
    connector: Annotated[str, typer.Argument(help="Its id, as github.")],
    name: Annotated[str | None, typer.Option("--name", help="What people call it.")] = None,
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", help="Where its API is. Default: a field of the credential."),
    ] = None,
    auth: Annotated[Way, typer.Option("--auth", help="How it signs in.")] = Way.BEARER,
    out: Annotated[Path, typer.Option("--out", help="The folder of connectors.")] = FOLDER,
    force: Annotated[bool, typer.Option("--force", help="Write over one that is there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Begin a connector: a definition with one action, and its cases."""
    from stackd.integrations.scaffold import new_connector

    paths = new_connector(out, connector, name=name, base_url=base_url, way=auth.value, force=force)
    if as_json:
        print_json({"id": connector, "written": [str(path) for path in paths]})
        return
    for path in paths:
        say(f"Wrote {path}")
    say(f"what is left to write says TODO: stackd connectors lint {paths[0].parent}")
