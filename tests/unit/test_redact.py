"""Secrets are found in every form that they take on the way out; everything else stays as it is."""

from __future__ import annotations

import base64
import html
import json
import string
import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from stackd.core.json import MAX_DEPTH
from stackd.core.redact import LONGEST, MAX_SECRETS, REDACTED, SHORTEST, Redactor

ODD = 'p&ss/w+rd "é\n ☃~=?'
# NUL stands for what was hidden.
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
SECRETS = st.text(LETTERS, min_size=SHORTEST, max_size=40).filter(lambda one: one not in REDACTED)
# Letters that no form of the secrets below has, so that nothing of a secret comes about by chance.
BESIDE = st.text(alphabet="[]{}<>|^ ", max_size=12)
FORMS: dict[str, Callable[[str], str]] = {
    "as it is": lambda s: s,
    "percent": lambda s: quote(s, safe=""),
    "percent in a path": quote,
    "percent small": lambda s: _small(quote(s, safe="")),
    "form": quote_plus,
    "form small": lambda s: _small(quote_plus(s)),
    "encodeURIComponent": lambda s: quote(s, safe="!'()*"),
    "twice percent": lambda s: quote(quote(s, safe=""), safe=""),
    "json": lambda s: json.dumps(s)[1:-1],
    "json unicode": lambda s: json.dumps(s, ensure_ascii=False)[1:-1],
    "json with slashes": lambda s: json.dumps(s)[1:-1].replace("/", "\\/"),
    "json in json": lambda s: json.dumps(json.dumps(s))[3:-3],
    "html": html.escape,
    "html as others write it": lambda s: html.escape(s).replace("&#x27;", "&#39;"),
    "hex": lambda s: s.encode().hex(),
    "hex in capitals": lambda s: s.encode().hex().upper(),
}


def _small(encoded: str) -> str:
    parts = encoded.split("%")
    return "%".join([parts[0], *(part[:2].lower() + part[2:] for part in parts[1:])])


def encoded(secret: str, before: bytes, after: bytes, *, safe: bool) -> str:
    raw = before + secret.encode() + after
    return (base64.urlsafe_b64encode(raw) if safe else base64.b64encode(raw)).decode()


# -- where it is found


@pytest.mark.parametrize("columns", [64, 76])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\\n"], ids=["lf", "crlf", "escaped"])
@given(secret=SECRETS, before=st.binary(min_size=80, max_size=200), after=st.binary(max_size=99))
def test_a_secret_is_found_in_lines_of_base64_and_none_of_them_is_shown(
    columns: int, line_end: str, secret: str, before: bytes, after: bytes
) -> None:
    whole = encoded(secret, before, after, safe=False)
    lines = [whole[at : at + columns] for at in range(0, len(whole), columns)]
    text = f"<{line_end.join(lines)}>"

    shown = Redactor([secret]).text(text)

    assert Redactor([secret]).finds(text)
    assert shown == f"<{REDACTED}>"


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@given(secret=SECRETS, before=BESIDE, after=BESIDE)
@example(secret=ODD, before="", after="")
@example(secret="12345678", before="", after="")
def test_a_secret_is_hidden_in_each_form_and_what_is_beside_it_stays(
    form: Callable[[str], str], secret: str, before: str, after: str
) -> None:
    redactor = Redactor([secret])
    text = f"{before}{form(secret)}{after}"

    shown = redactor.text(text)

    assert redactor.finds(text)
    assert redactor.finds(text.encode())
    if not set(secret) & set("[]{}<>|^ "):
        assert shown == f"{before}{REDACTED}{after}"
    assert form(secret) not in shown.replace(REDACTED, "")
    assert not redactor.finds(shown.replace(REDACTED, "\0" * 9))


@given(
    secret=SECRETS, before=st.binary(max_size=5), after=st.binary(max_size=5), safe=st.booleans()
)
@example(secret="12345678", before=b"", after=b"", safe=False)
@example(secret=ODD, before=b"a", after=b"b", safe=False)
def test_a_secret_is_hidden_in_base64_wherever_it_stands_in_what_was_encoded(
    secret: str, before: bytes, after: bytes, safe: bool
) -> None:
    redactor = Redactor([secret])
    text = encoded(secret, before, after, safe=safe)

    shown = redactor.text(f"<{text}>")

    assert redactor.finds(text)
    assert redactor.finds(quote(text, safe=""))
    assert REDACTED in shown
    # Of the letters that are left none holds a bit of the secret.
    left, _, right = shown[1:-1].partition(REDACTED)
    assert len(left) <= len(before) * 8 // 6
    assert len(right.rstrip("=")) <= -(-len(after) * 8 // 6)


@pytest.mark.parametrize("scheme", ["Basic ", "basic  ", "BASIC%20", "Basic+"])
@pytest.mark.parametrize("user", ["", "me", "someone@example.org"])
def test_the_pair_of_a_basic_header_is_hidden_as_a_whole(scheme: str, user: str) -> None:
    pair = base64.b64encode(f"{user}:{ODD}".encode()).decode()
    other = base64.b64encode(b"somebody:else-entirely").decode()

    text = f"a {scheme}{pair} b {scheme}{other} c"

    assert Redactor([ODD]).text(text) == f"a {scheme}{REDACTED} b {scheme}{other} c"


def test_of_a_token_as_the_user_of_a_pair_nothing_is_left() -> None:
    pair = base64.b64encode(b"tok_12345678:").decode()

    assert Redactor(["tok_12345678"]).text(f"Basic {pair}") == f"Basic {REDACTED}"


@given(secrets=st.lists(SECRETS, min_size=2, max_size=4), beside=BESIDE)
def test_none_of_several_is_left_however_they_stand_in_each_other(
    secrets: list[str], beside: str
) -> None:
    first, second, *_ = secrets
    nested = first[: len(first) // 2] + second + first[len(first) // 2 :]
    redactor = Redactor([*secrets, nested])

    shown = redactor.text(beside.join([*secrets, nested, first + second]))

    assert not any(one in shown.replace(REDACTED, "\0" * 9) for one in [*secrets, nested])


def test_a_secret_that_overlaps_another_is_hidden_with_it_in_one() -> None:
    assert Redactor(["abcdefgh", "efghijkl"]).text("<abcdefghijkl>") == f"<{REDACTED}>"


# -- what stays


@given(st.text())
def test_a_text_without_a_secret_stays_as_it_is(text: str) -> None:
    redactor = Redactor(["\U0001f512" * 8])  # a letter that is hardly ever drawn

    assert redactor.text(text) == text
    assert not redactor.finds(text)


@pytest.mark.parametrize("short", ["", "a", "1234567"])
def test_a_short_one_is_not_looked_for(short: str) -> None:
    assert Redactor([short]).text(f"-{short}-1234567-") == f"-{short}-1234567-"


def test_what_is_put_in_its_place_is_never_taken_for_a_secret() -> None:
    redactor = Redactor(["REDACTED", "[REDACTED]", "s3cret-value"])

    once = redactor.text("REDACTED s3cret-value")

    assert once == redactor.text(once) == f"REDACTED {REDACTED}"


def test_it_shows_none_of_what_it_knows() -> None:
    assert repr(Redactor(["s3cret-value"])) == "Redactor()"


@pytest.mark.parametrize("secrets", [["x" * (LONGEST + 1)], [f"{n:08}" for n in range(10_001)]])
def test_beyond_its_bounds_it_is_refused_and_nothing_is_shown(secrets: list[str]) -> None:
    assert MAX_SECRETS == 10_000

    with pytest.raises(ValueError, match=r"more than|is over") as caught:
        Redactor(secrets)

    assert secrets[0] not in str(caught.value)


# -- JSON


def test_json_is_looked_through_in_values_keys_and_numbers() -> None:
    redactor = Redactor(["s3cret-value", "123456789012"])
    value = {
        "a": ["x s3cret-value y", 123456789012, 12, None, True, 1.5],
        "s3cret-value": {"b": {"s3cret-value": 1, "[REDACTED]": 2}},
    }
    before = json.dumps(value)

    shown = redactor.json(value)

    assert shown == {
        "a": [f"x {REDACTED} y", REDACTED, 12, None, True, 1.5],
        REDACTED: {"b": {REDACTED: 1, f"{REDACTED} 2": 2}},
    }
    assert json.dumps(value) == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_json_without_a_secret_is_the_same(value: object) -> None:
    assert Redactor(["\U0001f512" * 8]).json(value) == value


@given(JSON, SECRETS)
def test_json_holds_no_secret_afterwards(value: object, secret: str) -> None:
    redactor = Redactor([secret])

    shown = redactor.json({"a": [value, f"-{secret}-"], secret: value})

    texts = json.dumps(shown, ensure_ascii=False)
    assert json.dumps(secret, ensure_ascii=False)[1:-1] not in texts.replace(REDACTED, "\0" * 9)


def test_json_may_be_as_deep_as_json_is_anywhere() -> None:
    value: object = "s3cret-value"
    for _ in range(MAX_DEPTH):
        value = [value]

    assert REDACTED in json.dumps(Redactor(["s3cret-value"]).json(value))


def test_keys_that_would_become_one_stay_apart() -> None:
    shown = Redactor(["s3cret-value"]).json({"s3cret-value": 1, "[REDACTED]": 2, "[REDACTED] 1": 3})

    assert sorted(shown.values()) == [1, 2, 3]


# -- what it costs


@pytest.mark.parametrize(
    ("secrets", "text"),
    [
        (["a" * 65_000, "a" * 60_000 + "b", "b" + "a" * 65_000], "a" * 2**20),
        (["a" * 64_999 + "b"], ("a" * 64_999 + "c") * 16),
        ([f"sk_live_{n:024}" for n in range(500)], "sk_live_" * 2**17),
        ([f"{n:016}" for n in range(500)], string.ascii_letters * 20_000),
    ],
    ids=["long", "almost", "alike", "many"],
)
def test_no_text_takes_long(secrets: list[str], text: str) -> None:
    redactor = Redactor(secrets)
    began = time.thread_time()

    redactor.text(text)

    assert (
        time.thread_time() - began < 2.0
    )  # 0.2 s at most; a text that is gone through for each form takes minutes
