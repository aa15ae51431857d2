"""Child processes of tests: their programs are the files of tests/support/programs, so that ruff reads them and a rename reaches them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent


def program(name: str, *args: object) -> list[str]:
    """The command line of tests/support/programs/NAME.py."""
    return [sys.executable, "-m", f"support.programs.{name}", *map(str, args)]


def environment(**variables: str) -> dict[str, str]:
    """This process's variables, with the project and tests/ to be imported from."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(TESTS))), **variables}


def start(name: str, *args: object, **options: Any) -> subprocess.Popen[str]:
    """Start a program. `options` are those of Popen."""
    return subprocess.Popen(program(name, *args), env=environment(), text=True, **options)


def run(name: str, *args: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(program(name, *args), env=environment(), capture_output=True, text=True, timeout=timeout)


def loaded_by(*args: object) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run `prep`, `train` or `retrieve`, or `import` some modules, in a fresh interpreter.

    Returns:
        The ended process, without the last line of its output, and the modules that it had in memory, read from that line.
    """
    done = run("loaded", *args)
    output, _, last = done.stdout.rpartition("loaded: ")
    assert last, done.stderr
    return subprocess.CompletedProcess(done.args, done.returncode, output, done.stderr), set(last.split())
