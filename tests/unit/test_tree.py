"""The tree of an execution: what stands under what, where a bar begins and ends, what is left out."""

from __future__ import annotations

import re
from typing import Any

import pytest

from stackd.cli.tree import BAR_WIDTH, node_lines
from stackd.core.clock import rfc3339

START = 1_700_000_000.0


def run(key: str, at: float | None = 0.0, took: float | None = 1.0, **more: Any) -> dict[str, Any]:
    """A node run that began `at` seconds after the execution and took so many."""
    return {
        "id": key,
        "status": "completed",
        "attempt": 1,
        "startedAt": rfc3339(None if at is None else START + at),
        "durationMs": None if took is None else took * 1000,
        "error": None,
        "metadata": {},
        **more,
    }


def drawn(
    *nodes: dict[str, Any], lasted: float | None = 8.0, now: float = 8.0, more: bool = False
) -> list[str]:
    view = {
        "createdAt": rfc3339(START - 1),
        "startedAt": rfc3339(START),
        "finishedAt": None if lasted is None else rfc3339(START + lasted),
        "moreNodes": more,
        "nodes": list(nodes),
    }
    lines = node_lines(view, now=START + now)
    return ["".join(text for text, _ in line).rstrip() for line in lines]


def bar(line: str) -> tuple[int, int]:
    """Where the bar of a line begins and how long it is, in eighths of the axis."""
    shown = line[line.index("━" if "━" in line else "┅") :]
    cell = BAR_WIDTH / 8
    before = len(line) - len(shown) - line.index(" s ") - 3
    return round(before / cell), round(len(shown) / cell)


def labels(lines: list[str]) -> list[str]:
    return [re.split(r" +(?:completed|failed|uncertain) ", line[2:])[0] for line in lines]


def test_bars_stand_where_the_node_runs_were_in_time() -> None:
    lines = drawn(run("a", 0, 2), run("b", 2, 4), run("c", 6, 2), run("d", 2, 6))

    assert [bar(line) for line in lines] == [(0, 2), (2, 4), (6, 2), (2, 6)]
    assert lines[0].startswith("  a  completed       2.0 s ━")


def test_a_node_run_of_no_time_still_has_a_bar_inside_the_axis() -> None:
    (line,) = drawn(run("a", 8, 0))

    assert line.endswith(" " * (BAR_WIDTH - 1) + "━")


def test_one_that_goes_on_lasts_until_now_and_one_that_never_began_has_no_bar() -> None:
    going, never = drawn(
        run("a", 4, None, status="running"),
        run("b", None, None, status="pending"),
        lasted=None,
        now=8,
    )

    assert "running         4.0 s " in going
    assert (bar(going), going[-1]) == ((4, 4), "┅")
    assert never == "  b  pending"


def test_tries_and_errors_are_told() -> None:
    error = {"code": "http.status", "message": "answered 500", "nodeId": "a"}

    lines = drawn(run("a", status="failed", attempt=3, error=error))

    assert "failed x3" in lines[0]
    assert lines[1] == "     http.status: answered 500"


def test_runs_inside_a_loop_stand_under_it_by_iteration() -> None:
    lines = drawn(
        run("loop"),
        run("loop[1].b"),
        run("loop[0].a"),
        run("after"),
        run("loop[0].b"),
        run("loop[1].a"),
    )

    assert labels(lines) == ["loop", "├─ [0].a", "├─ [0].b", "├─ [1].b", "└─ [1].a", "after"]


def test_a_loop_inside_a_loop_stands_under_its_iteration() -> None:
    lines = drawn(run("l"), run("l[0].m"), run("l[0].m[0].x"), run("l[0].m[1].x"), run("l[1].m"))

    assert labels(lines) == ["l", "├─ [0].m", "│  ├─ [0].x", "│  └─ [1].x", "└─ [1].m"]


def test_of_many_iterations_the_first_are_shown_and_those_that_went_otherwise() -> None:
    odd = {40: "failed", 77: "uncertain"}
    inside = [run(f"loop[{i}].x", status=odd.get(i, "completed")) for i in range(100)]

    lines = drawn(run("loop"), *inside, run("after"))

    assert labels(lines) == [
        "loop",
        "├─ [0].x",
        "├─ [1].x",
        "├─ [2].x",
        "├─ [40].x",
        "├─ [77].x",
        "└─ … 95 more (95 completed)",
        "after",
    ]


def test_where_not_all_node_runs_are_known_no_number_is_claimed() -> None:
    inside = [run(f"loop[{i}].x") for i in range(100)]

    lines = drawn(run("loop"), *inside, more=True)

    assert labels(lines)[-1] == "└─ … at least 97 more (97 completed)"


def test_where_everything_fails_not_everything_is_shown() -> None:
    lines = drawn(run("loop"), *(run(f"loop[{i}].x", status="failed") for i in range(1_000)))

    assert len(lines) == 15
    assert labels(lines)[-1] == "└─ … 987 more (987 failed)"


@pytest.mark.parametrize("key", ["gone[0].x", "a.b", "a[x].b", "[0].a", "a[0]"])
def test_a_run_whose_loop_is_not_there_stands_by_itself(key: str) -> None:
    assert labels(drawn(run("a"), run(key))) == ["a", key]


def test_instants_that_are_none_leave_the_bars_out() -> None:
    (line,) = drawn({**run("a"), "startedAt": "soon"})

    assert line == "  a  completed       1.0 s"


def test_an_execution_without_node_runs_has_no_lines() -> None:
    assert drawn() == []


def test_what_ran_otherwise_than_by_its_handler_says_why_below_it() -> None:
    lines = drawn(
        run(
            "a", metadata={"executor": "generic", "integrationFallbackReason": "no handler\x1b[2J"}
        ),
        run("b", metadata={"executor": "integration"}),
        run("c", metadata={"fallbackSuppressedReason": "the far side has answered 422"}),
    )

    assert [line.strip() for line in lines if "completed" not in line] == [
        "by generic HTTP: no handler\\x1b[2J",
        "not by generic HTTP: the far side has answered 422",
    ]
