"""An import from files to a file: what is asked for, what is there already, and one step from old to new."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stackd.core.errors import ConflictError, InputError
from stackd.core.files import sync_folder
from stackd.core.json import loads_strict
from stackd.core.text import shown
from stackd.integrations.backfill import LONGEST, NAME, written
from stackd.integrations.definition import APP_ID
from stackd.integrations.importer import overlay
from stackd.integrations.importer.document import import_document
from stackd.integrations.importer.reading import read_file
from stackd.integrations.importer.report import Report
from stackd.integrations.importer.schemas import Schema
from stackd.integrations.importer.values import mapping

OVERLAYS: Final = ("overlay.yaml", "overlay.yml", "overlay.json")  # beside a definition


@dataclass(frozen=True, slots=True)
class Outcome:
    """`path`: of the definition; None if there was nothing to write."""

    path: Path | None
    report: Report


def import_openapi(
    spec: Path,
    app_id: str,
    folder: Path,
    *,
    tags: Sequence[str] = (),
    operations: Sequence[str] = (),
    overlay_path: Path | None = None,
    force: bool = False,
) -> Outcome:
    """Write `folder/app_id/definition.json` from the document `spec`; an unchanged document changes no byte.

    Args:
        overlay_path: changes to the document; None: those in an overlay beside the definition, if there is one.
        force: write over a definition whatever it is.

    Raises:
        InputError: the document, the overlay or a name cannot be used, or nothing can be written.
        ConflictError: there is a definition that is not as an import of this document has left it.
    """
    if not re.fullmatch(APP_ID, app_id):
        raise InputError(
            f"{shown(app_id)!r} is no id of a connector", code="import.id",
            hint="a small letter, then small letters, digits, - and _, 64 at the most",
        )  # fmt: skip
    report = Report()
    file = read_file(spec, report)
    target = folder / app_id / NAME
    for path in [overlay_path] if overlay_path else _overlays(target.parent):
        overlay.apply(file.value, read_file(path, report).value, path.name, report)
    made = import_document(file, app_id, report, tags=tags, operations=operations)
    if made.definition is None:
        return Outcome(None, report)
    definition = _encodable(made.definition)
    text = _marked(definition)
    if not force:
        _refuse_other(target, definition)
    _put(target, text)
    return Outcome(target, report)


def _overlays(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [path for path in (folder / name for name in OVERLAYS) if path.is_file()][:1]
    return []


def _marked(definition: Schema) -> bytes:
    """The definition as it is written, with a digest of itself, so that edits can be told."""
    definition["x-origin"]["digest"] = _digest(definition)
    return written(definition)


def _encodable(definition: Schema) -> Schema:
    """`definition` without half characters, which JSON can escape and UTF-8 cannot hold."""
    try:
        written(definition)
    except UnicodeEncodeError:
        text = json.dumps(definition, ensure_ascii=False).encode(errors="replace")
        return mapping(json.loads(text))
    return definition


def _digest(definition: Schema) -> str:
    origin = {key: value for key, value in definition["x-origin"].items() if key != "digest"}
    return hashlib.sha256(written({**definition, "x-origin": origin})).hexdigest()


def _refuse_other(target: Path, definition: Schema) -> None:
    try:
        with target.open("rb") as file:
            known = loads_strict(file.read(LONGEST + 1))
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, InputError):
        known = None
    hint = "--force writes over it"
    origin = known.get("x-origin") if isinstance(known, dict) else None
    if not isinstance(origin, dict) or not isinstance(origin.get("digest"), str):
        raise ConflictError(
            f"{target} is there, and no import wrote it", code="import.exists", hint=hint
        )
    if origin.get("title") != definition["x-origin"]["title"]:
        raise ConflictError(
            f"{target} comes from another document", code="import.exists", hint=hint
        )
    if _digest(known) != origin["digest"]:
        raise ConflictError(
            f"{target} was edited since it was imported", code="import.edited",
            hint="changes in an overlay beside it stay; --force writes over it",
        )  # fmt: skip


def _put(target: Path, text: bytes) -> None:
    """`target` holds `text`, on disk; it is whole at any moment."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        real = target.resolve()  # a link stays one
        descriptor, name = tempfile.mkstemp(dir=real.parent, prefix=f".{NAME}.")
        partial = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), real.stat().st_mode & 0o7777 if real.exists() else 0o644)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(real)
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(real.parent)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written: {error.strerror}", code="connectors.unwritable",
            hint="check its owner, mode and disk",
        ) from None  # fmt: skip
