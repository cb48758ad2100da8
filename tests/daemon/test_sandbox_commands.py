"""`stackd sandbox selftest` and `run`, over real sandboxes and without a daemon."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.cli import Command, Ran, child

from stackd.sandbox.levels import PROBES
from stackd.sandbox.sandbox import PROBE

FAST = {"SANDBOX_EXECUTOR": "worker"}


@pytest.fixture
def run(command: Command, tmp_path: Path) -> Callable[..., Ran]:
    """`stackd sandbox run` of a source, in a file of that folder."""

    def ran(source: str | bytes, *words: str, **environ: str) -> Ran:
        content = source if isinstance(source, bytes) else textwrap.dedent(source).encode()
        (tmp_path / "code.py").write_bytes(content)
        return command("sandbox", "run", "code.py", *words, **(FAST | environ))

    return ran


# -- how well it isolates


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a machine like this tells of itself."""
    return json.loads(child("sandbox", "selftest", "--json", **FAST).stdout)


def test_selftest_tells_of_both_modes_what_holds(found: Any):
    modes = found["modes"]

    assert (found["ok"], found["required"], found["mode"]) == (True, 2, "worker")
    assert found["level"] == min(one["level"] for one in modes.values()) >= 2
    assert modes.keys() == {"process", "worker"}
    for one in modes.values():
        assert one["layers"].keys() == {"namespaces", "seccomp", "landlock", "uid"}
        assert one["limits"].keys() == {"memory", "cpuQuota", "processes"}
        assert (one["failed"], one["problem"]) == ({}, None)
        assert one["durationMs"] > 0


def test_selftest_ends_with_1_and_the_remedy_where_isolation_does_not_reach_what_is_required(
    command: Command,
):
    told = command(
        "sandbox", "selftest", STACKD_SANDBOX_REQUIRE_LEVEL="3", SANDBOX_CGROUP_ROOT="none", **FAST
    )

    assert told.code == 1
    assert "level 2 (contained, soft limits); required is 3 (contained)" in told.out
    assert "missing: no cgroup of its own" in told.out
    for mode in ("process", "worker"):
        assert f"no code runs in mode {mode}: this host isolates at level 2" in told.out
    assert "STACKD_SANDBOX_REQUIRE_LEVEL=2 would accept it" in told.out
    for words in PROBES.values():
        assert f"{words}\tdenied\tdenied" in told.out


def test_each_probe_is_told_in_words():
    tried = re.findall(r'^ +"(\w+)": ', PROBE.read_text(), re.MULTILINE)

    assert {*tried, "attack"} == PROBES.keys()


def test_selftest_refuses_settings_that_cannot_be_used(command: Command):
    told = command("sandbox", "selftest", SANDBOX_EXECUTOR="docker")

    assert told.code == 2
    assert "SANDBOX_EXECUTOR='docker' (environment): must be process or worker" in told.err


# -- running code


@pytest.mark.parametrize("mode", ["process", "worker"])
def test_code_is_run_and_its_result_printed_apart_from_what_it_logs(
    run: Callable[..., Ran], mode: str
):
    source = """
        def run(params, context, log):
            log.warning("odd", params)
            return {"total": params["qty"] * 2, "of": context["vars"]["unit"], "before": context["prevOutput"]}
    """

    ran = run(
        source, "--params", '{"qty": 3}', "--context", '{"vars": {"unit": "kg"}}', "--mode", mode
    )

    assert (ran.code, json.loads(ran.out)) == (0, {"total": 6, "of": "kg", "before": None})
    assert ran.err == 'warn: odd {"qty": 3}\n'


def test_all_that_is_told_of_a_run_is_printed_as_json(run: Callable[..., Ran]):
    ran = run(
        "async def go(params, context):\n    print(1)\n    return 2", "--entry", "go", "--json"
    )

    told = ran.json
    assert (ran.code, ran.err) == (0, "")
    assert (told["ok"], told["result"], told["error"], told["verdict"]) == (True, 2, None, "ok")
    assert told["logs"] == [{"level": "info", "message": "1"}]
    assert told["usage"]["cpuMs"] > 0
    assert told["isolation"]["mode"] == "worker"
    assert told["isolation"]["level"] >= 2


def test_a_slip_in_code_is_shown_with_its_line_and_a_caret_below_it(run: Callable[..., Ran]):
    ran = run("def run(params, context):\n\treturn params['a' + 1\n")

    first, *shown = ran.err.splitlines()
    assert (ran.code, ran.out) == (1, "")
    assert first == "error: SyntaxError: '[' was never closed (code.py, line 2)"
    assert shown[0] == '  File "code.py", line 2'
    assert shown[1].index("[") == shown[2].index("^")


def test_what_code_raises_is_shown_with_its_own_lines_alone(run: Callable[..., Ran]):
    source = """
        def half(x):
            return 1 / x

        def run(params, context):
            return half(0)
    """

    ran = run(source)

    assert ran.code == 1
    assert ran.err.startswith("error: ZeroDivisionError: division by zero\n")
    assert re.findall(r"File .*", ran.err) == [
        'File "code.py", line 6, in run',
        'File "code.py", line 3, in half',
    ]


def test_code_that_asks_for_the_network_is_told_that_there_is_none(run: Callable[..., Ran]):
    ran = run("def run(params, context, fetch):\n    fetch('http://192.0.2.1/')")

    assert ran.code == 1
    assert "FetchError: `stackd sandbox run` sends no requests" in ran.err


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        (("--timeout-ms", "200"), "timeout"),
        (("--cpu-ms", "100"), "cpu"),
        (("--memory-mb", "16"), "memory"),
    ],
    ids=["time", "cpu", "memory"],
)
def test_a_limit_that_is_asked_for_ends_the_run(
    run: Callable[..., Ran], words: tuple[str, str], verdict: str
):
    source = """
        def run(params, context):
            kept = bytearray(params["bytes"])
            while True:
                pass
    """
    size = 200_000_000 if verdict == "memory" else 0

    told = run(source, "--params", json.dumps({"bytes": size}), *words, "--json")

    assert (told.code, told.json["verdict"]) == (1, verdict)


@pytest.mark.parametrize(
    ("source", "words", "told"),
    [
        ("x", ("--params", "[1"), "--params: not valid JSON at line 1, column 3"),
        ("x", ("--params", "5"), '--params must be a map, such as {"qty": 3}'),
        ("x", ("--context", "@nothing.json"), "nothing.json: No such file or directory"),
        ("x", ("--params", "@code.py"), "--params code.py: not valid JSON at line 1"),
        ("x", ("--timeout-ms", "300001"), "--timeout-ms 300001 is over what the settings allow, 300000"),
        ("x", ("--memory-mb", "257"), "set SANDBOX_MAX_MEMORY_MB to more"),
        (b"a = 1\n\xff", (), "code.py is not UTF-8 text (line 2)"),
        ("#" * 262_145, (), "code.py has 262,145 characters; the code of a node has 262,144 at most"),
    ],
    ids=["no_json", "no_map", "no_file", "no_json_in_file", "long", "large", "no_text", "much"],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_before_there_is_a_sandbox(
    run: Callable[..., Ran], source: str | bytes, words: tuple[str, ...], told: str
):
    ran = run(source, *words)

    assert (ran.code, ran.out) == (2, "")
    assert told in ran.err


def test_standard_input_is_read_for_one_thing_only(command: Command):
    ran = command("sandbox", "run", "-", "--params", "@-")

    assert ran.code == 2
    assert "standard input can be only one of FILE, --params and --context" in ran.err


def test_code_comes_from_standard_input_too():
    ran = child("sandbox", "run", "-", stdin=b"def run(params, context):\n    return 7", **FAST)

    assert (ran.returncode, ran.stdout) == (0, b"7\n")
