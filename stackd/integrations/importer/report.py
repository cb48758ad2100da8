"""What an import has to tell: what it left out, and what it took to be so without being told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from stackd.core.json import Json
from stackd.core.text import shown

MOST: Final = 5_000  # of guesses; what is above is counted


@dataclass(frozen=True, slots=True)
class Skipped:
    """An operation that is not in the definition. `operation`: its method and path."""

    operation: str
    reason: str


@dataclass(slots=True)
class Report:
    """Grows while a document is read; each thing is told once, in the order in which it was met.

    Attributes:
        operations: those of the document that were asked for.
        imported: those of them that are in the definition.
    """

    operations: int = 0
    imported: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    _guessed: dict[str, None] = field(default_factory=dict)
    _beyond: int = 0

    @property
    def guessed(self) -> list[str]:
        beyond = [f"and {self._beyond:,} more of the kind"] if self._beyond else []
        return [*self._guessed, *beyond]

    def skip(self, operation: str, reason: str) -> None:
        self.skipped.append(Skipped(operation, reason))

    def guess(self, place: str, what: str) -> None:
        """Tell what was supposed, or left out, at `place`."""
        line = f"{shown(place)}: {what}"
        if line in self._guessed:
            return
        if len(self._guessed) < MOST:
            self._guessed[line] = None
        else:
            self._beyond += 1

    def as_json(self, connector: str) -> Json:
        return {
            "id": connector,
            "operations": self.operations,
            "imported": self.imported,
            "skipped": [{"operation": one.operation, "reason": one.reason} for one in self.skipped],
            "guessed": self.guessed,
        }
