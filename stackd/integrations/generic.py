"""The generic executor: any operation whose definition says where it is and how, asked for over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from yarl import URL

from stackd.core.errors import InputError, NodeError
from stackd.core.json import Json, loads_strict
from stackd.http.exchange import Answer, Situation, exchange, opened
from stackd.http.message import Body, JsonBody, RawBody, Request, Response, Source
from stackd.http.reading import is_json
from stackd.integrations.account import Account
from stackd.integrations.answers import failure, limit_of, matches
from stackd.integrations.definition import Auth, Pagination
from stackd.integrations.expressions import Reader
from stackd.integrations.paging import Pages
from stackd.integrations.plan import Hosts, Parts, Plan
from stackd.integrations.signing import Draft, signed

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})  # RFC 9110, 9.2.1
PAGES_TOGETHER: Final = (
    16  # outputs of the largest size that the pages of one list may take in memory
)
LONGEST_ERROR: Final = 64 * 1024  # bytes of an answer that is read for its words
WORDS: Final = {"ndjson": "text", "none": "text"}  # how a body is read before it is taken apart


class Try(Situation, Protocol):
    """One try of a node, as operations see it."""

    @property
    def idempotency_key(self) -> str | None: ...

    @property
    def sent(self) -> bool: ...

    @property
    def unsafe(self) -> bool: ...

    @property
    def timeout(self) -> float: ...

    @property
    def max_bytes(self) -> int: ...

    async def turn(self) -> None:
        """Return when the next request may go."""

    def acted(self) -> None:
        """Called once the far side has done a part: what fails after it may not begin all of it again."""

    def exhausted(self, seconds: float) -> None:
        """Called where an answer says that nothing is left of a limit for so long."""


class GenericExecutor:
    """Asks for operations by their plans.

    `tokens`: keeps the tokens of sessions and of OAuth.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def execute(
        self, plan: Plan, params: Mapping[str, Json], account: Account, situation: Try
    ) -> Json:
        """The output of one operation: what it selects of the answer; a list as `{items, meta}`.

        Raises:
            NodeError: it failed, and whether the far side may have seen it.
            NotFoundError: a blob that was to be sent is not there; nothing was sent.
        """
        caller = Caller(plan, account, situation, self._tokens)
        parts = plan.parts(params, caller.account, caller.base_url)
        mark(plan, parts, situation.idempotency_key)
        rules = plan.paginate
        if rules is None:
            answer = await caller.ask(parts)
            return _listed(_output(plan, caller.read(answer, params)))
        pages = Pages(rules, size=_size(rules, parts), begin=_begin(plan, rules, parts))
        held = 0
        turn: Any = pages.first()
        parts = parts.turned(turn)
        while True:
            url = parts.url
            answer = await caller.ask(parts, is_last=False)
            held += len(answer.response.body)
            if held > PAGES_TOGETHER * situation.max_bytes:
                raise _too_many_pages(plan, pages.count + 1, held)
            reader = caller.read(answer, params)
            turn = pages.take(str(answer.response.url) or url, reader)
            if turn is None:
                break
            if turn.url is not None and not caller.hosts.allows(URL(turn.url)):
                raise foreign(plan, turn.url, "the next page", sent=True)
            parts = parts.turned(turn)
        situation.on_answered()
        if pages.count == 1 and not pages.found and reader.body is not None:
            return _listed(_output(plan, reader))
        meta: dict[str, Json] = {"count": len(pages.items), "pages": pages.count}
        if pages.reason is not None:
            meta["truncated"] = pages.reason
        return {"items": pages.items, "meta": meta}


class Caller:
    """Makes requests for one operation and one account: signed, to its hosts only, and judged."""

    def __init__(
        self,
        plan: Plan,
        account: Account,
        situation: Try,
        tokens: Tokens,
        *,
        encode: str | None = None,
    ) -> None:
        self.plan = plan
        self.account = plan.completed(account)
        self.situation = situation
        self._tokens = tokens
        self._encode = encode
        self._hosts: Hosts | None = None
        self._public = self.account.public

    @property
    def base_url(self) -> str:
        return self.plan.base_url(self.account)

    @property
    def hosts(self) -> Hosts:
        if self._hosts is None:
            self._hosts = self.plan.hosts(self.base_url)
        return self._hosts

    @property
    def _auth(self) -> Auth:
        return self.plan.way_in(self.account)

    def asking_as(self, encode: str) -> Caller:
        """The same, whose bodies are written so whatever the operation says."""
        return Caller(self.plan, self.account, self.situation, self._tokens, encode=encode)

    async def ask(self, parts: Parts, *, is_last: bool = True) -> Answer:
        """Send one request, a second time with a new token where the first is over; its answer, which is one.

        Raises:
            NodeError: as of the generic executor.
        """
        if not self.hosts.allows(_url(parts.url)):
            raise foreign(self.plan, parts.url, "the request", sent=False)
        auth = self._auth
        token = await self._tokens.current(auth, self.account, self)
        if token is None:
            answer = await self._send(parts, None, lambda _: is_last)
        else:
            # While another request may follow, the time of the try runs on.
            answer = await self._send(
                parts, token, lambda status: is_last and not self._tokens.may_be_over(auth, status)
            )
            if self._tokens.may_be_over(auth, answer.response.status):
                answer = await self._send_again(parts, token, answer, is_last=is_last)
        self._judge(answer)
        if parts.method not in SAFE:
            self.situation.acted()
        return answer

    async def _send_again(
        self, parts: Parts, over: str, answer: Answer, *, is_last: bool
    ) -> Answer:
        """The answer to another token; the same one where there is none, or `over` is not over after all."""
        if self._tokens.is_over(self._auth, answer):
            token = await self._tokens.renewed(self._auth, self.account, self, over=over)
            if token is not None:
                return await self._send(parts, token, lambda _: is_last)
        if is_last:
            self.situation.on_answered()
        return answer

    async def _send(
        self, parts: Parts, token: str | None, is_last: Callable[[int], bool]
    ) -> Answer:
        names = self.plan.blobs(parts) if self._encode is None else set()
        if not names:
            return await self._exchange(parts, {}, token, is_last)
        async with opened(self.situation.blobs, names) as files:
            return await self._exchange(parts, files, token, is_last)

    async def _exchange(
        self,
        parts: Parts,
        files: Mapping[str, Source],
        token: str | None,
        is_last: Callable[[int], bool],
    ) -> Answer:
        plan, situation = self.plan, self.situation
        body = plan.encoded(parts, files, self._encode)

        def draft() -> Draft:
            return Draft(
                parts.method, parts.url, parts.headers, _bytes_of(body), situation.clock.time()
            )

        more = signed(self._auth, self.account, draft, token=token)
        headers = {**parts.headers, **more.headers}
        cookies = {**parts.cookies, **more.cookies}
        if cookies:
            headers["Cookie"] = _cookies(cookies)
        wanted = plan.operation.response if self._encode is None else "auto"
        return await self.send(
            Request(
                method=parts.method,
                url=parts.url,
                query=_query([*parts.query, *more.query.items()])
                if parts.query or more.query
                else None,
                headers=headers,
                body=body,
                timeout=min(situation.timeout, self._timeout),
                max_response_bytes=situation.max_bytes,
                fresh_connection=situation.unsafe,
                carries_to=self.hosts.allows,
                grants_private=plan.app.private_network and self.account.grants_private,
            ),
            wanted=WORDS.get(wanted, wanted),
            is_last=is_last,
        )

    @property
    def _timeout(self) -> float:
        return self.plan.operation.timeout or self.plan.app.defaults.timeout or 3600.0

    async def send(
        self, request: Request, *, wanted: str, is_last: Callable[[int], bool]
    ) -> Answer:
        allowed = self.plan.operation.allow_status
        await self.situation.turn()
        answer = await exchange(
            request,
            self.situation,
            wanted=wanted,
            is_answer=lambda status: status < 400 or matches(status, allowed),
            is_last=is_last,
        )
        if answer.body is None and answer.response.body:
            return Answer(answer.response, _body_of(answer.response), answer.unread)
        return answer

    def _judge(self, answer: Answer) -> None:
        plan, situation = self.plan, self.situation
        reader = self.read(answer, {})
        now = situation.clock.time()
        left = limit_of(answer.response, reader, plan.app.limits_from, now=now)
        if left.remaining == 0 and left.reset:
            situation.exhausted(left.reset)
        error = failure(
            answer.response,
            reader,
            plan.rules(answer.response.status),
            app=plan.app.id,
            allowed=plan.operation.allow_status,
            limits=plan.app.limits_from,
            now=now,
        )
        if error is not None:
            raise error
        if answer.unread is not None and plan.operation.response in ("auto", "json"):
            raise answer.unread

    def read(self, answer: Answer, params: Mapping[str, Json]) -> Reader:
        return Reader(
            answer.response,
            answer.body,
            {"params": params, "conn": self._public},
            now=self.situation.clock.time(),
        )


class Tokens(Protocol):
    """Keeps what is fetched once and sent with many requests: tokens of sessions and of OAuth."""

    async def current(self, auth: Auth, account: Account, caller: Caller) -> str | None:
        """The token to send; None where that way of signing in has none."""

    def may_be_over(self, auth: Auth, status: int) -> bool:
        """Whether an answer of that status may say that the token is over."""

    def is_over(self, auth: Auth, answer: Answer) -> bool:
        """Whether an answer says that the token is over."""

    async def renewed(
        self, auth: Auth, account: Account, caller: Caller, *, over: str
    ) -> str | None:
        """Another token than `over`; None if there is none to be had."""


def _too_many_pages(plan: Plan, count: int, held: int) -> NodeError:
    return NodeError(
        f"{plan.app.id}.{plan.operation.id}: {count} pages together are {held:,} bytes; ask for fewer at a time",
        kind="limit",
        code="response.too_large",
        sent=True,
        answered=True,
    )


def foreign(plan: Plan, url: str, what: str, *, sent: bool) -> NodeError:
    host = _url(url).host or "?"
    return NodeError(
        f"{what} of {plan.app.id}.{plan.operation.id} leads to {host}, which is none of its hosts; "
        "its credentials were not sent there",
        kind="rejected",
        code="egress.foreign_host",
        sent=sent,
        answered=sent,
    )


def _cookies(cookies: Mapping[str, str]) -> str:
    """The header of these (RFC 6265, 4.2.1); a value that would read as another cookie is refused, not sent."""
    for name, value in cookies.items():
        if ";" in value:
            raise NodeError(
                f"cookie {name} holds a semicolon, where another cookie would begin; nothing was sent",
                kind="invalid",
                code="http.bad_cookie",
            )
    return "; ".join(f"{name}={value}" for name, value in cookies.items())


def _url(text: str) -> URL:
    try:
        return URL(text)
    except ValueError:
        return URL()


def mark(plan: Plan, parts: Parts, key: str | None) -> None:
    """Put the idempotency key where the far side looks for it: its own place, else the header of that name."""
    if key is None:
        return
    own = plan.idempotency
    if own is None or own.header is not None:
        name = "Idempotency-Key" if own is None else str(own.header)
        if name.lower() not in map(str.lower, parts.headers):
            parts.headers[name] = key
    elif own.body is not None:
        if parts.body is not None and not isinstance(parts.body, dict):
            raise NodeError(
                f"the idempotency key of {plan.app.id}.{plan.operation.id} is a member of its body "
                f"({own.body}), and the body is no map; nothing was sent",
                kind="invalid",
                code="operation.no_key",
            )
        parts.body = {**(parts.body or {}), own.body: key}
        parts.has_body = True


def _size(rules: Pagination, parts: Parts) -> int | None:
    """How many a page is asked for: what the parameters say, else as many as there may be."""
    size = rules.size
    if size is None:
        return None
    given = _whole(parts.given(query=size.query, body=size.body))
    if given is not None and given > 0:
        return given if size.max is None else min(given, size.max)
    return size.default or size.max


def _begin(plan: Plan, rules: Pagination, parts: Parts) -> int | None:
    """The page or offset that the parameters ask for.

    Raises:
        NodeError: it is no number that could be counted on from.
    """
    spot = rules.send
    if rules.type not in ("page", "offset") or spot is None:
        return None
    given = parts.given(query=spot.query, header=spot.header, body=spot.body)
    number = _whole(given)
    if given is not None and number is None:
        raise NodeError(
            f"Invalid parameters for {plan.app.id}.{plan.operation.id}: "
            f"{spot.query or spot.header or spot.body} must be a whole number, to count on from",
            kind="invalid",
            code="validation_error",
        )
    return number


def _whole(value: Json) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _output(plan: Plan, reader: Reader) -> Json:
    operation = plan.operation
    if operation.response == "none":
        return None
    if operation.response == "ndjson" and isinstance(reader.body, str):
        reader.body = _lines(reader.body)
    if operation.select is None:
        return reader.body
    return reader.value(operation.select)


def _lines(text: str) -> list[Json]:
    try:
        return [loads_strict(line.encode()) for line in text.split("\n") if line.strip()]
    except InputError as error:
        raise NodeError(
            f"answered with a line that is no JSON: {error.message}",
            kind="invalid",
            code="response.bad_line",
            sent=True,
            answered=True,
        ) from None


def _listed(output: Json) -> Json:
    """A list as `{items, meta}`; anything else as it is."""
    return {"items": output, "meta": {"count": len(output)}} if isinstance(output, list) else output


def _body_of(response: Response) -> Json:
    """The body of a refused answer as JSON, if it is; for what it says."""
    if len(response.body) > LONGEST_ERROR or not is_json((response.content_type or "").lower()):
        return None
    try:
        return loads_strict(response.body)
    except InputError:
        return None


def _bytes_of(body: Body | None) -> bytes:
    match body:
        case JsonBody(content):
            return content
        case RawBody(content, _) if isinstance(content, bytes):
            return content
        case _:
            return b""


def _query(pairs: Sequence[tuple[str, str]]) -> dict[str, str | list[str]] | None:
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return {
        name: values[0] if len(values) == 1 else values for name, values in found.items()
    } or None


__all__ = ["Caller", "GenericExecutor", "Tokens", "Try", "foreign", "mark"]
