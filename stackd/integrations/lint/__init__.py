"""`connectors lint`: a connector held against the checklist, from its files alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stackd.core.errors import InputError
from stackd.core.json import Json, loads_strict
from stackd.core.names import nearest
from stackd.core.text import shown
from stackd.integrations import backfill
from stackd.integrations.catalogue import HANDLERS, NAME, Connector, read_connector
from stackd.integrations.lint import app, files, operations, triggers
from stackd.integrations.lint.level import Definition, Told, definition_of, told
from stackd.integrations.lint.rules import GRADES, RULES, Grade
from stackd.workflows.findings import Finding, Remarks
from stackd.workflows.source import Source, SourceError, read_source

QUALITY: Final = "quality.json"
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True, slots=True)
class Report:
    """What was found.

    Attributes:
        findings: errors keep it from bronze; warnings are for whoever reads them.
        lacking: by code, why a rule of a higher grade does not hold.
    """

    id: str
    folder: Path
    findings: tuple[Told, ...]
    lacking: dict[str, str] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        return sum(one.finding.severity == "error" for one in self.findings)

    @property
    def warnings(self) -> int:
        return len(self.findings) - self.errors

    @property
    def grade(self) -> Grade | None:
        """The highest grade whose rules hold, and those of all below; None: not even bronze."""
        return None if self.errors else graded(self.lacking)


def graded(lacking: dict[str, str]) -> Grade:
    """The grade of a connector without errors."""
    held: Grade = "bronze"
    for grade in GRADES[1:]:
        if any(RULES[code].grade == grade for code in lacking):
            break
        held = grade
    return held


def lint_connector(folder: Path) -> Report:
    """The connector in `folder`, held against every rule. Loads its handlers; reads nothing else, sends nothing."""
    remarks, others = Remarks(), list[Told]()
    try:
        source = read_source((folder / NAME).read_bytes())
    except OSError as error:
        return _unreadable(folder, f"cannot be read ({error.strerror})", 1, 1)
    except SourceError as error:
        return _unreadable(folder, error.message, error.line, error.column)
    if not source.text.lstrip().startswith("{") or not isinstance(source.value, dict):
        return _unreadable(folder, "must hold a JSON object", 1, 1)
    raw: dict[str, Any] = source.value
    connector = read_connector(folder)
    definition = definition_of(raw, folder.name, remarks)
    _whole(folder, raw, source, remarks)
    others += _todo(source)
    app.check(definition, remarks)
    operations.check(definition, connector, remarks)
    triggers.check(definition, remarks)
    recorded = files.recorded(folder, others)
    if recorded is not None:
        others += files.cases(definition, connector, recorded)
    others += files.handlers(connector, folder / HANDLERS)
    others += files.secrets(folder, NAME)
    lacking = _lacking(definition, connector, recorded, _quality(folder, others))
    claimed = raw.get("quality")
    if claimed in GRADES and GRADES.index(claimed) > GRADES.index(graded(lacking)):
        words = f"quality says {claimed}, and it is {graded(lacking)}"
        remarks.error("connector.quality", words, ("quality",))
    own = [Told(NAME, one) for one in remarks.shown(source)]
    return Report(str(raw.get("id") or folder.name), folder, (*own, *others), lacking)


def _unreadable(folder: Path, message: str, line: int, column: int) -> Report:
    finding = Finding("connector.unreadable", message, line, column)
    return Report(folder.name, folder, (Told(NAME, finding),))


def _whole(folder: Path, raw: dict[str, Any], source: Source, remarks: Remarks) -> None:
    if raw.get("id") != folder.name:
        words = f"id is {shown(str(raw.get('id')))!r} and the folder {folder.name!r}"
        remarks.error("connector.id", words, ("id",))
    if source.text.encode() != backfill.written(raw):
        remarks.warn(
            "connector.format",
            "is not written as definitions are: two blanks, a newline at the end, no escapes",
            (),
            hint="`stackd connectors lint --fix` writes it so",
        )


def _todo(source: Source) -> Iterator[Told]:
    for number, line in enumerate(source.text.splitlines(), 1):
        if "TODO" in line:
            words = f"still to be written: {shown(line.strip())}"
            yield told(NAME, "connector.todo", words, number)


def _quality(folder: Path, others: list[Told]) -> dict[str, str]:
    """By code, when a person has seen that a rule holds, or why it does not count here."""
    path = folder / QUALITY
    if not path.exists():
        return {}
    try:
        given = loads_strict(path.read_bytes())
    except (OSError, InputError) as error:
        others.append(_bad_quality(getattr(error, "message", str(error))))
        return {}
    found: dict[str, str] = {}
    for code, one in given.items() if isinstance(given, dict) else ():
        if code not in RULES or RULES[code].grade == "bronze":
            meant = nearest(code, [name for name, rule in RULES.items() if rule.grade != "bronze"])
            words = f"{shown(code)!r} is no rule of silver or gold"
            others.append(_bad_quality(words, f"did you mean {meant!r}?" if meant else None))
        elif not _is_said(one):
            others.append(
                _bad_quality(f"{code} needs `done` with a date, or `exempt` with a reason")
            )
        else:
            found[code] = str(one)
    return found


def _is_said(value: Json) -> bool:
    if not isinstance(value, dict) or len(value) != 1:
        return False
    done, exempt = value.get("done"), value.get("exempt")
    if isinstance(done, str):
        return _DATE.fullmatch(done) is not None
    return isinstance(exempt, str) and bool(exempt.strip())


def _bad_quality(message: str, hint: str | None = None) -> Told:
    return told(QUALITY, "connector.quality", message, hint=hint)


def _lacking(
    definition: Definition,
    connector: Connector,
    recorded: files.Cases | None,
    said: dict[str, str],
) -> dict[str, str]:
    """Rules above bronze that do not hold."""
    open_rules = dict(_not_held(definition, connector, recorded))
    for code, rule in RULES.items():
        if rule.by_hand and _applies(code, definition):
            open_rules[code] = f"nobody has said so in {QUALITY}"
    return {code: why for code, why in open_rules.items() if code not in said}


def _applies(code: str, definition: Definition) -> bool:
    if code == "oauth.tried":
        ways = definition.app.ways_in.values() if definition.app else ()
        return any(one.type == "oauth2" for one in ways)
    return code != "triggers.tried" or bool(definition.triggers)


def _not_held(
    definition: Definition, connector: Connector, recorded: files.Cases | None
) -> Iterator[tuple[str, str]]:
    found = definition.app
    if found is None or connector.handlers.transport == "own":
        return
    actions = [one.read for one in definition.actions if one.read is not None]
    if not (found.rate_limits or any(one.rate_limits for one in actions)):
        yield "limits.declared", "no rateLimits"
    statuses = files.statuses(recorded)
    if 429 not in statuses:
        yield "limits.case", "no case answers 429"
    rules = [
        *found.errors,
        *found.defaults.errors,
        *(rule for one in actions for rule in one.errors),
    ]
    if not any(rule.message for rule in rules):
        yield "errors.told", "no rule of errors has a message"
    if found.test_connection is None or not found.test_connection.label:
        yield "connection.label", "testConnection has no label"
    if not any(
        "x-options" in member for one in definition.actions for member in one.members.values()
    ):
        yield "options.offered", "no parameter has x-options"
    if not any({"verify", "unsubscribe", "catchUp"} <= set(one.raw) for one in definition.triggers):
        yield "webhook.complete", "no webhook trigger has verify, unsubscribe and catchUp"


__all__ = ["GRADES", "RULES", "Grade", "Report", "Told", "lint_connector"]
