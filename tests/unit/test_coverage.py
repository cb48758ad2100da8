"""What lint says of operations that nothing can run, or that no handler of their own does."""

from __future__ import annotations

import pytest

from stackd.core.coverage import Coverage
from stackd.workflows.coverage import UncoveredError, findings_of, refuse_uncovered
from stackd.workflows.document import read_document

DOCUMENT = """id: orders
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: native, type: action.desk.native}
  - {id: fallback, type: action.desk.fallback}
  - {id: gone, type: action.desk.gone}
  - {id: off, type: action.desk.gone, disabled: true}
  - {id: tested, type: action.desk.gone, pinned: {a: 1}}
  - id: each
    type: logic.foreach
    params:
      items: [1, 2]
      nodes:
        - {id: inside, type: action.desk.gone}
  - id: never
    type: logic.foreach
    disabled: true
    params: {items: [1]}
    nodes:
      - {id: unreached, type: action.desk.gone}
edges:
  - {from: start, to: native}
  - {from: native, to: fallback}
  - {from: fallback, to: gone}
  - {from: gone, to: off}
  - {from: off, to: tested}
  - {from: tested, to: each}
  - {from: each, to: never}
"""


def coverage(app: str, operation: str) -> Coverage:
    if operation == "fallback":
        return Coverage(app, operation, "fallback", None, "http", "runtime.fallback", "by HTTP")
    if operation == "gone":
        return Coverage(
            app, operation, "unavailable", "missing-operation", None, "runtime.no_runtime", "why"
        )
    return Coverage(app, operation, "native")


def test_a_document_is_told_of_each_with_its_place_also_in_loops():
    document = read_document(DOCUMENT.encode(), name="d", max_bytes=10_000, coverage=coverage)

    told = [(one.code, one.line, one.column, one.bars) for one in document.warnings]
    assert told == [
        ("runtime.no_runtime", 6, 16, True),
        ("runtime.no_runtime", 14, 24, True),
        ("runtime.fallback", 5, 20, False),
    ]
    assert document.warnings[0].message == "gone: Desk gone is not enabled in Python: why"
    assert {one.severity for one in document.warnings} == {"warning"}


def test_what_is_stored_is_told_the_same_without_places():
    document = read_document(DOCUMENT.encode(), name="d", max_bytes=10_000, coverage=coverage)

    stored = list(findings_of(document.workflow.nodes, coverage))

    assert {(one.code, one.message, one.hint, one.bars) for one in stored} == {
        (one.code, one.message, one.hint, one.bars) for one in document.warnings
    }
    assert {one.line for one in stored} == {None}


def test_without_anybody_to_ask_nothing_is_told():
    assert read_document(DOCUMENT.encode(), name="d", max_bytes=10_000).warnings == ()


def test_a_refusal_names_the_first_and_counts_the_others_and_a_fallback_is_none():
    warnings = read_document(
        DOCUMENT.encode(), name="d", max_bytes=10_000, coverage=coverage
    ).warnings

    with pytest.raises(UncoveredError) as caught:
        refuse_uncovered("orders", warnings, name="orders.yaml")
    refuse_uncovered("orders", [one for one in warnings if one.code == "runtime.fallback"])

    assert caught.value.message == (
        "orders cannot be activated: orders.yaml:6:16: "
        "gone: Desk gone is not enabled in Python: why (and 1 more)"
    )
    assert (caught.value.code, caught.value.status) == ("runtime.no_runtime", 409)
    assert {one.severity for one in caught.value.findings} == {"error"}


def test_what_bars_is_told_before_a_flood_of_other_warnings():
    nodes = "".join(f"  - {{id: n{index}, type: action.desk.fallback}}\n" for index in range(150))
    text = f"id: w\nnodes:\n  - {{id: start, type: trigger.time.manual}}\n{nodes}"
    text += "  - {id: last, type: action.desk.gone}\n"

    document = read_document(text.encode(), name="d", max_bytes=100_000, coverage=coverage)

    assert len(document.warnings) == 100
    assert document.warnings[0].message.startswith("last: ")
    with pytest.raises(UncoveredError):
        refuse_uncovered("w", document.warnings)
