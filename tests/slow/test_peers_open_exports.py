"""What is exported is opened, and trained on, by the trainers that it is written for: by their own loaders, in their own versions."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Finished
from support.children import TESTS
from support.environments import installed
from support.models import Models
from support.tevatron_excerpt import DistilTrainDataset

REQUIREMENTS = ["datasets", "accelerate", "ujson==5.12.0", "transformers==5.3.0", "sentence-transformers==5.3.0", "FlagEmbedding==1.4.2"]
ALONE = ("pylate==1.6.0",)  # what else it asks for are engines of its indexes, of which one has a wheel for one version of torch alone
NEGATIVE, DARK = 1, (2, 3)


class Row(NamedTuple):
    """A list of the store, as a peer should see it."""

    query: str
    texts: list[str]
    logits: list[np.float32]


def stored_rows(store: Path, *, dark: bool = False) -> list[Row]:
    """The lists of draw 0, read with plain pyarrow, positive first."""
    columns = [
        pq.read_table(path).to_pydict()
        for stage in ("dark_examples", "teacher_scores")
        for path in sorted(store.glob(f"{stage}/*/*.parquet"))
    ]
    half = len(columns) // 2
    rows: dict[str, Row] = {}
    for candidates, scores in zip(columns[:half], columns[half:], strict=True):
        names = ("query_id", "draw", "candidate_kind", "query", "text")
        for query_id, draw, kind, query, text, logit in zip(*(candidates[name] for name in names), scores["logit"], strict=True):
            if draw == 0 and (dark or kind not in DARK):
                row = rows.setdefault(query_id, Row(query, [], []))
                row.texts.append(text.replace("⟦SEP⟧", "[SEP]").replace("⟦MASK⟧", "[MASK]"))
                row.logits.append(np.float32(logit))
    return list(rows.values())


@pytest.fixture
def export(finished: Finished, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., Path]:
    """`export(FORMAT, OPTION, ...)` runs `prep export` of the finished store; returns the folder."""

    def run(format: str, *options: str) -> Path:
        out = tmp_path / f"{format}-{len(options)}"
        done = command("prep", "export", f"config={finished.config}", f"format={format}", f"out={out}", *options)
        assert done.returncode == 0, done.stderr
        return out

    return run


def first_loss(model: Any, rows: list[Row], *, margins: bool) -> float:
    """KL(teacher || student) over each list, or the mean squared error of the margins, by their formulas in float64."""
    losses = []
    for row in rows:
        query, *passages = (model.encode(text, convert_to_numpy=True).astype(np.float64) for text in (row.query, *row.texts))
        student, teacher = np.array([query @ passage for passage in passages]), np.array(row.logits, np.float64)
        if margins:
            losses.append(np.mean(((student[0] - student[1:]) - (teacher[0] - teacher[1:])) ** 2))
        else:
            log_student, log_teacher = (scores - np.logaddexp.reduce(scores) for scores in (student, teacher))
            losses.append(np.sum(np.exp(log_teacher) * (log_teacher - log_student)))
    return float(np.mean(losses))


@pytest.mark.parametrize(
    ("loss_name", "options", "dark"),
    [
        ("DistillKLDivLoss", (), False),
        ("DistillKLDivLoss", ("dark=true",), True),
        ("MarginMSELoss", (), False),
        ("MarginMSELoss", ("layout=margin_mse",), False),
    ],
)
def test_sentence_transformers_trains_on_it(
    export: Callable[..., Path], finished: Finished, models: Models, tmp_path: Path, loss_name: str, options: tuple[str, ...], dark: bool
) -> None:
    """Prevents: columns in an order that sentence-transformers reads as others, ids that it trains on as texts, or labels that are not the
    teacher's scores of the columns beside them: its losses would be finite and wrong."""
    from datasets import load_dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer import losses
    from torch import nn

    folder, cache = str(export("sentence-transformers", *options)), str(tmp_path / "cache")
    data = load_dataset(folder, split="train", cache_dir=cache)
    assert len(load_dataset(folder, "lists", split="train", cache_dir=cache)) == len(data)
    rows = stored_rows(finished.store, dark=dark)
    model = SentenceTransformer(str(models.student), device="cpu")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # so that the first loss is that of the model as it is
    expected = first_loss(model, rows, margins=loss_name == "MarginMSELoss")
    args = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=3, per_device_train_batch_size=len(rows), learning_rate=1e-3, warmup_steps=0,
        logging_steps=1, report_to=[], use_cpu=True,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=data, loss=getattr(losses, loss_name)(model))
    trainer.train()
    found = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(found) == 3 and np.isfinite(found).all()
    assert found[0] == pytest.approx(expected, abs=1e-4, rel=1e-4)
    assert found[2] < found[0]


def opened(name: str, folder: Path, models: Models, *, ways: int, cache: Path) -> dict[str, Any]:
    """What the peer's loader makes of an export, in the peers' environment."""
    python = installed(".venv-peers", REQUIREMENTS, alone=ALONE) / "python"
    program = TESTS / "support" / "programs" / "open_in_peers.py"
    own = {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    words = [python, program, name, folder, models.student, ways]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env={**os.environ, **own}, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_flagembedding_reads_it(export: Callable[..., Path], finished: Finished, models: Models, tmp_path: Path) -> None:
    """Prevents: a folder in which FlagEmbedding's data set finds other files, no scores, or scores of other passages."""
    rows = stored_rows(finished.store)
    ways = len(rows[0].texts)
    found = opened("flagembedding", export("flagembedding"), models, ways=ways, cache=tmp_path)
    assert found["shapes"] == [[len(rows)], [len(rows) * ways]] and len(found["scores"]) == len(rows) * ways
    assert [item[0] for item in found["items"]] == [row.query for row in rows]
    for row, (_, texts, scores) in zip(rows, found["items"], strict=True):  # it draws the negatives in another order
        assert texts[0] == row.texts[0]
        assert dict(zip(texts, map(np.float32, scores), strict=True)) == dict(zip(row.texts, row.logits, strict=True))


def test_pylate_trains_on_it(export: Callable[..., Path], finished: Finished, models: Models, tmp_path: Path) -> None:
    """Prevents: ids that PyLate's processing does not find among documents and queries (it would train on empty texts), lists of unequal
    length that its collator cannot put into a batch, columns that it reads as texts."""
    rows = stored_rows(finished.store)
    ways = len(rows[0].texts)
    found = opened("pylate", export("pylate"), models, ways=ways, cache=tmp_path)
    assert [(row["query"], row["documents"]) for row in found["rows"]] == [(row.query, row.texts) for row in rows]
    assert [[np.float32(score) for score in row["scores"]] for row in found["rows"]] == [row.logits for row in rows]
    assert len(found["losses"]) == 3 and np.isfinite(found["losses"]).all()


def test_tevatron_reads_it(export: Callable[..., Path], finished: Finished, tmp_path: Path) -> None:
    """Prevents: fields that Tevatron's distillation does not read, texts with a blank for a title in front, scores of other passages."""
    rows = stored_rows(finished.store)
    own = {
        "dataset_name": "json",
        "dataset_config": None,
        "dataset_path": str(export("tevatron") / "train.jsonl"),
        "dataset_split": "train",
    }
    more = {
        "dataset_cache_dir": str(tmp_path),
        "num_proc": 1,
        "query_prefix": "",
        "passage_prefix": "",
        "train_group_size": len(rows[0].texts),
    }
    trainer = SimpleNamespace(state=SimpleNamespace(epoch=0.0), args=SimpleNamespace(seed=1))
    dataset = DistilTrainDataset(SimpleNamespace(**own, **more), trainer)
    items = [dataset[place] for place in range(len(dataset))]
    assert [item[0] for item in items] == [(row.query, None) for row in rows]
    for row, (_, documents, scores) in zip(rows, items, strict=True):
        texts = [text for text, _ in documents]
        assert texts[0] == row.texts[0]
        assert dict(zip(texts, map(np.float32, scores), strict=True)) == dict(zip(row.texts, row.logits, strict=True))
