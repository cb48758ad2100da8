"""A stored document as text for people: in the order in which one writes it, and the same when it is read again."""

from __future__ import annotations

import io
import json
from typing import Any

from pydantic import BaseModel

from stackd.core.json import Json
from stackd.core.text import plain, plain_json
from stackd.workflows.model import LOOP, Edge, Node, Retry, Workflow
from stackd.workflows.source import SourceError, read_source

NO_FOLD = 1_000_000  # columns: a text stays on the line it is written on


def as_json(document: Json) -> str:
    """`document` as JSON over many lines."""
    return plain_json(json.dumps(in_order(document), indent=2, ensure_ascii=False)) + "\n"


def as_yaml(document: Json) -> str:
    """`document` as YAML; as JSON, which is YAML too, if it holds what our writer and our reader take differently."""
    text = _yaml(in_order(document))
    try:
        is_same = _exactly(read_source(text.encode()).value) == _exactly(document)
    except SourceError:
        is_same = False
    return text if is_same else as_json(document)


def in_order(document: Json) -> Json:
    """`document` with its keys as the models have them; others follow."""
    return _ordered(document, Workflow)


def _ordered(part: Json, model: type[BaseModel]) -> Json:
    if not isinstance(part, dict):
        return part
    names = [field.alias or name for name, field in model.model_fields.items()]
    known = {name: part[name] for name in names if name in part}
    whole = known | {name: part[name] for name in part if name not in known}
    if model is Node and "retry" in whole:
        whole["retry"] = _ordered(whole["retry"], Retry)
    if part.get("type") == LOOP and isinstance(part.get("params"), dict):
        whole["params"] = _with_parts(part["params"])
    return _with_parts(whole)


def _with_parts(around: dict[str, Json]) -> dict[str, Json]:
    """`around` with the nodes and edges in it as the models have them."""
    parts = {
        key: [_ordered(part, model) for part in around[key]]
        for key, model in (("nodes", Node), ("edges", Edge))
        if isinstance(around.get(key), list)
    }
    return around | parts


def _yaml(value: Json) -> str:
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):
        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  # ours are refused when read
            return True

        def text(self, data: str) -> Any:
            return self.represent_scalar("tag:yaml.org,2002:str", data, style=_style(data))

    Representer.add_representer(str, Representer.text)
    yaml = YAML()
    yaml.Representer = Representer
    yaml.width = NO_FOLD
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    yaml.dump(value, out)
    return plain_json(out.getvalue())


def _style(text: str) -> str | None:
    """How a text is written: over lines as a block, quoted if something in it would not show, else as it likes."""
    lines = text.split("\n")
    if any(plain(line) != line for line in lines):
        return '"'
    return "|" if len(lines) > 1 else None


def _exactly(value: Json) -> str:
    """`value` so that true is not 1 and 1 is not 1.0."""
    return json.dumps(value, sort_keys=True)
