"""A built wheel holds what it needs, and finds it wherever it is installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.daemon import ENVIRON

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(180)


def pip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *words],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    here = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    built = pip("wheel", "--no-deps", *here, "--wheel-dir", str(folder), str(ROOT))
    if built.returncode != 0 and "No matching distribution found for hatchling" in built.stderr:
        pytest.skip("hatchling is not installed and cannot be fetched")
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.whl")
    return file


def shipped_files() -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for name in ("config", "connectors")
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_shipped_folders_and_the_migrations(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())

    assert {f"stackd/_shipped/{name}" for name in shipped_files()} <= inside
    migrations = {f"stackd/store/migrations/{p.name}" for p in sql_files()}
    assert migrations
    assert migrations <= inside
    assert not [name for name in inside if name.startswith(("tests/", "config/", "connectors/"))]


def sql_files() -> list[Path]:
    return list((ROOT / "stackd" / "store" / "migrations").glob("*.sql"))


LOOK = """
import json, stackd
from stackd.cli.demo import KINDS
from stackd.core.places import shipped
from stackd.store.migrations import known_migrations
examples = shipped("config") / "examples"
files = [examples / name for name, _, _ in KINDS]
files += [shipped("config") / "payloads" / payload for _, _, payload in KINDS]
print(json.dumps({
    "package": stackd.__file__,
    "config": str(shipped("config")),
    "connectors": shipped("connectors").is_dir(),
    "missing": [str(file) for file in files if not file.is_file()],
    "migrations": len(known_migrations()),
}))
"""


def test_installed_elsewhere_it_finds_its_files_and_runs(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    installed = pip("install", "--no-deps", "--target", str(target), str(wheel))
    assert installed.returncode == 0, installed.stderr

    def run(*words: str) -> str:
        return subprocess.run(
            [sys.executable, *words],
            env=ENVIRON | {"PYTHONPATH": str(target)},
            cwd=elsewhere,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    found = json.loads(run("-c", LOOK))
    version = run(str(target / "bin" / "stackd"), "--version")

    assert Path(found["package"]).is_relative_to(target)
    assert found["config"] == str(target / "stackd" / "_shipped" / "config")
    assert found["connectors"] is True
    assert found["missing"] == []
    assert found["migrations"] == len(sql_files())
    assert version.strip() == wheel.name.split("-")[1]
