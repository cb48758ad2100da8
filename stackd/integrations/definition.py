"""What a connector says of itself: the shape of `connectors/<id>/definition.json`.

The origin's keys are taken as they are written there, in all their spellings (`spellings.py`); ours stand beside
them. Values only: nothing here reads a file or knows what can be run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from stackd.core.json import Json
from stackd.integrations import spellings

APP_ID: Final = r"^[a-z][a-z0-9_-]{0,63}$"
OPERATION_ID: Final = r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$"
METHODS: Final = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")

MAX_PAGES: Final = 50
MAX_ITEMS: Final = 1_000

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def _seconds(value: object) -> object:
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if found is None:
            raise ValueError("must be a duration: a number and ms, s, m, h or d, as 30s")
        return float(found[1]) * _UNITS[found[2]]
    return value


def _upper(value: object) -> object:
    return value.strip().upper() if isinstance(value, str) else value


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


Duration = Annotated[
    float,
    BeforeValidator(_seconds, json_schema_input_type=float | str),
    Field(ge=0, le=366 * 86_400),
]
Method = Annotated[
    Literal["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"],
    BeforeValidator(_upper, json_schema_input_type=Annotated[str, Field(examples=[*METHODS])]),
]
AuthType = Literal["none", "api_key", "bearer", "basic", "session", "oauth2", "signer", "all"]
Encoding = Literal["json", "form", "multipart", "raw", "graphql", "ndjson"]
Style = Literal["form", "brackets", "deepObject", "repeat", "comma"]
PageType = Literal["none", "link", "next_url", "cursor", "offset", "page", "last_id", "handler"]
ErrorClass = Literal[
    "auth", "forbidden", "not_found", "invalid", "conflict",
    "rate_limited", "transient", "permanent", "ignore", "success",
]  # fmt: skip
ResetForm = Literal[
    "delta_s", "delta_ms", "epoch_s", "epoch_ms", "iso8601", "http_date", "duration", "auto"
]
# A status, or a class of them as 4xx.
Status = Annotated[int, Field(ge=100, le=599)] | Annotated[str, Field(pattern="^[1-5]xx$")]
Statuses = Annotated[
    tuple[Status, ...],
    BeforeValidator(_listed, json_schema_input_type=tuple[Status, ...] | Status),
]
Expression = Annotated[str, Field(min_length=1, max_length=2_000)]


class _Part(BaseModel):
    """A piece of a definition. Keys that begin with `x-` may stand in each and mean nothing to it, but for its own."""

    model_config = ConfigDict(alias_generator=to_camel, frozen=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_extensions(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not any(_is_extension(key) for key in given):
            return given
        own = {field.alias for field in cls.model_fields.values()}
        return {key: value for key, value in given.items() if key in own or not _is_extension(key)}


def _is_extension(key: object) -> bool:
    return isinstance(key, str) and key.startswith("x-")


# -- how the far side knows us


class Login(_Part):
    """The request that begins a session."""

    endpoint: str
    method: Method = "POST"
    headers: dict[str, str] = {}
    query: dict[str, Json] = {}
    body: Json = None
    encode: Literal["json", "form"] = "json"


class TokenPaths(_Part):
    """Where the members of a token answer are, dotted."""

    access: str = "access_token"
    refresh: str = "refresh_token"
    expires_in: str = "expires_in"


class ExpiredWhen(_Part):
    """How a far side tells that a token is over: by status, or by what else its answer says."""

    status: Statuses = (401,)
    when: Expression | None = None


class Auth(_Part):
    """One way to sign in. Which keys count depends on `type`; texts may hold `{{ conn.… }}`.

    Attributes:
        place: of an API key: header, query or cookie; `name`: of that.
        value: what is sent; None: the credential's own key or token, by its usual names.
        prefix: before the value, with its blank: `Bearer `, `token `, `Bot `.
        token: an expression: where the answer to `login` has the session's token.
        renew_on: statuses that mean the session is over.
        parts: several at once, of `all`.
    """

    type: AuthType
    place: Annotated[Literal["header", "query", "cookie"], Field(alias="in")] = "header"
    name: str = ""
    prefix: str | None = None
    value: str | None = None
    username: str | None = None
    password: str | None = None
    headers: dict[str, str] = {}
    query: dict[str, str] = {}
    login: Login | None = None
    token: Expression | None = None
    expires_in: Duration | Expression | None = None
    renew_on: Statuses = (401,)
    authorize_url: str | None = None
    token_url: str | None = None
    revoke_url: str | None = None
    scopes: tuple[str, ...] = ()
    scope_separator: str = " "
    grant: Literal["code", "client_credentials", "device", "jwt_bearer", "password"] = "code"
    pkce: Literal["S256", "plain", "off"] = "S256"
    client_auth: Literal["basic", "body", "none"] = "body"
    token_body: Literal["form", "json"] = "form"  # noqa: S105  # how it is written
    authorize_params: dict[str, str] = {}
    token_params: dict[str, str] = {}
    paths: TokenPaths = TokenPaths()
    rotates: bool = False
    refresh_lead: Duration = 300.0
    expired_when: ExpiredWhen = ExpiredWhen()
    capture: dict[str, str] = {}
    signer: str | None = None
    options: dict[str, Json] = {}
    parts: tuple[Auth, ...] = ()
    unsupported: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _respell(cls, given: Any) -> Any:
        return spellings.auth(given)

    @model_validator(mode="after")
    def _is_whole(self) -> Auth:
        missing = {
            "api_key": "name" if not self.name else None,
            "session": "login" if self.login is None else "token" if self.token is None else None,
            "signer": None if self.signer else "signer",
            "all": None if self.parts else "parts",
        }.get(self.type)
        if missing and not self.unsupported:
            raise ValueError(f"type {self.type} needs {missing}")
        return self


class ConnectionTest(_Part):
    """A cheap read that shows whether a credential works. `label`: an expression that names the account."""

    endpoint: str
    method: Method = "GET"
    query: dict[str, Json] = {}
    body: Json = None
    expected_response: Json = None
    label: Expression | None = None


class Connection(_Part):
    """What is to be known of an account. `fields`: a JSON Schema; `x-secret` members go to the vault.

    `test`: another place for the app's `testConnection`.
    """

    fields: dict[str, Any] = {}
    label: str | None = None
    test: ConnectionTest | None = None


# -- how a request is made


class Sent(_Part):
    """What a request has besides its parameters; texts may hold `{{ params.… }}` and `{{ conn.… }}`."""

    query: dict[str, Json] = {}
    headers: dict[str, Json] = {}
    cookies: dict[str, Json] = {}
    body: Json = None


class Spot(_Part):
    """Where in a request a value goes: exactly one of these; `body` is dotted."""

    query: str | None = None
    header: str | None = None
    body: str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Spot:
        if sum(one is not None for one in (self.query, self.header, self.body)) != 1:
            raise ValueError("must name one of query, header and body")
        return self


class PageSize(_Part):
    """How many a page is asked for: at most `max` where that is named."""

    query: str | None = None
    body: str | None = None
    max: Annotated[int, Field(ge=1)] | None = None
    default: Annotated[int, Field(ge=1)] | None = None


class Pagination(_Part):
    """How the next page is found. Expressions read `response` (and `body`, `headers`, `status` of it), `item`, `page`.

    Attributes:
        path: of next_url: where the next address is.
        source: of cursor: where the next cursor is; of last_id: what of the last `item` is sent.
        send: where cursor, offset, number or id go.
        items: where the list is; None: the answer itself, or its only list.
        has_more: an expression; false ends it.
        stop: an expression; true ends it.
        start: the number of the first page, or the first offset.
        stop_short: whether a page of fewer than were asked for is the last.
        is_guess: whether nobody has confirmed it yet; it is not acted on then.
    """

    type: Literal["none", "link", "next_url", "cursor", "offset", "page", "last_id", "handler"] = (
        "none"
    )
    path: Expression | None = None
    source: Annotated[Expression | None, Field(alias="from")] = None
    send: Spot | None = None
    size: PageSize | None = None
    items: Expression | None = None
    has_more: Expression | None = None
    total: Expression | None = None
    stop: Expression | None = None
    stop_short: bool = False
    start: int | None = None
    max_pages: Annotated[int, Field(ge=1, le=1_000)] = MAX_PAGES
    max_items: Annotated[int, Field(ge=1, le=1_000_000)] = MAX_ITEMS
    is_guess: Annotated[bool, Field(alias="x-guess")] = False

    @model_validator(mode="after")
    def _is_whole(self) -> Pagination:
        needed: dict[str, tuple[str, ...]] = {
            "next_url": ("path",),
            "cursor": ("from", "send"),
            "offset": ("send",),
            "page": ("send",),
            "last_id": ("from", "send"),
        }
        given = {"path": self.path, "from": self.source, "send": self.send}
        for name in needed.get(self.type, ()):
            if given[name] is None:
                raise ValueError(f"type {self.type} needs {name}")
        return self


# -- what the far side may say


class Reset(_Part):
    """Where an answer says when to come again, and in which form."""

    header: str | None = None
    body: Expression | None = None
    form: ResetForm = "auto"


class LimitsFrom(_Part):
    """The headers in which a far side tells what is left of its limit."""

    remaining: str | None = None
    limit: str | None = None
    reset: Reset | None = None


class ErrorRule(_Part):
    """One answer that means something else than its status says. All that is given must hold."""

    status: Statuses = ()
    when: Expression | None = None
    as_: Annotated[ErrorClass, Field(alias="as")]
    message: str | None = None
    retry_after: Reset | None = None


class LimitMatch(_Part):
    """Which operations a limit counts: those with all of this."""

    effect: Literal["read", "write"] | None = None
    operations: tuple[str, ...] = ()


class RateLimit(_Part):
    """At most `limit` requests in `per` seconds, up to `burst` of them at once."""

    limit: Annotated[float, Field(gt=0)]
    per: Duration
    burst: Annotated[float, Field(gt=0)] | None = None
    scope: Literal["connection", "connector", "host"] = "connection"
    key: str | None = None
    match: LimitMatch = LimitMatch()


RateLimits = Annotated[
    tuple[RateLimit, ...],
    BeforeValidator(
        spellings.rate_limits, json_schema_input_type=tuple[RateLimit, ...] | dict[str, Any]
    ),
]


class Idempotency(_Part):
    """How the far side tells a request that it had already: by a header, or by a parameter that is sent."""

    header: str | None = None
    param: str | None = None
    body: str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Idempotency:
        if sum(one is not None for one in (self.header, self.param, self.body)) != 1:
            raise ValueError("must name one of header, param and body")
        return self


# -- operations


class Operation(_Part):
    """One action.

    Attributes:
        parameters: a JSON Schema; members may say where they go (`x-in`, `x-as`, `x-style`, `x-explode`, `x-encode`).
        auth: which of the connector's; `none`: nothing is sent; None: as the credential was made for.
        send: what else is sent.
        encode: of the body; None: JSON.
        style: of lists and maps in queries and forms, unless a parameter has its own.
        select: an expression: what of the answer is the output; None: its body.
        response: how the body is read.
        allow_status: of 400 and above that are answers as well.
        transport: of a handler: `own` if it uses another client than `ctx.http`.
    """

    id: str
    name: Annotated[str | None, Field(alias="name")] = None
    title: str | None = None
    description: str | None = None
    hidden: bool = False
    deprecated: bool = False
    parameters: dict[str, Any] = {}
    endpoint: str | None = None
    method: Method | None = None
    base_url: str | None = None
    auth: str | None = None
    effect: Literal["read", "idempotent", "keyed", "unsafe"] | None = None
    idempotency: Idempotency | None = None
    send: Sent = Sent()
    encode: Encoding | None = None
    style: Style | None = None
    graphql: str | None = None
    content_type: str | None = None
    response: Literal["auto", "json", "text", "ndjson", "blob", "none"] = "auto"
    select: Expression | None = None
    allow_status: Statuses = ()
    paginate: Pagination | None = None
    errors: tuple[ErrorRule, ...] = ()
    rate_limits: RateLimits = ()
    timeout: Duration | None = None
    transport: Literal["ctx", "own"] = "ctx"
    output_schema: dict[str, Any] | None = None
    sample: Json = None
    runtimes: Annotated[tuple[str, ...], BeforeValidator(spellings.runtimes)] = ()
    fallback: Json = None
    required_scopes: tuple[str, ...] = ()
    response_fields: Json = None
    error_codes: Json = None
    tags: tuple[str, ...] = ()
    x_origin: Annotated[Json, Field(alias="x-origin")] = None

    @model_validator(mode="before")
    @classmethod
    def _respell(cls, given: Any) -> Any:
        return spellings.operation(given)

    @property
    def has_http(self) -> bool:
        """Whether the generic executor has what it needs."""
        return bool(self.endpoint and self.method)

    @property
    def words(self) -> str:
        """What people call it."""
        return self.title or self.name or self.id


class Trigger(Operation):
    """What starts an execution. How each kind comes to its events is the matter of who runs triggers."""

    type: Literal["webhook", "polling", "poll"] | None = None
    metadata: Json = None
    dedupe: Json = None
    dedupe_key: str | None = None
    items: Expression | None = None
    cursor: Json = None
    order: Literal["asc", "desc"] | None = None
    interval: Json = None
    first_run: Json = None
    emit: Json = None
    detail: Json = None
    verify: Json = None
    handshake: Json = None
    event: Json = None
    respond: Json = None
    subscribe: Json = None
    unsubscribe: Json = None
    catch_up: str | None = None


class Network(_Part):
    """`required_outbound`: hosts it calls besides that of `baseUrl`; they may be sent its credentials."""

    required_outbound: tuple[str, ...] = ()


class Defaults(_Part):
    """What holds for each operation that does not say otherwise."""

    timeout: Duration | None = None
    encode: Encoding | None = None
    style: Style | None = None
    paginate: Pagination | None = None
    send: Sent = Sent()
    errors: tuple[ErrorRule, ...] = ()
    idempotency: Idempotency | None = None


class App(_Part):
    """All of a definition but its operations.

    Attributes:
        hosts: further ones that may be sent its credentials; `*.example.org` is any below it.
        private_network: whether it is made for hosts of the user's own network, which a connection may grant.
        schemas: what parameters may refer to as `#/schemas/<name>`.
    """

    id: Annotated[str, Field(pattern=APP_ID)]
    name: str = ""
    description: str = ""
    category: str | None = None
    categories: tuple[str, ...] = ()
    version: str = "1.0.0"
    stackd: int = 1
    docs: str | None = None
    icon: Json = None
    color: Json = None
    quality: Literal["bronze", "silver", "gold"] | None = None
    authentication: Auth = Auth(type="none")
    auths: dict[str, Auth] = {}
    connection: Connection = Connection()
    base_url: str | None = None
    hosts: tuple[str, ...] = ()
    private_network: bool = False
    headers: dict[str, str] = {}
    test_connection: ConnectionTest | None = None
    rate_limits: RateLimits = ()
    limits_from: LimitsFrom | None = None
    errors: tuple[ErrorRule, ...] = ()
    defaults: Defaults = Defaults()
    network: Network = Network()
    schemas: dict[str, Any] = {}
    availability: str | None = None
    release: Json = None
    schema_version: str | None = None
    pricing_tier: str | None = None
    status: Json = None
    labels: Json = None
    manifest: Json = None
    x_origin: Annotated[Json, Field(alias="x-origin")] = None

    @model_validator(mode="before")
    @classmethod
    def _respell(cls, given: Any) -> Any:
        return spellings.app(given)

    @property
    def ways_in(self) -> Mapping[str, Auth]:
        """Its kinds of authentication by name, the one that is meant where none is named first."""
        return self.auths or {"default": self.authentication}
