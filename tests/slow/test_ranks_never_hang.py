"""Many small steps by many processes, each with a time limit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CASES = 25  # for each of 1 to 8 processes


def test_steps_of_any_number_of_processes_end_and_are_those_of_one(tmp_path: Path) -> None:
    """Prevents: processes that wait for each other for ever because one of them had no group, no chunk or no gradient, in the second step
    of a sitting or after a resume; and a gradient that lost a part on the way."""
    program = Path(__file__).with_name("rank_cases.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    port = 20_000 + os.getpid() % 10_000
    done = subprocess.run(
        [sys.executable, program, tmp_path, str(CASES), str(port)], env=environment, capture_output=True, text=True, timeout=900
    )
    said = {size: (tmp_path / str(size)).read_text().splitlines() for size in range(1, 9)}
    assert sum(map(len, said.values())) == 8 * CASES, done.stderr[-4000:]
    assert [line for lines in said.values() for line in lines if not line.endswith(" ok")] == []
