"""Reading workflow documents: what is accepted, and every way to refuse one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackd.core.errors import TooLargeError
from stackd.workflows.document import Document, DocumentError, Finding, load_stored, read_document
from stackd.workflows.graph import compile_graph

PLAIN = """
id: plain
nodes:
  - {id: start, type: trigger.time.manual}
  - {id: out, type: transform.data.set, params: {values: {a: "{{ start.a }}"}}}
edges:
  - {from: start, to: out}
"""


def read(text: str | bytes) -> Document:
    data = text if isinstance(text, bytes) else text.encode()
    return read_document(data, name="flow.yaml", max_bytes=256 * 1024)


def findings(text: str | bytes) -> list[Finding]:
    with pytest.raises(DocumentError) as caught:
        read(text)
    return caught.value.findings


def codes(text: str | bytes) -> list[str]:
    return [f.code for f in findings(text)]


def flow(*nodes: str, edges: str = "") -> str:
    listed = "\n".join(f"  - {node}" for node in nodes)
    return (
        f"id: x\nnodes:\n  - {{id: start, type: trigger.time.manual}}\n{listed}\nedges: [{edges}]\n"
    )


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


def test_a_stored_document_compiles_to_the_same_graph():
    document = read(PLAIN)

    graph = compile_graph(load_stored(document.canonical))

    assert graph.order == ("start", "out")
    assert [e.target for e in graph.nodes["start"].out_edges] == ["out"]


def test_integers_of_twenty_digits_stay_exact():
    document = read(
        flow("{id: a, type: transform.data.set, params: {values: {n: 12345678901234567890123}}}")
    )

    assert load_stored(document.canonical).nodes[1].params["values"]["n"] == 12345678901234567890123


def test_every_error_is_told_at_once_with_its_place():
    text = """id: bad id
nmae: x
nodes:
  - {id: hook, type: trigger.webhook.inbound, params: {respnd: last}}
  - {id: hook, type: transform.data.set, params: {values: {}}}
  - {id: item, type: transform.data.set, params: {values: {}}}
  - {id: call, type: action.http.reqest}
  - {id: set, type: transform.data.set, params: {values: {a: "{{ hok.body }}", b: "{{ hook.x | lowr }}"}}}
edges:
  - {from: hook, to: cal}
  - {from: hook, to: set}
"""

    found = {(f.code, f.line, f.column) for f in findings(text) if f.severity == "error"}

    def at(code, line, mark):
        return code, line, text.splitlines()[line - 1].index(mark) + 1

    assert found == {
        at("document.bad_id", 1, "id:"),
        at("document.unknown_key", 2, "nmae"),
        at("params.unknown", 4, "respnd"),
        at("node.duplicate_id", 5, "id: hook"),
        at("node.reserved_id", 6, "id: item"),
        at("node.unknown_type", 7, "type"),
        at("expression.unknown_root", 8, "a: "),
        at("expression.invalid", 8, "b: "),
        at("edge.unknown_node", 10, "to: cal"),
    }


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (flow("{id: a, type: transform.data.sett, params: {values: {}}}"), "transform.data.set"),
        (flow("{id: a, type: transform.data.set, parms: {values: {}}}"), "params"),
        (flow("{id: a, type: action.http.request, params: {ulr: 'http://a'}}"), "url"),
        (flow("{id: a, type: transform.data.set, retry: {maxAttempt: 1}, params: {values: {}}}"), "maxAttempts"),
        (flow("{id: alpha, type: transform.data.set, params: {values: {}}}", edges="{from: start, to: alpa}"), "alpha"),
    ],
)  # fmt: skip
def test_a_misspelt_name_is_answered_with_the_nearest(text, hint):
    assert any(hint in (f.hint or "") for f in findings(text))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: &x 1\nb: *x", "document.alias"),
        ("a: 1\na: 2", "document.duplicate_key"),
        ('{"a": 1, "a": 2}', "json.duplicate_key"),
        ("[" * 5000, "document.depth"),
        ('{"a":' * 100 + "1" + "}" * 100, "document.depth"),
        ('{"a":' * 50_000, "json.depth"),
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
        ("id: x\nnodes: []", "document.no_nodes"),
        ("id: x\nnodes: 3", "document.bad_value"),
        ("id: x", "document.missing"),
        ("nodes: [{id: a, type: trigger.time.manual}]", "document.missing"),
        ("id: x\nnodes: [{id: a, type: transform.data.set, params: {values: {}}}]", "document.no_trigger"),
        ("id: x\nnodes: [{id: a-b, type: trigger.time.manual}]", "document.bad_id"),
        (flow("{id: a, type: logic.branch}"), "node.type_not_available"),
        (flow("{id: a, type: action.http.request, params: {url: ftp://a}}"), "params.invalid"),
        (flow("{id: a, type: action.http.request, params: {method: GET}}"), "params.invalid"),
        (flow("{id: a, type: action.http.request, params: {url: 'http://a', json: 1, form: {}}}"), "params.invalid"),
        (flow("{id: a, type: action.time.delay, params: {delayMs: -1}}"), "params.invalid"),
        (flow("{id: h, type: trigger.webhook.inbound, params: {path: /a/../b}}"), "params.invalid"),
        (flow("{id: h, type: trigger.webhook.inbound, params: {path: '{{ x }}'}}"), "params.invalid"),
        (flow("{id: h, type: trigger.webhook.inbound, params: {path: a}}", "{id: i, type: trigger.webhook.inbound, params: {path: a}}"), "webhook.path_taken"),
        (flow("{id: h, type: trigger.webhook.inbound, params: {dedupe: {expression: other.x}}}"), "expression.unknown_root"),
        (flow("{id: a, type: transform.data.set, params: {values: {}}}", edges="{from: start, to: a}, {from: start, to: a}"), "edge.duplicate"),
        (flow("{id: a, type: transform.data.set, params: {values: {}}}", edges="{from: a, to: start}"), "edge.into_trigger"),
        (flow("{id: a, type: transform.data.set, params: {values: {}}}", edges="{from: start, to: a, on: error}"), "edge.never_taken"),
        (flow("{id: a, type: transform.data.set, params: {values: {}}}", edges="{from: start, to: a, on: maybe}"), "edge.unknown_case"),
        (flow("{id: a, type: transform.data.set, params: {values: {x: '{{ b }}'}}}", "{id: b, type: transform.data.set, params: {values: {}}}"), "expression.not_upstream"),
        (flow("{id: a, type: transform.data.set, params: {values: {x: '{{ vars.q }}'}}}"), "expression.unknown_var"),
        (flow("{id: a, type: transform.data.set, params: {values: {}}}", "{id: b, type: transform.data.set, params: {values: {}}}", edges="{from: a, to: b}, {from: b, to: a}"), "edges.cycle"),
        (flow("{id: a, type: transform.data.set, params: {values: {}}, retry: {maxAttempts: 0}}"), "document.bad_value"),
        (flow("{id: a, type: transform.data.set, params: {values: {}}, disabled: 'yes'}"), "document.bad_value"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_code(text, code):
    assert code in codes(text)


@pytest.mark.parametrize(
    ("node", "code"),
    [
        ("{id: a, type: transform.data.set, effect: unsafe, params: {values: {}}}", "node.no_effect"),
        ("{id: a, type: transform.data.set, params: {values: {}}}", "node.unreachable"),
        ("{id: a, type: action.http.request, idempotencyKey: k, params: {url: 'http://a'}}", "node.key_unused"),
    ],
)  # fmt: skip
def test_what_is_odd_but_usable_is_a_warning(node, code):
    assert code in [w.code for w in read(flow(node)).warnings]


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

    graph = compile_graph(load_stored(read(text).canonical))

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
