"""Reading a workflow document: every error at once, each with its code, place and a remedy."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace

import orjson

from stackd.core.errors import TooLargeError
from stackd.core.json import Json, dumps, loads
from stackd.workflows.code import SyntaxOf
from stackd.workflows.coverage import CoverageOf
from stackd.workflows.findings import DocumentError, Finding, Remarks
from stackd.workflows.lint import lint
from stackd.workflows.model import Workflow
from stackd.workflows.source import SourceError, read_source


@dataclass(frozen=True, slots=True)
class Document:
    """A usable document. `text`: its JSON, in its own order; `content_hash`: SHA-256 of it with sorted keys."""

    workflow: Workflow = field(repr=False)
    text: bytes = field(repr=False)
    content_hash: str
    warnings: tuple[Finding, ...]

    @property
    def id(self) -> str:
        return self.workflow.id


def read_document(
    data: bytes,
    *,
    name: str,
    max_bytes: int,
    coverage: CoverageOf | None = None,
    syntax: SyntaxOf | None = None,
) -> Document:
    """The workflow in `data`, YAML 1.2 or JSON. `name`, a file's, begins the message of an error.

    `coverage`: what can run its operations; `syntax`: whether its code can run; None: nothing is told of that.

    Raises:
        TooLargeError: it is longer than `max_bytes`.
        DocumentError: it cannot be used, with all that was found.
    """
    if len(data) > max_bytes:
        raise TooLargeError(
            f"{name} is {len(data):,} bytes, over the limit of {max_bytes:,}",
            code="document.too_large",
        )
    try:
        source = read_source(data)
    except SourceError as error:
        found = Finding(error.code, error.message, error.line, error.column, hint=error.hint)
        raise DocumentError(name, [found], errors=1) from None
    remarks = Remarks()
    lint(source.value, remarks, coverage, syntax)
    findings = remarks.shown(source)
    if remarks.errors:
        raise DocumentError(name, findings, errors=remarks.errors)
    return Document(
        Workflow.model_validate(source.value),
        dumps(source.value),
        hashlib.sha256(_canonical(source.value)).hexdigest(),
        tuple(findings),
    )


def with_content(document: Document, content: Json) -> Document:
    """`document`, to be stored with another content that means the same."""
    return replace(
        document,
        text=dumps(content),
        content_hash=hashlib.sha256(_canonical(content)).hexdigest(),
    )


def findings_in(
    data: bytes,
    *,
    name: str,
    max_bytes: int,
    coverage: CoverageOf | None = None,
    syntax: SyntaxOf | None = None,
) -> list[Finding]:
    """All that there is to say of a document, errors first. Raises TooLargeError as `read_document`."""
    try:
        document = read_document(
            data, name=name, max_bytes=max_bytes, coverage=coverage, syntax=syntax
        )
        return list(document.warnings)
    except DocumentError as error:
        return error.findings


def load_stored(text: bytes) -> Workflow:
    """The workflow of a text that `read_document` made."""
    return Workflow.model_validate(loads(text))


def _canonical(value: Json) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # integers beyond 64 bits
        return json.dumps(
            value, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False
        ).encode()
