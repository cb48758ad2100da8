"""Workflow documents for tests, and what there is to say about them."""

from __future__ import annotations

import pytest

from stackd.workflows.document import Document, read_document
from stackd.workflows.findings import DocumentError, Finding


def read(text: str | bytes) -> Document:
    data = text if isinstance(text, bytes) else text.encode()
    return read_document(data, name="flow.yaml", max_bytes=1024 * 1024)


def findings(text: str | bytes) -> list[Finding]:
    """Everything that is said about a document that is refused."""
    with pytest.raises(DocumentError) as caught:
        read(text)
    return caught.value.findings


def flow(*nodes: str, edges: str = "", top: str = "") -> str:
    """A document with a manual trigger `start` before `nodes`; `top`: lines before them."""
    listed = "".join(f"  - {node}\n" for node in nodes)
    return (
        f"id: x\n{top}nodes:\n  - {{id: start, type: trigger.time.manual}}\n{listed}"
        f"edges: [{edges}]\n"
    )


def SET(node_id: str, extra: str = "", *, v: str = "") -> str:  # noqa: N802
    values = f"v: {v}" if v else ""
    return (
        f"{{id: {node_id}, type: transform.data.set{extra and f', {extra}'}, "
        f"params: {{values: {{{values}}}}}}}"
    )
