"""Expressions and templates: `{{ … }}` in the parameters people write, over JSON values only.

Whatever the text and the values are, parsing and evaluating end in a JSON value or an `ExpressionError`.
The reference of the language is this folder's README.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.workflows.compiler import Compiler, fixed
from stackd.workflows.filters.values import OMIT, joined, over_limit, text_of
from stackd.workflows.scope import Path, Position, Run, Scope, moved, path_text, short

__all__ = [
    "OMIT",
    "Expression",
    "Path",
    "Scope",
    "Template",
    "evaluate",
    "iter_expressions",
    "parse_condition",
    "parse_expression",
    "parse_template",
]

MAX_TEXT = 2_000  # characters of one expression
MAX_TEMPLATE_DEPTH = 100  # of maps and lists in each other

_BEYOND_PYTHON = (RecursionError, MemoryError, OverflowError)  # the values' fault, not ours


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression; it can be evaluated any number of times, in any number of scopes.

    Attributes:
        roots: the names it reads.
        paths: what it reads below them, as far as it is fixed: `("price", "body", "amount")`; each with the
            place where the text does so first.
        links: the nodes whose link it reads, likewise.
        weight: its steps, without those of filters over data.
    """

    text: str
    roots: frozenset[str]
    paths: Mapping[Path, Position] = field(hash=False)
    links: Mapping[str, Position] = field(hash=False)
    weight: int
    run: Run = field(repr=False, compare=False)


def parse_expression(text: str, *, at: Position = (1, 1)) -> Expression:
    """The expression in `text`, which has no `{{ }}` around it. Places are counted as if it began `at` there.

    Raises:
        ExpressionError: with line and column, naming the construct, the unknown filter and its nearest
            known one, or the wrong argument.
    """
    if len(text) > MAX_TEXT:
        raise ExpressionError(
            f"the expression is longer than {MAX_TEXT:,} characters",
            code="expression.limit",
            line=at[0],
            column=at[1],
        )
    if not text.strip():
        raise ExpressionError("the expression is empty", line=at[0], column=at[1])
    compiler = Compiler(text.replace("\r\n", "\n").replace("\r", "\n"), at)
    run = compiler.compile(compiler.parse(), 1)
    return Expression(
        text=text.strip(),
        roots=frozenset(compiler.roots),
        paths={path: compiler.position(offset) for path, offset in compiler.paths.items()},
        links={node: compiler.position(offset) for node, offset in compiler.links.items()},
        weight=compiler.weight,
        run=run,
    )


def parse_condition(text: str) -> Expression:
    """The expression of a condition, which may stand in `{{ }}` or not.

    Raises:
        ExpressionError: as `parse_expression`; also for a text that holds more than the one expression.
    """
    if text.lstrip().startswith("{{"):
        pieces = [p for p in _pieces(text) if not (isinstance(p, str) and p.isspace())]
        if len(pieces) == 1 and isinstance(pieces[0], Expression):
            return pieces[0]
        if len(pieces) == 1 and isinstance(pieces[0], ExpressionError):
            raise pieces[0]
    else:
        try:
            return parse_expression(text)
        except ExpressionError:
            if "{{" not in text:
                raise
    line, column = moved((1, 1), text, 0, text.index("{{"))
    raise ExpressionError(
        "a condition is one expression: write {{ }} around all of it or not at all",
        line=line,
        column=column,
    )


def evaluate(expression: Expression, scope: Scope) -> Json:
    """The value of `expression`: at most 1 MiB of JSON, within 100,000 steps; or OMIT.

    Raises:
        ExpressionError: a missing path (code `expression.missing`), a limit (`expression.limit`), or
            values that do not fit what is done with them.
    """
    scope.budget.reset()
    try:
        scope.budget.spend(expression.weight)
        value = expression.run(scope)
        scope.budget.charge(value)
    except _BEYOND_PYTHON as error:
        raise _beyond(error) from None
    return value


def _beyond(error: BaseException) -> ExpressionError:
    if isinstance(error, RecursionError):
        return over_limit("a value is nested too deep")
    if isinstance(error, MemoryError):
        return over_limit("there is not enough memory for the result")
    return over_limit("a number is too large")


# --- templates ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed tree of parameters.

    What holds no expression is handed out as it is, not copied: never change a rendered value.

    Attributes:
        roots: the names all its expressions read.
        paths: what they read below them, as far as it is fixed.
        where: what messages begin with, or empty.
        value: the tree as written.
        run: None when static.
    """

    roots: frozenset[str]
    paths: frozenset[Path]
    where: str
    value: Json = field(repr=False)
    run: Run | None = field(repr=False, compare=False)
    url: Callable[[Scope], str] | None = field(repr=False, compare=False)

    @property
    def is_static(self) -> bool:
        return self.run is None

    def render(self, scope: Scope) -> Json:
        """The tree with every expression replaced by its value.

        OMIT drops its map member or list element; a tree that is one omitted expression gives OMIT itself.

        Raises:
            ExpressionError: as `evaluate`; the limit of steps holds for the render as a whole.
        """
        if self.run is None:
            return self.value
        scope.budget.reset()
        try:
            return self.run(scope)
        except _BEYOND_PYTHON as error:
            raise _at(_beyond(error), self.where) from None

    def render_url(self, scope: Scope) -> str:
        """The one text of this template; what is filled in is percent-encoded, except a leading base.

        Raises:
            ExpressionError: also for a template that is no text, and where a value would become a path
                segment `.` or `..`, which a server or client resolves.
        """
        if self.url is None:
            if type(self.value) is not str:
                raise _at(ExpressionError("a url is a text"), self.where)
            return self.value
        scope.budget.reset()
        try:
            return self.url(scope)
        except _BEYOND_PYTHON as error:
            raise _at(_beyond(error), self.where) from None


def parse_template(value: Json, *, where: str = "") -> Template:
    """The template in `value`: any JSON whose texts may hold `{{ … }}`.

    A text that is exactly one expression keeps the value's type; any other joins scalars. `}}`, `{%` and
    `{#` are plain text.

    Args:
        value: kept, not copied; it must not change afterwards.
        where: begins the messages of errors, here and at render, followed by the place below it.

    Raises:
        ExpressionError: the first one; line and column count in the text that holds the expression.
    """
    builder = _Builder(where)
    run = builder.build(value, ())
    return Template(
        roots=frozenset().union(*(expression.roots for expression in builder.expressions)),
        paths=frozenset().union(*(expression.paths for expression in builder.expressions)),
        where=where,
        value=value,
        run=run,
        url=_render_url(builder.pieces, where) if run is not None and type(value) is str else None,
    )


def iter_expressions(value: Json) -> Iterator[tuple[Path, Expression | ExpressionError]]:
    """Every expression in `value` with the place of its text there; for each that cannot be used, why not.

    Text by text: who has seen enough may stop.
    """
    open_values: list[tuple[Path, Json]] = [((), value)]
    while open_values:
        place, current = open_values.pop()
        if type(current) is str:
            yield from ((place, piece) for piece in _pieces(current) if not isinstance(piece, str))
        elif type(current) is dict:
            yield from (((*place, key), _no_key()) for key in current if "{{" in key)
            open_values += reversed([((*place, key), inner) for key, inner in current.items()])
        elif type(current) is list:
            open_values += reversed([((*place, i), inner) for i, inner in enumerate(current)])


def _no_key() -> ExpressionError:
    return ExpressionError("a key cannot hold an expression")


class _Builder:
    """A tree's way to one closure; None stands for a part without expressions."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.expressions: list[Expression] = []
        self.pieces: list[str | Expression] = []  # of the last text that holds an expression

    def build(self, value: Json, place: Path) -> Run | None:
        kind = type(value)
        if kind is str:
            return self._text(value, place) if "{{" in value else None
        if kind is not dict and kind is not list:
            return None
        if len(place) >= MAX_TEMPLATE_DEPTH:
            message = f"nested deeper than {MAX_TEMPLATE_DEPTH} levels"
            raise _at(over_limit(message), self._named(place))
        return self._map(value, place) if kind is dict else self._list(value, place)

    def _map(self, value: dict[str, Json], place: Path) -> Run | None:
        moving: list[tuple[str, Run]] = []
        for key, member in value.items():
            if "{{" in key:
                raise _at(_no_key(), self._named((*place, key)))
            run = self.build(member, (*place, key))
            if run is not None:
                moving.append((key, run))
        return _render_map(value, moving) if moving else None

    def _list(self, value: list[Json], place: Path) -> Run | None:
        runs = [self.build(element, (*place, index)) for index, element in enumerate(value)]
        if not any(runs):
            return None
        pairs = zip(runs, value, strict=True)
        return _render_list([run or functools.partial(fixed, element) for run, element in pairs])

    def _text(self, text: str, place: Path) -> Run:
        self.pieces = []
        for piece in _pieces(text):
            if isinstance(piece, ExpressionError):
                raise _at(piece, self._named(place))
            self.pieces.append(piece)
        self.expressions += (piece for piece in self.pieces if isinstance(piece, Expression))
        return _render_text(self.pieces, self._named(place))

    def _named(self, place: Path) -> str:
        if not self.where or not place:
            return self.where
        below = path_text(place)
        return f"{self.where}{below}" if below.startswith("[") else f"{self.where}.{below}"


def _at(error: ExpressionError, where: str) -> ExpressionError:
    if not where:
        return error
    message = f"{where}: {error.message}"
    return ExpressionError(message, code=error.code, line=error.line, column=error.column)


_MARK = re.compile(
    r"""
    "[^"\\]*(?:\\.[^"\\]*)*"    # a whole text: what it holds ends nothing
    | '[^'\\]*(?:\\.[^'\\]*)*'
    | ["'{}]                    # a quote left over stays open to the end
    """,
    re.VERBOSE | re.DOTALL,
)


def _pieces(text: str) -> list[str | Expression | ExpressionError]:
    """Plain texts and expressions in turn; an error stands for an expression that cannot be used.

    Only the expression where blanks are all that is around one.
    """
    pieces: list[str | Expression | ExpressionError] = []
    done, at = 0, (1, 1)
    while (start := text.find("{{", done)) >= 0:
        if start > done:
            pieces.append(text[done:start])
        at = moved(at, text, done, start)
        try:
            end = _closing(text, start, at)
        except ExpressionError as error:
            return [*pieces, error]
        try:
            pieces.append(_parse_inside(text, start + 2, end, at))
        except ExpressionError as error:
            pieces.append(error)
        at, done = moved(at, text, start, end + 2), end + 2
    if done < len(text):
        pieces.append(text[done:])
    inside = [piece for piece in pieces if not isinstance(piece, str)]
    is_alone = len(inside) == 1 and all(p is inside[0] or not str(p).strip() for p in pieces)
    return list(inside) if is_alone else pieces


def _closing(text: str, start: int, at: Position) -> int:
    """Where the `}}` is that closes the `{{` at `start`, over quoted texts and maps."""
    depth = 0
    reason = ""
    for mark in _MARK.finditer(text, start + 2):
        found = mark[0]
        if found == "{":
            depth += 1
        elif found == "}" and depth:
            depth -= 1
        elif found == "}" and text.startswith("}}", mark.start()):
            return mark.start()
        elif found in "'\"":
            quote_line, quote_column = moved(at, text, start, mark.start())
            reason = f" (the quote at line {quote_line}, column {quote_column} stays open)"
            break
    raise ExpressionError(f'"{{{{" is never closed{reason}', line=at[0], column=at[1])


def _parse_inside(text: str, start: int, end: int, at: Position) -> Expression:
    """The expression from `start` to `end`; its `{{` stands `at` there."""
    inside = (at[0], at[1] + 2)
    if text[start] in "-+":
        sign = text[start]
        raise ExpressionError(
            f'"{{{{{sign}" is not supported; for a sign write "{{{{ {sign}"',
            line=inside[0],
            column=inside[1],
        )
    return parse_expression(text[start:end], at=inside)


def _render_map(value: dict[str, Json], moving: list[tuple[str, Run]]) -> Run:
    def render(scope: Scope) -> Json:
        result = value.copy()  # keeps the order of keys
        for key, run in moving:
            rendered = run(scope)
            if rendered is OMIT:
                del result[key]
            else:
                result[key] = rendered
        return result

    return render


def _render_list(runs: list[Run]) -> Run:
    return lambda scope: [value for run in runs if (value := run(scope)) is not OMIT]


def _render_text(pieces: list[str | Expression], where: str) -> Run:
    if len(pieces) == 1 and isinstance(pieces[0], Expression):
        return _render_whole(pieces[0], where)
    parts = [_render_part(piece, where) for piece in pieces]

    def render(scope: Scope) -> Json:
        return _joined([p if isinstance(p, str) else p(scope) for p in parts], where)

    return render


def _joined(parts: list[str], where: str) -> str:
    try:
        return joined(parts)
    except ExpressionError as error:
        raise _at(error, where) from None


def _render_whole(expression: Expression, where: str) -> Run:
    run, weight = expression.run, expression.weight

    def render(scope: Scope) -> Json:
        try:
            scope.budget.spend(weight)
            value = run(scope)
            scope.budget.charge(value)
        except ExpressionError as error:
            raise _at(error, where) from None
        return value

    return render


def _render_part(piece: str | Expression, where: str) -> str | Callable[[Scope], str]:
    if isinstance(piece, str):
        return piece
    whole = _render_whole(piece, where)
    around = f'the text around "{{{{ {short(piece.text)} }}}}"'
    around = f"{where}: {around}" if where else around
    return lambda scope: text_of(whole(scope), around, scope.budget)


def _render_url(pieces: list[str | Expression], where: str) -> Callable[[Scope], str]:
    parts = [_render_part(piece, where) for piece in pieces]

    def render(scope: Scope) -> str:
        done: list[str] = []
        has_dots = False
        for part in parts:
            if isinstance(part, str):
                done.append(part)
                continue
            text = part(scope)
            if done:
                has_dots = has_dots or (text != "" and not text.strip("."))
                text = _percent_encoded(text, where)
            done.append(text)
        url = _joined(done, where)
        if has_dots and not {".", ".."}.isdisjoint(re.split("[?#]", url, maxsplit=1)[0].split("/")):
            raise _at(ExpressionError('a value would become the path segment "." or ".."'), where)
        return url

    return render


def _percent_encoded(text: str, where: str) -> str:
    try:
        return quote(text, safe="")
    except UnicodeEncodeError:
        raise _at(ExpressionError("a value for a url holds half a character"), where) from None
