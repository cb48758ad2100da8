"""How TLS is spoken to far sides: a few contexts, each made once."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import anyio

from stackd.core.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Tls:
    """What a request asks of TLS. Without `verify` whoever answers is believed."""

    verify: bool = True
    min_version: Literal["1.2", "1.3"] = "1.2"


DEFAULT_TLS: Final = Tls()


class Contexts:
    """The contexts there are: no more than there are values of `Tls`. Connections are pooled apart by context.

    `ca_file`: certificates in PEM that are trusted besides the system's.
    """

    def __init__(self, ca_file: Path | None) -> None:
        self._ca_file = ca_file
        self._made: dict[Tls, ssl.SSLContext] = {}

    async def of(self, tls: Tls) -> ssl.SSLContext | bool:
        """What aiohttp takes for `tls`; True is the context that it has made itself.

        Raises:
            SettingsError: the file of certificates cannot be used.
        """
        if tls is DEFAULT_TLS and self._ca_file is None:
            return True
        if tls not in self._made:  # made aside: the system's certificates are read
            made = await anyio.to_thread.run_sync(self._make, tls)
            self._made.setdefault(tls, made)
        return self._made[tls]

    def _make(self, tls: Tls) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.minimum_version = (
            ssl.TLSVersion.TLSv1_3 if tls.min_version == "1.3" else ssl.TLSVersion.TLSv1_2
        )
        context.set_alpn_protocols(["http/1.1"])
        if not tls.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self._ca_file is not None:
            try:
                context.load_verify_locations(self._ca_file)
            except OSError as error:  # SSLError too, for what is no certificate
                is_ssl = isinstance(error, ssl.SSLError)
                why = "it holds no certificate in PEM" if is_ssl else error.strerror
                raise SettingsError(
                    [f"STACKD_TLS_CA_FILE {self._ca_file} cannot be used ({why})"]
                ) from error
        return context
