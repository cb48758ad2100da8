"""A part of a document as its model, as far as it can be understood; what cannot is told in our words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stackd.core.json import Json
from stackd.core.text import shown
from stackd.workflows.findings import Remarks
from stackd.workflows.model import Node, Retry
from stackd.workflows.source import Place

M = TypeVar("M", bound=BaseModel)

# pydantic's kind of problem → what the value must be; its own context fills in the numbers.
_WORDS: Final = {
    "bool_type": "must be true or false",
    "dict_type": "must be a map",
    "greater_than_equal": "must be at least {ge:,}",
    "int_type": "must be a whole number",
    "less_than_equal": "must be at most {le:,}",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "model_type": "must be a map",
    "string_too_long": "must be at most {max_length:,} characters",
    "string_too_short": "must not be empty",
    "string_type": "must be text",
    "tuple_type": "must be a list",
}
_NODE_ID_IS: Final = "must be a letter or _, then letters, digits and _, at most 128"
_WORKFLOW_ID_IS: Final = "must be letters, digits, . _ and -, at most 128, a letter or digit first"


def read_part(
    model: type[M],
    raw: Json,
    place: Place,
    remarks: Remarks,
    *,
    stand_in: Mapping[str, Json] = MappingProxyType({}),
) -> tuple[M | None, set[str]]:
    """The `model` in `raw` and the keys that were left out of it, because what they hold cannot be used.

    None if it cannot be understood without them. `stand_in`: values that take the place of such keys.
    """
    try:
        return model.model_validate(raw), set()
    except ValidationError as error:
        problems = error.errors(include_url=False)
    for problem in problems:
        _tell(model, problem, place, remarks)
    if not isinstance(raw, dict):
        return None, set()
    unusable = {str(problem["loc"][0]) for problem in problems}
    rest = {key: value for key, value in raw.items() if key not in unusable}
    rest |= {key: value for key, value in stand_in.items() if key in unusable}
    try:
        return model.model_validate(rest), unusable
    except ValidationError:
        return None, unusable


def _tell(model: type[BaseModel], problem: ErrorDetails, place: Place, remarks: Remarks) -> None:
    path = (*place, *problem["loc"])
    name, key, given = shown_path(path), str(path[-1]) if path else "", problem["input"]
    context: dict[str, Any] = problem.get("ctx", {})
    match problem["type"]:
        case "missing":
            remarks.error("document.missing", f"{name} is missing", path)
        case "extra_forbidden":
            keys = _keys(Retry if "retry" in problem["loc"][:-1] else model)
            remarks.error(
                "document.unknown_key",
                f"{name} is not known here",
                path,
                hint=f"known here: {', '.join(keys)}",
                wrong=key,
                known=keys,
            )
        case "string_pattern_mismatch":
            must = _NODE_ID_IS if model is Node else _WORKFLOW_ID_IS
            remarks.error("document.bad_id", f"{name}: {shown(given)!r} {must}", path)
        case "literal_error":
            remarks.error(
                "document.bad_value",
                f"{name} must be {context['expected']}",
                path,
                wrong=given if isinstance(given, str) else None,
                known=re.findall("'([^']*)'", context["expected"]),
            )
        case kind:
            own = problem["msg"].removeprefix("Value error, ")
            words = _WORDS[kind].format(**context) if kind in _WORDS else own
            remarks.error("document.bad_value", f"{name} {words}", path)


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def shown_path(path: Iterable[str | int]) -> str:
    """`nodes[0].params.url`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{shown(part)}" if text else shown(part)
    return text or "the document"
