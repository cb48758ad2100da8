"""One server that somebody else wrote: `python foreign_main.py NAME FD [ARGUMENT…]`, on a socket that listens already."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any


def httpbin(listening: socket.socket) -> None:
    from httpbin import app
    from werkzeug.serving import WSGIRequestHandler, make_server

    WSGIRequestHandler.protocol_version = "HTTP/1.1"  # connections are kept
    make_server("127.0.0.1", 0, app, threaded=True, fd=listening.fileno()).serve_forever()


def localstripe(listening: socket.socket) -> None:
    from aiohttp import web
    from localstripe.server import app, store

    store.dump_to_disk = lambda: None  # it would be one file for all on this machine
    web.run_app(app, sock=listening, print=None)


def connexion(listening: socket.socket, document: str) -> None:
    """Answers `{}` to requests that are as `document` says, and to others what is wrong with them."""
    import uvicorn
    import yaml
    from connexion import AsyncApp
    from connexion.lifecycle import ConnexionResponse
    from connexion.resolver import Resolver

    async def accept(**params: Any) -> ConnexionResponse:
        return ConnexionResponse(200, mimetype="application/json", body="{}")

    app = AsyncApp("tried", specification_dir=str(Path(document).parent))
    app.add_api(
        _without_signs(yaml.load(Path(document).read_bytes(), Loader=yaml.CSafeLoader)),
        resolver=Resolver(lambda _: accept),
        strict_validation=True,
    )
    uvicorn.run(app, fd=listening.fileno(), log_level="error")


def _without_signs(value: Any) -> Any:
    """A document whose operations ask for no credential: nobody here could judge one."""
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else str(key): _without_signs(one)
            for key, one in value.items()
            if not (key == "security" and isinstance(one, list))
        }
    return [_without_signs(one) for one in value] if isinstance(value, list) else value


def _end_with_parent() -> None:
    """End when the one who started this does: it holds the other end of standard input."""
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    name, descriptor, *arguments = sys.argv[1:]
    serve = {"httpbin": httpbin, "localstripe": localstripe, "connexion": connexion}[name]
    serve(socket.socket(fileno=int(descriptor)), *arguments)
