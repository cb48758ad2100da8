"""`stackd systemd`: what it puts below a root of one's own, that it does so once, and how it takes it away again."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli import Command, Ran

pytestmark = pytest.mark.skipif(
    not (shutil.which("systemctl") and shutil.which("systemd-sysusers")),
    reason="systemd is not installed here",
)

UNITS = "etc/systemd/system"
SERVICE = f"{UNITS}/stackd.service"
KEY = "etc/credstore/stackd.encryption_master_key"
ENABLED = (
    f"{UNITS}/sockets.target.wants/stackd.socket",
    f"{UNITS}/multi-user.target.wants/stackd.service",
)
PROGRAM = Path(sys.executable).with_name("stackd")

Systemd = Callable[..., Ran]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def systemd(command: Command, root: Path) -> Systemd:
    """`stackd systemd …` on `root`; it has to succeed."""

    def run(*words: str) -> Ran:
        ran = command("systemd", *words, f"--root={root}")
        assert ran.code == 0, ran
        return ran

    return run


def files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): b"" if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_install_makes_all_that_the_service_needs(systemd: Systemd, root: Path) -> None:
    ran = systemd("install")

    user = next(line for line in (root / "etc/passwd").read_text().splitlines() if "stackd" in line)
    assert user.endswith(":stackd:/var/lib/stackd:/usr/sbin/nologin")
    assert mode(root / "var/lib/stackd") == 0o700
    assert mode(root / KEY) == 0o600
    assert len((root / KEY).read_text().strip()) == 64
    assert f"ExecStart={PROGRAM} start\n" in (root / SERVICE).read_text()
    assert mode(root / SERVICE) == 0o644
    assert all((root / link).is_symlink() for link in ENABLED)
    if os.geteuid() == 0:
        uid, gid = map(int, user.split(":")[2:4])
        owned = (root / "var/lib/stackd").stat()
        assert (owned.st_uid, owned.st_gid) == (uid, gid)
    said = ran.out.splitlines()
    assert said[0] == "made the user stackd"
    assert "wrote /etc/systemd/system/stackd.service" in said
    assert (root / KEY).read_text().strip() not in ran.out


def test_a_second_install_says_that_nothing_has_changed_and_changes_nothing(
    systemd: Systemd, root: Path
) -> None:
    systemd("install")
    before = files(root)

    assert systemd("install").out == "nothing has changed\n"
    assert files(root) == before


def test_install_puts_right_what_has_changed_and_that_alone(systemd: Systemd, root: Path) -> None:
    systemd("install")
    before = files(root)
    (root / SERVICE).write_text("[Service]\n")
    (root / KEY).chmod(0o644)
    (root / "var/lib/stackd").chmod(0o755)
    (root / ENABLED[1]).unlink()

    assert systemd("install").out.splitlines() == [
        "closed /var/lib/stackd to other users",
        "closed /etc/credstore/stackd.encryption_master_key to other users",
        "wrote /etc/systemd/system/stackd.service",
        "enabled stackd.service",
    ]
    assert files(root) == before
    assert (mode(root / KEY), mode(root / "var/lib/stackd")) == (0o600, 0o700)


def test_a_dry_run_says_the_same_and_does_nothing(systemd: Systemd, root: Path) -> None:
    dry = systemd("install", "--dry-run").out
    assert files(root) == {}

    done = systemd("install").out
    assert dry == "".join(f"dry run: {line}\n" for line in done.splitlines())
    before = files(root)
    dry = systemd("uninstall", "--purge", "--dry-run").out
    assert files(root) == before
    done = systemd("uninstall", "--purge").out
    assert dry == "".join(f"dry run: {line}\n" for line in done.splitlines())


def test_install_makes_no_key_where_the_config_file_has_one_and_listens_where_that_says(
    systemd: Systemd, root: Path
) -> None:
    (root / "etc/stackd").mkdir(parents=True)
    key = "0123456789abcdefghijklmnopqrstuvwxyzABCD"
    (root / "etc/stackd/stackd.toml").write_text(
        f'ENCRYPTION_MASTER_KEY = "{key}"\nHOST = "::1"\nPORT = 8080\n'
    )
    systemd("install")

    assert not (root / KEY).exists()
    assert "ListenStream=[::1]:8080\n" in (root / UNITS / "stackd.socket").read_text()


def test_install_keeps_the_key_there_is(systemd: Systemd, root: Path) -> None:
    (root / KEY).parent.mkdir(parents=True)
    (root / KEY).write_text("mine")
    (root / KEY).chmod(0o600)
    systemd("install")

    assert (root / KEY).read_text() == "mine"


def test_install_takes_another_user_and_state_and_no_socket(systemd: Systemd, root: Path) -> None:
    systemd("install", "--user", "flows", "--state", "/srv/flows", "--no-socket")

    assert re.search(r"(?m)^flows:", (root / "etc/passwd").read_text())
    assert mode(root / "srv/flows") == 0o700
    assert "ReadWritePaths=/srv/flows\n" in (root / SERVICE).read_text()
    assert not (root / UNITS / "stackd.socket").exists()
    assert not (root / ENABLED[0]).exists()
    assert systemd("uninstall", "--purge").out.splitlines() == [
        "disabled stackd.service",
        "removed /etc/systemd/system/stackd.service",
        "removed /srv/flows",
        "removed /etc/credstore/stackd.encryption_master_key",
    ]


def test_uninstall_keeps_the_state_and_the_key(systemd: Systemd, root: Path) -> None:
    systemd("install")
    (root / "var/lib/stackd/stackd.db").write_text("kept")

    assert systemd("uninstall").out.splitlines() == [
        "disabled stackd.socket",
        "disabled stackd.service",
        "removed /etc/systemd/system/stackd.socket",
        "removed /etc/systemd/system/stackd.service",
    ]
    assert {"var/lib/stackd/stackd.db", KEY} <= files(root).keys()
    assert not any(name.startswith(UNITS) for name in files(root))
    assert systemd("uninstall").out == "nothing has changed\n"


def test_uninstall_purges_the_state_and_the_key_if_told_to(systemd: Systemd, root: Path) -> None:
    systemd("install")
    (root / "var/lib/stackd/stackd.db").write_text("gone")
    systemd("uninstall", "--purge")

    assert not (root / "var/lib/stackd").exists()
    assert not (root / KEY).exists()


def test_uninstall_purges_no_folder_that_is_no_state_directory(
    systemd: Systemd, command: Command, root: Path
) -> None:
    systemd("install", "--state", "/srv/flows")
    (root / "srv/flows/thesis.txt").write_text("precious")

    ran = command("systemd", "uninstall", "--purge", f"--root={root}")

    assert ran.code == 2
    assert "/srv/flows does not look like a state directory" in ran.err
    assert (root / "srv/flows/thesis.txt").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--state", "state"), "'state' cannot stand in a unit"),
        (("--state", "/srv/my flows"), "'/srv/my flows' cannot stand in a unit"),
        (("--state", "/run/user/1/state"), "/run/user/1/state is hidden from the unit"),
        (("--user", "Mr. X"), "'Mr. X' is no name of a user"),
        (("--now",), "--now: systemd does not run there"),
        (("--root", "nowhere"), "--root nowhere is no absolute path of a folder"),
    ],
)
def test_install_refuses_what_cannot_work_before_it_changes_anything(
    command: Command, root: Path, words: tuple[str, ...], said: str
) -> None:
    ran = command("systemd", "install", f"--root={root}", *words)

    assert ran.code == 2
    assert said in ran.err
    assert files(root) == {}


def test_install_here_refuses_a_stackd_that_a_user_of_its_own_cannot_run(
    command: Command, tmp_path: Path
) -> None:
    ran = command("systemd", "install", "--dry-run")

    hidden = any(PROGRAM.is_relative_to(place) for place in ("/home", "/root", "/tmp", "/var/tmp"))
    if not hidden:
        pytest.skip("this stackd is where a service can run it")
    assert ran.code == 2
    assert f"{PROGRAM} is hidden from the unit" in ran.err


@pytest.mark.skipif(os.geteuid() == 0, reason="this is root")
def test_install_here_needs_root(command: Command) -> None:
    ran = command("systemd", "install")

    assert ran.code == 2
    assert ran.err.startswith("error: this needs root")


def test_unit_prints_each_file_as_it_is_installed(
    systemd: Systemd, command: Command, root: Path
) -> None:
    systemd("install")

    assert command("systemd", "unit").out == (root / SERVICE).read_text()
    socket = command("systemd", "unit", "--socket").out
    assert socket == (root / UNITS / "stackd.socket").read_text()
    assert "DelegateSubgroup=supervisor\n" in command("systemd", "unit", "--dropin").out
    assert command("systemd", "unit", "--socket", "--dropin").code == 2
