"""What a way of signing in adds to a request. Pure, but for signers that read the time they are given."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from stackd.core.errors import ExpressionError, NodeError
from stackd.core.json import Json
from stackd.http.values import scalar
from stackd.integrations.account import KEYS, PASSWORDS, TOKENS, USERNAMES, Account, first
from stackd.integrations.definition import Auth
from stackd.integrations.expressions import scope, template

HASHES: Final = {"sha256": hashlib.sha256, "sha1": hashlib.sha1, "sha512": hashlib.sha512}


@dataclass(frozen=True, slots=True)
class Signed:
    """What is added to a request; `secrets`: texts of it that nobody may read."""

    headers: dict[str, str] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)

    def joined(self, other: Signed) -> Signed:
        return Signed(
            self.headers | other.headers, self.query | other.query, self.cookies | other.cookies
        )


@dataclass(frozen=True, slots=True)
class Draft:
    """A request before it is signed, as signers see it. `body`: its bytes; empty for what is read from a file."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    now: float


Signer = Callable[[Auth, Account, Draft], Signed]


def signed(
    auth: Auth, account: Account, draft: Callable[[], Draft], *, token: str | None = None
) -> Signed:
    """What `auth` adds. `draft`: asked where the request itself is signed; `token`: of a session or of OAuth.

    Raises:
        NodeError: the credential lacks what is needed; names the field.
    """
    found = _by_type(auth, account, draft, token)
    if not (auth.headers or auth.query):
        return found
    return found.joined(
        Signed(
            {name: fill(text, account) for name, text in auth.headers.items()},
            {name: fill(text, account) for name, text in auth.query.items()},
        )
    )


def _by_type(auth: Auth, account: Account, draft: Callable[[], Draft], token: str | None) -> Signed:
    match auth.type:
        case "none":
            return Signed()
        case "api_key":
            value = _value(auth, account, KEYS, "apiKey")
            return _placed(auth, auth.name, f"{auth.prefix or ''}{value}")
        case "bearer" | "oauth2":
            value = token or _value(
                auth, account, TOKENS, "accessToken" if auth.type == "oauth2" else "token"
            )
            prefix = "Bearer " if auth.prefix is None else auth.prefix
            return _placed(auth, auth.name or "Authorization", f"{prefix}{value}")
        case "session":
            value = token or ""
            prefix = auth.prefix or ""
            return _placed(auth, auth.name or "Authorization", f"{prefix}{value}")
        case "basic":
            pair = f"{_user(auth, account)}:{_password(auth, account)}"
            text = base64.b64encode(pair.encode()).decode()
            return Signed({"Authorization": f"Basic {text}"})
        case "signer":
            signer = SIGNERS.get(auth.signer or "")
            if signer is None:
                raise NodeError(
                    f"there is no signer {auth.signer!r}; there is {', '.join(SIGNERS)}",
                    kind="invalid",
                    code="credential.unknown_signer",
                )
            return signer(auth, account, draft())
        case "all":
            more = Signed()
            for part in auth.parts:
                more = more.joined(signed(part, account, draft, token=token))
            return more


def _placed(auth: Auth, name: str, value: str) -> Signed:
    if auth.place == "query":
        return Signed(query={name: value})
    if auth.place == "cookie":
        return Signed(cookies={name: value})
    return Signed(headers={name: value})


def _value(auth: Auth, account: Account, names: tuple[str, ...], usual: str) -> str:
    if auth.value is not None:
        return fill(auth.value, account)
    found = first(account.fields, names)
    if found is None:
        raise missing(usual)
    return found


def _user(auth: Auth, account: Account) -> str:
    if auth.username is not None:
        return fill(auth.username, account)
    found = first(account.fields, USERNAMES)
    if found is None:
        raise missing("username")
    return found


def _password(auth: Auth, account: Account) -> str:
    if auth.password is not None:
        return fill(auth.password, account)
    return first(account.fields, PASSWORDS) or ""


def missing(name: str) -> NodeError:
    return NodeError(
        f"unauthorized: the credential has no {name}; nothing was sent",
        kind="invalid",
        code="credential.incomplete",
    )


def fill(text: str, account: Account) -> str:
    """`text` with the fields of the account in place of `{{ conn.x }}` and of `{x}`.

    Raises:
        NodeError: it has no such field.
    """
    if "{{" in text:
        try:
            value: Json = template(text).render(scope({"conn": dict(account.fields)}))
        except ExpressionError as error:
            raise NodeError(
                f"unauthorized: the credential lacks what it is used with ({error.message}); nothing was sent",
                kind="invalid",
                code="credential.incomplete",
            ) from None
        return scalar(value)
    if "{" not in text:
        return text
    filled = text
    for name, value in account.fields.items():
        filled = filled.replace(f"{{{name}}}", scalar(value))
    return filled


def _hmac(auth: Auth, account: Account, draft: Draft) -> Signed:
    """A keyed hash over parts of the request.

    Options: `header`; `secret` (a field); `text`, a template of `method url path body timestamp`; `hash`;
    `encoding` hex or base64; `prefix`; `timestampHeader`.
    """
    options = auth.options
    secret = fill(str(options.get("secret", "{{ conn.secret }}")), account)
    digestmod = HASHES.get(str(options.get("hash", "sha256")))
    if digestmod is None:
        raise NodeError(
            f"hmac: hash must be one of {', '.join(HASHES)}",
            kind="invalid",
            code="credential.bad_signer",
        )
    timestamp = str(int(draft.now))
    facts: dict[str, Json] = {
        "method": draft.method,
        "url": draft.url,
        "path": "/" + draft.url.partition("://")[2].partition("/")[2],
        "body": draft.body.decode("utf-8", "surrogateescape"),
        "timestamp": timestamp,
    }
    text = str(options.get("text", "{{ body }}"))
    told = scalar(template(text).render(scope(facts)))
    digest = hmac.new(secret.encode(), told.encode("utf-8", "surrogateescape"), digestmod).digest()
    shown = (
        base64.b64encode(digest).decode() if options.get("encoding") == "base64" else digest.hex()
    )
    headers = {str(options.get("header", "X-Signature")): f"{options.get('prefix', '')}{shown}"}
    if "timestampHeader" in options:
        headers[str(options["timestampHeader"])] = timestamp
    return Signed(headers)


SIGNERS: Final[dict[str, Signer]] = {"hmac": _hmac}
