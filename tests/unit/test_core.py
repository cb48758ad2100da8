"""What every layer stands on: ids, JSON, instants, which process is which, and the event bus."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from stackd.core.clock import rfc3339
from stackd.core.errors import InputError
from stackd.core.events import Event, EventBus
from stackd.core.ids import ALPHABET, sortable_id
from stackd.core.json import (
    MAX_DEPTH,
    SHALLOW,
    _depth,
    _is_shallow,
    dumps,
    loads,
    loads_strict,
)
from stackd.core.process import boot_id, current_process, is_gone, pid_namespace, start_ticks

# -- ids

INSTANTS = st.floats(0, 2**47 / 1000)


@given(INSTANTS, INSTANTS)
def test_ids_sort_by_the_millisecond_they_were_made_in(one: float, other: float) -> None:
    milliseconds = int(one * 1000), int(other * 1000)
    ids = sortable_id(one), sortable_id(other)

    if milliseconds[0] != milliseconds[1]:
        assert (ids[0] < ids[1]) == (milliseconds[0] < milliseconds[1])


def test_ids_of_one_instant_differ() -> None:
    assert len({sortable_id(1_700_000_000.0) for _ in range(10_000)}) == 10_000


def test_an_id_is_26_characters_that_cannot_be_misread() -> None:
    made = sortable_id(1_700_000_000.123)

    assert len(made) == 26
    assert set(made) <= set(ALPHABET)
    assert not set(ALPHABET) & set("ilou")


# -- JSON

EXACT_INTEGERS = [
    0,
    -1,
    2**53 + 1,
    10**18,
    10**19 - 1,
    2**63,
    2**64 - 1,
    2**64,
    -(2**63) - 1,
    10**400,
]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_what_is_written_reads_back_the_same(value: object) -> None:
    written = dumps(value)

    assert loads(written) == value
    assert loads_strict(written) == value


@pytest.mark.parametrize("number", EXACT_INTEGERS)
def test_integers_stay_exact_whatever_their_size(number: int) -> None:
    text = f'{{"n":[{number}]}}'.encode()

    assert loads_strict(text) == {"n": [number]}
    assert dumps({"n": [number]}) == text
    assert loads(text)["n"][0] == number
    assert type(loads(text)["n"][0]) is int


def test_a_long_integer_beside_a_fraction_spoils_neither() -> None:
    text = b'[18446744073709551617,0.1,"12345678901234567890"]'

    assert loads(text) == [2**64 + 1, 0.1, "12345678901234567890"]
    assert dumps(loads(text)) == text


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (b"", "json.malformed", "line 1, column 1"),
        (b'{"a": 1,\n  "b": }', "json.malformed", "line 2, column 8"),
        (b"[1,]", "json.malformed", "line 1, column"),
        (b"{'a': 1}", "json.malformed", "line 1, column 2"),
        (b"1 2", "json.malformed", "column 3"),
        (b"\xef\xbb\xbf1", "json.malformed", "column 1"),
        (b'"\x01"', "json.malformed", "control character"),
        (b'"\xff"', "json.encoding", "at byte 1"),
        (b'"\xed\xa0\x80"', "json.encoding", "at byte 1"),
        (b"NaN", "json.constant", "NaN"),
        (b'{"a": [Infinity]}', "json.constant", "Infinity"),
        (b"[-Infinity]", "json.constant", "-Infinity"),
        (b"[" * 100_000, "json.depth", "deeper than 500"),
        (b'{"a":' * 100_000, "json.depth", "deeper than 500"),
        (b"[" * 100_000 + b"]" * 100_000, "json.depth", "deeper than 500"),
        (b"[" * 501 + b"]" * 501, "json.depth", "deeper than 500"),
        (b'{"a":' * 501 + b"1" + b"}" * 501, "json.depth", "deeper than 500"),
        (b"1" * 5000, "json.number", "number"),
        (b'{"a": 1, "a": 2}', "json.duplicate_key", "'a'"),
        (b'{"a": 1, "b": 2, "\\u0061": 1}', "json.duplicate_key", "'a'"),
        (b'[{"x": {"": 0, "": 0}}]', "json.duplicate_key", "''"),
    ],
)  # fmt: skip
def test_unusable_json_is_refused_and_the_message_says_where(
    text: bytes, code: str, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        loads_strict(text)

    assert caught.value.code == code
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b'{"a": 1,\n "a": 2}', "(line 2, column 2)"),
        ('{"é": {"a": 1}, "b": [{"a": 1, "\\u0061": 2}]}'.encode(), "(line 1, column 32)"),
        (b'["[{:,", "\\"", NaN]', "(line 1, column 16)"),
        (b'{"NaN": -Infinity}', "(line 1, column 9)"),
        (b'["1e999",\n1e400]', "(line 2, column 1)"),
        (b'[1e5, -1.5E+999]', "(line 1, column 7)"),
        (b'{"a": -' + b"9" * 5000 + b"}", "(line 1, column 7)"),
        (b'["\\ud83d\\ude00", {"\\ude00": 1}]', "(line 1, column 19)"),
        (b"[" * 501 + b"]" * 501, "(line 1, column 501)"),
        (b'{"a":[\n' * 251, "(line 251, column 1)"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_told_with_its_place(text: bytes, place: str) -> None:
    with pytest.raises(InputError) as caught:
        loads_strict(text)

    assert caught.value.message.endswith(place)


def test_the_same_key_in_different_objects_is_no_duplicate() -> None:
    assert loads_strict(b'[{"a": {"a": 1}}, {"a": 2}]') == [{"a": {"a": 1}}, {"a": 2}]


@pytest.mark.parametrize(
    "text", [b'{"a":1,"b":{"a":[1.5,-0.0,""]}}', b'{"a": 1, "b": {"a": [1.5, -0.0, ""]}}']
)
def test_compact_json_and_any_other_read_the_same(text):
    value = loads_strict(text)

    assert repr(value) == "{'a': 1, 'b': {'a': [1.5, -0.0, '']}}"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b'{"a":1,"a":2}', "json.duplicate_key"),
        (b'{"a":1,"\\u0061":1}', "json.duplicate_key"),
        (b'{"a":[{"b":1,"b":1}]}', "json.duplicate_key"),
        (b'{"a": 1,"a":1}', "json.duplicate_key"),
        (b'{"a":1,"a" :1}', "json.duplicate_key"),
        (b'{"x, y": 1, "x, y": 1}', "json.duplicate_key"),
        (b'{"a, ": ", ", "a, ":", "}', "json.duplicate_key"),
        (b"[1e999]", "json.number"),
        (b"[NaN]", "json.constant"),
        (b'["\\ud800"]', "json.text"),
    ],
)
def test_compact_json_that_breaks_a_rule_is_refused_by_it(text, code):
    with pytest.raises(InputError) as refused:
        loads_strict(text)

    assert refused.value.code == code


def test_a_compact_integer_beyond_64_bits_stays_exact():
    assert loads_strict(b'{"n":123456789012345678901234567890}') == {
        "n": 123456789012345678901234567890
    }


def test_spaces_in_keys_and_texts_stay_as_they_were() -> None:
    text = b'{"a, b": "c, d", "a,b": "\\": ", "n": [1, 2.5, 3]}'

    assert loads_strict(text) == {"a, b": "c, d", "a,b": '": ', "n": [1, 2.5, 3]}


@pytest.mark.parametrize("inner", [b"", b"12345678901234567890123"], ids=["empty", "long integer"])
def test_json_as_deep_as_it_may_be_is_read_and_written_wherever_the_reader_stands(
    inner: bytes,
) -> None:
    text = b"[" * MAX_DEPTH + inner + b"]" * MAX_DEPTH

    def deep_in_the_stack(calls: int) -> Any:
        return deep_in_the_stack(calls - 1) if calls else loads(text)

    assert dumps(loads_strict(text)) == text
    assert dumps(deep_in_the_stack(300)) == text


def test_json_deeper_than_that_is_not_written() -> None:
    value: Any = 2**70
    for _ in range(MAX_DEPTH + 1):
        value = [value]

    with pytest.raises(TypeError, match="nested deeper than 500"):
        dumps(value)


BRACKETS = st.recursive(
    st.text(alphabet='[]{}"\\a:,', max_size=6) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(alphabet='[]{}"\\', max_size=4), inner, max_size=3)
    ),
    max_leaves=30,
)


@given(BRACKETS, st.integers(0, 2 * SHALLOW))
def test_what_is_found_to_be_shallow_is(value, more):
    text = b"[" * more + json.dumps(value).encode() + b"]" * more

    if _is_shallow(text):
        assert _depth(text) <= SHALLOW
    else:
        assert _depth(text) > SHALLOW // 2


def test_many_brackets_beside_each_other_are_not_deep() -> None:
    assert loads_strict(b"[" + b"[]," * 1000 + b"[]]") == [[]] * 1001


@pytest.mark.parametrize(
    "value",
    [{1, 2}, object(), b"bytes", 1j, [set()]],
    ids=["set", "object", "bytes", "complex", "nested"],
)
def test_what_is_not_json_is_not_written(value: object) -> None:
    with pytest.raises(TypeError):
        dumps(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_not_written(value: float) -> None:
    with pytest.raises(TypeError):
        dumps([value])


@pytest.mark.parametrize("text", [b"1e999", b"[-1e400]"])
def test_a_number_too_large_to_hold_is_refused(text: bytes) -> None:
    with pytest.raises(InputError) as caught:
        loads_strict(text)

    assert caught.value.code == "json.number"


@pytest.mark.parametrize("text", [b'"\\ud800"', b'{"a":"x\\udfffy"}', b'{"\\udc00":1}'])
def test_half_a_surrogate_pair_is_refused_or_kept_but_never_mangled(text: bytes) -> None:
    try:
        written = dumps(loads_strict(text))
    except (InputError, TypeError):
        return

    assert loads(written) == json.loads(text)


def test_a_surrogate_pair_is_one_character() -> None:
    value = loads_strict(b'"\\ud83d\\ude00"')

    assert value == "\N{GRINNING FACE}"
    assert loads(dumps(value)) == value


# -- instants


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (None, None),
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000.0, "2023-11-14T22:13:20.000Z"),
        (1_700_000_000.5, "2023-11-14T22:13:20.500Z"),
        (1_700_000_000.9996, "2023-11-14T22:13:20.999Z"),  # cut, never rounded into the future
        (-1.0, "1969-12-31T23:59:59.000Z"),
        (951_782_400.001, "2000-02-29T00:00:00.001Z"),
    ],
)
def test_an_instant_is_rfc3339_in_utc_with_milliseconds(at: float | None, text: str | None) -> None:
    assert rfc3339(at) == text


# -- processes


@contextmanager
def named(name: bytes) -> Iterator[None]:
    """This thread's process, under another name in /proc."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = ctypes.create_string_buffer(16)
    assert libc.prctl(16, before) == 0  # PR_GET_NAME of prctl(2)
    assert libc.prctl(15, name) == 0  # PR_SET_NAME
    try:
        yield
    finally:
        libc.prctl(15, before)


@pytest.mark.parametrize("name", [b"a b", b") Z 1 2 3 (", b"((", b"x\n) R 7", b"", "ü€".encode()])
def test_start_time_is_read_whatever_the_process_is_called(name: bytes) -> None:
    me = current_process()

    with named(name):
        assert start_ticks(me.pid) == me.start_ticks
        assert not is_gone(me)


def test_start_time_is_read_of_a_process_whose_name_is_no_text() -> None:
    me = current_process()

    with named(b"\xff\xfe"):
        assert start_ticks(me.pid) == me.start_ticks


def test_current_process_is_alive_and_its_id_names_this_run_of_it() -> None:
    me = current_process()

    assert me.start_ticks > 0
    assert me.id == f"{boot_id()}:{pid_namespace()}:{os.getpid()}:{me.start_ticks}"
    assert not is_gone(me)


@pytest.mark.parametrize(
    "other",
    [{"start_ticks": 1}, {"boot_id": "00000000-0000-0000-0000-000000000000"}],
    ids=["start time", "boot"],
)
def test_a_process_with_the_same_pid_is_another(other: dict[str, object]) -> None:
    assert is_gone(replace(current_process(), **other))


def test_of_a_process_in_another_pid_namespace_nothing_is_proven_until_the_next_boot() -> None:
    elsewhere = replace(current_process(), namespace=1, start_ticks=1)

    assert not is_gone(elsewhere)
    assert is_gone(replace(elsewhere, boot_id="00000000-0000-0000-0000-000000000000"))


def test_a_zombie_and_a_process_that_is_gone_are_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        ticks = start_ticks(child.pid)
        assert ticks is not None
        identity = replace(current_process(), pid=child.pid, start_ticks=ticks)
        assert not is_gone(identity)

        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, not yet buried

        assert start_ticks(child.pid) is None
        assert is_gone(identity)

    assert start_ticks(child.pid) is None
    assert is_gone(identity)


# -- events


@dataclass(frozen=True, slots=True)
class Noted(Event):
    number: int


@dataclass(frozen=True, slots=True)
class NotedLouder(Noted):
    pass


@dataclass(frozen=True, slots=True)
class Other(Event):
    pass


def test_listeners_are_called_in_order_of_subscription_before_emit_returns() -> None:
    bus = EventBus()
    heard: list[tuple[str, Event]] = []
    bus.subscribe(lambda event: heard.append(("first", event)))
    bus.subscribe(lambda event: heard.append(("second", event)))

    bus.emit(Noted(1))

    assert heard == [("first", Noted(1)), ("second", Noted(1))]


def test_a_listener_hears_only_the_kinds_it_named() -> None:
    bus = EventBus()
    heard: list[Event] = []
    bus.subscribe(heard.append, Noted)

    bus.emit(Noted(1))
    bus.emit(Other())
    bus.emit(NotedLouder(2))

    assert heard == [Noted(1), NotedLouder(2)]


def test_a_listener_that_raises_does_not_stop_the_others() -> None:
    bus = EventBus()
    heard: list[Event] = []

    def bad(_: Event) -> None:
        raise RuntimeError("a bad listener")

    bus.subscribe(bad)
    bus.subscribe(heard.append)

    bus.emit(Noted(1))
    bus.emit(Noted(2))

    assert heard == [Noted(1), Noted(2)]


def test_a_listener_that_ends_its_subscription_while_called_costs_nobody_an_event() -> None:
    bus = EventBus()
    heard: list[tuple[str, Event]] = []

    def once(event: Event) -> None:
        heard.append(("once", event))
        end()

    end = bus.subscribe(once)
    bus.subscribe(lambda event: heard.append(("always", event)))

    bus.emit(Noted(1))
    bus.emit(Noted(2))

    assert heard == [("once", Noted(1)), ("always", Noted(1)), ("always", Noted(2))]


def test_a_listener_subscribed_while_another_is_called_hears_the_next_event() -> None:
    bus = EventBus()
    heard: list[Event] = []

    def first(event: Event) -> None:
        if event == Noted(1):
            bus.subscribe(heard.append)

    bus.subscribe(first)

    bus.emit(Noted(1))
    bus.emit(Noted(2))

    assert heard == [Noted(2)]


def test_ending_a_subscription_twice_is_harmless() -> None:
    bus = EventBus()
    heard: list[Event] = []
    end = bus.subscribe(heard.append)
    bus.subscribe(lambda _: None)

    end()
    end()
    bus.emit(Noted(1))

    assert heard == []


def test_an_event_emitted_by_a_listener_reaches_everybody() -> None:
    bus = EventBus()
    heard: list[Event] = []

    def echo(event: Event) -> None:
        if event == Noted(1):
            bus.emit(Noted(2))

    bus.subscribe(echo)
    bus.subscribe(heard.append)

    bus.emit(Noted(1))

    assert heard == [Noted(2), Noted(1)]
