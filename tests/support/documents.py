"""Writes down what the code says: `config/stackd.toml` and the tables of README.

`python tests/support/documents.py` rewrites them all; `tests/house/test_documents.py` fails until it was run.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import stackd
from stackd import settings
from stackd.core import errors
from stackd.core.errors import StackdError
from stackd.core.events import Event
from stackd.workflows.consistency import CHECKS, Mended

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
CONFIG = ROOT / "config" / "stackd.toml"

CONFIG_HEAD = """\
# The settings of stackd. This file sets nothing: each line below shows a default; take away its # to change it.
#
# stackd reads the file that STACKD_CONFIG names, else stackd.toml in the state directory, else
# /etc/stackd/stackd.toml. Command line and environment (and `.env` with `stackd dev`) win over it; the
# environment takes the same names. `stackd config show` prints each value and where it came from;
# `stackd config reload` lets a daemon that runs read it again.
#
# STACKD_ENV is not here: `stackd dev` sets it to development, `stackd start` to production.
"""
SET_BY_COMMAND = "STACKD_ENV"

OTHER_NAMES = """
Not from the config file: `STACKD_CONFIG` (that file), `STACKD_URL` and `STACKD_TOKEN` (the daemon that commands
talk to, if not by the Unix socket), `INLINE_EXECUTION_WORKER` (another name of `ENABLE_INLINE_WORKER`),
`DISABLE_INLINE_WORKER_AUTOSTART` (true: `dev` does not turn that on by itself).
"""


def config() -> str:
    """The config file: every setting, commented out."""
    rows = [row for row in settings.table() if row.name != SET_BY_COMMAND]
    return CONFIG_HEAD + "".join(
        f"\n# {_sentence(row)}\n#{row.name} = {_toml(row)}\n" for row in rows
    )


def settings_part() -> str:
    rows = ((_code(row.name), _shown(row), row.unit, row.meaning) for row in settings.table())
    return _table(("name", "default", "unit", "meaning"), rows) + OTHER_NAMES


def events_part() -> str:
    return _table(
        ("event", "fields", "what happened"),
        (
            (
                _code(event.__name__),
                _code(" ".join(field.name for field in dataclasses.fields(event))),
                first_line(event),
            )
            for event in events()
        ),
    )


def errors_part() -> str:
    return _table(
        ("code", "status", "meaning"),
        ((_code(error.code), _status(error), first_line(error)) for error in error_classes()),
    )


def findings_part() -> str:
    by = {Mended.ITSELF: "itself", Mended.REPAIR: "`queue repair`", Mended.NONE: "a person"}
    return _table(
        ("code", "what does not fit together", "mended by", "how"),
        (
            (_code(check.code), _capital(check.about), by[check.mended], _capital(check.mending))
            for check in CHECKS
        ),
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def events() -> list[type[Event]]:
    """Every kind of event in the package, by module, in the order written there."""
    for module in pkgutil.walk_packages(stackd.__path__, "stackd."):
        importlib.import_module(module.name)
    concrete = [
        kind for kind in _below(Event) if kind.__module__.startswith("stackd.") and not _below(kind)
    ]
    return sorted(concrete, key=lambda kind: kind.__module__)


def error_classes() -> list[type[StackdError]]:
    """Every class of the error tree that has a code of its own, in the order written."""
    return [
        kind
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, StackdError) and kind is not StackdError
    ]


def first_line(subject: type[Any]) -> str:
    """The first line of its docstring; of an error without one, what the drawn tree says beside it."""
    if subject.__doc__:
        return subject.__doc__.strip().splitlines()[0]
    drawn = re.search(
        rf"\b{subject.__name__} +(\S.*?)( \(\d+[^)]*\))?$", errors.__doc__ or "", re.M
    )
    return drawn[1][0].upper() + drawn[1][1:] if drawn else ""


def with_part(text: str, name: str, part: str) -> str:
    """`text` with `part` between its markers `<!-- name -->` and `<!-- /name -->`."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"README has no part {name}")
    return f"{before}{begin}{part}{end}{after}"


def readme(text: str) -> str:
    """README `text` with every generated part as the code has it now."""
    for name, part in (
        ("settings", settings_part()),
        ("events", events_part()),
        ("errors", errors_part()),
        ("findings", findings_part()),
    ):
        text = with_part(text, name, part)
    return text


def _below(kind: type[Any]) -> list[type[Any]]:
    """The classes below `kind` that their modules still hold: a slotted dataclass replaces the class it was."""
    found = []
    for child in kind.__subclasses__():
        if getattr(inspect.getmodule(child), child.__name__, None) is child:
            found += [child, *_below(child)]
    return found


def _sentence(row: settings.Row) -> str:
    default = "none" if row.default == "" else row.default
    return f"{row.meaning} ({row.unit + '; ' if row.unit else ''}default {default})"


def _toml(row: settings.Row) -> str:
    if row.unit == "list":
        return json.dumps(row.default.split())
    if settings.Settings.model_fields[row.attribute].annotation is bool:
        return str(row.default)
    return json.dumps(row.default)


def _shown(row: settings.Row) -> str:
    return "" if row.default == "" else _code(str(row.default))


def _status(error: type[StackdError]) -> str:
    """Blank if the class is never an answer of the API: it then has the status of the tree's root."""
    return "" if error.status == StackdError.status else str(error.status)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(text) for text in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    CONFIG.write_text(config())
    README.write_text(readme(README.read_text()))


if __name__ == "__main__":
    main()
