"""An addon of mitmproxy that answers by the path: what goes wrong between a client and a server, by a proxy of others."""

from __future__ import annotations

from collections import Counter

from mitmproxy import ctx, http

asked: Counter[str] = Counter()


def request(flow: http.HTTPFlow) -> None:
    name = flow.request.path.partition("?")[0].strip("/")
    asked[name] += 1
    match name.split("/"):
        case ["count", *rest]:
            flow.response = http.Response.make(200, str(asked["/".join(rest)]))
        case ["reset", *_]:
            flow.kill()
        case ["status", code, *more]:
            headers = {"Retry-After": more[0]} if more else {}
            flow.response = http.Response.make(int(code), b'{"message": "by the proxy"}', headers)
            flow.response.headers["Content-Type"] = "application/json"
        case ["once", _] if asked[name] == 1:
            flow.response = http.Response.make(429, b"", {"Retry-After": "0"})
        case ["twice-named"]:
            flow.response = http.Response.make(200, b"{}", {"Content-Type": "application/json"})
            flow.response.headers.set_all("Set-Cookie", ["a=1", "b=2"])
        case ["packed"]:
            flow.response = http.Response.make(
                200, b'{"ok": true}', {"Content-Type": "application/json"}
            )
            flow.response.encode("gzip")
        case ["not-packed"]:
            flow.response = http.Response.make(
                200, b'{"ok": true}', {"Content-Type": "application/json"}
            )
            flow.response.headers["Content-Encoding"] = "gzip"
        case ["half-json"]:
            flow.response = http.Response.make(
                200, b'{"ok": tr', {"Content-Type": "application/json"}
            )
        case ["silent"]:
            flow.intercept()
        case _:
            flow.response = http.Response.make(
                200, b'{"ok": true}', {"Content-Type": "application/json"}
            )


def running() -> None:
    ctx.options.termlog_verbosity = "warn"
