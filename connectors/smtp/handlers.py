"""E-mail by SMTP. It speaks for itself, so that nothing it did is taken for undone without its word."""

from __future__ import annotations

import base64
import binascii
import socket
import ssl
from collections.abc import Iterator, Mapping
from email.errors import HeaderParseError
from email.message import EmailMessage
from email.policy import SMTP as POLICY
from email.utils import formatdate, make_msgid
from types import ModuleType
from typing import Any, Final

from stackd.core.aside import aside
from stackd.core.errors import NodeError
from stackd.integrations.manager import HandlerContext

TRANSPORT = "own"

PORTS: Final = {"starttls": 587, "tls": 465, "none": 25}
TO: Final = ("to", "cc", "bcc")


async def send_email(params: dict[str, Any], ctx: HandlerContext) -> Any:
    """Sends one message; who was refused while others were not is told.

    Until the message itself goes out, whatever fails has done nothing and may be tried again. From then on only
    the server knows, until it answers.
    """
    message, recipients = _message(params, str(ctx.connection["from"]))
    security = _security(ctx.connection)
    library = await aside(_library)
    client = library.SMTP(
        hostname=ctx.connection["host"],
        port=_port(ctx.connection, security),
        local_hostname=socket.gethostname(),
        timeout=ctx.timeout,
        use_tls=security == "tls",
        start_tls=security == "starttls",
        tls_context=None if security == "none" else await aside(ssl.create_default_context),
        username=ctx.connection.get("username"),
        password=ctx.connection.get("password", ""),
    )
    try:
        await client.connect()
    except library.SMTPAuthenticationError as error:
        raise _undone(f"unauthorized: {_words(error)}", "unauthorized", "rejected") from None
    except (library.SMTPException, OSError) as error:
        raise _undone(f"no connection: {_words(error)}", "smtp.connect", "network") from None
    try:
        refused, _ = await client.send_message(message, recipients=recipients)
    except library.SMTPRecipientsRefused as error:
        raise _refused(next(iter(error.recipients))) from None
    except library.SMTPResponseException as error:
        raise _refused(error) from None
    except library.SMTPNotSupported as error:
        raise _undone(_words(error), "smtp.not_supported", "rejected") from None
    except (library.SMTPException, OSError) as error:
        raise NodeError(
            f"the connection was lost: {_words(error)}", kind="network", code="smtp.lost", sent=True
        ) from None
    finally:
        client.close()
    return {
        "messageId": message["Message-ID"],
        "accepted": [one for one in recipients if one not in refused],
        "refused": {one: f"{answer.code} {answer.message}" for one, answer in refused.items()},
    }


def _library() -> ModuleType:
    import aiosmtplib  # an idle daemon does without

    return aiosmtplib


# -- the message


def _message(params: Mapping[str, Any], sender: str) -> tuple[EmailMessage, list[str]]:
    """The message, and the addresses it goes to, each once."""
    message = EmailMessage(policy=POLICY)
    sender = params.get("from", sender)
    recipients = [address for name in TO for address in _addresses(name, params.get(name, []))]
    if not recipients:
        raise _invalid("to, cc or bcc must name somebody", "smtp.no_recipient")
    domain = _addresses("from", [sender])[0].rpartition("@")[2]
    message["From"] = sender
    for name, header in (("to", "To"), ("cc", "Cc")):
        if params.get(name):
            message[header] = ", ".join(params[name])
    if params.get("reply_to"):
        _addresses("reply_to", [params["reply_to"]])
        message["Reply-To"] = params["reply_to"]
    message["Subject"] = _line("subject", params["subject"])
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain=domain)
    if "text" in params or "html" not in params:
        message.set_content(params.get("text", ""))
        if "html" in params:
            message.add_alternative(params["html"], subtype="html")
    else:
        message.set_content(params["html"], subtype="html")
    for one in params.get("attachments", []):
        _attach(message, one)
    return message, list(dict.fromkeys(recipients))


def _line(name: str, text: str) -> str:
    """`text`, which may stand in a header: a line break in it would begin another one."""
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise _invalid(f"{name} has a line break or another control character", "smtp.bad_header")
    return text


def _addresses(name: str, written: list[str]) -> list[str]:
    """The bare addresses in `written`."""
    return [address for one in written for address in _bare(name, _line(name, one))]


def _bare(name: str, one: str) -> Iterator[str]:
    probe = EmailMessage(policy=POLICY)
    try:
        probe["To"] = one
        found = probe["To"].addresses
    except (HeaderParseError, ValueError, IndexError):
        found = ()
    if not found or any(not at.username or not at.domain for at in found) or probe["To"].defects:
        raise _invalid(f"{name} has what is no address", "smtp.bad_address")
    yield from (at.addr_spec for at in found)


def _attach(message: EmailMessage, one: Mapping[str, str]) -> None:
    filename = _line("filename", one["filename"])
    try:
        content = base64.b64decode(one["content"], validate=True)
    except binascii.Error:
        raise _invalid(f"the content of {filename} is no Base64", "smtp.bad_attachment") from None
    kind = _line("contentType", one.get("contentType", "application/octet-stream"))
    main, _, sub = kind.partition(";")[0].strip().partition("/")
    message.add_attachment(
        content, maintype=main or "application", subtype=sub or "octet-stream", filename=filename
    )


# -- the connection


def _security(connection: Mapping[str, Any]) -> str:
    security = str(connection.get("security", "starttls")).strip().lower()
    if security not in PORTS:
        raise _invalid(f"security is one of {', '.join(PORTS)}", "credential.incomplete")
    if security == "none" and connection.get("username"):
        raise _invalid(
            "with security none a password would be read by others: use starttls or tls, "
            "or leave the user name out",
            "credential.insecure",
        )
    return security


def _port(connection: Mapping[str, Any], security: str) -> int:
    written = str(connection.get("port") or PORTS[security])
    if not written.isdecimal() or not 0 < int(written) < 65_536:
        raise _invalid("port is no port", "credential.incomplete")
    return int(written)


# -- what went wrong


def _words(error: Exception) -> str:
    return (str(getattr(error, "message", "")) or str(error) or type(error).__name__)[:200]


def _invalid(words: str, code: str) -> NodeError:
    """Nothing was begun."""
    return NodeError(words, kind="invalid", code=code, answered=True, declined=True)


def _undone(words: str, code: str, kind: str) -> NodeError:
    """No message went out."""
    return NodeError(words, kind=kind, code=code, answered=True, declined=True)


def _refused(error: Any) -> NodeError:
    """The server said no: for now (4yz), or at all."""
    later = 400 <= error.code < 500
    return NodeError(
        f"the server answered {error.code}: {_words(error)}",
        kind="service_unavailable" if later else "rejected",
        code="smtp.later" if later else "smtp.refused",
        sent=True,
        answered=True,
        declined=True,
    )
