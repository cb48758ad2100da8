"""Bespoke handlers: `connectors/<id>/handlers.py`, whose public coroutines run operations of the same name.

A file is loaded by its path, on a thread, when the catalogue is read. Whatever it does wrong is contained: the
connector then has no handlers, and says why.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import stat
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from stackd.core.apps import normal_operation
from stackd.core.json import Json

Handler = Callable[[dict[str, Json], Any], Awaitable[Json]]

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


def load_handlers(path: Path) -> Handlers:
    """The handlers in the file at `path`; none if there is no such file. Runs its code; raises nothing."""
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
    try:
        module = _loaded(path, source, digest)
    except BaseException as error:  # noqa: BLE001  # their code may end in anything, sys.exit too
        return Handlers(
            problem=f"{path.name} cannot be loaded: {type(error).__name__}: {_brief(error)}",
            digest=digest,
        )
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
