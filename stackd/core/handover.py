"""What a service manager hands to the process that it starts, as systemd.exec(5) has it in the environment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from stackd.core.notify import Notifier

NAMES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


@dataclass(frozen=True, slots=True)
class Handover:
    """All empty where no service manager is.

    Attributes:
        watchdog: seconds within which a beat is to be heard, or the process is taken for hung; None: no matter.
    """

    notifier: Notifier = field(default_factory=Notifier)
    watchdog: float | None = None


def handed_over(told: Mapping[str, str]) -> Handover:
    """What `told`, the variables of `NAMES` that were set, says."""
    return Handover(Notifier(told.get("NOTIFY_SOCKET")), _watchdog(told))


def _watchdog(told: Mapping[str, str]) -> float | None:
    """What is meant for another process, such as a wrapper around this one, is not meant for it."""
    with contextlib.suppress(ValueError):
        interval = int(told.get("WATCHDOG_USEC", "0")) / 1e6
        if interval > 0 and int(told.get("WATCHDOG_PID", os.getpid())) == os.getpid():
            return interval
    return None
