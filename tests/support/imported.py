"""What holds of a definition that an import has made, whatever it was made of."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

from stackd.core.json import loads_strict
from stackd.integrations import backfill
from stackd.integrations.account import Account
from stackd.integrations.definition import App, Operation, Trigger
from stackd.integrations.expressions import parsed
from stackd.integrations.importer.samples import synthesised
from stackd.integrations.plan import Plan


def assert_whole(made: dict[str, Any]) -> None:
    """The definition is one, in every part, with nothing in it that is unknown; and nothing is due."""
    App.model_validate(made, extra="forbid")
    assert (
        not set(made)
        - {"actions", "triggers"}
        - {field.alias for field in App.model_fields.values()}
    )
    names = [one["id"] for one in made["actions"]]
    assert len(set(names)) == len(names)
    for one in made["actions"]:
        Operation.model_validate(one, extra="forbid")
        assert one["runtimes"] == ["http"]
        assert one["fallback"] is None
        assert "sample" in one
        assert one["outputSchema"]["$schema"]
        assert len(one["id"]) <= 64
        assert one["effect"] in ("read", "idempotent", "unsafe")
        members = one["parameters"]["properties"]
        in_path = {key for key, member in members.items() if member["x-in"] == "path"}
        assert set(re.findall(r"{([^{}]*)}", one["endpoint"])) == in_path
        assert in_path <= set(one["parameters"].get("required", []))
    assert set(re.findall(r'"\$ref": "#/schemas/([^"]*)"', json.dumps(made))) == set(
        made.get("schemas", {})
    )
    assert_callable(made)
    for one in made.get("triggers", []):
        Trigger.model_validate(one, extra="forbid")
        assert isinstance(one["dedupe"], dict)
        assert "$schema" in one["outputSchema"]
        assert "sample" in one
    assert backfill.both(copy.deepcopy(made)) == 0
    assert loads_strict(backfill.written(made)) == made


def assert_callable(made: dict[str, Any]) -> None:
    """The generic executor can ask for each operation: it is given what is required, made up by its schema."""
    app = App.model_validate(made)
    account = Account(
        "it",
        fields=dict.fromkeys(
            made.get("connection", {}).get("fields", {}).get("properties", {}), "x"
        ),
    )
    for one in made["actions"]:
        plan = Plan(app, Operation.model_validate(one))
        members = one["parameters"]["properties"]
        params = {
            name: synthesised(members[name], app.schemas)
            for name in one["parameters"].get("required", [])
        }
        params |= {
            name: "x" for name in params if members[name]["x-in"] == "path" and not params[name]
        }
        url = plan.parts(params, account, "https://a.example").url
        assert not re.search(r"[{}]", url), url
        if plan.paginate is not None:
            for text in (
                plan.paginate.path,
                plan.paginate.source,
                plan.paginate.items,
                plan.paginate.has_more,
            ):
                assert text is None or parsed(text)
