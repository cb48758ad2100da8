"""Every setting: its name, default, unit and meaning; the only reader of the environment and config files.

Command line > environment > `.env` (dev only) > config file > default. A value is never silently ignored: an
unknown name, a bad value or a combination without effect is named with its remedy, all at once.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import grp
import io
import ipaddress
import math
import os
import pwd
import re
import secrets
import stat
import tomllib
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, fields
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from dotenv.parser import Binding, parse_stream
from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from stackd.core import handover
from stackd.core.errors import SettingsError, StoreFullError

Mode = Literal["dev", "start"]

KEY_LENGTH = 32  # characters a master key has at least, as the origin asks
KEY_VARIETY = 8  # different characters it has at least: refuses "aaaa…", not any random key
TOKEN_LENGTH = 32  # characters the token of `dev` has at least
FILE_BYTES = 1024 * 1024  # more than this no file of settings or secrets has
NEAR = 2  # edits by which a foreign name may miss one of ours and still be taken for a misspelling

# Kept names of parts that this version does not have: a truer answer than "unknown".
PLANNED: Final = frozenset(
    {
        "TRIGGER_SCHEDULER_BATCH_SIZE",
        "WEBHOOK_REPLAY_TOLERANCE_SECONDS",
        "ENCRYPTION_ROTATION_BATCH_SIZE",
    }
)
# Read outside the table below: where the client looks, and the origin's rule for the inline worker.
CLIENT_NAMES: Final = frozenset({"STACKD_URL", "STACKD_TOKEN"})
HELPER_NAMES: Final = frozenset(
    {"STACKD_CONFIG", "INLINE_EXECUTION_WORKER", "DISABLE_INLINE_WORKER_AUTOSTART"}
)

_TRUTHS: Final = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
_DOMAIN = re.compile(
    r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
)
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")  # of a hostname, RFC 1123 §2.1
HOSTNAME_LENGTH = 253  # characters, as what DNS can carry
# Prefixes of kept names. Others may use them too, so an unknown one is only warned of.
_FAMILIES = (
    "EXECUTION_", "ENCRYPTION_", "PLATFORM_NETWORK_", "SANDBOX_", "WORKFLOW_", "TRIGGER_SCHEDULER_",
)  # fmt: skip
# How the origin lets the two executors be named.
_EXECUTORS: Final = {
    **dict.fromkeys(("process", "proc", "child_process", "processes"), "process"),
    **dict.fromkeys(("worker", "worker_thread", "worker-threads", "thread"), "worker"),
}
_TOKEN = re.compile(rf"[A-Za-z0-9._~+/=-]{{{TOKEN_LENGTH},}}")  # what RFC 6750 lets a token hold
_PROXY = re.compile(  # what may stand in a password otherwise is written as %40 and the like
    r"http://([^\s/@?#:]+(:[^\s/@?#:]*)?@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}/?"
)
_PUBLIC_URL = re.compile(
    r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[A-Za-z0-9._~%/-]*)?"
)
_USERINFO = re.compile(r"//[^/@]*@")


# -- reading one value; each raises ValueError with what is valid


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004  # pydantic collects ValueError
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError("must be a number") from None
    if not math.isfinite(number):
        raise ValueError("must be a number")
    return number


def _whole(low: int, high: int) -> BeforeValidator:
    def read(value: Any) -> int:
        number = _number(value)
        if number != int(number) or not low <= number <= high:
            raise ValueError(f"must be a whole number from {low:,} to {high:,}")
        return int(number)

    return BeforeValidator(read)


def _seconds(low: float, high: float) -> BeforeValidator:
    def read(value: Any) -> float:
        number = _number(value)
        if not low <= number <= high:
            raise ValueError(f"must be from {low:g} to {high:g} seconds")
        return number

    return BeforeValidator(read)


def _milliseconds(low: int, high: int) -> BeforeValidator:
    def read(value: Any) -> float:
        number = _number(value)
        if not low <= number <= high:
            raise ValueError(f"must be from {low:,} to {high:,} milliseconds")
        return number / 1000

    return BeforeValidator(read)


def _mebibytes(low: int, high: int) -> BeforeValidator:
    def read(value: Any) -> int:
        number = _number(value)
        if number != int(number) or not low <= number <= high:
            raise ValueError(f"must be a whole number from {low:,} to {high:,} MiB")
        return int(number) * _MIB

    return BeforeValidator(read)


def _days(low: float, high: float) -> BeforeValidator:
    def read(value: Any) -> float:
        number = _number(value)
        if not low <= number <= high:
            raise ValueError(f"must be from {low:g} to {high:,g} days")
        return number * _DAY

    return BeforeValidator(read)


def _read_boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    truth = _TRUTHS.get(str(value).strip().lower())
    if truth is None:
        raise ValueError("must be true or false")
    return truth


def _items(value: Any) -> list[str]:
    parts = value if isinstance(value, list | tuple) else re.split(r"[,\n]", str(value))
    return [str(part).strip() for part in parts if str(part).strip()]


def _read_host(value: Any) -> str:
    """An address, or a hostname of RFC 1123; whose last part is no number, or it would be a broken address."""
    if isinstance(value, str):
        text = value.strip()
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(text))
        labels = text.removesuffix(".").split(".")
        is_name = all(_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdecimal()
        if is_name and len(text) <= HOSTNAME_LENGTH:
            return text
    raise ValueError("must be an address such as 127.0.0.1 or ::1, or a hostname")


def _read_domains(value: Any) -> tuple[str, ...]:
    names = [item.lower().rstrip(".") for item in _items(value)]
    for name in names:
        if not _DOMAIN.fullmatch(name):
            raise ValueError(f"{name!r} is no domain; write example.com or *.example.com")
    return tuple(names)


def _read_ranges(value: Any) -> tuple[IPv4Network | IPv6Network, ...]:
    ranges = []
    for item in _items(value):
        try:
            ranges.append(ipaddress.ip_network(item))
        except ValueError:
            raise ValueError(f"{item!r} is no address range; write 10.0.0.0/8") from None
    return tuple(ranges)


def _read_exempt(value: Any) -> tuple[str | IPv4Network | IPv6Network, ...]:
    """Domains and address ranges in one list."""
    found: list[str | IPv4Network | IPv6Network] = []
    for item in _items(value):
        is_range = "/" in item or ":" in item or item.rpartition(".")[2].isdecimal()
        found += _read_ranges([item]) if is_range else _read_domains([item])
    return tuple(found)


def _read_proxy(value: Any) -> str:
    text = str(value).strip()
    if text and not _PROXY.fullmatch(text):
        raise ValueError("must be http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")
    return text


def _read_public_url(value: Any) -> str:
    text = str(value).strip().rstrip("/")
    if text and not _PUBLIC_URL.fullmatch(text):
        raise ValueError("must be http://HOST or https://HOST, perhaps with a port and a path")
    return text


def _read_file(value: Any) -> Path | None:
    return _read_path(value) if str(value) else None


def _expanded(value: Any) -> Path:
    """`value` with its ~ resolved; as it is if that user is unknown."""
    path = Path(str(value))
    if path.parts[:1] == ("~",) and (home := _home()) is not None:
        return home.joinpath(*path.parts[1:])
    with contextlib.suppress(RuntimeError):
        path = path.expanduser()
    return path


def _home() -> Path | None:
    """HOME if it is an absolute path, else the folder that the user database has; None if it has none."""
    named = os.environ.get("HOME", "")
    if named.startswith("/"):
        return Path(named)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def _read_path(value: Any) -> Path:
    path = _expanded(value)
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def _read_database(value: Any) -> Path | None:
    text = str(value)
    if not text:
        return None
    if not text.startswith("sqlite:///"):
        raise ValueError("must be sqlite:///ABSOLUTE/PATH; other databases are not supported yet")
    return _read_path("/" + text.removeprefix("sqlite:///").lstrip("/"))


def _read_executor(value: Any) -> str:
    found = _EXECUTORS.get(str(value).strip().lower())
    if found is None:
        raise ValueError(f"must be process or worker (or, for these, {_OTHER_EXECUTORS})")
    return found


_OTHER_EXECUTORS: Final = ", ".join(one for one in _EXECUTORS if one not in _EXECUTORS.values())


def _read_cgroup_root(value: Any) -> str:
    text = str(value).strip()
    if text.lower() in ("auto", "none"):
        return text.lower()
    if not text.startswith("/"):
        raise ValueError("must be auto, none, or the absolute path of a cgroup")
    return text


def _read_sandbox_user(value: Any) -> str:
    """`value`, where that is a user and perhaps a group of this machine that are not root's."""
    text = str(value).strip()
    uid, gid = user_and_group(text)
    if not uid or not gid:
        raise ValueError("must not be root: code would be, too")
    return text


def user_and_group(text: str) -> tuple[int, int]:
    """The numbers of `USER` or `USER:GROUP`, each a name or a number; without a group, the user's own.

    Raises:
        ValueError: there is none of that name.
    """
    user, _, group = text.partition(":")
    uid, own = _user(user)
    if not group:
        return uid, own
    if group.isascii() and group.isdecimal() and len(group) < 10:
        return uid, int(group)
    try:
        return uid, grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        raise ValueError(f"there is no group {group!r} here") from None


def _user(name: str) -> tuple[int, int]:
    """The numbers of a user and of its own group; of a number that nobody has, that of both."""
    if name.isascii() and name.isdecimal() and len(name) < 10:
        with contextlib.suppress(KeyError):
            return int(name), pwd.getpwuid(int(name)).pw_gid
        return int(name), int(name)
    try:
        found = pwd.getpwnam(name)
    except (KeyError, ValueError):
        if name == _NOBODY:  # a small image may not name it
            return _NOBODY_ID, _NOBODY_ID
        raise ValueError(f"there is no user {name!r} here") from None
    return found.pw_uid, found.pw_gid


_NOBODY: Final = "nobody"
_NOBODY_ID: Final = 65_534  # as the kernel shows who it cannot name (/proc/sys/kernel/overflowuid)


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


Boolean = Annotated[bool, BeforeValidator(_read_boolean)]
Domains = Annotated[tuple[str, ...], BeforeValidator(_read_domains)]
Ranges = Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_read_ranges)]


def _setting(name: str, default: Any, meaning: str, *, unit: str = "", secret: bool = False) -> Any:
    """One row of the table. `default` in the form people write."""
    return Field(
        default=default,
        alias=name,
        description=meaning,
        json_schema_extra={"unit": unit, "secret": secret},
        repr=not secret,
    )


_MIB = 1024 * 1024
_DAY = 86_400.0  # seconds


class Settings(BaseSettings):
    """All settings of a process, built once and handed on. Durations are seconds, sizes bytes."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", validate_default=True)

    env: Annotated[Literal["development", "production"], BeforeValidator(_lower)] = _setting(
        "STACKD_ENV", "production", "set by `dev` (development) and `start` (production)"
    )
    state_dir: Annotated[Path, BeforeValidator(_read_path)] = _setting(
        "STACKD_STATE_DIR", "/var/lib/stackd",
        "folder of the store, sockets and locks; `dev`: ~/.local/state/stackd", unit="path",
    )  # fmt: skip
    database: Annotated[Path | None, BeforeValidator(_read_database)] = _setting(
        "STACKD_DATABASE_URL", "", "the store; empty: stackd.db in the state directory",
        unit="sqlite:///path",
    )  # fmt: skip
    host: Annotated[str, BeforeValidator(_read_host)] = _setting(
        "HOST", "127.0.0.1", "address or hostname to listen on"
    )
    port: Annotated[int, _whole(0, 65535)] = _setting(
        "PORT", 5000, "port to listen on; 0 takes a free one"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = (
        _setting("STACKD_LOG_LEVEL", "info", "what is logged: debug, info, warning, error")
    )
    log_style: Annotated[Literal["json", "console"], BeforeValidator(_lower)] = _setting(
        "STACKD_LOG_STYLE", "json", "json, or console for people; `dev`: console"
    )
    queue_driver: Annotated[Literal["sqlite", "inmemory"], BeforeValidator(_lower)] = _setting(
        "QUEUE_DRIVER", "sqlite", "inmemory keeps nothing; only in `dev`, never for the whole stack"
    )
    worker_concurrency: Annotated[int, _whole(1, 10_000)] = _setting(
        "EXECUTION_WORKER_CONCURRENCY", 64, "executions one worker runs at a time"
    )
    max_retries: Annotated[int, _whole(0, 100)] = _setting(
        "EXECUTION_MAX_RETRIES", 3, "tries after a failure of the runtime itself"
    )
    retry_delay: Annotated[float, _milliseconds(500, 86_400_000)] = _setting(
        "EXECUTION_RETRY_DELAY_MS", 1000, "before the first of these; doubles each time", unit="ms"
    )
    max_retry_delay: Annotated[float, _milliseconds(500, 86_400_000)] = _setting(
        "EXECUTION_MAX_RETRY_DELAY_MS", 300_000, "the longest of these waits", unit="ms"
    )
    lease: Annotated[float, _milliseconds(1000, 86_400_000)] = _setting(
        "EXECUTION_LOCK_DURATION_MS", 60_000,
        "a worker silent for three times this is taken for dead", unit="ms",
    )  # fmt: skip
    lease_renew: Annotated[float, _milliseconds(250, 86_400_000)] = _setting(
        "EXECUTION_LOCK_RENEW_MS", 15_000,
        "between renewals of the leases held; at most half the lock, unset a quarter", unit="ms",
    )  # fmt: skip
    inline_worker: Boolean = _setting(
        "ENABLE_INLINE_WORKER", "false",
        "the role `api` runs a worker too; `dev` outside CI: true",
    )  # fmt: skip
    timer_interval: Annotated[float, _milliseconds(500, 3_600_000)] = _setting(
        "WORKFLOW_TIMER_POLL_INTERVAL_MS", 1000, "between looks for due timers", unit="ms"
    )
    # The origin has 25, each of which goes to its queue server by itself. Here a batch is one commit, whose sync
    # costs the same for few as for many: as many as the writer commits together (GROUP_MEMBERS), so that what
    # came due while the daemon was down is caught up with in few syncs, and others still have their turn between.
    timer_batch: Annotated[int, _whole(1, 10_000)] = _setting(
        "WORKFLOW_TIMER_DISPATCH_BATCH", 500,
        "timers fired per transaction; the rest follow at once", unit="timers",
    )  # fmt: skip
    scheduler_interval: Annotated[float, _milliseconds(1000, 3_600_000)] = _setting(
        "TRIGGER_SCHEDULER_INTERVAL_MS", 5000, "between rounds of upkeep and rescue", unit="ms"
    )
    generic_executor: Boolean = _setting(
        "GENERIC_EXECUTOR_ENABLED", "false",
        "operations of connectors without a handler run by generic HTTP, as their definitions say",
    )  # fmt: skip
    generic_fallback: Annotated[
        Literal["safe", "always", "never"], BeforeValidator(_lower)
    ] = _setting(
        "GENERIC_EXECUTOR_FALLBACK", "safe",
        "after a handler failed, generic HTTP tries again: safe, where that does nothing twice; always; never",
    )  # fmt: skip
    sandbox_executor: Annotated[
        Literal["process", "worker"], BeforeValidator(_read_executor)
    ] = _setting(
        "SANDBOX_EXECUTOR", "process",
        "what runs code: process, an interpreter of its own for each run; worker, a fork of one that is "
        "loaded, used once: faster, and laid out in memory as its siblings are",
    )  # fmt: skip
    worker_sandbox: Boolean = _setting(
        "WORKER_SANDBOX_ENABLED",
        "false",
        "true: SANDBOX_EXECUTOR is worker, unless it is set itself",
    )
    sandbox_timeout: Annotated[float, _milliseconds(10, 86_400_000)] = _setting(
        "STACKD_SANDBOX_TIMEOUT_MS", 15_000,
        "how long code may run where neither its node nor its workflow says", unit="ms",
    )  # fmt: skip
    sandbox_max_timeout: Annotated[float, _milliseconds(10, 86_400_000)] = _setting(
        "STACKD_SANDBOX_MAX_TIMEOUT_MS", 300_000, "how long code may run at most", unit="ms"
    )
    sandbox_max_cpu: Annotated[float, _milliseconds(10, 86_400_000)] = _setting(
        "SANDBOX_MAX_CPU_MS", 10_000,
        "CPU time that a run may take, of all its threads together", unit="ms",
    )  # fmt: skip
    sandbox_cpu_quota: Annotated[int, _whole(0, 100_000)] = _setting(
        "SANDBOX_CPU_QUOTA_MS", 0,
        "CPU time that a run gets in each 100 ms, by its cgroup; 0: as much as there is",
        unit="ms of 100",
    )  # fmt: skip
    sandbox_max_memory: Annotated[int, _mebibytes(16, 1024 * 1024)] = _setting(
        "SANDBOX_MAX_MEMORY_MB", 256,
        "memory that a run may take, by its cgroup; without one, of address space", unit="MiB",
    )  # fmt: skip
    sandbox_max_scratch: Annotated[int, _mebibytes(0, 64 * 1024)] = _setting(
        "STACKD_SANDBOX_MAX_SCRATCH_MB", 64,
        "the largest folder in memory that a run may ask for; 0: none may", unit="MiB",
    )  # fmt: skip
    sandbox_cgroup_root: Annotated[str, BeforeValidator(_read_cgroup_root)] = _setting(
        "SANDBOX_CGROUP_ROOT", "auto",
        "the cgroup below which runs get theirs: auto, the one that the service manager delegated; none; a path",
    )  # fmt: skip
    sandbox_beat: Annotated[float, _milliseconds(25, 60_000)] = _setting(
        "SANDBOX_HEARTBEAT_INTERVAL_MS", 500, "between the signs of life of a run", unit="ms"
    )
    sandbox_silence: Annotated[float, _milliseconds(50, 3_600_000)] = _setting(
        "SANDBOX_HEARTBEAT_TIMEOUT_MS", 3000,
        "a run is ended that for so long gave no sign of life, used no CPU and had no request open; at least "
        "twice the interval, unset three times it and at least the default", unit="ms",
    )  # fmt: skip
    sandbox_level: Annotated[int, _whole(0, 3)] = _setting(
        "STACKD_SANDBOX_REQUIRE_LEVEL", 2,
        "where isolation does not reach this level, no code runs: 3 contained, 2 contained with soft limits, "
        "1 filtered, 0 bare",
    )  # fmt: skip
    sandbox_concurrency: Annotated[int, _whole(1, 10_000)] = _setting(
        "STACKD_SANDBOX_CONCURRENCY", 16, "runs of code at a time, in one process; others wait", unit="runs"
    )  # fmt: skip
    sandbox_parked: Annotated[int, _whole(0, 256)] = _setting(
        "STACKD_SANDBOX_PARKED", 2,
        "processes that wait for code in advance, for a minute after other code ran: 2 MiB each with worker, "
        "else 6 MiB; 0: none", unit="processes",
    )  # fmt: skip
    sandbox_user: Annotated[str, BeforeValidator(_read_sandbox_user)] = _setting(
        "STACKD_SANDBOX_USER", _NOBODY,
        "who code is where the daemon is root: USER or USER:GROUP; elsewhere it is who the daemon is",
    )  # fmt: skip
    sandbox_packages: Annotated[Path | None, BeforeValidator(_read_file)] = _setting(
        "STACKD_SANDBOX_PACKAGES", "",
        "a folder of packages that code may import (`pip install --target`); all of it can be read by code",
        unit="path",
    )  # fmt: skip
    connectors_dir: Annotated[Path | None, BeforeValidator(_read_file)] = _setting(
        "STACKD_CONNECTORS_DIR", "",
        "connectors besides those of the state directory, which win, and the shipped ones", unit="path",
    )  # fmt: skip
    encryption_master_key: str = _setting(
        "ENCRYPTION_MASTER_KEY", "",
        f"at least {KEY_LENGTH} characters; what credentials are sealed under: a store opens with no other; "
        "`dev` makes one and keeps it", secret=True,
    )  # fmt: skip
    network_allow_domains: Domains = _setting(
        "PLATFORM_NETWORK_ALLOWLIST_DOMAINS", "", "if set, only these may be called", unit="list"
    )
    network_allow_ranges: Ranges = _setting(
        "PLATFORM_NETWORK_ALLOWLIST_IP_RANGES", "",
        "a private range is opened by this; a public one restricts to it", unit="list",
    )  # fmt: skip
    network_deny_domains: Domains = _setting(
        "PLATFORM_NETWORK_DENYLIST_DOMAINS", "", "never called; beats every allow", unit="list"
    )
    network_deny_ranges: Ranges = _setting(
        "PLATFORM_NETWORK_DENYLIST_IP_RANGES", "", "never called; beats every allow", unit="list"
    )
    tls_ca_file: Annotated[Path | None, BeforeValidator(_read_file)] = _setting(
        "STACKD_TLS_CA_FILE", "",
        "certificates in PEM that HTTP steps trust besides the system's", unit="path",
    )  # fmt: skip
    public_url: Annotated[str, BeforeValidator(_read_public_url)] = _setting(
        "STACKD_PUBLIC_URL", "",
        "how others reach this daemon, as links and webhook addresses begin; empty: http://HOST:PORT",
    )  # fmt: skip
    http_proxy: Annotated[str, BeforeValidator(_read_proxy)] = _setting(
        "STACKD_HTTP_PROXY", "",
        "HTTP steps go through it: http://[user:password@]host:port", secret=True,
    )  # fmt: skip
    no_proxy: Annotated[
        tuple[str | IPv4Network | IPv6Network, ...], BeforeValidator(_read_exempt)
    ] = _setting(
        "STACKD_NO_PROXY", "", "domains and address ranges that are called directly", unit="list"
    )
    max_connections: Annotated[int, _whole(1, 1_000_000)] = _setting(
        "STACKD_MAX_CONNECTIONS", 1000,
        "TCP connections at a time; who is idle or slow makes room, then others are refused",
        unit="connections",
    )  # fmt: skip
    client_patience: Annotated[float, _seconds(0.1, 3600)] = _setting(
        "STACKD_CLIENT_SECONDS", 15,
        "a client may take this long to send its headers, and for its body beside what 16 KiB/s take",
        unit="s",
    )  # fmt: skip
    max_body_bytes: Annotated[int, _whole(1024, 1024 * _MIB)] = _setting(
        "STACKD_MAX_BODY_BYTES", 10 * _MIB, "a larger request is refused (413)", unit="bytes"
    )
    body_memory_bytes: Annotated[int, _whole(_MIB, 1024 * 1024 * _MIB)] = _setting(
        "STACKD_BODY_MEMORY_BYTES", 64 * _MIB,
        "bodies over 64 KiB held at a time, and as much of answers; without room in time: 503",
        unit="bytes",
    )  # fmt: skip
    max_document_bytes: Annotated[int, _whole(1024, 64 * _MIB)] = _setting(
        "STACKD_MAX_DOCUMENT_BYTES", 256 * 1024, "a larger workflow is refused (413)", unit="bytes"
    )
    max_output_bytes: Annotated[int, _whole(1024, 1024 * _MIB)] = _setting(
        "STACKD_MAX_OUTPUT_BYTES", _MIB, "a node with a larger output fails", unit="bytes"
    )
    max_execution_bytes: Annotated[int, _whole(1024, 1024 * _MIB)] = _setting(
        "STACKD_MAX_EXECUTION_BYTES", 16 * _MIB,
        "an execution whose outputs together are larger fails", unit="bytes",
    )  # fmt: skip
    max_blob_bytes: Annotated[int, _whole(1024, 64 * 1024 * _MIB)] = _setting(
        "STACKD_MAX_BLOB_BYTES", 64 * _MIB,
        "a file or answer that is no text and larger is refused (413), or fails its node", unit="bytes",
    )  # fmt: skip
    blob_bytes: Annotated[int, _whole(1024, 1024 * 1024 * _MIB)] = _setting(
        "STACKD_BLOB_BYTES", 2 * 1024 * _MIB,
        "all of these together; at this much, new ones are refused (507), or fail their node", unit="bytes",
    )  # fmt: skip
    run_memory_bytes: Annotated[int, _whole(_MIB, 1024 * 1024 * _MIB)] = _setting(
        "STACKD_RUN_MEMORY_BYTES", 256 * _MIB,
        "what executions with more than 64 KiB of data may take at a time; others wait", unit="bytes",
    )  # fmt: skip
    max_jobs: Annotated[int, _whole(1, 100_000_000)] = _setting(
        "STACKD_MAX_JOBS",
        100_000,
        "live jobs; at this many, new ones are refused (429)",
        unit="jobs",
    )
    keep_seconds: Annotated[float, _days(0, 36_500)] = _setting(
        "STACKD_KEEP_DAYS", 30, "executions that ended longer ago are removed; 0: none is for its age",
        unit="days",
    )  # fmt: skip
    keep_executions: Annotated[int, _whole(0, 1_000_000_000)] = _setting(
        "STACKD_KEEP_EXECUTIONS", 1_000_000,
        "of those that have ended, the oldest beyond this many are removed; 0: any number is kept",
        unit="executions",
    )  # fmt: skip
    keep_bytes: Annotated[int, _whole(0, 1024 * 1024 * _MIB)] = _setting(
        "STACKD_KEEP_BYTES", 4 * 1024 * _MIB,
        "the oldest that have ended are removed while the store takes more; 0: however much it takes",
        unit="bytes",
    )  # fmt: skip
    webhook_dedupe_window: Annotated[float, _seconds(0, 31 * 86_400)] = _setting(
        "STACKD_WEBHOOK_DEDUPE_SECONDS", 86_400, "how long a delivery's key starts nothing again",
        unit="s",
    )  # fmt: skip
    drain_timeout: Annotated[float, _seconds(0, 3600)] = _setting(
        "STACKD_DRAIN_SECONDS",
        30,
        "executions in hand may take this long to end at a stop",
        unit="s",
    )
    reader_count: Annotated[int, _whole(1, 64)] = _setting(
        "STACKD_STORE_READERS",
        4,
        "connections that read beside the one that writes",
        unit="connections",
    )
    busy_timeout: Annotated[float, _seconds(0, 60)] = _setting(
        "STACKD_STORE_BUSY_SECONDS",
        5,
        "how long to wait for another process's write lock",
        unit="s",
    )

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)
    _warnings: tuple[str, ...] = PrivateAttr(default=())
    _overruled: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # the library's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the library's signature
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the library's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the library's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_settings` hands in: it has merged the sources and knows each value's."""
        return (init_settings,)

    def told(
        self,
        sources: Mapping[str, str],
        warnings: tuple[str, ...],
        overruled: Mapping[str, str] | None = None,
    ) -> Settings:
        """The same settings, knowing where each value came from and what is to be said about them."""
        self._sources, self._warnings = dict(sources), warnings
        if overruled is not None:
            self._overruled = dict(overruled)
        return self

    @property
    def warnings(self) -> tuple[str, ...]:
        """What `dev` lets pass and `start` would refuse, and what has no effect."""
        return self._warnings

    @property
    def sources(self) -> Mapping[str, str]:
        """Where each value that is no default came from, by name."""
        return self._sources

    @property
    def overruled(self) -> Mapping[str, str]:
        """What wins over the config file, by the names that stand in this."""
        return self._overruled

    @property
    def database_path(self) -> Path:
        return self.database or self.state_dir / "stackd.db"

    def report(self) -> list[dict[str, Any]]:
        """Each setting: name, value as people write it (secrets masked), where it came from."""
        return [
            {
                "name": row.name,
                "value": _masked(row, getattr(self, row.attribute)),
                "source": self._sources.get(row.name, "default"),
            }
            for row in table()
        ]


@dataclass(frozen=True, slots=True)
class Row:
    """One setting as documented. `default` in the form people write."""

    attribute: str
    name: str
    default: Any
    unit: str
    meaning: str
    secret: bool


def table() -> list[Row]:
    """Every setting, in the order of the documents."""
    return [
        Row(
            attribute,
            str(field.alias),
            field.default,
            str(extra["unit"]),
            str(field.description),
            bool(extra["secret"]),
        )
        for attribute, field in Settings.model_fields.items()
        if isinstance(extra := field.json_schema_extra, dict)
    ]


def _masked(row: Row, value: Any) -> Any:
    if row.secret:
        return "(set)" if value else "(not set)"
    if row.unit == "ms":
        return round(value * 1000)
    if row.unit == "MiB":
        return value // _MIB
    if row.unit == "days":
        value /= _DAY
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return "" if value is None else str(value) if isinstance(value, Path) else value


# -- what may change while the process runs


@dataclass(frozen=True, slots=True)
class Flags:
    """What a reload changes, all of it at once. Its fields are named as those of `Settings`.

    Whoever minds one is told of the new ones or asks for them; nobody keeps a copy.
    """

    log_level: str
    generic_executor: bool
    generic_fallback: str
    network_allow_domains: tuple[str, ...]
    network_allow_ranges: tuple[IPv4Network | IPv6Network, ...]
    network_deny_domains: tuple[str, ...]
    network_deny_ranges: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def of(cls, settings: Settings) -> Flags:
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that is read as another value now, both as people write them; secrets are masked."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Reload:
    """What came of reading the settings again.

    Attributes:
        settings: those that the process has from now on.
        changed: what differs between them and those before.
        waiting: what was read and takes a restart to apply.
    """

    settings: Settings
    changed: tuple[Change, ...]
    waiting: tuple[Change, ...]


def read_again(present: Settings, role: str) -> Settings:
    """The settings as the command that `present` were read for would read them now.

    Raises:
        SettingsError: they cannot be used; holds every problem.
    """
    mode: Mode = "dev" if present.env == "development" else "start"
    return with_dev_secrets(load_settings(mode, role=role))


def reloaded(present: Settings, fresh: Settings) -> Reload:
    """`present` with the flags of `fresh`, and what else is another value in `fresh`."""
    reloadable = {field.name for field in fields(Flags)}
    changed: list[Change] = []
    waiting: list[Change] = []
    sources = dict(present.sources)
    for row in table():
        before, after = getattr(present, row.attribute), getattr(fresh, row.attribute)
        is_flag = row.attribute in reloadable
        if is_flag:
            sources.pop(row.name, None)
            if row.name in fresh.sources:
                sources[row.name] = fresh.sources[row.name]
        if before != after:
            change = Change(row.name, _masked(row, before), _masked(row, after))
            (changed if is_flag else waiting).append(change)
    flags = Flags.of(fresh)
    settings = present.model_copy(update={name: getattr(flags, name) for name in reloadable}).told(
        sources, fresh.warnings, fresh.overruled
    )
    return Reload(settings, tuple(changed), tuple(waiting))


# -- merging the sources


@dataclass(frozen=True, slots=True)
class _Given:
    """One value as found. `source` is shown to people."""

    value: Any
    source: str


def load_settings(
    mode: Mode,
    *,
    role: str = "stack",
    overrides: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Settings:
    """The settings of this process.

    Args:
        role: which `mode` shall run; some values suit not all of them.
        overrides: by name, from the command line.
        environ: instead of the process's own; a test's.
        cwd: where `.env` is looked for.

    Raises:
        SettingsError: they cannot be used; holds every problem.
    """
    settings, problems = read_settings(
        mode, role=role, overrides=overrides, environ=environ, cwd=cwd
    )
    if problems:
        raise SettingsError(problems)
    return settings


def read_settings(
    mode: Mode,
    *,
    role: str = "stack",
    overrides: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> tuple[Settings, list[str]]:
    """The settings as `load_settings` has them, the default in place of each bad value, and every problem.

    Nothing is made, and but for the files of settings nothing is opened.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    warnings: list[str] = []
    overruled: dict[str, str] = {}
    found = _merge(mode, overrides or {}, environ, cwd or Path(), problems, warnings, overruled)
    refused, doubtful = _odd_names(found)
    (problems if mode == "start" else warnings).extend(refused)
    warnings.extend(doubtful)
    warnings.extend(
        f"{name} ({found[name].source}): has no effect in this version"
        for name in sorted(PLANNED & set(found))
    )
    known = {row.name for row in table()}
    values = {name: given for name, given in found.items() if name in known}
    _apply_mode(mode, values, found, environ, problems)
    settings, bad = _validated(values, problems)
    together: list[str] = []
    _check_together(settings, role, values, found, together, warnings)
    if mode == "start":
        _check_production(settings, together)
    problems += [said for said in together if not any(name in said for name in bad)]
    sources = {name: given.source for name, given in values.items()}
    sources |= {name: f"default, for the bad value ({sources[name]})" for name in bad}
    return settings.told(sources, tuple(warnings), overruled), problems


def _merge(
    mode: Mode,
    overrides: Mapping[str, str],
    environ: Mapping[str, str],
    cwd: Path,
    problems: list[str],
    warnings: list[str],
    overruled: dict[str, str] | None = None,
) -> dict[str, _Given]:
    """Every name meant for us that is given somewhere, from the source that wins; an empty value is no value.

    `overruled` gets the sources that win over the config file, by name.
    """
    ours = _our_names()
    layers: list[dict[str, _Given]] = [
        {name: _Given(value, "command line") for name, value in overrides.items()},
        {
            name: _Given(value, "environment")
            for name, value in environ.items()
            if _is_meant(name, ours)
        },
    ]
    layers.append(_credentials(environ.get("CREDENTIALS_DIRECTORY"), problems))
    if mode == "dev":
        layers.append(_dotenv(cwd / ".env", ours, problems, warnings))
    merged: dict[str, _Given] = {}
    for layer in layers:
        for name, given in layer.items():
            if given.value != "":
                merged.setdefault(name, given)
    for name, given in _config_file(mode, merged, problems).items():
        if name in merged and overruled is not None:
            overruled[name] = merged[name].source
        merged.setdefault(name, given)
    return merged


def _credentials(folder: str | None, problems: list[str]) -> dict[str, _Given]:
    """The secrets that the service manager keeps for us in `folder`, a file for each (systemd.exec(5), Credentials)."""
    found: dict[str, _Given] = {}
    for row in table():
        if folder is None or not row.secret:
            continue
        path = Path(folder) / row.name.lower()
        try:
            found[row.name] = _Given(_read_text(path).strip(), str(path))
        except _MissingError:
            continue
        except _UnreadableError as error:
            problems.append(str(error))
    return found


def _dotenv(
    path: Path, ours: set[str], problems: list[str], warnings: list[str]
) -> dict[str, _Given]:
    """What `path` sets of ours; other programs may use the file too. A folder `.env` is a virtual environment."""
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            return {}
    except FileNotFoundError:
        return {}
    except OSError as error:  # of a folder this user may not enter
        warnings.append(f"{path} cannot be looked at ({error.strerror})")
        return {}
    path = path.absolute()
    try:
        bindings = _bindings(_read_text(path))
    except _UnreadableError as error:
        problems.append(str(error))
        return {}
    found: dict[str, _Given] = {}
    for binding in bindings:
        name, line = binding.key, binding.original.line
        if binding.error:
            warnings.append(f"{path}, line {line}: is no NAME=value, so it is ignored")
        elif name is not None and binding.value is not None and _is_meant(name, ours):
            if name in found:
                warnings.append(f"{name} ({path}): is given again in line {line}, which wins")
            found[name] = _Given(binding.value, str(path))
    return found


class _UnreadableError(Exception):
    """A file that cannot be used as it is; the message names it and says why."""


class _MissingError(_UnreadableError):
    """It is not there."""


def _bindings(text: str) -> list[Binding]:
    """The lines of `text`: NAME=value, with or without `export` before it and quotes around the value."""
    return list(parse_stream(io.StringIO(text)))


def _read_text(path: Path) -> str:
    """The text of a regular file, whatever its line ends, without a byte order mark."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for whoever fills it
            raise _UnreadableError(f"{path} is no regular file")
        with path.open("rb") as file:
            content = file.read(FILE_BYTES + 1)
    except OSError as error:
        kind = _MissingError if isinstance(error, FileNotFoundError) else _UnreadableError
        raise kind(f"{path} cannot be read ({error.strerror})") from error
    if len(content) > FILE_BYTES:
        raise _UnreadableError(f"{path} is larger than {FILE_BYTES:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _UnreadableError(f"{path} is not UTF-8 text") from None
    if "\0" in text:
        raise _UnreadableError(f"{path} is no text, it holds a zero byte")
    return text


def _config_file(
    mode: Mode, merged: Mapping[str, _Given], problems: list[str]
) -> dict[str, _Given]:
    """The values of the config file: STACKD_CONFIG, else stackd.toml in the state directory or /etc/stackd."""
    named = merged.get("STACKD_CONFIG")
    if named is not None:
        candidates = [_expanded(named.value)]
    else:
        state = merged.get("STACKD_STATE_DIR")
        folder = _expanded(state.value) if state else default_state_dir(mode)
        folders = [folder, Path("/etc/stackd")] if folder else [Path("/etc/stackd")]
        candidates = [folder / "stackd.toml" for folder in folders]
    for path in candidates:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            if named is not None:
                problems.append(f"STACKD_CONFIG: there is no file {path}")
            continue
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{path}: cannot be read ({type(error).__name__})")
            return {}
        return _toml(path, text, problems)
    return {}


def _toml(path: Path, text: str, problems: list[str]) -> dict[str, _Given]:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{path}: {error}")
        return {}
    found = {}
    for name, value in values.items():
        if name in HELPER_NAMES | CLIENT_NAMES:
            problems.append(f"{path}: {name} is read from the environment only")
        else:
            found[name] = _Given(value, str(path))
    return found


def default_state_dir(mode: Mode) -> Path | None:
    """Where the state is unless STACKD_STATE_DIR says; None for `dev` without a home."""
    if mode == "start":
        return Path("/var/lib/stackd")
    home = _home()
    return None if home is None else home / ".local" / "state" / "stackd"


def _our_names() -> set[str]:
    return {row.name for row in table()} | PLANNED | CLIENT_NAMES | HELPER_NAMES


def _is_meant(name: str, ours: set[str]) -> bool:
    """Whether who set `name` meant us: by name, by prefix, but for its beginning, or but for a slip of the pen."""
    is_ours = (
        name in ours or name.startswith(("STACKD_", *_FAMILIES)) or bool(_whole_of(name, ours))
    )
    return is_ours or _is_slip(name, ours)


def _whole_of(name: str, ours: set[str]) -> list[str]:
    """The names of ours that end as `name`, whose beginning was left out; of two words others have some too."""
    return sorted(own for own in ours if own.endswith(f"_{name}")) if name.count("_") > 1 else []


def _is_slip(name: str, ours: set[str]) -> bool:
    return any(_is_near(name, own) for own in ours)


def foreign(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without anything meant for us: what a child gets that shall have settings of its own."""
    environ = os.environ if environ is None else environ
    ours = _our_names()
    return {name: value for name, value in environ.items() if not _is_meant(name, ours)}


def take_handed(environ: MutableMapping[str, str] | None = None) -> dict[str, str]:
    """What a service manager told this process by its environment; taken out of it, as no child is meant."""
    environ = os.environ if environ is None else environ
    return {name: environ.pop(name) for name in handover.NAMES if name in environ}


def _odd_names(found: Mapping[str, _Given]) -> tuple[list[str], list[str]]:
    """Names that are no setting: what `start` refuses, and what may be another program's."""
    ours = _our_names()
    refused: list[str] = []
    doubtful: list[str] = []
    for name in sorted(found.keys() - ours):
        source = found[name].source
        foreign = source == "environment" and not (
            name.startswith("STACKD_") or _is_slip(name, ours)
        )
        said = f"{name} ({source}): is no setting{_nearest(name, ours)}"
        (doubtful if foreign else refused).append(said)
    return refused, doubtful


def _is_near(name: str, own: str) -> bool:
    """Whether `name` misses `own` by at most `NEAR` edits. Only long names: short ones are near by chance."""
    if "_" not in name or len(own) < 10 or abs(len(name) - len(own)) > NEAR:
        return False
    before = list(range(len(own) + 1))
    for i, a in enumerate(name, 1):
        now = [i]
        for j, b in enumerate(own, 1):
            now.append(min(before[j] + 1, now[-1] + 1, before[j - 1] + (a != b)))
        if min(now) > NEAR:
            return False
        before = now
    return before[-1] <= NEAR


def _nearest(name: str, ours: set[str]) -> str:
    """What to add about the name of ours like `name`; a prefix that many have in common is no likeness."""
    if whole := _whole_of(name, ours):
        return f"; did you mean {whole[0]}?"
    bare = {_without_prefix(own): own for own in sorted(ours)}
    close = difflib.get_close_matches(_without_prefix(name), sorted(bare), n=1, cutoff=0.7)
    if close:
        return f"; did you mean {bare[close[0]]}?"
    slips = sorted(own for own in ours if _is_near(_without_prefix(name), own))
    return f"; did you mean {slips[0]}?" if slips else ""


def _without_prefix(name: str) -> str:
    prefix = next((one for one in ("STACKD_", *_FAMILIES) if name.startswith(one)), "")
    return name.removeprefix(prefix)


def _apply_mode(
    mode: Mode,
    values: dict[str, _Given],
    found: Mapping[str, _Given],
    environ: Mapping[str, str],
    problems: list[str],
) -> None:
    """What `dev` and `start` decide themselves, and defaults that differ between them."""
    values["STACKD_ENV"] = _Given(
        "development" if mode == "dev" else "production", f"stackd {mode}"
    )
    if "STACKD_STATE_DIR" not in values:
        folder = default_state_dir(mode)
        if folder is None:
            problems.append(
                f"STACKD_STATE_DIR: its default is below your home, but HOME names none and user "
                f"{os.getuid()} is not in the user database; set one of the two"
            )
        else:
            values["STACKD_STATE_DIR"] = _Given(str(folder), f"default of {mode}")
    if mode == "dev":
        values.setdefault("STACKD_LOG_STYLE", _Given("console", "default of dev"))
    alias = found.get("INLINE_EXECUTION_WORKER")
    if "ENABLE_INLINE_WORKER" not in values and alias is not None:
        values["ENABLE_INLINE_WORKER"] = _Given(
            alias.value, f"INLINE_EXECUTION_WORKER, {alias.source}"
        )
    inline = values.get("ENABLE_INLINE_WORKER")
    if inline is not None and str(inline.value).strip().lower() == "inline":
        values["ENABLE_INLINE_WORKER"] = _Given("true", inline.source)
    if inline is None and mode == "dev" and not _holds(environ.get("CI")):
        disabled = found.get("DISABLE_INLINE_WORKER_AUTOSTART")
        if disabled is None or not _holds(disabled.value):
            values["ENABLE_INLINE_WORKER"] = _Given("true", "default of dev")
    if "EXECUTION_LOCK_RENEW_MS" not in values and "EXECUTION_LOCK_DURATION_MS" in values:
        with contextlib.suppress(ValueError):
            lock = values["EXECUTION_LOCK_DURATION_MS"]
            values["EXECUTION_LOCK_RENEW_MS"] = _Given(
                max(_number(lock.value) / 4, 250), "a quarter of the lock"
            )
    _apply_sandbox(values)


def _apply_sandbox(values: dict[str, _Given]) -> None:
    """What decides the executor, and how long it may be silent, where these are not given themselves: as the origin has it."""
    worker = values.get("WORKER_SANDBOX_ENABLED")
    if "SANDBOX_EXECUTOR" not in values and worker is not None and _holds(worker.value):
        values["SANDBOX_EXECUTOR"] = _Given("worker", f"WORKER_SANDBOX_ENABLED, {worker.source}")
    beat = values.get("SANDBOX_HEARTBEAT_INTERVAL_MS")
    if "SANDBOX_HEARTBEAT_TIMEOUT_MS" not in values and beat is not None:
        with contextlib.suppress(ValueError):
            longest = max(3 * _number(beat.value), 3000)
            values["SANDBOX_HEARTBEAT_TIMEOUT_MS"] = _Given(longest, "by the interval")


def _holds(value: Any) -> bool:
    return _TRUTHS.get(str(value).strip().lower(), False)


def _validated(
    values: Mapping[str, _Given], problems: list[str]
) -> tuple[Settings, frozenset[str]]:
    """The settings, with the default in place of each bad value, and the names of those."""
    plain = {name: given.value for name, given in values.items()}
    try:
        return Settings.model_validate(plain), frozenset()
    except ValidationError as error:
        found = {str(one["loc"][0]): one["msg"] for one in error.errors(include_url=False)}
    secret = {row.name for row in table() if row.secret}
    for name, message in found.items():
        given = values[name]
        shown = "(not shown)" if name in secret else _USERINFO.sub("//…@", repr(given.value))
        said = message.removeprefix("Value error, ").removeprefix("Input ")
        problems.append(f"{name}={shown} ({given.source}): {said}")
    sound = {name: value for name, value in plain.items() if name not in found}
    return Settings.model_validate(sound), frozenset(found)


def _check_together(
    settings: Settings,
    role: str,
    values: Mapping[str, _Given],
    found: Mapping[str, _Given],
    problems: list[str],
    warnings: list[str],
) -> None:
    if settings.lease_renew > settings.lease / 2:
        problems.append(
            "EXECUTION_LOCK_RENEW_MS must be at most half of EXECUTION_LOCK_DURATION_MS, "
            "or leases end between renewals"
        )
    if settings.max_retry_delay < settings.retry_delay:
        problems.append("EXECUTION_MAX_RETRY_DELAY_MS must not be below EXECUTION_RETRY_DELAY_MS")
    if settings.max_output_bytes > settings.max_execution_bytes:
        problems.append("STACKD_MAX_OUTPUT_BYTES must not be above STACKD_MAX_EXECUTION_BYTES")
    if settings.max_blob_bytes > settings.blob_bytes:
        problems.append("STACKD_MAX_BLOB_BYTES must not be above STACKD_BLOB_BYTES")
    if settings.queue_driver == "inmemory" and settings.env == "production":
        problems.append("QUEUE_DRIVER=inmemory loses work at every stop; only `dev` takes it")
    elif settings.queue_driver == "inmemory" and role == "stack":
        problems.append(
            "QUEUE_DRIVER=inmemory: the stack needs a durable queue; use sqlite, or start one role"
        )
    if settings.env == "development":
        _check_reach(settings.host, values, warnings)
    env = found.get("STACKD_ENV")
    if env is not None and _lower(env.value) != settings.env:
        warnings.append(
            f"STACKD_ENV={env.value!r} ({env.source}): has no effect; `dev` sets development, "
            "`start` sets production"
        )
    if settings.no_proxy and not settings.http_proxy:
        warnings.append("STACKD_NO_PROXY: has no effect without STACKD_HTTP_PROXY")
    if settings.queue_driver == "inmemory" and settings.database is not None:
        warnings.append("STACKD_DATABASE_URL: has no effect with QUEUE_DRIVER=inmemory")
    key = settings.encryption_master_key
    if key and _is_weak(key):
        problems.append(
            f"ENCRYPTION_MASTER_KEY ({values['ENCRYPTION_MASTER_KEY'].source}): too weak; it needs "
            f"{KEY_LENGTH} characters, {KEY_VARIETY} of them different; make one with "
            "`openssl rand -base64 32`"
        )
    _check_inline_worker(settings, found, problems, warnings)
    _check_sandbox(settings, values, problems, warnings)
    both = set(settings.network_allow_domains) & set(settings.network_deny_domains)
    warnings.extend(f"{domain} is on both network lists; deny wins" for domain in sorted(both))


def _check_reach(host: str, values: Mapping[str, _Given], warnings: list[str]) -> None:
    """`dev` is meant for this machine: say so where others can reach it. Of a name nobody knows yet."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if not address.is_loopback:
            place = "on all interfaces" if address.is_unspecified else "beyond loopback"
            warnings.append(
                f"HOST={host} ({values['HOST'].source}): listens {place}, other machines can reach it; "
                "unset HOST to keep `dev` to this one"
            )


def _is_weak(key: str) -> bool:
    return len(key) < KEY_LENGTH or len(set(key)) < KEY_VARIETY


def _check_inline_worker(
    settings: Settings, found: Mapping[str, _Given], problems: list[str], warnings: list[str]
) -> None:
    if {"ENABLE_INLINE_WORKER", "INLINE_EXECUTION_WORKER"} <= found.keys():
        warnings.append("INLINE_EXECUTION_WORKER: has no effect beside ENABLE_INLINE_WORKER")
    disabled = found.get("DISABLE_INLINE_WORKER_AUTOSTART")
    if disabled is None:
        return
    try:
        told_not_to = _read_boolean(disabled.value)
    except ValueError as error:
        problems.append(
            f"DISABLE_INLINE_WORKER_AUTOSTART={disabled.value!r} ({disabled.source}): {error}"
        )
        return
    if told_not_to and settings.inline_worker:
        warnings.append(
            "DISABLE_INLINE_WORKER_AUTOSTART: has no effect with ENABLE_INLINE_WORKER=true"
        )


def _check_sandbox(
    settings: Settings, values: Mapping[str, _Given], problems: list[str], warnings: list[str]
) -> None:
    if settings.sandbox_timeout > settings.sandbox_max_timeout:
        problems.append("STACKD_SANDBOX_TIMEOUT_MS must not be above STACKD_SANDBOX_MAX_TIMEOUT_MS")
    if settings.sandbox_silence < 2 * settings.sandbox_beat:
        problems.append(
            "SANDBOX_HEARTBEAT_TIMEOUT_MS must be at least twice SANDBOX_HEARTBEAT_INTERVAL_MS, "
            "or one beat that comes late ends a run"
        )
    packages = settings.sandbox_packages
    if packages is not None:
        problem = _unfit_packages(packages, settings.state_dir)
        if problem:
            problems.append(f"STACKD_SANDBOX_PACKAGES {packages} {problem}")
    is_worker = settings.sandbox_executor == "worker"
    if "WORKER_SANDBOX_ENABLED" in values and settings.worker_sandbox != is_worker:
        executor = settings.sandbox_executor
        warnings.append(f"WORKER_SANDBOX_ENABLED: has no effect beside SANDBOX_EXECUTOR={executor}")
    if settings.sandbox_cpu_quota and settings.sandbox_cgroup_root == "none":
        warnings.append("SANDBOX_CPU_QUOTA_MS: has no effect with SANDBOX_CGROUP_ROOT=none")


def _unfit_packages(folder: Path, state: Path) -> str | None:
    """Why code shall not be shown `folder`."""
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            return "is no folder"
        if Path(os.path.realpath(state)).is_relative_to(os.path.realpath(folder)):
            return "holds the state directory, and code can read all of it; name a folder of packages alone"
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    return None


def _check_production(settings: Settings, problems: list[str]) -> None:
    if not settings.encryption_master_key:
        problems.append(
            "ENCRYPTION_MASTER_KEY is missing; make one with `openssl rand -base64 32` and keep it safe"
        )
    problem = _unusable(settings.state_dir)
    if problem:
        problems.append(
            f"STACKD_STATE_DIR {settings.state_dir} {problem}; create it for this user or set another"
        )


def _unusable(folder: Path) -> str | None:
    """Why `folder` cannot be made or written to; None if, as far as can be seen without making it, it can."""
    try:
        place = _nearest_existing(folder)
        if not stat.S_ISDIR(place.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
            is_fixed = os.statvfs(place).f_flag & os.ST_RDONLY
            raise PermissionError(0, os.strerror(errno.EROFS if is_fixed else errno.EACCES))
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    return None


def _nearest_existing(path: Path) -> Path:
    for place in (path, *path.parents):
        with contextlib.suppress(FileNotFoundError):
            place.stat()
            return place
    return path


# -- secrets of `dev`

_KEPT: Final = "ENCRYPTION_MASTER_KEY"  # the one there is


def ensure_dev_secrets(settings: Settings) -> Settings:
    """`settings` with the secrets `dev` needs; missing ones are made once and kept in `secrets.env`.

    Raises:
        SettingsError: the state directory or that file cannot be used.
        StoreFullError: there is no room for it.
    """
    if not _lacks_secrets(settings):
        return settings
    path = _secrets_file(settings)
    return _with_secrets(settings, _kept(path, f"{_KEPT}={secrets.token_urlsafe(48)}\n"))


def with_dev_secrets(settings: Settings) -> Settings:
    """`settings` with the secrets that `dev` has kept, if it has made them; nothing is made or changed.

    Raises:
        SettingsError: their file cannot be used.
    """
    path = _secrets_file(settings)
    try:
        if not _lacks_secrets(settings) or not path.exists():
            return settings
        return _with_secrets(settings, _read_text(path))
    except _UnreadableError as error:
        raise SettingsError([f"{error}; remove it to make a new one"]) from error
    except OSError as error:
        raise SettingsError([f"{path} cannot be used ({error.strerror})"]) from error


def _lacks_secrets(settings: Settings) -> bool:
    return settings.env == "development" and not settings.encryption_master_key


def _secrets_file(settings: Settings) -> Path:
    return settings.state_dir / "secrets.env"


def _with_secrets(settings: Settings, text: str) -> Settings:
    """`settings` with the key in `text`, what `secrets.env` holds."""
    path, bindings = _secrets_file(settings), _bindings(text)
    match [one.value for one in bindings if one.key == _KEPT and one.value]:
        case [key] if not _is_weak(key):
            idle = sorted({one.key for one in bindings if one.key} - {_KEPT})
            warnings = tuple(f"{one} ({path}): has no effect there" for one in idle)
            filled = settings.model_copy(update={"encryption_master_key": key})
            return filled.told(
                {**settings.sources, _KEPT: str(path)}, (*settings.warnings, *warnings)
            )
        case []:
            problem = f"{path} holds no {_KEPT}"
        case [_]:
            problem = f"{path} holds a weak {_KEPT}"
        case _:
            problem = f"{path} holds more than one {_KEPT}"
    raise SettingsError([f"{problem}; put it right, or remove the file to make a new one"])


def dev_token_file(state_dir: Path) -> Path:
    return state_dir / "dev-token"


def ensure_dev_token(state_dir: Path) -> str:
    """The bearer token of `dev`, made at first use and kept; never a short or blank one.

    Raises:
        SettingsError: the state directory or the file of the token cannot be used.
        StoreFullError: there is no room for it.
    """
    path = dev_token_file(state_dir)
    token = _kept(path, f"{secrets.token_urlsafe(32)}\n").strip()
    if not _TOKEN.fullmatch(token):
        raise SettingsError(
            [
                f"{path} holds no token: {TOKEN_LENGTH} or more letters, digits or any of -._~+/=; "
                "remove the file to make a new one"
            ]
        )
    return token


def _kept(path: Path, fresh: str) -> str:
    """The text of the file of secrets at `path`, `fresh` if there was none; for its owner alone from now on."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make_once(path, fresh)
        text = _read_text(path)
        found = path.stat()
        if found.st_uid != os.geteuid():
            raise SettingsError([f"{path} belongs to another user (uid {found.st_uid})"])
        if stat.S_IMODE(found.st_mode) & 0o077:
            path.chmod(0o600)
    except _UnreadableError as error:
        raise SettingsError([f"{error}; remove it to make a new one"]) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFullError(f"no space left for {path}", hint="free disk space") from error
        raise SettingsError([f"{path} cannot be used ({error.strerror})"]) from error
    return text


def _make_once(path: Path, content: str) -> None:
    """`path` holds `content`, or what another first start at the same time put there; whole even after a kill."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(partial)
    finally:
        partial.unlink()


# -- the client's side


@dataclass(frozen=True, slots=True)
class Connection:
    """Where commands find the daemon. `url` None: over `socket_path`, without a token."""

    url: str | None
    token: str | None
    socket_path: Path


def connection_settings(
    environ: Mapping[str, str] | None = None,
    *,
    cwd: Path | None = None,
    exists: Callable[[Path], bool] = Path.exists,
) -> Connection:
    """Where `dev` would be with these settings; or `start`, if only there is a socket and nothing says where.

    Of what else is wrong with the settings a client knows nothing: the daemon it finds has judged its own.
    """
    environ = os.environ if environ is None else environ
    found = _merge("dev", {}, environ, cwd or Path(), [], [])
    sockets = [_socket_of("dev", found)]
    # Where it is named, a daemon elsewhere is not the one that is meant.
    if "STACKD_STATE_DIR" not in found:
        sockets.append(_socket_of("start", _merge("start", {}, environ, Path(), [], [])))
    there = [path for path in sockets if path is not None]
    return Connection(
        url=_text(found.get("STACKD_URL")),
        token=_text(found.get("STACKD_TOKEN")),
        socket_path=next((path for path in there if exists(path)), there[0]),
    )


def store_places(
    *, state: str | None = None, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> list[tuple[Path, Path]]:
    """(state directory, database) where a daemon on these settings would have its store: as `dev`, or as `start`.

    Args:
        state: the state directory, whatever the settings say.
    """
    overrides = {} if state is None else {"STACKD_STATE_DIR": state}
    found: list[tuple[Path, Path]] = []
    modes: tuple[Mode, ...] = ("dev", "start")
    for mode in modes:
        settings, _ = read_settings(mode, overrides=overrides, environ=environ, cwd=cwd)
        place = settings.state_dir, settings.database_path
        if place not in found:
            found.append(place)
    return found


def _socket_of(mode: Mode, found: Mapping[str, _Given]) -> Path | None:
    state = found.get("STACKD_STATE_DIR")
    folder = default_state_dir(mode) if state is None else _expanded(state.value)
    return None if folder is None else folder / "stackd.sock"


def _text(given: _Given | None) -> str | None:
    return None if given is None else str(given.value)
