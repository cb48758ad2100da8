"""Reading workflow documents: what becomes of an accepted one, and what no document may hold."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.flows import findings, flow, read

from stackd.core.errors import TooLargeError
from stackd.workflows.document import load_stored, read_document
from stackd.workflows.findings import DocumentError
from stackd.workflows.graph import compile_graph

PLAIN = """
id: plain
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: out, type: transform.data.set, params: {values: {a: "{{ start.a }}"}}}
edges:
  - {from: start, to: out}
"""


def codes(text: str | bytes) -> list[str]:
    return [f.code for f in findings(text)]


def test_yaml_and_json_of_the_same_document_have_one_hash():
    as_json = json.dumps(
        {
            "edges": [{"to": "out", "from": "start"}],
            "nodes": [
                {"type": "trigger.time.manual", "id": "start"},
                {
                    "id": "out",
                    "type": "transform.data.set",
                    "params": {"values": {"a": "{{ start.a }}"}},
                },
            ],
            "id": "plain",
        }
    )

    assert read(PLAIN).content_hash == read(as_json).content_hash


def test_a_document_is_kept_in_its_own_order_and_is_the_same_in_any():
    one, other = (
        read(f"id: x\nvars: {{{order}}}\nnodes:\n  - {{id: s, type: trigger.time.manual}}\n")
        for order in ("z: 1, a: 2", "a: 2, z: 1")
    )

    assert list(load_stored(one.text).vars) == ["z", "a"]
    assert one.content_hash == other.content_hash


def test_a_stored_document_compiles_to_the_same_graph():
    document = read(PLAIN)

    graph = compile_graph(load_stored(document.text))

    assert graph.order == ("start", "out")
    assert [e.target for e in graph.nodes["start"].out_edges] == ["out"]


def test_integers_of_twenty_digits_stay_exact():
    document = read(
        flow("{id: a, type: transform.data.set, params: {values: {n: 12345678901234567890123}}}")
    )

    assert load_stored(document.text).nodes[1].params["values"]["n"] == 12345678901234567890123


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: &x 1\nb: *x", "document.alias"),
        ("a: 1\na: 2", "document.duplicate_key"),
        ('{"a": 1, "a": 2}', "document.duplicate_key"),
        ("[" * 5000, "document.depth"),
        ('{"a":' * 100 + "1" + "}" * 100, "document.depth"),
        ('{"a":' * 50_000, "document.depth"),
        (b"id: \xff", "document.encoding"),
        ("a: .nan", "json.constant"),
        ("a: .inf", "json.constant"),
        ('{"a": NaN}', "json.constant"),
        ("a: 1e999", "json.number"),
        ("--- 1\n--- 2", "document.several"),
        ("a: !!python/object:os.system x", "document.tag"),
        ("a: !evil x", "document.tag"),
        ("a: {{ b }}", "document.key"),
        ("a:\n\t- b", "document.malformed"),
        ("{", "json.malformed"),
        ("", "document.not_map"),
        ("- 1", "document.not_map"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_code(text, code):
    assert code in codes(text)


def test_a_document_over_the_limit_is_refused_before_it_is_read():
    with pytest.raises(TooLargeError, match="over the limit of 10"):
        read_document(b"x" * 11, name="flow.yaml", max_bytes=10)


@pytest.mark.parametrize(
    ("params", "extra", "effect"),
    [
        ("{url: 'http://a'}", "", "read"),
        ("{url: 'http://a', method: get}", "", "read"),
        ("{url: 'http://a', method: PUT}", "", "idempotent"),
        ("{url: 'http://a', method: POST}", "", "unsafe"),
        ("{url: 'http://a', method: '{{ start.m }}'}", "", "unsafe"),
        ("{url: 'http://a', method: POST}", ", idempotencyKey: '{{ start.id }}'", "keyed"),
        ("{url: 'http://a', method: POST}", ", effect: keyed", "keyed"),
        ("{url: 'http://a', method: POST}", ", effect: read", "read"),
    ],
)
def test_the_effect_of_a_request_follows_its_method_and_key(params, extra, effect):
    text = flow(
        f"{{id: a, type: action.http.request, params: {params}{extra}}}",
        edges="{from: start, to: a}",
    )

    graph = compile_graph(load_stored(read(text).text))

    assert graph.nodes["a"].effect == effect


@given(st.text(max_size=200))
@settings(max_examples=300)
def test_any_text_is_read_or_refused(text):
    try:
        read(text.encode("utf-8", "surrogatepass"))
    except DocumentError as error:
        assert error.findings


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
_KEYS = st.sampled_from(
    ["id", "type", "params", "nodes", "edges", "from", "to", "when", "vars", "retry", "pinned", "url"]
)  # fmt: skip


@given(
    st.fixed_dictionaries(
        {"id": st.just("x")},
        optional={
            "nodes": st.lists(st.dictionaries(_KEYS, _JSON, max_size=5), max_size=4) | _JSON,
            "edges": st.lists(st.dictionaries(_KEYS, _JSON, max_size=4), max_size=4) | _JSON,
            "vars": _JSON,
        },
    )
)
@settings(max_examples=300)
def test_any_json_is_read_or_refused(document):
    try:
        read(json.dumps(document))
    except DocumentError as error:
        assert error.findings
