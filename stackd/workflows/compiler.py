"""From the text of an expression to a closure: jinja2's parser reads it, its tree is walked once.

Nothing of jinja2 is compiled, folded or rendered, no Python attribute is ever read, and there is no loop to
write. What the tree may hold is `_HANDLERS`; operators, filters, tests and functions are entries of tables.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.workflows.filters.filter import REQUIRED, Filter, Parameter
from stackd.workflows.filters.operators import ARITHMETIC, COMPARISONS
from stackd.workflows.filters.table import FILTERS, TESTS
from stackd.workflows.filters.values import (
    MISSING,
    NUMBER,
    OMIT,
    Budget,
    bounded,
    guess,
    joined,
    kind_of,
    text_of,
)
from stackd.workflows.scope import (
    FUNCTIONS,
    NODE_FUNCTIONS,
    Path,
    Position,
    Run,
    Scope,
    moved,
    path_text,
    short,
)

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2.lexer import Token

MAX_DEPTH = 32  # of operators, filters and brackets in each other; a path counts once, however long
_KNOWN_ROOTS_SHOWN = 10

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


class Compiler:
    """One expression's way from text to a closure; collects what it reads.

    The token stream carries offsets where jinja2 keeps line numbers, so every node knows its column.
    """

    def __init__(self, text: str, at: Position) -> None:
        self.text = text
        self.at = at
        self.roots: set[str] = set()
        self.paths: dict[Path, int] = {}
        self.links: dict[str, int] = {}  # nodes whose link it reads
        self.weight = 0
        self.soft = False  # as asked for the node whose handler is called
        self._offset = 0  # of the token being read

    def position(self, offset: int) -> Position:
        return moved(self.at, self.text, 0, offset)

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


def _const(compiler: Compiler, node: Any, _depth: int) -> Run:
    value = _literal(compiler, node)
    return lambda _: value


def _literal(compiler: Compiler, node: Any) -> Json:
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


def _path(compiler: Compiler, node: Any, depth: int) -> Run:
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
    # What need not be there is read of whatever is there: of all below the root.
    compiler.paths.setdefault((root,) if soft else (root, *fixed), node.lineno)
    if len(fixed) == len(keys):
        return _read_fixed(root, tuple(fixed), soft=soft)
    return _read_below(_read_fixed(root, (), soft=soft), root, keys, soft=soft)


def _key(compiler: Compiler, node: Any, depth: int) -> str | int | Run:
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


def _unknown_root(scope: Scope, root: str, keys: Path) -> ExpressionError:
    known = sorted(scope.names())
    shown = ", ".join(known[:_KNOWN_ROOTS_SHOWN]) + (
        ", …" if len(known) > _KNOWN_ROOTS_SHOWN else ""
    )
    return ExpressionError(
        f'{path_text((root, *keys))}: there is no "{short(root)}"{guess(root, known)} (known: {shown})',
        code="expression.missing",
    )


def _missing(root: str | None, keys: Path, index: int, parent: Json) -> ExpressionError:
    above: Path = (root, *keys[:index]) if root is not None else keys[:index]
    whole = path_text((root, *keys) if root is not None else keys)
    holder = f'"{short(root)}"' if root is not None else "the value"
    message = f'{whole}: {holder} has no "{path_text(keys)}"'
    key = keys[index]
    if type(parent) is dict:
        message += guess(key, parent) if isinstance(key, str) else " (it is a map)"
    else:
        place = f'"{path_text(above)}"' if above else "it"
        kind = f"a list of {len(parent)}" if type(parent) is list else kind_of(parent)
        message += f" ({place} is {kind})"
    return ExpressionError(message, code="expression.missing")


def _list(compiler: Compiler, node: Any, depth: int) -> Run:
    elements = [compiler.compile(element, depth + 1) for element in node.items]
    return lambda scope: [v for element in elements if (v := element(scope)) is not OMIT]


def _map(compiler: Compiler, node: Any, depth: int) -> Run:
    pairs = []
    written: set[str] = set()
    for pair in node.items:
        if type(pair.key).__name__ == "Const":
            if type(pair.key.value) is not str:
                raise compiler.error("the keys of a map are texts", pair.key.lineno)
            if pair.key.value in written:
                raise compiler.error(
                    f"the key {pair.key.value[:80]!r} is there twice", pair.key.lineno
                )
            written.add(pair.key.value)
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
    def handle(compiler: Compiler, node: Any, depth: int) -> Run:
        left = compiler.compile(node.left, depth + 1)
        right = compiler.compile(node.right, depth + 1)
        return lambda scope: apply(scope.budget, left(scope), right(scope))

    return handle


def _sign(symbol: str, apply: Callable[[Any], Any]) -> _Handler:
    def handle(compiler: Compiler, node: Any, depth: int) -> Run:
        operand = compiler.compile(node.node, depth + 1)

        def run(scope: Scope) -> Json:
            value = operand(scope)
            if type(value) not in NUMBER:
                raise ExpressionError(f'"{symbol}" needs a number, not {kind_of(value)}')
            return apply(value)

        return run

    return handle


def _and(compiler: Compiler, node: Any, depth: int) -> Run:
    left = compiler.compile(node.left, depth + 1)
    right = compiler.compile(node.right, depth + 1)
    return lambda scope: left(scope) and right(scope)


def _or(compiler: Compiler, node: Any, depth: int) -> Run:
    left = compiler.compile(node.left, depth + 1)
    right = compiler.compile(node.right, depth + 1)
    return lambda scope: left(scope) or right(scope)


def _not(compiler: Compiler, node: Any, depth: int) -> Run:
    operand = compiler.compile(node.node, depth + 1)
    return lambda scope: not operand(scope)


def _compare(compiler: Compiler, node: Any, depth: int) -> Run:
    first = compiler.compile(node.expr, depth + 1)
    links = [(COMPARISONS[op.op], compiler.compile(op.expr, depth + 1)) for op in node.ops]

    def run(scope: Scope) -> Json:
        left = first(scope)
        for compare, operand in links:
            right = operand(scope)
            if not compare(scope.budget, left, right):
                return False
            left = right
        return True

    return run


def _concat(compiler: Compiler, node: Any, depth: int) -> Run:
    operands = [compiler.compile(operand, depth + 1) for operand in node.nodes]
    return lambda scope: joined(
        [text_of(operand(scope), '"~"', scope.budget) for operand in operands]
    )


def _condition(compiler: Compiler, node: Any, depth: int) -> Run:
    if node.expr2 is None:
        raise compiler.error('an "if" needs its "else"', node.lineno)
    test = compiler.compile(node.test, depth + 1)
    chosen = compiler.compile(node.expr1, depth + 1)
    other = compiler.compile(node.expr2, depth + 1)
    return lambda scope: chosen(scope) if test(scope) else other(scope)


def _call(compiler: Compiler, node: Any, _depth: int) -> Run:
    if type(node.node).__name__ != "Name":
        raise compiler.error(
            "methods cannot be called; filters are written value|name", node.lineno
        )
    name = node.node.name
    if name in NODE_FUNCTIONS:
        node_id = _node_id(compiler, name, node)
        compiler.links.setdefault(node_id, node.node.lineno)
        return NODE_FUNCTIONS[name](node_id)
    if name not in FUNCTIONS:
        hint = guess(name, [*FUNCTIONS, *NODE_FUNCTIONS]) or (
            f"; as a filter it is written value|{name}" if name in FILTERS else ""
        )
        raise compiler.error(f'unknown function "{short(name)}"{hint}', node.node.lineno)
    if node.args or node.kwargs or node.dyn_args or node.dyn_kwargs:
        raise compiler.error(f"{name}() takes no arguments", node.lineno)
    return FUNCTIONS[name]


def _node_id(compiler: Compiler, name: str, node: Any) -> str:
    """The one argument of the call `node`: a text that is written out."""
    given = node.args[0] if len(node.args) == 1 else None
    is_text = type(given).__name__ == "Const" and type(getattr(given, "value", None)) is str
    if not is_text or node.kwargs or node.dyn_args or node.dyn_kwargs:
        message = f'{name}() takes the id of a node, written out: {name}("approval")'
        raise compiler.error(message, node.node.lineno)
    return str(_literal(compiler, given))


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
    def handle(compiler: Compiler, node: Any, depth: int) -> Run:
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


def _entry(compiler: Compiler, word: str, name: str, offset: int) -> Filter:
    table = _TABLES[word]
    known = table.get(name)
    if known is None:
        raise compiler.error(f'unknown {word} "{short(name)}"{guess(name, table)}', offset)
    return known


def _arguments(compiler: Compiler, called: _Called, depth: int) -> list[Run]:
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
    return [*arguments, functools.partial(fixed, None)] if known.inner else arguments


def _own_arguments(compiler: Compiler, called: _Called, depth: int) -> list[Run]:
    name, known = called.name, called.known
    runs: list[Run] = []
    values: list[Json] = []  # REQUIRED: not known before the run
    for parameter, node in _paired(compiler, called):
        if node is None:
            if parameter.default is REQUIRED:
                raise compiler.error(f"{name} needs {parameter.name}", called.offset)
            runs.append(functools.partial(fixed, parameter.default))
            values.append(parameter.default)
            continue
        run = compiler.compile(node, depth + 1)
        value = _written(compiler, node)
        if value is not MISSING:
            _at_parse(compiler, node, value, functools.partial(parameter.check, where=name))
            runs.append(run)
        else:
            runs.append(functools.partial(_checked, run, parameter, name))
        values.append(REQUIRED if value is MISSING else value)
    if known.agree and not any(value is REQUIRED for value in values):
        problem = known.agree(*values)
        if problem:
            raise compiler.error(f"{name}: {problem}", called.offset)
    return runs


def _paired(compiler: Compiler, called: _Called) -> list[tuple[Parameter, Any]]:
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
            message = f'{name} has no argument "{short(keyword.key)}"{hint}'
            raise compiler.error(message, keyword.lineno)
        index = names.index(keyword.key)
        if nodes[index] is not None:
            raise compiler.error(f"{name}: {keyword.key} is given twice", keyword.lineno)
        nodes[index] = keyword.value
    return list(zip(parameters, nodes, strict=True))


def _inner(compiler: Compiler, outer: _Called, depth: int) -> Run:
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


def fixed(value: Json, _: Scope) -> Json:
    return value


def _checked(run: Run, parameter: Parameter, name: str, scope: Scope) -> Json:
    value = run(scope)
    parameter.check(value, name, scope.budget)
    return value


def _written(compiler: Compiler, node: Any) -> Json:
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


def _at_parse(compiler: Compiler, node: Any, value: Json, check: Callable[[Json], None]) -> None:
    try:
        check(value)
    except ExpressionError as error:
        raise compiler.error(error.message, node.lineno) from None


_Handler = Callable[[Compiler, Any, int], Run]

_HANDLERS: Final[dict[str, _Handler]] = {
    "Const": _const,
    "Name": _path,
    "Getattr": _path,
    "Getitem": _path,
    "List": _list,
    "Dict": _map,
    **{name: _arithmetic(apply) for name, apply in ARITHMETIC.items()},
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
