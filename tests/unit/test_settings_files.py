"""Files of settings and secrets as people and other programs leave them: read by a stated rule, or refused by name."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from stackd.core.errors import SettingsError
from stackd.settings import (
    FILE_BYTES,
    TOKEN_LENGTH,
    Settings,
    connection_settings,
    ensure_dev_secrets,
    ensure_dev_token,
    load_settings,
)

KEY = "0123456789-abcdefghij-ABCDEFGHIJ"
OTHER_KEY = "another-0123456789-abcdefghij-AB"
TOKEN = "0123456789-abcdefghij_ABCDEFGHIJ.~+/="


def dev(folder: Path, **environ: str) -> Settings:
    """The settings of `dev` on a machine with nothing but `folder`."""
    return load_settings(
        "dev", environ={"STACKD_STATE_DIR": str(folder / "state")} | environ, cwd=folder
    )


def with_secrets(folder: Path, content: bytes) -> Path:
    path = folder / "state" / "secrets.env"
    path.parent.mkdir(mode=0o700)
    path.write_bytes(content)
    return path


def problem(function: Callable[[], object]) -> str:
    with pytest.raises(SettingsError) as caught:
        function()
    (one,) = caught.value.problems
    return one


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "utf-16": (lambda path: path.write_bytes("PORT=7\n".encode("utf-16")), "is not UTF-8 text"),
    "binary": (lambda path: path.write_bytes(b"PORT=7\x80\n"), "is not UTF-8 text"),
    "zero-bytes": (lambda path: path.write_bytes(bytes(64)), "is no text, it holds a zero byte"),
    "endless": (lambda path: path.write_bytes(b"#" * (FILE_BYTES + 1)), "is larger than"),
    "pipe": (os.mkfifo, "is no regular file"),
}
every_unreadable = pytest.mark.parametrize("kind", UNREADABLE)


# -- .env


@pytest.mark.parametrize(
    "content",
    [
        b"PORT=7",
        b"\xef\xbb\xbfPORT=7\n",
        b"# ours\r\nPORT=7\r\n",
        b"export PORT=7\n",
        b"PORT='7'\n",
        b'PORT = "7"  # chosen\n',
        b"PORT\nPORT=7\n",
    ],
    ids=["no-newline", "mark", "crlf", "export", "single", "double", "bare-name"],
)
def test_dotenv_is_read_however_it_is_written(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".env").write_bytes(content)

    settings = dev(tmp_path)

    assert (settings.port, settings.warnings) == (7, ())


def test_a_name_twice_in_dotenv_is_warned_of_and_the_last_wins(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("PORT=7\nTHEIRS=1\nTHEIRS=2\nPORT=8\n")

    settings = dev(tmp_path)

    assert settings.port == 8
    assert settings.warnings == (f"PORT ({file}): is given again in line 4, which wins",)


def test_a_line_of_dotenv_that_says_nothing_is_warned_of_without_its_text(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("PORT=7\nmy secret='\nSTACKD_MAX_JOBS=9\n")

    settings = dev(tmp_path)

    assert (settings.port, settings.max_jobs) == (7, 9)
    assert settings.warnings == (f"{file}, line 2: is no NAME=value, so it is ignored",)


@every_unreadable
def test_a_dotenv_that_cannot_be_read_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    make, reason = UNREADABLE[kind]
    make(tmp_path / ".env")

    assert problem(lambda: dev(tmp_path)).startswith(f"{tmp_path / '.env'} {reason}")


def test_a_folder_dotenv_is_a_virtual_environment(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()

    assert dev(tmp_path).warnings == ()


def test_a_config_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    config = tmp_path / "stackd.toml"
    config.write_bytes(b"\xef\xbb\xbfPORT = 7\r\n")

    assert dev(tmp_path, STACKD_CONFIG=str(config)).port == 7


# -- secrets.env


@pytest.mark.parametrize(
    "content",
    [
        f"ENCRYPTION_MASTER_KEY={KEY}",
        f"\ufeffENCRYPTION_MASTER_KEY={KEY}\r\n",
        f"# kept\nexport ENCRYPTION_MASTER_KEY='{KEY}'\n",
        f'ENCRYPTION_MASTER_KEY=\nENCRYPTION_MASTER_KEY = "{KEY}"\n',
    ],
    ids=["no-newline", "mark-and-crlf", "export", "empty-once"],
)
def test_a_master_key_is_read_however_it_is_written(tmp_path: Path, content: str) -> None:
    with_secrets(tmp_path, content.encode())

    settings = ensure_dev_secrets(dev(tmp_path))

    assert (settings.encryption_master_key, settings.warnings) == (KEY, ())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "holds no ENCRYPTION_MASTER_KEY"),
        ("\n \r\n", "holds no ENCRYPTION_MASTER_KEY"),
        ("ENCRYPTION_MASTER_KEY=\n", "holds no ENCRYPTION_MASTER_KEY"),
        ("ENCRYPTION_MASTER_KEY\n", "holds no ENCRYPTION_MASTER_KEY"),
        (f"{KEY}\n", "holds no ENCRYPTION_MASTER_KEY"),
        ("ENCRYPTION_MASTER_KEY=short\n", "holds a weak ENCRYPTION_MASTER_KEY"),
        (f"ENCRYPTION_MASTER_KEY={'a' * 64}\n", "holds a weak ENCRYPTION_MASTER_KEY"),
        (
            f"ENCRYPTION_MASTER_KEY={KEY}\nENCRYPTION_MASTER_KEY={OTHER_KEY}\n",
            "holds more than one ENCRYPTION_MASTER_KEY",
        ),
    ],
    ids=["empty", "blank", "no-value", "bare-name", "no-name", "short", "alike", "two"],
)
def test_a_secrets_file_without_one_strong_key_is_refused_and_stays(
    tmp_path: Path, content: str, reason: str
) -> None:
    file = with_secrets(tmp_path, content.encode())

    said = problem(lambda: ensure_dev_secrets(dev(tmp_path)))

    assert said == f"{file} {reason}; put it right, or remove the file to make a new one"
    assert file.read_bytes() == content.encode()


@every_unreadable
def test_a_secrets_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    make, reason = UNREADABLE[kind]
    file = with_secrets(tmp_path, b"")
    file.unlink()
    make(file)

    said = problem(lambda: ensure_dev_secrets(dev(tmp_path)))

    assert said.startswith(f"{file} {reason}")
    assert said.endswith("; remove it to make a new one")


def test_other_names_in_the_secrets_file_are_warned_of(tmp_path: Path) -> None:
    file = with_secrets(tmp_path, f"PORT=7\nENCRYPTION_MASTER_KEY={KEY}\n".encode())

    assert ensure_dev_secrets(dev(tmp_path)).warnings == (f"PORT ({file}): has no effect there",)


def test_files_of_secrets_are_closed_to_others_again(tmp_path: Path) -> None:
    secrets = with_secrets(tmp_path, f"ENCRYPTION_MASTER_KEY={KEY}\n".encode())
    token = tmp_path / "state" / "dev-token"
    token.write_text(TOKEN)
    for file in (secrets, token):
        file.chmod(0o664)

    ensure_dev_secrets(dev(tmp_path))
    ensure_dev_token(tmp_path / "state")

    assert [file.stat().st_mode & 0o777 for file in (secrets, token)] == [0o600, 0o600]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_files_of_secrets_that_another_user_planted_are_refused(tmp_path: Path) -> None:
    secrets = with_secrets(tmp_path, f"ENCRYPTION_MASTER_KEY={KEY}\n".encode())
    token = tmp_path / "state" / "dev-token"
    token.write_text(TOKEN)
    for file in (secrets, token):
        os.chown(file, 12345, -1)

    said = [
        problem(lambda: ensure_dev_secrets(dev(tmp_path))),
        problem(lambda: ensure_dev_token(tmp_path / "state")),
    ]

    assert said == [f"{file} belongs to another user (uid 12345)" for file in (secrets, token)]


# -- the token


def test_a_token_is_made_once_and_kept_for_its_owner_only(tmp_path: Path) -> None:
    first, second = ensure_dev_token(tmp_path / "state"), ensure_dev_token(tmp_path / "state")

    (file,) = (tmp_path / "state").iterdir()
    assert first == second == file.read_text().removesuffix("\n")
    assert len(first) >= TOKEN_LENGTH
    assert (file.name, file.stat().st_mode & 0o777) == ("dev-token", 0o600)


@pytest.mark.parametrize(
    "content", [f"{TOKEN}", f"{TOKEN}\r\n", f"\ufeff{TOKEN}\n", f"\n  {TOKEN}\n\n"]
)
def test_a_token_of_ones_own_is_taken_without_what_is_around_it(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "dev-token").write_bytes(content.encode())

    assert ensure_dev_token(tmp_path) == TOKEN


@pytest.mark.parametrize(
    "content",
    ["", "\n", " \t\r\n", "\xa0", "\ufeff", "short", f"{TOKEN}\n{TOKEN}\n", f"{TOKEN} ä", '""'],
)
def test_a_file_without_a_token_is_refused_and_stays(tmp_path: Path, content: str) -> None:
    file = tmp_path / "dev-token"
    file.write_bytes(content.encode())

    said = problem(lambda: ensure_dev_token(tmp_path))

    assert said.startswith(f"{file} holds no token: {TOKEN_LENGTH} or more letters")
    assert said.endswith("remove the file to make a new one")
    assert content.strip() == "" or content.strip() not in said
    assert file.read_bytes() == content.encode()


@every_unreadable
def test_a_token_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    make, reason = UNREADABLE[kind]
    make(tmp_path / "dev-token")

    assert problem(lambda: ensure_dev_token(tmp_path)).startswith(
        f"{tmp_path / 'dev-token'} {reason}"
    )


# -- HOME


@pytest.fixture
def home_in_database() -> Path:
    return Path(pwd.getpwuid(os.getuid()).pw_dir)


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_without_a_home_in_the_environment_the_user_database_tells_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home_in_database: Path, home: str | None
) -> None:
    monkeypatch.delenv("HOME")
    if home is not None:
        monkeypatch.setenv("HOME", home)
    state = home_in_database / ".local" / "state" / "stackd"

    by_default = load_settings("dev", environ={}, cwd=tmp_path)
    named = load_settings("dev", environ={"STACKD_STATE_DIR": "~/state"}, cwd=tmp_path)
    client = connection_settings({}, exists=lambda _: False)

    assert by_default.state_dir == state
    assert named.state_dir == home_in_database / "state"
    assert client.socket_path == state / "stackd.sock"


@pytest.fixture
def nobody_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user: no HOME, and no line in the user database."""

    def unknown(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("nobody_known")
def test_a_user_without_any_home_must_name_the_state_directory(tmp_path: Path) -> None:
    said = problem(lambda: load_settings("dev", environ={}, cwd=tmp_path))

    assert said.startswith("STACKD_STATE_DIR: its default is below your home, but HOME names none")
    assert dev(tmp_path).state_dir == tmp_path / "state"
    assert connection_settings({}, exists=lambda _: False).socket_path == Path(
        "/var/lib/stackd/stackd.sock"
    )
