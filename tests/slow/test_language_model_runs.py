"""The whole way with language models on both sides: a reranker that answers yes or no, and a student of its last token with LoRA."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.layouts import encoders, rerankers
from support.layouts.weights import shared

from data.tables.schemas import MASK_MARK, SEPARATOR_MARK
from data.tables.shards import read_shard

FP32: Any = {"device": "cpu", "model_kwargs": {"dtype": torch.float32}}  # the folders' weights are stored in bf16


def test_from_texts_to_adapters(tmp_path: Path, tiny_experiment: Callable[..., Path], command: Callable[..., Any]) -> None:
    """Prevents: a template, a mark, an adapter or a saved folder that one command writes and the next reads otherwise."""
    from peft import PeftModel
    from sentence_transformers import CrossEncoder, SentenceTransformer

    teacher, student = shared(rerankers.qwen3_reranker_in_6), shared(encoders.qwen3_embedding)
    config = tiny_experiment(
        tmp_path,
        **{
            "teacher.model": teacher, "teacher.max_tokens": 400, "student.model": student, "student.query_tokens": 64,
            "student.passage_tokens": 64, "train.learning_rate": "1e-2",
        },
    )  # fmt: skip

    def done(*words: object) -> str:
        result = command(*words)
        assert result.returncode == 0, f"{' '.join(map(str, words))}\n{result.stdout}\n{result.stderr}"
        return str(result.stdout.strip())

    done("prep", "run", f"config={config}")
    rows = [row for path in sorted((tmp_path / "store").glob("dark_examples/*/*.parquet")) for row in read_shard(path).to_pylist()]
    logits = [row for path in sorted((tmp_path / "store").glob("teacher_scores/*/*.parquet")) for row in read_shard(path).to_pylist()]
    scored = {(row["query_id"], row["draw"], row["position"]): row["logit"] for row in logits}
    sample = rows[:60]
    pairs = [(row["query"], row["text"].replace(MASK_MARK, "...").replace(SEPARATOR_MARK, "\n")) for row in sample]
    reference = CrossEncoder(str(teacher), **FP32)
    expected = reference.predict(pairs, activation_fn=torch.nn.Identity())
    ours = [scored[row["query_id"], row["draw"], row["position"]] for row in sample]
    assert any(MASK_MARK in row["text"] for row in sample) and any(SEPARATOR_MARK in row["text"] for row in sample)
    np.testing.assert_allclose(ours, expected, atol=1e-4)

    shards = done("prep", "path", f"config={config}", "stage=shards")
    done("train", "run", f"config={config}", f"shards={shards}", "student.lora.rank=4")
    trained = tmp_path / "train" / "student"
    texts = ["ba cedi fogu", "zaxe lomi"]
    merged, start = (SentenceTransformer(str(folder), **FP32).encode_query(texts) for folder in (trained, student))
    assert np.abs(merged - start).max() > 1e-3, "training changed nothing"
    adapted = SentenceTransformer(str(student), **FP32)
    adapted[0].auto_model = PeftModel.from_pretrained(adapted[0].auto_model, trained / "adapter")
    np.testing.assert_allclose(adapted.encode_query(texts), merged, atol=1e-5)
    found = json.loads((trained / "1_Pooling" / "config.json").read_text())
    assert found.get("pooling_mode_lasttoken") or found.get("pooling_mode") == "lasttoken"


def test_a_bare_folder_shares_the_logits_of_its_published_files(
    tmp_path: Path, tiny_experiment: Callable[..., Path], command: Callable[..., Any]
) -> None:
    """Prevents: pairs scored twice since the same model was named in another way."""
    whole, bare = shared(rerankers.qwen3_reranker_in_6), shared(rerankers.qwen3_reranker)
    dark = {"dark_examples.reinforced": False, "dark_examples.mask_ratios": []}
    config = tiny_experiment(tmp_path, **{"teacher.model": whole, "teacher.max_tokens": 400, **dark})
    first = command("prep", "run", f"config={config}")
    assert first.returncode == 0, first.stderr
    named = [f"teacher.model={bare}", "teacher.template=qwen3-reranker", "teacher.answers=[yes,no]"]
    again = command("prep", "plan", f"config={config}", *named)
    assert again.returncode == 0, again.stderr
    assert "teacher_scores" in again.stdout and "complete" in next(line for line in again.stdout.splitlines() if "teacher_scores" in line)
