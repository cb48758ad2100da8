"""What an operation takes: parameters, bodies and paths, as members of one schema that say where they go."""

from __future__ import annotations

import pytest
from support.any_openapi import (
    NASTY,
    PLAIN,
    action,
    body,
    definition,
    imported,
    openapi,
    swagger,
    with_operation,
)

ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}


def members(document, index=0):
    return action(document, index)["parameters"]["properties"]


def query(parameter, **more):
    return members(
        with_operation(
            {"parameters": [{"name": "q", "in": "query", **parameter}]}, method="get", **more
        )
    )["q"]


def test_each_member_says_where_it_goes():
    parameters = [
        ID,
        *(
            {"name": place, "in": place, "schema": {"type": "string"}}
            for place in ("query", "header", "cookie")
        ),
    ]
    made = members(with_operation({"parameters": parameters}, path="/x/{id}", method="get"))

    assert {key: one["x-in"] for key, one in made.items()} == {
        "id": "path", "query": "query", "header": "header", "cookie": "cookie",
    }  # fmt: skip


def test_what_is_required_is():
    parameters = [ID, {"name": "a", "in": "query", "required": True}, {"name": "b", "in": "query"}]

    assert action(with_operation({"parameters": parameters}, path="/x/{id}"))["parameters"][
        "required"
    ] == ["id", "a"]


def test_the_operation_wins_over_the_path_by_name_and_place():
    given = [
        {"name": "a", "in": "query", "schema": {"type": kind}} for kind in ("string", "integer")
    ]
    document = openapi(
        {
            "/x": {
                "parameters": [given[0], {"name": "a", "in": "header"}],
                "get": {"parameters": [given[1]], **PLAIN},
            }
        }
    )

    assert members(document) == {
        "a": {"type": "integer", "x-in": "query"},
        "header_a": {"x-in": "header", "x-as": "a"},
    }


def test_names_in_conflict_get_keys_of_their_own():
    made = members(NASTY["everything twice"])

    assert {key: one.get("x-as") for key, one in made.items()} == {
        "id": None, "query_id": "id", "header_id": "id", "cookie_id": "id", "body_id": "id",
        "body_query_id": "query_id", "body_body_id": "body_id",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("DateSent<", "DateSent_lt"),
        ("filter[a]", "filter[a]"),
        ("a b", "a_b"),
        ("$top", "$top"),
        ("ü", "u"),
        ("名", "field"),
    ],
)
def test_a_name_that_is_none_becomes_one(name, key):
    made = members(with_operation({"parameters": [{"name": name, "in": "query"}]}))

    assert made == {key: {"x-in": "query"} | ({} if key == name else {"x-as": name})}


@pytest.mark.parametrize(
    ("given", "style", "explode"),
    [
        ({}, "form", True), ({"explode": False}, "form", False), ({"style": "spaceDelimited", "explode": False}, "spaceDelimited", False),
        ({"style": "pipeDelimited"}, "pipeDelimited", False), ({"style": "deepObject"}, "deepObject", True), ({"style": "odd"}, "form", True),
    ],
)  # fmt: skip
def test_lists_say_how_they_are_written(given, style, explode):
    made = query({"schema": {"type": "array", "items": {"type": "string"}}, **given})

    assert (made["x-style"], made["x-explode"]) == (style, explode)


def test_one_value_says_it_only_where_it_is_not_the_usual_way():
    assert query({"schema": {"type": "string"}}) == {"type": "string", "x-in": "query"}
    label = [{**ID, "style": "label"}]
    assert (
        members(with_operation({"parameters": label}, path="/x/{id}"))["id"]["x-style"] == "label"
    )


@pytest.mark.parametrize(
    ("collection", "style", "explode"),
    [(None, "form", False), ("csv", "form", False), ("ssv", "spaceDelimited", False), ("pipes", "pipeDelimited", False), ("multi", "form", True)],
)  # fmt: skip
def test_collection_format_of_2_0_is_a_style(collection, style, explode):
    given = {"name": "q", "in": "query", "type": "array", "items": {"type": "string"}}
    made = members(
        swagger(
            {
                "/x": {
                    "get": {
                        "parameters": [
                            given | ({"collectionFormat": collection} if collection else {})
                        ]
                    }
                }
            }
        )
    )["q"]

    assert (made["type"], made["x-style"], made["x-explode"]) == ("array", style, explode)


def test_a_parameter_that_is_json_says_so():
    made = query({"content": {"application/json": {"schema": {"type": "object"}}}})

    assert made == {"type": "object", "x-style": "json", "x-in": "query"}


def test_a_parameter_of_another_type_is_its_text():
    made = query({"content": {"application/xml": {"schema": {"type": "object"}}}})

    assert made == {
        "type": "string",
        "contentMediaType": "application/xml",
        "contentSchema": {"type": "object"},
        "x-in": "query",
    }


def test_headers_that_are_ours_and_keys_are_no_parameters():
    names = ["Authorization", "accept", "Content-Type", "X-Key", "X-Other"]
    document = with_operation(
        {"parameters": [{"name": name, "in": "header"} for name in names]},
        components={
            "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "x-key"}}
        },
    )

    assert list(members(document)) == ["X-Other"]


# -- paths


@pytest.mark.parametrize(
    ("path", "endpoint", "names"),
    [
        ("/a/{b}.{c}", "/a/{b}.{c}", ["b", "c"]),
        ("/{id}:cancel", "/{id}:cancel", ["id"]),
        ("/files/{id}#add", "/files/{id}", ["id"]),
        ("/a{?b,c*}", "/a", ["b", "c"]),
        ("a/{repo-id}", "/a/{repo-id}", ["repo-id"]),
        ("/{ü}", "/{u}", ["u"]),
        ("/{a}/{a}", "/{a}/{a}", ["a"]),
    ],
)
def test_a_path_becomes(path, endpoint, names):
    made = action(openapi({path: {"get": PLAIN}}))

    assert (made["endpoint"], list(made["parameters"]["properties"])) == (endpoint, names)


@pytest.mark.parametrize("path", ["/{+p}", "/{p*}", "/{p=**}", "/{p:.*}"])
def test_a_placeholder_for_several_parts_keeps_its_slashes(path):
    made = action(openapi({path: {"get": PLAIN}}))

    assert made["endpoint"] == "/{p}"
    assert made["parameters"]["properties"]["p"]["x-encode"] == "path"


def test_a_part_with_a_colon_is_a_placeholder_where_it_is_described():
    made = definition(
        openapi({"/a/:id": {"get": {**PLAIN, "parameters": [ID]}}, "/a/:batch": {"get": PLAIN}})
    )

    assert [one["endpoint"] for one in made["actions"]] == ["/a/{id}", "/a/%3Abatch"]


def test_a_query_in_a_path_is_sent():
    made = action(openapi({"/a?b=c&d={e}": {"get": PLAIN}}))

    assert (made["endpoint"], made["send"]) == ("/a", {"query": {"b": "c"}})
    assert made["parameters"]["required"] == ["d"]


@pytest.mark.parametrize("path", ["/{", "/}", "/{}", "/{a{b}}"])
def test_a_path_that_cannot_be_filled_in_is_skipped_with_its_reason(path):
    made = imported(openapi({path: {"get": PLAIN}}))

    assert made.definition is None
    assert [one.operation for one in made.report.skipped] == [f"GET {path}"]
    assert "fault" not in made.report.skipped[0].reason


def test_a_placeholder_that_nobody_describes_is_told():
    made = imported(openapi({"/{id}": {"get": PLAIN}}))

    assert (
        "GET /{id}: the placeholder 'id' is described nowhere; a text is taken"
        in made.report.guessed
    )


# -- bodies


def test_a_small_object_is_flattened_and_its_required_fields_are():
    made = body(
        {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}, "b": {}}}
    )

    assert made["encode"] == "json"
    assert "contentType" not in made
    assert made["parameters"]["properties"] == {
        "a": {"type": "string", "x-in": "body"},
        "b": {"x-in": "body"},
    }
    assert made["parameters"]["required"] == ["a"]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {}},
        {"type": "object", "properties": {f"p{n}": {} for n in range(31)}},
        {"type": "object", "properties": {"a": {}}, "additionalProperties": True},
        {"oneOf": [{"type": "object"}]},
        {"type": "object"},
        {"type": "string"},
    ],
    ids=["list", "large", "open", "branches", "any", "text"],
)
def test_another_body_is_one_parameter(schema):
    made = body(schema)["parameters"]

    assert list(made["properties"]) == ["body"]
    assert (made["properties"]["body"]["x-in"], made["properties"]["body"]["x-as"]) == ("body", "$")
    assert made["required"] == ["body"]


def test_a_default_of_a_field_that_may_be_missing_is_the_far_sides_own():
    made = body(
        {
            "type": "object",
            "required": ["a"],
            "properties": {"a": {"default": 1}, "b": {"default": 2}},
        }
    )

    assert made["parameters"]["properties"]["a"] == {"default": 1, "x-in": "body"}
    assert made["parameters"]["properties"]["b"] == {"x-default": 2, "x-in": "body"}
    assert query({"schema": {"default": "x"}}) == {"default": "x", "x-in": "query"}
    assert query({"schema": {"default": ""}}) == {"x-default": "", "x-in": "query"}


def test_thirty_fields_are_flattened_still():
    assert (
        len(
            body({"type": "object", "properties": {f"p{n}": {} for n in range(30)}})["parameters"][
                "properties"
            ]
        )
        == 30
    )


def test_fields_of_a_body_that_may_be_missing_are_not_required():
    content = {
        "application/json": {
            "schema": {"type": "object", "required": ["a"], "properties": {"a": {}}}
        }
    }

    assert (
        "required"
        not in action(with_operation({"requestBody": {"required": False, "content": content}}))[
            "parameters"
        ]
    )


@pytest.mark.parametrize(
    ("media", "encode", "content_type"),
    [
        ("application/json; charset=utf-8", "json", None),
        ("application/vnd.api+json", "json", "application/vnd.api+json"),
        ("application/x-www-form-urlencoded", "form", None),
        ("multipart/form-data", "multipart", None),
        ("text/plain", "raw", "text/plain"),
        ("application/octet-stream", "raw", "application/octet-stream"),
        ("application/x-ndjson", "ndjson", "application/x-ndjson"),
        ("*/*", "json", None),
    ],
)
def test_a_body_is_written_as(media, encode, content_type):
    made = body({"type": "object", "properties": {"a": {}}}, media)

    assert (made["encode"], made.get("contentType")) == (encode, content_type)


@pytest.mark.parametrize(
    ("schema", "sent"),
    [
        ({"enum": ["application/x-tar"]}, "application/x-tar"),
        ({"default": "application/gzip", "enum": ["a/b", "c/d"]}, "application/gzip"),
        ({"enum": ["a/b", "c/d"]}, "application/octet-stream"),
    ],
    ids=["all it may be", "its default", "several"],
)
def test_a_raw_body_is_of_the_type_that_the_header_parameter_names(schema, sent):
    made = action(with_operation({
        "parameters": [{"name": "Content-type", "in": "header", "schema": schema}],
        "requestBody": {"content": {"application/octet-stream": {"schema": {}}}},
    }))  # fmt: skip

    assert made["contentType"] == sent


def test_of_several_media_types_json_comes_first_and_the_choice_is_told():
    content = {
        name: {"schema": {"type": "object", "properties": {"a": {}}}}
        for name in ("application/xml", "multipart/form-data", "application/json")
    }
    made = action(with_operation({"requestBody": {"content": content}}))

    assert (made["encode"], made["x-encode"]) == ("json", list(content))


def test_binary_parts_are_files():
    made = body(
        {"type": "object", "properties": {"a": {"type": "string", "format": "binary"}, "b": {"type": "string"},
         "c": {"type": "array", "items": {"type": "string", "format": "binary"}}}}, "multipart/form-data",
    )["parameters"]["properties"]  # fmt: skip

    assert [one.get("x-file") for one in made.values()] == [True, None, True]


def test_a_form_says_how_its_fields_are_written():
    content = {"application/x-www-form-urlencoded": {
        "schema": {"type": "object", "properties": {"a": {"type": "object"}}}, "encoding": {"a": {"style": "deepObject", "explode": True}}}}  # fmt: skip
    made = members(with_operation({"requestBody": {"content": content}}))["a"]

    assert (made["x-style"], made["x-explode"]) == ("deepObject", True)


@pytest.mark.parametrize("method", ["get", "head"])
def test_a_read_has_no_body_where_that_is_empty(method):
    content = {
        "application/x-www-form-urlencoded": {"schema": {"type": "object", "properties": {}}}
    }
    made = action(with_operation({"requestBody": {"content": content}}, method=method))

    assert "encode" not in made


def test_a_body_and_a_form_of_2_0():
    parameters = [
        {
            "in": "body",
            "name": "pet",
            "required": True,
            "schema": {"type": "array", "items": {"type": "string"}},
        }
    ]
    fields = [
        {"in": "formData", "name": "a", "type": "string", "required": True},
        {"in": "formData", "name": "f", "type": "file"},
    ]
    made = definition(
        swagger(
            {
                "/a": {
                    "post": {"parameters": parameters},
                    "put": {"parameters": fields},
                    "patch": {"parameters": fields[:1]},
                }
            }
        )
    )
    whole, parts, form = made["actions"]

    assert whole["parameters"]["properties"] == {
        "body": {"type": "array", "items": {"type": "string"}, "x-in": "body", "x-as": "$"}
    }
    assert (parts["encode"], parts["parameters"]["properties"]["f"]["x-file"]) == (
        "multipart",
        True,
    )
    assert (form["encode"], form["parameters"]["required"]) == ("form", ["a"])
