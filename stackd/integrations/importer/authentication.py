"""How a document signs in and where its service is, as a definition's ways in, and what a connection must know for that."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from stackd.core.json import Json
from stackd.integrations.importer.reading import File, Library
from stackd.integrations.importer.report import Report
from stackd.integrations.importer.values import (
    about,
    listing,
    mapping,
    member,
    same,
    text,
    texts,
    unused,
)

PUBLIC: Final = "none"
_PREFIXES: Final = {
    "bearer": "Bearer ", "token": "token ", "bot": "Bot ", "apikey": "ApiKey ", "key": "Key ",
    "api-key": "Api-Key ", "apitoken": "ApiToken ", "sso-key": "sso-key ", "genie": "GenieKey ",
}  # fmt: skip
_SAID: Final = re.compile(
    r"\b(bearer|token|bot|apikey|api-key|apitoken|sso-key)\b[\"'`]?\s*"
    r"(?:[<{\[$(]|x{3,}|[A-Z]?x{4,}|\.\.\.|prefix|followed by|your|<)",
    re.IGNORECASE,
)
_PREPENDED: Final = re.compile(
    r"(?:prefix\w*|prepend\w*|start\w*|begin\w*)\s+(?:\w+\s+){0,3}?[\"'`](\w+)\s?[\"'`]",
    re.IGNORECASE,
)
_VARIABLE: Final = re.compile(r"\{([^{}]+)\}")
_LOCAL: Final = ("localhost", "127.0.0.1", "0.0.0.0", "::1")  # noqa: S104  # names, nothing is bound
MOSTLY: Final = 0.9  # of the operations


class Fields:
    """What is to be known of an account: one JSON Schema, grown member by member."""

    def __init__(self) -> None:
        self.members: dict[str, dict[str, Json]] = {}
        self.required: list[str] = []

    def add(self, name: str, schema: dict[str, Json], *, needed: bool = False) -> str:
        """Where it is, as expressions call it; alike fields are one."""
        others = {key for key, known in self.members.items() if not same(known, schema)}
        wanted = unused(member(name) or "field", others)
        self.members[wanted] = schema
        if needed and wanted not in self.required:
            self.required.append(wanted)
        return f"{{{{ conn.{wanted} }}}}"

    def secret(self, name: str, title: str, words: str = "") -> str:
        schema: dict[str, Json] = {"type": "string", "title": title, "x-secret": True}
        return self.add(name, schema | ({"description": words} if words else {}))

    def plain(self, name: str, title: str) -> str:
        return self.add(name, {"type": "string", "title": title})

    def as_json(self) -> dict[str, Json]:
        if not self.members:
            return {}
        found: dict[str, Json] = {"type": "object", "properties": self.members}
        return found | ({"required": self.required} if self.required else {})


# -- where the service is


class Servers:
    """Base addresses of a document. `hosts`: further ones, of single operations."""

    def __init__(self, fields: Fields, report: Report) -> None:
        self._fields = fields
        self._report = report
        self.hosts: dict[str, None] = {}
        self.asks = False

    def of_swagger(self, root: dict[str, Json]) -> str:
        """From host, basePath and schemes."""
        host = text(root.get("host")).strip("/")
        base = text(root.get("basePath")).rstrip("/")
        base = f"/{base.lstrip('/')}" if base else ""
        schemes = [one.lower() for one in texts(root.get("schemes"))]
        scheme = "http" if "http" in schemes and "https" not in schemes else "https"
        if not host or "/" in host or " " in host:
            return self._asked(base, None)
        return self._placed(f"{scheme}://{host}{base}", {})

    def first(self, servers: Json) -> str:
        """The first of a list of servers; a field of the connection if there is none."""
        usable = [one for one in listing(servers) if isinstance(one, dict) and text(one.get("url"))]
        if not usable:
            return self._asked("", None)
        if len(usable) > 1:
            self._report.guess("servers", f"the first of {len(usable)} is taken")
        return self._placed(text(usable[0]["url"]), mapping(usable[0].get("variables")))

    def own(self, servers: Json, base_url: str) -> str | None:
        """The base address of an operation, where that is another than the document's."""
        usable = [one for one in listing(servers) if isinstance(one, dict) and text(one.get("url"))]
        if not usable:
            return None
        found = self._placed(text(usable[0]["url"]), mapping(usable[0].get("variables")))
        if found == base_url:
            return None
        host = urlsplit(found).netloc.rpartition("@")[2] if "{{" not in found else ""
        if host and host != (urlsplit(base_url).netloc if "{{" not in base_url else ""):
            self.hosts[host.partition(":")[0]] = None
        return found

    def _placed(self, url: str, variables: dict[str, Json]) -> str:
        url = url.partition("#")[0].partition("?")[0].rstrip("/")
        if url.startswith("//"):
            url = f"https:{url}"
        if not _VARIABLE.search(url):
            try:
                parts = urlsplit(url)
                host = parts.hostname
            except ValueError:
                return self._asked("", None)
            if parts.scheme not in ("http", "https") or not host:
                return self._asked(url if url.startswith("/") else f"/{url}" if url else "", None)
            if host in _LOCAL:
                return self._asked(parts.path, f"{parts.scheme}://{parts.netloc}")
            return url
        found = _VARIABLE.sub(
            lambda one: self._variable(one[1], mapping(variables.get(one[1]))), url
        )
        if re.match(r"https?://|\{\{", found):
            return found
        return self._asked(found if found.startswith("/") else f"/{found}", None)

    def _variable(self, name: str, given: dict[str, Json]) -> str:
        schema: dict[str, Json] = {"type": "string", "title": name}
        if choices := texts(given.get("enum")):
            schema["enum"] = list(choices)
        default = text(given.get("default"))
        if default:
            schema["default"] = default
        if words := about(given.get("description")):
            schema["description"] = words
        return self._fields.add(name, schema, needed=not default)

    def _asked(self, path: str, default: str | None) -> str:
        """An address that the document does not know: whoever connects does."""
        self.asks = True
        schema: dict[str, Json] = {
            "type": "string", "format": "uri", "title": "Address",
            "description": "Where the service is, as https://host",
        }  # fmt: skip
        if default:
            schema["default"] = default
        self._report.guess(
            "servers", "the address of the service is a field of the connection, baseUrl"
        )
        return self._fields.add("baseUrl", schema, needed=default is None) + path


# -- how it is signed in to


@dataclass(slots=True)
class _Way:
    """A scheme of the document, or a flow of one, as a way in. `auth` None: it cannot be used."""

    auth: dict[str, Json] | None
    end: str = ""


@dataclass(slots=True)
class Authentication:
    """The ways in of a document, as far as its operations ask for them.

    Attributes:
        ways: by name, the first one the document's own choice.
        names_sent: (place, name) of keys: these are no parameters.
    """

    fields: Fields
    report: Report
    schemes: dict[str, dict[str, Json]] = field(default_factory=dict)
    ways: dict[str, dict[str, Json]] = field(default_factory=dict)
    names_sent: set[tuple[str, str]] = field(default_factory=set)
    root: Json = None
    base_url: str = ""
    ignores_public: bool = False
    _known: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    _scopes: dict[str, dict[str, None]] = field(default_factory=dict)

    def begin(self, root: dict[str, Json], library: Library, file: File) -> None:
        """Read the schemes and what holds where an operation does not say otherwise."""
        given = mapping(mapping(root.get("components")).get("securitySchemes"))
        given = given or mapping(root.get("securityDefinitions"))
        for name, one in given.items():
            scheme, _ = library.resolved(one, file)
            if isinstance(scheme, dict):
                self.schemes[name] = scheme
                if text(scheme.get("type")) == "apiKey" and text(scheme.get("name")):
                    self.names_sent.add((text(scheme.get("in")), text(scheme["name"]).lower()))
        self.root = root.get("security")

    def survey(self, operations: list[dict[str, Json]]) -> None:
        """Know all ways in before the first operation is made: the document's, then those of operations."""
        own = [one.get("security") for one in operations]
        public = sum(isinstance(one, list) and not one for one in own)
        if listing(self.root) and len(own) >= 5 and public >= MOSTLY * len(own):
            self.ignores_public = True
            self.report.guess(
                "security",
                f"{public} of {len(own)} operations say that they are public, though the document names a way in; that is used",
            )
        for requirement in [self.root, *own]:
            for alternative in listing(requirement):
                self._alternative(alternative)
        if not self._known and self.root is None and not any(isinstance(one, list) for one in own):
            for name in self.schemes:
                self._alternative({name: []})
            if self._known:
                self.report.guess(
                    "security", "no operation names a way in; each of the document's is offered"
                )
        if not self.ways and not self.schemes and self.root is None:
            self.ways["bearer"] = self._bearer()
            self.report.guess(
                "security", "the document names no way in; a bearer token is supposed"
            )

    def choice(self, security: Json, place: str) -> tuple[str | None, list[str]]:
        """Which way in an operation has, None for any, and the scopes it needs."""
        if isinstance(security, list) and not [one for one in security if mapping(one)]:
            return (None if self.ignores_public and not security else PUBLIC), []
        if not isinstance(security, list):
            return None, []
        names: dict[str, None] = {}
        scopes: dict[str, None] = {}
        for alternative in security:
            for name in self._alternative(alternative):
                names[name] = None
            for given in mapping(alternative).values():
                scopes |= dict.fromkeys(texts(given))
        if not names:
            self.report.guess(place, "none of its ways in can be used; that of the connection is")
            return None, list(scopes)
        is_one = len(names) == 1 and len(self.ways) > 1
        return (next(iter(names)) if is_one else None), list(scopes)

    def as_json(self) -> dict[str, Json]:
        """`authentication`, and `auths` where there are several."""
        for name, scopes in self._scopes.items():
            for auth in self._oauths(name):
                auth["scopes"] = list(scopes)
        if not self.ways:
            return {"authentication": {"type": "none"}}
        first = next(iter(self.ways.values()))
        if len(self.ways) == 1:
            return {"authentication": first}
        return {"authentication": first, "auths": self.ways}

    def _oauths(self, name: str) -> list[dict[str, Json]]:
        way = self.ways.get(name)
        if way is None:
            return []
        return [one for one in [way, *listing(way.get("parts"))] if one.get("type") == "oauth2"]

    def _alternative(self, alternative: Json) -> list[str]:
        """The names of the ways in that `alternative`, a set of schemes, comes to."""
        given = mapping(alternative)
        key = tuple(sorted(given))
        if not given:
            return []
        if key not in self._known:
            self._known[key] = self._added(list(given))
        for name in self._known[key]:
            for scopes in given.values():
                if texts(scopes):
                    self._scopes.setdefault(name, {}).update(dict.fromkeys(texts(scopes)))
        return self._known[key]

    def _added(self, schemes: list[str]) -> list[str]:
        parts = [self._ways_of(name) for name in schemes]
        if any(not any(way.auth for way in one) for one in parts):
            return []
        base = member("_and_".join(schemes)) or "auth"
        if len(parts) > 1:
            chosen: list[Json] = [next(way.auth for way in one if way.auth) for one in parts]
            return [self._add(base, {"type": "all", "parts": chosen})]
        return [self._add(base + way.end, way.auth) for way in parts[0] if way.auth]

    def _add(self, name: str, auth: dict[str, Json]) -> str:
        for known, one in self.ways.items():
            if same(one, auth):
                return known
        found = unused(name if name != PUBLIC else "auth", self.ways)
        self.ways[found] = auth
        return found

    def _ways_of(self, name: str) -> list[_Way]:
        scheme = self.schemes.get(name)
        if scheme is None:
            self.report.guess(
                "security", f"{name[:80]!r} is named, and nowhere said what it is; it is left out"
            )
            return []
        kind = text(scheme.get("type")).lower()
        words = about(scheme.get("description"))[:300]
        if kind == "apikey":
            return [_Way(self._key(name, scheme, words))]
        if kind == "basic":
            return [_Way(self._basic())]
        if kind == "http":
            return [_Way(self._http(name, scheme, words))]
        if kind == "oauth2":
            return self._oauth2(name, scheme)
        if kind == "openidconnect":
            self.report.guess("security", f"{name}: OpenID Connect is taken for a bearer token")
            return [_Way(self._bearer(words))]
        self.report.guess(
            "security", f"{name}: the type {kind[:40]!r} cannot be used; it is left out"
        )
        return []

    def _bearer(self, words: str = "") -> dict[str, Json]:
        return {"type": "bearer", "value": self.fields.secret("token", "Token", words)}

    def _basic(self) -> dict[str, Json]:
        return {
            "type": "basic",
            "username": self.fields.plain("username", "User name"),
            "password": self.fields.secret("password", "Password"),
        }

    def _key(self, name: str, scheme: dict[str, Json], words: str) -> dict[str, Json] | None:
        sent, place = text(scheme.get("name")), text(scheme.get("in")).lower() or "header"
        if not sent or place not in ("header", "query", "cookie"):
            self.report.guess(
                "security", f"{name}: a key without a name or a place; it is left out"
            )
            return None
        if sent.lower() == "authorization" and place == "header":
            prefix = _prefix(name, text(scheme.get("description")))
            if prefix:
                value = self.fields.secret("token", "Token", words)
                return {"type": "bearer", "prefix": prefix, "value": value}
        value = self.fields.secret("apiKey", f"Key ({sent})", words)
        return {"type": "api_key", "in": place, "name": sent, "value": value}

    def _http(self, name: str, scheme: dict[str, Json], words: str) -> dict[str, Json] | None:
        kind = text(scheme.get("scheme"))
        match kind.lower():
            case "bearer":
                return self._bearer(words)
            case "basic":
                return self._basic()
            case "" | "digest" | "negotiate" | "hoba" | "mutual" | "scram-sha-1" | "scram-sha-256":
                self.report.guess(
                    "security",
                    f"{name}: HTTP {kind or 'without a scheme'} cannot be used; it is left out",
                )
                return None
            case _:
                self.report.guess(
                    "security", f"{name}: HTTP {kind[:40]} is taken for a token with that prefix"
                )
                return {
                    "type": "bearer", "prefix": f"{kind[:40]} ",
                    "value": self.fields.secret("token", "Token", words),
                }  # fmt: skip

    def _oauth2(self, name: str, scheme: dict[str, Json]) -> list[_Way]:
        flows = mapping(scheme.get("flows"))
        if text(scheme.get("flow")):  # 2.0 has one
            flows = {text(scheme["flow"]): scheme}
        found: list[_Way] = []
        for kinds, grant in (
            (("authorizationCode", "accessCode"), "code"),
            (("clientCredentials", "application"), "client_credentials"),
            (("deviceAuthorization",), "device"),
            (("password",), "password"),
        ):
            flow = next((mapping(flows[one]) for one in kinds if mapping(flows.get(one))), None)
            if flow is not None and text(flow.get("tokenUrl")):
                end = f"_{grant}" if found else ""
                found.append(_Way(self._flow(grant, flow), end))
        if not found:
            why = "implicit" if "implicit" in flows else "without a flow that can be used"
            self.report.guess("security", f"{name}: OAuth 2 {why}; it is left out")
        return found

    def _flow(self, grant: str, flow: dict[str, Json]) -> dict[str, Json]:
        self.fields.plain("clientId", "Client id")
        self.fields.secret("clientSecret", "Client secret")
        auth: dict[str, Json] = {"type": "oauth2", "grant": grant}
        if grant == "password":
            auth |= {
                "username": self.fields.plain("username", "User name"),
                "password": self.fields.secret("password", "Password"),
            }
        for ours, theirs in (("authorizeUrl", "authorizationUrl"), ("tokenUrl", "tokenUrl")):
            if url := text(flow.get(theirs)):
                auth[ours] = url if "://" in url else f"{self.base_url}/{url.lstrip('/')}"
        auth["scopes"] = list(mapping(flow.get("scopes")))
        return auth


def _prefix(name: str, description: str) -> str | None:
    """What stands before a key in `Authorization`, if the document says so."""
    found = _PREPENDED.search(description) or _SAID.search(description)
    if found is not None and (known := _PREFIXES.get(found[1].lower())) is not None:
        return known
    if re.search(r"\bbearer\b", description, re.IGNORECASE):
        return "Bearer "
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    if "bearer" in words or "jwt" in words:
        return "Bearer "
    return "Bot " if re.search(r"\bbot\b", words) else None
