"""A stand-in for Slurm: `sbatch` and `scontrol` on the path, see tests/support/programs/slurm.py."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from support.children import environment, program


def slurm_environment(
    folder: Path, *, requeue_exit: str = "", faults: dict[str, tuple[str, str]] | None = None, first: str = ""
) -> dict[str, str]:
    """Variables for a shell. `folder` holds the commands and the logs; `first` comes before them on the path."""
    folder.mkdir()
    variables = environment(SLURM_STANDIN=str(folder), SLURM_REQUEUE_EXIT=requeue_exit, SLURM_FAULTS=json.dumps(faults or {}))
    for name in ("sbatch", "scontrol"):
        # With its own path to import from: what it starts has that of a user.
        line = shlex.join(["env", f"PYTHONPATH={variables['PYTHONPATH']}", *program("slurm", name)])
        (folder / name).write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        (folder / name).chmod(0o755)
    path = [first, str(folder), os.environ["PATH"]]
    return {
        **os.environ,
        **{key: variables[key] for key in variables if key.startswith("SLURM_")},
        "PATH": os.pathsep.join(filter(None, path)),
    }
