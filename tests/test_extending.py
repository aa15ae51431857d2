"""docs/extending.md: its five examples, taken from the page, do what the page says."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.extending import FILES, SETTINGS

from data.config.settings import HardNegatives, Teacher
from data.digests import hash64_after
from data.tables.manifest import Manifest
from pipeline.negatives.corpus import Corpus
from pipeline.negatives.samplers import Window, preferred
from pipeline.negatives.sources import PluginSource
from pipeline.stage import Stored
from trainer.objective.losses import DISTILLATION_LOSSES


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys of nested mappings."""
    found: dict[str, str] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def overrides() -> dict[str, str]:
    """All settings of the page."""
    return {name: value for block in SETTINGS for name, value in flat(block).items()}


def test_the_page_has_five_examples() -> None:
    """Prevents: a block that another fence or first line hides from the tests below."""
    assert sorted(FILES) == [f"mylab/{name}.py" for name in ("losses", "samplers", "sources", "teachers", "trackers")]
    named = [
        "train.objective.distillation",
        "hard_negatives.sampler",
        "hard_negatives.source",
        "teacher.backend",
        "teacher.model",
        "train.tracker",
    ]
    assert list(overrides()) == named


def test_the_loss(plugin_folder: Callable[..., Path]) -> None:
    """Prevents: an example that gives another shape, no gradient, or one to padding."""
    plugin_folder(FILES)
    loss = DISTILLATION_LOSSES.get("mylab.losses:rank_net", setting="loss")
    scores = torch.tensor([[1.0, 0.0, 3.0], [0.0, 2.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    losses = loss(scores, torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 0.0]]), mask, temperature=1.0)
    plain = np.log1p(np.exp([-1.0, 2.0, 3.0])).mean()
    assert losses.dtype == torch.float64 and losses.tolist() == pytest.approx([plain, 0.0])
    losses.sum().backward()
    assert scores.grad is not None and (scores.grad[0] != 0).all() and (scores.grad[1] == 0).all()


def test_the_sampler(plugin_folder: Callable[..., Path]) -> None:
    """Prevents: an example of the wrong end of the teacher's scores."""
    plugin_folder(FILES)
    settings = HardNegatives(sampler="mylab.samplers:just_below")
    assert settings.uses_pool_scores
    window = Window(
        "q", ["a", "b", "c"], 2, hash64_after(0, "negatives", "q", 0), settings, teacher_logits=[5.0, -1.0, 2.0], positive_logit=4.0
    )
    assert preferred(window) == ["c", "b", "a"]


def test_the_source(plugin_folder: Callable[..., Path], finished: Any) -> None:
    """Prevents: an example that ranks by another word, or that the corpus of the pipeline does not serve."""
    plugin_folder(FILES)
    (folder,) = finished.store.glob("ingest/corpus-*")
    corpus = Corpus(Stored(folder, Manifest.read(folder)))
    texts = {doc_id: text for ids, texts in corpus.passages() for doc_id, text in zip(ids, texts, strict=True)}
    assert len(texts) == len(corpus)
    queries = pa.table({"query_id": ["q1", "q2"], "text": [texts["d1"], "nothing of it"]})
    rows, scores = PluginSource("mylab.sources:rarest_word", queries, corpus, seed=0).rank(0, 2, k=5)
    listed = corpus.ids_of(rows[0][rows[0] >= 0]).to_pylist()
    holders = [[doc_id for doc_id, text in texts.items() if word in text.split()] for word in texts["d1"].split()]
    assert listed in holders and len(listed) == min(map(len, holders)) and (rows[1] == -1).all() and not scores.any()


@pytest.mark.skipif(importlib.util.find_spec("retrieval.teachers.base") is None, reason="teachers by import path")
def test_the_teacher(plugin_folder: Callable[..., Path]) -> None:
    """Prevents: an example that the protocol of teachers does not take."""
    from retrieval.teachers.backends import resolve_teacher
    from retrieval.teachers.base import TeacherSettings

    plugin_folder(FILES)
    teacher = Teacher(backend=overrides()["teacher.backend"], model="words")
    opened = resolve_teacher(teacher, device="cpu").open(TeacherSettings.of(teacher, device="cpu", threads=1))
    assert opened.score([("a b", "A c"), ("a b", "b a")]).tolist() == [0.0, 5.0]


def test_the_tracker(plugin_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Prevents: an example that the protocol of trackers does not take, or that loses what an earlier start has written."""
    from data.config.settings import Train
    from trainer.reporting.trackers.tracking import Tracking

    plugin_folder(FILES)
    for done, step in [(0, 1), (1, 2)]:
        layer = Tracking(Train(tracker=overrides()["train.tracker"], output=str(tmp_path)), rows=lambda after: [], note=print)
        layer.start(config={}, step=done)
        layer.log(step, {"train/loss": 0.5 / step})
        layer.finish()
    assert (tmp_path / "loss.csv").read_bytes() == b"1,0.5\r\n2,0.25\r\n"
