"""The whole way with the installed commands: prepare under Ray, train, embed with what was trained, evaluate, compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_the_commands_in_order(ray_run: Any, tmp_path: Path, command: Callable[..., Any]) -> None:
    """Prevents: rooms that each work and do not fit together: a path, a schema or a saved student that the next command refuses."""
    config = f"config={ray_run.config}"

    def done(*words: object) -> str:
        result = command(*words)
        assert result.returncode == 0, f"{' '.join(map(str, words))}\n{result.stdout}\n{result.stderr}"
        return result.stdout.strip()

    shards = done("prep", "path", config, "stage=shards")
    trained_text = done("train", "run", config, f"shards={shards}", f"train.output={tmp_path / 'train'}")
    trained = tmp_path / "train" / "student"
    assert trained.is_dir(), trained_text

    done("prep", "run", config, "stage=embed", "runner=local", f"student.model={trained}")
    qrels = done("prep", "path", config, "stage=ingest", "table=qrels")
    runs = {}
    for name, words in {"before": [], "after": [f"student.model={trained}"]}.items():
        corpus, queries = done("prep", "path", config, "stage=embed", *words).splitlines()
        runs[name] = tmp_path / f"{name}.run"
        output = done("retrieve", "evaluate", f"qrels={qrels}", f"corpus={corpus}", f"queries={queries}", f"out={runs[name]}", "split=test")
        figures = json.loads(output.splitlines()[-1])
        assert figures["queries"] == 6 and figures["without_results"] == 0
    assert runs["before"].read_bytes() != runs["after"].read_bytes(), "training changed nothing"
    both = (f"{name}={run}" for name, run in runs.items())
    compared = done("retrieve", "compare", *both, f"qrels={qrels}", "split=test", "permutations=1000")
    assert "6 judged queries" in compared
