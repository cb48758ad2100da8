"""Heavy libraries load at first use: what an idle daemon and a short command have not paid for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Starts the whole stack, asks it to stop once all five services are ready, and prints what was loaded and how many
# objects the garbage collector goes through.
IDLE_DAEMON = """
import gc, os, signal, sys
import stackd.cli.app  # `stackd start` comes from there
from stackd.daemon import ROLES, run_daemon
from stackd.settings import ensure_dev_secrets, load_settings
from stackd.supervisor.supervisor import ServiceMoved

waited_for = set(ROLES["stack"])

def stop_when_ready(event):
    if isinstance(event, ServiceMoved) and event.state == "ready":
        waited_for.discard(event.service)
        if not waited_for:
            os.kill(os.getpid(), signal.SIGTERM)

settings = ensure_dev_secrets(load_settings("dev"))
assert run_daemon(settings, "stack", listeners=(stop_when_ready,)) == 0
print(*sys.modules, sep="\\n")
print(len(gc.get_objects()))
"""
COMMAND = """
import sys
import stackd.cli.app
print(*sys.modules, sep="\\n")
"""

WHOLE_COMMAND = """
import contextlib, gc, sys
from stackd.__main__ import main
sys.argv = ["stackd", "schema"]
with contextlib.suppress(SystemExit):
    main()
assert gc.isenabled()
print(len(gc.get_objects()))
"""

ABSENT_WHEN_IDLE = {
    "jinja2": "parses expressions when a workflow is read",
    "markupsafe": "of jinja2",
    "ruamel": "reads YAML when a document is imported",
    "stackd.integrations.importer": "a command of its own",
    "yaml": "reads API documents when a connector is made of one",
    "re2": "searches for patterns when an expression has `match`",
    "tzdata": "time zones, read when an expression names one",
    "aiosmtplib": "sends e-mail when a workflow does",
    "cryptography": "seals, once there is a credential",
    "psutil": "measures in `bench`",
    "rich.progress": "prints for people; what else there is of rich, structlog loads by itself",
    "stackd.sandbox.child.zygote": "runs in a process of its own",
    "stackd.cli.bench": "a command of its own",
    "stackd.cli.demo": "a command of its own",
    "stackd.testing": "for tests",
    "hypothesis": "for tests",
    "pytest": "for tests",
    "unittest": "for tests",
}
ABSENT_IN_A_COMMAND = {
    "stackd.daemon": "a command talks to the daemon, it is none",
    "stackd.store": "nor does it open the store",
    "stackd.vault": "nor does it seal anything",
    "stackd.sandbox": "nor does it run code",
    "aiohttp": "serves; a command asks with http.client",
    "aiosqlite": "of the store",
    "uvloop": "of the daemon",
    "structlog": "logs of the daemon; brings rich with it",
    "rich": "loads when a table is printed",
}


def loaded(source: str, state: Path) -> set[str]:
    """The modules that a fresh interpreter has loaded at the end of `source`, and what else that prints."""
    (state / "stackd.toml").touch()  # so that a file of the machine is not looked for
    ended = subprocess.run(
        [sys.executable, "-c", source],
        env={
            "PATH": os.defpath,
            "HOME": str(state),
            "STACKD_STATE_DIR": str(state),
            "STACKD_LOG_LEVEL": "error",
            "PORT": "0",
        },
        cwd=state,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.split())


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    return loaded(IDLE_DAEMON, tmp_path_factory.mktemp("idle"))


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    return loaded(COMMAND, tmp_path_factory.mktemp("command"))


def test_idle_daemon_has_loaded_what_it_runs_on(idle):
    """Else the test below proves nothing."""
    assert {"aiohttp", "aiosqlite", "uvloop", "stackd.daemon", "stackd.web.app"} <= idle


def test_a_collection_in_an_idle_daemon_does_not_go_through_what_is_loaded(idle):
    (objects,) = [int(word) for word in idle if word.isdecimal()]

    assert objects < 20_000  # of some 76,000: these take 100 ms each time, and once more at the end


def test_nor_does_it_in_a_short_command(tmp_path):
    (objects,) = loaded(WHOLE_COMMAND, tmp_path) - {"workflow", "connector"}

    assert int(objects) < 20_000  # of some 40,000


@pytest.mark.parametrize("module", ABSENT_WHEN_IDLE)
def test_idle_daemon_has_not_loaded(module, idle):
    assert module not in idle, ABSENT_WHEN_IDLE[module]


@pytest.mark.parametrize("module", ABSENT_IN_A_COMMAND)
def test_command_has_not_loaded(module, command):
    assert module not in command, ABSENT_IN_A_COMMAND[module]
