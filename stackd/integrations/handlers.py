"""Bespoke handlers: `connectors/<id>/handlers.py`, whose public coroutines run operations of the same name.

A file is loaded by its path when the catalogue is read. Whatever it does wrong is contained: the connector then has
no handlers, and says why. Its code runs on a thread of its own, for nothing can end one that hangs: after
`LOAD_WITHIN` nobody waits for it any more, and it is not run a second time while it goes on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import stat
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from stackd.core.apps import normal_operation
from stackd.core.json import Json

Handler = Callable[[dict[str, Json], Any], Awaitable[Json]]

LOAD_WITHIN: Final = 10.0  # seconds; a large library, on a slow machine that has not read it yet
WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Handlers:
    """What a file of handlers came to.

    Attributes:
        by_name: the handlers, by the name of their operation as it is compared.
        transport: `own` if the file says that its requests do not go through `ctx.http`.
        problem: why there are none; None if there is no file, or it is good.
        digest: of the file, empty without one.
    """

    by_name: Mapping[str, Handler] = field(default_factory=dict)
    transport: str = "ctx"
    problem: str | None = None
    digest: str = ""


@dataclass(slots=True)
class _Loading:
    """A file whose code runs. `is_given_up`: for too long already."""

    module: Future[ModuleType] = field(default_factory=Future)
    is_given_up: bool = False


_LOADING: Final[dict[tuple[Path, str], _Loading]] = {}  # by file and digest
_LOADING_LOCK: Final = threading.Lock()


def load_handlers(path: Path, *, within: float = LOAD_WITHIN) -> Handlers:
    """The handlers in the file at `path`; none if there is no such file. Runs its code; raises nothing.

    `within`: seconds after which they are given up, until the file is changed or its code has come to an end.
    """
    try:
        source = path.read_bytes()
        state = path.stat()
    except FileNotFoundError:
        return Handlers()
    except OSError as error:
        return Handlers(problem=f"{path.name} cannot be read ({error.strerror})")
    digest = hashlib.sha256(source).hexdigest()
    if state.st_mode & WRITABLE_BY_OTHERS or state.st_uid not in (0, os.geteuid()):
        return Handlers(
            problem=f"{path.name} can be written by others; it must belong to this user or root, mode 0644",
            digest=digest,
        )
    loading = _begun(path, source, digest)
    try:
        fault = loading.module.exception(0 if loading.is_given_up else within)
    except TimeoutError:
        loading.is_given_up = True
        return Handlers(
            problem=f"{path.name} cannot be loaded: its code has not come to an end within {within:g} s, and goes on "
            "until stackd is restarted; mend it, then reload",
            digest=digest,
        )
    _LOADING.pop((path, digest), None)
    if fault is not None:
        return Handlers(
            problem=f"{path.name} cannot be loaded: {type(fault).__name__}: {_brief(fault)}",
            digest=digest,
        )
    module = loading.module.result()
    transport = getattr(module, "TRANSPORT", "ctx")
    return Handlers(
        by_name={
            normal_operation(name): function
            for name, function in vars(module).items()
            if not name.startswith("_")
            and inspect.iscoroutinefunction(function)
            and function.__module__ == module.__name__
        },
        transport="own" if transport == "own" else "ctx",
        digest=digest,
    )


def _begun(path: Path, source: bytes, digest: str) -> _Loading:
    """The run of that code: one that is under way, else a new one."""
    with _LOADING_LOCK:
        loading = _LOADING.get((path, digest))
        if loading is None:
            loading = _LOADING[path, digest] = _Loading()
            name = f"handlers of {path.parent.name}"
            arguments = (loading.module, path, source, digest)
            threading.Thread(target=_load, args=arguments, name=name, daemon=True).start()
        return loading


def _load(module: Future[ModuleType], path: Path, source: bytes, digest: str) -> None:
    try:
        module.set_result(_loaded(path, source, digest))
    except BaseException as error:  # noqa: BLE001  # their code may end in anything, sys.exit too
        module.set_exception(error)


def _loaded(path: Path, source: bytes, digest: str) -> ModuleType:
    """The module of a file, from the bytes that were judged; no bytecode is written beside it."""
    name = f"stackd_connectors.{path.parent.name.replace('-', '_')}_{digest[:12]}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None  # noqa: S101  # for the type checker: a loader of None is one
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pydantic look their module up
    try:
        exec(compile(source, str(path), "exec"), vars(module))  # noqa: S102  # the operator's own code
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _brief(error: BaseException) -> str:
    line = getattr(error, "lineno", None)
    text = str(error).splitlines()[0][:200] if str(error) else ""
    return f"{text} (line {line})" if line and "line" not in text else text
