"""Several processes of which one leaves on its own: the others end too, in time, with a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GONE = "another one is gone, or has not come"
# Exit codes by rank (None: stopped, it never ends), what all that did not fail themselves say, and what the one at fault says.
EXPECTED: dict[str, tuple[list[int | None], str, str]] = {
    "killed": ([1, -9, 1], GONE, ""),
    "first_killed": ([-9, 1, 1], GONE, ""),
    "unreadable": ([1, 1, 1], GONE, "error: a shard is cut short"),
    "full": ([1, 1, 1], GONE, "no space left"),
    "damaged": ([1, 1, 1], GONE, "error: a shard is cut short"),
    "terminated": ([75, 75, 75], "", ""),
    "terminated_early": ([1, 75, 1], GONE, "interrupted"),
    "stopped": ([1, None, 1], GONE, ""),
    "another_model": ([2, 2, 2], "do not agree on the parameters to start from", "do not agree"),
}
AT_FAULT = {"killed": 1, "first_killed": 0, "unreadable": 2, "full": 0, "damaged": 0, "terminated_early": 1, "stopped": 1}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, finished: Any) -> Path:
    """The folder that leaving_ranks.py has filled."""
    folder, root = tmp_path_factory.mktemp("played"), Path(__file__).parents[2]
    (shards,) = (path.parent for path in (finished.store / "shards").glob("*/manifest.json"))
    program = [sys.executable, Path(__file__).with_name("leaving_ranks.py"), folder, finished.config, shards]
    port = 30_000 + os.getpid() % 2_000
    done = subprocess.run([*program, str(port)], env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("fault", EXPECTED)
def test_the_others_end_with_a_sentence(played: Path, fault: str) -> None:
    """Prevents: processes, and the GPUs that they hold, that wait for one that will not come, until somebody looks; and tracebacks of
    sockets in place of what happened."""
    codes, others, own = EXPECTED[fault]
    result = json.loads((played / "results.json").read_text())[fault]
    said = [(played / fault / str(rank)).read_text() for rank in range(len(codes))]
    assert result["codes"] == codes and result["seconds"] < 50, (result, said)
    for rank, text in enumerate(said):
        assert "Traceback" not in text, text
        assert (own if AT_FAULT.get(fault) == rank else others) in text, text
    if fault == "terminated":
        assert [path.name for path in sorted((played / fault / "run" / "checkpoints").iterdir())] == ["step-00000002", "step-00000003"]
    if fault == "first_killed":
        assert (played / fault / "run" / "running.json").is_file()
    else:
        assert not (played / fault / "run" / "running.json").exists()
