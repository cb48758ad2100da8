"""Whole documents: where the service is, how one signs in, what operations are called and answer, and what is supposed."""

from __future__ import annotations

import copy
import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from support.any_openapi import (
    NASTY,
    PLAIN,
    action,
    definition,
    heavy,
    imported,
    openapi,
    output,
    swagger,
    with_operation,
)
from support.imported import assert_whole

from stackd.core.errors import InputError
from stackd.core.json import dumps
from stackd.integrations.importer import overlay
from stackd.integrations.importer.document import import_document
from stackd.integrations.importer.reading import File, read_text
from stackd.integrations.importer.report import Report
from stackd.integrations.importer.samples import synthesised
from stackd.integrations.importer.values import NOTHING, bounded, plain

# -- servers


@pytest.mark.parametrize(
    ("servers", "base_url", "fields"),
    [
        ([{"url": "https://a.example/v1/"}], "https://a.example/v1", {}),
        ([{"url": "https://a.example"}, {"url": "https://b.example"}], "https://a.example", {}),
        ([{"url": "//a.example"}], "https://a.example", {}),
        ([{"url": "/api/v3"}], "{{ conn.baseUrl }}/api/v3", {"baseUrl"}),
        (None, "{{ conn.baseUrl }}", {"baseUrl"}),
        ([], "{{ conn.baseUrl }}", {"baseUrl"}),
        ([{"url": "http://localhost:8080/x"}], "{{ conn.baseUrl }}/x", {"baseUrl"}),
        ([{"url": "https://{region}.a.example/{base-path}", "variables": {"region": {"default": "eu", "enum": ["eu", "us"]}}}],
         "https://{{ conn.region }}.a.example/{{ conn.base_path }}", {"region", "base_path"}),
    ],
)  # fmt: skip
def test_the_base_address(servers, base_url, fields):
    made = definition(openapi({"/x": {"get": PLAIN}}, security=[]) | {"servers": servers})

    assert made["baseUrl"] == base_url
    assert set(made.get("connection", {}).get("fields", {}).get("properties", {})) == set(fields)


def test_variables_of_a_server_are_fields_with_their_choices():
    servers = [
        {
            "url": "https://{region}.a.example",
            "variables": {"region": {"default": "eu", "enum": ["eu", "us"]}},
        }
    ]
    made = definition(openapi({"/x": {"get": PLAIN}}, security=[]) | {"servers": servers})

    assert made["connection"]["fields"] == {"type": "object", "properties": {
        "region": {"type": "string", "title": "region", "enum": ["eu", "us"], "default": "eu"}}}  # fmt: skip


def test_the_base_address_of_2_0():
    assert definition(swagger({"/x": {"get": PLAIN}}))["baseUrl"] == "https://api.example.com/v1"
    assert (
        definition(swagger({"/x": {"get": PLAIN}}, schemes=["http"]))["baseUrl"]
        == "http://api.example.com/v1"
    )
    made = definition(swagger({"/x": {"get": PLAIN}}, host=None))
    assert (made["baseUrl"], made["connection"]["fields"]["required"]) == (
        "{{ conn.baseUrl }}/v1",
        ["baseUrl"],
    )


def test_servers_of_paths_and_operations_are_theirs_and_may_be_sent_credentials():
    other = [{"url": "https://up.example.com/v2"}]
    made = definition(
        openapi(
            {
                "/a": {"servers": other, "get": PLAIN},
                "/b": {"get": {**PLAIN, "servers": other}},
                "/c": {"get": PLAIN},
            }
        )
    )

    assert [one.get("baseUrl") for one in made["actions"]] == ["https://up.example.com/v2"] * 2 + [
        None
    ]
    assert made["hosts"] == ["up.example.com"]


# -- ways in


def ways(schemes: dict[str, Any], security: Any = None, **more: Any) -> dict[str, Any]:
    chosen = [{name: []} for name in schemes] if security is None else security
    return definition(
        openapi(
            {"/x": {"get": PLAIN}}, components={"securitySchemes": schemes}, security=chosen, **more
        )
    )


@pytest.mark.parametrize(
    ("scheme", "auth"),
    [
        ({"type": "http", "scheme": "Bearer"}, {"type": "bearer", "value": "{{ conn.token }}"}),
        ({"type": "http", "scheme": "basic"}, {"type": "basic", "username": "{{ conn.username }}", "password": "{{ conn.password }}"}),
        ({"type": "apiKey", "in": "header", "name": "X-Key"}, {"type": "api_key", "in": "header", "name": "X-Key", "value": "{{ conn.apiKey }}"}),
        ({"type": "apiKey", "in": "query", "name": "key"}, {"type": "api_key", "in": "query", "name": "key", "value": "{{ conn.apiKey }}"}),
        ({"type": "apiKey", "in": "cookie", "name": "sid"}, {"type": "api_key", "in": "cookie", "name": "sid", "value": "{{ conn.apiKey }}"}),
        ({"type": "apiKey", "in": "header", "name": "Authorization", "description": "e.g. `Bearer Axxxx`"},
         {"type": "bearer", "prefix": "Bearer ", "value": "{{ conn.token }}"}),
        ({"type": "apiKey", "in": "header", "name": "Authorization", "description": 'must be prepended with "token" and a space'},
         {"type": "bearer", "prefix": "token ", "value": "{{ conn.token }}"}),
        ({"type": "apiKey", "in": "header", "name": "Authorization"},
         {"type": "api_key", "in": "header", "name": "Authorization", "value": "{{ conn.apiKey }}"}),
        ({"type": "openIdConnect", "openIdConnectUrl": "https://a.example"}, {"type": "bearer", "value": "{{ conn.token }}"}),
        ({"type": "oauth2", "flows": {"authorizationCode": {"authorizationUrl": "https://a.example/a", "tokenUrl": "https://a.example/t", "scopes": {"r": ""}}}},
         {"type": "oauth2", "grant": "code", "authorizeUrl": "https://a.example/a", "tokenUrl": "https://a.example/t", "scopes": ["r"]}),
        ({"type": "oauth2", "flows": {"clientCredentials": {"tokenUrl": "/t"}}},
         {"type": "oauth2", "grant": "client_credentials", "tokenUrl": "https://api.example.com/v1/t", "scopes": []}),
    ],
)  # fmt: skip
def test_a_scheme_becomes(scheme, auth):
    made = ways({"it": scheme})

    assert made["authentication"] == auth
    assert_whole(made)


@pytest.mark.parametrize("scheme", [{"type": "oauth2", "flows": {"implicit": {"authorizationUrl": "https://a.example"}}}, {"type": "mutualTLS"},
                                    {"type": "http", "scheme": "digest"}, {}])  # fmt: skip
def test_a_scheme_that_cannot_be_used_is_left_out_and_told(scheme):
    made = imported(
        openapi(
            {"/x": {"get": PLAIN}},
            components={"securitySchemes": {"it": scheme}},
            security=[{"it": []}],
        )
    )

    assert made.definition is not None
    assert made.definition["authentication"] == {"type": "none"}
    assert any(one.startswith("security: it: ") for one in made.report.guessed)


def test_a_flow_of_2_0():
    scheme = {
        "type": "oauth2",
        "flow": "accessCode",
        "authorizationUrl": "https://a.example/a",
        "tokenUrl": "https://a.example/t",
        "scopes": {},
    }
    made = definition(
        swagger(
            {"/x": {"get": {**PLAIN, "security": [{"o": ["r"]}]}}},
            securityDefinitions={"o": scheme},
        )
    )

    assert (made["authentication"]["grant"], made["authentication"]["scopes"]) == ("code", ["r"])
    assert made["actions"][0]["requiredScopes"] == ["r"]
    assert set(made["connection"]["fields"]["properties"]) == {"clientId", "clientSecret"}


def test_secrets_are_marked():
    made = ways({"a": {"type": "http", "scheme": "basic"}})["connection"]["fields"]["properties"]

    assert [one.get("x-secret") for one in made.values()] == [None, True]


def test_several_schemes_at_once_are_one_way_in():
    made = ways(
        {
            "k": {"type": "apiKey", "in": "header", "name": "X-A"},
            "b": {"type": "http", "scheme": "bearer"},
        },
        [{"k": [], "b": []}],
    )

    assert made["authentication"]["type"] == "all"
    assert [one["type"] for one in made["authentication"]["parts"]] == ["api_key", "bearer"]


def test_several_alternatives_are_named_and_an_operation_says_which():
    schemes = {
        "k": {"type": "apiKey", "in": "header", "name": "X-A"},
        "b": {"type": "http", "scheme": "bearer"},
    }
    paths = {
        "/a": {"get": PLAIN},
        "/b": {"get": {**PLAIN, "security": [{"b": []}]}},
        "/c": {"get": {**PLAIN, "security": []}},
    }
    made = definition(
        openapi(paths, components={"securitySchemes": schemes}, security=[{"k": []}, {"b": []}])
    )

    assert list(made["auths"]) == ["k", "b"]
    assert [one.get("auth") for one in made["actions"]] == [None, "b", "none"]


def test_without_any_way_in_a_bearer_token_is_supposed():
    made = imported(openapi({"/x": {"get": PLAIN}}))

    assert made.definition is not None
    assert made.definition["authentication"] == {"type": "bearer", "value": "{{ conn.token }}"}
    assert (
        "security: the document names no way in; a bearer token is supposed" in made.report.guessed
    )


def test_a_document_whose_operations_nearly_all_say_public_though_it_names_a_way_in_is_not():
    paths = {f"/{n}": {"get": {**PLAIN, "security": []}} for n in range(5)}
    made = definition(
        openapi(
            paths,
            components={"securitySchemes": {"b": {"type": "http", "scheme": "bearer"}}},
            security=[{"b": []}],
        )
    )

    assert ["auth" in one for one in made["actions"]] == [False] * 5


# -- operations


@pytest.mark.parametrize(
    ("given", "made"),
    [("repos/create-issue", "repos_create_issue"), ("getPetById", "get_pet_by_id"), ("XMLFeed.get", "xml_feed_get"),
     ("Ünïcode", "unicode"), (None, "post_things"), ("a" * 200, "a" * 64)],
)  # fmt: skip
def test_an_operation_id_becomes(given, made):
    found = action(with_operation({"operationId": given}))

    assert (found["id"], found["x-origin"]) == (made, given or "POST /things")


@pytest.mark.parametrize(("method", "effect"), [("get", "read"), ("head", "read"), ("options", "read"), ("put", "idempotent"),
                                                ("delete", "idempotent"), ("post", "unsafe"), ("patch", "unsafe")])  # fmt: skip
def test_the_effect_is_that_of_the_method(method, effect):
    assert action(with_operation({}, method=method))["effect"] == effect


def test_a_method_that_cannot_be_sent_is_skipped():
    made = imported(openapi({"/x": {"trace": PLAIN, "get": PLAIN}}))

    assert [(one.operation, one.reason) for one in made.report.skipped] == [
        ("TRACE /x", "the method TRACE cannot be sent")
    ]


def test_what_is_to_be_filled_in_is_no_html():
    assert plain("<p>ancestor=(`<image>[:<tag>]`)<br/>") == "ancestor=(<image>[:<tag>])"


@pytest.mark.parametrize(
    ("path", "operation_id", "is_read"),
    [
        ("/search", None, True),
        ("/things/{id}/query", None, True),
        ("/lists", "createList", False),
        ("/x", "findPets", True),
        ("/x", None, False),
    ],
)
def test_a_post_is_paged_only_if_it_looks_for_something(path, operation_id, is_read):
    schema = {
        "type": "object",
        "properties": {"items": {"type": "array"}, "next_cursor": {"type": "string"}},
    }
    taken = {
        "application/json": {
            "schema": {"type": "object", "properties": {"cursor": {"type": "string"}}}
        }
    }
    made = action(with_operation({
        "operationId": operation_id, "requestBody": {"content": taken},
        "responses": {"200": {"content": {"application/json": {"schema": schema}}}}}, path=path))  # fmt: skip

    assert ("paginate" in made) is is_read
    assert made.get("paginate", {}).get("send") == ({"body": "cursor"} if is_read else None)


def test_words_lose_html_and_tables():
    found = action(
        with_operation(
            {
                "summary": "<b>Do</b> `it`",
                "description": "One [link](https://x.example). Two.\n\n| a |\n| - |",
                "deprecated": True,
                "tags": ["t"],
            }
        )
    )

    assert (found["title"], found["description"], found["tags"]) == ("Do it", "One link.", ["t"])
    assert found["deprecated"] is found["hidden"] is True


@pytest.mark.parametrize(
    ("responses", "found"),
    [
        ({"202": {"content": {"application/json": {"schema": {"type": "string"}}}},
          "201": {"content": {"application/json": {"schema": {"type": "integer"}}}}}, {"type": "integer"}),
        ({"204": {}}, {"response": "none", "type": "null"}),
        ({"201": {"content": {"application/json": {"schema": {"type": "string"}}}}, "default": {}}, {"type": "string"}),
        ({"200": {}, "202": {"content": {"application/json": {"schema": {"type": "string"}}}}}, {"type": "string"}),
        ({"2XX": {"content": {"application/problem+json": {"schema": {"type": "string"}}}}}, {"type": "string"}),
        ({"default": {"content": {"application/json": {"schema": {"type": "string"}}}}}, {"type": "string"}),
        ({"200": {"content": {"image/png": {}}}}, {"response": "blob", "type": "object"}),
        ({"200": {"content": {"text/plain": {}}}}, {"response": "text", "type": "string"}),
        ({"200": {"content": {"application/x-ndjson": {"schema": {"type": "object"}}}}}, {"response": "ndjson", "type": "object"}),
        ({}, {}),
    ],
)  # fmt: skip
def test_the_answer(responses, found):
    made = action(with_operation({"responses": responses}))

    assert {"response": made.get("response"), "type": made["outputSchema"].get("type")} == {
        "response": None,
        "type": None,
    } | found


def test_a_sample_is_the_example_else_made_of_the_schema():
    answer = {"application/json": {"schema": {"type": "object", "properties": {
        "id": {"type": "integer", "minimum": 3}, "at": {"type": "string", "format": "date-time"}, "tags": {"type": "array", "items": {"enum": ["x"]}}}}}}  # fmt: skip
    made = action(with_operation({"responses": {"200": {"content": answer}}}))
    assert made["sample"] == {"id": 3, "at": "2026-01-01T00:00:00Z", "tags": ["x"]}

    answer["application/json"]["examples"] = {"first": {"value": {"id": 1}}}  # type: ignore[dict-item]
    assert action(with_operation({"responses": {"200": {"content": answer}}}))["sample"] == {
        "id": 1
    }


def test_an_example_that_is_not_of_its_schema_is_no_sample():
    members = {
        "priority": {"type": "integer", "example": [10]},
        "pool": {"type": "array", "items": {"type": "string", "example": ["10.0.0.0/8"]}},
        "status": {"type": "object", "additionalProperties": {"type": "object"}, "example": {"a": "b"}},
        "level": {"enum": ["low", "high"], "default": "none"},
        "size": {"type": "integer", "example": 7},
    }  # fmt: skip

    assert synthesised({"properties": members}, {}) == {
        "priority": 1, "pool": ["text"], "status": {}, "level": "low", "size": 7,
    }  # fmt: skip


def test_a_sample_is_bounded():
    example = {"list": list(range(10_000)), "text": "x" * 100_000}
    made = action(
        with_operation(
            {"responses": {"200": {"content": {"application/json": {"example": example}}}}}
        )
    )

    assert made["sample"]["list"] == [0, 1, 2]
    assert len(made["sample"]["text"]) == 4_000


def test_a_value_that_is_too_large_is_none():
    assert bounded([0] * 999) == [0] * 999
    assert bounded([0] * 1_000) is NOTHING
    assert bounded([[[[]]]], depth=2) is NOTHING
    assert bounded("x" * 4_001) is NOTHING
    assert "default" not in output({"type": "array", "default": [0] * 1_000})


def test_links_are_kept_and_limits_read():
    made = definition(
        with_operation(
            {
                "responses": {
                    "200": {
                        "links": {"a": {"operationId": "b"}},
                        "headers": {"X-RateLimit-Remaining": {}},
                    },
                    "429": {"headers": {"Retry-After": {}}},
                }
            }
        )
    )

    assert made["actions"][0]["x-links"] == {"a": {"operationId": "b"}}
    assert made["limitsFrom"] == {
        "remaining": "x-ratelimit-remaining",
        "reset": {"header": "retry-after", "form": "auto"},
    }


# -- guesses


def listing(
    parameters: list[str], members: dict[str, Any], headers: Any = None, **more: Any
) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"items": {"type": "array", "items": {"type": "object", "properties": {
        "id": {"type": "integer"}, "updated_at": {"type": "string"}}}}, **members}}  # fmt: skip
    return definition(with_operation({
        "parameters": [{"name": name, "in": "query", "schema": {"type": "integer", "maximum": 100}} for name in parameters],
        "responses": {"200": {"headers": headers or {}, "content": {"application/json": {"schema": schema}}}}, **more}, method="get"))  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "members", "headers", "found"),
    [
        (["page"], {}, {"Link": {}}, {"type": "link"}),
        (["cursor"], {"next_cursor": {"type": "string"}, "has_more": {"type": "boolean"}}, None,
         {"type": "cursor", "from": "body.next_cursor", "send": {"query": "cursor"}, "hasMore": "body.has_more"}),
        (["continue"], {"metadata": {"properties": {"continue": {"type": "string"}}}}, None,
         {"type": "cursor", "from": "body.metadata.continue", "send": {"query": "continue"}}),
        (["x"], {"next_page_uri": {"type": "string"}}, None, {"type": "next_url", "path": "body.next_page_uri"}),
        (["x"], {"@odata.nextLink": {"type": "string"}}, None, {"type": "next_url", "path": "body['@odata.nextLink']"}),
        (["starting_after"], {"has_more": {"type": "boolean"}}, None,
         {"type": "last_id", "from": "item.id", "send": {"query": "starting_after"}, "hasMore": "body.has_more"}),
        (["offset", "limit"], {}, None, {"type": "offset", "send": {"query": "offset"}, "size": {"query": "limit", "max": 100}}),
        (["page"], {}, None, {"type": "page", "send": {"query": "page"}, "start": 1}),
        (["q"], {}, None, None),
    ],
)  # fmt: skip
def test_pages_are_supposed_to_follow_by(parameters, members, headers, found):
    made = listing(parameters, members, headers)
    paginate = made["actions"][0].get("paginate")

    assert_whole(made)
    assert paginate == (None if found is None else found | {"items": "body.items", "x-guess": True})


def test_a_list_with_ids_and_times_that_can_be_asked_since_may_be_polled():
    made = listing(["since", "page"], {})
    (trigger,) = made["triggers"]

    assert_whole(made)
    assert (trigger["type"], trigger["items"], trigger["x-guess"]) == ("poll", "body.items", True)
    assert trigger["cursor"]["from"] == "item.updated_at"
    assert trigger["dedupe"]["key"] == ["item.id", "item.updated_at"]


def test_webhooks_and_callbacks_are_triggers_to_be_completed():
    hook = {
        "post": {
            "summary": "A pet came",
            "requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}},
        }
    }
    made = definition(
        with_operation(
            {"callbacks": {"onDone": {"{$request.body#/url}": hook}}},
            webhooks={"newPet": hook},
            version="3.1.0",
        )
    )

    assert_whole(made)
    assert [(one["id"], one["type"]) for one in made["triggers"]] == [
        ("new_pet", "webhook"),
        ("on_done", "webhook"),
    ]


def test_a_read_that_tells_who_one_is_tests_a_connection():
    assert definition(openapi({"/v1/users/me": {"get": PLAIN}}))["testConnection"] == {
        "endpoint": "/v1/users/me",
        "method": "GET",
        "x-guess": True,
    }


# -- choosing


def test_tags_and_operations_choose():
    document = openapi(
        {
            "/a": {"get": {**PLAIN, "tags": ["t"], "operationId": "getA"}, "put": PLAIN},
            "/b": {"get": {**PLAIN, "operationId": "getB"}},
        }
    )

    made = imported(document, tags=["t"], operations=["PUT /a"])
    assert made.report.operations == 2
    assert [
        one["id"] for one in imported(document, operations=["getB", "get_a"]).definition["actions"]
    ] == ["get_a", "get_b"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("chosen", "meant"), [({"tags": ["petz"]}, "pets"), ({"operations": ["getPat"]}, "getPet")]
)
def test_an_unknown_one_is_refused_with_the_nearest(chosen, meant):
    document = openapi({"/a": {"get": {**PLAIN, "tags": ["pets"], "operationId": "getPet"}}})

    with pytest.raises(InputError) as refused:
        imported(document, **chosen)
    assert refused.value.hint == f"did you mean {meant!r}?"


@pytest.mark.parametrize(
    "document", [None, [], "text", {}, {"openapi": "4.0"}, {"swagger": "1.2"}, {"openapi": None}]
)
def test_what_is_no_document_is_refused(document):
    with pytest.raises(InputError):
        imported(document)


@pytest.mark.parametrize("version", [2.0, 2, "2.0", "2"], ids=repr)
def test_a_version_may_be_a_number(version):
    assert (
        definition(swagger({"/x": {"get": PLAIN}}, swagger=version))["x-origin"]["format"]
        == "openapi 2.0"
    )


# -- reading


def read(text: str) -> tuple[Any, list[str]]:
    report = Report()
    return read_text(text.encode(), "it", report), report.guessed


def test_yaml_is_read_as_1_2():
    value, told = read(
        "200: yes\nno: 2024-01-01\n0x10: 0x10\nf: 1.5\nn: ~\nq: '1'\nt: true\nx: !!str 5\n"
    )

    assert value == {
        "200": "yes",
        "no": "2024-01-01",
        "0x10": 16,
        "f": 1.5,
        "n": None,
        "q": "1",
        "t": True,
        "x": "5",
    }
    assert told == []


def test_aliases_are_the_value_they_name_and_merged_keys_yield():
    value, _ = read("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n")

    assert value["b"] == {"y": 3, "x": 1}
    assert value["c"] is value["a"]


def test_an_alias_that_holds_itself_is_left_out_and_told():
    value, told = read("a: &a [1, *a]\n")

    assert value == {"a": [1, None]}
    assert told == ["it: the alias 'a' holds itself; it is left out"]


def test_a_billion_laughs_take_no_room():
    lines = ["a0: &a0 {type: object}"] + [
        f"a{n}: &a{n} {{type: object, properties: {{p: *a{n - 1}, q: *a{n - 1}, r: *a{n - 1}}}}}" for n in range(1, 40)
    ]  # fmt: skip
    schema = "{schema: *a39, example: *a39}"
    lines.append(
        f"paths: {{/x: {{get: {{responses: {{200: {{content: {{application/json: {schema}}}}}}}}}}}}}"
    )
    value, _ = read("\n".join(["openapi: 3.0.0", *lines]))

    made = import_document(File("it", value), "it", Report())

    assert made.definition is not None
    assert len(dumps(made.definition)) < 200_000


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "a: 1\na: 2\n"])
def test_a_key_that_is_there_twice_is_told(text):
    assert read(text) == (
        {"a": 2},
        ["it: the key 'a' is there more than once in a map; the last one counts"],
    )


@pytest.mark.parametrize(
    "text", ["{", "a: [", "a: b: c", "? [a]\n: b", "\x00", "[" * 6_000, "a: \x07", '{"a" 1}']
)
def test_what_is_neither_json_nor_yaml_is_refused(text):
    with pytest.raises(InputError):
        read(text)


def test_deep_json_is_read():
    value, _ = read('{"a":' * 3_000 + "1" + "}" * 3_000)

    assert list(value) == ["a"]


def test_utf_16_and_a_byte_order_mark_are_read():
    assert read_text(b"\xef\xbb\xbfa: 1", "it", Report()) == {"a": 1}
    assert read_text('{"a": "ü"}'.encode("utf-16"), "it", Report()) == {"a": "ü"}
    with pytest.raises(InputError):
        read_text(b'{"a": "\xff"}', "it", Report())


# -- overlays


@pytest.mark.parametrize(
    ("action", "made"),
    [
        ({"target": "$.info", "update": {"title": "New"}}, {"info": {"title": "New"}, "paths": {"/a": {"get": {"tags": ["x"]}, "put": {}}}}),
        ({"target": "$.paths['/a'].put", "remove": True}, {"info": {}, "paths": {"/a": {"get": {"tags": ["x"]}}}}),
        ({"target": "$.paths.*.get.tags", "update": "y"}, {"info": {}, "paths": {"/a": {"get": {"tags": ["x", "y"]}, "put": {}}}}),
        ({"target": "$.paths.*[?(@.tags)]", "update": {"deprecated": True}}, {"info": {}, "paths": {"/a": {"get": {"tags": ["x"], "deprecated": True}, "put": {}}}}),
        ({"target": "$..tags[0]", "remove": True}, {"info": {}, "paths": {"/a": {"get": {"tags": []}, "put": {}}}}),
    ],
)  # fmt: skip
def test_an_overlay_changes(action, made):
    document = {"info": {}, "paths": {"/a": {"get": {"tags": ["x"]}, "put": {}}}}
    overlay.apply(document, {"overlay": "1.0.0", "actions": [action]}, "o", Report())

    assert document == made


def test_an_overlay_without_a_target_is_told_and_one_that_cannot_be_read_refused():
    report = Report()
    overlay.apply(
        {}, {"overlay": "1.0.0", "actions": [{"target": "$.gone", "remove": True}]}, "o", report
    )
    assert report.guessed == ["o: the target '$.gone' is nowhere"]

    for wrong in (
        {"actions": []},
        [],
        {"overlay": "1", "actions": [{"target": "gone"}]},
        {"overlay": "1", "actions": [{"target": "$.a[(x)]"}]},
    ):
        with pytest.raises(InputError):
            overlay.apply({}, wrong, "o", Report())


# -- anything


@pytest.mark.parametrize("name", NASTY)
def test_a_nasty_document_is_whole_and_no_fault_of_ours_is_in_it(name):
    made = imported(NASTY[name])

    assert made.report.imported + len(made.report.skipped) == made.report.operations
    assert not [one for one in made.report.skipped if one.reason.startswith("fault")]
    if made.definition is not None:
        assert_whole(made.definition)


def seeds() -> list[Any]:
    small = heavy(8, 9)
    ref = {"$ref": "#/definitions/A"}
    old = swagger(
        {"/a/{id}": {"parameters": [{"name": "id", "in": "path", "type": "string", "required": True}],
                     "post": {"parameters": [{"name": "b", "in": "body", "schema": ref}, {"name": "l", "in": "query", "type": "array",
                              "items": {"type": "string"}, "collectionFormat": "pipes"}],
                              "responses": {"200": {"schema": ref, "examples": {"application/json": {"a": 1}}, "headers": {"Link": {"type": "string"}}}},
                              "security": [{"k": []}, {"o": ["r"]}]},
                     "put": {"parameters": [{"name": "f", "in": "formData", "type": "file"}]}}},
        definitions={"A": {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 1, "exclusiveMinimum": True},
                     "b": {"allOf": [ref, {"properties": {"c": {"enum": ["x"], "pattern": "^x"}}}]}}}},
        securityDefinitions={"k": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "Bearer <it>"},
                             "o": {"type": "oauth2", "flow": "accessCode", "authorizationUrl": "https://a.example", "tokenUrl": "/t", "scopes": {"r": ""}}},
    )  # fmt: skip
    new = with_operation(
        {"parameters": [{"name": "since", "in": "query", "style": "deepObject", "schema": {"type": ["string", "null"], "default": "x"}, "examples": {"a": {"value": 1}}},
                        {"name": "j", "in": "query", "content": {"application/json": {"schema": {}}}}, {"name": "page", "in": "query"}],
         "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {"type": "object", "properties": {"f": {"format": "binary"},
                         "g": {"type": "array", "items": {"format": "binary"}}}}, "encoding": {"g": {"style": "form", "explode": False}}}}},
         "responses": {"200": {"headers": {"X-RateLimit-Reset": {}}, "links": {"l": {"operationId": "x"}}, "content": {"application/json": {"schema": {
             "type": "array", "items": {"type": "object", "properties": {"id": {}, "updated_at": {"type": "integer"}}}}, "examples": {"a": {"value": [1]}}}}}},
         "callbacks": {"c": {"{$url}": {"post": {"requestBody": {"content": {"application/json": {"schema": {}}}}}}}},
         "servers": [{"url": "https://{r}.example/x", "variables": {"r": {"default": "a", "enum": ["a", "b"]}}}], "tags": ["t"], "x-ms-pageable": {"nextLinkName": "n"}},
        method="get", path="/me/{a}?b={c}", version="3.1.0", webhooks={"w": {"post": {"summary": "W"}}}, security=[{"b": [], "k": []}, {"o": ["r"]}, {}],
        components={"securitySchemes": {"b": {"type": "http", "scheme": "bearer"}, "k": {"type": "apiKey", "in": "query", "name": "k"},
                    "o": {"type": "oauth2", "flows": {"authorizationCode": {"authorizationUrl": "https://a.example", "tokenUrl": "https://a.example/t", "scopes": {"r": "x"}}}}}},
        externalDocs={"url": "https://a.example"},
    )  # fmt: skip
    return [small, old, new, NASTY["cycles"], NASTY["everything twice"]]


SEEDS = [json.dumps(one) for one in seeds()]
INSTEAD = st.sampled_from([
    None, [], {}, 0, -1, 1.5, 10**30, True, False, "", "x", "{", "#/components/schemas/A", "{{ x }}", "ü\u2028", [None], [[]], [{}], {"": None},
    {"$ref": "#"}, {"$ref": "#/paths"}, {"$ref": 7}, {"$ref": "other.yaml#/x"}, {"a": 1}, ["a", "a"], {"type": "object"},
    {"allOf": [{"$ref": "#/components/schemas/A"}, {}]},
])  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """(what holds it, its key or index) of every part of `value`."""
    found = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        inner = (
            one.items()
            if isinstance(one, dict)
            else enumerate(one)
            if isinstance(one, list)
            else ()
        )
        for key, part in inner:
            found.append((one, key))
            waiting.append(part)
    return found


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(SEEDS),
    st.lists(
        st.tuples(st.integers(0, 10**6), st.one_of(st.none(), INSTEAD), st.booleans()),
        min_size=1,
        max_size=6,
    ),
)
def test_a_document_with_anything_anywhere_is_imported_or_refused(text, changes):
    document = json.loads(text)
    for index, instead, is_gone in changes:
        spots = places(document)
        if not spots:
            break
        holder, key = spots[index % len(spots)]
        if is_gone and isinstance(holder, dict):
            del holder[key]
        else:
            holder[key] = copy.deepcopy(instead)

    try:
        made = imported(document)
    except InputError as refused:
        assert refused.code in ("import.no_spec", "import.version")
        return
    assert not [one for one in made.report.skipped if one.reason.startswith("fault")]
    assert made.report.imported + len(made.report.skipped) == made.report.operations
    if made.definition is not None:
        assert_whole(made.definition)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=80),
        st.text(alphabet="{}[]:,-&*a<|>'\"?!#% \n\t1", max_size=60).map(str.encode),
    )
)
def test_any_text_is_read_or_refused(data):
    try:
        dumps(read_text(data, "it", Report()))
    except InputError as refused:
        assert refused.message.startswith("it: ")


def test_an_answer_may_be_open():
    assert output(None) == {}
