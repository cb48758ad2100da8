"""What triggers have to say: where they go on, and what they have seen."""

from __future__ import annotations

from stackd.integrations.lint.level import Definition, Written
from stackd.workflows.findings import Remarks


def check(definition: Definition, remarks: Remarks) -> None:
    names = {one.id for one in definition.triggers}
    for one in definition.triggers:
        dedupe = one.raw.get("dedupe")
        window = dedupe.get("window") if isinstance(dedupe, dict) else None
        if not isinstance(dedupe, dict) or not dedupe.get("key"):
            words = f"{one.id}: dedupe needs a key: what tells one event from another"
            remarks.error("trigger.dedupe", words, (*one.place, "dedupe"))
        elif not isinstance(window, dict) or not {"items", "age"} <= set(window):
            words = f"{one.id}: dedupe needs a window of items and age"
            remarks.error("trigger.dedupe", words, (*one.place, "dedupe"))
        if one.raw.get("type") == "webhook":
            _check_webhook(one, remarks)
        else:
            _check_poll(one, remarks)
        catch_up = one.raw.get("catchUp")
        if catch_up is not None and catch_up not in names:
            words = f"{one.id}: catchUp names no trigger: {catch_up!r}"
            remarks.error("trigger.event", words, (*one.place, "catchUp"))


def _check_webhook(one: Written, remarks: Remarks) -> None:
    verify, event = one.raw.get("verify"), one.raw.get("event")
    if not isinstance(verify, dict) or not verify.get("scheme"):
        words = f"{one.id}: verify.scheme is missing: how a delivery is known to be real"
        remarks.error("trigger.event", words, one.place)
    if not isinstance(event, dict) or not event.get("id"):
        words = f"{one.id}: event.id is missing: by which a delivery is known again"
        remarks.error("trigger.event", words, one.place)


def _check_poll(one: Written, remarks: Remarks) -> None:
    cursor, interval = one.raw.get("cursor"), one.raw.get("interval")
    if not isinstance(cursor, dict) or not cursor.get("type"):
        words = f"{one.id}: cursor.type is missing; none says that there is none"
        remarks.error("trigger.cursor", words, one.place)
    if not one.raw.get("items"):
        words = f"{one.id}: items is missing: where the list of events is"
        remarks.error("trigger.cursor", words, one.place)
    if one.raw.get("firstRun") is None:
        words = f"{one.id}: firstRun is missing: what of the events from before counts"
        remarks.error("trigger.cursor", words, one.place)
    if not isinstance(interval, dict) or not {"default", "min"} <= set(interval):
        words = f"{one.id}: interval needs default and min"
        remarks.error("trigger.cursor", words, one.place)
