"""Whatever an expression says and whatever the values are, it ends in JSON or an ExpressionError, soon and small.

`.venv/bin/pytest tests/soak -k expression -s` tries as many as SOAK_EXAMPLES says.
"""

from __future__ import annotations

import contextlib
import gc
import time
import tracemalloc

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackd.core.errors import ExpressionError
from stackd.workflows.expressions import (
    OMIT,
    Scope,
    evaluate,
    iter_expressions,
    parse_expression,
    parse_template,
)
from stackd.workflows.filters.filter import REQUIRED
from stackd.workflows.filters.table import FILTERS, TESTS
from stackd.workflows.filters.values import MAX_RENDERED_BYTES, MAX_RESULT_BYTES
from stackd.workflows.scope import FUNCTIONS, NODE_FUNCTIONS

LONGEST = 1.0  # seconds of CPU for one text and its values; 100,000 steps are some 10 ms
LARGEST = 4 * MAX_RENDERED_BYTES  # of Python's memory at once, beside the values given


def _nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def _doubled(levels: int) -> list:
    value: list = [1, "a"]
    for _ in range(levels):
        value = [value, value]
    return value


HOSTILE = {
    "long": "x" * 900_000,
    "longer": "ü€ " * 900_000,
    "wide": ["x"] * 30_000,
    "texts": ["x" * 100_000] * 300,
    "rows": [{"a": n % 7, "b": {"c": str(n)}} for n in range(9_000)],
    "many": {f"k{n}": n for n in range(30_000)},
    "huge": 10**400,
    "digits": [10**4_000 + n for n in range(2_000)],
    "colliding": [n * (2**61 - 1) for n in range(20_000)],
    "deep": _nested(3_000),
    "doubled": _doubled(60),
    "half": "\ud800",
    "odd": {"half": ["\udfff"], "small": 5e-324, "": {"": [None]}, "a.b": -0.0},
    "dates": ["2024-02-29T23:59:60Z", "9999-12-31T23:59:59.999+14:00", "0001-01-01", "2024-02-30"],
    "items": [3, 1, 2.5, None, True, "a", [], {}],
    "pattern": "(a?){300}b",
}


def make_scope(roots: dict | None = None) -> Scope:
    return Scope(
        {**HOSTILE, **(roots or {})},
        now=1_700_000_000.1234,
        seed="run-1",
        link="http://x/{}".format,
    )


NUMBERS = ["0", "1", "-1", "15", "2.5", "-0.0", "1e308", "5e-324", "9" * 18, "9" * 300, "huge"]
TEXTS = [
    *(
        "''",
        "'a'",
        "'a.b.0'",
        "'x'",
        "long",
        "longer",
        "half",
        "pattern",
        "now()",
        "uuid()",
        "resumeUrl('a')",
    ),
    *("'%Y-%m-%d %H:%M:%S.%f %j %V %z'", "'%'", "'Europe/Berlin'", "'Nowhere/Land'", "','"),
    *("'2024-02-29T00:00:00Z'", "'9999-12-31T23:59:59+14:00'", "'0001-01-01'", "'YWJj'", "'_-8='"),
    *("'(x+x+)+y'", "'(a?){300}b'", "'['", "'(?i).{0,900}z'", "'^(?P<n>x)'", "'n'", "'ceil'"),
    *("'{\"a\": [1, 2.5, null]}'", "'[[[['", "'1e9'", "' 12 '", "'yes'", r"'\ud83d\ude00'"),
]
LISTS = [
    *("[]", "wide", "texts", "rows", "digits", "colliding", "deep", "doubled", "dates", "items"),
    *("[1, 2, 3]", "['b', 'a']", "[none]", "[[1], [2]]", "['a', ['b']]", "wide + wide"),
]
MAPS = ["{}", "many", "odd", "{'a': 1}", "rows[0]", "{'a': long}", "{'a': {'b': [1]}}"]
OTHERS = ["none", "true", "false", "nowhere", "nowhere.a[0]", "(nowhere|omit)", "odd.half[0]"]
ATOMS = [*NUMBERS, *TEXTS, *LISTS, *MAPS, *OTHERS]
BY_TYPE = {int: NUMBERS, float: NUMBERS, str: TEXTS, list: LISTS, dict: MAPS}
BY_NAME = {  # what gets past the first check; by type alone little does
    "default": ["(nowhere|omit)", "0", "none", "long"],
    "value": ["(nowhere|omit)", "'a'", "none", "long"],
    "attribute": ["'a'", "'b.c'", "'b'", "0", "'0.a'", "'x'"],
    "pattern": [
        "'(x+x+)+y'",
        "'(a?){300}b'",
        "'(?i).{0,400}z'",
        "'^(?P<n>x)'",
        "pattern",
        "'[0-9]'",
    ],
    "group": ["0", "1", "'n'", "none"],
    "format": ["'%Y-%m-%dT%H:%M:%S.%f%:z %j %G-W%V-%u %s %A %B %I %p %%'", "'%Y'", "none"],
    "timezone": ["'Europe/Berlin'", "'America/St_Johns'", "'Pacific/Kiritimati'", "none"],
}
OPERATORS = [
    *("+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in"),
    *("and", "or"),
]
TABLES = {"filter": FILTERS, "test": TESTS}


def _often(one: st.SearchStrategy[str], other: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.integers(0, 7).flatmap(lambda n: other if n == 7 else one)


def _fit_for(accepts: frozenset[type], inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Texts of values mostly of the right type: else most calls end at the first check."""
    fit = sorted({text for kind, texts in BY_TYPE.items() if kind in accepts for text in texts})
    return _often(st.sampled_from(fit or OTHERS), inner)


@st.composite
def _call(draw: st.DrawFn, word: str, inner: st.SearchStrategy[str], name: str = "") -> str:
    """A filter or test with arguments, as in `name(1, key=2)`; with a few arguments too many or too few."""
    name = name or draw(st.sampled_from(sorted(TABLES[word])))
    return f"{name}({', '.join(draw(_arguments(word, name, inner)))})"


@st.composite
def _arguments(draw: st.DrawFn, word: str, name: str, inner: st.SearchStrategy[str]) -> list[str]:
    entry = TABLES[word][name]
    written = []
    by_name = entry.named or draw(st.booleans())
    names_inner = bool(entry.inner) and draw(st.integers(0, 3)) > 0
    parameters = entry.parameters[: entry.leading] if names_inner else entry.parameters
    for parameter in parameters:
        if draw(st.integers(0, 19)) == 0:
            break
        if parameter.default is not REQUIRED and draw(st.booleans()):
            if by_name:
                continue
            break
        meant = BY_NAME.get(parameter.name)
        fit = _fit_for(parameter.accepts, inner)
        value = draw(_often(st.sampled_from(meant), fit) if meant else fit)
        keyword = by_name and not names_inner
        written.append(f"{parameter.name}={value}" if keyword else value)
    if names_inner:
        applied = draw(st.sampled_from(sorted(TABLES[entry.inner])))
        written.append(f"'{applied}'")
        written += draw(_arguments(entry.inner, applied, inner))
    if entry.many and not by_name:
        written += draw(st.lists(_fit_for(entry.parameters[-1].accepts, inner), max_size=2))
    return written


@st.composite
def _piped(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    """A value and up to five filters, each of which takes what there is then: so they get far into them."""
    start = st.sampled_from([TEXTS, LISTS, LISTS, MAPS, NUMBERS]).flatmap(st.sampled_from)
    text = draw(_often(start, inner))
    for _ in range(draw(st.integers(1, 5))):
        try:
            kind = type(evaluate(parse_expression(text), make_scope()))
        except ExpressionError:
            break
        names = [name for name, entry in FILTERS.items() if kind in entry.accepts]
        text += f"|{draw(_call('filter', inner, draw(st.sampled_from(sorted(names)))))}"
    return f"({text})"


@st.composite
def _tested(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    name = draw(st.sampled_from([name for name in sorted(TESTS) if name.isalpha()]))
    negated = draw(st.sampled_from(["is", "is not"]))
    value = draw(_fit_for(TESTS[name].accepts, inner))
    return f"({value} {negated} {draw(_call('test', inner, name))})"


def _combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    others = st.one_of(
        _tested(inner),
        st.builds("({} {} {})".format, inner, st.sampled_from(OPERATORS), inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{}[{}]".format, inner, inner),
        st.builds("{{'k': {}}}".format, inner),
        st.builds("(-{})".format, inner),
    )
    return _often(_piped(inner), others)


WELL_FORMED = _combined(st.recursive(st.sampled_from(ATOMS), _combined, max_leaves=4))
SCRAPS = [
    *"abx019.,:|~+-*/%()[]{}<>=!'\"\\ \n\r\t\0;@#$€é٣",
    *("{{", "}}", "{%", "%}", "//", "**", "==", "!=", "<=", ">=", "1e9", "0x", "_", "\\u"),
    *("\ud800", "__class__", "now()", "uuid()", "is defined", "long", "wide", "items", "odd"),
    *(" and ", " or ", " not ", " in ", " is ", " if ", " else ", " for ", "none", "true"),
    *(f"|{name}" for name in FILTERS),
    *(f" is {name} " for name in TESTS),
    *("('a')", "(1)", "(1, 'a')", "('upper')", "(attribute='a')", "[0]", "[-1]", "['a']"),
]
ANY_TEXT = st.one_of(st.lists(st.sampled_from(SCRAPS), max_size=30).map("".join), st.text())
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abcé"), inner, max_size=4)
    ),
    max_leaves=8,
)
ANY_ROOTS = st.dictionaries(st.sampled_from("abx"), ANY_JSON, max_size=3)


def is_json(value: object) -> bool:
    """Whether `value` is of JSON's types alone."""
    open_values = [value]
    while open_values:
        one = open_values.pop()
        if type(one) is dict:
            open_values += [*one, *one.values()]
        elif type(one) is list:
            open_values += one
        elif one is not None and type(one) not in (bool, int, float, str):
            return False
    return True


slowest = (0.0, "")  # seconds, and the text
largest = (0, "")  # bytes, and the text


@contextlib.contextmanager
def survived(text: str):
    """The block ends in a value or an ExpressionError, within a time that the budget explains."""
    global slowest
    gc.disable()  # its time is for the garbage of others, too
    started = time.process_time()
    try:
        with contextlib.suppress(ExpressionError):
            yield
    finally:
        took = time.process_time() - started
        gc.enable()
    slowest = max(slowest, (took, text))
    assert took < LONGEST, text


def expression_survives(text: str, roots: dict) -> None:
    scope = make_scope(roots)
    with survived(text):
        value = evaluate(parse_expression(text), scope)
        assert value is OMIT or scope.budget.measure(value) <= MAX_RESULT_BYTES
        if type(value) in (list, dict) and scope.budget.charged < 10_000:
            assert is_json(value)


def template_survives(text: str, expression: str, roots: dict) -> None:
    with survived(text):
        parse_template({"a": [text, f"x{{{{ {expression} }}}}"]}).render(make_scope(roots))
    with survived(text):
        parse_template(text).render_url(make_scope(roots))
    with survived(text):
        list(iter_expressions([text]))


def expression_stays_small(text: str) -> None:
    global largest
    scope = make_scope()
    tracemalloc.start()
    try:
        with survived(text):
            evaluate(parse_expression(text), scope)
        peak = tracemalloc.get_traced_memory()[1]
        largest = max(largest, (peak, text))
        assert peak < LARGEST, text
    finally:
        tracemalloc.stop()


# What is tried: a property and what it is given. The soak tries the same for longer.
PROPERTIES = {
    "well-formed": (expression_survives, (WELL_FORMED, ANY_ROOTS)),
    "any text": (expression_survives, (ANY_TEXT, ANY_ROOTS)),
    "template": (template_survives, (ANY_TEXT, WELL_FORMED, ANY_ROOTS)),
    "memory": (expression_stays_small, (WELL_FORMED,)),
}


def tried(name: str, examples: int) -> None:
    survives, given_what = PROPERTIES[name]
    settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )(given(*given_what)(survives))()


def test_any_well_formed_expression_ends_in_json_or_an_expression_error():
    tried("well-formed", 150)


def test_any_text_ends_in_json_or_an_expression_error():
    tried("any text", 150)


def test_any_template_ends_in_a_value_or_an_expression_error():
    tried("template", 60)


def test_no_expression_takes_more_memory_than_a_few_results():
    tried("memory", 40)


def test_the_generator_knows_every_function():
    """Who adds one adds it to what is tried."""
    assert {f"{name}()" for name in FUNCTIONS} <= set(TEXTS)
    assert {f"{name}('a')" for name in NODE_FUNCTIONS} <= set(TEXTS)
