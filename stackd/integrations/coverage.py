"""The registry's answer to whether an action can run, as lint and activation ask it."""

from __future__ import annotations

from stackd.core.apps import normal_operation
from stackd.core.coverage import Coverage, Lack, unknown_app, unknown_operation
from stackd.integrations.registry import Availability, Registry


def coverage_in(registry: Registry, app: str, operation: str) -> Coverage:
    """What there is to run an action now."""
    connector = registry.catalogue.find(app)
    if connector is None:
        return unknown_app(app, operation, [one.id for one in registry.catalogue.connectors])
    entry = connector.actions.get(normal_operation(operation))
    if entry is None:
        return unknown_operation(connector.id, operation, "action", connector.actions)
    found = registry.capability(connector, entry, "action")
    if found.availability is Availability.NATIVE:
        return Coverage(connector.id, entry.id, "native")
    issue = found.issues[0]
    if found.availability is Availability.FALLBACK:
        return Coverage(
            connector.id, entry.id, "fallback", None, found.resolved, issue.code, issue.message
        )
    lack: Lack = "missing-operation" if registry.runs(connector) else "missing-app"
    return Coverage(connector.id, entry.id, "unavailable", lack, None, issue.code, issue.message)
