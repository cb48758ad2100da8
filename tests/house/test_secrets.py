"""The master key is shown nowhere: not in the settings, their report, the commands about them, or an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from stackd.core.errors import SettingsError
from stackd.settings import Settings, ensure_dev_secrets, load_settings, table

CANARY = "canary-7Qw9z"
STRONG = f"{CANARY}-0123456789-abcdefghijklmnop"
WEAK = {
    "too short": CANARY,
    "too uniform": CANARY[0] * 60,
}


def environ(state: Path, **given: str) -> dict[str, str]:
    """An environment in which stackd reads nothing of the machine's own."""
    (state / "stackd.toml").touch()
    return {"STACKD_STATE_DIR": str(state), "HOME": str(state), "PATH": os.defpath, **given}


def load(state: Path, mode: str = "dev", **given: str) -> Settings:
    return load_settings(mode, environ=environ(state, **given), cwd=state)


def command(state: Path, *words: str, **given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stackd", *words],
        env=environ(state, **given),
        cwd=state,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_master_key_is_in_no_text_of_the_settings(tmp_path: Path):
    settings = load(tmp_path, ENCRYPTION_MASTER_KEY=STRONG)

    assert settings.encryption_master_key == STRONG
    assert STRONG not in f"{settings!r} {settings} {settings.report()} {settings.warnings}"
    assert STRONG not in json.dumps([settings.report(), dict(settings.sources)])


def test_key_that_dev_made_is_in_no_text_of_the_settings(tmp_path: Path):
    settings = ensure_dev_secrets(load(tmp_path))

    assert settings.encryption_master_key
    assert settings.encryption_master_key not in f"{settings!r} {settings} {settings.report()}"


def test_report_tells_whether_the_master_key_is_set(tmp_path: Path):
    for given, value in (({}, "(not set)"), ({"ENCRYPTION_MASTER_KEY": STRONG}, "(set)")):
        report = {row["name"]: row["value"] for row in load(tmp_path, **given).report()}
        assert report["ENCRYPTION_MASTER_KEY"] == value


@pytest.mark.parametrize("key", WEAK.values(), ids=WEAK)
@pytest.mark.parametrize("mode", ["dev", "start"])
def test_refusal_of_a_weak_key_does_not_show_it(tmp_path: Path, mode: str, key: str):
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, mode, ENCRYPTION_MASTER_KEY=key)

    assert "ENCRYPTION_MASTER_KEY" in caught.value.message
    assert key not in f"{caught.value!r} {caught.value} {caught.value.problems}"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None  # pydantic's error holds what it was given


@pytest.mark.parametrize("written", [f'["{STRONG}"]', f'{{ key = "{STRONG}" }}', f'"{STRONG}'])
def test_refusal_of_a_malformed_key_in_the_config_file_does_not_show_it(
    tmp_path: Path, written: str
):
    names = environ(tmp_path)
    (tmp_path / "stackd.toml").write_text(f"ENCRYPTION_MASTER_KEY = {written}\n")

    with pytest.raises(SettingsError) as caught:
        load_settings("start", environ=names, cwd=tmp_path)

    assert CANARY not in caught.value.message
    assert caught.value.__context__ is None


def test_refusal_of_a_database_does_not_show_its_password(tmp_path: Path):
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, STACKD_DATABASE_URL=f"postgres://me:{CANARY}@db/stackd")

    assert "STACKD_DATABASE_URL" in caught.value.message
    assert CANARY not in caught.value.message


def test_every_secret_setting_is_marked_so_that_it_is_masked():
    looks_secret = {
        row.name
        for row in table()
        if any(w in row.name for w in ("KEY", "SECRET", "TOKEN", "HTTP_PROXY"))
    }

    assert {row.name for row in table() if row.secret} == looks_secret
    assert looks_secret == {"ENCRYPTION_MASTER_KEY", "STACKD_HTTP_PROXY"}


@pytest.mark.parametrize(
    "words",
    [
        ("config", "show"),
        ("config", "show", "--json"),
        ("config", "show", "--mode", "start"),
        ("config", "check"),
        ("config", "check", "--json"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("key", [STRONG, CANARY], ids=["strong", "weak"])
def test_command_does_not_show_the_master_key(tmp_path: Path, words: tuple[str, ...], key: str):
    ended = command(tmp_path, *words, ENCRYPTION_MASTER_KEY=key)

    assert ended.returncode == (0 if key is STRONG else 2), ended.stderr
    assert key is STRONG or "ENCRYPTION_MASTER_KEY" in ended.stdout + ended.stderr
    assert CANARY not in ended.stdout + ended.stderr


def test_traceback_of_a_refusal_does_not_show_the_master_key(tmp_path: Path):
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, ENCRYPTION_MASTER_KEY=CANARY)

    told = "".join(traceback.format_exception(caught.value))
    assert "Traceback" in told
    assert CANARY not in told
