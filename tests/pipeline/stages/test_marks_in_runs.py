"""Dark examples for models whose tokenizers lack [MASK] or [SEP]: within their budget, keyed as they are read, from end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.checkpoints import change_json, save, save_sentencepiece, save_tokenizer
from support.model_files import without_marks
from support.rerankers import trained_tokenizer

from data.config.settings import DarkExamples, load
from data.digests import json_digest, pair_key
from data.logits.segment import as_keys
from data.logits.store import LogitStore
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK
from data.tables.shards import read_shard
from pipeline.plan import tables
from pipeline.stages.dark_examples import mask, mix
from retrieval.models.marks import marks_of
from retrieval.models.resolved import ResolvedModels
from retrieval.models.tokenizer import Tokenizer

TEXTS = st.lists(st.sampled_from(["ba", "bacedi", "zuyo,", "x", "é", "(ba)", "ca", "caba", "b.c"]), min_size=1, max_size=40).map(" ".join)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tokenizers that make more tokens of the whole than of its parts: byte-level with and without [SEP], as LLaMA's, as XLM-R's."""
    folder = tmp_path_factory.mktemp("tokenizers")
    marked = save_tokenizer(folder / "modernbert", "qwen", sep_token="<|end|>", mask_token="<|pad|>")
    unigram = trained_tokenizer(folder / "xlmr", "unigram")
    change_json(unigram / "tokenizer_config.json", sep_token="</s>")
    own = {"qwen": save_tokenizer(folder / "qwen", "qwen"), "llama": save_sentencepiece(folder / "llama")}
    return {**own, "modernbert": marked, "xlmr": unigram}


@pytest.mark.medium
@pytest.mark.parametrize("name", ["qwen", "modernbert", "llama", "xlmr"])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(positive=TEXTS, negative=TEXTS, max_tokens=st.integers(10, 60))
def test_no_mixed_passage_is_above_its_budget(
    tokenizers: dict[str, Path], name: str, positive: str, negative: str, max_tokens: int
) -> None:
    """Prevents: two tokens too many, so that the reader cuts the end of p- again."""
    tokenizer = Tokenizer(tokenizers[name])
    marks = marks_of(tokenizers[name], DarkExamples(mask_ratios=()), option="o")

    def count(text: str) -> int:
        return tokenizer.count(marks.read(text))

    mixed = mix(positive, negative, splitter=tokenizer, max_tokens=max_tokens, truncation="longest_first", measure=count)
    before, after = mixed.split(f" {SEPARATOR_MARK} ")
    assert positive.startswith(before) and negative.startswith(after)
    assert count(mixed) <= max_tokens
    if before == positive and after == negative:
        return
    assert count(mixed) >= max_tokens - 8, "a budget that is not used"


def test_wordpiece_is_cut_as_before(models: Any) -> None:
    """Prevents: other texts, and so other logits, for all stores that there are."""
    tokenizer = Tokenizer(models.teacher)
    chance = np.random.default_rng(0)
    words = ["ba", "bacedi", "zuyo", "x,", "(ba)"]
    for _ in range(50):
        one, other = (" ".join(chance.choice(words, chance.integers(1, 40))) for _ in range(2))
        plain = mix(one, other, splitter=tokenizer, max_tokens=32, truncation="longest_first")
        assert mix(one, other, splitter=tokenizer, max_tokens=32, truncation="longest_first", measure=tokenizer.count) == plain


def test_words_are_masked_whole_where_a_tokenizer_splits_none(tokenizers: dict[str, Path]) -> None:
    """Prevents: a share of masks of 0 or 1, where a ratio was asked for."""
    tokenizer, text = Tokenizer(tokenizers["llama"]), " baca caba ba ca"
    seen = {mask(text, 0.5, splitter=tokenizer, unit="word", seed_parts=(seed,)).count(MASK_MARK) for seed in range(40)}
    assert len(seen) > 3
    for seed in range(20):
        left = mask(text, 0.5, splitter=tokenizer, unit="word", seed_parts=(seed,)).replace(MASK_MARK, " ").split()
        assert set(left) <= {"baca", "caba", "ba", "ca"}


def as_teacher(folder: Path, name: str) -> Path:
    """A cross-encoder with one output whose tokenizer lacks both tokens."""
    return save(folder, {"qwen": "Qwen3", "llama": "Llama"}[name], head=True)


def rows_of(store: Path, stage: str) -> list[dict[str, Any]]:
    return [row for path in sorted((store / stage).rglob("*.parquet")) for row in read_shard(path).to_pylist()]


@pytest.mark.medium
@pytest.mark.parametrize(("of_teacher", "of_student"), [("qwen", "qwen"), ("qwen", "bert"), ("bert", "qwen"), ("llama", "llama")])
def test_from_texts_to_shards(
    models: Any, tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]], of_teacher: str, of_student: str
) -> None:
    """Prevents: marks that reach a model as they are, or as nothing; logits and tokens of two renderings of one text."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    teacher = models.teacher if of_teacher == "bert" else as_teacher(tmp_path / "teacher", of_teacher)
    student = models.student if of_student == "bert" else save(tmp_path / "student", {"qwen": "Qwen3", "llama": "Llama"}[of_student])
    words = {"teacher.model": teacher, "student.model": student, "student.pooling": "mean", "teacher.precision": "fp32"}
    config = tiny_experiment(tmp_path / "run", **words)
    said = prep_run(config)
    store = tmp_path / "run" / "store"
    for option, name in (("teacher.model", of_teacher), ("student.model", of_student)):
        notes = [line for line in said if line.startswith(f"note: {option}: its tokenizer has no")]
        assert len(notes) == (0 if name == "bert" else 2), said

    experiment = load({"config": str(config)})
    resolved = ResolvedModels(experiment)

    def read(text: str, name: str) -> str:
        separator = {"bert": "[SEP]", "qwen": "\n", "llama": "---"}[name]
        return text.replace(SEPARATOR_MARK, separator).replace(MASK_MARK, "[MASK]" if name == "bert" else "...")

    candidates, scores = rows_of(store, "dark_examples"), rows_of(store, "teacher_scores")
    tokenizer, model = AutoTokenizer.from_pretrained(teacher), AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    for row, score in list(zip(candidates, scores, strict=True))[::7]:
        text = read(row["text"], of_teacher)
        if row["candidate_kind"] == 2:
            assert len(tokenizer(text)["input_ids"]) <= 48
        ids = tokenizer(row["query"], text, truncation="longest_first", max_length=experiment.teacher.max_tokens, return_tensors="pt")
        with torch.inference_mode():
            logit = model(**ids).logits.item()
        assert score["logit"] == pytest.approx(logit, abs=1e-4)
    keys = [pair_key(row["query"], row["text"] if of_teacher == "bert" else read(row["text"], of_teacher)) for row in candidates]
    known = LogitStore(store, resolved.namespace).lookup(as_keys(keys)).logits
    np.testing.assert_array_equal(known, np.array([row["logit"] for row in scores], np.float32))

    reader = AutoTokenizer.from_pretrained(student)
    texts = {(row["query_id"], row["candidate_id"]): row for row in candidates}
    for shard in rows_of(store, "shards"):
        for place in range(0, len(shard["candidate_id"]), 5):
            row = texts[shard["query_id"], shard["candidate_id"][place]]
            longest = 48 if row["candidate_kind"] == 2 else experiment.student.passage_tokens
            ids = reader(read(row["text"], of_student), truncation=True, max_length=longest)["input_ids"]
            assert shard["candidate_tokens"][place] == ids


@pytest.mark.medium
def test_another_text_is_another_pair_and_plain_pairs_stay(
    tmp_path: Path, models: Any, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]], count_scored: list[int]
) -> None:
    """Prevents: logits of one separator taken for those of another, and logits of plain pairs paid for again."""
    config = tiny_experiment(tmp_path / "run", **{"teacher.model": as_teacher(tmp_path / "teacher", "qwen")})
    prep_run(config, **{"dark_examples.reinforced": False, "dark_examples.mask_ratios": "[]"})
    plain = sum(count_scored)
    prep_run(config)
    marked = sum(count_scored) - plain
    prep_run(config, **{"dark_examples.separator": "ba"})
    again = sum(count_scored) - plain - marked
    rows = rows_of(config.parent / "store", "dark_examples")
    mixed = {(row["query"], row["text"]) for row in rows if row["candidate_kind"] == 2 and SEPARATOR_MARK in row["text"]}
    assert plain and marked and len(mixed) / 2 <= again <= len(mixed)  # and the probe's own
    prep_run(config)
    assert sum(count_scored) == plain + marked + again


def test_keys_hold_the_texts_only_where_they_are_read(
    tmp_path: Path, models: Any, tiny_experiment: Callable[..., Path], tokenizers: dict[str, Path]
) -> None:
    """Prevents: tables of another separator found complete, and tables of models with tokens of their own made again."""

    def keys(**words: Any) -> dict[str, str]:
        experiment = load({"config": str(tiny_experiment(tmp_path / "run", **words))})
        resolved = ResolvedModels(experiment)
        return {table.label: json_digest(table.full_key(resolved, {})) for table in tables(experiment)} | {"namespace": resolved.namespace}

    def changed(one: dict[str, str], other: dict[str, str]) -> set[str]:
        return {label for label in one if one[label] != other[label]}

    lacking = {"teacher.model": without_marks(models.teacher, tmp_path / "teacher")}
    text = {"dark_examples.separator": "ba", "dark_examples.mask_text": "ce"}
    off = {"dark_examples.reinforced": False, "dark_examples.mask_ratios": []}
    assert changed(keys(**lacking), keys(**lacking, **text)) == {"dark_examples", "teacher_scores", "shards"}
    assert changed(keys(**lacking, **off), keys(**lacking, **off, **text)) == set()
    own = keys()
    assert changed(own, keys(**text)) == {"dark_examples", "teacher_scores", "shards"}
    of_student = {"student.model": without_marks(models.student, tmp_path / "student")}
    assert changed(keys(**of_student), keys(**of_student, **{"dark_examples.mask_text": "ce"})) == {"shards", "teacher_scores"}


@pytest.mark.parametrize(("off", "notes"), [([], 4), (["dark_examples.reinforced=false", "dark_examples.mask_ratios=[]"], 0)])
def test_a_plan_says_what_was_chosen(tmp_path: Path, models: Any, tiny_experiment: Callable[..., Path], off: list[str], notes: int) -> None:
    """Prevents: a text of our choice in all dark examples, of which nobody hears before they are paid for."""
    from typer.testing import CliRunner

    from pipeline.cli import app

    lacking = {
        "teacher.model": without_marks(models.teacher, tmp_path / "a"),
        "student.model": without_marks(models.student, tmp_path / "b"),
    }
    config = tiny_experiment(tmp_path / "run", **lacking)
    done = CliRunner().invoke(app, ["plan", f"config={config}", *off])
    assert done.exit_code == 0, done.output
    assert done.stdout.count("its tokenizer has no") == notes
