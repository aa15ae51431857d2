"""The wheel: all packages are in it, and the commands start where nothing but it and the dependencies is installed."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("data", "retrieval", "pipeline", "trainer")
SITE_PACKAGES = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def run(*words: object, folder: Path) -> str:
    """Run a program with the folder as working directory, and without this process's import path."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(list(map(str, words)), cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from a copy: a build leaves folders in the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / "project" / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, folder / "project" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, folder / "project", folder=folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.medium
def test_every_package_is_in_the_wheel(wheel: Path) -> None:
    """Prevents: a new folder that works in a checkout and is missing for all who install the package."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith(".py")}
    assert packed == {path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")}


@pytest.mark.medium
def test_the_commands_start_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """Prevents: a console script without its module, and an import that only a checkout in the working directory satisfies."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, folder=tmp_path)
    # The dependencies' folder as a plain entry of the import path: the .pth files in it, such as this checkout's, are not read.
    dependencies = {str(importlib.metadata.distribution(name).locate_file("").resolve()) for name in ("typer", "torch", "pyarrow")}
    (environment / SITE_PACKAGES / "dependencies.pth").write_text("\n".join(dependencies))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for command in ("prep", "train", "retrieve"):
        assert f"Usage: {command}" in run(environment / "bin" / command, "--help", folder=elsewhere)
