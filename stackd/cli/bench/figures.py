"""One measurement of `stackd bench`, and how it is told."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any, Final

from stackd.core.clock import SystemClock

clock: Final = SystemClock()


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement. `budget`: at least this if `higher`, else at most this; None: for information."""

    name: str
    value: float
    unit: str
    budget: float | None = None
    higher: bool = False
    floor: float | None = None

    def as_json(self) -> dict[str, Any]:
        view: dict[str, Any] = {
            "name": self.name,
            "value": round(self.value, 3),
            "unit": self.unit,
            "budget": self.budget,
            "withinBudget": self.is_within,
        }
        if self.floor is not None:
            view["floor"] = round(self.floor, 3)
            view["ratio"] = round(self.value / self.floor, 3) if self.floor else None
        view["cores"] = os.cpu_count()
        view["python"] = ".".join(map(str, sys.version_info[:3]))
        return view

    @property
    def is_within(self) -> bool | None:
        if self.budget is None:
            return None
        return self.value >= self.budget if self.higher else self.value <= self.budget


def ms(seconds: list[float], share: float) -> tuple[float, str]:
    return _share(seconds, share) * 1000, "ms"


def _share(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0
