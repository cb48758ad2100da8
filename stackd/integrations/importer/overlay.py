"""OpenAPI Overlays (spec.openapis.org/overlay/v1.0.0): changes to a document, made again at each import of it.

Of JSONPath what overlays use: members, indexes, `*`, `..` and filters that compare one member with a literal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from stackd.core.errors import InputError
from stackd.core.json import Json
from stackd.core.text import shown
from stackd.integrations.importer.report import Report
from stackd.integrations.importer.values import mapping, text

MAX_VISITED: Final = 2_000_000  # parts of a document that one target may look at

_STEP: Final = re.compile(
    r"""(?P<deep>\.\.)?\.?(?:
        (?P<name>[A-Za-z_$\u0080-\uffff][\w$-]*) | (?P<any>\*)
        | \[\s*(?:'(?P<single>(?:[^'\\]|\\.)*)' | "(?P<double>(?:[^"\\]|\\.)*)" | (?P<index>-?\d{1,9}) | (?P<all>\*)
          | \?\(?\s*@(?P<member>(?:\.[\w$-]+|\['[^']*'\])+)\s*(?:(?P<sign>==|!=)\s*(?P<literal>'[^']*'|"[^"]*"|[\w.-]+)\s*)?\)?
          )\s*\]
    )""",
    re.VERBOSE,
)
_Spot = tuple[Any, Any]  # what holds it, and under which key or index


def apply(document: Json, overlay: Json, name: str, report: Report) -> None:
    """Change `document` as `overlay` says, action by action; what finds no target is told.

    Raises:
        InputError: it is no overlay, or a target cannot be read; names `name`.
    """
    if (
        not isinstance(overlay, dict)
        or "overlay" not in overlay
        or not isinstance(overlay.get("actions"), list)
    ):
        raise InputError(
            f"{name} is no overlay: `overlay` and `actions` are missing", code="import.overlay"
        )
    for action in overlay["actions"]:
        target = text(mapping(action).get("target"))
        spots = _found(document, target, name)
        if not spots:
            report.guess(name, f"the target {shown(target)!r} is nowhere")
        if action.get("remove") is True:
            for holder, key in reversed(spots):
                if isinstance(holder, dict):
                    holder.pop(key, None)
                elif isinstance(holder, list) and key < len(holder):
                    del holder[key]
        elif "update" in action:
            for holder, key in spots:
                holder[key] = _updated(holder[key], action["update"])


def _updated(known: Json, update: Json) -> Json:
    """Maps are merged, lists grow by one, all else is replaced; without recursion, and without sharing."""
    if isinstance(known, list):
        known.append(update)
        return known
    if not (isinstance(known, dict) and isinstance(update, dict)):
        return update
    pending = [(known, update)]
    while pending:
        into, given = pending.pop()
        for key, value in given.items():
            inner = into.get(key)
            if isinstance(inner, dict) and isinstance(value, dict):
                pending.append((inner, value))
            elif isinstance(inner, list) and isinstance(value, list):
                inner.extend(value)
            else:
                into[key] = value
    return known


def _found(document: Json, target: str, name: str) -> list[_Spot]:
    if not target.startswith("$"):
        raise _unreadable(target, name)
    spots: list[_Spot] = [({"$": document}, "$")]
    at = 1
    while at < len(target):
        step = _STEP.match(target, at)
        if step is None or step.end() == at:
            raise _unreadable(target, name)
        at = step.end()
        spots = list(_stepped(spots, step))
    return spots


def _unreadable(target: str, name: str) -> InputError:
    return InputError(f"{name}: the target {shown(target)!r} cannot be read", code="import.overlay")


def _stepped(spots: list[_Spot], step: re.Match[str]) -> Iterator[_Spot]:
    values = [holder[key] for holder, key in spots]
    if step["deep"]:
        values = list(_below(values))
    wanted = next(
        (step[one] for one in ("name", "single", "double") if step[one] is not None), None
    )
    if wanted is not None and step["name"] is None:
        wanted = re.sub(r"\\(.)", r"\1", wanted)
    for value in values:
        if wanted is not None:
            if isinstance(value, dict) and wanted in value:
                yield value, wanted
        elif step["index"] is not None:
            index = int(step["index"])
            if isinstance(value, list) and -len(value) <= index < len(value):
                yield value, index % len(value)
        else:
            for key in (
                list(value)
                if isinstance(value, dict)
                else range(len(value))
                if isinstance(value, list)
                else ()
            ):
                if step["member"] is None or _passes(value[key], step):
                    yield value, key


def _below(values: list[Json]) -> Iterator[Json]:
    seen: set[int] = set()
    waiting = list(reversed(values))
    while waiting and len(seen) < MAX_VISITED:
        value = waiting.pop()
        if not isinstance(value, dict | list) or id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        waiting += reversed(list(value.values()) if isinstance(value, dict) else value)


def _passes(value: Json, step: re.Match[str]) -> bool:
    for part in re.findall(r"\.([\w$-]+)|\['([^']*)'\]", step["member"]):
        name = part[0] or part[1]
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    if step["sign"] is None:
        return True
    literal: Json = step["literal"]
    if literal[0] in "'\"":
        literal = literal[1:-1]
    else:
        try:
            literal = json.loads(literal)
        except ValueError:
            return False
    is_same: bool = value == literal and type(value) is type(literal)
    return is_same if step["sign"] == "==" else not is_same
