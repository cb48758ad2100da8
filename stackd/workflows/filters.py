"""What expressions may do to values: their bounds, comparison, text form, and the tables of filters and tests.

A filter is one entry of `FILTERS`: what it accepts, its parameters, its function. The parser checks names,
arity and literal arguments against the table, so a function is only ever called with what it declared.
Every loop over data is paid for from the `Budget`; nothing is built before its size is known to fit.
"""

from __future__ import annotations

import decimal
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from stackd.core.errors import ExpressionError, InputError
from stackd.core.json import Json, dumps, loads_strict
from stackd.core.names import nearest

MAX_RESULT_BYTES = 1024 * 1024  # of one expression
MAX_RENDERED_BYTES = (
    16 * 1024 * 1024
)  # of all expressions in one render: what an execution may hold
MAX_STEPS = 100_000  # of one evaluation or render; about 10 ms
MAX_INTEGER_BITS = 1024  # of a computed whole number; no float reaches further
_NODES_PER_STEP = 4  # measuring a value is that much cheaper than working on it
_CHARACTERS_PER_STEP = 500  # 1 MiB read once is about 2,000 steps and 1 ms
_CODED_BYTES_PER_STEP = 64  # turned into JSON or back
_UTF8_BYTES = 3  # at most, per character that is no surrogate pair


class Omit:
    """The type of `OMIT`."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False


class Missing:
    """The type of `MISSING`, which only `default`, `omit` and tests ever get to see."""

    __slots__ = ()


OMIT: Final = Omit()
MISSING: Final = Missing()

NUMBER: Final = frozenset({int, float})
TEXT: Final = frozenset({str})
LIST: Final = frozenset({list})
MAP: Final = frozenset({dict})
WHOLE: Final = frozenset({int})
TRUTH: Final = frozenset({bool})
SCALAR: Final = NUMBER | TEXT | TRUTH
NULL: Final = frozenset({type(None)})
ANY: Final = SCALAR | LIST | MAP | NULL

_KINDS: Final[dict[type, str]] = {
    type(None): "null",
    bool: "true/false",
    int: "number",
    float: "number",
    str: "text",
    list: "list",
    dict: "map",
    Omit: "an omitted value",
}


def kind_of(value: Json) -> str:
    return _KINDS.get(type(value), "an unknown value")


def guess(name: str, known: Iterable[str]) -> str:
    """A `; did you mean …` for a message, or nothing."""
    meant = nearest(name, known)
    return f'; did you mean "{meant}"?' if meant else ""


def over_limit(message: str) -> ExpressionError:
    return ExpressionError(message, code="expression.limit")


class Budget:
    """The work and the bytes one evaluation, or one render of many expressions, may still use."""

    __slots__ = ("charged", "room", "steps")

    def __init__(self) -> None:
        self.charged = 0  # about how many bytes of JSON all results were, from first to last
        self.reset()

    def reset(self) -> None:
        self.steps = MAX_STEPS
        self.room = MAX_RENDERED_BYTES

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise over_limit(f"too much work: over {MAX_STEPS:,} steps")

    def spend_reading(self, text: str, sought: str = "") -> None:
        """Pay for going through `text`, at worst comparing `sought` at every place.

        CPython's search is linear from 30,000 characters on, and from 2,500 for long `sought`.
        """
        size = len(text)
        compared = len(sought)
        if size >= 2_500:
            compared = min(compared, 100 if size < 30_000 else 6)
        self.spend(size * (1 + compared) // _CHARACTERS_PER_STEP)

    def charge(self, value: Json) -> None:
        """Take the size of a result out of `room`. Raises ExpressionError over a limit."""
        kind = type(value)
        if kind is not str and kind is not dict and kind is not list:
            return
        size = self.measure(value)
        self.room -= size
        self.charged += size
        if self.room < 0:
            raise over_limit(f"the results together are over {MAX_RENDERED_BYTES:,} bytes")

    def measure(self, value: Json) -> int:
        """About how many bytes of JSON `value` is. Raises ExpressionError over MAX_RESULT_BYTES."""
        if type(value) is str:
            return fitting(value)
        total = 0
        stack = [value]
        children: Iterable[Json]
        while stack:
            inner = stack.pop()
            if type(inner) is dict:
                total += 5 * len(inner)
                children = inner.values()
            elif type(inner) is list:
                total += 2 * len(inner)
                children = inner
            else:
                continue
            if total > MAX_RESULT_BYTES:
                raise _too_large()
            self.spend(1 + len(inner) // _NODES_PER_STEP)
            if type(inner) is dict:
                total += sum(map(len, inner))
            for child in children:
                kind = type(child)
                if kind is str:
                    total += len(child) if child.isascii() else fitting(child)
                elif kind is dict or kind is list:
                    stack.append(child)
                elif kind is int:
                    total += child.bit_length() // 4
            if total > MAX_RESULT_BYTES:
                raise _too_large()
        return total


def _too_large() -> ExpressionError:
    return over_limit(f"the result is over {MAX_RESULT_BYTES:,} bytes")


def fitting(text: str) -> int:
    """The UTF-8 bytes of `text`, exactly or a little over. Raises ExpressionError over the limit."""
    size = len(text)
    if size * _UTF8_BYTES > MAX_RESULT_BYTES:
        if size > MAX_RESULT_BYTES:
            raise _too_large()
        if not text.isascii():
            size = len(text.encode("utf-8", "surrogatepass"))
            if size > MAX_RESULT_BYTES:
                raise _too_large()
    return size


def joined(parts: list[str], separator: str = "") -> str:
    """`parts` as one text, measured before it is built."""
    if sum(map(len, parts)) + len(separator) * len(parts) > MAX_RESULT_BYTES:
        raise _too_large()
    return separator.join(parts)


def text_of(value: Json, where: str) -> str:
    """A scalar as it reads inside a text: `true`, `5`, `2.5`. `where` begins the message of a refusal."""
    kind = type(value)
    if kind is str:
        return value  # type: ignore[no-any-return]  # `type(...) is` does not narrow Any
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return _digits(value)
    if kind is float:
        return repr(value)
    if value is None:
        raise ExpressionError(f"{where} cannot hold null; name a value for it with default(…)")
    if kind is list or kind is dict:
        raise ExpressionError(f"{where} cannot hold a {kind_of(value)}; write it as text with json")
    raise ExpressionError(f"{where} cannot hold {kind_of(value)}")


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # more digits than Python converts
        raise over_limit("a number has too many digits to be written") from None


def bounded(value: Json, where: str) -> Json:
    """A computed number, if it is finite and no longer than MAX_INTEGER_BITS."""
    if type(value) is int:
        if value.bit_length() > MAX_INTEGER_BITS:
            raise over_limit(f"{where}: the result is too large a number")
    elif not math.isfinite(value):
        raise over_limit(f"{where}: the result is too large a number")
    return value


def equal(left: Json, right: Json, budget: Budget) -> bool:
    """Whether both are the same JSON value: never across types, but 1 is 1.0."""
    kind = type(left)
    if kind is not type(right):
        return kind in NUMBER and type(right) in NUMBER and bool(left == right)
    if kind is list:
        if len(left) != len(right):
            return False
        budget.spend(len(left))
        return all(equal(a, b, budget) for a, b in zip(left, right, strict=True))
    if kind is dict:
        if len(left) != len(right):
            return False
        budget.spend(len(left))
        return all(key in right and equal(left[key], right[key], budget) for key in left)
    return bool(left == right)


def contains(container: Json, member: Json, budget: Budget) -> bool:
    """`member in container`: an element of a list, a key of a map, a part of a text."""
    kind = type(container)
    if kind is list:
        budget.spend(len(container))
        return any(equal(member, element, budget) for element in container)
    if kind is str and type(member) is str:
        budget.spend_reading(container, member)
        return member in container
    if kind is dict and type(member) is str:
        return member in container
    raise ExpressionError(f'"in" cannot look for {kind_of(member)} in {kind_of(container)}')


def require_order(values: list[Json], where: str) -> None:
    """Refuse values that have no order: only numbers, or only texts, do."""
    kinds = set(map(type, values))
    if kinds <= NUMBER or kinds <= TEXT:
        return
    names = " and ".join(sorted({_KINDS.get(kind, "an unknown value") for kind in kinds}))
    raise ExpressionError(f"{where} orders numbers or texts, not {names}")


# --- tables -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument. `refuse` tells what is wrong with a value of the right type, or None."""

    name: str
    accepts: frozenset[type]
    default: Json = MISSING  # MISSING: must be given
    refuse: Callable[[Any], str | None] | None = None

    def check(self, value: Json, where: str) -> None:
        if type(value) not in self.accepts:
            expected = _expected(self.accepts)
            raise ExpressionError(f"{where}: {self.name} must be {expected}, not {kind_of(value)}")
        problem = self.refuse(value) if self.refuse else None
        if problem:
            raise ExpressionError(f"{where}: {self.name} {problem}")


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter or test. `run(budget, value, *arguments)` gets every parameter, defaults filled in.

    `sees_missing`: a missing path arrives as MISSING instead of failing. A filter may return MISSING where
    there is no such value; that fails unless `default` or `omit` follows directly.
    `lazy`: arguments arrive as functions, so that one that is not needed is never evaluated.
    """

    run: Callable[..., Json]
    accepts: frozenset[type]
    parameters: tuple[Parameter, ...] = ()
    sees_missing: bool = False
    lazy: bool = False

    def check(self, value: Json, where: str) -> None:
        if type(value) not in self.accepts:
            raise ExpressionError(f"{where} takes {_expected(self.accepts)}, not {kind_of(value)}")


def _expected(accepts: frozenset[type]) -> str:
    if accepts == WHOLE:
        return "a whole number"
    return " or ".join(dict.fromkeys(name for kind, name in _KINDS.items() if kind in accepts))


# --- filters ------------------------------------------------------------------------------------------

_HALF_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")  # perhaps: half of a pair is written like this too
_WHOLE_TEXT = re.compile(r"[+-]?[0-9]{1,400}", re.ASCII)
_NUMBER_TEXT = re.compile(r"[+-]?[0-9]{1,400}(?:\.[0-9]{1,400})?(?:[eE][+-]?[0-9]{1,4})?", re.ASCII)
_TRUTHS: Final = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
_ROUNDINGS: Final = {
    "common": decimal.ROUND_HALF_UP,
    "ceil": decimal.ROUND_CEILING,
    "floor": decimal.ROUND_FLOOR,
}
_WIDE = decimal.Context(prec=400)  # digits: every float at 15 decimals fits exactly


def _default(
    _: Budget, value: Json, instead: Callable[[], Json], also_false: Callable[[], Json]
) -> Json:
    if value is MISSING or value is None or (not value and also_false()):
        return instead()
    return value


def _omit(_: Budget, value: Json) -> Json:
    return OMIT if value is MISSING or value is None else value


def _string(_: Budget, value: Json) -> Json:
    return "null" if value is None else text_of(value, "string")


def _int(_: Budget, value: Json) -> Json:
    if type(value) is not str:
        return int(value) if type(value) is bool else int(bounded(value, "int"))
    text = value.strip()
    if not _WHOLE_TEXT.fullmatch(text):
        raise ExpressionError("int: the text is not a whole number")
    return bounded(int(text), "int")


def _float(_: Budget, value: Json) -> Json:
    if type(value) is not str:
        try:
            return float(value)
        except OverflowError:
            raise over_limit("float: the number is too large") from None
    text = value.strip()
    if not _NUMBER_TEXT.fullmatch(text):
        raise ExpressionError("float: the text is not a number")
    return bounded(float(text), "float")


def _number(budget: Budget, value: Json) -> Json:
    if type(value) is not str:
        return value
    text = value.strip()
    if _WHOLE_TEXT.fullmatch(text):
        return bounded(int(text), "number")
    if not _NUMBER_TEXT.fullmatch(text):
        raise ExpressionError("number: the text is not a number")
    return _float(budget, text)


def _bool(_: Budget, value: Json) -> Json:
    if type(value) is not str:
        return bool(value)
    truth = _TRUTHS.get(value.strip()[:6].lower())
    if truth is None:
        raise ExpressionError("bool: the text is none of true/false, yes/no, on/off, 1/0")
    return truth


def _json(budget: Budget, value: Json) -> Json:
    budget.spend(budget.measure(value) // _CODED_BYTES_PER_STEP)
    try:
        text = dumps(value).decode()
    except TypeError:
        raise ExpressionError("json: the value is nested too deep or is not valid text") from None
    fitting(text)
    return text


def _fromjson(budget: Budget, value: Json) -> Json:
    budget.spend(fitting(value) // _CODED_BYTES_PER_STEP)
    # Every element but the first needs a comma and every level a bracket, so this bounds what is built.
    budget.spend((value.count(",") + value.count("[") + value.count("{")) // _NODES_PER_STEP)
    try:
        read = loads_strict(value.encode())
        if _HALF_ESCAPE.search(value):
            dumps(read)
    except (UnicodeEncodeError, TypeError):
        raise ExpressionError("fromjson: the text holds half a character") from None
    except InputError as error:
        raise ExpressionError(f"fromjson: {error.message}") from None
    return read


def _lower(budget: Budget, value: Json) -> Json:
    fitting(value)
    budget.spend_reading(value)
    return value.lower()


def _upper(budget: Budget, value: Json) -> Json:
    fitting(value)
    budget.spend_reading(value)
    return value.upper()


def _trim(budget: Budget, value: Json) -> Json:
    budget.spend_reading(value)
    return value.strip()


def _replace(budget: Budget, value: Json, old: Json, new: Json) -> Json:
    fitting(value)
    budget.spend_reading(value, old)
    if len(value) + value.count(old) * (len(new) - len(old)) > MAX_RESULT_BYTES:
        raise _too_large()
    return value.replace(old, new)


def _split(budget: Budget, value: Json, separator: Json) -> Json:
    fitting(value)
    budget.spend_reading(value, separator or "")
    parts = value.split(separator, budget.steps + 1)
    budget.spend(len(parts))
    return parts


def _join(budget: Budget, value: Json, separator: Json) -> Json:
    budget.spend(len(value))
    room = MAX_RESULT_BYTES
    parts: list[str] = []
    for element in value:
        parts.append(text_of(element, "join"))
        room -= len(parts[-1]) + len(separator)
        if room < -len(separator):
            raise _too_large()
    return separator.join(parts)


def _first(_: Budget, value: Json) -> Json:
    return value[0] if value else MISSING


def _last(_: Budget, value: Json) -> Json:
    return value[-1] if value else MISSING


def _length(_: Budget, value: Json) -> Json:
    return len(value)


def _keys(budget: Budget, value: Json) -> Json:
    budget.spend(len(value))
    return list(value)


def _values(budget: Budget, value: Json) -> Json:
    budget.spend(len(value))
    return list(value.values())


def _round(_: Budget, value: Json, precision: Json, method: Json) -> Json:
    """Half goes away from zero, as on paper; without decimals the result is a whole number."""
    if type(value) is int:
        return value
    bounded(value, "round")
    unit = decimal.Decimal(1).scaleb(-precision)
    exact = decimal.Decimal(repr(value)).quantize(unit, _ROUNDINGS[method], _WIDE)
    return float(exact) if precision else int(exact)


def _sum(budget: Budget, value: Json) -> Json:
    budget.spend(len(value))
    if not set(map(type, value)) <= NUMBER:
        wrong = next(element for element in value if type(element) not in NUMBER)
        raise ExpressionError(f"sum adds numbers, not {kind_of(wrong)}")
    try:
        return bounded(sum(value), "sum")
    except OverflowError:
        raise over_limit("sum: the result is too large a number") from None


def _min(budget: Budget, value: Json) -> Json:
    budget.spend(len(value))
    require_order(value, "min")
    return min(value) if value else MISSING


def _max(budget: Budget, value: Json) -> Json:
    budget.spend(len(value))
    require_order(value, "max")
    return max(value) if value else MISSING


def _sort(budget: Budget, value: Json, reverse: Json, attribute: Json) -> Json:
    budget.spend(2 * len(value))
    if attribute is None:
        require_order(value, "sort")
        return sorted(value, reverse=reverse)
    keys = []
    for element in value:
        if type(element) is not dict or attribute not in element:
            raise ExpressionError(f'sort: an element has no "{attribute}"')
        keys.append(element[attribute])
    require_order(keys, "sort")
    order = sorted(range(len(keys)), key=keys.__getitem__, reverse=reverse)
    return [value[index] for index in order]


def _unique(budget: Budget, value: Json) -> Json:
    """The first of each equal elements, in their order."""
    budget.spend(len(value))
    found: dict[str, Json] = {}
    for element in value:
        parts: list[str] = []
        _write_identity(element, parts, budget)
        found.setdefault("".join(parts), element)
    return list(found.values())


def _write_identity(value: Json, parts: list[str], budget: Budget) -> None:
    """Add text that equal values share and others do not. Text, because numbers' hashes can be made to collide."""
    kind = type(value)
    if kind is str:
        parts.append(f's{len(value)}"{value}')
    elif kind is list:
        budget.spend(len(value))
        parts.append(f"l{len(value)}[")
        for element in value:
            _write_identity(element, parts, budget)
    elif kind is dict:
        budget.spend(2 * len(value))
        parts.append(f"m{len(value)}{{")
        for key in sorted(value):
            parts.append(f'{len(key)}"{key}')
            _write_identity(value[key], parts, budget)
    elif kind is float and value.is_integer():
        parts.append(f"n{int(value):x};")
    elif kind is int:
        budget.spend(value.bit_length() // _CHARACTERS_PER_STEP)
        parts.append(f"n{value:x};")
    else:
        parts.append(f"v{value!r};")


def _refuse_empty(value: str) -> str | None:
    return None if value else "must not be empty"


def _refuse_empty_or_null(value: str | None) -> str | None:
    return "must not be empty" if value == "" else None


def _refuse_precision(value: int) -> str | None:
    return None if 0 <= value <= 15 else "must be between 0 and 15"


def _refuse_method(value: str) -> str | None:
    return None if value in _ROUNDINGS else f"must be one of {', '.join(_ROUNDINGS)}"


_ANY_OR_OMIT: Final = ANY | frozenset({Omit})
_SEQUENCE: Final = TEXT | LIST

FILTERS: Final[dict[str, Filter]] = {
    "default": Filter(
        _default,
        _ANY_OR_OMIT,
        (Parameter("value", _ANY_OR_OMIT), Parameter("also_false", TRUTH, default=False)),
        sees_missing=True,
        lazy=True,
    ),
    "omit": Filter(_omit, _ANY_OR_OMIT, sees_missing=True),
    "string": Filter(_string, SCALAR | NULL),
    "int": Filter(_int, SCALAR),
    "float": Filter(_float, SCALAR),
    "number": Filter(_number, NUMBER | TEXT),
    "bool": Filter(_bool, SCALAR | NULL),
    "json": Filter(_json, ANY),
    "fromjson": Filter(_fromjson, TEXT),
    "lower": Filter(_lower, TEXT),
    "upper": Filter(_upper, TEXT),
    "trim": Filter(_trim, TEXT),
    "replace": Filter(
        _replace, TEXT, (Parameter("old", TEXT, refuse=_refuse_empty), Parameter("new", TEXT))
    ),
    "split": Filter(
        _split,
        TEXT,
        (Parameter("separator", TEXT | NULL, default=None, refuse=_refuse_empty_or_null),),
    ),
    "join": Filter(_join, LIST, (Parameter("separator", TEXT, default=""),)),
    "first": Filter(_first, _SEQUENCE),
    "last": Filter(_last, _SEQUENCE),
    "length": Filter(_length, _SEQUENCE | MAP),
    "keys": Filter(_keys, MAP),
    "values": Filter(_values, MAP),
    "round": Filter(
        _round,
        NUMBER,
        (
            Parameter("precision", WHOLE, default=0, refuse=_refuse_precision),
            Parameter("method", TEXT, default="common", refuse=_refuse_method),
        ),
    ),
    "sum": Filter(_sum, LIST),
    "min": Filter(_min, LIST),
    "max": Filter(_max, LIST),
    "sort": Filter(
        _sort,
        LIST,
        (
            Parameter("reverse", TRUTH, default=False),
            Parameter("attribute", TEXT | NULL, default=None),
        ),
    ),
    "unique": Filter(_unique, LIST),
}


def _is_defined(_: Budget, value: Json) -> Json:
    return value is not MISSING


def _is_undefined(_: Budget, value: Json) -> Json:
    return value is MISSING


def _is_null(_: Budget, value: Json) -> Json:
    return value is None


TESTS: Final[dict[str, Filter]] = {
    "defined": Filter(_is_defined, _ANY_OR_OMIT, sees_missing=True),
    "undefined": Filter(_is_undefined, _ANY_OR_OMIT, sees_missing=True),
    "none": Filter(_is_null, _ANY_OR_OMIT),
    "null": Filter(_is_null, _ANY_OR_OMIT),
}
