"""What a text gives does not depend on the texts beside it, for every architecture; a model for which it would is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from support.checkpoints import ARCHITECTURES, WORDS, change_json, save, save_tokenizer

from data.config.settings import Student, Teacher
from data.digests import DigestCache
from data.errors import UserError
from retrieval.compute.precision import cpu_computes_bf16
from retrieval.compute.probe import pad_id_of, probe_batch
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.models.padding import check_padding, results_of
from retrieval.models.student import resolve_student
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.cross_encoder import TorchCrossEncoder
from retrieval.teachers.pair_scorer import PairScorer
from retrieval.teachers.pair_tokens import PairTokenizer
from retrieval.teachers.scoring import score_pairs

CHANCE = random.Random(0)
TEXTS = [" ".join(CHANCE.choices(WORDS, k=count)) for count in (1, 3, 7, 20, 40, 50, 5, 9)]
PAIRS = [(query, text) for query in TEXTS[:3] for text in TEXTS]
SOUND = [name for name in ARCHITECTURES if name != "MobileBert"]
DECODERS = {"Qwen2", "Qwen3", "Llama", "Mistral", "Gemma", "Gemma2", "Gemma3Text", "GPTNeoX", "GPT2", "OPT"}  # refused with cls
NOISE = {"fp32": 1e-5, "bf16": 0.05}
PRECISIONS = ["fp32", pytest.param("bf16", marks=pytest.mark.skipif(not cpu_computes_bf16(), reason="this processor has no bf16"))]


def alone(folder: Path, pairs: list[tuple[str, str]] = PAIRS) -> NDArray[np.float32]:
    """The reference: transformers as it is, one pair after the other."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encoded = PairTokenizer(folder, max_tokens=100).encode(pairs)
    segments = getattr(model.config, "type_vocab_size", 1) > 1
    with torch.no_grad():
        return np.array([
            model(
                input_ids=torch.tensor(pair.ids[None].astype(np.int64)),
                **({"token_type_ids": torch.tensor(pair.segments[None].astype(np.int64))} if segments else {}),
            ).logits.item()
            for pair in encoded
        ], np.float32)  # fmt: skip


def together(folder: Path, precision: str = "fp32", *, batch_tokens: int = 400, pairs: list[tuple[str, str]] = PAIRS) -> Any:
    teacher = TorchCrossEncoder(folder, precision=precision, device="cpu", batch_tokens=batch_tokens)
    tokenizer = PairTokenizer(folder, max_tokens=100)
    return score_pairs(teacher, tokenizer.encode(pairs), pad_id=tokenizer.pad_id)


@pytest.mark.medium
@pytest.mark.parametrize("name", SOUND)
def test_a_pair_gives_alone_what_it_gives_in_any_batch(built: Any, name: str) -> None:
    """Prevents: a logit that depends on its neighbours, on how many are cached, on the batch size: another one in each run."""
    expected = alone(built(name, True))
    assert expected.std() > 0.05  # else everything would be equal
    for batch_tokens in (1, 400):
        np.testing.assert_allclose(together(built(name, True), batch_tokens=batch_tokens), expected, atol=1e-5)


@pytest.mark.medium
@pytest.mark.skipif(not cpu_computes_bf16(), reason="this processor has no bf16")
@pytest.mark.parametrize("name", SOUND)
def test_in_bf16_too(built: Any, name: str) -> None:
    """Prevents: padding that is seen where masks and sums are rounded."""
    one_by_one, batches = (together(built(name, True), "bf16", batch_tokens=batch_tokens) for batch_tokens in (1, 400))
    np.testing.assert_allclose(batches, one_by_one, atol=NOISE["bf16"])


DECODERS = ("Qwen2", "Qwen3", "Llama", "Mistral", "Gemma", "Gemma2", "Gemma3Text", "GPTNeoX", "GPT2", "OPT")


@pytest.mark.medium
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", SOUND)
def test_a_text_has_alone_the_vector_it_has_in_any_batch(built: Any, name: str, precision: str) -> None:
    """Prevents: vectors that depend on the shard's other texts, by either pooling (of decoders by mean, their only one)."""
    for pooling in ("mean", "cls") if precision == "fp32" and name not in DECODERS else ("mean",):
        student = Student(model=str(built(name, False)), pooling=pooling, normalize=True, query_tokens=60, passage_tokens=60)
        first, second = (
            TextEncoder(resolve_student(student), precision=precision, device="cpu", batch_tokens=tokens).passages(TEXTS)
            for tokens in (1, 400)
        )
        np.testing.assert_allclose(first, second, atol=NOISE[precision])


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "changed", "tokenizer"),
    [
        ("Llama", {"pad_token_id": 2}, {}),  # the tokenizer has none; texts end in 2
        ("Llama", {"pad_token_id": 0}, {"pad_token": "</s>"}),
        ("Llama", {"pad_token_id": 7}, {"pad_token": "</s>"}),  # a word
        ("Qwen3", {"pad_token_id": 1}, {}),  # the tokenizer's is 2, texts end in 1
        ("Gemma", {"pad_token_id": 3}, {"padding_side": "left"}),
        ("GPT2", {"pad_token_id": 2}, {}),
        ("Roberta", {}, {"pad_token": "<mask>", "padding_side": "left"}),
    ],
)
def test_config_and_tokenizer_that_name_other_padding(
    tmp_path: Path, name: str, changed: dict[str, Any], tokenizer: dict[str, Any]
) -> None:
    """Prevents: a decoder's head that takes a place of padding for the text's end: 43 of 63 logits off, by up to 5.3, by the batch."""
    folder = save(tmp_path, name, head=True, **changed)
    save_tokenizer(folder, ARCHITECTURES[name][0], **tokenizer)
    pairs = [*PAIRS, ("ba", "be bi </s>"), ("ba", "<unk> </s> </s>")]
    np.testing.assert_allclose(together(folder, pairs=pairs), alone(folder, pairs), atol=1e-5)


def key(folder: Path) -> dict[str, Any]:
    """Of the teacher's logits in the store."""
    teacher = Teacher(model=str(folder), precision="fp32", max_tokens=64)
    return resolve_teacher(teacher, device="cpu").key(DigestCache(folder.parent / "none"))


def test_only_logits_of_other_padding_get_a_name_of_their_own(tmp_path: Path) -> None:
    """Prevents: logits that once depended on their batch, served from a store for ever; and right ones paid for again."""
    for name, changed, tokenizer, padding in (
        ("Llama", {"pad_token_id": 2}, {}, 2),
        ("Llama", {"pad_token_id": 0}, {}, None),  # padded with 0 where the tokenizer names nothing
        ("Llama", {"pad_token_id": 2}, {"pad_token": "</s>"}, None),
        ("Llama", {"pad_token_id": 0}, {"pad_token": "</s>"}, 0),
        ("Bert", {"pad_token_id": 1}, {}, None),  # an encoder's head looks at the first token
    ):
        folder = save(tmp_path / f"{name}{changed}{tokenizer}", name, head=True, **changed)
        save_tokenizer(folder, ARCHITECTURES[name][0], **tokenizer)
        assert key(folder).get("padding") == padding, (name, changed, tokenizer)


def test_segments_are_given_only_where_the_tokenizer_gives_them(tmp_path: Path) -> None:
    """Prevents: logits with segment ids from a cross-encoder that was trained without; and right logits paid for again."""
    for name, style, named, changes in (
        ("Bert", "bert", ["input_ids", "attention_mask"], True),
        ("Bert", "bert", ["input_ids", "token_type_ids", "attention_mask"], False),
        ("Bert", "bert", None, False),
        ("Bert", "roberta", ["input_ids", "attention_mask"], False),  # whose segments are all 0
        ("XLMRoberta", "roberta", ["input_ids", "attention_mask"], False),
    ):
        folder = save(tmp_path / f"{name}{style}{named}", name, head=True, style=style)
        save_tokenizer(folder, style, **({"model_input_names": named} if named else {}))
        assert ("segments" in key(folder)) == changes, (name, style, named)
        if named:  # without, the default of transformers is of its version
            given = transformers.AutoTokenizer.from_pretrained(folder)([query for query, _ in PAIRS[:4]], [text for _, text in PAIRS[:4]])
            model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
            with torch.no_grad():
                expected = [model(**{part: torch.tensor([rows[row]]) for part, rows in given.items()}).logits.item() for row in range(4)]
            np.testing.assert_allclose(together(folder, pairs=PAIRS[:4]), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "GPTNeoX"])
def test_a_decoder_without_a_padding_token_is_told_what_to_do(tmp_path: Path, name: str) -> None:
    """Prevents: a traceback out of the first batch, after all that comes before scoring."""
    folder = save(tmp_path, name, head=True)
    change_json(folder / "config.json", pad_token_id=None)
    with pytest.raises(UserError, match=r"has no pad_token_id: write one into it"):
        TorchCrossEncoder(folder, precision="fp32", device="cpu")
    with pytest.raises(UserError, match=r"has no pad_token_id"):
        scorer = PairScorer(folder, seed=0)
        check_padding(scorer.backbone, check=results_of(scorer), option="teacher.model")


UNSOUND = {
    "FNet": {"pad_token_id": 0}, "ConvBert": {"embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3},
    "T5": {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "head"), [(name, head) for name in [*UNSOUND, "MobileBert"] for head in (False, True) if (name, head) != ("T5", False)]
)  # T5 as a student is refused by its files
def test_a_model_that_reads_its_padding_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, head: bool) -> None:
    """Prevents: states that mix along the batch's length (Fourier transforms, convolutions, MobileBERT's next token), and heads that want
    as many end tokens in every text, whose numbers would depend on the batch or break in the middle of it."""
    monkeypatch.setitem(ARCHITECTURES, name, ("t5" if name == "T5" else "bert", UNSOUND.get(name) or ARCHITECTURES[name][1]))
    folder = save(tmp_path, name, head=head)
    with pytest.raises(
        UserError,
        match=r"^(student|teacher)\.model: (a \w+ (gives a text another result|cannot compute a batch)|.* names a t5 model)",
    ):
        if head:
            TorchCrossEncoder(folder, precision="fp32", device="cpu")
        else:
            student = Student(model=str(folder), pooling="mean", query_tokens=60, passage_tokens=60)
            TextEncoder(resolve_student(student), precision="fp32", device="cpu", batch_tokens=400)


def test_the_probe_is_padded_as_the_model_wants_it(built: Any) -> None:
    """Prevents: checks on batches that a decoder's head reads at places of padding."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(built("Llama", True))
    ids, mask, _ = probe_batch(model)
    assert pad_id_of(model) == 2 and bool((ids[mask == 0] == 2).all()) and mask.sum(1).tolist() == [64, 3, 17, 40]
