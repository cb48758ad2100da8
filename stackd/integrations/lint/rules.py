"""The checklist for connectors: what holds at which grade. connectors/README.md shows the same table."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Grade = Literal["bronze", "silver", "gold"]
GRADES: Final[tuple[Grade, ...]] = ("bronze", "silver", "gold")


class Rule(NamedTuple):
    """What must hold. `by_hand`: only a person can say so, in `quality.json`."""

    grade: Grade
    about: str
    by_hand: bool = False


RULES: Final[dict[str, Rule]] = {
    "connector.unreadable": Rule("bronze", "`definition.json` is JSON in UTF-8, each key once"),
    "connector.invalid": Rule("bronze", "each key has a value that can be used"),
    "connector.unknown_key": Rule("bronze", "no key that nobody reads, but for `x-…`"),
    "connector.id": Rule("bronze", "the id is the name of the folder"),
    "connector.about": Rule("bronze", "name, description, category, version and docs are there"),
    "connector.todo": Rule("bronze", "nothing says TODO any more"),
    "connector.format": Rule("bronze", "it is written as `connectors backfill` writes"),
    "connector.secret": Rule("bronze", "nothing in definition and cases looks like a secret"),
    "connector.quality": Rule("bronze", "`quality` claims no more than holds"),
    "connection.secret": Rule("bronze", "fields that are secret say `x-secret`"),
    "connection.address": Rule(
        "bronze", "who has a field `baseUrl` has `privateNetwork: true`, and the reverse"
    ),
    "connection.test": Rule("bronze", "`testConnection` is a cheap read"),
    "operation.id": Rule("bronze", "ids are snake_case, each once"),
    "operation.about": Rule("bronze", "title and description are there"),
    "operation.parameters": Rule(
        "bronze", "parameters are a JSON Schema of described members, and what is required is one of them"
    ),
    "operation.placeholder": Rule(
        "bronze", "each placeholder of an endpoint is a parameter, each path parameter a placeholder"
    ),
    "operation.expression": Rule("bronze", "templates and expressions can be read"),
    "operation.endpoint": Rule("bronze", "endpoint and method, a handler, or both"),
    "operation.effect": Rule("bronze", "each action says its effect; `keyed` says by which key"),
    "operation.runtimes": Rule("bronze", "`runtimes` names what there is, `fallback` is there"),
    "operation.sample": Rule("bronze", "`outputSchema` and a sample that fits it"),
    "operation.paging": Rule("bronze", "lists say how they are paged, with their size, or `none`"),
    "trigger.dedupe": Rule("bronze", "`dedupe` has a key, and a window of items and age"),
    "trigger.cursor": Rule(
        "bronze", "a polled trigger says its cursor, items, first run and least interval"
    ),
    "trigger.event": Rule("bronze", "a webhook says how it is verified and what an event's id is"),
    "handlers.load": Rule("bronze", "`handlers.py` loads, and each handler is of an action"),
    "handlers.network": Rule("bronze", "handlers ask by `ctx.http`, unless they say TRANSPORT = \"own\""),
    "cases.invalid": Rule("bronze", "files of cases can be read, and are of actions"),
    "cases.success": Rule("bronze", "each action has a case that succeeds"),
    "cases.failure": Rule("bronze", "each action has a case that fails as the service fails"),
    "cases.empty": Rule("bronze", "each paged list has a case of an empty page"),
    "limits.declared": Rule("silver", "`rateLimits` are declared"),
    "limits.case": Rule("silver", "a case shows what a 429 comes to"),
    "errors.told": Rule("silver", "an error map gives the service's own message"),
    "oauth.tried": Rule("silver", "refresh, rotation and expiry were tried with two workers", by_hand=True),
    "triggers.tried": Rule(
        "silver", "ties, late arrivals, re-order and crashes lose and double no event", by_hand=True
    ),
    "requests.judged": Rule(
        "silver", "a server that others wrote took the requests as right", by_hand=True
    ),
    "connection.label": Rule("gold", "the test of a connection names the account"),
    "options.offered": Rule("gold", "parameters that are ids offer what there is (`x-options`)"),
    "webhook.complete": Rule(
        "gold", "a webhook with verification, unsubscribe and a poll that catches up"
    ),
    "live.checked": Rule("gold", "a person tried it against the real service", by_hand=True),
}  # fmt: skip
