"""Where a setting comes from, what is refused or warned of, and the secrets that `dev` makes."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from stackd.core.errors import SettingsError
from stackd.sandbox.limits import Limits
from stackd.sandbox.options import options_of
from stackd.sandbox.process import ZygoteOptions
from stackd.sandbox.sandbox import SandboxOptions
from stackd.settings import (
    PLANNED,
    Change,
    Connection,
    Flags,
    Mode,
    Settings,
    connection_settings,
    ensure_dev_secrets,
    load_settings,
    read_settings,
    reloaded,
    table,
    with_dev_secrets,
)

KEY = "0123456789-abcdefghij-ABCDEFGHIJ"
NO_HOST = "must be an address such as 127.0.0.1 or ::1, or a hostname"
NO_HOSTS = (
    "not a host", "a..b", "-a", "a_b", "127.0.0.1:5000", "[::1]", "300.0.0.1", "http://h", "b\u00fccher.example",
    "x" * 64, f"{'x' * 60}." * 5,
)  # fmt: skip


class Box:
    """A machine with nothing but a folder: its environment, `.env` and config file are what a test writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.config = folder / "stackd.toml"
        self.config.touch()

    def named(self, environ: Mapping[str, str]) -> dict[str, str]:
        return {"STACKD_STATE_DIR": str(self.state), "STACKD_CONFIG": str(self.config), **environ}

    def load(
        self,
        mode: Mode = "dev",
        *,
        role: str = "stack",
        overrides: Mapping[str, str] | None = None,
        **environ: str,
    ) -> Settings:
        return load_settings(
            mode, role=role, overrides=overrides, environ=self.named(environ), cwd=self.folder
        )

    def read(self, mode: Mode = "dev", **environ: str) -> tuple[Settings, list[str]]:
        return read_settings(mode, environ=self.named(environ), cwd=self.folder)

    def start(self, **environ: str) -> Settings:
        return self.load("start", **{"ENCRYPTION_MASTER_KEY": KEY} | environ)

    def problems(self, mode: Mode = "dev", **environ: str) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            self.load(mode, **environ)
        return caught.value.problems

    def start_problems(self, **environ: str) -> list[str]:
        return self.problems("start", **{"ENCRYPTION_MASTER_KEY": KEY} | environ)


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user who may not write everywhere, also where root runs the tests."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def source(settings: Settings, name: str) -> str:
    return next(row["source"] for row in settings.report() if row["name"] == name)


# -- sources


def test_setting_is_its_default_when_nothing_gives_it(box: Box):
    settings = box.load()

    assert settings.port == 5000
    assert settings.worker_concurrency == 64
    assert source(settings, "PORT") == "default"


def test_each_source_wins_over_those_below_it(box: Box):
    box.config.write_text("PORT = 1\n")
    seen = [box.load()]
    (box.folder / ".env").write_text("PORT=2\n")
    seen.append(box.load())
    seen.append(box.load(PORT="3"))
    seen.append(box.load(overrides={"PORT": "4"}, PORT="3"))

    assert [settings.port for settings in seen] == [1, 2, 3, 4]
    assert [source(settings, "PORT") for settings in seen] == [
        str(box.config),
        str(box.folder / ".env"),
        "environment",
        "command line",
    ]


def test_sources_are_merged_name_by_name(box: Box):
    box.config.write_text('PORT = 1\nHOST = "10.0.0.1"\n')

    settings = box.load(PORT="3")

    assert (settings.port, settings.host) == (3, "10.0.0.1")


def test_dotenv_is_not_read_by_start(box: Box):
    (box.folder / ".env").write_text("PORT=2\n")

    assert box.start().port == 5000


def test_dotenv_may_hold_other_programs_names(box: Box):
    (box.folder / ".env").write_text("DJANGO_DEBUG=1\nexport PORT='2'\n")

    settings = box.load()

    assert settings.port == 2
    assert settings.warnings == ()


def test_empty_value_is_no_value(box: Box):
    box.config.write_text("PORT = 1\n")

    assert box.load(PORT="").port == 1


def test_config_file_is_looked_for_in_the_state_directory(box: Box):
    box.state.mkdir()
    (box.state / "stackd.toml").write_text("PORT = 1\n")

    settings = load_settings("dev", environ={"STACKD_STATE_DIR": str(box.state)}, cwd=box.folder)

    assert settings.port == 1


def test_config_file_that_is_named_but_missing_is_refused(box: Box):
    missing = box.folder / "missing.toml"

    assert box.problems(STACKD_CONFIG=str(missing)) == [
        f"STACKD_CONFIG: there is no file {missing}"
    ]


def test_config_file_that_cannot_be_read_is_refused(box: Box):
    box.config.write_bytes(b"HOST = '\xff'\n")

    assert box.problems() == [f"{box.config}: cannot be read (UnicodeDecodeError)"]


def test_config_file_that_is_no_toml_is_refused_with_its_line(box: Box):
    box.config.write_text("PORT = 1\nHOST = \n")

    (problem,) = box.problems()

    assert problem.startswith(f"{box.config}: ")
    assert "line 2" in problem


def test_name_read_from_the_environment_only_is_refused_in_the_config_file(box: Box):
    box.config.write_text('STACKD_URL = "http://box:5000"\n')

    assert box.problems() == [f"{box.config}: STACKD_URL is read from the environment only"]


def test_report_shows_values_as_people_write_them(box: Box):
    settings = box.load(
        EXECUTION_RETRY_DELAY_MS="1500",
        STACKD_DRAIN_SECONDS="2.5",
        PLATFORM_NETWORK_DENYLIST_DOMAINS="a.example, *.b.example",
    )
    values = {row["name"]: row["value"] for row in settings.report()}

    assert values["EXECUTION_RETRY_DELAY_MS"] == 1500
    assert values["STACKD_DRAIN_SECONDS"] == 2.5
    assert values["STACKD_STORE_BUSY_SECONDS"] == 5
    assert values["PLATFORM_NETWORK_DENYLIST_DOMAINS"] == "a.example, *.b.example"
    assert values["STACKD_DATABASE_URL"] == ""
    assert values["STACKD_STATE_DIR"] == str(box.state)


def test_report_has_a_row_for_every_setting(box: Box):
    assert [row["name"] for row in box.load().report()] == [row.name for row in table()]


def test_settings_cannot_be_changed(box: Box):
    with pytest.raises(ValueError, match="frozen"):
        box.load().port = 1


# -- values


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PORT", "http", "must be a number"),
        ("PORT", "65536", "must be a whole number from 0 to 65,535"),
        ("PORT", "80.5", "must be a whole number from 0 to 65,535"),
        ("PORT", "nan", "must be a number"),
        ("PORT", "inf", "must be a number"),
        ("EXECUTION_RETRY_DELAY_MS", "499", "must be from 500 to 86,400,000 milliseconds"),
        ("EXECUTION_LOCK_DURATION_MS", "999", "must be from 1,000 to 86,400,000 milliseconds"),
        ("STACKD_DRAIN_SECONDS", "-1", "must be from 0 to 3600 seconds"),
        ("ENABLE_INLINE_WORKER", "maybe", "must be true or false"),
        ("STACKD_TLS_CA_FILE", "ca.pem", "must be an absolute path"),
        ("STACKD_NO_PROXY", "10.0.0.0/33", "'10.0.0.0/33' is no address range; write 10.0.0.0/8"),
        (
            "STACKD_NO_PROXY",
            "no name",
            "'no name' is no domain; write example.com or *.example.com",
        ),
        ("STACKD_LOG_LEVEL", "loud", "should be 'debug', 'info', 'warning' or 'error'"),
        ("QUEUE_DRIVER", "redis", "should be 'sqlite' or 'inmemory'"),
        *((("HOST", name, NO_HOST)) for name in NO_HOSTS),
        ("STACKD_STATE_DIR", "state", "must be an absolute path"),
        ("STACKD_STATE_DIR", "~no-such-user/state", "must be an absolute path"),
        (
            "STACKD_DATABASE_URL",
            "mysql://db",
            "must be sqlite:///ABSOLUTE/PATH; other databases are not supported yet",
        ),
        (
            "PLATFORM_NETWORK_DENYLIST_DOMAINS",
            "a.example http://b.example",
            "'a.example http://b.example' is no domain; write example.com or *.example.com",
        ),
        (
            "PLATFORM_NETWORK_ALLOWLIST_IP_RANGES",
            "10.0.0.1/8",
            "'10.0.0.1/8' is no address range; write 10.0.0.0/8",
        ),
    ],
)
def test_bad_value_is_refused_with_its_source_and_what_is_valid(
    box: Box, name: str, value: str, said: str
):
    assert box.problems(**{name: value}) == [f"{name}={value!r} (environment): {said}"]


@pytest.mark.parametrize(
    "url", ["http://proxy.example:3128", "http://user:p%40ss@10.0.0.1:80/", "http://[::1]:8080", "http://u@h:1"]
)  # fmt: skip
def test_a_proxy_is_taken_with_credentials_or_without_and_never_shown(box: Box, url: str):
    settings = box.load(
        STACKD_HTTP_PROXY=url, STACKD_NO_PROXY="*.lan, 10.0.0.0/8, 192.0.2.7, fd00::/8"
    )

    assert settings.http_proxy == url
    assert list(map(str, settings.no_proxy)) == ["*.lan", "10.0.0.0/8", "192.0.2.7/32", "fd00::/8"]
    (shown,) = (row["value"] for row in settings.report() if row["name"] == "STACKD_HTTP_PROXY")
    assert (shown, url in repr(settings)) == ("(set)", False)


@pytest.mark.parametrize(
    "url", ["https://proxy:3128", "proxy:3128", "http://proxy", "http://u:s3cret/x@h:1", "http://u:s3cret@h:1/path"]
)  # fmt: skip
def test_what_is_no_proxy_is_refused_and_not_shown(box: Box, url: str):
    (problem,) = box.problems(STACKD_HTTP_PROXY=url)

    assert "must be http://HOST:PORT" in problem
    assert "s3cret" not in problem


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("https://box.example", "https://box.example"),
        ("http://[::1]:80/a/b/", "http://[::1]:80/a/b"),
        ("", ""),
    ],
)
def test_a_public_address_is_taken_without_a_slash_at_its_end(box: Box, url: str, taken: str):
    assert box.load(STACKD_PUBLIC_URL=url).public_url == taken


@pytest.mark.parametrize(
    "url", ["box.example", "ftp://box", "http://u:p@box", "https://box/?a=1", "https://box/#a", "https://b x"]
)  # fmt: skip
def test_what_is_no_public_address_is_refused(box: Box, url: str):
    (problem,) = box.problems(STACKD_PUBLIC_URL=url)

    assert "must be http://HOST or https://HOST" in problem


def test_exemptions_without_a_proxy_have_no_effect(box: Box):
    assert (
        "STACKD_NO_PROXY: has no effect without STACKD_HTTP_PROXY"
        in box.load(STACKD_NO_PROXY="a.example").warnings
    )


@pytest.mark.parametrize("written", ["PORT = true", "PORT = []", "PORT = 2026-01-01", "HOST = 1"])
def test_value_of_another_type_is_refused_in_the_config_file(box: Box, written: str):
    box.config.write_text(f"{written}\n")

    (problem,) = box.problems()

    assert problem.startswith(f"{written[:4]}=")
    assert f"({box.config}): " in problem


def test_every_problem_is_told_at_once(box: Box):
    blocked = box.folder / "file"
    blocked.touch()

    problems = box.problems(
        "start",
        PORT="http",
        EXECUTION_RETRY_DELAY_MS="1",
        QUEUE_DRIVER="inmemory",
        STACKD_PROT="80",
        STACKD_STATE_DIR=str(blocked / "state"),
        STACKD_MAX_OUTPUT_BYTES="4096",
        STACKD_MAX_EXECUTION_BYTES="2048",
    )

    told = [
        "STACKD_PROT",
        "PORT",
        "EXECUTION_RETRY_DELAY_MS",
        "STACKD_MAX_OUTPUT_BYTES",
        "QUEUE_DRIVER",
        "ENCRYPTION_MASTER_KEY",
        "STACKD_STATE_DIR",
    ]
    assert len(problems) == len(told)
    assert all(problem.startswith(name) for problem, name in zip(problems, told, strict=True))


def test_bad_value_makes_no_second_problem_of_a_comparison_with_its_default(box: Box):
    problems = box.problems(EXECUTION_LOCK_DURATION_MS="long", EXECUTION_LOCK_RENEW_MS="40000")

    assert [problem.partition("=")[0] for problem in problems] == ["EXECUTION_LOCK_DURATION_MS"]


@pytest.mark.parametrize("word", ["true", "1", "yes", "on", "TRUE", " Yes "])
def test_boolean_takes_every_word_for_true(box: Box, word: str):
    assert box.load(ENABLE_INLINE_WORKER=word).inline_worker is True


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "False", " OFF "])
def test_boolean_takes_every_word_for_false(box: Box, word: str):
    assert box.load(ENABLE_INLINE_WORKER=word).inline_worker is False


def test_boolean_of_the_config_file_is_bare(box: Box):
    box.config.write_text("ENABLE_INLINE_WORKER = false\n")

    assert box.load().inline_worker is False


@pytest.mark.parametrize("ms", ["500", "1500", "86400000", "1e3"])
def test_milliseconds_become_seconds(box: Box, ms: str):
    settings = box.load(EXECUTION_RETRY_DELAY_MS="500", EXECUTION_MAX_RETRY_DELAY_MS=ms)

    assert settings.max_retry_delay == float(ms) / 1000


def test_words_are_read_in_any_case(box: Box):
    settings = box.load(STACKD_LOG_LEVEL="DEBUG", QUEUE_DRIVER="SQLite")

    assert (settings.log_level, settings.queue_driver) == ("debug", "sqlite")


def test_database_is_in_the_state_directory_unless_named(box: Box):
    named = box.load(STACKD_DATABASE_URL=f"sqlite:///{box.folder}/other.db")

    assert box.load().database_path == box.state / "stackd.db"
    assert named.database_path == box.folder / "other.db"


@pytest.mark.parametrize(
    "host", ["localhost", "my-box.example", "3com.example", "127.0.0.2", "::1", "box."]
)
def test_address_or_hostname_is_taken_to_listen_on(box: Box, host: str):
    settings = box.load(HOST=f" {host} ")

    assert settings.host == host
    assert settings.warnings == ()


@pytest.mark.parametrize(
    ("host", "where"),
    [("0.0.0.0", "on all interfaces"), ("::", "on all interfaces"), ("192.0.2.7", "beyond loopback")],
)  # fmt: skip
def test_dev_that_other_machines_can_reach_is_warned_of_and_start_is_not(
    box: Box, host: str, where: str
):
    (warning,) = box.load(HOST=host).warnings

    assert warning.startswith(f"HOST={host} (environment): listens {where}")
    assert box.start(HOST=host).warnings == ()


def test_settings_with_bad_values_are_read_with_the_defaults_in_their_place(box: Box):
    settings, problems = box.read(PORT="http", STACKD_LOG_LEVEL="debug")

    assert problems == ["PORT='http' (environment): must be a number"]
    assert (settings.port, settings.log_level) == (5000, "debug")
    assert source(settings, "PORT") == "default, for the bad value (environment)"


# -- network lists


def test_network_lists_take_commas_lines_and_toml_lists(box: Box):
    box.config.write_text('PLATFORM_NETWORK_DENYLIST_DOMAINS = ["A.example.", "*.b.example"]\n')

    settings = box.load(
        PLATFORM_NETWORK_ALLOWLIST_DOMAINS="a.example,\n b.example,,",
        PLATFORM_NETWORK_ALLOWLIST_IP_RANGES="10.0.0.0/8, fd00::/8",
        PLATFORM_NETWORK_DENYLIST_IP_RANGES="192.0.2.7",
    )

    assert settings.network_allow_domains == ("a.example", "b.example")
    assert settings.network_deny_domains == ("a.example", "*.b.example")
    assert settings.network_allow_ranges == (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("fd00::/8"),
    )
    assert settings.network_deny_ranges == (ipaddress.ip_network("192.0.2.7/32"),)


def test_domain_on_both_lists_is_warned_of(box: Box):
    settings = box.load(
        PLATFORM_NETWORK_ALLOWLIST_DOMAINS="a.example,b.example",
        PLATFORM_NETWORK_DENYLIST_DOMAINS="b.example",
    )

    assert settings.warnings == ("b.example is on both network lists; deny wins",)


# -- names


def test_unknown_name_of_ours_is_refused_by_start_with_the_nearest(box: Box):
    assert box.start_problems(STACKD_LOGLEVEL="info") == [
        "STACKD_LOGLEVEL (environment): is no setting; did you mean STACKD_LOG_LEVEL?"
    ]


def test_unknown_name_of_ours_is_warned_of_by_dev(box: Box):
    assert box.load(STACKD_LOGLEVEL="info").warnings == (
        "STACKD_LOGLEVEL (environment): is no setting; did you mean STACKD_LOG_LEVEL?",
    )


@pytest.mark.parametrize("name", ["STACKD_XYZZY_QUUX", "STACKD_BOGUS", "STACKD_URN"])
def test_unknown_name_like_none_of_ours_but_for_the_prefix_is_named_alone(box: Box, name: str):
    assert box.start_problems(**{name: "1"}) == [f"{name} (environment): is no setting"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("STACKD_PORT", "PORT"), ("STACKD_WORKER_CONCURRENCY", "EXECUTION_WORKER_CONCURRENCY")],
)
def test_name_of_ours_under_a_wrong_prefix_is_told_under_its_own(box: Box, name: str, meant: str):
    assert box.start_problems(**{name: "1"}) == [
        f"{name} (environment): is no setting; did you mean {meant}?"
    ]


def test_unknown_name_in_the_config_file_is_refused_by_start_and_warned_of_by_dev(box: Box):
    box.config.write_text("PORTS = 1\n[table]\n")
    said = [
        f"PORTS ({box.config}): is no setting; did you mean PORT?",
        f"table ({box.config}): is no setting",
    ]

    assert box.start_problems() == said
    assert list(box.load().warnings) == said


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("EXECUTION_MAX_RETRYS", "EXECUTION_MAX_RETRIES"),
        ("QUEUE_DRVER", "QUEUE_DRIVER"),
        ("ENCRYPTION_MASTERKEY", "ENCRYPTION_MASTER_KEY"),
        ("ENCRYPTON_MASTER_KEY", "ENCRYPTION_MASTER_KEY"),
        ("ENABLE_INLINE_WORKERS", "ENABLE_INLINE_WORKER"),
    ],
)
def test_slip_in_a_kept_name_is_refused_by_start_and_warned_of_by_dev(
    box: Box, slip: str, meant: str
):
    said = f"{slip} (environment): is no setting; did you mean {meant}?"

    assert box.start_problems(**{slip: "1"}) == [said]
    assert box.load(**{slip: "1"}).warnings == (said,)


def test_slip_in_the_dotenv_is_warned_of(box: Box):
    (box.folder / ".env").write_text("QUEUE_DRVER=sqlite\n")

    assert box.load().warnings == (
        f"QUEUE_DRVER ({box.folder / '.env'}): is no setting; did you mean QUEUE_DRIVER?",
    )


def test_unknown_name_of_a_shared_family_is_warned_of_by_start_too(box: Box):
    said = "WORKFLOW_OF_ANOTHER_PROGRAM (environment): is no setting"

    assert box.start(WORKFLOW_OF_ANOTHER_PROGRAM="1").warnings == (said,)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SCHEDULER_INTERVAL_MS", "TRIGGER_SCHEDULER_INTERVAL_MS"),
        ("LOCK_DURATION_MS", "EXECUTION_LOCK_DURATION_MS"),
        ("MAX_BODY_BYTES", "STACKD_MAX_BODY_BYTES"),
    ],
)
def test_name_of_ours_without_its_beginning_is_warned_of_in_case_it_is_meant(
    box: Box, name: str, meant: str
):
    said = (f"{name} (environment): is no setting; did you mean {meant}?",)

    assert box.load(**{name: "1"}).warnings == said
    assert box.start(**{name: "1"}).warnings == said


@pytest.mark.parametrize("name", ["POST", "HOSTS", "EXPORT", "HOSTNAME", "PATH", "QUEUE_URL"])
def test_name_of_another_program_is_let_pass(box: Box, name: str):
    assert box.start(**{name: "1"}).warnings == ()


@pytest.mark.parametrize("name", sorted(PLANNED))
def test_planned_name_is_told_to_have_no_effect_yet(box: Box, name: str):
    assert box.start(**{name: "1"}).warnings == (
        f"{name} (environment): has no effect in this version",
    )


# -- the sandbox


@pytest.mark.parametrize(
    "word", ["worker", "worker_thread", "worker-threads", "thread", " Worker "]
)
def test_executor_is_worker_by_each_of_its_names(box: Box, word: str):
    assert box.start(SANDBOX_EXECUTOR=word).sandbox_executor == "worker"


@pytest.mark.parametrize("word", ["process", "proc", "child_process", "processes", "PROC"])
def test_executor_is_process_by_each_of_its_names(box: Box, word: str):
    assert box.start(SANDBOX_EXECUTOR=word).sandbox_executor == "process"


@pytest.mark.parametrize(
    ("given", "executor", "comes_from"),
    [
        ({}, "process", "default"),
        ({"WORKER_SANDBOX_ENABLED": "true"}, "worker", "WORKER_SANDBOX_ENABLED, environment"),
        ({"WORKER_SANDBOX_ENABLED": "false"}, "process", "default"),
        ({"WORKER_SANDBOX_ENABLED": "true", "SANDBOX_EXECUTOR": ""}, "worker", "WORKER_SANDBOX_ENABLED, environment"),
        ({"WORKER_SANDBOX_ENABLED": "true", "SANDBOX_EXECUTOR": "thread"}, "worker", "environment"),
        ({"WORKER_SANDBOX_ENABLED": "false", "SANDBOX_EXECUTOR": "proc"}, "process", "environment"),
    ],
    ids=["neither", "enabled", "not_enabled", "empty_name", "both_worker", "both_process"],
)  # fmt: skip
def test_executor_is_the_named_one_or_worker_where_that_is_enabled(
    box: Box, given: dict[str, str], executor: str, comes_from: str
):
    settings = box.start(**given)

    assert settings.sandbox_executor == executor
    assert source(settings, "SANDBOX_EXECUTOR") == comes_from
    assert settings.warnings == ()


@pytest.mark.parametrize(
    ("enabled", "executor"), [("true", "process"), ("false", "worker")], ids=["on", "off"]
)
def test_named_executor_wins_and_what_contradicts_it_is_warned_of(
    box: Box, enabled: str, executor: str
):
    settings = box.start(WORKER_SANDBOX_ENABLED=enabled, SANDBOX_EXECUTOR=executor)

    assert settings.sandbox_executor == executor
    assert settings.warnings == (
        f"WORKER_SANDBOX_ENABLED: has no effect beside SANDBOX_EXECUTOR={executor}",
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"SANDBOX_EXECUTOR": "docker"}, "SANDBOX_EXECUTOR='docker' (environment): must be process or worker"),
        ({"WORKER_SANDBOX_ENABLED": "maybe"}, "WORKER_SANDBOX_ENABLED='maybe' (environment): must be true or false"),
        ({"SANDBOX_MAX_MEMORY_MB": "15"}, "must be a whole number from 16 to 1,048,576 MiB"),
        ({"SANDBOX_MAX_CPU_MS": "0"}, "must be from 10 to 86,400,000 milliseconds"),
        ({"SANDBOX_CGROUP_ROOT": "mine"}, "must be auto, none, or the absolute path of a cgroup"),
        ({"STACKD_SANDBOX_REQUIRE_LEVEL": "4"}, "must be a whole number from 0 to 3"),
        ({"STACKD_SANDBOX_USER": "root"}, "must not be root: code would be, too"),
        ({"STACKD_SANDBOX_USER": "nobody:0"}, "must not be root: code would be, too"),
        ({"STACKD_SANDBOX_USER": "no-such-user"}, "there is no user 'no-such-user' here"),
        ({"STACKD_SANDBOX_USER": "nobody:no-such-group"}, "there is no group 'no-such-group' here"),
        ({"STACKD_SANDBOX_USER": "4294967295"}, "there is no user '4294967295' here"),
        ({"STACKD_SANDBOX_PACKAGES": "/no/such/folder"}, "cannot be used (No such file or directory)"),
        ({"SANDBOX_HEARTBEAT_INTERVAL_MS": "1000", "SANDBOX_HEARTBEAT_TIMEOUT_MS": "1999"}, "must be at least twice"),
        ({"STACKD_SANDBOX_TIMEOUT_MS": "300001"}, "must not be above STACKD_SANDBOX_MAX_TIMEOUT_MS"),
        ({"STACKD_SANDBOX_REQUIRE_LEVLE": "1"}, "did you mean STACKD_SANDBOX_REQUIRE_LEVEL?"),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)  # fmt: skip
def test_bad_setting_of_the_sandbox_is_refused(box: Box, given: dict[str, str], words: str):
    (problem,) = box.start_problems(**given)

    assert words in problem


@pytest.mark.parametrize(
    ("interval", "timeout"), [("250", 3.0), ("1000", 3.0), ("2000", 6.0)], ids=["250", "1000", "2000"]
)  # fmt: skip
def test_silence_follows_the_interval_where_it_is_not_set(box: Box, interval: str, timeout: float):
    assert box.start(SANDBOX_HEARTBEAT_INTERVAL_MS=interval).sandbox_silence == timeout


def test_folder_of_packages_with_the_state_in_it_is_refused(box: Box):
    (problem,) = box.start_problems(STACKD_SANDBOX_PACKAGES=str(box.folder))

    assert "holds the state directory" in problem


def test_folder_of_packages_in_the_state_directory_is_taken(box: Box):
    packages = box.state / "packages"
    packages.mkdir(parents=True)

    assert box.start(STACKD_SANDBOX_PACKAGES=str(packages)).sandbox_packages == packages


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        (
            {"SANDBOX_CPU_QUOTA_MS": "50", "SANDBOX_CGROUP_ROOT": "None"},
            "SANDBOX_CPU_QUOTA_MS: has no effect with SANDBOX_CGROUP_ROOT=none",
        ),
    ],
    ids=["quota"],
)  # fmt: skip
def test_setting_of_the_sandbox_without_effect_is_warned_of(
    box: Box, given: dict[str, str], warned: str
):
    assert box.start(**given).warnings == (warned,)


def test_settings_make_the_options_of_the_sandbox(box: Box):
    settings = box.start(
        SANDBOX_EXECUTOR="thread",
        SANDBOX_MAX_CPU_MS="2500",
        SANDBOX_CPU_QUOTA_MS="50",
        SANDBOX_MAX_MEMORY_MB="128",
        STACKD_SANDBOX_MAX_SCRATCH_MB="8",
        SANDBOX_CGROUP_ROOT="/sys/fs/cgroup/stackd",
        STACKD_SANDBOX_TIMEOUT_MS="1500",
        STACKD_SANDBOX_MAX_TIMEOUT_MS="60000",
        STACKD_SANDBOX_REQUIRE_LEVEL="1",
        STACKD_SANDBOX_CONCURRENCY="3",
        STACKD_SANDBOX_PARKED="0",
        STACKD_SANDBOX_USER="4711:4712",
        STACKD_MAX_OUTPUT_BYTES="65536",
    )

    assert options_of(settings) == SandboxOptions(
        mode="worker",
        required_level=1,
        at_once=3,
        parked=0,
        timeout=1.5,
        limits=Limits(
            timeout=60.0,
            cpu_ms=2500,
            cpu_quota_ms=50,
            memory_mb=128,
            scratch_mb=8,
            result_bytes=65_536,
        ),
        beat=0.5,
        silence=3.0,
        cgroup_root="/sys/fs/cgroup/stackd",
        zygote=ZygoteOptions(uid=4711, gid=4712),
    )


def test_default_settings_make_the_options_that_the_sandbox_has_by_itself(box: Box):
    assert options_of(box.start()) == SandboxOptions()


# -- what the command decides


def test_command_sets_the_environment_kind(box: Box):
    assert (box.load().env, box.start().env) == ("development", "production")
    assert source(box.load(), "STACKD_ENV") == "stackd dev"


@pytest.mark.parametrize("value", ["production", "staging"])
def test_other_environment_kind_given_to_dev_is_told_to_have_no_effect(box: Box, value: str):
    settings = box.load(STACKD_ENV=value)

    assert settings.env == "development"
    assert settings.warnings == (
        f"STACKD_ENV={value!r} (environment): has no effect; `dev` sets development, "
        "`start` sets production",
    )


def test_other_environment_kind_in_the_config_file_is_told_to_have_no_effect(box: Box):
    box.config.write_text('STACKD_ENV = "development"\n')

    (warning,) = box.start().warnings

    assert warning.startswith(f"STACKD_ENV='development' ({box.config}): has no effect")


def test_environment_kind_that_the_command_sets_anyway_is_let_pass(box: Box):
    assert box.load(STACKD_ENV="Development").warnings == ()
    assert box.start(STACKD_ENV="production").warnings == ()


def test_dev_logs_for_people_and_start_for_machines(box: Box):
    assert (box.load().log_style, box.start().log_style) == ("console", "json")
    assert box.load(STACKD_LOG_STYLE="json").log_style == "json"


# -- leases and delays


def test_renewal_is_a_quarter_of_the_lock_unless_given(box: Box):
    assert box.load().lease_renew == 15.0
    assert box.load(EXECUTION_LOCK_DURATION_MS="8000").lease_renew == 2.0
    assert box.load(EXECUTION_LOCK_DURATION_MS="1000").lease_renew == 0.25
    both = box.load(EXECUTION_LOCK_DURATION_MS="8000", EXECUTION_LOCK_RENEW_MS="4000")
    assert both.lease_renew == 4.0


def test_renewal_that_was_derived_says_so(box: Box):
    settings = box.load(EXECUTION_LOCK_DURATION_MS="8000")

    assert source(settings, "EXECUTION_LOCK_RENEW_MS") == "a quarter of the lock"


def test_renewal_over_half_the_lock_is_refused(box: Box):
    (problem,) = box.problems(EXECUTION_LOCK_DURATION_MS="8000", EXECUTION_LOCK_RENEW_MS="4001")

    assert problem.startswith("EXECUTION_LOCK_RENEW_MS must be at most half")


def test_longest_delay_below_the_first_is_refused(box: Box):
    (problem,) = box.problems(EXECUTION_RETRY_DELAY_MS="2000", EXECUTION_MAX_RETRY_DELAY_MS="1999")

    assert problem.startswith("EXECUTION_MAX_RETRY_DELAY_MS must not be below")


def test_output_limit_over_that_of_an_execution_is_refused(box: Box):
    (problem,) = box.problems(STACKD_MAX_EXECUTION_BYTES="4096")

    assert problem.startswith("STACKD_MAX_OUTPUT_BYTES must not be above")


# -- the inline worker


def test_inline_worker_runs_in_dev_unless_told_otherwise(box: Box):
    settings = box.load()

    assert settings.inline_worker is True
    assert source(settings, "ENABLE_INLINE_WORKER") == "default of dev"


def test_inline_worker_does_not_run_by_itself_in_production(box: Box):
    assert box.start().inline_worker is False


@pytest.mark.parametrize("name", ["CI", "DISABLE_INLINE_WORKER_AUTOSTART"])
def test_inline_worker_does_not_run_by_itself_when_held_back(box: Box, name: str):
    assert box.load(**{name: "true"}).inline_worker is False
    assert box.load(**{name: "false"}).inline_worker is True


@pytest.mark.parametrize("name", ["ENABLE_INLINE_WORKER", "INLINE_EXECUTION_WORKER"])
@pytest.mark.parametrize("word", ["true", "inline", "Inline"])
def test_inline_worker_runs_wherever_it_is_asked_for(box: Box, name: str, word: str):
    assert box.start(**{name: word}).inline_worker is True
    assert box.load(CI="true", **{name: word}).inline_worker is True


@pytest.mark.parametrize("name", ["ENABLE_INLINE_WORKER", "INLINE_EXECUTION_WORKER"])
def test_inline_worker_does_not_run_in_dev_when_refused(box: Box, name: str):
    assert box.load(**{name: "false"}).inline_worker is False


def test_bad_value_of_the_other_inline_worker_name_is_refused_under_that_name(box: Box):
    assert box.problems(INLINE_EXECUTION_WORKER="maybe") == [
        "ENABLE_INLINE_WORKER='maybe' (INLINE_EXECUTION_WORKER, environment): must be true or false"
    ]


def test_other_inline_worker_name_is_told_to_have_no_effect_beside_the_first(box: Box):
    settings = box.load(ENABLE_INLINE_WORKER="false", INLINE_EXECUTION_WORKER="true")

    assert settings.inline_worker is False
    assert settings.warnings == (
        "INLINE_EXECUTION_WORKER: has no effect beside ENABLE_INLINE_WORKER",
    )


def test_holding_back_an_inline_worker_that_was_asked_for_is_told_to_have_no_effect(box: Box):
    settings = box.load(ENABLE_INLINE_WORKER="true", DISABLE_INLINE_WORKER_AUTOSTART="true")

    assert settings.inline_worker is True
    assert settings.warnings == (
        "DISABLE_INLINE_WORKER_AUTOSTART: has no effect with ENABLE_INLINE_WORKER=true",
    )


def test_bad_value_for_holding_back_the_inline_worker_is_refused(box: Box):
    assert box.problems(DISABLE_INLINE_WORKER_AUTOSTART="maybe") == [
        "DISABLE_INLINE_WORKER_AUTOSTART='maybe' (environment): must be true or false"
    ]


# -- production


def test_a_look_at_the_settings_makes_nothing(box: Box):
    before = list(box.folder.iterdir())

    box.start(STACKD_STATE_DIR=str(box.state / "deep" / "down"))
    box.problems("start")
    box.load()

    assert list(box.folder.iterdir()) == before


def test_start_refuses_a_state_directory_it_cannot_write(box: Box):
    (box.folder / "file").touch()

    (problem,) = box.start_problems(STACKD_STATE_DIR=str(box.folder / "file" / "state"))

    assert problem.startswith(f"STACKD_STATE_DIR {box.folder / 'file' / 'state'} cannot be written")


def test_start_refuses_a_state_directory_below_one_that_it_may_not_write():
    environ = {"STACKD_STATE_DIR": "/etc/mine", "ENCRYPTION_MASTER_KEY": KEY}

    with unprivileged(), pytest.raises(SettingsError) as caught:
        load_settings("start", environ=environ, cwd=Path("/"))

    (problem,) = caught.value.problems
    assert "/etc/mine cannot be written (Permission denied)" in problem


def test_start_refuses_a_missing_master_key(box: Box):
    (problem,) = box.problems("start")

    assert problem.startswith("ENCRYPTION_MASTER_KEY is missing")


@pytest.mark.parametrize("key", [KEY[:31], "abcdefg" * 6], ids=["short", "uniform"])
def test_weak_master_key_is_refused_without_showing_it(box: Box, key: str):
    (problem,) = box.start_problems(ENCRYPTION_MASTER_KEY=key)

    assert problem.startswith("ENCRYPTION_MASTER_KEY (environment): too weak")
    assert key not in problem


def test_queue_that_keeps_nothing_is_refused_by_start_and_taken_by_one_role_of_dev(box: Box):
    (problem,) = box.start_problems(QUEUE_DRIVER="inmemory")

    assert problem.startswith("QUEUE_DRIVER=inmemory")
    assert box.load(role="api", QUEUE_DRIVER="inmemory").queue_driver == "inmemory"


def test_queue_that_keeps_nothing_is_refused_for_the_stack_of_dev_with_all_else_that_is_wrong(
    box: Box,
):
    problems = box.problems(QUEUE_DRIVER="inmemory", PORT="http")

    assert [problem.partition("=")[0] for problem in problems] == ["PORT", "QUEUE_DRIVER"]


def test_database_beside_a_queue_that_keeps_nothing_is_told_to_have_no_effect(box: Box):
    settings = box.load(
        role="api", QUEUE_DRIVER="inmemory", STACKD_DATABASE_URL="sqlite:////x/stackd.db"
    )

    assert settings.warnings == ("STACKD_DATABASE_URL: has no effect with QUEUE_DRIVER=inmemory",)


# -- secrets of dev


class _Unseen(type(Path())):
    """A path that was looked at before another process made the file."""

    def exists(self, **_: bool) -> bool:
        return False


class _Unlinkable(_Unseen):
    """A path on a file system without hard links."""

    def hardlink_to(self, target: object) -> None:
        raise PermissionError(1, "Operation not permitted")


def test_dev_makes_a_master_key_once_and_keeps_it_for_its_owner_only(box: Box):
    first = ensure_dev_secrets(box.load())
    second = ensure_dev_secrets(box.load())

    kept = box.state / "secrets.env"
    assert kept.read_text() == f"ENCRYPTION_MASTER_KEY={first.encryption_master_key}\n"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert second.encryption_master_key == first.encryption_master_key
    assert source(second, "ENCRYPTION_MASTER_KEY") == str(kept)


def test_master_key_that_dev_made_is_strong_enough_for_start(box: Box):
    key = ensure_dev_secrets(box.load()).encryption_master_key

    assert box.start(ENCRYPTION_MASTER_KEY=key).encryption_master_key == key


def test_first_starts_at_the_same_time_agree_on_one_master_key(box: Box):
    ahead = ensure_dev_secrets(box.load())
    behind = ensure_dev_secrets(box.load().model_copy(update={"state_dir": _Unseen(box.state)}))

    assert behind.encryption_master_key == ahead.encryption_master_key
    assert [path.name for path in box.state.iterdir()] == ["secrets.env"]


def test_dev_leaves_no_half_made_secret_where_it_cannot_keep_one(box: Box):
    settings = box.load().model_copy(update={"state_dir": _Unlinkable(box.state)})

    with pytest.raises(SettingsError, match=r"secrets\.env cannot be used"):
        ensure_dev_secrets(settings)

    assert list(box.state.iterdir()) == []


def test_dev_uses_the_master_key_it_is_given(box: Box):
    settings = ensure_dev_secrets(box.load(ENCRYPTION_MASTER_KEY=KEY))

    assert settings.encryption_master_key == KEY
    assert not box.state.exists()


def test_dev_refuses_a_secrets_file_without_a_key(box: Box):
    box.state.mkdir()
    (box.state / "secrets.env").touch()

    with pytest.raises(SettingsError, match="holds no ENCRYPTION_MASTER_KEY"):
        ensure_dev_secrets(box.load())


def test_dev_refuses_a_state_directory_it_cannot_make(box: Box):
    (box.folder / "file").touch()

    with pytest.raises(SettingsError, match=r"secrets\.env cannot be used"):
        ensure_dev_secrets(box.load(STACKD_STATE_DIR=str(box.folder / "file" / "state")))


def test_secrets_that_dev_has_made_are_found_and_none_are_made_by_looking(box: Box):
    before = with_dev_secrets(box.load())
    made = ensure_dev_secrets(box.load())
    after = with_dev_secrets(box.load())

    assert before.encryption_master_key == ""
    assert after.encryption_master_key == made.encryption_master_key
    assert source(after, "ENCRYPTION_MASTER_KEY") == str(box.state / "secrets.env")


def test_looking_for_the_secrets_of_dev_refuses_a_file_that_dev_would_refuse(box: Box):
    box.state.mkdir()
    (box.state / "secrets.env").touch(mode=0o644)

    with pytest.raises(SettingsError, match="holds no ENCRYPTION_MASTER_KEY"):
        with_dev_secrets(box.load())

    assert (box.state / "secrets.env").stat().st_mode & 0o777 == 0o644


def test_production_settings_get_no_secret_made_for_them(box: Box):
    settings = box.start()

    assert ensure_dev_secrets(settings) is settings


def test_secrets_of_dev_keep_what_was_to_be_said(box: Box):
    settings = box.load(STACKD_LOGLEVEL="info", PORT="1")

    filled = ensure_dev_secrets(settings)

    assert filled.warnings == settings.warnings != ()
    assert source(filled, "PORT") == "environment"


# -- the client's side


def test_client_uses_the_url_and_token_of_the_environment():
    environ = {"STACKD_URL": "http://box:5000", "STACKD_TOKEN": "t", "STACKD_STATE_DIR": "/s"}

    assert connection_settings(environ) == Connection(
        url="http://box:5000", token="t", socket_path=Path("/s/stackd.sock")
    )


def test_client_uses_the_socket_of_the_state_directory_it_is_given():
    found = connection_settings({"STACKD_STATE_DIR": "/s"}, exists=lambda path: False)

    assert found == Connection(url=None, token=None, socket_path=Path("/s/stackd.sock"))


def test_client_uses_the_first_default_socket_that_exists():
    production = Path("/var/lib/stackd/stackd.sock")

    there = connection_settings({}, exists=lambda path: path == production)
    nowhere = connection_settings({}, exists=lambda path: False)

    assert there.socket_path == production
    assert nowhere.socket_path == Path.home() / ".local/state/stackd/stackd.sock"


def test_client_takes_an_empty_name_for_none():
    empty = dict.fromkeys(("STACKD_URL", "STACKD_TOKEN", "STACKD_STATE_DIR"), "")

    assert connection_settings(empty, exists=lambda path: False) == connection_settings(
        {}, exists=lambda path: False
    )


def looks(box: Box, *there: Path, **environ: str) -> Connection:
    """Where a client looks that is started in the folder of `box`, if these sockets exist."""
    return connection_settings(environ, cwd=box.folder, exists=lambda path: path in there)


PRODUCTION = Path("/var/lib/stackd/stackd.sock")


@pytest.mark.parametrize("place", [".env", "config"])
def test_client_finds_the_socket_of_a_dev_whose_state_directory_a_file_names(box: Box, place: str):
    if place == ".env":
        (box.folder / ".env").write_text(f"STACKD_STATE_DIR={box.state}\n")
        client = looks(box)
    else:
        box.config.write_text(f'STACKD_STATE_DIR = "{box.state}"\n')
        client = looks(box, STACKD_CONFIG=str(box.config))

    assert client.socket_path == box.state / "stackd.sock"


def test_client_finds_the_config_file_that_dotenv_names(box: Box):
    box.config.write_text(f'STACKD_STATE_DIR = "{box.state}"\n')
    (box.folder / ".env").write_text(f"STACKD_CONFIG={box.config}\n")

    assert looks(box).socket_path == box.state / "stackd.sock"


def test_client_takes_url_and_token_of_dotenv_unless_the_environment_has_them(box: Box):
    (box.folder / ".env").write_text("STACKD_URL=http://file:1\nSTACKD_TOKEN=f\n")

    from_file, mixed = looks(box), looks(box, STACKD_URL="http://here:2")

    assert (from_file.url, from_file.token) == ("http://file:1", "f")
    assert mixed.url == "http://here:2"


def test_client_that_is_told_where_dev_is_does_not_go_to_another_daemon(box: Box):
    (box.folder / ".env").write_text(f"STACKD_STATE_DIR={box.state}\n")

    assert looks(box, PRODUCTION).socket_path == box.state / "stackd.sock"


def test_client_minds_no_setting_that_only_the_daemon_needs(box: Box):
    (box.folder / ".env").write_text(f"PORT=http\n{'=' * 9}\nSTACKD_STATE_DIR={box.state}\n")
    box.config.write_text("no toml")

    client = looks(box, STACKD_CONFIG=str(box.config), STACKD_BOGUS="1", QUEUE_DRIVER="none")

    assert client.socket_path == box.state / "stackd.sock"


# -- reading them again


def test_a_reload_takes_the_flags_alone_and_says_what_waits_for_a_restart(box: Box):
    box.config.write_text('PORT = 5000\nSTACKD_LOG_LEVEL = "info"\n')
    before = box.load()
    box.config.write_text(
        'PORT = 6000\nSTACKD_LOG_LEVEL = "debug"\nPLATFORM_NETWORK_DENYLIST_DOMAINS = ["a.example"]\n'
    )

    found = reloaded(before, box.load())

    assert found.changed == (
        Change("STACKD_LOG_LEVEL", "info", "debug"),
        Change("PLATFORM_NETWORK_DENYLIST_DOMAINS", "", "a.example"),
    )
    assert found.waiting == (Change("PORT", 5000, 6000),)
    assert Flags.of(found.settings) == Flags.of(box.load())
    assert found.settings.port == 5000
    assert found.settings.sources["PLATFORM_NETWORK_DENYLIST_DOMAINS"] == str(box.config)
    assert reloaded(found.settings, box.load()).changed == ()


def test_a_flag_that_is_taken_out_of_the_file_goes_back_to_its_default(box: Box):
    box.config.write_text('STACKD_LOG_LEVEL = "debug"\n')
    before = box.load()
    box.config.write_text("")

    found = reloaded(before, box.load())

    assert found.settings.log_level == "info"
    assert "STACKD_LOG_LEVEL" not in found.settings.sources


def test_a_reload_shows_no_secret(box: Box):
    found = reloaded(box.load(ENCRYPTION_MASTER_KEY=KEY), box.load(ENCRYPTION_MASTER_KEY=KEY[::-1]))

    assert found.waiting == (Change("ENCRYPTION_MASTER_KEY", "(set)", "(set)"),)


def test_what_wins_over_the_config_file_is_known(box: Box):
    box.config.write_text('PORT = 6000\nSTACKD_LOG_LEVEL = "debug"\n')

    read = box.load(PORT="5000")

    assert read.overruled == {"PORT": "environment"}


# -- credentials


def credential(box: Box, name: str, text: str) -> dict[str, str]:
    folder = box.folder / "credentials"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return {"CREDENTIALS_DIRECTORY": str(folder)}


def test_a_secret_comes_from_the_credential_of_its_name(box: Box):
    read = box.load("start", **credential(box, "encryption_master_key", f"{KEY}\n"))

    assert read.encryption_master_key == KEY
    source = str(box.folder / "credentials" / "encryption_master_key")
    assert read.sources["ENCRYPTION_MASTER_KEY"] == source


def test_the_environment_wins_over_a_credential_and_that_over_the_config_file(box: Box):
    given = credential(box, "encryption_master_key", KEY)
    box.config.write_text(f'ENCRYPTION_MASTER_KEY = "{KEY}-of-the-file"\n')

    assert box.load(**given).encryption_master_key == KEY
    assert box.load(**given).overruled.keys() == {"ENCRYPTION_MASTER_KEY"}
    other = KEY[::-1]
    assert box.load(**given, ENCRYPTION_MASTER_KEY=other).encryption_master_key == other


def test_other_credentials_and_a_folder_that_is_not_there_are_no_matter(box: Box):
    credential(box, "port", "1")
    credential(box, "tls.pem", "-")

    assert box.load(CREDENTIALS_DIRECTORY=str(box.folder / "credentials")).port == 5000
    assert box.load(CREDENTIALS_DIRECTORY=str(box.folder / "none")).warnings == ()


@pytest.mark.parametrize("mode", ["dev", "start"])
def test_a_credential_that_cannot_be_used_is_named_and_not_shown(box: Box, mode: Mode):
    given = credential(box, "encryption_master_key", "weak-weak-weak")
    _, problems = box.read(mode, **given)
    (problem,) = [said for said in problems if "ENCRYPTION_MASTER_KEY" in said]
    assert "too weak" in problem
    assert "weak-weak" not in problem

    (box.folder / "credentials" / "encryption_master_key").write_bytes(b"\xff\xfe")
    _, problems = box.read(mode, **given)
    assert any("encryption_master_key is not UTF-8 text" in said for said in problems)
