"""Documents that services publish are imported whole. They are not part of the project: a folder of them is named."""

from __future__ import annotations

import os
from pathlib import Path

import jsonschema_rs
import pytest
from support.imported import assert_whole

from stackd.integrations.importer.document import import_document
from stackd.integrations.importer.reading import read_file
from stackd.integrations.importer.report import Report

FOLDER = os.environ.get("STACKD_TEST_OPENAPI_DIR", "")
NAMES = ("docker-engine.yaml", "gotify.json", "notion.json", "petstore3.yaml")


def documents() -> list[str]:
    """All there are in the folder, and those that should be."""
    found = (
        [path.name for path in Path(FOLDER).iterdir()] if FOLDER and Path(FOLDER).is_dir() else []
    )
    return sorted({*NAMES, *(name for name in found if name.endswith((".json", ".yaml", ".yml")))})


@pytest.mark.parametrize("name", documents())
def test_public_document_is_imported_whole(name: str) -> None:
    path = Path(FOLDER) / name
    if not FOLDER or not path.is_file():
        pytest.skip(f"STACKD_TEST_OPENAPI_DIR names no folder with {name}")

    report = Report()
    made = import_document(read_file(path, report), "tried", report)

    assert made.definition is not None
    assert report.imported >= 0.99 * report.operations > 0
    assert report.imported + len(report.skipped) == report.operations
    assert not [one for one in report.skipped if one.reason.startswith("fault")]
    assert_whole(made.definition)
    schemas = made.definition.get("schemas", {})
    for action in made.definition["actions"]:
        for schema in (action["parameters"], action["outputSchema"]):
            jsonschema_rs.Draft202012Validator({**schema, "schemas": schemas})
