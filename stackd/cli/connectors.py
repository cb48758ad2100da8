"""`stackd connectors …`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stackd.cli import connector_lint, connector_review, connector_test, evidence
from stackd.cli.columns import Column
from stackd.cli.context import JsonFlag, daemon, print_json, print_table, say
from stackd.client.models import ConnectorDetail, ConnectorList
from stackd.core.text import segment
from stackd.integrations import backfill
from stackd.integrations.backfill import Fill, Patch

if TYPE_CHECKING:
    from stackd.integrations.importer.storing import Outcome

app = typer.Typer(no_args_is_help=True)
app.command()(evidence.evidence)
app.command()(evidence.reset)
app.command()(connector_lint.lint)
app.command()(connector_lint.new)
app.command("test")(connector_test.replay)
app.command()(connector_review.review)

FolderArgument = Annotated[
    Path, typer.Argument(help="All definition.json below it.", show_default=True)
]
CheckFlag = Annotated[
    bool, typer.Option("--check", help="Write nothing; exit 1 if anything is missing.")
]
DiffFlag = Annotated[bool, typer.Option("--diff", help="Write nothing; show what would change.")]
FOLDER = Path("connectors")
SHOWN = 10  # lines of what an import skipped, and of what it guessed


def _command(name: str, fill: Fill, of: str, about: str) -> None:
    """Make a command that fills in operations `of` a kind."""

    @app.command(name, help=about)
    def run(
        folder: FolderArgument = FOLDER,
        check: CheckFlag = False,
        diff: DiffFlag = False,
        as_json: JsonFlag = False,
    ) -> None:
        _run(fill, of, folder, check=check, diff=diff, as_json=as_json)


_command(
    "default-actions",
    backfill.default_actions,
    "action",
    "Give each action `runtimes` and `fallback`, where they are missing.",
)
_command(
    "seed-trigger-fallbacks",
    backfill.seed_trigger_fallbacks,
    "trigger",
    "Give each trigger `runtimes`, `fallback` and `dedupe`, where they are missing.",
)
_command(
    "backfill",
    backfill.both,
    "action/trigger",
    "As default-actions, then seed-trigger-fallbacks.",
)


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """All connectors the daemon has, with what is wrong with them."""
    items = daemon().all("/api/registry/connectors", ConnectorList)
    if as_json:
        print_json({"items": items, "nextCursor": None})
        return
    print_table(
        (
            Column("id"),
            Column("name", "cut", goes=3),
            Column("version", goes=2),
            Column("actions", goes=4),
            Column("triggers", goes=4),
            Column("handlers", goes=1),
            Column("problems", "folded", goes=5),
        ),
        (
            (
                one["id"],
                one["name"],
                one["version"],
                str(len(one["actions"])),
                str(len(one["triggers"])),
                "yes" if one["hasHandlers"] else "no",
                "; ".join(one["problems"]),
            )
            for one in items
        ),
        empty="no connectors; STACKD_CONNECTORS_DIR may name a folder of them",
    )


@app.command()
def show(
    connector: Annotated[str, typer.Argument(help="Its id, or a name it goes by.")],
    as_json: JsonFlag = False,
) -> None:
    """One connector: how it signs in, and what its operations do and take."""
    view = daemon().get(f"/api/registry/connectors/{segment(connector)}", ConnectorDetail)
    if as_json:
        print_json(view)
        return
    say(f"{view['name']} ({view['id']} {view['version']})")
    for line in (view["description"], view["docs"], view["baseUrl"]):
        if line:
            say(f"  {line}")
    say(f"  signs in by: {', '.join(sorted(set(view['authentication'].values()))) or 'nothing'}")
    for problem in view["problems"]:
        say(f"  problem: {problem}")
    for one in view["operations"]:
        how = one["resolvedRuntime"] or "does not run"
        effect = f", {one['effect']}" if one.get("effect") else ""
        say(f"{one['kind']} {one['id']}: {one.get('title') or one['id']} ({how}{effect})")
        parameters = one.get("parameters") or {}
        required = parameters.get("required") or []
        for name, schema in (parameters.get("properties") or {}).items():
            kind = schema.get("type", "any") if isinstance(schema, dict) else "any"
            say(f"    {name}: {kind}{', required' if name in required else ''}")
        for issue in one["issues"]:
            say(f"    {issue['severity']}: {issue['message']}")


def _run(fill: Fill, of: str, folder: Path, *, check: bool, diff: bool, as_json: bool) -> None:
    patches = backfill.patches(folder, fill)
    writes = not (check or diff)
    if writes:
        backfill.write(patches)
    operations = sum(patch.operations for patch in patches)
    if as_json:
        print_json(
            {
                "updated": [
                    {"path": str(patch.path), "operations": patch.operations} for patch in patches
                ],
                "operations": operations,
                "written": writes,
            }
        )
    elif not patches:
        say(f"No connector {of} defaults required changes.")
    else:
        for patch in patches:
            for line in _difference(patch) if diff else ():
                say(line)
            if not diff:
                say(f"{'Updated' if writes else 'Would update'} {patch.path}")
        done = "filled in" if writes else "to fill in"
        say(f"{_count(operations, 'operation')} {done}, in {_count(len(patches), 'file')}")
    if check and patches:
        sys.exit(1)


def connectors_folder(out: Path | None) -> Path:
    """Where a connector is written to: the folder that is named, else the one that the other commands go through."""
    return out or FOLDER


@app.command("import-openapi")
def import_openapi(
    spec: Annotated[Path, typer.Argument(help="An OpenAPI or Swagger document, JSON or YAML.")],
    connector: Annotated[str, typer.Option("--id", help="Of the connector.")],
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Only operations with it.")] = None,
    operation: Annotated[
        list[str] | None,
        typer.Option("--operation", help="Only this one, by operation id or METHOD /path."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder of connectors to write to.")
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option("--overlay", help="Changes to the document; default: overlay.yaml beside it."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a definition that is there.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a definition out of an OpenAPI document."""
    from stackd.integrations.importer import storing

    outcome = storing.import_openapi(
        spec,
        connector,
        connectors_folder(out),
        tags=tag or (),
        operations=operation or (),
        overlay_path=overlay,
        force=force,
    )
    if as_json:
        print_json(outcome.report.as_json(connector))
    else:
        _tell_import(outcome)
    if outcome.path is None:
        sys.exit(1)


def _tell_import(outcome: Outcome) -> None:
    report = outcome.report
    if outcome.path is not None:
        say(f"Wrote {outcome.path}")
    say(f"{report.imported:,} of {_count(report.operations, 'operation')} imported")
    for title, lines in (
        ("skipped", [f"{one.operation}: {one.reason}" for one in report.skipped]),
        ("guessed or left out", report.guessed),
    ):
        if lines:
            say(f"{len(lines):,} {title}:")
        for line in lines[:SHOWN]:
            say(f"  {line}")
        if len(lines) > SHOWN:
            say(f"  and {len(lines) - SHOWN:,} more; --json lists all")


def _count(number: int, of: str) -> str:
    return f"{number:,} {of}" if number == 1 else f"{number:,} {of}s"


def _difference(patch: Patch) -> Iterator[str]:
    """What becomes of the file, line by line, as `diff -u` shows it."""
    before, after = (
        text.decode().splitlines(keepends=True) for text in (patch.before, patch.after)
    )
    for line in difflib.unified_diff(before, after, str(patch.path), str(patch.path)):
        yield line.removesuffix("\n")
        if not line.endswith("\n"):
            yield "\\ No newline at end of file"
