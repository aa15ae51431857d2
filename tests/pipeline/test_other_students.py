"""Whole runs with students that are no plain encoders: mined, trained, measured on a dev set, served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.student_folders import assert_equal, encoder_of, peer
from support.student_layouts import make

from data.tables.shards import read_shard
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.evaluation.metrics import evaluate
from retrieval.search.embedding_table import EmbeddingTable, table_paths
from trainer import recipes
from trainer.evaluation.dev_set import METRICS, open_dev_set
from trainer.loop import train

WITHOUT_MARKS = {"dark_examples.reinforced": False, "dark_examples.mask_ratios": []}


def texts_of(store: Path, kind: str) -> dict[str, str]:
    """Texts of a kind by their ids."""
    (folder,) = (store / "ingest").glob(f"{kind}-*")
    rows = [row for path in table_paths(folder) for row in read_shard(path).to_pylist()]
    return {row.get("doc_id") or row["query_id"]: row["text"] for row in rows}


def figures_of(student: TextEncoder, dev: Path, passages: dict[str, str], queries: dict[str, str]) -> dict[str, float]:
    """A dev set's figures, from its texts instead of its tokens."""
    given = open_dev_set(dev, tokenizer=student.spec.tokenizer_digest)
    scores = student.queries([queries[name] for name in given.query_ids]) @ student.passages([passages[name] for name in given.doc_ids]).T
    run = {
        query: sorted(zip(given.doc_ids, row.tolist(), strict=True), key=lambda found: (-found[1], found[0]))
        for query, row in zip(given.query_ids, scores, strict=True)
    }
    evaluation = evaluate(given.qrels, run)
    return {name: evaluation.mean(name) for name in METRICS}


@pytest.mark.medium
@pytest.mark.parametrize("name", ["Qwen3-Embedding", "instructor", "EmbeddingGemma"])
def test_from_the_collection_to_a_served_student(
    tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]], name: str
) -> None:
    """Prevents: a stage that knows only encoders: vectors, shards, a dev set or a checkpoint of another model than the folder's."""
    folder = make(name, tmp_path)
    lengths = {"student.query_tokens": 60, "student.passage_tokens": 90, "dark_examples.mixed_tokens": 40}
    config = tiny_experiment(tmp_path / "run", **{"student.model": folder, "dev.queries": 3, **lengths, **WITHOUT_MARKS})
    prep_run(config)
    store = tmp_path / "run" / "store"
    (corpus,) = (store / "embed").glob("corpus-*")
    table = EmbeddingTable(corpus, "doc_id")
    passages = texts_of(store, "corpus")
    wanted = peer(folder).encode_document([passages[doc_id] for doc_id in table.ids.to_pylist()])
    np.testing.assert_allclose(table.matrix().astype(np.float32), wanted, atol=2e-3)  # fp16

    (shards,), (dev,) = (store / "shards").iterdir(), (store / "dev").iterdir()
    words: dict[str, Any] = {"config": str(config), "train.recipe": "hard_kd", "train.dev": str(dev), "train.evaluate_every": "2"}
    assert train(recipes.load({**words, "train.steps": "3", "train.checkpoint_every": "2"}), shards_folder=shards) == 0
    output = tmp_path / "run" / "train"
    assert_equal(encoder_of(output / "student"), peer(output / "student"))
    last = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["dev"] == pytest.approx(figures_of(encoder_of(output / "student"), dev, passages, texts_of(store, "queries")))
