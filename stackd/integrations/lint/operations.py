"""What each operation has to say, and actions besides."""

from __future__ import annotations

import re
from typing import Any, Final

import jsonschema_rs

from stackd.core.apps import normal_operation
from stackd.core.errors import InputError
from stackd.integrations.catalogue import Connector
from stackd.integrations.lint.level import Definition, Written
from stackd.integrations.plan import Plan
from stackd.workflows.findings import Remarks

_ID: Final = re.compile(r"[a-z][a-z0-9_]*")
_PLACE: Final = re.compile(r"\{([^{}]+)\}")
_EXPRESSION: Final = re.compile(r"\{\{.*?\}\}")
_COLON: Final = re.compile(r"(?<=/):([A-Za-z_][A-Za-z0-9_]*)(?=/|$)")


def check(definition: Definition, connector: Connector, remarks: Remarks) -> None:
    for one in definition.operations:
        _check_about(one, remarks)
        _check_parameters(one, definition, remarks)
        _check_places(one, remarks)
        _check_output(one, remarks)
        if one.kind == "action":
            _check_action(one, definition, connector, remarks)
        elif "fallback" not in one.raw:
            remarks.error(
                "operation.runtimes", "fallback is missing; null stands for none", one.place
            )


def _check_about(one: Written, remarks: Remarks) -> None:
    if not _ID.fullmatch(one.id):
        words = f"{one.id!r} is not snake_case"
        remarks.warn("operation.id", words, (*one.place, "id"))
    for key in ("title", "description"):
        if not one.raw.get(key) and not (key == "title" and one.raw.get("name")):
            remarks.error("operation.about", f"{one.id}: {key} is missing", one.place)


def _check_parameters(one: Written, definition: Definition, remarks: Remarks) -> None:
    given = one.raw.get("parameters", one.raw.get("params", {}))
    place = (*one.place, "parameters")
    if not isinstance(given, dict):
        remarks.error("operation.parameters", "parameters must be a JSON Schema", place)
        return
    if given.get("type", "object") != "object":
        remarks.error("operation.parameters", "parameters must be an object", (*place, "type"))
    try:
        jsonschema_rs.meta.validate({**given, "schemas": definition.raw.get("schemas", {})})
    except (ValueError, jsonschema_rs.ValidationError) as error:
        words = str(error).partition("\n")[0][:200]
        remarks.error("operation.parameters", f"no JSON Schema: {words}", place)
        return
    missing = [name for name in given.get("required", ()) if name not in one.members]
    for name in missing:
        words = f"{name} is required, and is none of the parameters"
        remarks.error("operation.parameters", words, (*place, "required"))
    for name, member in one.members.items():
        if not member.get("description") and "$ref" not in member and not member.get("title"):
            where = (*place, "properties", name)
            remarks.warn("operation.parameters", f"{name} is not described", where)


def _check_places(one: Written, remarks: Remarks) -> None:
    bare = _EXPRESSION.sub("", one.endpoint)
    places = {normal_operation(n) for n in [*_PLACE.findall(bare), *_COLON.findall(bare)]}
    members = one.members
    names = {normal_operation(str(m.get("x-as", name))): name for name, m in members.items()}
    for name in sorted(places - set(names)):
        words = f"{{{name}}} of the endpoint is no parameter"
        remarks.error("operation.placeholder", words, (*one.place, "endpoint"))
    for normal, name in names.items():
        if members[name].get("x-in") == "path" and normal not in places:
            where = (*one.place, "parameters", "properties", name)
            words = f"{name} goes into the path, and the endpoint has no {{{name}}}"
            remarks.error("operation.placeholder", words, where)


def _check_output(one: Written, remarks: Remarks) -> None:
    schema, sample = one.raw.get("outputSchema"), one.raw.get("sample")
    if not isinstance(schema, dict) or "sample" not in one.raw:
        missing = "sample" if isinstance(schema, dict) else "outputSchema"
        remarks.error("operation.sample", f"{one.id}: {missing} is missing", one.place)
        return
    try:
        validator = jsonschema_rs.validator_for(schema)
        faults = [error.message for error in validator.iter_errors(sample)]
    except (ValueError, jsonschema_rs.ValidationError) as error:
        words = str(error).partition("\n")[0][:200]
        remarks.error("operation.sample", f"no JSON Schema: {words}", (*one.place, "outputSchema"))
        return
    for words in faults[:3]:
        words = f"the sample does not fit outputSchema: {words[:200]}"
        remarks.error("operation.sample", words, (*one.place, "sample"))


def _check_action(
    one: Written, definition: Definition, connector: Connector, remarks: Remarks
) -> None:
    has_handler = normal_operation(one.id) in connector.handlers.by_name
    has_http = bool(one.endpoint and one.raw.get("method"))
    if bool(one.endpoint) != bool(one.raw.get("method")) or not (has_http or has_handler):
        words = f"{one.id} needs endpoint and method, or a handler of its name"
        remarks.error("operation.endpoint", words, one.place)
    _check_runtimes(one, has_handler=has_handler, has_http=has_http, remarks=remarks)
    effect = one.raw.get("effect")
    if effect is None:
        hint = "read, idempotent, keyed or unsafe"
        remarks.error("operation.effect", f"{one.id}: effect is missing", one.place, hint=hint)
    defaults = definition.raw.get("defaults")
    own = {**(defaults if isinstance(defaults, dict) else {}), **one.raw}
    if effect == "keyed" and not own.get("idempotency") and connector.handlers.transport != "own":
        words = f"{one.id} is keyed, and idempotency says nowhere how the service is shown the key"
        remarks.error("operation.effect", words, (*one.place, "effect"))
    if definition.app is None or one.read is None:
        return
    try:
        plan = Plan(definition.app, one.read)
    except InputError as error:
        remarks.error("operation.expression", error.message, one.place)
        return
    if has_http and _is_list(one.raw.get("sample")):
        _check_paging(one, plan, remarks)


def _check_runtimes(one: Written, *, has_handler: bool, has_http: bool, remarks: Remarks) -> None:
    wanted = ["python"] * has_handler + ["http"] * has_http
    given = None if one.read is None else list(one.read.runtimes)
    if given is not None and given != wanted:
        words = f"{one.id}: runtimes must be {wanted}, in this order"
        remarks.error("operation.runtimes", words, (*one.place, "runtimes"))
    if "fallback" not in one.raw:
        words = f"{one.id}: fallback is missing; null stands for none"
        remarks.error("operation.runtimes", words, one.place)


def _check_paging(one: Written, plan: Plan, remarks: Remarks) -> None:
    rules = plan.operation.paginate or plan.app.defaults.paginate
    if rules is None:
        words = f"{one.id} gives a list, and paginate does not say how it is paged"
        remarks.error("operation.paging", words, one.place, hint='"paginate": {"type": "none"}')
    elif rules.type not in ("none", "next_url", "handler") and rules.size is None:
        words = f"{one.id}: paginate does not say how many a page is asked for"
        remarks.error("operation.paging", words, (*one.place, "paginate"))


def _is_list(sample: Any) -> bool:
    return isinstance(sample, dict) and set(sample) == {"items", "meta"}
