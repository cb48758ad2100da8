"""One job in its process: the code is compiled, called once, and what it returned is told. Then the process ends."""

from __future__ import annotations

import builtins
import os
import resource
import sys
import time
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from typing import Any, Final, NoReturn

from stackd.sandbox.child import frames
from stackd.sandbox.child.fetch import Fetch, Log
from stackd.sandbox.child.places import PACKAGES, SCRATCH
from stackd.sandbox.child.values import plain

JOB: Final = 3  # the file descriptor
HEADROOM: Final = (
    64 * 1024 * 1024
)  # bytes of address space over the limit, for the interpreter itself
LONGEST_LINE: Final = 4_000  # characters of a log line
LONGEST_TRACE: Final = 4_000  # characters
_VAR_KEYWORDS: Final = 8  # inspect.CO_VARKEYWORDS


class Channel:
    """The way to the daemon, shared by the threads of this process."""

    def __init__(self) -> None:
        self._writing, self._asking = allocate_lock(), allocate_lock()

    def tell(self, message: dict[str, Any]) -> None:
        frame = frames.packed(message)
        with self._writing:
            frames.write(JOB, frame)

    def ask(self, call: dict[str, Any]) -> dict[str, Any]:
        with self._asking:  # one at a time: answers come in the order of their questions
            self.tell({"type": "call", "call": call})
            answer: dict[str, Any] = frames.read(JOB)
            return answer

    def log(self, level: str, values: tuple[Any, ...]) -> None:
        message = _whole(" ".join(map(_shown, values))[:LONGEST_LINE])
        self.tell({"type": "log", "level": level, "message": message})


def main(*, counts_threads: bool) -> NoReturn:
    """Take the one job, do it, and end this process. `counts_threads`: whether its user's processes are its own alone."""
    status = 1
    try:
        os.environ.clear()
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what is printed before an end is told
        job = frames.read(JOB)
        _run(job, Channel(), counts_threads=counts_threads)
        status = 0
    except (EOFError, OSError):  # the daemon has gone, or wants no more
        pass
    finally:
        os._exit(status)  # no atexit, no threads, no destructors: what is told is told
    raise AssertionError


def _run(job: dict[str, Any], channel: Channel, *, counts_threads: bool) -> None:
    _limit(job["limits"], counts_threads=counts_threads)
    if job["beatMs"]:
        start_new_thread(_beat, (channel, job["beatMs"] / 1000))
    if job.get("packages"):
        sys.path.append(PACKAGES)
    if job["limits"]["scratchMb"]:
        os.chdir(SCRATCH)
    told = _told(job, channel)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # noqa: S110  # the code may have put anything there
            pass
    with channel._writing:  # noqa: SLF001  # held for good: nothing comes after it
        frames.write(JOB, told)
        os._exit(0)


def _limit(limits: dict[str, Any], *, counts_threads: bool) -> None:
    """What one process may take, for good. Where a cgroup counts too, these are the second line."""
    own = resource.setrlimit
    memory = limits["memoryMb"]
    if memory:
        size = memory * 1024 * 1024 + HEADROOM
        own(resource.RLIMIT_AS, (size, size))
    seconds = -(-limits["cpuMs"] // 1000) + 1
    own(resource.RLIMIT_CPU, (seconds, seconds + 1))
    own(resource.RLIMIT_FSIZE, (limits["scratchMb"] * 1024 * 1024,) * 2)
    if counts_threads:  # else it would count all that this user runs on the machine
        own(resource.RLIMIT_NPROC, (limits["threads"] + 1,) * 2)


def _beat(channel: Channel, interval: float) -> None:
    try:
        while True:
            time.sleep(interval)
            channel.tell({"type": "beat"})
    except OSError:
        pass


# -- the code


def _told(job: dict[str, Any], channel: Channel) -> bytes:
    """The frame of what the code returned, or of how it failed."""
    try:
        return frames.packed({"type": "done", "result": plain(_called(job, channel))})
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: the code is over
        return frames.packed({"type": "done", "error": _explained(error, job)})
    finally:
        sys.settrace(None)
        sys.setprofile(None)


def _called(job: dict[str, Any], channel: Channel) -> Any:
    name, entry = job["filename"], job["entryPoint"]
    code = compiled(job["code"], name)
    module = type(sys)("code")
    module.__file__ = name
    if job.get("imports") is not None:
        module.__dict__["__builtins__"] = _guarded(frozenset(job["imports"]), name, channel)
    sys.modules["code"] = module
    exec(code, module.__dict__)  # noqa: S102  # what this process is for
    handler = getattr(module, entry, None)
    if not callable(handler):
        raise LookupError(
            f"Entry point {entry} is not exported as a function; define `def {entry}(params, context)`"
        )
    extras = {"fetch": Fetch(channel.ask), "log": Log(channel.log)}
    result = handler(job["params"], job["context"], **_wanted(handler, extras))
    return _awaited(result) if hasattr(result, "__await__") else result


def compiled(source: str, name: str) -> Any:
    """The code object. Raises SyntaxError; ValueError for NUL bytes; RecursionError, MemoryError for what is too deep."""
    return compile(source, name, "exec", dont_inherit=True)


def _wanted(handler: Any, extras: dict[str, Any]) -> dict[str, Any]:
    """Those of `extras` that the function names. What has no code of its own gets none."""
    code = getattr(getattr(handler, "__func__", handler), "__code__", None)
    if code is None:
        return {}
    if code.co_flags & _VAR_KEYWORDS:
        return extras
    named = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return {name: extra for name, extra in extras.items() if name in named}


def _awaited(awaitable: Any) -> Any:
    """What it comes to. A loop is made only for what waits: it takes as long to load as a short job to run."""
    from types import CoroutineType

    if isinstance(awaitable, CoroutineType) and "asyncio" not in sys.modules:
        try:
            awaitable.send(None)
        except StopIteration as stop:
            return stop.value
        raise RuntimeError("the code waits for something that is no future of asyncio")
    from stackd.sandbox.child.loop import run

    return run(awaitable)


def _guarded(allowed: frozenset[str], name: str, channel: Channel) -> dict[str, Any]:
    """Builtins whose import takes only what is allowed. It keeps order, and is no wall: those are the kernel's."""

    def guarded(wanted: str, scope: Any = None, *rest: Any) -> Any:
        top = wanted.partition(".")[0]
        if scope is not None and scope.get("__file__") == name and top not in allowed:
            channel.tell({"type": "violation", "event": {"type": "import-denied", "module": top}})
            raise ImportError(
                f"import of {top} is not allowed here; allowed is {', '.join(sorted(allowed)) or 'nothing'}"
            )
        return builtins.__import__(wanted, scope, *rest)

    return {**vars(builtins), "__import__": guarded}


# -- what is told of errors


def _explained(error: BaseException, job: dict[str, Any]) -> dict[str, Any]:
    """Name, message, and the user's own lines of the traceback. The error may be the code's own, and do anything."""
    sys.settrace(None)
    sys.setprofile(None)
    message = _tried(lambda: str(error)[:LONGEST_LINE], "(it has no readable message)")
    trace = _tried(lambda: _trace(error, job["filename"], job["code"])[:LONGEST_TRACE], "")
    if isinstance(error, SystemExit):
        message = f"the code called exit({message})"
    name: str = _NAME(type(error))
    return {"name": _whole(name[:200]), "message": _whole(message), "trace": _whole(trace)}


_NAME: Final = type.__dict__["__name__"].__get__  # a class can have another word for it


def _tried(function: Callable[[], str], otherwise: str) -> str:
    """What it comes to, whatever the code's own part in it raises."""
    try:
        return function()
    except BaseException:  # it may end no process that has a result to tell
        return otherwise


def _whole(text: str) -> str:
    """`text` with a question mark for half a surrogate pair, which JSON has no text for."""
    return text.encode("utf-8", "replace").decode()


def _trace(error: BaseException, name: str, source: str) -> str:
    import linecache
    import traceback

    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    if isinstance(error, SyntaxError) and error.filename == name:
        return "".join(traceback.format_exception_only(error))
    own = [one for one in traceback.extract_tb(error.__traceback__) if one.filename == name]
    return "".join(traceback.format_list(own))


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return frames.text(plain(value))
    except Exception:  # what has no JSON is shown as Python has it
        try:
            return repr(value)
        except Exception:
            return f"<{type(value).__name__}>"
