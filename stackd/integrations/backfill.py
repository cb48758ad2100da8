"""Fills in what each operation of a definition has to say, where it says nothing; what is there is kept.

Repeatable: a second run changes nothing, to the byte. The rules are the origin's, with `python` for its `node`.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stackd.core.errors import InputError
from stackd.core.json import Json, loads_strict

NAME: Final = "definition.json"
LONGEST: Final = (
    64 * 1024 * 1024
)  # bytes of a definition; those that are known have less than one hundredth

SEEDED_RUNTIMES: Final = ("python",)
SEEDED_DEDUPE: Final = {"strategy": "cursor", "cursor": {"path": "cursor"}}

Fill = Callable[
    [Json], int
]  # fills in a definition where it stands; how many operations it changed


@dataclass(frozen=True, slots=True)
class Patch:
    """What becomes of one file. `operations`: how many of it change."""

    path: Path
    before: bytes
    after: bytes
    operations: int


@dataclass(frozen=True, slots=True)
class Seeded:
    """A connector. `triggers`: by name, what of each is as it was filled in; without those of which nothing is."""

    connector: str
    triggers: dict[str, list[str]]


def default_actions(definition: Json) -> int:
    """Give each action `runtimes` and `fallback`."""
    return _fill(definition, "actions", _runtime_and_fallback)


def seed_trigger_fallbacks(definition: Json) -> int:
    """Give each trigger `runtimes`, `fallback` and `dedupe`."""

    def fill(trigger: dict[str, Json]) -> None:
        _runtime_and_fallback(trigger)
        if not isinstance(trigger.get("dedupe"), dict | list):  # a list is an object to the origin
            trigger["dedupe"] = deepcopy(SEEDED_DEDUPE)

    return _fill(definition, "triggers", fill)


def both(definition: Json) -> int:
    """All defaults, in the order in which the two are run."""
    return default_actions(definition) + seed_trigger_fallbacks(definition)


def seeded(place: Path) -> Seeded:
    """What the triggers of the connector in `place` still have as it was filled in: for a person to tighten.

    Raises:
        InputError: its definition cannot be read; names it.
    """
    path = place / NAME
    try:
        _, definition = _read(path)
    except InputError as error:
        raise InputError(error.message, code=error.code) from None  # nothing was to be written
    own = definition.get("id") if isinstance(definition, dict) else None
    found: dict[str, list[str]] = {}
    for name, trigger in _named(definition, "triggers"):
        if what := _as_filled_in(trigger):
            found[name] = what
    return Seeded(own if isinstance(own, str) and own.strip() else place.name, found)


def _as_filled_in(trigger: dict[str, Json]) -> list[str]:
    what = []
    dedupe = trigger.get("dedupe")
    cursor = dedupe.get("cursor") if isinstance(dedupe, dict) else None
    if isinstance(cursor, dict) and cursor.get("path") == "cursor":
        what.append("cursor path")
    if dedupe == SEEDED_DEDUPE:
        what.append("dedupe")
    if trigger.get("runtimes") in (list(SEEDED_RUNTIMES), ["node"]):  # the origin's own filling in
        what.append("runtimes")
    return what


def _runtime_and_fallback(operation: dict[str, Json]) -> None:
    runtimes = operation.get("runtimes")
    if not isinstance(runtimes, list) or not runtimes:
        operation["runtimes"] = list(SEEDED_RUNTIMES)
    operation.setdefault("fallback", None)


def _fill(definition: Json, kind: str, fill: Callable[[dict[str, Json]], None]) -> int:
    changed = 0
    for operation in _operations(definition, kind):
        before = deepcopy(operation)
        fill(operation)
        changed += operation != before
    return changed


def _operations(definition: Json, kind: str) -> Iterator[dict[str, Json]]:
    """Those of a definition that are maps, from a list or from a map."""
    return (one for _, one in _named(definition, kind))


def _named(definition: Json, kind: str) -> Iterator[tuple[str, dict[str, Json]]]:
    """The same with what each is called: its id, else its key or its number."""
    found = definition.get(kind) if isinstance(definition, dict) else None
    pairs = enumerate(found, 1) if isinstance(found, list) else ()
    for key, one in found.items() if isinstance(found, dict) else pairs:
        if isinstance(one, dict):
            yield str(one.get("id", key)), one


def patches(folder: Path, fill: Fill) -> list[Patch]:
    """What `fill` changes in the definitions below `folder`, by path; nothing is written.

    Raises:
        InputError: there is no such folder, or a definition cannot be read; names it.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder", code="connectors.no_folder", hint="name the one to go through"
        )
    found = (_patch(path, fill) for path in sorted(folder.rglob(NAME)))
    return [patch for patch in found if patch is not None]


def _patch(path: Path, fill: Fill) -> Patch | None:
    before, definition = _read(path)
    operations = fill(definition)
    return Patch(path, before, written(definition), operations) if operations else None


def _read(path: Path) -> tuple[bytes, Json]:
    """The text of a definition, and what it holds."""
    try:
        with path.open("rb") as file:
            before = file.read(LONGEST + 1)
    except OSError as error:
        raise _unusable(path, str(error.strerror)) from None
    if len(before) > LONGEST:
        raise _unusable(path, f"is over {LONGEST:,} bytes")
    try:
        return before, loads_strict(before)
    except InputError as error:
        raise _unusable(path, error.message) from None


def _unusable(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path}: {reason}", code="connectors.unreadable", hint="nothing was written; mend it first"
    )


def written(definition: Json) -> bytes:
    """`definition` as definitions are kept: two spaces, keys in their order, a newline at the end."""
    return (json.dumps(definition, indent=2, ensure_ascii=False) + "\n").encode()


def write(patches: Sequence[Patch]) -> None:
    """Write all, or none as far as that can be: each file is whole, as it was or as it shall be.

    Raises:
        InputError: a file cannot be written, or has changed meanwhile; names it.
    """
    with contextlib.ExitStack() as stack:
        ready = [(patch, stack.enter_context(_beside(patch))) for patch in patches]
        for patch in patches:
            with _naming(patch.path):
                if patch.path.read_bytes() != patch.before:
                    raise _unusable(patch.path, "has changed meanwhile")
        for patch, partial in ready:
            with _naming(patch.path):
                partial.replace(_target(patch.path))


@contextlib.contextmanager
def _beside(patch: Patch) -> Iterator[Path]:
    """The new content in a file of its own, on disk, that may take the old one's place; gone afterwards if it did not."""
    target = _target(patch.path)
    with _naming(patch.path):
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{NAME}.")
        partial = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), target.stat().st_mode & 0o7777)
                file.write(patch.after)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            partial.unlink()
            raise
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    return path.resolve()  # a link stays one


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}",
            code="connectors.unwritable",
            hint="check its owner, mode and disk; a second run does what is left",
        ) from None
