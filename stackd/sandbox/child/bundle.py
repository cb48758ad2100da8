"""Our own modules as they are handed to what runs inside: compiled once, read from no file there.

A fresh interpreter would compile them at each start, for it may write nothing, and some could not even find them.
"""

from __future__ import annotations

import marshal
import os
import re
import sys
from typing import Any, Final

FILE: Final = 4  # the file descriptor of the bundle in a fresh interpreter
# Imports that only type checkers read; to load `typing` takes a fresh interpreter a tenth of its start.
_FOR_CHECKERS: Final = re.compile(
    r"^from (?:__future__|typing|collections\.abc) import .*$", re.MULTILINE
)
_PACKAGE: Final = "stackd.sandbox.child"
_NAMES: Final = ("frames", "values", "fetch", "places", "loop", "runner")

# What a fresh interpreter begins with.
BEGIN: Final = f"""
import marshal, os, sys
from _frozen_importlib import ModuleSpec
codes = marshal.loads(os.pread({FILE}, 1 << 22, 0))
os.close({FILE})
class Ours:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in codes:
            return ModuleSpec(name, Ours, is_package=codes[name] is None)
    @staticmethod
    def create_module(spec):
        return None
    @staticmethod
    def exec_module(module):
        if codes[module.__name__] is not None:
            exec(codes[module.__name__], module.__dict__)
sys.meta_path.insert(0, Ours)
from {_PACKAGE}.runner import main
main(counts_threads=sys.argv.pop() == "counts")
"""


def made() -> bytes:
    """The bundle."""
    here = os.path.dirname(os.path.abspath(__file__))
    codes: dict[str, Any] = {"stackd": None, "stackd.sandbox": None, _PACKAGE: None}
    for name in _NAMES:
        with open(f"{here}/{name}.py", encoding="utf-8") as file:
            codes[f"{_PACKAGE}.{name}"] = _compiled(file.read(), name)
    return marshal.dumps(codes)


def _compiled(source: str, name: str) -> Any:
    flags = annotations.compiler_flag  # they stay texts, and what they name need not be there
    text = _FOR_CHECKERS.sub("", source)
    return compile(text, f"<{name}>", "exec", flags, dont_inherit=True, optimize=2)


def opened() -> int:
    """A file in memory that holds the bundle."""
    number = os.memfd_create("stackd", os.MFD_CLOEXEC)
    os.write(number, made())
    return number


def keep_finding() -> None:
    """Let what is not loaded yet be found in here, once the files are out of reach."""
    codes = marshal.loads(made())  # noqa: S302  # made a moment ago
    package = sys.modules[_PACKAGE]
    package.__dict__["__path__"] = []

    class Ours:
        @staticmethod
        def find_spec(name: str, *_: Any) -> Any:
            if codes.get(name) is not None:
                from importlib.machinery import ModuleSpec

                return ModuleSpec(name, Ours)  # type: ignore[arg-type]  # it has what it takes
            return None

        @staticmethod
        def create_module(_: Any) -> None:
            return None

        @staticmethod
        def exec_module(module: Any) -> None:
            exec(codes[module.__name__], module.__dict__)  # noqa: S102  # our own

    sys.meta_path.insert(0, Ours)
