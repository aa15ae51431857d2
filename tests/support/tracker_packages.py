"""The trackers' own packages, in an environment of their own: the project needs none of them.

They are installed once, into .venv-trackers beside .venv, whose packages it sees behind its own.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support.children import ROOT

FOLDER = ROOT / ".venv-trackers"
REQUIREMENTS = ["wandb==0.31.0", "mlflow-skinny==3.17.2", "trackio==0.43.0"]


def installed() -> Path:
    """The environment's Python. Skips the test where it cannot be had."""
    ready = FOLDER / "ready"
    wanted = "\n".join([*REQUIREMENTS, sys.prefix])
    if not ready.is_file() or ready.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER], check=True)
        (packages,) = FOLDER.glob("lib/python*/site-packages")
        (packages / "project.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        try:
            pip = [FOLDER / "bin" / "pip", "install", "-q", "--disable-pip-version-check", *REQUIREMENTS]
            done = subprocess.run(pip, capture_output=True, text=True, timeout=600)
        except subprocess.TimeoutExpired:
            pytest.skip("the trackers were not installed within 10 minutes")
        if done.returncode:
            pytest.skip(f"the trackers cannot be installed: {done.stderr.strip()[-300:]}")
        ready.write_text(wanted)
    return FOLDER / "bin" / "python"
