"""OpenAPI documents to try the importer with: whole ones in small, nasty ones, heavy ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stackd.integrations.importer.document import Imported, import_document
from stackd.integrations.importer.reading import File
from stackd.integrations.importer.report import Report

PLAIN = {"responses": {"200": {"description": "Fine"}}}


def openapi(paths: Any = None, version: str = "3.0.3", **more: Any) -> dict[str, Any]:
    """A document of OpenAPI 3 with these paths."""
    return {
        "openapi": version,
        "info": {"title": "Tried", "version": "7"},
        "servers": [{"url": "https://api.example.com/v1/"}],
        "paths": {} if paths is None else paths,
        **more,
    }


def swagger(paths: Any = None, **more: Any) -> dict[str, Any]:
    """A document of Swagger 2.0 with these paths."""
    return {
        "swagger": "2.0",
        "info": {"title": "Tried", "version": "7"},
        "host": "api.example.com",
        "basePath": "/v1",
        "schemes": ["http", "https"],
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "paths": {} if paths is None else paths,
        **more,
    }


def imported(document: Any, folder: Path | None = None, **chosen: Any) -> Imported:
    """What `document` comes to; it lies in `folder`, if files beside it matter."""
    path = folder / "spec.json" if folder else None
    return import_document(File("spec.json", document, path), "tried", Report(), **chosen)


def definition(document: Any, **chosen: Any) -> dict[str, Any]:
    made = imported(document, **chosen).definition
    assert made is not None
    return made


def action(document: Any, index: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = definition(document)["actions"][index]
    return found


def with_operation(
    operation: dict[str, Any], path: str = "/things", method: str = "post", **more: Any
) -> dict[str, Any]:
    """A document of OpenAPI 3 with one operation."""
    return openapi({path: {method: {**PLAIN, **operation}}}, **more)


def with_schema(schema: Any, version: str = "3.0.3", **schemas: Any) -> dict[str, Any]:
    """A document whose only operation answers with `schema`."""
    answer = {"200": {"description": "", "content": {"application/json": {"schema": schema}}}}
    return openapi(
        {"/it": {"get": {"responses": answer}}}, version, components={"schemas": schemas}
    )


def output(schema: Any, version: str = "3.0.3", **schemas: Any) -> dict[str, Any]:
    """What `schema` becomes, as an answer."""
    found = dict(action(with_schema(schema, version, **schemas))["outputSchema"])
    assert found.pop("$schema") == "https://json-schema.org/draft/2020-12/schema"
    return found


def body(
    schema: Any, media: str = "application/json", version: str = "3.0.3", **more: Any
) -> dict[str, Any]:
    """The action of a POST that takes `schema`."""
    content = {media: {"schema": schema}}
    return action(
        with_operation(
            {"requestBody": {"required": True, "content": content}}, version=version, **more
        )
    )


# -- nasty ones


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def cycle() -> dict[str, Any]:
    ref = {"$ref": "#/components/schemas/A"}
    return {
        "A": {
            "allOf": [
                {"$ref": "#/components/schemas/B"},
                {"type": "object", "properties": {"a": ref}},
            ]
        },
        "B": {"allOf": [ref, {"properties": {"b": {"$ref": "#/components/schemas/B"}}}]},
        "C": {"$ref": "#/components/schemas/D"},
        "D": {"$ref": "#/components/schemas/C"},
        "E": {"type": "array", "items": {"$ref": "#/components/schemas/E"}},
    }


def answering(schema: Any) -> dict[str, Any]:
    return {"responses": {"200": {"content": {"application/json": {"schema": schema}}}}}


NASTY: dict[str, Any] = {
    "cycles": openapi(
        {f"/{name}": {"post": answering({"$ref": f"#/components/schemas/{name}"}) | {
            "requestBody": {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}}}
         for name in "ABCDE"},
        components={"schemas": cycle()},
    ),
    "deep": openapi({"/deep": {"get": answering(deep(500))}, "/fine": {"get": PLAIN}}),
    "deep reference": openapi({"/deep": {"get": answering({"$ref": "#/components/schemas/Deep"})}},
                              components={"schemas": {"Deep": deep(500)}}),
    "ids": openapi({f"/{n}": {"get": {"operationId": name, **PLAIN}} for n, name in enumerate(
        ["same", "same", "Same", "sa-me", "", None, 7, "ü", "名前", "a/b.c", "x" * 300, "x" * 301, "get_", "_", {"a": 1}])}),
    "templates": openapi({path: {"get": PLAIN} for path in [
        "/a/{b}.{c}", "/{id}:cancel", "/a#frag", "/a#other", "/a?b=c&d={e}", "/a{?f,g*}", "/{+rest}", "/{a-b}/{a.b}/{a_b}",
        "no-slash", "/{", "/}", "/{}", "/{a{b}}", "", "/", "//", "/ü/{ö}", "/{a}/{a}", "/{p*}", "/{p=**}", "x-not", "/%7Ba%7D"]}),
    "nulls": openapi({"/a": None, "/b": {"get": None}, "/c": {"get": {}}, "/d": {"parameters": None, "get": {
        "parameters": [None, {}, {"name": None, "in": "query"}, {"name": "q", "in": "query", "schema": None}],
        "requestBody": None, "responses": None, "tags": None, "security": None, "servers": None}}},
        components=None, security=None, tags=None),
    "lists": openapi([]),
    "empty": openapi({}),
    "numbers as texts": openapi({"/a": {"get": answering(
        {"type": "string", "maxLength": "10", "minLength": "x", "pattern": "(", "enum": "a"})}}),
    "old bodies": swagger({"/a": {"post": {"parameters": [
        {"in": "body", "name": "body", "schema": {"type": "array", "items": {"type": "string"}}},
        {"in": "body", "name": "other", "schema": {}}], "responses": {200: {"schema": {"type": "file"}}}}}}),
    "types": with_schema({"type": "objekt", "properties": [1], "required": True, "allOf": [None, 1, "x", {}], "oneOf": {}}),
    "everything twice": with_operation({"parameters": [
        {"name": "id", "in": place, "schema": {"type": "string"}} for place in ("path", "query", "header", "cookie")],
        "requestBody": {"content": {"application/json": {"schema": {"type": "object", "properties": {
            "id": {}, "query_id": {}, "body_id": {}}}}}}}, path="/x/{id}"),
}  # fmt: skip


def heavy(operations: int, schemas: int = 1_500) -> dict[str, Any]:
    """A document of megabytes whose operations share schemas that all refer to each other."""
    words = "What this is for, and when one would rather not use it, at some length. " * 4
    named = {
        f"Thing{n}": {
            "type": "object",
            "description": words,
            "required": ["id"],
            "properties": {
                "id": {"type": "integer", "readOnly": n % 7 == 0},
                "name": {
                    "type": "string",
                    "maxLength": 80,
                    "description": words,
                    "example": "a name",
                },
                **{
                    f"link{m}": {"$ref": f"#/components/schemas/Thing{(n * 31 + m * 97) % schemas}"}
                    for m in range(12)
                },
                "many": {
                    "type": "array",
                    "items": {"$ref": f"#/components/schemas/Thing{(n + 1) % schemas}"},
                },
                "either": {
                    "oneOf": [
                        {"$ref": f"#/components/schemas/Thing{(n + k) % schemas}"}
                        for k in (2, 3, 5)
                    ]
                },
            },
            **({"allOf": [{"$ref": f"#/components/schemas/Thing{n - 1}"}]} if n % 5 == 4 else {}),
        }
        for n in range(schemas)
    }
    paths: dict[str, Any] = {}
    for n in range(operations):
        ref = {"$ref": f"#/components/schemas/Thing{n % schemas}"}
        query = [
            {
                "name": f"filter{k}",
                "in": "query",
                "description": words,
                "schema": {"type": "string"},
            }
            for k in range(6)
        ]
        paths.setdefault(f"/things{n // 2}/{{id}}", {})["get" if n % 2 else "put"] = {
            "operationId": f"things/do-{n}", "description": words * 2, "tags": [f"tag{n % 40}"],
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}, *query],
            **({} if n % 2 else {"requestBody": {"content": {"application/json": {"schema": ref}}}}),
            "responses": {"200": {"description": words, "content": {"application/json": {"schema": {
                "type": "object", "properties": {"data": {"type": "array", "items": ref}, "next_cursor": {"type": "string"}}}}}}},
        }  # fmt: skip
    return openapi(paths, components={"schemas": named})


def as_json(document: Any) -> bytes:
    return json.dumps(document).encode()
