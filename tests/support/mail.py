"""A mail server for one test: takes what it is sent, answers as it is told, and remembers both."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default


@dataclass
class MailServer:
    """`answers`: what is said to a command (its first words) in place of `250 ok`; `hang_up`: at which it closes."""

    answers: Mapping[str, str] = field(default_factory=dict)
    hang_up: str | None = None
    tls: ssl.SSLContext | None = None
    port: int = 0
    commands: list[str] = field(default_factory=list)
    messages: list[EmailMessage] = field(default_factory=list)
    secured: bool = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        try:
            await self._say(writer, "220 mail.example ESMTP")
            while line := await reader.readline():
                command = line.decode().rstrip("\r\n")
                self.commands.append(command)
                if self.hang_up is not None and command.startswith(self.hang_up):
                    return
                if not await self._answer(command, reader, writer):
                    return
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _answer(
        self, command: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        told = next((text for of, text in self.answers.items() if command.startswith(of)), None)
        word = command.partition(" ")[0].upper()
        if told is not None:
            await self._say(writer, told)
        elif word == "EHLO":
            own = ["mail.example", "AUTH PLAIN", "SMTPUTF8", "8BITMIME"]
            own += ["STARTTLS"] if self.tls is not None and not self.secured else []
            await self._say(writer, *(f"250-{one}" for one in own[:-1]), f"250 {own[-1]}")
        elif word == "STARTTLS":
            await self._say(writer, "220 go ahead")
            assert self.tls is not None
            await writer.start_tls(self.tls)
            self.secured = True
        elif word == "AUTH":
            await self._say(writer, "235 welcome")
        elif word == "DATA":
            await self._take(reader, writer)
        elif word == "QUIT":
            await self._say(writer, "221 bye")
            return False
        else:
            await self._say(writer, "250 ok")
        return True

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._say(writer, "354 go on")
        content = await reader.readuntil(b"\r\n.\r\n")
        self.messages.append(message_from_bytes(content[:-5], policy=default))
        if self.hang_up == "content":
            raise ConnectionError
        await self._say(writer, self.answers.get("content", "250 queued"))

    async def _say(self, writer: asyncio.StreamWriter, *lines: str) -> None:
        writer.write("".join(f"{line}\r\n" for line in lines).encode())
        await writer.drain()


@asynccontextmanager
async def mail_server(server: MailServer) -> AsyncIterator[MailServer]:
    """`server`, listening on a port of its own."""
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listening:
        server.port = listening.sockets[0].getsockname()[1]
        yield server
