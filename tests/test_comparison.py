"""The scripts of recipes/compare: what a small collection holds, and what the table says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent.parent / "recipes" / "compare"


def said(script: str, *words: object) -> str:
    """What a script prints."""
    return subprocess.run([sys.executable, FOLDER / script, *map(str, words)], capture_output=True, text=True, check=True).stdout


def ids(path: Path) -> set[str]:
    return {json.loads(line)["_id"] for line in path.read_text().splitlines()}


def test_a_small_collection_holds_all_positives_and_grows(collection: Path, tmp_path: Path) -> None:
    """Prevents: questions whose answer was left out, and another choice of questions for each size."""
    for name, words in {"small": ("train=5", "test=3", "passages=20"), "larger": ("train=9", "test=3", "passages=40")}.items():
        said("prepare.py", collection, tmp_path / name, *words)
    small, larger = tmp_path / "small", tmp_path / "larger"
    assert len(ids(small / "corpus.jsonl")) == 20 and ids(small / "corpus.jsonl") <= ids(larger / "corpus.jsonl")
    assert len(ids(small / "queries.jsonl")) == 8 and ids(small / "queries.jsonl") <= ids(larger / "queries.jsonl")
    assert sorted(path.name for path in (small / "qrels").iterdir()) == ["test.tsv", "train.tsv"]
    for path in (small / "qrels").iterdir():
        rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
        assert {row[0] for row in rows} <= ids(small / "queries.jsonl") and {row[1] for row in rows} <= ids(small / "corpus.jsonl")


def test_the_table_is_of_seeds_and_questions(tmp_path: Path) -> None:
    """Prevents: a deviation over questions, a p-value over seeds, methods compared on shuffled questions, and rows of what was not run."""
    generator = np.random.default_rng(0)
    start, gain = generator.random(40), np.full(40, 0.1)
    runs = {
        "start-0": start,
        "hard_kd-0": start + gain,
        "hard_kd-1": start + 3 * gain,
        "adam-0": start + 2 * gain,
        "adam-1": start + 2 * gain,
    }
    for name, values in runs.items():
        for split in ("dev", "test"):
            rows = [(f"q{place}", {"MRR@10": value, "nDCG@10": value / 2}) for place, value in enumerate(values)]
            (tmp_path / f"{name}.{split}.json").write_text(json.dumps(dict(rows if name != "adam-1" else rows[::-1])))
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in said("table.py", tmp_path).splitlines()[2:]}
    assert list(rows) == ["start", "ADAM, P~ without p+ (Eq. 9)", "Hard KD"]
    assert rows["Hard KD"][3] == f"{start.mean() + 0.2:.4f} ± {np.std([0.1, 0.3], ddof=1):.4f}"
    assert rows["Hard KD"][4] == f"{start.mean() / 2 + 0.1:.4f} ± {np.std([0.05, 0.15], ddof=1):.4f}"
    assert rows["start"][3] == f"{start.mean():.4f}" and rows["start"][-1] == "1"
    adam = rows["ADAM, P~ without p+ (Eq. 9)"]
    assert adam[5] == "<= 5e-5" and float(adam[6]) > 0.5 and adam[-1] == "2"  # far from the start, the same as Hard KD
