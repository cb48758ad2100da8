"""`stackd systemd`: stackd as a service of systemd. Its units printed, put in place, and taken away.

What is done can be done again: a second run finds all as it should be and says so.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Annotated, Final

import typer

import stackd
from stackd.cli.context import complain, print_safe, say
from stackd.core.errors import InputError, StackdError
from stackd.core.places import shipped
from stackd.settings import Settings, read_settings

SERVICE: Final = "stackd.service"
SOCKET: Final = "stackd.socket"
DROPIN: Final = "since-254.conf"
DROPIN_SINCE: Final = 254

UNITS: Final = Path("/etc/systemd/system")
KEY: Final = Path("/etc/credstore/stackd.encryption_master_key")
CONFIG: Final = Path("/etc/stackd/stackd.toml")
RUNNING: Final = Path("/run/systemd/system")  # is there where systemd runs, sd_booted(3)

USER: Final = "stackd"
STATE: Final = Path("/var/lib/stackd")
PROGRAM: Final = Path("/opt/stackd/bin/stackd")  # these three as the shipped unit has them

_HIDDEN: Final = tuple(
    map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp"))  # noqa: S108  # of which the unit sees its own
)
_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_PATH = re.compile(r"(/[A-Za-z0-9._+@:-]+)+")  # what needs no quotes in a unit

app = typer.Typer(no_args_is_help=True)

UserOption = Annotated[str, typer.Option("--user", help="The user that it runs as.")]
StateOption = Annotated[Path, typer.Option("--state", help="Its state directory.")]
RootOption = Annotated[
    Path, typer.Option("--root", help="The root of another system, which does not run.")
]
DryOption = Annotated[
    bool, typer.Option("--dry-run", help="Change nothing, only say what would be done.")
]


@app.command()
def unit(
    socket: Annotated[bool, typer.Option("--socket", help="The socket unit.")] = False,
    dropin: Annotated[
        bool, typer.Option("--dropin", help=f"What systemd {DROPIN_SINCE} and later has besides.")
    ] = False,
    user: UserOption = USER,
    state: StateOption = STATE,
) -> None:
    """Print the service unit, with the path of this stackd."""
    if socket and dropin:
        raise InputError("--socket and --dropin are two files", hint="ask for one at a time")
    if socket:
        print_safe(socket_unit(_settings(Path("/"), state)))
    elif dropin:
        print_safe(_shipped(DROPIN))
    else:
        for problem in _unreachable():
            complain(f"warning: {problem}")
        print_safe(service_unit(_program(), user, state))


@app.command()
def install(
    user: UserOption = USER,
    state: StateOption = STATE,
    with_socket: Annotated[
        bool,
        typer.Option("--socket/--no-socket", help="Let systemd hold the port open over restarts."),
    ] = True,
    now: Annotated[bool, typer.Option("--now", help="Start it too, or start it anew.")] = False,
    dry_run: DryOption = False,
    root: RootOption = Path("/"),
) -> None:
    """Make the user, the state directory and the master key, and enable the units. Needs root."""
    site = _site(root, dry_run=dry_run, now=now)
    settings = _settings(root, state)
    if root == Path("/") and (problems := _unreachable()):
        raise InputError(
            "; ".join(problems), hint="install stackd where every user may read it, as in /opt"
        )
    units = {SERVICE: service_unit(_program(), user, state)}
    if with_socket:
        units[SOCKET] = socket_unit(settings)
    if site.version >= DROPIN_SINCE:
        units[f"{SERVICE}.d/{DROPIN}"] = _shipped(DROPIN)

    _make_user(site, user, state)
    _make_state(site, user, state)
    _make_key(site, settings)
    changed = [name for name, text in units.items() if site.write(UNITS / name, text)]
    if changed and site.runs:
        site.do("let systemd read the units", "daemon-reload")
    enabled: list[str] = [name for name in (SOCKET, SERVICE) if name in units]
    for name in enabled:
        if not site.asks("is-enabled", name):
            site.do(f"enabled {name}", "enable", name)
    if now:
        _start(site, enabled, anew=bool(changed))
    elif changed and site.runs and site.asks("is-active", SERVICE):
        say(f"systemctl restart {SERVICE} applies it")
    site.conclude()


@app.command()
def uninstall(
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove the state and the master key too, for good.")
    ] = False,
    dry_run: DryOption = False,
    root: RootOption = Path("/"),
) -> None:
    """Stop it and remove its units; the state, the master key and the user stay. Needs root."""
    site = _site(root, dry_run=dry_run)
    state = _installed_state(site)
    for name in (SOCKET, SERVICE):
        if site.runs and site.asks("is-active", name):
            site.do(f"stopped {name}", "stop", name)
        if site.at(UNITS / name).exists() and site.asks("is-enabled", name):
            site.do(f"disabled {name}", "disable", name)
    removed = [site.remove(UNITS / name) for name in (SOCKET, f"{SERVICE}.d/{DROPIN}", SERVICE)]
    with contextlib.suppress(OSError):  # it is not there, or holds drop-ins of others
        site.at(UNITS / f"{SERVICE}.d").rmdir()
    if any(removed) and site.runs:
        site.do("let systemd forget the units", "daemon-reload")
    if purge:
        _purge(site, state)
    site.conclude()


# -- the units


def service_unit(program: Path, user: str, state: Path) -> str:
    """The service unit for `program`, run as `user` on `state`.

    Raises:
        InputError: one of these cannot stand in a unit.
    """
    if not _NAME.fullmatch(user):
        raise InputError(f"{user!r} is no name of a user")
    _check_plain(program)
    _check_plain(state)
    if any(state.is_relative_to(hidden) for hidden in _HIDDEN):
        raise InputError(
            f"{state} is hidden from the unit", hint="use a folder in /var/lib or /srv"
        )
    text = _shipped(SERVICE).replace(str(PROGRAM), str(program))
    text = text.replace(f"={USER}\n", f"={user}\n", 2)  # User and Group
    if state != STATE:
        text = text.replace(str(STATE), str(state))
        folder = f"StateDirectory={USER}\nStateDirectoryMode=0700\n"
        if state.is_relative_to("/var/lib"):
            name = state.relative_to("/var/lib")
            text = text.replace(folder, f"StateDirectory={name}\nStateDirectoryMode=0700\n")
        else:
            text = text.replace(folder, f"ReadWritePaths={state}\n")
    return text


def _check_plain(path: Path) -> None:
    if not _PATH.fullmatch(str(path)) or ".." in path.parts:
        raise InputError(f"{str(path)!r} cannot stand in a unit", hint="use a plain absolute path")


def socket_unit(settings: Settings) -> str:
    """The socket unit, at HOST and PORT of `settings`.

    Raises:
        InputError: a socket unit cannot have those.
    """
    try:
        host = ip_address(settings.host)
    except ValueError:
        raise InputError(
            f"HOST is {settings.host!r}; a socket unit takes an address",
            hint="set HOST to an address, or use --no-socket",
        ) from None
    if not settings.port:
        raise InputError(
            "PORT is 0; a socket unit takes a port", hint="set PORT, or use --no-socket"
        )
    shown = f"[{host}]" if isinstance(host, IPv6Address) else str(host)
    listen = f"ListenStream={shown}:{settings.port}\n"
    return re.sub(r"(?m)^ListenStream=.*\n", listen, _shipped(SOCKET))


def _shipped(name: str) -> str:
    return (shipped("config") / "systemd" / name).read_text()


def _program() -> Path:
    """The path of this stackd, as a command."""
    for path in (Path(sys.argv[0]), Path(sys.executable).with_name("stackd")):
        if path.name == "stackd" and path.is_file():
            return path.absolute()
    raise InputError(
        "there is no command stackd beside this Python", hint="install stackd with pip"
    )


def _unreachable() -> list[str]:
    """Why a service that runs as a user of its own could not run this stackd."""
    problems = []
    for path in (_program(), Path(sys.executable).resolve(), Path(stackd.__file__)):
        hidden = next((one for one in _HIDDEN if path.is_relative_to(one)), None)
        if hidden is not None:
            problems.append(f"{path} is hidden from the unit, as all of {hidden} is")
        else:
            problems += [
                f"{folder} is closed to other users"
                for folder in path.parents
                if not folder.stat().st_mode & stat.S_IXOTH
            ]
    return sorted(set(problems))


def _settings(root: Path, state: Path) -> Settings:
    """The settings that `start` would have there, as far as its config file says."""
    _check_plain(state)
    files = (_at(root, state / "stackd.toml"), _at(root, CONFIG))
    config = next((path for path in files if path.is_file()), Path(os.devnull))
    environ = {"STACKD_STATE_DIR": str(state), "STACKD_CONFIG": str(config)}
    return read_settings("start", environ=environ)[0]


# -- the system they are put into


def _at(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


class CommandError(StackdError):
    """A command of systemd failed."""

    code = "systemd.failed"


@dataclass(slots=True)
class _Site:
    """A system: that of this machine, or the one below `root`. With `is_dry` it is only looked at."""

    root: Path
    is_dry: bool
    runs: bool
    version: int
    changes: int = 0

    def at(self, path: Path) -> Path:
        return _at(self.root, path)

    def change(self, done: str, act: Callable[[], object]) -> None:
        """Act and say what was done, or only say it."""
        self.changes += 1
        if self.is_dry:
            say(f"dry run: {done}")
        else:
            act()
            say(done)

    def conclude(self) -> None:
        if not self.changes:
            say("nothing has changed")

    def write(self, path: Path, text: str) -> bool:
        """Let the file at `path` hold `text`; whether it did not."""
        place = self.at(path)
        with contextlib.suppress(FileNotFoundError):
            if place.read_text() == text:
                return False

        def act() -> None:
            place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            partial = place.with_name(f".{place.name}.new")
            partial.write_text(text)
            partial.chmod(0o644)
            partial.replace(place)

        self.change(f"wrote {path}", act)
        return True

    def remove(self, path: Path) -> bool:
        """Let there be no file at `path`; whether there was one."""
        place = self.at(path)
        if not place.exists():
            return False
        self.change(f"removed {path}", place.unlink)
        return True

    def asks(self, *words: str) -> bool:
        """Whether systemctl says yes."""
        return self._systemctl(*words).returncode == 0

    def do(self, done: str, *words: str) -> None:
        """As `change`, by systemctl."""

        def act() -> None:
            ended = self._systemctl(*words)
            if ended.returncode:
                raise _failed("systemctl", *words, said=ended.stderr)

        self.change(done, act)

    def _systemctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        elsewhere = () if self.runs else (f"--root={self.root}",)
        return _run("systemctl", "--no-ask-password", *elsewhere, *words)


def _run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    path = shutil.which(name)
    if path is None:
        raise InputError(f"there is no command {name} here", hint="this needs systemd")
    return subprocess.run([path, *words], capture_output=True, text=True, check=False)


def _failed(*command: str, said: str) -> CommandError:
    return CommandError(f"{' '.join(command)} failed: {said.strip() or 'it does not say why'}")


def _site(root: Path, *, dry_run: bool, now: bool = False) -> _Site:
    is_here = root == Path("/")
    if not root.is_absolute() or not root.is_dir():
        raise InputError(f"--root {root} is no absolute path of a folder")
    if is_here and os.geteuid() != 0 and not dry_run:
        raise InputError("this needs root", hint="use sudo, or --dry-run to see what would be done")
    runs = is_here and RUNNING.is_dir()
    if now and not runs:
        raise InputError("--now: systemd does not run there", hint="leave it out")
    said = _run("systemctl", "--version").stdout
    version = re.match(r"systemd (\d+)", said)
    return _Site(root, dry_run, runs, int(version[1]) if version else 0)


# -- the steps


def _ids(site: _Site, user: str) -> tuple[int, int] | None:
    """The numbers of `user` and its group there; None if there is no such user."""
    if site.root == Path("/"):
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(user)
            return found.pw_uid, found.pw_gid
        return None
    with contextlib.suppress(FileNotFoundError):
        for line in site.at(Path("/etc/passwd")).read_text().splitlines():
            name, _, uid, gid, *_ = line.split(":")
            if name == user:
                return int(uid), int(gid)
    return None


def _make_user(site: _Site, user: str, state: Path) -> None:
    command = (
        "systemd-sysusers", f"--root={site.root}", "--inline", f'u {user} - "stackd" {state}',
    )  # fmt: skip

    def act() -> None:
        site.at(Path("/etc")).mkdir(exist_ok=True)
        ended = _run(*command)
        if ended.returncode:
            raise _failed(*command, said=ended.stderr)

    if _ids(site, user) is None:
        site.change(f"made the user {user}", act)


def _make_state(site: _Site, user: str, state: Path) -> None:
    place, ids = site.at(state), _ids(site, user)

    def own() -> None:
        if (
            ids is not None and os.geteuid() == 0
        ):  # else, below a root of one's own, it is one's own
            os.chown(place, *ids)

    def make() -> None:
        place.mkdir(mode=0o700, parents=True)
        own()

    if not place.exists():
        site.change(f"made {state}", make)
        return
    found = place.stat()
    if stat.S_IMODE(found.st_mode) != 0o700:
        site.change(f"closed {state} to other users", lambda: place.chmod(0o700))
    if ids is not None and (found.st_uid, found.st_gid) != ids and os.geteuid() == 0:
        site.change(f"gave {state} to {user}", own)


def _make_key(site: _Site, settings: Settings) -> None:
    """The master key, made once; none where the config file has one, which it would win over."""
    place = site.at(KEY)

    def make() -> None:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{secrets.token_urlsafe(48)}\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(place)

    if settings.encryption_master_key:
        return
    if not place.exists():
        site.change(f"made a master key, {KEY}: keep a copy, what it seals is lost with it", make)
    elif stat.S_IMODE(place.stat().st_mode) & 0o077:
        site.change(f"closed {KEY} to other users", lambda: place.chmod(0o600))


def _start(site: _Site, names: list[str], *, anew: bool) -> None:
    """Start what does not run; all of it if `anew`. A socket unit only starts before its service does."""
    running = [name for name in names if site.asks("is-active", name)]
    if anew and running:
        site.do(f"stopped {' '.join(running)}", "stop", *running)
        running = []
    for name in names:
        if name not in running:
            site.do(f"started {name}", "start", name)


def _installed_state(site: _Site) -> Path:
    """The state directory that the installed unit names."""
    with contextlib.suppress(FileNotFoundError):
        text = site.at(UNITS / SERVICE).read_text()
        if found := re.search(r"(?m)^Environment=STACKD_STATE_DIR=(/\S+)$", text):
            return Path(found[1])
    return STATE


def _purge(site: _Site, state: Path) -> None:
    place = site.at(state)
    if place.exists():
        if not _is_state(place):
            raise InputError(
                f"{state} does not look like a state directory", hint="remove it by hand"
            )
        site.change(f"removed {state}", lambda: shutil.rmtree(place))
    site.remove(KEY)


def _is_state(place: Path) -> bool:
    """Whether `place` is empty, or holds what a daemon leaves there."""
    names = {path.name for path in place.iterdir()}
    return not names or not names.isdisjoint({"stackd.db", "api.lock", "scheduler.lock", "blobs"})
