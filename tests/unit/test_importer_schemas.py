"""Schemas of OpenAPI as they become JSON Schema 2020-12."""

from __future__ import annotations

import jsonschema_rs
import pytest
from support.any_openapi import (
    NASTY,
    body,
    deep,
    definition,
    imported,
    openapi,
    output,
    with_schema,
)

from stackd.integrations.importer.schemas import is_pattern

REF = "#/components/schemas/"


@pytest.mark.parametrize(
    ("written", "made"),
    [
        ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
        ({"type": "string", "nullable": True, "enum": ["a"]}, {"type": ["string", "null"], "enum": ["a", None]}),
        ({"type": "integer", "minimum": 1, "exclusiveMinimum": True}, {"type": "integer", "exclusiveMinimum": 1}),
        ({"type": "integer", "maximum": 9, "exclusiveMaximum": False}, {"type": "integer", "maximum": 9}),
        ({"type": "string", "example": "x"}, {"type": "string", "examples": ["x"]}),
        ({"type": "string", "maxLength": "10"}, {"type": "string", "maxLength": 10}),
        ({"type": "string", "maxLength": 1.5}, {"type": "string"}),
        ({"type": "string", "pattern": "(a"}, {"type": "string"}),
        ({"type": "string", "pattern": r"^\p{L}+$"}, {"type": "string", "pattern": r"^\p{L}+$"}),
        ({"type": "float"}, {"type": "number"}),
        ({"type": "integer", "default": "1", "example": "2", "enum": ["1", "2", "x"]},
         {"type": "integer", "default": 1, "examples": [2], "enum": [1, 2, "x"]}),
        ({"type": "boolean", "default": "true"}, {"type": "boolean", "default": True}),
        ({"type": "string", "default": "1"}, {"type": "string", "default": "1"}),
        ({"type": "objekt"}, {}),
        ({"type": "array", "items": [{"type": "string"}]}, {"type": "array", "prefixItems": [{"type": "string"}]}),
        ({"type": "object", "additionalProperties": {"type": "string"}},
         {"type": "object", "additionalProperties": {"type": "string"}}),
        ({"type": "object", "x-go-name": "X", "xml": {"name": "x"}}, {"type": "object"}),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}], "nullable": True},
         {"oneOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}),
        ({"oneOf": [{"type": "string"}], "discriminator": {"propertyName": "kind"}},
         {"oneOf": [{"type": "string"}], "x-discriminator": "kind"}),
        ({"type": "string", "enum": ["a", "a"], "deprecated": True},
         {"type": "string", "enum": ["a"], "deprecated": True}),
        ({"not": {"type": "null"}}, {"not": {"type": "null"}}),
        (True, {}),
        (False, {"not": {}}),
    ],
)  # fmt: skip
def test_a_schema_of_3_0_becomes(written, made):
    assert output(written) == made


@pytest.mark.parametrize(
    ("written", "made"),
    [
        ({"type": ["string", "null"]}, {"type": ["string", "null"]}),
        ({"const": 1, "examples": [1, 2]}, {"const": 1, "examples": [1, 2]}),
        ({"type": "integer", "exclusiveMinimum": 1}, {"type": "integer", "exclusiveMinimum": 1}),
        ({"type": "string", "nullable": True}, {"type": "string"}),
        ({"patternProperties": {"^a": {}, "(": {}}}, {"patternProperties": {"^a": {}}}),
        ({"if": {"type": "string"}, "then": {"minLength": 1}}, {"if": {"type": "string"}, "then": {"minLength": 1}}),
        ({"dependentRequired": {"a": ["b"]}}, {"dependentRequired": {"a": ["b"]}}),
    ],
)  # fmt: skip
def test_a_schema_of_3_1_becomes(written, made):
    assert output(written, "3.1.0") == made


def test_a_reference_stays_one_and_only_what_is_referred_to_is_carried_over():
    made = definition(
        with_schema(
            {"$ref": f"{REF}A"}, A={"properties": {"b": {"$ref": f"{REF}B"}}}, B={}, Unused={}
        )
    )

    assert made["actions"][0]["outputSchema"]["$ref"] == "#/schemas/A"
    assert made["schemas"] == {"A": {"properties": {"b": {"$ref": "#/schemas/B"}}}, "B": {}}


def test_what_stands_beside_a_reference_counts_from_3_1_on():
    beside = {"$ref": f"{REF}A", "description": "Which", "minLength": 2}

    assert output(beside, A={"type": "string"}) == {"$ref": "#/schemas/A", "description": "Which"}
    assert output(beside, "3.1.0", A={"type": "string"})["minLength"] == 2
    nullable = output({"$ref": f"{REF}A", "nullable": True}, A={"type": "string"})
    assert nullable == {"anyOf": [{"$ref": "#/schemas/A"}, {"type": "null"}]}


def test_a_cycle_is_cut_at_the_reference():
    made = definition(
        with_schema({"$ref": f"{REF}Node"}, Node={"properties": {"next": {"$ref": f"{REF}Node"}}})
    )

    assert made["schemas"]["Node"] == {"properties": {"next": {"$ref": "#/schemas/Node"}}}


@pytest.mark.parametrize("kind", ["allOf", "anyOf", "oneOf"])
def test_a_schema_that_is_itself_again_comes_to_an_end(kind):
    made = definition(with_schema(
        {"$ref": f"{REF}A"}, A={kind: [{"$ref": f"{REF}B"}, {"type": "object"}]}, B={kind: [{"$ref": f"{REF}A"}]}
    ))  # fmt: skip

    validator = jsonschema_rs.validator_for({"$ref": "#/schemas/A", "schemas": made["schemas"]})
    assert validator.is_valid({}) is (kind != "oneOf")  # both branches take it then


def test_a_reference_that_leads_nowhere_is_told_and_open():
    made = imported(with_schema({"$ref": f"{REF}Gone"}))

    assert output({"$ref": f"{REF}Gone"}) == {}
    assert f"{REF}Gone: leads nowhere; anything is taken there" in made.report.guessed


def test_all_of_becomes_one_schema():
    made = output(
        {
            "allOf": [
                {"$ref": f"{REF}Base"},
                {"type": "object", "required": ["b"], "properties": {"b": {}}},
            ]
        },
        Base={"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}},
    )

    assert made == {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {}},
        "required": ["a", "b"],
    }


def test_what_all_of_cannot_merge_stays_beside_the_rest():
    made = output({"allOf": [{"pattern": "a", "minLength": 1}, {"pattern": "b", "minLength": 2}]})

    assert made == {"pattern": "a", "minLength": 2, "allOf": [{"pattern": "b"}]}
    both = output(
        {
            "allOf": [
                {"properties": {"k": {"type": "string"}}},
                {"properties": {"k": {"enum": ["x"]}}},
            ]
        }
    )
    assert both["properties"]["k"] == {"allOf": [{"type": "string"}, {"enum": ["x"]}]}


def test_all_of_one_reference_is_that_reference_with_its_words():
    made = output({"allOf": [{"$ref": f"{REF}A"}], "description": "Which"}, A={"type": "object"})

    assert made == {"$ref": "#/schemas/A", "description": "Which"}


def test_read_only_is_no_part_of_a_request_and_write_only_none_of_an_answer():
    user = {
        "type": "object", "required": ["id", "name"],
        "properties": {"id": {"type": "integer", "readOnly": True}, "name": {"type": "string"},
                       "password": {"type": "string", "writeOnly": True}, "friend": {"$ref": f"{REF}User"}},
    }  # fmt: skip
    content = {"application/json": {"schema": {"$ref": f"{REF}User"}}}
    made = definition(
        openapi({"/u": {"post": {"requestBody": {"content": content}, "responses": {"200": {"content": content}}}}},
                components={"schemas": {"User": user}})
    )  # fmt: skip

    action = made["actions"][0]
    assert list(action["parameters"]["properties"]) == ["name", "password", "friend"]
    assert action["parameters"]["required"] == ["name"]
    assert action["parameters"]["properties"]["friend"]["$ref"] == "#/schemas/UserRequest"
    assert list(made["schemas"]["UserRequest"]["properties"]) == ["name", "password", "friend"]
    assert list(made["schemas"]["User"]["properties"]) == ["id", "name", "friend"]


def test_a_schema_that_is_alike_in_both_is_there_once():
    content = {"application/json": {"schema": {"type": "array", "items": {"$ref": f"{REF}A"}}}}
    made = definition(
        openapi({"/u": {"post": {"requestBody": {"content": content}, "responses": {"200": {"content": content}}}}},
                components={"schemas": {"A": {"type": "object"}}})
    )  # fmt: skip

    assert list(made["schemas"]) == ["A"]


def test_over_2000_schemas_the_rest_is_open_and_told():
    wide = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(3_000)}}
    made = imported(with_schema(wide))

    assert made.definition is not None
    members = made.definition["actions"][0]["outputSchema"]["properties"]
    assert (members["p0"], members["p2999"]) == ({"type": "string"}, {})
    assert sum("over 2,000 schemas" in one for one in made.report.guessed) == 1


def test_500_levels_are_cut_and_told():
    made = imported(with_schema(deep(500)))

    assert made.report.imported == 1
    assert any("60 in each other" in one for one in made.report.guessed)


def test_two_schemas_of_one_name_are_kept_apart():
    made = definition(
        openapi(
            {"/a": {"get": {"responses": {"200": {"content": {"application/json": {"schema": {"anyOf": [
                {"$ref": "#/components/schemas/A"}, {"$ref": "#/x-more/A"}]}}}}}}}},
            components={"schemas": {"A": {"type": "string"}}}, **{"x-more": {"A": {"type": "integer"}}},
        )
    )  # fmt: skip

    assert made["schemas"] == {"A": {"type": "string"}, "A_2": {"type": "integer"}}


@pytest.mark.parametrize(
    "pattern", ["[", "(?<n>", "*", "/a/", "a" * 2_000, 7, None, "a{99999999999}"]
)
def test_is_no_pattern(pattern):
    assert not is_pattern(pattern)


@pytest.mark.parametrize("name", NASTY)
def test_every_schema_of_a_nasty_document_is_one_of_2020_12(name):
    made = imported(NASTY[name]).definition or {"actions": []}

    for action in made["actions"]:
        for schema in (action["parameters"], action["outputSchema"]):
            jsonschema_rs.Draft202012Validator({**schema, "schemas": made.get("schemas", {})})


def test_a_base_that_leads_back_is_no_endless_merge():
    made = body({"$ref": f"{REF}A"}, components={"schemas": {
        "A": {"allOf": [{"$ref": f"{REF}B"}, {"properties": {"a": {}}}]},
        "B": {"allOf": [{"$ref": f"{REF}A"}, {"properties": {"b": {}}}]}}})  # fmt: skip

    assert made["encode"] == "json"
