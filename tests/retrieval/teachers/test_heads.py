"""Sequence classifiers with several outputs: which one is the logit is said by a setting, before any work, and keyed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.checkpoints import change_json, save

from data.config.settings import Teacher
from data.digests import DigestCache
from data.errors import UserError
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.cross_encoder import CrossEncoderSpec, load_cross_encoder
from retrieval.teachers.heads import ClassifierHead
from retrieval.teachers.pair_tokens import PairTokenizer
from retrieval.teachers.scoring import score_pairs

PAIRS = [("ha bo", "di " * n) for n in (1, 40, 7, 3, 22, 15, 2, 60)]


def spec_of(folder: Path, **settings: Any) -> CrossEncoderSpec:
    return resolve_teacher(Teacher(**{"model": str(folder), "max_tokens": 64, "precision": "fp32", **settings}), device="cpu")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with two labels, as monoBERT has them."""
    folder = tmp_path_factory.mktemp("two") / "model"
    save(folder, "Bert", head=True, num_labels=2)
    change_json(folder / "config.json", id2label={"0": "not_relevant", "1": "relevant"}, label2id={"not_relevant": 0, "relevant": 1})
    return folder


@pytest.mark.parametrize("label", [0, 1, "difference"])
def test_a_label_is_that_output(two: Path, label: Any) -> None:
    """Prevents: another output than the one that was asked for, or the difference the wrong way round."""
    spec = spec_of(two, label=label)
    tokenizer = PairTokenizer(two, max_tokens=64)
    encoded = tokenizer.encode(PAIRS)
    found = score_pairs(load_cross_encoder(spec, device="cpu", threads=1), encoded, pad_id=tokenizer.pad_id)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(two).eval()
    with torch.inference_mode():
        rows = [
            model(
                input_ids=torch.from_numpy(pair.ids)[None].long(), token_type_ids=torch.from_numpy(pair.segments)[None].long()
            ).logits[0].numpy()
            for pair in encoded
        ]  # fmt: skip
    expected = [row[1] - row[0] if label == "difference" else row[label] for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, r"has 2 outputs; a cross-encoder with one output .* takes the logit of one \(0: not_relevant, 1: relevant\).*=difference"),
        ({"label": 2}, r"teacher\.label=2: the model has the outputs 0 to 1 \(0: not_relevant"),
        ({"label": -1}, "the model has the outputs 0 to 1"),
        ({"label": 1, "backend": "onnx"}, r"teacher\.label is given, which teacher\.backend=onnx does not read"),
    ],
)
def test_what_chooses_no_output_is_refused_with_their_names(two: Path, settings: dict[str, Any], words: str) -> None:
    """Prevents: a relevance that is the logit of its opposite, or a refusal after the whole mining."""
    with pytest.raises(UserError, match=words):
        spec_of(two, **settings)


def test_three_outputs_have_no_difference_and_one_has_no_label(tmp_path: Path, models: Any) -> None:
    """Prevents: contradiction less neutral taken for a relevance."""
    folder = save(tmp_path / "model", "Bert", head=True, num_labels=3)
    with pytest.raises(UserError, match=r"has 3 outputs.*\(0: LABEL_0, 1: LABEL_1, 2: LABEL_2\)$"):
        spec_of(folder)
    with pytest.raises(UserError, match="difference is of two outputs, the model has 3"):
        spec_of(folder, label="difference")
    assert spec_of(folder, label="2").head == ClassifierHead(2)
    for label in (1, "difference"):
        with pytest.raises(UserError, match=f"teacher.label={label}: the model has one output; leave the label out"):
            spec_of(models.teacher, label=label)


def test_a_label_is_keyed_where_there_are_several(two: Path, models: Any, tmp_path: Path) -> None:
    """Prevents: one label's logits taken for another's; a store of one output that is not found again."""
    digests = DigestCache(tmp_path / "digests")
    named = [spec_of(two, label=label).namespace(digests) for label in (0, 1, "difference")]
    assert len({*named}) == 3
    assert spec_of(models.teacher, label=0).namespace(digests) == spec_of(models.teacher).namespace(digests)
    assert spec_of(models.teacher).key(digests)["head"] == "logit"
