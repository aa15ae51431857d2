"""A teacher of somebody else's in a whole run: its logits, its dark examples, its cost, and what is paid twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.plugin_teachers import Overlap
from typer.testing import CliRunner

from data.config.settings import load
from data.errors import UserError
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK
from data.tables.shards import read_shard
from pipeline.cli import app
from pipeline.scoring import calibration
from pipeline.stages.dark_examples import WordSplitter, mask, mix

Prep = Callable[..., list[str]]
OVERLAP = {"teacher.backend": "support.plugin_teachers:Overlap", "teacher.model": "any string"}


def rows(store: Path, stage: str) -> list[dict[str, Any]]:
    return [row for path in sorted(store.glob(f"{stage}/*/*.parquet")) for row in read_shard(path).to_pylist()]


@pytest.mark.medium
def test_a_whole_run(tmp_path: Path, tiny_experiment: Any, prep_run: Prep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a door that opens on settings alone: stages that ask for a tokenizer, or for token counts, on the way to shards."""
    config, store = tiny_experiment(tmp_path, **OVERLAP), tmp_path / "store"
    prep_run(config, stage="ingest")
    Overlap.seen.clear()
    prep_run(config)
    candidates, scores = rows(store, "dark_examples"), rows(store, "teacher_scores")
    texts = [(row["query"], row["text"].replace(SEPARATOR_MARK, "[SEP]").replace(MASK_MARK, "[MASK]")) for row in candidates]
    assert {kind: sum(row["candidate_kind"] == kind for row in candidates) for kind in (2, 3)} == {2: 42, 3: 70}
    assert sorted(Overlap.seen[1:]) == sorted(set(texts)), "each distinct pair once, after the one it was tried out with"
    np.testing.assert_array_equal([row["logit"] for row in scores], Overlap(None).score(texts))
    assert not any(row["token_count"] or row["truncated"] for row in scores)
    trained = sorted(logit for row in rows(store, "shards") for logit in row["teacher_logits"])
    assert trained == sorted(row["logit"] for row in scores)

    Overlap.seen.clear()
    for path in store.glob("teacher_scores/*/*.parquet"):
        path.unlink()
    prep_run(config)
    assert not Overlap.seen, "the logit store has them all"
    monkeypatch.setattr(Overlap, "version", 2)
    monkeypatch.setattr(calibration, "SECONDS", 0.01)
    output = CliRunner().invoke(app, ["plan", f"config={config}", "stage=teacher_scores"]).output
    assert "teacher.version 1 -> 2" in output and "to score\n" in output and "pairs/s a worker" in output
    prep_run(config)
    assert set(Overlap.seen) >= set(texts) and len(list((store / "teacher_logits").iterdir())) == 2


def test_a_teacher_gets_the_texts_that_stand_for_marks(tmp_path: Path, tiny_experiment: Any, prep_run: Prep) -> None:
    """Prevents: a separator that is set and never reaches a teacher without a tokenizer of ours."""
    words = {"dark_examples.separator": "bo", "hard_negatives.source": "random", "dark_examples.mask_ratios": [0.4]}
    config = tiny_experiment(tmp_path, **OVERLAP, **words)
    for stage in ("ingest", "hard_negatives", "dark_examples"):
        prep_run(config, stage=stage)
    Overlap.seen.clear()
    prep_run(config, stage="teacher_scores")
    texts = [
        (row["query"], row["text"].replace(SEPARATOR_MARK, "bo").replace(MASK_MARK, "[MASK]"))
        for row in rows(tmp_path / "store", "dark_examples")
    ]
    assert sorted(Overlap.seen[1:]) == sorted(set(texts)) and any(" bo " in text for _, text in texts)


def test_a_missing_module_is_told_before_any_work(tmp_path: Path, tiny_experiment: Any, prep_run: Prep) -> None:
    """Prevents: a collection embedded and mined for a teacher that is not installed."""
    config = tiny_experiment(tmp_path, **{"teacher.backend": "not_installed_lab.teachers:T"})
    for words in (["plan"], ["run", "runner=local"]):
        done = CliRunner().invoke(app, [*words, f"config={config}"])
        assert done.exit_code == 2 and "has no module not_installed_lab: install it there" in done.output
    assert not list((tmp_path / "store").rglob("*.parquet"))
    with pytest.raises(UserError, match="nearest: torch"):
        load({"config": str(config), "teacher.backend": "troch"})


def test_a_teacher_without_tokens_mixes_and_masks_words() -> None:
    """Prevents: dark examples of characters, or of more than may be left of both parts."""
    splitter = WordSplitter()
    assert mix("a b. c d", "e f", splitter=splitter, max_tokens=8, truncation="longest_first") == f"a b. {SEPARATOR_MARK} e f"
    masked = mask("don't, stop", 1.0, splitter=splitter, unit="piece", seed_parts=("s",))
    assert masked == f"{MASK_MARK}{MASK_MARK}{MASK_MARK}{MASK_MARK} {MASK_MARK}"
