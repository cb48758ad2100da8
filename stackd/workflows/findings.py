"""What there is to say about a document: collected cheaply, and told in full only as far as it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from stackd.core.errors import InputError
from stackd.core.names import nearest
from stackd.workflows.source import Place, Position, Source

MAX_FINDINGS: Final = 100  # shown; a document with more has one cause

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark on a document.

    `line`, `column`: from 1; None of what is stored, which has no lines. `bars`: it keeps the workflow from being
    activated, though not from being stored.
    """

    code: str
    message: str
    line: int | None = None
    column: int | None = None
    severity: Severity = "error"
    hint: str | None = None
    bars: bool = False


class DocumentError(InputError):
    """The document cannot be used; `findings` holds the reasons, the first MAX_FINDINGS of them."""

    code = "document.invalid"

    def __init__(self, name: str, findings: list[Finding], *, errors: int) -> None:
        first = findings[0]
        more = "" if errors == 1 else f" (and {errors - 1} more)"
        if errors > MAX_FINDINGS:
            more = f" (and over {MAX_FINDINGS - 1} more; the first {MAX_FINDINGS} are listed)"
        super().__init__(f"{name}:{first.line}:{first.column}: {first.message}{more}")
        self.findings = findings


@dataclass(frozen=True, slots=True)
class _Remark:
    """A finding before anybody has looked up where it stands and what else could have been meant."""

    severity: Severity
    code: str
    message: str
    place: Place
    within: Position | None
    hint: str | None
    wrong: str | None
    known: Iterable[str]
    bars: bool = False

    def told(self, source: Source) -> Finding:
        line, column = (
            source.position(self.place)
            if self.within is None
            else source.inside(self.place, self.within)
        )
        meant = None if self.wrong is None else nearest(self.wrong, self.known)
        hint = f"did you mean {meant!r}?" if meant is not None else self.hint
        return Finding(self.code, self.message, line, column, self.severity, hint, self.bars)


class Remarks:
    """Collects findings. `errors`: how many of them are errors."""

    def __init__(self) -> None:
        self.errors = 0
        self._all: list[_Remark] = []

    def error(
        self,
        code: str,
        message: str,
        place: Place,
        *,
        within: Position | None = None,
        hint: str | None = None,
        wrong: str | None = None,
        known: Iterable[str] = (),
    ) -> None:
        """Note an error.

        Args:
            within: line and column inside the text at `place`.
            wrong: a name that is none; the hint is then the one of `known` that is most like it, if any is.
        """
        self.errors += 1
        self._all.append(_Remark("error", code, message, place, within, hint, wrong, known))

    def warn(
        self,
        code: str,
        message: str,
        place: Place,
        *,
        hint: str | None = None,
        wrong: str | None = None,
        known: Iterable[str] = (),
        bars: bool = False,
    ) -> None:
        """Note a warning. `wrong`, `known`: as of an error. `bars`: the workflow cannot be activated."""
        self._all.append(_Remark("warning", code, message, place, None, hint, wrong, known, bars))

    @property
    def are_full(self) -> bool:
        """Whether there are more errors than are shown, so that looking for others is idle."""
        return self.errors > MAX_FINDINGS

    def shown(self, source: Source) -> list[Finding]:
        """Up to MAX_FINDINGS of them: errors, what bars, the rest; each group in the order of the document."""
        if not self._all:
            return []
        ordered = sorted(
            self._all,
            key=lambda r: (
                r.severity != "error",
                not r.bars,
                source.position(r.place),
                r.within or (0, 0),
            ),
        )
        return [remark.told(source) for remark in ordered[:MAX_FINDINGS]]
