"""Expressions and templates: `{{ … }}` in the parameters people write, over JSON values only.

jinja2's parser reads the text; its tree is walked once into closures of our own. Nothing of jinja2 is
compiled, folded or rendered, no Python attribute is ever read, and there is no loop to write. What the
tree may hold is `_HANDLERS`; operators, filters, tests and functions are entries of tables. Whatever the
text and the values are, parsing and evaluating end in a JSON value or an `ExpressionError`.

Pure: a `Scope` made again with the same roots, time and seed gives the same results after a crash.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.workflows.filters.filter import REQUIRED, Filter, Parameter
from stackd.workflows.filters.table import FILTERS, TESTS
from stackd.workflows.filters.values import (
    MAX_INTEGER_BITS,
    MISSING,
    NUMBER,
    OMIT,
    Budget,
    bounded,
    contains,
    equal,
    guess,
    joined,
    kind_of,
    ordering,
    over_limit,
    text_of,
)

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2.lexer import Token

__all__ = [
    "OMIT",
    "Expression",
    "Scope",
    "Template",
    "evaluate",
    "iter_expressions",
    "parse_condition",
    "parse_expression",
    "parse_template",
]

MAX_TEXT = 2_000  # characters of one expression
MAX_DEPTH = 32  # of operators, filters and brackets in each other; a path counts once, however long
MAX_TEMPLATE_DEPTH = 100  # of maps and lists in each other

_BEYOND_PYTHON = (RecursionError, MemoryError, OverflowError)  # the values' fault, not ours
_KNOWN_ROOTS_SHOWN = 10


class Scope:
    """What one node run's expressions see. Made once per node run: `uuid()` counts in it.

    Args:
        roots: node ids and the fixed names, each with its JSON value; never changed here.
        now: seconds since 1970, what `now()` tells.
        seed: makes `uuid()` this node run's own; the same seed gives the same ones, in the order of calls.
    """

    __slots__ = ("budget", "now", "outer", "roots", "seed", "uuids")

    def __init__(self, roots: Mapping[str, Json], *, now: float, seed: str) -> None:
        self.roots = roots
        self.now = now
        self.seed = seed
        self.uuids = 0
        self.budget = Budget()
        self.outer: Scope | None = None  # whose roots are seen where `roots` has none of that name

    def child(self, roots: Mapping[str, Json], seed: str) -> Scope:
        """A scope for one of many: `roots` over those seen here, the same `now`, `uuid()` and budget of its own.

        Costs the same however many roots are seen here: nothing is copied.
        """
        inner = Scope(roots, now=self.now, seed=seed)
        inner.outer = self
        return inner

    def find(self, root: str) -> Json:
        """The value of `root`, or MISSING."""
        scope: Scope | None = self
        while scope is not None:
            value = scope.roots.get(root, MISSING)
            if value is not MISSING:
                return value
            scope = scope.outer
        return MISSING

    def names(self) -> set[str]:
        return {*self.roots, *(self.outer.names() if self.outer else ())}


Run = Callable[[Scope], Json]
Path = tuple[str | int, ...]
Position = tuple[int, int]  # line and column, from 1


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression; it can be evaluated any number of times, in any number of scopes.

    Attributes:
        roots: the names it reads.
        paths: what it reads below them, as far as it is fixed: `("price", "body", "amount")`; each with the
            place where the text does so first.
        weight: its steps, without those of filters over data.
    """

    text: str
    roots: frozenset[str]
    paths: Mapping[Path, Position] = field(hash=False)
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
    compiler = _Compiler(text.replace("\r\n", "\n").replace("\r", "\n"), at)
    run = compiler.compile(compiler.parse(), 1)
    return Expression(
        text=text.strip(),
        roots=frozenset(compiler.roots),
        paths={path: compiler.position(offset) for path, offset in compiler.paths.items()},
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
    line, column = _moved((1, 1), text, 0, text.index("{{"))
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


# --- functions ----------------------------------------------------------------------------------------


def _now(scope: Scope) -> Json:
    try:
        at = datetime.fromtimestamp(scope.now, UTC)
    except (ValueError, OSError):
        raise ExpressionError("now: the time is out of range") from None
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _uuid(scope: Scope) -> Json:
    digest = hashlib.sha256(f"{scope.seed}:{scope.uuids}".encode("utf-8", "surrogatepass")).digest()
    scope.uuids += 1
    return str(uuid.UUID(bytes=digest[:16], version=4))


FUNCTIONS: Final[dict[str, Run]] = {"now": _now, "uuid": _uuid}


# --- operators ----------------------------------------------------------------------------------------


def _require_numbers(symbol: str, left: Json, right: Json) -> None:
    if type(left) not in NUMBER or type(right) not in NUMBER:
        raise ExpressionError(
            f'"{symbol}" needs two numbers, not {kind_of(left)} and {kind_of(right)}'
        )


def _add(budget: Budget, left: Json, right: Json) -> Json:
    kind = type(left)
    if kind is type(right) and kind is str:
        return joined([left, right])
    if kind is type(right) and kind is list:
        budget.spend(len(left) + len(right))
        return left + right
    if kind is str or type(right) is str:
        hint = "; to join texts use ~, to calculate use number"
        raise ExpressionError(f'"+" cannot add {kind_of(left)} and {kind_of(right)}{hint}')
    _require_numbers("+", left, right)
    return bounded(left + right, '"+"')


def _subtract(_: Budget, left: Json, right: Json) -> Json:
    _require_numbers("-", left, right)
    return bounded(left - right, '"-"')


def _multiply(_: Budget, left: Json, right: Json) -> Json:
    _require_numbers("*", left, right)
    if (
        type(left) is int
        and type(right) is int
        and left.bit_length() + right.bit_length() > MAX_INTEGER_BITS + 1
    ):
        raise over_limit('"*": the result is too large a number')
    return bounded(left * right, '"*"')


def _dividing(symbol: str, divide: Callable[[Any, Any], Any]) -> Callable[..., Json]:
    def apply(_: Budget, left: Json, right: Json) -> Json:
        _require_numbers(symbol, left, right)
        if right == 0:
            raise ExpressionError(f'"{symbol}": division by zero')
        return bounded(divide(left, right), f'"{symbol}"')

    return apply


_ARITHMETIC: Final[dict[str, Callable[[Budget, Json, Json], Json]]] = {
    "Add": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _dividing("/", operator.truediv),
    "FloorDiv": _dividing("//", operator.floordiv),
    "Mod": _dividing("%", operator.mod),
}

_COMPARISONS: Final[dict[str, Callable[[Budget, Json, Json], bool]]] = {
    "eq": lambda budget, left, right: equal(left, right, budget),
    "ne": lambda budget, left, right: not equal(left, right, budget),
    "lt": ordering('"<"', operator.lt),
    "lteq": ordering('"<="', operator.le),
    "gt": ordering('">"', operator.gt),
    "gteq": ordering('">="', operator.ge),
    "in": lambda budget, left, right: contains(right, left, budget),
    "notin": lambda budget, left, right: not contains(right, left, budget),
}


# --- from text to closures ----------------------------------------------------------------------------

_REFUSED: Final = {
    "Pow": '"**"',
    "Slice": "a slice",
    "Tuple": "a tuple (write a list)",
    "NSRef": "a namespace",
}
_LITERAL_NAMES: Final = {"null": None}  # jinja2 itself knows none, true and false
_UNKNOWN_ESCAPE = re.compile(r"(\\(?:[\\'\"abfnrtvuUNx\n0-3]|[4-7](?![0-7]{2})))|\\")
_SURROGATE = re.compile("[\ud800-\udfff]")
_JINJA_WORDS: Final = {
    "end of template": "the end of the expression",
    "end of print statement": "}}",
}


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment  # 60 ms: paid by the first expression, not at start

    return Environment(autoescape=True)


class _Compiler:
    """One expression's way from text to a closure; collects what it reads.

    The token stream carries offsets where jinja2 keeps line numbers, so every node knows its column.
    """

    def __init__(self, text: str, at: Position) -> None:
        self.text = text
        self.at = at
        self.roots: set[str] = set()
        self.paths: dict[Path, int] = {}
        self.weight = 0
        self.soft = False  # as asked for the node whose handler is called
        self._offset = 0  # of the token being read

    def position(self, offset: int) -> Position:
        return _moved(self.at, self.text, 0, offset)

    def error(self, message: str, offset: int, *, code: str | None = None) -> ExpressionError:
        line, column = self.position(offset)
        return ExpressionError(message, code=code, line=line, column=column)

    def parse(self) -> Any:
        from jinja2.exceptions import TemplateSyntaxError
        from jinja2.lexer import TokenStream
        from jinja2.parser import Parser

        try:
            parser = Parser(_environment(), "")
            parser.stream = TokenStream(self._tokens(), None, None)
            tree = parser.parse_expression()
            rest = parser.stream.current
            if rest.type != "eof":
                raise self.error(f'unexpected "{rest.value}"', rest.lineno)
        except TemplateSyntaxError as error:
            message = error.message or "cannot be read"
            for theirs, ours in _JINJA_WORDS.items():
                message = message.replace(theirs, ours)
            at_end = "the end of the expression" in message
            offset = len(self.text.rstrip()) if at_end else error.lineno
            raise self.error(message[0].lower() + message[1:], offset) from None
        except (RecursionError, MemoryError):
            raise self.too_deep(self._offset) from None
        except (ValueError, SyntaxError, OverflowError, RuntimeError):
            raise self.error("cannot be read from here", self._offset) from None
        return tree

    def _tokens(self) -> Iterator[Token]:
        return _environment().lexer.wrap(self._raw_tokens())

    def _raw_tokens(self) -> Iterator[tuple[int, str, str]]:
        from jinja2.exceptions import TemplateSyntaxError

        depth = 0
        tokens = _environment().lexer.tokeniter(self.text, None, None, "variable")
        try:
            for _, kind, value in tokens:
                if kind == "operator":
                    depth += (value in "([{") - (value in ")]}")
                    if depth > MAX_DEPTH:
                        raise self.too_deep(self._offset)
                elif kind in ("integer", "float") and not value.isascii():
                    raise self.error("a number is written with the digits 0 to 9", self._offset)
                written = _UNKNOWN_ESCAPE.sub(_keep_backslash, value) if kind == "string" else value
                yield self._offset, kind, written
                self._offset += len(value)
        except TemplateSyntaxError as error:
            message = error.message or "cannot be read"
            if message.startswith("unexpected char"):
                message = f"unexpected character {self.text[self._offset]!r}"
                if self.text[self._offset] in "'\"":
                    message = "a text is never closed"
            raise self.error(message, self._offset) from None

    def too_deep(self, offset: int) -> ExpressionError:
        return self.error(f"nested deeper than {MAX_DEPTH} levels", offset, code="expression.limit")

    def compile(self, node: Any, depth: int, *, soft: bool = False) -> Run:
        """A closure for `node`. `soft`: what is missing is MISSING instead of an error."""
        if depth > MAX_DEPTH:
            raise self.too_deep(node.lineno)
        self.weight += 1
        kind = type(node).__name__
        handler = _HANDLERS.get(kind)
        if handler is None:
            what = _REFUSED.get(kind, f"{kind.lower()!r}")
            raise self.error(f"{what} cannot be used in expressions", node.lineno)
        self.soft = soft
        return handler(self, node, depth)


def _keep_backslash(match: re.Match[str]) -> str:
    """Escapes stay; any other backslash stands for itself."""
    return match[1] or "\\\\"


def _moved(at: Position, text: str, start: int, end: int) -> Position:
    """Where `end` stands if `start` stands `at`."""
    lines = text.count("\n", start, end)
    if not lines:
        return at[0], at[1] + end - start
    return at[0] + lines, end - text.rfind("\n", start, end)


def _const(compiler: _Compiler, node: Any, _depth: int) -> Run:
    value = _literal(compiler, node)
    return lambda _: value


def _literal(compiler: _Compiler, node: Any) -> Json:
    value = node.value
    if type(value) in NUMBER:
        try:
            bounded(value, "a literal")
        except ExpressionError:
            raise compiler.error("the number is too large", node.lineno) from None
    elif type(value) is str and _SURROGATE.search(value):
        try:
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise compiler.error("the text holds half a character", node.lineno) from None
    return value


def _path(compiler: _Compiler, node: Any, depth: int) -> Run:
    """A name with all that follows it: one closure, however long."""
    soft = compiler.soft
    keys: list[str | int | Run] = []
    while type(node).__name__ in ("Getattr", "Getitem"):
        if type(node).__name__ == "Getattr":
            keys.append(node.attr)
        else:
            keys.append(_key(compiler, node.arg, depth))
        node = node.node
    keys.reverse()
    compiler.weight += len(keys)
    if type(node).__name__ != "Name":
        return _read_below(compiler.compile(node, depth + 1), None, keys, soft=soft)
    root: str = node.name
    if root in _LITERAL_NAMES and not keys:
        return lambda _: _LITERAL_NAMES[root]
    compiler.roots.add(root)
    fixed: list[str | int] = []
    for key in keys:
        if not isinstance(key, (str, int)):
            break
        fixed.append(key)
    compiler.paths.setdefault((root, *fixed), node.lineno)
    if len(fixed) == len(keys):
        return _read_fixed(root, tuple(fixed), soft=soft)
    return _read_below(_read_fixed(root, (), soft=soft), root, keys, soft=soft)


def _key(compiler: _Compiler, node: Any, depth: int) -> str | int | Run:
    kind = type(node).__name__
    if kind == "Const":
        value = _literal(compiler, node)
        if type(value) not in (str, int):
            raise compiler.error("a key is a text or a whole number", node.lineno)
        return value  # type: ignore[no-any-return]
    if kind == "Neg" and type(node.node).__name__ == "Const" and type(node.node.value) is int:
        return -int(node.node.value)
    return compiler.compile(node, depth + 1)


def _member(value: Json, key: Json) -> Json:
    """The element of a map or list, or MISSING; no other value has any."""
    if type(value) is dict:
        return value.get(key, MISSING) if type(key) is str else MISSING
    if type(value) is list and type(key) is int and -len(value) <= key < len(value):
        return value[key]
    return MISSING


def _read_fixed(root: str, keys: Path, *, soft: bool) -> Run:
    def read(scope: Scope) -> Json:
        value = scope.roots.get(root, MISSING)
        if value is MISSING:
            value = scope.find(root)
            if value is MISSING:
                if soft:
                    return MISSING
                raise _unknown_root(scope, root, keys)
        for index, key in enumerate(keys):
            below = _member(value, key)
            if below is MISSING:
                if soft:
                    return MISSING
                raise _missing(root, keys, index, value)
            value = below
        return value

    return read


def _read_below(base: Run, root: str | None, keys: list[str | int | Run], *, soft: bool) -> Run:
    def read(scope: Scope) -> Json:
        value = base(scope)
        seen: list[str | int] = []
        for index, written in enumerate(keys):
            if value is MISSING:
                return MISSING
            key = written if isinstance(written, (str, int)) else written(scope)
            if type(key) not in (str, int):
                raise ExpressionError(f"a key is a text or a whole number, not {kind_of(key)}")
            seen.append(key)
            below = _member(value, key)
            if below is MISSING and not soft:
                rest = [later for later in keys[index + 1 :] if isinstance(later, (str, int))]
                raise _missing(root, (*seen, *rest), index, value)
            value = below
        return value

    return read


_PLAIN_KEY = re.compile(r"[^\W\d]\w*")


def _path_text(keys: Path) -> str:
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{_short(str(key) if key.bit_length() < 99 else '…')}]"
        elif _PLAIN_KEY.fullmatch(key):
            text += f".{_short(key)}"
        else:
            text += f'["{_short(key)}"]'
    return text.removeprefix(".")


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def _unknown_root(scope: Scope, root: str, keys: Path) -> ExpressionError:
    known = sorted(scope.names())
    shown = ", ".join(known[:_KNOWN_ROOTS_SHOWN]) + (
        ", …" if len(known) > _KNOWN_ROOTS_SHOWN else ""
    )
    return ExpressionError(
        f'{_path_text((root, *keys))}: there is no "{_short(root)}"{guess(root, known)} (known: {shown})',
        code="expression.missing",
    )


def _missing(root: str | None, keys: Path, index: int, parent: Json) -> ExpressionError:
    above: Path = (root, *keys[:index]) if root is not None else keys[:index]
    whole = _path_text((root, *keys) if root is not None else keys)
    holder = f'"{_short(root)}"' if root is not None else "the value"
    message = f'{whole}: {holder} has no "{_path_text(keys)}"'
    key = keys[index]
    if type(parent) is dict:
        message += guess(key, parent) if isinstance(key, str) else " (it is a map)"
    else:
        place = f'"{_path_text(above)}"' if above else "it"
        kind = f"a list of {len(parent)}" if type(parent) is list else kind_of(parent)
        message += f" ({place} is {kind})"
    return ExpressionError(message, code="expression.missing")


def _list(compiler: _Compiler, node: Any, depth: int) -> Run:
    elements = [compiler.compile(element, depth + 1) for element in node.items]
    return lambda scope: [v for element in elements if (v := element(scope)) is not OMIT]


def _map(compiler: _Compiler, node: Any, depth: int) -> Run:
    pairs = []
    for pair in node.items:
        if type(pair.key).__name__ == "Const" and type(pair.key.value) is not str:
            raise compiler.error("the keys of a map are texts", pair.key.lineno)
        pairs.append(
            (compiler.compile(pair.key, depth + 1), compiler.compile(pair.value, depth + 1))
        )

    def build(scope: Scope) -> Json:
        result = {}
        for key_of, value_of in pairs:
            key, value = key_of(scope), value_of(scope)
            if type(key) is not str:
                raise ExpressionError(f"the keys of a map are texts, not {kind_of(key)}")
            if value is not OMIT:
                result[key] = value
        return result

    return build


def _arithmetic(apply: Callable[[Budget, Json, Json], Json]) -> _Handler:
    def handle(compiler: _Compiler, node: Any, depth: int) -> Run:
        left = compiler.compile(node.left, depth + 1)
        right = compiler.compile(node.right, depth + 1)
        return lambda scope: apply(scope.budget, left(scope), right(scope))

    return handle


def _sign(symbol: str, apply: Callable[[Any], Any]) -> _Handler:
    def handle(compiler: _Compiler, node: Any, depth: int) -> Run:
        operand = compiler.compile(node.node, depth + 1)

        def run(scope: Scope) -> Json:
            value = operand(scope)
            if type(value) not in NUMBER:
                raise ExpressionError(f'"{symbol}" needs a number, not {kind_of(value)}')
            return apply(value)

        return run

    return handle


def _and(compiler: _Compiler, node: Any, depth: int) -> Run:
    left = compiler.compile(node.left, depth + 1)
    right = compiler.compile(node.right, depth + 1)
    return lambda scope: left(scope) and right(scope)


def _or(compiler: _Compiler, node: Any, depth: int) -> Run:
    left = compiler.compile(node.left, depth + 1)
    right = compiler.compile(node.right, depth + 1)
    return lambda scope: left(scope) or right(scope)


def _not(compiler: _Compiler, node: Any, depth: int) -> Run:
    operand = compiler.compile(node.node, depth + 1)
    return lambda scope: not operand(scope)


def _compare(compiler: _Compiler, node: Any, depth: int) -> Run:
    first = compiler.compile(node.expr, depth + 1)
    links = [(_COMPARISONS[op.op], compiler.compile(op.expr, depth + 1)) for op in node.ops]

    def run(scope: Scope) -> Json:
        left = first(scope)
        for compare, operand in links:
            right = operand(scope)
            if not compare(scope.budget, left, right):
                return False
            left = right
        return True

    return run


def _concat(compiler: _Compiler, node: Any, depth: int) -> Run:
    operands = [compiler.compile(operand, depth + 1) for operand in node.nodes]
    return lambda scope: joined(
        [text_of(operand(scope), '"~"', scope.budget) for operand in operands]
    )


def _condition(compiler: _Compiler, node: Any, depth: int) -> Run:
    if node.expr2 is None:
        raise compiler.error('an "if" needs its "else"', node.lineno)
    test = compiler.compile(node.test, depth + 1)
    chosen = compiler.compile(node.expr1, depth + 1)
    other = compiler.compile(node.expr2, depth + 1)
    return lambda scope: chosen(scope) if test(scope) else other(scope)


def _call(compiler: _Compiler, node: Any, _depth: int) -> Run:
    if type(node.node).__name__ != "Name":
        raise compiler.error(
            "methods cannot be called; filters are written value|name", node.lineno
        )
    name = node.node.name
    if name not in FUNCTIONS:
        hint = guess(name, FUNCTIONS) or (
            f"; as a filter it is written value|{name}" if name in FILTERS else ""
        )
        raise compiler.error(f'unknown function "{_short(name)}"{hint}', node.node.lineno)
    if node.args or node.kwargs or node.dyn_args or node.dyn_kwargs:
        raise compiler.error(f"{name}() takes no arguments", node.lineno)
    return FUNCTIONS[name]


@dataclass(frozen=True, slots=True)
class _Called:
    """A filter or test as it is written: its name, its entry, and the nodes of its arguments."""

    name: str
    known: Filter
    by_place: list[Any]
    by_name: list[Any]
    offset: int


_TABLES: Final[dict[str, Mapping[str, Filter]]] = {"filter": FILTERS, "test": TESTS}


def _applying(word: str) -> _Handler:
    def handle(compiler: _Compiler, node: Any, depth: int) -> Run:
        name: str = node.name
        soft = compiler.soft
        known = _entry(compiler, word, name, node.lineno)
        operand = compiler.compile(node.node, depth + 1, soft=known.sees_missing)
        value = _written(compiler, node.node)
        if value is not MISSING:
            _at_parse(compiler, node.node, value, functools.partial(known.check, where=name))
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise compiler.error(f"{name}: arguments cannot be unpacked", node.lineno)
        called = _Called(name, known, node.args, node.kwargs or [], node.lineno)
        return _apply(called, operand, _arguments(compiler, called, depth), soft=soft)

    return handle


def _entry(compiler: _Compiler, word: str, name: str, offset: int) -> Filter:
    table = _TABLES[word]
    known = table.get(name)
    if known is None:
        raise compiler.error(f'unknown {word} "{_short(name)}"{guess(name, table)}', offset)
    return known


def _arguments(compiler: _Compiler, called: _Called, depth: int) -> list[Run]:
    """One closure per parameter, in order, checked as far as they are literals; `inner` comes last."""
    known = called.known
    if known.inner and len(called.by_place) > known.leading:
        own = replace(
            called,
            known=replace(known, agree=None),  # of the form without a name
            by_place=called.by_place[: known.leading],
            by_name=[],
        )
        return [*_own_arguments(compiler, own, depth), _inner(compiler, called, depth)]
    arguments = _own_arguments(compiler, called, depth)
    return [*arguments, functools.partial(_fixed, None)] if known.inner else arguments


def _own_arguments(compiler: _Compiler, called: _Called, depth: int) -> list[Run]:
    name, known = called.name, called.known
    runs: list[Run] = []
    values: list[Json] = []  # REQUIRED: not known before the run
    for parameter, node in _paired(compiler, called):
        if node is None:
            if parameter.default is REQUIRED:
                raise compiler.error(f"{name} needs {parameter.name}", called.offset)
            runs.append(functools.partial(_fixed, parameter.default))
            values.append(parameter.default)
            continue
        check = functools.partial(parameter.check, where=name)
        run = compiler.compile(node, depth + 1)
        value = _written(compiler, node)
        if value is not MISSING:
            _at_parse(compiler, node, value, check)
            runs.append(run)
        else:
            runs.append(functools.partial(_checked, run, check))
        values.append(REQUIRED if value is MISSING else value)
    if known.agree and not any(value is REQUIRED for value in values):
        problem = known.agree(*values)
        if problem:
            raise compiler.error(f"{name}: {problem}", called.offset)
    return runs


def _paired(compiler: _Compiler, called: _Called) -> list[tuple[Parameter, Any]]:
    """Every parameter with the node given for it, or None."""
    name, known, by_place = called.name, called.known, called.by_place
    parameters = list(known.parameters)
    if by_place and known.named:
        raise compiler.error(f"{name}: name the argument: {name}(days=1)", by_place[0].lineno)
    if known.many:
        parameters += [parameters[-1]] * (len(by_place) - len(parameters))
    if len(by_place) > len(parameters):
        most = len(parameters)
        counted = f"at most {most} argument{'s' * (most > 1)}" if most else "no arguments"
        raise compiler.error(f"{name} takes {counted}", called.offset)
    nodes = [*by_place, *[None] * (len(parameters) - len(by_place))]
    names = [parameter.name for parameter in known.parameters]
    for keyword in called.by_name:
        if keyword.key not in names:
            hint = guess(keyword.key, names)
            message = f'{name} has no argument "{_short(keyword.key)}"{hint}'
            raise compiler.error(message, keyword.lineno)
        index = names.index(keyword.key)
        if nodes[index] is not None:
            raise compiler.error(f"{name}: {keyword.key} is given twice", keyword.lineno)
        nodes[index] = keyword.value
    return list(zip(parameters, nodes, strict=True))


def _inner(compiler: _Compiler, outer: _Called, depth: int) -> Run:
    """What gives, in a scope, the function that applies the filter or test that `outer` names."""
    word, leading = outer.known.inner, outer.known.leading
    node = outer.by_place[leading]
    if depth >= MAX_DEPTH:
        raise compiler.too_deep(node.lineno)
    if type(node).__name__ != "Const" or type(node.value) is not str:
        message = f"{outer.name}: the name of the {word} is written out as a text"
        raise compiler.error(message, node.lineno)
    name: str = node.value
    known = _entry(compiler, word, name, node.lineno)
    compiler.weight += 1
    called = _Called(name, known, outer.by_place[leading + 1 :], outer.by_name, node.lineno)
    arguments = _arguments(compiler, called, depth + 1)

    def prepare(scope: Scope) -> Callable[[Json], Json]:
        budget = scope.budget
        given = _given(known, arguments, scope)
        if known.lazy:  # paid for once, so evaluated once
            given = [functools.cache(argument) for argument in given]

        def apply(value: Json) -> Json:
            if value is not MISSING:
                known.check(value, name)
            elif not known.sees_missing:
                return MISSING
            return _applied(name, known, budget, value, given, soft=False)

        return apply

    return prepare


def _given(known: Filter, arguments: list[Run], scope: Scope) -> list[Json]:
    if known.lazy:
        return [functools.partial(argument, scope) for argument in arguments]
    return [argument(scope) for argument in arguments]


def _applied(
    name: str, known: Filter, budget: Budget, value: Json, given: list[Json], *, soft: bool
) -> Json:
    result = known.run(budget, value, *given)
    if result is MISSING and not soft:
        nothing = known.nothing.format(kind=kind_of(value))
        raise ExpressionError(f"{name}: {nothing}", code="expression.missing")
    return result


def _apply(called: _Called, operand: Run, arguments: list[Run], *, soft: bool) -> Run:
    name, known = called.name, called.known

    def run(scope: Scope) -> Json:
        value = operand(scope)
        if value is not MISSING:
            known.check(value, name)
        given = _given(known, arguments, scope)
        return _applied(name, known, scope.budget, value, given, soft=soft)

    return run


def _fixed(value: Json, _: Scope) -> Json:
    return value


def _checked(run: Run, check: Callable[[Json], None], scope: Scope) -> Json:
    value = run(scope)
    check(value)
    return value


def _written(compiler: _Compiler, node: Any) -> Json:
    """The value of a node that is made of literals only, else MISSING."""
    kind = type(node).__name__
    if kind == "Const":
        return _literal(compiler, node)
    if kind == "Name":
        return _LITERAL_NAMES.get(node.name, MISSING)
    if kind == "Neg":
        value = _written(compiler, node.node)
        return -value if type(value) in NUMBER else MISSING
    if kind == "List":
        elements = [_written(compiler, element) for element in node.items]
        return MISSING if any(element is MISSING for element in elements) else elements
    return MISSING


def _at_parse(compiler: _Compiler, node: Any, value: Json, check: Callable[[Json], None]) -> None:
    try:
        check(value)
    except ExpressionError as error:
        raise compiler.error(error.message, node.lineno) from None


_Handler = Callable[[_Compiler, Any, int], Run]

_HANDLERS: Final[dict[str, _Handler]] = {
    "Const": _const,
    "Name": _path,
    "Getattr": _path,
    "Getitem": _path,
    "List": _list,
    "Dict": _map,
    **{name: _arithmetic(apply) for name, apply in _ARITHMETIC.items()},
    "Neg": _sign("-", operator.neg),
    "Pos": _sign("+", operator.pos),
    "And": _and,
    "Or": _or,
    "Not": _not,
    "Compare": _compare,
    "Concat": _concat,
    "CondExpr": _condition,
    "Call": _call,
    "Filter": _applying("filter"),
    "Test": _applying("test"),
}


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
        return _render_list([run or functools.partial(_fixed, element) for run, element in pairs])

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
        below = _path_text(place)
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
        at = _moved(at, text, done, start)
        try:
            end = _closing(text, start, at)
        except ExpressionError as error:
            return [*pieces, error]
        try:
            pieces.append(_parse_inside(text, start + 2, end, at))
        except ExpressionError as error:
            pieces.append(error)
        at, done = _moved(at, text, start, end + 2), end + 2
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
            quote_line, quote_column = _moved(at, text, start, mark.start())
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
    around = f'the text around "{{{{ {_short(piece.text)} }}}}"'
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
