"""Where things are inside."""

from __future__ import annotations

from typing import Final

PACKAGES: Final = "/opt/packages"  # the operator's modules
SCRATCH: Final = "/tmp"  # noqa: S108  # of a run's own
