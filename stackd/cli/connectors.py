"""`stackd connectors …`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from stackd.cli.columns import Column
from stackd.cli.context import JsonFlag, daemon, print_json, print_table, say
from stackd.client.models import ConnectorDetail, ConnectorList
from stackd.integrations import backfill
from stackd.integrations.backfill import Fill, Patch

app = typer.Typer(no_args_is_help=True)

FolderArgument = Annotated[
    Path, typer.Argument(help="All definition.json below it.", show_default=True)
]
CheckFlag = Annotated[
    bool, typer.Option("--check", help="Write nothing; exit 1 if anything is missing.")
]
DiffFlag = Annotated[bool, typer.Option("--diff", help="Write nothing; show what would change.")]
FOLDER = Path("connectors")


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
    view = daemon().get(f"/api/registry/connectors/{quote(connector, safe='')}", ConnectorDetail)
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


def _count(number: int, of: str) -> str:
    return f"{number} {of}" if number == 1 else f"{number} {of}s"


def _difference(patch: Patch) -> Iterator[str]:
    """What becomes of the file, line by line, as `diff -u` shows it."""
    before, after = (
        text.decode().splitlines(keepends=True) for text in (patch.before, patch.after)
    )
    for line in difflib.unified_diff(before, after, str(patch.path), str(patch.path)):
        yield line.removesuffix("\n")
        if not line.endswith("\n"):
            yield "\\ No newline at end of file"
