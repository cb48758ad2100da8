"""What failures of the library below mean for a node: one table, from aiohttp's errors to ours."""

from __future__ import annotations

import errno
import socket
import ssl

import aiohttp

from stackd.core.errors import NodeError


def place(url: str) -> str:
    """Scheme, host and path of a URL: what may stand in a message."""
    bare = url.partition("?")[0].partition("#")[0]
    scheme, mark, rest = bare.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{mark}{authority.rpartition('@')[2]}{slash}{path}"[:200]


def proxy_refused(url: str, status: int, *, sent: bool) -> NodeError:
    kind, code, words = _of_proxy(status)
    return NodeError(f"{place(url)}: {words}", kind=kind, code=code, sent=sent, answered=sent)


def _of_proxy(status: int) -> tuple[str, str, str]:
    """What a refusal of the proxy means: as `meaning`."""
    if status == 407:
        return "rejected", "http.proxy_auth", "the proxy does not take our credentials (407)"
    kind = "network" if status >= 500 else "rejected"
    return kind, "http.proxy_refused", f"the proxy answered {status}"


def translated(error: Exception, url: str, *, sent: bool, proxied: bool) -> NodeError:
    """What a failure of the library below means for a node. Every ClientError has a row in `meaning`."""
    kind, code, words = meaning(error)
    if proxied and not sent and code in ("http.reset", "http.bad_response"):
        kind, code, words = "network", "http.proxy_failed", f"at the proxy, {words}"
    return NodeError(f"{place(url)}: {words}", kind=kind, code=code, sent=sent)


def meaning(error: Exception) -> tuple[str, str, str]:
    """(kind, code, words). Order matters: special classes before the ones they derive from."""
    match error:
        case aiohttp.ClientConnectorDNSError() | socket.gaierror():
            return "network", "http.dns", "the name cannot be resolved"
        case aiohttp.ClientConnectorCertificateError() | ssl.SSLCertVerificationError():
            return (
                "rejected",
                "http.certificate",
                f"its certificate is not accepted ({_cause(error)})",
            )
        case aiohttp.ClientSSLError() | aiohttp.ServerFingerprintMismatch() | ssl.SSLError():
            return "network", "http.tls", f"TLS failed ({_cause(error)})"
        case aiohttp.ConnectionTimeoutError():
            return "timeout", "http.connect_timeout", "no connection in time"
        case aiohttp.ServerTimeoutError():
            return "timeout", "http.timeout", "no answer in time"
        case aiohttp.ClientProxyConnectionError():
            return "network", "http.proxy_connect", f"no connection to the proxy ({_cause(error)})"
        case aiohttp.ClientHttpProxyError():
            return _of_proxy(getattr(error, "status", 0))
        case aiohttp.ClientConnectorError():
            return "network", "http.connect", f"no connection ({_cause(error)})"
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError() | aiohttp.RedirectClientError():
            return "invalid", "http.bad_url", "it is no URL that can be requested"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError():
            return "network", "http.reset", "the connection ended before the answer did"
        case aiohttp.ClientResponseError():
            return "network", "http.bad_response", "the answer is not HTTP"
        case aiohttp.ClientConnectionError() | OSError():
            return "network", "http.reset", f"the connection broke ({_cause(error)})"
        case ValueError() if not isinstance(error, aiohttp.ClientError):
            return "invalid", "http.bad_request", "the request cannot be formed"
        case _:
            return "network", "http.failed", type(error).__name__


def _cause(error: Exception) -> str:
    """The shortest word for what happened: why a certificate is refused, OpenSSL's reason, or the errno's name."""
    inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(inner, ssl.SSLError):  # its errno is OpenSSL's own
        words = getattr(inner, "verify_message", None) or getattr(inner, "reason", None)
        return words or type(inner).__name__
    return errno.errorcode.get(getattr(inner, "errno", None) or 0, type(inner).__name__)
