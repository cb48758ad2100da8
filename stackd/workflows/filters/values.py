"""JSON values within bounds: what work and size they may cost, their kinds, comparison and text form.

Every loop over data is paid for from the `Budget`; nothing is built before its size is known to fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Final

from stackd.core.errors import ExpressionError
from stackd.core.json import Json
from stackd.core.names import nearest

MAX_RESULT_BYTES = 1024 * 1024  # of one expression
MAX_RENDERED_BYTES = 16 * MAX_RESULT_BYTES  # of all in one render: what an execution may hold
MAX_STEPS = 100_000  # of one evaluation or render; about 10 ms
MAX_INTEGER_BITS = 1024  # of a computed whole number; no float reaches further
NODES_PER_STEP = 4  # measuring a value is that much cheaper than working on it
CHARACTERS_PER_STEP = 500  # 1 MiB read once is about 2,000 steps and 1 ms
_SQUARED_BITS_PER_STEP = 50_000
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
ANY_OR_OMIT: Final = ANY | frozenset({Omit})

KINDS: Final[dict[type, str]] = {
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
    return KINDS.get(type(value), "an unknown value")


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
        self.spend(size * (1 + compared) // CHARACTERS_PER_STEP)

    def spend_writing(self, number: int) -> None:
        """Pay for the digits of `number`: their time grows with the square of their count."""
        bits = number.bit_length()
        if bits > MAX_INTEGER_BITS:
            self.spend(bits * bits // _SQUARED_BITS_PER_STEP)

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
                raise too_large()
            self.spend(1 + len(inner) // NODES_PER_STEP)
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
                    self.spend_writing(child)
            if total > MAX_RESULT_BYTES:
                raise too_large()
        return total


def too_large() -> ExpressionError:
    return over_limit(f"the result is over {MAX_RESULT_BYTES:,} bytes")


def fitting(text: str) -> int:
    """The UTF-8 bytes of `text`, exactly or a little over. Raises ExpressionError over the limit."""
    size = len(text)
    if size * _UTF8_BYTES > MAX_RESULT_BYTES:
        if size > MAX_RESULT_BYTES:
            raise too_large()
        if not text.isascii():
            size = len(text.encode("utf-8", "surrogatepass"))
            if size > MAX_RESULT_BYTES:
                raise too_large()
    return size


def joined(parts: list[str], separator: str = "") -> str:
    """`parts` as one text, measured before it is built."""
    if sum(map(len, parts)) + len(separator) * len(parts) > MAX_RESULT_BYTES:
        raise too_large()
    return separator.join(parts)


def text_of(value: Json, where: str, budget: Budget | None = None) -> str:
    """A scalar as it reads inside a text: `true`, `5`, `2.5`. `where` begins the message of a refusal.

    Without a budget for who does so once.
    """
    kind = type(value)
    if kind is str:
        return value  # type: ignore[no-any-return]  # `type(...) is` does not narrow Any
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        if budget is not None:
            budget.spend_writing(value)
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
    names = " and ".join(sorted({KINDS.get(kind, "an unknown value") for kind in kinds}))
    raise ExpressionError(f"{where} orders numbers or texts, not {names}")


def ordering(
    where: str, compare: Callable[[Any, Any], bool]
) -> Callable[[Budget, Json, Json], bool]:
    """A comparison of values that have an order."""

    def apply(_: Budget, left: Json, right: Json) -> bool:
        require_order([left, right], where)
        return compare(left, right)

    return apply


def utf8(text: str, where: str) -> bytes:
    """`text` in UTF-8, once its size is known to fit."""
    fitting(text)
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ExpressionError(f"{where}: the text holds half a character") from None
