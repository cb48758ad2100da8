"""An execution as a person reads it: its node runs as a tree, each with a bar on the execution's own time axis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stackd.cli.context import Line, seconds, short_error
from stackd.core.clock import epoch
from stackd.core.text import plain

BAR_WIDTH = 32
FIRST_SHOWN = 3  # iterations of a loop
ODD_SHOWN = 10  # further ones: those that did not simply complete

STYLES = {
    "completed": "green",
    "failed": "bold red",
    "uncertain": "bold magenta",
    "running": "cyan",
    "waiting": "yellow",
    "queued": "yellow",
    "skipped": "dim",
    "cancelled": "dim",
    "pending": "dim",
}
_SETTLED = ("completed", "skipped")
_METADATA = {
    "integrationFallbackReason": "by generic HTTP:",
    "fallbackSuppressedReason": "not by generic HTTP:",
    "waitsForTurnUntil": "waits for its turn until",
}


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of the tree: a node run, or (`node` None) what stands for those that are left out."""

    label: str
    node: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class _Axis:
    """From when to when the execution lasted, or has lasted by now; epoch seconds."""

    start: float
    end: float

    def bar(self, start: float, end: float, *, is_open: bool) -> str:
        scale = BAR_WIDTH / max(self.end - self.start, 0.001)
        first = min(int((start - self.start) * scale), BAR_WIDTH - 1)
        length = max(1, min(round((end - start) * scale), BAR_WIDTH - first))
        return " " * first + ("┅" if is_open else "━") * length


def node_lines(view: dict[str, Any], *, now: float) -> list[Line]:
    """A line per node run, and one for the error of each that has one."""
    axis = _axis(view, now)
    rows = list(_rows(view["nodes"], "at least " if view["moreNodes"] else ""))
    width = max((len(row.label) for row in rows), default=0)
    lines: list[Line] = []
    for row in rows:
        if row.node is None:
            lines.append([(f"  {row.label}", "dim")])
            continue
        lines.append(_line(row.label.ljust(width), row.node, axis))
        if row.node["error"]:
            lines.append([(f"  {'':<{width}}  {short_error(row.node['error'])}", "red")])
        lines += [[(f"  {'':<{width}}  {words}", "dim")] for words in _told(row.node["metadata"])]
    return lines


def _told(metadata: dict[str, Any]) -> Iterator[str]:
    """What a node run says of how it ran, where that was not simply by its handler."""
    for key, words in _METADATA.items():
        if isinstance(told := metadata.get(key), str):
            yield f"{words} {plain(told)}"


def _line(label: str, node: dict[str, Any], axis: _Axis) -> Line:
    status, took, bar = node["status"], node["durationMs"], ""
    start = _instant(node["startedAt"])
    if start is not None:
        is_open = took is None
        end = axis.end if is_open else start + took / 1000
        took = (end - start) * 1000 if is_open else took
        bar = axis.bar(start, end, is_open=is_open)
    tries = f" x{node['attempt']}" if node["attempt"] > 1 else ""
    style = STYLES.get(status, "")
    told = f"{status + tries:<12}"
    return [(f"  {label}  ", ""), (told, style), (f" {seconds(took):>8} ", ""), (bar, style)]


def _axis(view: dict[str, Any], now: float) -> _Axis:
    began = [_instant(node["startedAt"]) for node in view["nodes"]]
    ends = [
        at + node["durationMs"] / 1000
        for at, node in zip(began, view["nodes"], strict=True)
        if at is not None and node["durationMs"] is not None
    ]
    first = _instant(view["startedAt"])
    starts = [at for at in (first, *began) if at is not None]
    last = _instant(view["finishedAt"])
    start = min(starts, default=now)
    return _Axis(start, max([now if last is None else last, start, *ends]))


def _instant(text: str | None) -> float | None:
    """The instant as epoch seconds; None if there is none, or what a daemon of another version calls one."""
    if text is None:
        return None
    try:
        return epoch(text)
    except ValueError:
        return None


def _rows(nodes: list[dict[str, Any]], bound: str) -> Iterator[_Row]:
    """The tree from its roots on. `loop[3].price` is a child of `loop`, if that is there.

    `bound`: stands before how many are left out, if nobody here knows all of them.
    """
    keys = {node["id"] for node in nodes}
    below: dict[str | None, list[dict[str, Any]]] = {}
    for node in nodes:
        parent = _split(node["id"])[0]
        below.setdefault(parent if parent in keys else None, []).append(node)
    for node in below.get(None, []):
        yield _Row(node["id"], node)
        yield from _children(node["id"], below, "", bound)


def _children(
    key: str, below: dict[str | None, list[dict[str, Any]]], indent: str, bound: str
) -> Iterator[_Row]:
    """The runs inside a loop, by iteration: the first few, those that went otherwise, and how many more."""
    iterations: dict[int, list[dict[str, Any]]] = {}
    for node in below.get(key, []):
        iterations.setdefault(_split(node["id"])[1], []).append(node)
    order = sorted(iterations)
    odd = [
        i for i in order[FIRST_SHOWN:] if any(n["status"] not in _SETTLED for n in iterations[i])
    ]
    shown = {*order[:FIRST_SHOWN], *odd[:ODD_SHOWN]}
    hidden = [i for i in order if i not in shown]
    visible = [node for i in order if i in shown for node in iterations[i]]
    for place, node in enumerate(visible):
        is_last = place == len(visible) - 1 and not hidden
        yield _Row(f"{indent}{'└─' if is_last else '├─'} {node['id'][len(key) :]}", node)
        yield from _children(node["id"], below, indent + ("   " if is_last else "│  "), bound)
    if hidden:
        states = Counter(node["status"] for i in hidden for node in iterations[i])
        told = ", ".join(f"{count} {status}" for status, count in states.most_common())
        yield _Row(f"{indent}└─ … {bound}{len(hidden)} more ({told})", None)


def _split(key: str) -> tuple[str | None, int]:
    """The loop that a key lies in, and the iteration: `loop[3].price` lies in number 3 of `loop`."""
    around, dot, _ = key.rpartition(".")
    loop, bracket, index = around.rpartition("[")
    if dot and bracket and index[:-1].isdecimal() and index.endswith("]"):
        return loop, int(index[:-1])
    return None, 0
