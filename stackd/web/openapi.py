"""`/api/openapi.json`: the description of this API, made of its routes and models (OpenAPI 3.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Final

from aiohttp import web
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from stackd import __version__
from stackd.access.tokens import Scope
from stackd.client.models import Model, ProblemView
from stackd.core.json import dumps
from stackd.web.problem import CONTENT_TYPE
from stackd.web.route import JSON, Content, Query, Route, Schema, Shape, contents_of

Body = Shape | tuple[Content, ...]

ROUTES_OF: Final[web.AppKey[tuple[Route, ...]]] = web.AppKey("routes", tuple)

_PARAMETER: Final = re.compile(r"\{([a-zA-Z]+)(:[^{}]*)?\}")
_PREFIX: Final = "#/components/schemas/"
_METHODS: Final = {"*": ("get", "post", "put", "patch", "delete")}


async def show_openapi(request: web.Request) -> web.Response:
    """The description; the same for as long as the process runs."""
    text = _text(request.app[ROUTES_OF])
    return web.Response(body=text, content_type=JSON)


@cache
def _text(routes: tuple[Route, ...]) -> bytes:
    return dumps(describe(routes))


def describe(routes: Iterable[Route]) -> Schema:
    """The OpenAPI document of `routes`."""
    told = list(routes)
    models = _Models(told)
    paths: dict[str, Schema] = {}
    for route in told:
        place = paths.setdefault(_PARAMETER.sub(r"{\1}", route.path), {})
        for method in _METHODS.get(route.method, (route.method.lower(),)):
            place[method] = _operation(route, method, models)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "stackd",
            "version": __version__,
            "description": "Durable workflow automation on one box. Errors are RFC 9457 problems with a stable code.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": models.schemas,
            "responses": {
                "Problem": {
                    "description": "It could not be done: why, and what to do about it",
                    "content": {CONTENT_TYPE: {"schema": models.reference(ProblemView)}},
                }
            },
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "made with `stackd token create`; the daemon's own user needs none over its Unix socket",
                }
            },
        },
    }


class _Models:
    """The schemas of all models that the routes name."""

    def __init__(self, routes: Iterable[Route]) -> None:
        wanted: dict[type[Model], JsonSchemaMode] = {ProblemView: "serialization"}
        for route in routes:
            wanted |= dict.fromkeys(_models_in(route.takes), "validation")
            for shape in route.gives.values():
                wanted |= dict.fromkeys(_models_in(shape), "serialization")
        self._references, whole = models_json_schema(
            list(wanted.items()), by_alias=True, ref_template=_PREFIX + "{model}"
        )
        self._modes = wanted
        self.schemas: Schema = dict(sorted(whole.get("$defs", {}).items()))

    def reference(self, model: type[Model]) -> Schema:
        found: Any = self._references[model, self._modes[model]]
        return dict(found)


def _models_in(shape: Body) -> list[type[Model]]:
    schemas = [content.schema for content in contents_of(shape)]
    return [schema for schema in schemas if isinstance(schema, type)]


def _operation(route: Route, method: str, models: _Models) -> Schema:
    operation: Schema = {
        "operationId": _id(route, method),
        "summary": route.about,
        "tags": [_tag(route.path)],
        "parameters": list(_parameters(route)),
        "responses": {
            **{str(status): _answer(shape, models) for status, shape in route.gives.items()},
            "default": {"$ref": "#/components/responses/Problem"},
        },
    }
    if route.needs is None:
        operation["security"] = []
    else:
        operation["security"] = [{"token": []}]
        operation["description"] = f"Needs the scope `{route.needs.value}`."
    if route.takes is not None and method != "get":
        operation["requestBody"] = {
            "required": not route.takes_nothing,
            "content": _content(route.takes, models),
        }
    return operation


def _id(route: Route, method: str) -> str:
    name = route.handler.__name__.strip("_")
    return name if route.method != "*" else f"{name}_{method}"


def _tag(path: str) -> str:
    first, *rest = [part for part in path.split("/") if part]
    return rest[0].removesuffix(".json") if first == "api" else "health"


def _parameters(route: Route) -> Iterator[Schema]:
    for found in _PARAMETER.finditer(route.path):
        yield {"name": found[1], "in": "path", "required": True, "schema": {"type": "string"}}
    yield from (_parameter(query, "query") for query in route.query)
    yield from (_parameter(header, "header") for header in route.headers)


def _parameter(query: Query, place: str) -> Schema:
    return {
        "name": query.name,
        "in": place,
        "required": False,
        "description": query.about,
        "schema": query.schema,
    }


def _answer(shape: Body, models: _Models) -> Schema:
    answer: Schema = {"description": "It was done"}
    if shape is not None:
        answer["content"] = _content(shape, models)
    return answer


def _content(shape: Body, models: _Models) -> Schema:
    return {
        kind: {"schema": models.reference(s) if isinstance(s := content.schema, type) else s}
        for content in contents_of(shape)
        for kind in content.types
    }


ROUTES: Final = (
    Route(
        "GET", "/api/openapi.json", show_openapi, Scope.READ, "This description",
        {200: Content((JSON,), {"type": "object"})},
    ),
)  # fmt: skip
