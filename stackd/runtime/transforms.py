"""What the nodes do that only compute: branches, switches, merges, lists, texts. Pure.

A handler is given the rendered parameters. What a node evaluates itself is evaluated before: one expression
for each item of a list gives the list of its values, the cases of a switch give the one that is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from stackd.core.clock import Clock
from stackd.core.errors import InputError, NodeError
from stackd.core.json import Json, loads_strict
from stackd.runtime.frame import Frame
from stackd.workflows.checks import case_name, parse_path
from stackd.workflows.expressions import OMIT, Scope, evaluate
from stackd.workflows.filters.values import (
    MAX_RENDERED_BYTES,
    MAX_STEPS,
    over_limit,
    require_order,
    text_of,
)
from stackd.workflows.graph import Condition, GraphNode

PureHandler = Callable[[dict[str, Json]], Json]

MAX_NODE_STEPS = 100 * MAX_STEPS  # of all evaluations for a list: about a second


class Evaluation:
    """The value of a node's one parameter per item, for each of `items`, evaluated a share at a time.

    Attributes:
        params: the parameter with the list of its values, once `proceed` is done.
        size: about how many bytes of JSON they are.
    """

    def __init__(self, node: GraphNode, scope: Scope, items: list[Json]) -> None:
        self._scope = scope
        self._items = items
        self._values: list[Json] = []
        self._steps = MAX_NODE_STEPS
        self.size = 0
        self.params: dict[str, Json] = {}
        self._evaluate: Callable[[Scope], Json] = lambda _: None
        for name, template in node.per_item.items():
            self.params[name], self._evaluate = self._values, template.render
        for name, expression in node.expressions.items():
            self.params[name], self._evaluate = self._values, _evaluator(expression)
        if not self.params:  # nothing is asked of the items
            self._items = []

    def proceed(self, *, for_seconds: float, clock: Clock) -> bool:
        """Evaluate further items, for about so long; whether all are done.

        Raises:
            ExpressionError: of an item, which it names; or all together are too much.
        """
        until = clock.monotonic() + for_seconds
        for index in range(len(self._values), len(self._items)):
            scope = self._scope.child({"item": self._items[index], "index": index}, f"[{index}]")
            try:
                self._values.append(self._evaluate(scope))
            except InputError as error:
                error.message = f"item {index}: {error.message}"
                raise
            self._steps -= MAX_STEPS - scope.budget.steps
            self.size += scope.budget.charged
            if self._steps < 0 or self.size > MAX_RENDERED_BYTES:
                raise over_limit("too much work for all the items together")
            if clock.monotonic() > until:
                return len(self._values) == len(self._items)
        return True


def _evaluator(condition: Condition) -> Callable[[Scope], Json]:
    if isinstance(condition, bool):
        return lambda _: condition
    return lambda scope: evaluate(condition, scope)


def evaluated(
    node: GraphNode, scope: Scope, params: dict[str, Json], frame: Frame
) -> dict[str, Json]:
    """The parameters of a logic node with what it evaluates itself: its condition, its case, what leads to it.

    Raises:
        ExpressionError: an expression cannot be evaluated.
    """
    match node.type:
        case "logic.branch":
            return params | {"condition": _evaluator(node.expressions["condition"])(scope)}
        case "logic.switch":
            return params | {"case": _case(node, scope, params.get("value"))}
        case "logic.merge":
            return params | {"inputs": frame.inputs(node)}
        case _:
            return params


def _case(node: GraphNode, scope: Scope, value: Json) -> str:
    """The first case that fits; conditions behind it are not looked at."""
    name = None if isinstance(value, dict | list) or value is None else case_name(value)
    for case in node.cases:
        is_taken = case.name == name if case.when is None else _evaluator(case.when)(scope)
        if is_taken:
            return case.name
    return "default"


def set_values(params: dict[str, Json]) -> Json:
    """`transform.data.set`: the rendered values, as they are."""
    return params["values"]


def format_text(params: dict[str, Json]) -> Json:
    """`transform.text.format`: the template with its expressions filled in, as text."""
    return text_of(params["template"], "template")


def extract(params: dict[str, Json]) -> Json:
    """`transform.json.extract`: what stands at a path, or a map of what stands at several.

    A value that is text is read as JSON first.

    Raises:
        NodeError: the text is no JSON, or nothing stands there and there is no default.
    """
    value = params["value"]
    if isinstance(value, str):
        try:
            value = loads_strict(value.encode())
        except (InputError, UnicodeEncodeError) as error:
            words = error.message if isinstance(error, InputError) else "half a character"
            raise _invalid(f"the value is no JSON: {words}", "extract.invalid_json") from error
    if "path" in params:
        return _at(value, params["path"], params)
    return {name: _at(value, path, params) for name, path in params["paths"].items()}


def _at(value: Json, path: str, params: dict[str, Json]) -> Json:
    try:
        return _walk(value, parse_path(path))
    except LookupError:
        if "default" in params:
            return params["default"]
        raise _invalid(f"there is nothing at {path!r}", "extract.missing") from None


def _walk(value: Json, steps: tuple[str | int | None, ...]) -> Json:
    """What stands at the end of `steps`; LookupError if nothing does."""
    for number, step in enumerate(steps):
        if step is None:
            if not isinstance(value, list | dict):
                raise LookupError
            elements = value if isinstance(value, list) else value.values()
            return [_walk(element, steps[number + 1 :]) for element in elements]
        wanted = list if isinstance(step, int) else dict
        if type(value) is not wanted:
            raise LookupError
        value = value[step]  # type: ignore[index]  # an index of a list, a key of a map
    return value


def _invalid(message: str, code: str) -> NodeError:
    return NodeError(message, kind="invalid", code=code, answered=True)


def filter_items(params: dict[str, Json]) -> Json:
    """`transform.list.filter`: the items for which `where` is true."""
    return [item for item, keep in zip(params["items"], params["where"], strict=True) if keep]


def map_items(params: dict[str, Json]) -> Json:
    """`transform.list.map`: for each item what `to` makes of it; what is omitted is left out."""
    return [value for value in params["to"] if value is not OMIT]


def sort_items(params: dict[str, Json]) -> Json:
    """`transform.list.sort`: the items by `by`, or by themselves; equal ones keep their order."""
    items: list[Json] = params["items"]
    keys: list[Json] = params.get("by", items)
    require_order(keys, "by")
    is_falling = params.get("order") == "desc"
    order = sorted(range(len(items)), key=keys.__getitem__, reverse=is_falling)
    return [items[index] for index in order]


def limit_items(params: dict[str, Json]) -> Json:
    """`transform.list.limit`: up to `count` items from the start or the end, `offset` of them left out."""
    items, offset = params["items"], params.get("offset", 0)
    if params.get("from") == "end":
        end = max(len(items) - offset, 0)
        return items[max(end - params["count"], 0) : end]
    return items[offset : offset + params["count"]]


def group_items(params: dict[str, Json]) -> Json:
    """`transform.list.group`: `{key, items}` for each value of `by`, in the order they first appear."""
    groups: dict[tuple[str, Json], list[Json]] = {}
    for item, key in zip(params["items"], params["by"], strict=True):
        if isinstance(key, dict | list) or key is OMIT:
            raise _invalid("by must give text, a number, true, false or null", "group.bad_key")
        kind = "number" if type(key) in (int, float) else type(key).__name__
        groups.setdefault((kind, key), []).append(item)
    return [{"key": key, "items": items} for (_, key), items in groups.items()]


def branch(params: dict[str, Json]) -> Json:
    """`logic.branch`: whether the condition holds, and with it which edges are taken."""
    holds = bool(params["condition"])
    return {"case": case_name(holds), "result": holds}


def switch(params: dict[str, Json]) -> Json:
    """`logic.switch`: the case that was chosen, and the value, if it has one."""
    value = {"value": params["value"]} if "value" in params else {}
    return {"case": params["case"], **value}


def merge(params: dict[str, Json]) -> Json:
    """`logic.merge`: what the nodes gave from which taken edges lead here.

    By node id; as a list; as one map, where later ones win; or the first that is not null.
    """
    inputs: dict[str, Json] = params["inputs"]
    match params.get("mode", "byNode"):
        case "list":
            return list(inputs.values())
        case "object":
            return _one_map(inputs)
        case "first":
            return next((value for value in inputs.values() if value is not None), None)
        case _:
            return inputs


def _one_map(inputs: dict[str, Json]) -> Json:
    whole: dict[str, Json] = {}
    for source, value in inputs.items():
        if value is not None and not isinstance(value, dict):
            raise _invalid(f"{source} gave no map", "merge.no_map")
        whole |= value or {}
    return whole


PURE_HANDLERS: Final[dict[str, PureHandler]] = {
    "transform.data.set": set_values,
    "transform.json.extract": extract,
    "transform.text.format": format_text,
    "transform.list.filter": filter_items,
    "transform.list.map": map_items,
    "transform.list.sort": sort_items,
    "transform.list.limit": limit_items,
    "transform.list.group": group_items,
    "logic.branch": branch,
    "logic.switch": switch,
    "logic.merge": merge,
}
