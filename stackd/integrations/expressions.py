"""The expressions of definitions: over an answer, the parameters, and what of an account is no secret."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.http.message import Response
from stackd.workflows.expressions import (
    OMIT,
    Expression,
    Scope,
    Template,
    evaluate,
    parse_condition,
    parse_template,
)

ROOTS = frozenset(
    {"response", "body", "headers", "status", "params", "conn", "item", "page", "cursor"}
)

_parsed = lru_cache(2_000)(parse_condition)


def parsed(text: str) -> Expression:
    """The expression in `text`, in `{{ }}` or not. Raises ExpressionError."""
    return _parsed(text)


@lru_cache(2_000)
def template(text: str) -> Template:
    """The template of one text. Raises ExpressionError."""
    return parse_template(text)


def scope(roots: Mapping[str, Json], *, now: float = 0.0) -> Scope:
    return Scope(roots, now=now, seed="definition")


class Reader:
    """One answer, as expressions see it."""

    def __init__(
        self, response: Response, body: Json, roots: Mapping[str, Json], *, now: float
    ) -> None:
        self.body = body
        self.headers: Mapping[str, Json] = response.headers
        self.status = response.status
        self._now = now
        self._given = roots

    @property
    def _roots(self) -> dict[str, Json]:
        headers = dict(self.headers)
        return {
            **self._given,
            "response": {"status": self.status, "headers": headers, "body": self.body},
            "body": self.body,
            "headers": headers,
            "status": self.status,
        }

    def value(self, text: str | None, **more: Json) -> Json:
        """The value of an expression; None where what it reads is not there."""
        if text is None:
            return None
        try:
            found = evaluate(parsed(text), scope({**self._roots, **more}, now=self._now))
        except ExpressionError:
            return None
        return None if found is OMIT else found

    def truth(self, text: str) -> bool:
        """Whether a condition holds; not where what it reads is not there."""
        return bool(self.value(text))

    def text(self, written: str) -> str | None:
        """A text with its expressions filled in; None where that cannot be."""
        try:
            found = template(written).render(scope(self._roots, now=self._now))
        except ExpressionError:
            return None
        return found if isinstance(found, str) else None
