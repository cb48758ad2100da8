"""Expressions and templates: what they give, what they refuse, and that nothing else ever comes out."""

from __future__ import annotations

import json
import re
import time
import uuid

import pytest

from stackd.core.errors import ExpressionError
from stackd.workflows.expressions import (
    OMIT,
    Scope,
    evaluate,
    iter_expressions,
    parse_condition,
    parse_expression,
    parse_template,
)
from stackd.workflows.filters import instants

ROOTS = {
    "hook": {
        "body": {"sku": "A-1", "qty": 3, "price": 2.5, "none": None, "yes": True, "empty": ""},
        "headers": {"x-request-id": "r1", "na me": 1},
    },
    "items": [3, 1, 2, 1.0],
    "people": [{"name": "Bo", "age": 40}, {"name": "Al", "age": 30}],
    "price": {"body": {"amout": 1}},
    "zero": 0,
    "huge": 10**400,
    "wide": ["x"] * 60_000,
    "long": "x" * 900_000,
    "umlaut": "grün €",
    "half": "\ud800",
    "classes": r"(?i)\pL",
}


def make_scope(**roots):
    return Scope({**ROOTS, **roots}, now=1_700_000_000.1234, seed="run-1")


def value_of(text, **roots):
    return evaluate(parse_expression(text), make_scope(**roots))


def refusal(text, **roots):
    with pytest.raises(ExpressionError) as caught:
        value_of(text, **roots)
    return caught.value


def render(value, **roots):
    return parse_template(value).render(make_scope(**roots))


GIVES = [
    ("hook.body.sku", "A-1"),
    ('hook["body"]["qty"]', 3),
    ('hook.headers["na me"]', 1),
    ('hook.headers["x-request-id"]', "r1"),
    ("items[0]", 3),
    ("items[-1]", 1.0),
    ("items.0", 3),
    ("people[0].name", "Bo"),
    ("people[hook.body.qty - 3].name", "Bo"),
    ("people[-1]['age']", 30),
    ("[1, 2][1]", 2),
    ('{"a": {"b": 1}}.a.b', 1),
    ("('[1, 2]'|fromjson)[1]", 2),
    ("none", None),
    ("null", None),
    ("true", True),
    ("False", False),
    ("1.5", 1.5),
    ("0x10", 16),
    ("'a' 'b'", "ab"),
    (r"'\d\n\u00e9'", "\\d\né"),
    (r"'\ud83d\ude00'", "😀"),
    (r"'\é'", "\\é"),
    ("[]", []),
    ("{}", {}),
    ('[1, "a", none, [true]]', [1, "a", None, [True]]),
    ('{"a": 1, "b": [2]}', {"a": 1, "b": [2]}),
    ("{hook.body.sku: 1}", {"A-1": 1}),
    ("umlaut", "grün €"),
    ("1 + 2 * 3", 7),
    ("7 / 2", 3.5),
    ("7 // 2", 3),
    ("-7 % 3", 2),
    ("-hook.body.qty", -3),
    ("+1.5", 1.5),
    ("'a' + 'b'", "ab"),
    ("[1] + [2]", [1, 2]),
    ("1 ~ 'a' ~ true ~ 2.5", "1atrue2.5"),
    ("not zero", True),
    ("not []", True),
    ("not {}", True),
    ("not none", True),
    ("not 'a'", False),
    ("hook.body.empty or 'x'", "x"),
    ("hook.body.sku and 'x'", "x"),
    ("true or nowhere.at.all", True),
    ("false and nowhere.at.all", False),
    ("1 if hook.body.yes else 2", 1),
    ("nowhere if zero else 2", 2),
    ("1 == 1.0", True),
    ("true == 1", False),
    ("0 == false", False),
    ("'1' == 1", False),
    ("null == false", False),
    ("[1, {'a': true}] == [1.0, {'a': true}]", True),
    ("[1] == [true]", False),
    ("{'a': 1} == {'b': 1}", False),
    ("1 != 2", True),
    ("1 < 2 < 3", True),
    ("1 < 2 > 5", False),
    ("1 > 2 < nowhere", False),
    ("'a' < 'b'", True),
    ("huge > 1.5", True),
    ("2 in items", True),
    ("true in items", False),
    ("'A' in hook.body.sku", True),
    ("'sku' in hook.body", True),
    ("'no' not in hook.body", True),
    ("nowhere is defined", False),
    ("hook.body.sku is defined", True),
    ("hook.body.nope is not defined", True),
    ("hook.body.none is none", True),
    ("price.nope|default(5)", 5),
    ("nowhere.b.c[0]['d']|default('x')", "x"),
    ("hook[hook.body.sku].x|default(1)", 1),
    ("hook.body.none|default(1)", 1),
    ("hook.body.empty|default(1)", ""),
    ("hook.body.empty|default('x', true)", "x"),
    ("hook.body.empty|default(also_false=true, value='x')", "x"),
    ("hook.body.qty|default(nowhere)", 3),
    ("a|default(b|default(c|default(7)))", 7),
    ("[]|first|default(1)", 1),
    ("[]|max|default(1)", 1),
    ("nowhere|omit", OMIT),
    ("hook.body.sku|omit", "A-1"),
    ("[1, nowhere|omit]", [1]),
    ("{'a': nowhere|omit, 'b': 1}", {"b": 1}),
    ("1|string", "1"),
    ("true|string", "true"),
    ("none|string", "null"),
    ("' 42 '|int", 42),
    ("-3.9|int", -3),
    ("true|int", 1),
    ("'1.5e1'|float", 15.0),
    ("2|float", 2.0),
    ("'7'|number", 7),
    ("'7.5'|number", 7.5),
    ("'Yes'|bool", True),
    ("'off'|bool", False),
    ("none|bool", False),
    ("0.0|bool", False),
    ("{'a': [1, 'é', none]}|json", '{"a":[1,"é",null]}'),
    ("huge|json|length", 401),
    ("'{\"a\": 1}'|fromjson", {"a": 1}),
    ("'Ab'|lower ~ 'Ab'|upper", "abAB"),
    ("'  a '|trim", "a"),
    ("'a.b.c'|replace('.', '')", "abc"),
    ("'a,b'|split(',')", ["a", "b"]),
    ("' a  b '|split", ["a", "b"]),
    ("[1, 'a', true]|join('-')", "1-a-true"),
    ("[]|join", ""),
    ("items|first", 3),
    ("'abc'|last", "c"),
    ("people|length", 2),
    ("'é'|length", 1),
    ("{'a': 1, 'b': 2}|keys", ["a", "b"]),
    ("{'a': 1, 'b': 2}|values", [1, 2]),
    ("2.5|round", 3),
    ("-2.5|round", -3),
    ("2.675|round(2)", 2.68),
    ("2.1|round(method='ceil')", 3),
    ("2.19|round(1, 'floor')", 2.1),
    ("7|round(2)", 7),
    ("1e300|round(15)", 1e300),
    ("items|sum", 7.0),
    ("[]|sum", 0),
    ("items|min", 1),
    ("['b', 'a']|max", "b"),
    ("items|sort", [1, 1.0, 2, 3]),
    ("items|sort(reverse=true)|first", 3),
    ("(people|sort(attribute='age'))[0].name", "Al"),
    ("items|unique", [3, 1, 2]),
    ("[1, true, '1', 1.0, [1], [1.0], {'a': 1}, {'a': 1.0}]|unique|length", 5),
    ("[2, 1]|sort|map('string')|join", "12"),
    ("people|map(attribute='name')|map('lower')|join(',')", "bo,al"),
    ("people|map(attribute='x', default=none)", [None, None]),
    ("[[1, 2], [3]]|map(attribute=1, default=0)", [2, 0]),
    ("[[1, 2], [3]]|map(attribute=1, default=none|omit)", [2]),
    ("[{'a': [{'b': 1}]}]|map(attribute='a.0.b')", [1]),
    ("[none, 1]|map('omit')", [1]),
    ("[none, 1]|map('default', nowhere|omit)", [1]),
    ("[1, none]|map('default', uuid()) == [1, none]|map('default', uuid())", False),
    ("([none, none]|map('default', uuid())|unique)|length", 1),
    ("[[1, 2], [3]]|map('map', 'string')|map('join', '-')", ["1-2", "3"]),
    ("[[1, 2, 3], [4]]|map('select', 'gt', 2)", [[3], [4]]),
    ("[0, 1, '', 'a', none, []]|select", [1, "a"]),
    ("[0, 1, '', 'a', none, []]|reject|length", 4),
    ("people|selectattr('age', '>', 35)|map(attribute='name')", ["Bo"]),
    ("people|selectattr('x')", []),
    ("people|rejectattr('x', 'defined')|length", 2),
    ("people|selectattr('x', 'undefined')|length", 2),
    ("people|sum('age')", 70),
    ("people|min(attribute='age') == people[1]", True),
    ("people|max(attribute='age') == people[0]", True),
    ("[{'k': 1, 'v': 1}, {'k': 1.0, 'v': 2}]|unique('k')", [{"k": 1, "v": 1}]),
    ("people|join(', ', attribute='name')", "Bo, Al"),
    ("people|sort(attribute='name')|first == people[1]", True),
    ("{'b': 1, 'a': 2}|items", [["b", 1], ["a", 2]]),
    ("{'b': 1, 'a': 2}|pick('a', 'x', ['b'])", {"a": 2, "b": 1}),
    ("{'a b': 'ü/&', 'c': [1, true]}|urlencode", "a+b=%C3%BC%2F%26&c=1&c=true"),
    ("'ü /'|urlencode", "%C3%BC%20%2F"),
    ("'_w=='|unbase64|default(0) if false else '4pyT'|unbase64", "✓"),
    ("'4pyT'|unbase64|base64", "4pyT"),
    ("'a'|base64 ~ 'YQ'|unbase64", "YQ==a"),
    ("'one two three'|truncate(9)", "one..."),
    ("'one two three'|truncate(13)", "one two three"),
    ("'one two three'|truncate(10, leeway=3)", "one two three"),
    ("'one two three'|truncate(9, true, '…')", "one two …"),
    ("'one two three'|truncate(2)", ".."),
    ("now()|date", "2023-11-14T22:13:20.123Z"),
    ("'2024-07-01 10:00'|date(timezone='Europe/Berlin')", "2024-07-01T12:00:00.000+02:00"),
    ("'2024-07-01T10:00:00+05:30'|date('%H:%M %z %:z')", "10:00 +0530 +05:30"),
    ("'2024-07-01T10:00:00-0330'|date('%z|%s|%%')", "-0330|1719840600|%"),
    ("'0999-01-04'|date('%Y %y %j %G-W%V-%u %a %b %p %I')", "0999 99 004 0999-W01-5 Fri Jan AM 12"),
    ("0.0000015|date('%S.%f')", "00.000002"),
    ("-1|date", "1969-12-31T23:59:59.000Z"),
    ("'1850-01-01'|date(timezone='Europe/Berlin')", "1850-01-01T00:53:00.000+00:53"),
    ("'2024-01-01T00:00:00.123456789Z'|epoch", 1704067200.123456),
    ("'2024-01-01'|epoch", 1704067200),
    ("'2024-02-28T23:30:00+02:00'|add(hours=1.5)", "2024-02-29T01:00:00.000+02:00"),
    ("0|add(weeks=1, days=-1)", 518400),
    ("0.5|add(seconds=1)", 1.5),
    ("'2024-01-01'|add(seconds=0) < now()|add(days=365)", True),
    ("'abc-123'|match('^[a-z]+-[0-9]+$')", True),
    ("'abc'|match('B')", False),
    ("'abc'|match('(?i)B')", True),
    ("'grün €9'|match('€([0-9])', 1)", "9"),
    ("'grün'|match('^(?P<all>....)$', group='all')", "grün"),
    ("'a'|match('(b)?a', 1)|default('none')", "none"),
    ("'a'|match('b', 0)|default('none')", "none"),
    ("['a1', 'b']|select('match', '[0-9]')", ["a1"]),
    ("'a' is match '^a$'", True),
    ("[1, 1.0, 'a', true, none, [], {}]|map('default', 0)|select('number')", [1, 1.0, 0]),
    ("2 is even and 3 is odd and 6 is divisibleby 3", True),
    ("2 is in [1, 2] and 'a' is not in {'b': 1}", True),
    ("now()", "2023-11-14T22:13:20.123Z"),
    ("umlaut|upper", "GRÜN €"),
    (("a." * 500) + "a|default(1)", 1),
    ("(" * 30 + "1" + ")" * 30, 1),
]


@pytest.mark.parametrize(("text", "expected"), GIVES, ids=[text[:60] for text, _ in GIVES])
def test_expression_gives(text, expected):
    value = value_of(text)

    assert value == expected
    assert type(value) is type(expected)


REFUSES = [
    ("price.body.amount", 'price.body.amount: "price" has no "body.amount"; did you mean "amout"?'),
    ("hook.body.none.x", '"hook" has no "body.none.x" ("hook.body.none" is null)'),
    ("items[7]", 'items[7]: "items" has no "[7]" ("items" is a list of 4)'),
    ("items.length", '"items" has no "length" ("items" is a list of 4)'),
    ("hook.body.sku.upper", '("hook.body.sku" is text)'),
    ("hook.body[0]", 'hook.body[0]: "hook" has no "body[0]" (it is a map)'),
    ('hook.headers["x y"]', 'hook.headers["x y"]: "hook" has no "headers["x y"]"'),
    ("hok.body", 'hok.body: there is no "hok"; did you mean "hook"? (known: classes, half, hook,'),
    ("hook[true]", "a key is a text or a whole number"),
    ("hook[hook.body.none]", "a key is a text or a whole number, not null"),
    ("hook.nope|upper|default(1)", '"hook" has no "nope"'),
    ("hook.body.__class__", '"hook" has no "body.__class__"'),
    ("hook.__init__.__globals__['os']", '"hook" has no "__init__.__globals__.os"'),
    ("'a'['__class__']", 'the value has no "__class__" (it is text)'),
    ("''.__class__.__mro__[1].__subclasses__()", "methods cannot be called"),
    ("hook.items()", "methods cannot be called"),
    ("range(10)", 'unknown function "range"'),
    ("nwo()", 'unknown function "nwo"; did you mean "now"?'),
    ("upper(hook)", 'unknown function "upper"; as a filter it is written value|upper'),
    ("now(1)", "now() takes no arguments"),
    ("uuid()()", "methods cannot be called"),
    ("lambda: 1", "unexpected"),
    ("[x for x in items]", "expected token ','"),
    ("1; 2", "unexpected"),
    ("a = 1", "unexpected"),
    ("{% for x in y %}{% endfor %}", "unexpected '%'"),
    ("1 }} {{ 2", 'unexpected "}}"'),
    ("{# a #}", "unexpected character '#'"),
    ("import os", "unexpected"),
    ("(1, 2)", "a tuple (write a list) cannot be used"),
    ("items[1:2]", "a slice cannot be used"),
    ("2 ** 9", '"**" cannot be used'),
    ("1 if true", 'an "if" needs its "else"'),
    ("", "the expression is empty"),
    ("  ", "the expression is empty"),
    ("1 +", "unexpected 'the end of the expression'"),
    ("'abc", "a text is never closed"),
    (r"'\ud800'", "the text holds half a character"),
    (r"'\xz'", ""),
    ("1e999", "the number is too large"),
    ("1٣", "a number is written with the digits 0 to 9"),
    ("1.٣", "a number is written with the digits 0 to 9"),
    ("@", "unexpected character '@'"),
    ("a\0b", "unexpected character"),
    ("1 / 0", '"/": division by zero'),
    ("1 // 0.0", '"//": division by zero'),
    ("1 % zero", '"%": division by zero'),
    ("1 + true", '"+" needs two numbers, not number and true/false'),
    ("1 + 'a'", '"+" cannot add number and text; to join texts use ~'),
    ("none - 1", '"-" needs two numbers, not null and number'),
    ("'a' * 10**9", '"**" cannot be used'),
    ("'a' * 1000000000", '"*" needs two numbers, not text and number'),
    ("[0] * 1000000000", '"*" needs two numbers, not list and number'),
    ("'%s' % 1", '"%" needs two numbers, not text and number'),
    ("-'a'", '"-" needs a number, not text'),
    ("huge * huge", "too large a number"),
    ("huge + 1", "too large a number"),
    ("huge / 3", "a number is too large"),
    ("huge * 1.5", "a number is too large"),
    ("1e300 * 1e300", "too large a number"),
    ("1e308 // 1e-300", "too large a number"),
    ("huge|float", "the number is too large"),
    ("1 < 'a'", '"<" orders numbers or texts, not number and text'),
    ("[1] < [2]", "orders numbers or texts, not list"),
    ("true < false", "orders numbers or texts, not true/false"),
    ("1 in 1", '"in" cannot look for number in number'),
    ("1 in 'a'", '"in" cannot look for number in text'),
    ("none ~ 'a'", '"~" cannot hold null; name a value for it with default(…)'),
    ("items ~ 'a'", '"~" cannot hold a list; write it as text with json'),
    ("(nowhere|omit) ~ 'a'", '"~" cannot hold an omitted value'),
    ("{1: 2}", "the keys of a map are texts"),
    ("{items: 2}", "the keys of a map are texts, not list"),
    ("items|uper", 'unknown filter "uper"; did you mean "upper"?'),
    ("items|attr('x')", 'unknown filter "attr"'),
    ("items|mop('upper')", 'unknown filter "mop"; did you mean "map"?'),
    ("items is callable", 'unknown test "callable"'),
    ("'a'|upper(1)", "upper takes no arguments"),
    ("'a'|replace('b')", "replace needs new"),
    ("'a'|replace('', 'b')", "replace: old must not be empty"),
    ("'a'|replace('b', 1)", "replace: new must be text, not number"),
    ("'a'|replace('b', zero)", "replace: new must be text, not number"),
    ("'a'|split('')", "split: separator must not be empty"),
    ("'a'|split(',', 1)", "split takes at most 1 argument"),
    ("'a'|split(sep=',')", 'split has no argument "sep"'),
    ("'a'|split(',', separator=',')", "split: separator is given twice"),
    ("1|default(*items)", "default: arguments cannot be unpacked"),
    ("1|round(true)", "round: precision must be a whole number, not true/false"),
    ("1|round(99)", "round: precision must be between 0 and 15"),
    ("1|round(1, 'up')", "round: method must be one of common, ceil, floor"),
    ("5|upper", "upper takes text, not number"),
    ("items|upper", "upper takes text, not list"),
    ("hook|first", "first takes text or list, not map"),
    ("[]|first", "first: the list is empty"),
    ("'x'|int", "int: the text is not a whole number"),
    ("'1_0'|int", "int: the text is not a whole number"),
    ("'nan'|float", "float: the text is not a number"),
    ("'1e999'|float", "float: the result is too large a number"),
    ("'perhaps'|bool", "bool: the text is none of true/false"),
    ("'{'|fromjson", "fromjson: not valid JSON at line 1"),
    ('\'{"a": 1, "a": 2}\'|fromjson', "duplicate JSON key"),
    ("['a', 1]|sum", "sum adds numbers, not text"),
    ("['a', 1]|sort", "sort orders numbers or texts, not number and text"),
    ("people|sort(attribute='x')", 'sort: an element has no "x"'),
    ("people|map('uper')", 'unknown filter "uper"; did you mean "upper"?'),
    ("people|select('defind')", 'unknown test "defind"; did you mean "defined"?'),
    ("people|map(hook.body.sku)", "map: the name of the filter is written out as a text"),
    ("people|map(1)", "map: the name of the filter is written out as a text"),
    ("people|map", 'map: name an attribute or a filter: map(attribute="name") or map("upper")'),
    ("people|map(attribute=none)", "map: name an attribute or a filter"),
    ("people|map(attribute=people)", "map: attribute must be null or number or text, not list"),
    ("people|map(attribute='a..b')", 'attribute must be keys with "." between them'),
    ("people|map(attribute=-1)", "attribute must not be negative"),
    ("people|map(attribute='x')", 'map: an element has no "x"'),
    (
        "people|map('round', presicion=1)",
        'round has no argument "presicion"; did you mean "precision"?',
    ),
    ("people|map('replace', 'a')", "replace needs new"),
    ("people|map('upper', attribute='name')", 'upper has no argument "attribute"'),
    ("people|map('first')", "first takes text or list, not map"),
    ("[[]]|map('first')", "first: the list is empty"),
    ("people|selectattr", "selectattr needs attribute"),
    ("people|selectattr('x', 'gt', 1)", 'selectattr: an element has no "x"'),
    ("people|selectattr('age', 'gt')", "gt needs other"),
    ("people|selectattr('name', 'gt', 1)", "gt orders numbers or texts, not number and text"),
    ("people|sum(attribute='name')", "sum adds numbers, not text"),
    ("{}|pick", "pick needs keys"),
    ("{}|pick('a', 1)", "pick: keys must be text or list, not number"),
    ("{}|pick(['a', 1])", "pick: keys must be texts"),
    ("{}|pick(items)", "pick: keys must be texts"),
    ("-1|upper", "upper takes text, not number"),
    ("1|round(-1)", "round: precision must be between 0 and 15"),
    ("none|upper", "upper takes text, not null"),
    ("'a'|truncate(-1)", "truncate: length must not be negative"),
    ("{'a': none}|urlencode", "urlencode cannot hold null"),
    ("'YQ=a'|unbase64", "unbase64: the text is not base64"),
    ("'a'|unbase64", "unbase64: the text is not base64"),
    ("'_w'|unbase64", "what the text holds is not text in UTF-8"),
    ("'é'|unbase64", "unbase64: the text is not base64"),
    ("half|base64", "base64: the text holds half a character"),
    ("half|match('a')", "match: the text holds half a character"),
    ("'a'|match(half)", "match: pattern holds half a character"),
    ("'a'|match('(a')", "match: pattern cannot be read: missing )"),
    ("'a'|match('(?=a)')", "invalid perl operator (there is no look-around"),
    (r"'a'|match('(a)\\1')", "invalid escape sequence (there is no look-around"),
    ("'a'|match('a', 1)", "match: the pattern has no group 1"),
    ("'a'|match('a', 'b')", "match: the pattern has no group of that name"),
    ("'a'|match(hook.body.sku, 1)", "match: the pattern has no group 1"),
    ("'a'|match('b', 0)", "match: the pattern or the group is not in the text"),
    ("'a'|match('" + "a" * 251 + "')", "match: pattern is longer than 250 characters"),
    (
        "'a'|match('[a-zé]{1,999}')",
        "match: pattern is too large with its repetitions written out",
    ),
    ("0|date('%Q')", 'date: format has an unknown part "%Q"'),
    ("0|date('100%')", 'date: format has an unknown part "%"'),
    ("0|date(timezone='Europe/Berlim')", 'like "Europe/Berlin"; did you mean "Europe/Berlin"?'),
    ("0|date(timezone='../../etc/passwd')", "date: timezone must be a time zone"),
    ("0|date(timezone='Europe')", "date: timezone must be a time zone"),
    ("'2024-02-30'|date", "date: there is no such date, time or offset"),
    ("'2024-02-03T04:05:06+25:00'|date", "date: there is no such date, time or offset"),
    ("'20240203'|date", "date: the text is no instant; write it as 2030-12-31T23:59:59Z"),
    ("'2024-02-03T24:00Z'|date", "date: the text is no instant"),
    ("1700000000000|date", "not in the years 1 to 9999; a number means seconds"),
    ("'tomorrow'|epoch", "epoch: the text is no instant"),
    ("huge|date", "date: the instant is not in the years 1 to 9999"),
    ("1e300|date", "date: the instant is not in the years 1 to 9999"),
    ("'9999-12-31'|add(days=1)", "add: the instant is not in the years 1 to 9999"),
    ("'9999-12-31T23:00'|date(timezone='Asia/Tokyo')", "date: the instant is not in the years"),
    ("0|add(1)", "add: name the argument: add(days=1)"),
    ("0|add(day=1)", 'add has no argument "day"; did you mean "days"?'),
    ("0|add(days='1')", "add: days must be number, not text"),
    ("1.5 is even", "even takes a whole number, not number"),
    ("1 is divisibleby 0", "divisibleby: number must not be 0"),
    ("huge is divisibleby 7", "divisibleby: the result is too large a number"),
    ("nowhere is string", 'there is no "nowhere"'),
    ("items|join(1)", "join: separator must be text, not number"),
    ("[none]|join", "join cannot hold null"),
    ("'a' if", ""),
    ("a.b.", ""),
    ("a..b", ""),
    ("a|", ""),
    ("a|default(", ""),
    ("a[]", ""),
]


@pytest.mark.parametrize(("text", "message"), REFUSES, ids=[repr(text[:60]) for text, _ in REFUSES])
def test_expression_refuses(text, message):
    assert message in refusal(text).message


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000,
        "(" * 999 + "1" + ")" * 999,
        "[" * 1_000,
        "{'a':" * 300,
        "-" * 1_900 + "1",
        "not " * 400 + "1",
        "1" + "+1" * 100,
        "1" + "|string" * 100,
        "a" + "[a" * 500,
        "1 if 1 else " * 100 + "1",
        "a" * 2_001,
        "0x" + "f" * 1_900,
        "9" * 1_900,
        "long ~ long",
        "long ~ 'x' ~ long",
        "[long, long]|join",
        "wide|join('xxxxxxxxxxxxxxxxxxxxxxx')",
        "long + long",
        "[long, long]",
        "{'a': long, 'b': [long]}",
        "long|replace('x', 'xx')",
        "long|split('x')",
        "[wide, wide, wide, wide, wide, wide]",
        "wide|sort|sort|sort",
        "wide + wide + wide",
        "[long, long]|json",
        "1 in wide or 2 in wide",
        "wide|map('upper')|map('lower')",
        "wide|select('in', wide)",
        "[long, long, long]|map('upper')",
        "long|base64",
        "long|hex",
        "long|urlencode",
        "{'a': long, 'b': long}|urlencode",
        "long|match('(a?){300}b')",
        "wide|map('match', '(a?){300}b')",
        " or ".join(f"'a'|match('{n}' ~ classes)" for n in range(60)),
        "[0]|map(" + "'map', " * 40 + "'string')",
        "'" + "9" * 400 + "'|int",
    ],
    ids=lambda text: f"{text[:30]} ({len(text)})",
)
def test_hostile_expression_is_refused_quickly(text):
    started = time.process_time()

    error = refusal(text)

    assert error.code == "expression.limit" or error.line is not None
    assert time.process_time() - started < 1.0


def test_values_deeper_than_python_recurses_end_in_an_error():
    deep = []
    for _ in range(100_000):
        deep = [deep]

    for text in ("deep == deep", "deep|json", "[deep]|unique"):
        error = refusal(text, deep=deep)
        assert error.code == "expression.limit"

    assert refusal("'" + "[" * 1_900 + "'|fromjson").message.startswith("fromjson")


def test_a_chain_of_fifty_levels_of_equal_lists_stays_within_the_budget():
    shared = [1]
    for _ in range(50):
        shared = [shared, shared]
    twin = json.loads("[1]")
    for _ in range(50):
        twin = [twin, twin]

    assert "too much work" in refusal("a == b", a=shared, b=twin).message
    assert refusal("a", a=shared).code == "expression.limit"
    assert refusal("[a]|unique", a=shared).code == "expression.limit"


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("a|uper", 1, 3),
        ("1 +\n  a|uper", 2, 5),
        ("1 +\r\n  a|uper", 2, 5),
        ("a.b + @", 1, 7),
        ("a.b ** 2", 1, 1),
        ("a.b + c.d()", 1, 10),
        ("1 + 'abc", 1, 5),
        ("a b", 1, 3),
        ("1 + ", 1, 4),
        ("'x'|replace('a', 1)", 1, 18),
        ("'x'|replace('a', nw=1)", 1, 21),
        ("a|map('uper')", 1, 7),
        ("a|selectattr('b', 'divisibleby', 0)", 1, 34),
        ("a|match('(b')", 1, 9),
        ("a|match('b', 1)", 1, 3),
        ("a|date('%Y', timezone='X')", 1, 23),
        ("a|pick('b', ['c', 1])", 1, 13),
        ("a|add(1)", 1, 7),
    ],
)
def test_parse_error_names_line_and_column(text, line, column):
    with pytest.raises(ExpressionError) as caught:
        parse_expression(text)

    assert (caught.value.line, caught.value.column) == (line, column)


def test_expression_tells_its_roots_and_paths():
    expression = parse_expression(' a.b[0]["c d"] + b[c.x].y|default(now()) ~ null ')

    assert expression.text == 'a.b[0]["c d"] + b[c.x].y|default(now()) ~ null'
    assert expression.roots == {"a", "b", "c"}
    assert expression.paths == {
        ("a", "b", 0, "c d"): (1, 2), ("b",): (1, 18), ("c", "x"): (1, 20),
    }  # fmt: skip


def test_uuid_is_the_same_when_the_node_run_is_replayed_and_another_at_each_call():
    expression = parse_expression("[uuid(), uuid()]")

    first, replayed = evaluate(expression, make_scope()), evaluate(expression, make_scope())
    other = evaluate(expression, Scope({}, now=0.0, seed="run-2"))

    assert first == replayed
    assert len({*first, *other}) == 4
    assert all(uuid.UUID(text).version == 4 for text in first)


def test_uuid_goes_on_counting_within_one_scope():
    scope, expression = make_scope(), parse_expression("uuid()")

    assert evaluate(expression, scope) != evaluate(expression, scope)


def test_a_child_scope_sees_its_roots_over_those_of_its_parent_and_the_same_time():
    parent = make_scope(item="outer")

    child = parent.child({"item": {"n": 1}, "index": 0}, "[0]")
    inner = child.child({"index": 7}, "[7]")

    text = "[item, index, zero, now()]"
    assert evaluate(parse_expression(text), child) == [{"n": 1}, 0, 0, "2023-11-14T22:13:20.123Z"]
    assert evaluate(parse_expression("[item.n, index, zero]"), inner) == [1, 7, 0]
    assert evaluate(parse_expression("item"), parent) == "outer"
    with pytest.raises(ExpressionError, match=r'did you mean "index"\? \(known: classes, '):
        evaluate(parse_expression("indx"), inner)


def test_a_child_scope_has_its_own_uuids_and_its_own_budget():
    parent, expression = make_scope(), parse_expression("[uuid(), wide|unique]")

    ids = [evaluate(expression, parent.child({}, f"[{n}]"))[0] for n in (0, 1, 0)]
    of_another_run = evaluate(expression, Scope(ROOTS, now=0.0, seed="run-2").child({}, "[0]"))[0]

    assert ids[0] == ids[2] != ids[1]
    assert of_another_run not in ids
    assert parent.uuids == 0
    assert parent.budget.charged == 0


async def test_a_time_zone_and_a_pattern_may_be_used_first_on_the_loop():
    """Where the guard against blocking calls stands."""
    instants._zone.cache_clear()
    instants._zone_names.cache_clear()

    assert value_of("0|date('%H', 'Asia/Tokyo')") == "09"
    assert value_of("'a'|match('a')")


@pytest.mark.parametrize("text", ["0|date(timezone=long)", "'a'|match(long)", "0|date(long)"])
def test_a_very_long_argument_is_refused_and_not_shown(text):
    assert len(refusal(text).message) < 200


def test_a_missing_path_has_its_own_code():
    assert refusal("nowhere").code == "expression.missing"
    assert refusal("hook.x").code == "expression.missing"


def test_messages_never_hold_values():
    for text in (
        "secret|int",
        "secret|float",
        "secret + 1",
        "secret.x",
        "secret|bool",
        "secret|round",
        "secret|date",
        "secret|unbase64",
        "0|date(timezone=secret)",
        "0|date('%' ~ secret)",
        "'a'|match('(' ~ secret)",
        "'a'|match('a', secret)",
    ):
        assert "hunter2" not in refusal(text, secret="hunter2").message


# --- templates ----------------------------------------------------------------------------------------

RENDERS = [
    ("{{ hook.body.qty }}", 3),
    ("  {{ hook.body.qty }}\n", 3),
    ("{{hook.body}}", ROOTS["hook"]["body"]),
    ("x{{ hook.body.qty }}y", "x3y"),
    ("{{ zero }}{{ zero }}", "00"),
    ("{{ zero }} {{ zero }}", "0 0"),
    ("{{ hook.body.yes }}!", "true!"),
    ("}} {% raw %} {# c #} { {", "}} {% raw %} {# c #} { {"),
    ("{{ '}}' }}", "}}"),
    ('{{ "{{" }}', "{{"),
    ("{{ 'it\\'s }}' }}", "it's }}"),
    ('{{ {"a": {"b": 1}} }}', {"a": {"b": 1}}),
    ('{{ {"a": {"b": 1}}}}', {"a": {"b": 1}}),
    ('{{{"a": 1}}}', {"a": 1}),
    ('{{ {"a": "}"} }}', {"a": "}"}),
    ("a }} {{ zero }} }}", "a }} 0 }}"),
    ("{{\n  zero\n}}", 0),
    ("é{{ umlaut }}é", "égrün €é"),
    ({"a": "{{ zero }}", "b": [1, "{{ zero }}"]}, {"a": 0, "b": [1, 0]}),
    ({"a": "{{ x|omit }}", "b": 1}, {"b": 1}),
    (["{{ x|omit }}", 1], [1]),
    ({"a": {"b": "{{ x|omit }}"}}, {"a": {}}),
    ("{{ x|omit }}", OMIT),
    (None, None),
    (5, 5),
]


@pytest.mark.parametrize(("value", "expected"), RENDERS, ids=[repr(v)[:60] for v, _ in RENDERS])
def test_template_renders(value, expected):
    rendered = render(value)

    assert rendered == expected
    assert type(rendered) is type(expected)


def test_rendered_map_keeps_the_order_of_its_keys():
    rendered = render({"c": "{{ zero }}", "a": 1, "b": "{{ zero }}"})

    assert list(rendered) == ["c", "a", "b"]


TEMPLATE_REFUSES = [
    ("a {{ hook", '"{{" is never closed', 1, 3),
    ("a\n {{ 'it }}", '"{{" is never closed (the quote at line 2, column 5 stays open)', 2, 2),
    ("{{ {'a': 1 }}", '"{{" is never closed', 1, 1),
    ("{{- x }}", '"{{-" is not supported; for a sign write "{{ -"', 1, 3),
    ("a {{ x|uper }}", 'unknown filter "uper"', 1, 8),
    ("a\nb {{ 1 +\n x|uper }}", 'unknown filter "uper"', 3, 4),
    ("{{ }}", "the expression is empty", 1, 3),
    ("{{", '"{{" is never closed', 1, 1),
    ({"{{ a }}": 1}, "a key cannot hold an expression", None, None),
]


@pytest.mark.parametrize(
    ("value", "message", "line", "column"),
    TEMPLATE_REFUSES,
    ids=[repr(r[0]) for r in TEMPLATE_REFUSES],
)
def test_template_refuses(value, message, line, column):
    with pytest.raises(ExpressionError) as caught:
        parse_template(value)

    assert message in caught.value.message
    assert (caught.value.line, caught.value.column) == (line, column)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x{{ hook.body.none }}", 'the text around "{{ hook.body.none }}" cannot hold null'),
        (
            "x{{ items }}",
            'the text around "{{ items }}" cannot hold a list; write it as text with json',
        ),
        ("x{{ a|omit }}", "cannot hold an omitted value"),
        ("{{ long }}{{ long }}", "the result is over 1,048,576 bytes"),
        (["{{ long }}"] * 20, "the results together are over 16,777,216 bytes"),
        (["{{ wide|unique }}"] * 2, "too much work"),
    ],
)
def test_template_refuses_at_render(value, message):
    with pytest.raises(ExpressionError, match=re.escape(message)):
        render(value)


def test_template_names_the_place_of_an_error():
    with pytest.raises(ExpressionError, match=r'^price\.params\.a\[1\]\["b c"\]: unknown filter'):
        parse_template({"a": [1, {"b c": "{{ x|uper }}"}]}, where="price.params")
    template = parse_template(["{{ nope }}", "{{ x }}"], where="params")

    with pytest.raises(ExpressionError, match=r'^params\[1\]: x: there is no "x"'):
        template.render(make_scope(nope=1))


def test_template_without_expressions_is_handed_out_as_it_is():
    value = {"a": [1, {"b": "c }}"}]}

    template = parse_template(value)

    assert template.is_static
    assert template.render(make_scope()) is value


def test_template_tells_its_roots():
    template = parse_template({"a": ["{{ hook.body }}", {"b": "x{{ items[0] }}"}], "c": 1})

    assert not template.is_static
    assert template.roots == {"hook", "items"}
    assert template.paths == {("hook", "body"), ("items", 0)}


def test_iter_expressions_gives_all_of_them_with_their_places_and_what_is_wrong():
    value = {
        "a": "{{ x|uper }} {{ x }}\n {{ 2|lowr }} {{",
        "b": ["ok {{ y }}", "plain"],
        "{{ c }}": {"d": "{{ 1 ** 2 }}"},
    }

    found = [
        (place, (one.line, one.column) if isinstance(one, ExpressionError) else dict(one.paths))
        for place, one in iter_expressions(value)
    ]

    assert found == [
        (("{{ c }}",), (None, None)),
        (("a",), (1, 6)),
        (("a",), {("x",): (1, 17)}),
        (("a",), (2, 7)),
        (("a",), (2, 15)),
        (("b", 0), {("y",): (1, 7)}),
        (("{{ c }}", "d"), (1, 4)),
    ]


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("a.b > 1", {("a", "b"): (1, 1)}),
        ("{{ a.b > 1 }}", {("a", "b"): (1, 4)}),
        ("\n  {{\n  a.b }}\n", {("a", "b"): (3, 3)}),
        ("{{ {'x': {'y': a}} }}", {("a",): (1, 16)}),
        ("a == '{{ b }}'", {("a",): (1, 1)}),
    ],
)
def test_a_condition_is_an_expression_in_braces_or_not(text, paths):
    assert parse_condition(text).paths == paths


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("{{ a }} == {{ b }}", "a condition is one expression", (1, 1)),
        ("not\n {{ a }}", "a condition is one expression", (2, 2)),
        ("{{ a }} or", "a condition is one expression", (1, 1)),
        ("a == 'x", "a text is never closed", (1, 6)),
        ("\n{{ a | lowr }}", "unknown filter", (2, 8)),
        ("{{ a", "is never closed", (1, 1)),
        ("{{ }}", "the expression is empty", (1, 3)),
        ("", "the expression is empty", (1, 1)),
    ],
)
def test_a_condition_that_is_none_is_refused_with_its_place(text, message, place):
    with pytest.raises(ExpressionError, match=message) as caught:
        parse_condition(text)

    assert (caught.value.line, caught.value.column) == place


def test_template_nested_without_end_is_refused():
    value = "{{ x }}"
    for _ in range(10_000):
        value = [value]

    with pytest.raises(ExpressionError, match="nested deeper than 100 levels"):
        parse_template(value)


URLS = [
    ("{{ base }}/p/{{ sku }}", "http://h:1/a?b/p/a%2Fb%20%26%3F"),
    ("{{ base }}", "http://h:1/a?b"),
    (" {{ base }} ", "http://h:1/a?b"),
    ("http://h/{{ sku }}?q={{ text }}", "http://h/a%2Fb%20%26%3F?q=gr%C3%BCn"),
    ("http://h/{{ n }}/{{ yes }}", "http://h/5/true"),
    ("http://h/x?p={{ dots }}", "http://h/x?p=.."),
    ("http://h/../{{ n }}", "http://h/../5"),
    ("http://h/v{{ dots }}", "http://h/v.."),
    ("http://h/static", "http://h/static"),
]
URL_ROOTS = {
    "base": "http://h:1/a?b",
    "sku": "a/b &?",
    "text": "grün",
    "n": 5,
    "yes": True,
    "dots": "..",
    "half": "\ud800",
}


@pytest.mark.parametrize(("text", "expected"), URLS, ids=[text for text, _ in URLS])
def test_url_encodes_all_but_a_leading_base(text, expected):
    assert parse_template(text).render_url(make_scope(**URL_ROOTS)) == expected


@pytest.mark.parametrize(
    "value",
    [
        "http://h/{{ dots }}/x",
        "http://h/{{ dots }}?x",
        "http://h/{{ half }}",
        "http://h/{{ hook }}",
        "http://h/{{ hook.body.none }}",
        "{{ hook }}",
        {"a": "{{ n }}"},
        5,
    ],
)
def test_url_refuses(value):
    with pytest.raises(ExpressionError):
        parse_template(value).render_url(make_scope(**URL_ROOTS))
