"""Environments of peers that want other versions or extras of what the project uses: beside .venv, made once by the first test that asks.

Torch is not installed again: they have that of .venv, by links.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

import pytest
from support.children import ROOT

SECONDS = 900


def installed(name: str, requirements: list[str], *, alone: tuple[str, ...] = (), others_shared: bool = False) -> Path:
    """The programs of the environment ROOT/NAME with these packages; those of `alone` come without what they ask for.

    With `others_shared` all packages that it lacks are those of .venv. Skips the test where they cannot be had.
    """
    import torch

    folder = ROOT / name
    ready = folder / "ready"
    wanted = "\n".join([*requirements, *alone, torch.__version__])
    if not ready.is_file() or ready.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        for path in {file.parts[0] for file in files("torch") or () if ".." not in file.parts}:
            (packages / path).symlink_to(Path(torch.__file__).parents[1] / path)
        _install(folder, requirements)
        if alone:
            _install(folder, ["--no-deps", *alone])
        if others_shared:
            (packages / "shared.pth").write_text(f"import site; site.addsitedir({str(Path(torch.__file__).parents[1])!r})\n")
        ready.write_text(wanted)
    return folder / "bin"


def _install(folder: Path, requirements: list[str]) -> None:
    command = [folder / "bin" / "pip", "install", "-q", "--disable-pip-version-check", *requirements]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{requirements[-1]} was not installed within {SECONDS // 60} minutes")
    if done.returncode:
        pytest.skip(f"{requirements[-1]} cannot be installed: {done.stderr.strip()[-300:]}")
