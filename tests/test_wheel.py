"""What users install: the wheel holds every module, only under ``caravela``, and each can be imported from it alone."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]

# The build backend itself, which the development tools bring: no pip (an environment may have none) and no network.
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"

IMPORT_ALL = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.argv[1]), module.__file__
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ["pyproject.toml", PROJECT["project"]["readme"]]:
        shutil.copy(ROOT / name, source)
    for name in FOLDERS.values():  # a copy: setuptools writes beside its sources
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-P", "-c", BUILD, str(built)],
        cwd=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    [found] = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def in_repository() -> set[str]:
    """Every file that belongs into the wheel, as it is called there."""
    return {
        "/".join([*package.split("."), *path.relative_to(ROOT / folder).parts])
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }


@pytest.mark.timeout(60)
def test_it_holds_every_module_and_only_under_one_name(installed: Path) -> None:
    files = {str(path.relative_to(installed)) for path in (installed / "caravela").rglob("*") if path.is_file()}
    assert files == in_repository()
    assert "caravela/py.typed" in files
    version = PROJECT["project"]["version"]
    assert {path.name for path in installed.iterdir()} == {"caravela", f"caravela-{version}.dist-info"}


@pytest.mark.timeout(60)
def test_every_module_can_be_imported_from_it_alone(installed: Path) -> None:
    names = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in sorted(in_repository())
        if name.endswith(".py") and not name.endswith("__main__.py")
    ]
    done = subprocess.run(
        [sys.executable, "-P", "-c", IMPORT_ALL, str(installed), *names],
        cwd=os.sep,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
