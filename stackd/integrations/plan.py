"""One operation, made ready to be asked for: where each parameter goes, what is sent besides, and to whom.

Compiled once from its definition. Pure: parameters and an account in, the parts of a request out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final
from urllib.parse import quote

from yarl import URL

from stackd.core.apps import normal_operation
from stackd.core.errors import ExpressionError, InputError, NodeError
from stackd.core.json import Json, dumps
from stackd.http.egress import matches as covers
from stackd.http.egress import normal_host
from stackd.http.message import Body, FormBody, JsonBody, RawBody, Source
from stackd.http.values import blob_in, blobs_in, multipart_of, scalar
from stackd.integrations import styles
from stackd.integrations.account import NOBODY, Account, way_in
from stackd.integrations.answers import matches
from stackd.integrations.definition import (
    App,
    Auth,
    ErrorRule,
    Idempotency,
    Operation,
    Pagination,
    RateLimit,
    Sent,
)
from stackd.integrations.expressions import scope, template
from stackd.integrations.paging import Turn, at, put
from stackd.integrations.schemas import Schema
from stackd.integrations.signing import fill
from stackd.workflows.expressions import OMIT, Template, parse_template
from stackd.workflows.nodetypes import Effect

WHOLE: Final = "$"  # as a name in a body: all of it
IN_QUERY: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
# Where a default that nobody asked for would overwrite what is there.
UPDATES: Final = frozenset({"PUT", "PATCH"})

_PLACE: Final = re.compile(r"\{([^{}/]+)\}|(?<=/):([A-Za-z_][A-Za-z0-9_]*)(?=/|$)")
_CONN_PLACE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.-]*)\}")
# The host of a base URL that begins with a scheme of its own: up to a slash that is in no expression.
_HOST_OF_TEMPLATE: Final = re.compile(r"https?://((?:\{\{.*?\}\}|[^/{])*)")
_AUTHORITY: Final = re.compile(r"[A-Za-z0-9._~-]+(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a parameter goes. `name`: what it is called there."""

    place: str
    name: str
    style: str | None
    explode: bool | None
    keep_slashes: bool = False


@dataclass(slots=True)
class Parts:
    """A request, but for who signs it. `body`: its members before they are encoded."""

    method: str
    url: str
    query: list[tuple[str, str]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)
    body: Json = None
    has_body: bool = False

    def given(
        self, *, query: str | None = None, header: str | None = None, body: str | None = None
    ) -> Json:
        """What is sent at one place already; None if nothing is. `body`: dotted."""
        if query is not None:
            return next((value for name, value in self.query if name == query), None)
        if header is not None:
            named = ((name.lower(), value) for name, value in self.headers.items())
            return next((value for name, value in named if name == header.lower()), None)
        return None if body is None else at(self.body, body)

    def turned(self, turn: Turn) -> Parts:
        """The same for another page."""
        if turn.url is not None:
            return Parts(
                self.method,
                turn.url,
                [],
                dict(self.headers),
                dict(self.cookies),
                self.body,
                self.has_body,
            )
        query = [pair for pair in self.query if pair[0] not in turn.query] + list(
            turn.query.items()
        )
        body, has_body = self.body, self.has_body
        for place, value in turn.body.items():
            body, has_body = put(body, place, value), True
        return Parts(
            self.method,
            self.url,
            query,
            {**self.headers, **turn.headers},
            dict(self.cookies),
            body,
            has_body,
        )


class Plan:
    """How to ask for one operation.

    Raises (when made):
        InputError: its definition cannot be used; names the place.
    """

    def __init__(self, app: App, operation: Operation) -> None:
        self.app = app
        self.operation = operation
        self.method = operation.method or "POST"  # the origin's default
        self.schema = Schema(
            operation.parameters, app.schemas, fills_only_required=self.method in UPDATES
        )
        self._ways: dict[str | None, Auth] = {}
        self._rules: dict[int, tuple[ErrorRule, ...]] = {}
        self._properties = _properties(operation.parameters, app.schemas)
        self._spots = {name: self._spot(name, schema) for name, schema in self._properties.items()}
        try:
            self._sent = [
                _Extra(one) for one in (app.defaults.send, operation.send) if one != Sent()
            ]
            self._app_headers = {name: parse_template(text) for name, text in app.headers.items()}
            self._endpoint = template(operation.endpoint or "")
        except ExpressionError as error:
            raise InputError(
                f"{app.id}.{operation.id}: {error.message}", code="definition.invalid"
            ) from None

    # -- what it is

    @cached_property
    def effect(self) -> Effect:
        """What asking twice would do: as the definition says, keyed where it says how, else by the method."""
        if self.operation.effect is not None:
            return Effect(self.operation.effect)
        by_method = {
            "GET": Effect.READ, "HEAD": Effect.READ, "OPTIONS": Effect.READ,
            "PUT": Effect.IDEMPOTENT, "DELETE": Effect.IDEMPOTENT,
        }  # fmt: skip
        if self.operation.method is None and not self.operation.endpoint:
            return Effect.UNSAFE
        effect = by_method.get(self.method, Effect.UNSAFE)
        return Effect.KEYED if effect is Effect.UNSAFE and self.idempotency else effect

    @property
    def idempotency(self) -> Idempotency | None:
        return self.operation.idempotency or self.app.defaults.idempotency

    @cached_property
    def paginate(self) -> Pagination | None:
        """How its pages follow each other; None where nobody says so, or only supposes it."""
        given = (
            self.operation.paginate,
            self.app.defaults.paginate if self.effect is Effect.READ else None,
        )
        found = next((one for one in given if one is not None and not one.is_guess), None)
        return None if found is None or found.type in ("none", "handler") else found

    @cached_property
    def shared_limits(self) -> tuple[tuple[int, RateLimit], ...]:
        """The limits of the app that count this operation, with their numbers."""
        kind = "read" if self.effect is Effect.READ else "write"
        return tuple(
            (number, one)
            for number, one in enumerate(self.app.rate_limits)
            if one.match.effect in (None, kind)
            and (not one.match.operations or self.operation.id in one.match.operations)
        )

    def filled(self, text: str, params: Mapping[str, Json]) -> Json:
        """The value of a template over the parameters; None where what it reads is not there."""
        try:
            found = template(text).render(scope({"params": dict(params)}))
        except ExpressionError:
            return None
        return None if found is OMIT else found

    def way_in(self, account: Account) -> Auth:
        """As of the function of that name; looked up once for each way."""
        found = self._ways.get(account.auth)
        if found is None:
            found = self._ways[account.auth] = way_in(self.app, self.operation.auth, account)
        return found

    def rules(self, status: int) -> tuple[ErrorRule, ...]:
        """What may make a failure, or none, of an answer with that status: the operation's own rules first."""
        found = self._rules.get(status)
        if found is None:
            operation, app = self.operation, self.app
            found = self._rules[status] = tuple(
                one
                for one in (*operation.errors, *app.defaults.errors, *app.errors)
                if not one.status or matches(status, one.status)
            )
        return found

    # -- where it goes

    @cached_property
    def _field_defaults(self) -> dict[str, Json]:
        members = self.app.connection.fields.get("properties")
        return {
            name: one["default"]
            for name, one in (members.items() if isinstance(members, dict) else ())
            if isinstance(one, dict) and "default" in one
        }

    def completed(self, account: Account) -> Account:
        """`account` with what it leaves out by the defaults of the connection."""
        if self._field_defaults.keys() <= account.fields.keys():
            return account
        return replace(account, fields={**self._field_defaults, **account.fields})

    def base_url(self, account: Account) -> str:
        """Where the app is, for that account.

        Raises:
            NodeError: nobody says where, or it is no URL.
        """
        return self._fixed_base or self._base_url(self.completed(account))

    @cached_property
    def _fixed_base(self) -> str | None:
        """The base URL where it is the same for every account."""
        written = self.operation.base_url or self.app.base_url
        declared = self.app.connection.fields.get("properties", {})
        if not written or "{" in written or "baseUrl" in declared:
            return None
        return self._base_url(NOBODY)

    def _base_url(self, account: Account) -> str:
        written = self.operation.base_url or self.app.base_url or ""
        own = account.fields.get("baseUrl") or account.fields.get("base_url")
        declared = self.app.connection.fields.get("properties", {})
        is_chosen = own not in (None, "", self._field_defaults.get("baseUrl"))
        if is_chosen and "baseUrl" in declared and "conn." not in written:
            written = str(own)
        written = written or str(own or "")
        if not written:
            raise NodeError(
                f"Connector {self.app.id} lacks baseUrl/endpoint for {self.operation.id}; "
                "let the credential have the field baseUrl",
                kind="invalid",
                code="connector.no_base_url",
            )
        filled = _filled_base(written, account)
        try:
            url = URL(filled)
        except ValueError:
            url = URL()
        if url.scheme not in ("http", "https") or not url.host or url.user is not None:
            raise NodeError(
                f"baseUrl of {self.app.id} is no http or https URL with a host",
                kind="invalid",
                code="connector.bad_base_url",
            )
        return filled.rstrip("/")

    def hosts(self, base_url: str) -> Hosts:
        """Who may be sent the credentials of that app."""
        return self._fixed_hosts if base_url == self._fixed_base else self._hosts(base_url)

    @cached_property
    def _fixed_hosts(self) -> Hosts:
        return self._hosts(self._fixed_base or "")

    def _hosts(self, base_url: str) -> Hosts:
        declared = [*self.app.hosts, *self.app.network.required_outbound]
        if self.operation.base_url is not None and "{" not in self.operation.base_url:
            declared.append(URL(self.operation.base_url).host or "")
        return Hosts(base_url, tuple(one for one in declared if one))

    # -- what is sent

    def parts(self, params: Mapping[str, Json], account: Account, base_url: str) -> Parts:
        """The request for `params`, which the schema has judged.

        Raises:
            NodeError: a placeholder has no value, or one that would lead elsewhere.
        """
        used: set[str] = set()
        url = self._url(params, account, base_url, used)
        parts = Parts(self.method, url)
        members: dict[str, Json] = {}
        whole: Json = None
        if self._fixed_headers is None or self._sent:
            scoped = scope({"params": dict(params), "conn": account.public})
            for extra in self._sent:
                extra.add_to(parts, members, scoped)
            for name, text in self._own_headers(scoped).items():
                parts.headers.setdefault(name, text)
        else:
            parts.headers.update(self._fixed_headers)
        for name, value in params.items():
            if name in used or value is OMIT:
                continue
            spot = self._spots.get(name) or self._spot(name, {})
            match spot.place:
                case "query":
                    parts.query += self._pairs(spot, value)
                case "header":
                    if value is not None:
                        parts.headers[spot.name] = styles.in_header(
                            value, explode=bool(spot.explode)
                        )
                case "cookie":
                    if value is not None:
                        parts.cookies[spot.name] = scalar(value)
                case "body":
                    parts.has_body = True
                    if spot.name == WHOLE:
                        whole = value
                    else:
                        members[spot.name] = value
                case _:
                    pass
        parts.has_body = parts.has_body or bool(members) or self._has_body_spots
        parts.body = whole if whole is not None else members
        if isinstance(whole, dict) and members:
            parts.body = {**members, **whole}
        return parts

    def headers(self, account: Account) -> dict[str, str]:
        """What the app is sent with every request, whoever makes it."""
        return dict(self._fixed_headers or self._own_headers(scope({"conn": account.public})))

    @cached_property
    def _fixed_headers(self) -> dict[str, str] | None:
        """The app's headers, where none has an expression."""
        if not all(text.is_static for text in self._app_headers.values()):
            return None
        return self._own_headers(scope({}))

    def _own_headers(self, scoped: Any) -> dict[str, str]:
        found = {name: _rendered(text, scoped) for name, text in self._app_headers.items()}
        return {name: scalar(value) for name, value in found.items() if value is not OMIT}

    @cached_property
    def _has_body_spots(self) -> bool:
        return self.method not in ("GET", "HEAD") and any(
            spot.place == "body" and spot.name != WHOLE for spot in self._spots.values()
        )

    def _spot(self, name: str, schema: Mapping[str, Any]) -> Spot:
        place = schema.get("x-in")
        true_name = str(schema.get("x-as", name))
        if place is None:
            if normal_operation(true_name) in self._placeholders:
                place = "path"
            else:
                place = "query" if self.method in IN_QUERY else "body"
        explode = schema.get("x-explode")
        return Spot(
            str(place),
            true_name,
            schema.get("x-style"),
            explode if isinstance(explode, bool) else None,
            schema.get("x-encode") == "path",
        )

    @cached_property
    def _placeholders(self) -> frozenset[str]:
        found = _PLACE.findall(self.operation.endpoint or "")
        return frozenset(normal_operation(one or other) for one, other in found)

    def _pairs(self, spot: Spot, value: Json) -> Iterable[tuple[str, str]]:
        style = spot.style or self._style or ("form" if spot.explode is not None else "comma")
        explode = spot.explode
        if explode is None:
            explode = style in ("form", "repeat", "deepObject")
        return styles.pairs(spot.name, value, style, explode=explode)

    @property
    def _style(self) -> str | None:
        return self.operation.style or self.app.defaults.style

    def _url(
        self, params: Mapping[str, Json], account: Account, base_url: str, used: set[str]
    ) -> str:
        written = self.operation.endpoint or ""
        if "{{" in written:
            try:
                path = self._endpoint.render_url(
                    scope({"params": dict(params), "conn": account.public})
                )
            except ExpressionError as error:
                raise NodeError(
                    f"Invalid parameters for {self.app.id}.{self.operation.id}: {error.message}",
                    kind="invalid",
                    code="validation_error",
                ) from None
        elif self._placeholders:
            path = _PLACE.sub(lambda found: self._in_path(found, params, account, used), written)
        else:
            path = written
        if path.startswith(("http://", "https://")):
            return path
        return f"{base_url}/{path.lstrip('/')}" if path not in ("", "/") else f"{base_url}{path}"

    def _in_path(
        self, found: re.Match[str], params: Mapping[str, Json], account: Account, used: set[str]
    ) -> str:
        placeholder = found[1] or found[2]
        key = self._named(placeholder, params)
        if key is not None and params[key] is not None:
            used.add(key)
            value, spot = params[key], self._spots.get(key)
        else:
            value, spot = _among(account.public, placeholder), None
        if value is None or value == "" or value == []:
            raise NodeError(
                f"Invalid parameters for {self.app.id}.{self.operation.id}: {placeholder} is missing; "
                "it is part of the address",
                kind="invalid",
                code="validation_error",
            )
        text = styles.in_path(
            placeholder,
            value,
            (spot.style if spot else None) or "simple",
            explode=bool(spot and spot.explode),
            keep_slashes=bool(spot and spot.keep_slashes),
        )
        if {".", ".."} & set(text.split("/")):
            raise NodeError(
                f"Invalid parameters for {self.app.id}.{self.operation.id}: {placeholder} would lead to "
                "another address",
                kind="invalid",
                code="validation_error",
            )
        return text

    def _named(self, placeholder: str, params: Mapping[str, Json]) -> str | None:
        """The parameter that stands for a placeholder: by the name it is sent as, whatever its case."""
        for name, spot in self._spots.items():
            if spot.place == "path" and spot.name == placeholder and name in params:
                return name
        if placeholder in params:
            return placeholder
        wanted = normal_operation(placeholder)
        return next((name for name in params if normal_operation(name) == wanted), None)

    # -- the body

    def blobs(self, parts: Parts) -> set[str]:
        """The blobs that the body of a request names."""
        if self.encode not in ("multipart", "raw"):
            return set()
        body = parts.body
        return blobs_in(
            list(body.values()) if isinstance(body, dict) and blob_in(body) is None else [body]
        )

    @property
    def encode(self) -> str:
        return self.operation.encode or self.app.defaults.encode or "json"

    def encoded(
        self, parts: Parts, files: Mapping[str, Source], encode: str | None = None
    ) -> Body | None:
        """The body as it is sent, in `encode` or as the operation says; None if there is none.

        Raises:
            NodeError: it cannot be written in that encoding.
        """
        encode = encode or self.encode
        if encode == "graphql":
            variables = parts.body or {}
            return JsonBody(dumps({"query": self.operation.graphql or "", "variables": variables}))
        if not parts.has_body:
            return None
        body, kind = parts.body, self.operation.content_type
        match encode:
            case "form":
                return FormBody(tuple(self._form(body)))
            case "multipart":
                return multipart_of(body if isinstance(body, dict) else {}, files)
            case "ndjson":
                lines = body if isinstance(body, list) else [body]
                text = b"".join(dumps(line) + b"\n" for line in lines)
                return RawBody(text, kind or "application/x-ndjson")
            case "raw":
                return _raw(body, kind, files)
            case _:
                if kind is not None and not kind.startswith("application/json"):
                    return RawBody(dumps(body), kind)
                return JsonBody(dumps(body))

    def _form(self, body: Json) -> Iterable[tuple[str, str]]:
        if not isinstance(body, dict):
            raise NodeError(
                f"Invalid parameters for {self.app.id}.{self.operation.id}: a form is a map",
                kind="invalid",
                code="validation_error",
            )
        by_name = {spot.name: spot for spot in self._spots.values() if spot.place == "body"}
        for name, value in body.items():
            spot = by_name.get(name)
            style = (spot.style if spot else None) or self._style
            if style is None:
                style = "brackets" if _is_nested(value) else "repeat"
            explode = True if spot is None or spot.explode is None else spot.explode
            yield from styles.pairs(name, value, style, explode=explode)


@dataclass(frozen=True, slots=True)
class Hosts:
    """Who may be sent an app's credentials: the host of its base URL, and those it declares."""

    base_url: str
    declared: tuple[str, ...] = ()

    def allows(self, url: URL) -> bool:
        """Whether a request to `url` may carry them: a known host, and never by less than the base's scheme."""
        base = URL(self.base_url)
        host = normal_host(url.raw_host or "")
        if base.scheme == "https" and url.scheme != "https":
            return False
        if host == normal_host(base.raw_host or ""):
            return url.port == base.port or (base.is_default_port() and url.is_default_port())
        return any(
            covers(_bare(rule), host) if rule.startswith("*.") else _bare(rule) == host
            for rule in self.declared
        )


def _bare(rule: str) -> str:
    """A declared host without scheme, port and path."""
    host = rule.partition("://")[2] or rule
    return host.partition("/")[0].partition(":")[0].lower()


class _Extra:
    """What is sent besides the parameters, with its expressions."""

    def __init__(self, sent: Sent) -> None:
        self._query = {name: parse_template(value) for name, value in sent.query.items()}
        self._headers = {name: parse_template(value) for name, value in sent.headers.items()}
        self._cookies = {name: parse_template(value) for name, value in sent.cookies.items()}
        self._body = None if sent.body is None else parse_template(sent.body)

    def add_to(self, parts: Parts, members: dict[str, Json], scoped: Any) -> None:
        for name, text in self._query.items():
            value = _rendered(text, scoped)
            if value is not OMIT and value is not None:
                parts.query = [pair for pair in parts.query if pair[0] != name]
                parts.query += styles.pairs(name, value, "repeat", explode=True)
        for name, text in self._headers.items():
            value = _rendered(text, scoped)
            if value is not OMIT and value is not None:
                parts.headers[name] = scalar(value)
        for name, text in self._cookies.items():
            value = _rendered(text, scoped)
            if value is not OMIT and value is not None:
                parts.cookies[name] = scalar(value)
        if self._body is not None:
            value = _rendered(self._body, scoped)
            parts.has_body = True
            if isinstance(value, dict):
                members.update(value)


def _rendered(text: Template, scoped: Any) -> Json:
    try:
        return text.render(scoped)
    except ExpressionError as error:
        raise NodeError(
            f"the definition asks for what is not there: {error.message}",
            kind="invalid",
            code="definition.expression",
        ) from None


def _raw(body: Json, kind: str | None, files: Mapping[str, Source]) -> RawBody:
    if isinstance(body, dict) and len(body) == 1 and blob_in(body) is None:
        body = next(iter(body.values()))
    if (blob_id := blob_in(body)) is not None:
        own = body.get("contentType") if isinstance(body, dict) else None
        return RawBody(files[blob_id], kind or (str(own) if own else "application/octet-stream"))
    if isinstance(body, str):
        return RawBody(body.encode(), kind or "text/plain; charset=utf-8")
    return RawBody(dumps(body), kind or "application/json")


def _is_nested(value: Json) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(one, dict | list) for one in value)
    )


def _among(fields: Mapping[str, Json], name: str) -> Json:
    if name in fields:
        return fields[name]
    wanted = normal_operation(name)
    return next((value for key, value in fields.items() if normal_operation(key) == wanted), None)


def _bad_host(name: str) -> NodeError:
    return NodeError(
        f"{name} of the credential is no part of a host name",
        kind="invalid",
        code="credential.bad_host",
    )


def _filled_base(written: str, account: Account) -> str:
    """A base URL with the account's fields: `{{ conn.x }}`, or the origin's `{x}`, which is one part of a host or path."""
    if "{{" in written:
        # With or without a slash at its end, `{{ conn.baseUrl }}/api` is the same place.
        fields = {
            name: value.rstrip("/") if isinstance(value, str) and "://" in value else value
            for name, value in account.fields.items()
        }
        own = replace(account, fields=fields)
        if (host := _HOST_OF_TEMPLATE.match(written)) and not _AUTHORITY.fullmatch(
            fill(host[1], own)
        ):
            raise _bad_host("a field")
        return fill(written, own)

    def value_of(found: re.Match[str]) -> str:
        value = _among(account.fields, found[1])
        if value is None or value == "":
            raise NodeError(
                f"the credential has no {found[1]}, which is part of the address",
                kind="invalid",
                code="credential.incomplete",
            )
        text = scalar(value)
        if found.start() == 0:
            return text.rstrip("/")
        before = written[: found.start()]
        if "/" not in before.partition("://")[2] and not _AUTHORITY.fullmatch(text):
            raise _bad_host(found[1])
        return text if "/" not in before.partition("://")[2] else quote(text, safe="")

    return _CONN_PLACE.sub(value_of, written)


def _properties(parameters: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a schema of parameters, through one reference and `allOf`."""
    found: dict[str, Any] = {}
    for part in (parameters, *parameters.get("allOf", ())):
        if not isinstance(part, dict):
            continue
        reference = part.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/schemas/"):
            part = schemas.get(reference.removeprefix("#/schemas/"), {})
        members = part.get("properties") if isinstance(part, dict) else None
        if isinstance(members, dict):
            found |= {
                name: member if isinstance(member, dict) else {} for name, member in members.items()
            }
    return found
