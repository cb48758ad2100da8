"""What README and config/stackd.toml say is what the code does.

`python tests/support/documents.py` rewrites the generated parts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from support import documents

from stackd.cli.app import app
from stackd.settings import CLIENT_NAMES, HELPER_NAMES, PLANNED, Settings, load_settings, table

README = documents.README.read_text()
NAMES = {row.name for row in table()}
FOREIGN = {  # read, but not ours
    "CI",  # the origin's rule for the inline worker
    "CREDENTIALS_DIRECTORY",  # of a service manager
}


def section(title: str) -> str:
    """The text of README between this heading and the next."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row in `text`, without the rules under the heads."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if set(row[0]) != {"-"}]


# -- generated parts


def test_config_file_is_what_the_settings_table_says():
    assert documents.CONFIG.read_text() == documents.config()


@pytest.mark.parametrize(
    ("part", "written"),
    [
        ("settings", documents.settings_part),
        ("events", documents.events_part),
        ("errors", documents.errors_part),
        ("findings", documents.findings_part),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_readme_part_is_what_the_code_says(part, written):
    inside = README.partition(f"<!-- {part} -->\n")[2].partition(f"<!-- /{part} -->")[0]

    assert inside == written()


def test_config_file_with_every_line_uncommented_means_the_defaults(tmp_path: Path):
    text = re.sub(r"^#(?=[A-Z])", "", documents.CONFIG.read_text(), flags=re.MULTILINE)
    (tmp_path / "stackd.toml").write_text(text)

    environ = {"STACKD_CONFIG": str(tmp_path / "stackd.toml"), "CI": "true"}
    read = load_settings("dev", environ=environ, cwd=tmp_path)

    assert read.model_dump(exclude={"env"}) == Settings().model_dump(exclude={"env"})
    assert read.sources.keys() == NAMES
    assert read.warnings == ()


def test_config_file_sets_nothing_as_it_is(tmp_path: Path):
    environ = {"STACKD_CONFIG": str(documents.CONFIG), "CI": "true"}

    read = load_settings("dev", environ=environ, cwd=tmp_path)

    assert str(documents.CONFIG) not in read.sources.values()


def test_every_event_says_what_happened():
    silent = [e.__name__ for e in documents.events() if not documents.first_line(e)]

    assert documents.events()
    assert silent == []


def test_every_code_of_a_finding_is_in_its_table_and_no_other():
    source = (documents.ROOT / "stackd" / "workflows" / "consistency.py").read_text()
    written = set(re.findall(r'"(queue\.[a-z_]+)", f?"', source))

    assert {code.strip("`") for code, *_ in rows(section("Queue consistency"))[1:]} == written


# -- commands


def commands(group: typer.Typer, prefix: str = "") -> Iterator[str]:
    """Every command of the tree as it is typed, without `stackd`."""
    for command in group.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.replace("_", "-")
        yield f"{prefix}{name}"
    for child in group.registered_groups:
        assert child.typer_instance is not None
        yield from commands(child.typer_instance, f"{prefix}{child.name} ")


def documented_commands() -> set[str]:
    """What README's command table names: words in backticks, after the group where that is one word of ours."""
    groups = {group.name for group in app.registered_groups}
    found = set()
    for group, listed in rows(section("Use it")):
        for typed in re.findall(r"`([^`]+)`", listed):
            words = re.match(r"[a-z-]+( [a-z-]+)*", typed)
            if words:
                found.add(f"{group} {words[0]}" if group in groups else words[0])
    return found


def test_every_command_is_in_the_readme_and_no_other():
    assert documented_commands() == set(commands(app))


# -- limits


def in_people_words(row) -> str:
    """A default as the Limits table writes it."""
    if row.unit != "bytes":
        return f"{row.default:,}"
    mib, kib = row.default / 2**20, row.default / 2**10
    return f"{mib:.0f} MiB" if mib.is_integer() else f"{kib:.0f} KiB"


@pytest.mark.parametrize(
    "row", [r for r in table() if r.name.startswith("STACKD_MAX_")], ids=lambda row: row.name
)
def test_limit_setting_stands_with_its_default_in_the_limits_table(row):
    assert in_people_words(row) in {cells[1] for cells in rows(section("Limits"))}


# -- names of the environment


def names_in_code() -> Iterator[tuple[str, str]]:
    """(file, name) of every word in a string of the package that looks like a setting of ours."""
    families = {name.split("_")[0] for name in NAMES | PLANNED | HELPER_NAMES if "_" in name}
    for path in sorted((documents.ROOT / "stackd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for word in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", node.value):
                    if word.split("_")[0] in families:
                        yield path.name, word


def names_read() -> Iterator[str]:
    """Every literal name asked of a mapping called `environ` or `found` in settings.py."""
    tree = ast.parse((documents.ROOT / "stackd" / "settings.py").read_text())
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="environ" | "found"), attr="get"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name
            case ast.Subscript(
                value=ast.Name(id="environ" | "found"), slice=ast.Constant(value=str(name))
            ):
                yield name


def test_every_setting_named_in_the_code_exists():
    known = NAMES | PLANNED | HELPER_NAMES | CLIENT_NAMES
    named = list(names_in_code())

    assert len({name for _, name in named}) > len(NAMES) / 2, "the search finds too little to trust"
    assert [(file, name) for file, name in named if name not in known] == []


def test_every_name_read_from_the_environment_is_known():
    read = set(names_read())

    assert read >= CLIENT_NAMES
    assert read - NAMES - HELPER_NAMES - CLIENT_NAMES == FOREIGN


@pytest.mark.parametrize("name", sorted(HELPER_NAMES | CLIENT_NAMES))
def test_name_beside_the_table_is_explained_in_the_readme(name):
    assert f"`{name}`" in section("Settings")


def test_every_setting_named_in_the_readme_exists():
    named = set(re.findall(r"\bSTACKD_[A-Z_]+\b", README))

    assert named - NAMES - HELPER_NAMES - CLIENT_NAMES == set()
