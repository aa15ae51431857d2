"""Dark examples: that mixed passages keep both parts, that masks mask what they say, and that the teacher reads just that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.config.settings import DarkExamples, load
from data.digests import pair_key
from data.logits.segment import as_keys
from data.logits.store import LogitStore
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK, CandidateKind
from data.tables.shards import read_shard
from pipeline.scoring.reading_lengths import longest_mixed
from pipeline.stages.dark_examples import candidates_of, mask, mix, share_room
from retrieval.models.resolved import ResolvedModels
from retrieval.models.tokenizer import Tokenizer

POSITIVE = "bace difogu ha jekilo muna pe rosa tuveyaze bo cudafe gi"
NEGATIVE = "zayevu tosa re ponu molikeji ho"


@pytest.fixture(scope="module")
def splitter(models: Any) -> Tokenizer:
    return Tokenizer(models.teacher)


def shortened(first: int, second: int, *, room: int) -> tuple[int, int]:
    """Longest first as one would do it by hand."""
    while first + second > room:
        if first >= second:
            first -= 1
        else:
            second -= 1
    return first, second


@given(st.integers(1, 300), st.integers(1, 300), st.integers(2, 200))
def test_share_room(first: int, second: int, room: int) -> None:
    """Prevents: a mixed passage that is p+ alone, or one longer than the model reads."""
    kept = share_room(first, second, room=room)
    assert sum(kept) == min(first + second, room)
    assert 1 <= kept[0] <= first and 1 <= kept[1] <= second
    by_hand = shortened(first, second, room=room)
    assert abs(kept[0] - by_hand[0]) <= (kept[0] + kept[1] == room)
    if kept != by_hand:
        assert sorted(kept) == sorted(by_hand)


@given(first=st.integers(1, 12), second=st.integers(1, 12), max_tokens=st.integers(8, 40))
def test_a_mix_fits_and_keeps_both_parts(splitter: Tokenizer, first: int, second: int, max_tokens: int) -> None:
    """Prevents: a right cut by the tokenizer that takes p- away again."""
    positive, negative = " ".join(["bacedi"] * first), " ".join(["zuyo"] * second)
    mixed = mix(positive, negative, splitter=splitter, max_tokens=max_tokens, truncation="longest_first")
    before, after = mixed.split(f" {SEPARATOR_MARK} ")
    assert positive.startswith(before) and before and negative.startswith(after) and after
    tokens = splitter.encode([mixed], max_tokens=10_000)[0]
    assert len(tokens) == min(3 * first + 2 * second + 3, max_tokens)


def test_a_right_cut_is_left_to_the_reader(splitter: Tokenizer) -> None:
    """Prevents: a switch that does nothing."""
    mixed = mix(POSITIVE, NEGATIVE, splitter=splitter, max_tokens=8, truncation="right")
    assert mixed == f"{POSITIVE} {SEPARATOR_MARK} {NEGATIVE}"


def masked(splitter: Tokenizer, ratio: float, *parts: object, unit: str = "piece", text: str = POSITIVE) -> str:
    return mask(text, ratio, splitter=splitter, unit=unit, seed_parts=parts)


@pytest.mark.parametrize("unit", ["piece", "piece_exact", "word"])
def test_ratio_one_masks_every_piece(splitter: Tokenizer, unit: str) -> None:
    """Prevents: an off-by-one at the ends of the text, or words masked by one mark instead of one a piece."""
    text = masked(splitter, 1.0, 0, unit=unit)
    assert text.replace(MASK_MARK, "").strip(" ") == "" and text.count(MASK_MARK) == len(splitter.pieces(POSITIVE))
    tokens = splitter.encode([text], max_tokens=100)[0]
    assert len(tokens) == len(splitter.encode([POSITIVE], max_tokens=100)[0]) and len(set(tokens[1:-1])) == 1


@pytest.mark.parametrize("unit", ["piece", "word"])
@pytest.mark.parametrize("ratio", [0.15, 0.55])
def test_the_share_of_masks_is_the_ratio(splitter: Tokenizer, unit: str, ratio: float) -> None:
    """Prevents: masks that are systematically too few or too many, which a single text does not show."""
    pieces = len(splitter.pieces(POSITIVE))
    share = np.mean([masked(splitter, ratio, seed, unit=unit).count(MASK_MARK) / pieces for seed in range(600)])
    assert abs(share - ratio) < 0.02


@pytest.mark.parametrize(("ratio", "count"), [(0.15, 3), (0.5, 12), (0.02, 0), (0.98, 23)])
def test_exact_counts(splitter: Tokenizer, ratio: float, count: int) -> None:
    """Prevents: round-half-to-even or a floor, where the nearest whole number is meant."""
    assert len(splitter.pieces(POSITIVE)) == 23
    assert {masked(splitter, ratio, seed, unit="piece_exact").count(MASK_MARK) for seed in range(20)} == {count}


def test_a_word_is_masked_whole_or_not_at_all(splitter: Tokenizer) -> None:
    """Prevents: whole-word masking that leaves half a word to read."""
    sizes = {word: len(splitter.pieces(word)) for word in POSITIVE.split()}
    for seed in range(50):
        for word, kept in zip(sizes, masked(splitter, 0.4, seed, unit="word").split(), strict=True):
            assert kept in (word, MASK_MARK * sizes[word])


def test_masks_are_a_function_of_the_seed_parts(splitter: Tokenizer) -> None:
    """Prevents: masks that differ on the next run, or are the same for every query, ratio or draw."""
    first = masked(splitter, 0.4, 0, "mask", "q1")
    assert first == masked(splitter, 0.4, 0, "mask", "q1")
    assert len({masked(splitter, 0.4, *parts) for parts in ((0, "mask", "q1"), (0, "mask", "q2"), (1, "mask", "q1"))}) == 3


@pytest.mark.parametrize("text", ["", "  ", "ba", "ba - ce!", "Ábå ÇE", "中文 ba\u0301", "bax9 \U0001f600 ce"])
def test_unmasked_text_is_kept_as_it_is(splitter: Tokenizer, text: str) -> None:
    """Prevents: text that loses accents, case or spaces beside the masks, by a round trip through tokens."""
    assert masked(splitter, 1e-9, 0, text=text) == text
    for unit in ("piece", "piece_exact", "word"):
        kept = masked(splitter, 0.5, 3, unit=unit, text=text).split(MASK_MARK)
        at = 0
        for part in kept:
            at = text.index(part, at) + len(part)


def listed(splitter: Tokenizer, *, m: int, **settings: Any) -> list[Any]:
    negatives = [(f"n{number}", f"{NEGATIVE} ba{'ce' * number}") for number in range(m)]
    return candidates_of(
        "q", ("p", POSITIVE), negatives, mask_draw=settings.pop("mask_draw", 0), splitter=splitter, settings=DarkExamples(**settings),
        mixed_tokens=32, seed=0,
    )  # fmt: skip


def test_order_and_counts_of_a_list(splitter: Tokenizer) -> None:
    """Prevents: kinds in another order than the trainer's losses expect: m + m + 5 candidates after the positive (ADAM 4.3)."""
    candidates = listed(splitter, m=10)
    assert [int(candidate.kind) for candidate in candidates] == [0] + [1] * 10 + [2] * 10 + [3] * 5
    assert [candidate.id for candidate in candidates[1:11]] == [f"n{n}" for n in range(10)]
    assert [candidate.id for candidate in candidates[11:21]] == [f"p+n{n}" for n in range(10)]
    assert [candidate.id for candidate in candidates[21:]] == [f"p~{ratio}" for ratio in (0.15, 0.25, 0.35, 0.45, 0.55)]
    assert candidates[0].text == POSITIVE and all(SEPARATOR_MARK in candidate.text for candidate in candidates[11:21])


def test_parts_can_be_left_out(splitter: Tokenizer) -> None:
    """Prevents: an ablation that makes the dark examples all the same."""
    kinds = Counter(candidate.kind for candidate in listed(splitter, m=3, reinforced=False, mask_ratios=()))
    assert kinds == {CandidateKind.POSITIVE: 1, CandidateKind.NEGATIVE: 3}


def test_a_new_draw_has_new_masks_and_the_same_rest(splitter: Tokenizer) -> None:
    """Prevents: draws that are copies of each other, or draws for which unchanged pairs are scored again."""
    first, second = listed(splitter, m=3), listed(splitter, m=3, mask_draw=1)
    assert [c.text for c in first[:7]] == [c.text for c in second[:7]] and [c.text for c in first[7:]] != [c.text for c in second[7:]]


def test_more_ratios_keep_the_masks_of_the_others(splitter: Tokenizer) -> None:
    """Prevents: logits paid again for a ratio that was there before."""
    few, more = listed(splitter, m=1, mask_ratios=(0.3,)), listed(splitter, m=1, mask_ratios=(0.15, 0.3))
    assert few[-1].text == more[-1].text


def test_the_teacher_reads_the_exact_text(splitter: Tokenizer) -> None:
    """Prevents: marks that reach the teacher as text, or a pair whose second part is not a segment of its own."""
    ((ids, segments, truncated),) = splitter.encode_pairs([("ha bo", f"bace {MASK_MARK}di {SEPARATOR_MARK} fo")], max_tokens=64)
    tokens = splitter._tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["[CLS]", "ha", "bo", "[SEP]", "ba", "##ce", "[MASK]", "di", "[SEP]", "fo", "[SEP]"]
    assert segments == [0] * 4 + [1] * 7 and not truncated
    ((ids, _, truncated),) = splitter.encode_pairs([("ha bo", POSITIVE)], max_tokens=16)
    assert len(ids) == 16 and truncated


def test_stored_logits_are_of_the_stored_texts(finished: Any, models: Any, splitter: Tokenizer) -> None:
    """Prevents: logits in another row's place, by an independent look-up and an independent forward pass of each kind."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(models.teacher).eval()
    (namespace,) = (finished.store / "teacher_logits").iterdir()
    store = LogitStore(finished.store, namespace.name)
    for path in sorted((finished.store / "dark_examples").rglob("*.parquet")):
        rows = read_shard(path).to_pylist()
        (scores,) = (finished.store / "teacher_scores").glob(f"*/{path.name}")
        logits = read_shard(scores).column("logit").to_numpy()
        keys = as_keys([pair_key(row["query"], row["text"]) for row in rows])
        np.testing.assert_array_equal(store.lookup(keys).logits, logits)
        for place in (0, 2, 5, 9, len(rows) - 1):
            ((ids, segments, _),) = splitter.encode_pairs([(rows[place]["query"], rows[place]["text"])], max_tokens=64)
            with torch.inference_mode():
                logit = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([segments])).logits.item()
            assert abs(logit - logits[place]) < 1e-4


def test_lists_of_a_run(finished: Any) -> None:
    """Prevents: a query without its full list: 1 + m + m + 5 rows at m = 3, one after the other."""
    settings = load({"config": str(finished.config)})
    rows = [row for path in sorted((finished.store / "dark_examples").rglob("*.parquet")) for row in read_shard(path).to_pylist()]
    assert Counter(row["query_id"] for row in rows) == {f"train{n}": 12 for n in range(14)}
    assert [row["position"] for row in rows] == list(range(12)) * 14 and longest_mixed(ResolvedModels(settings)) == 48


def test_every_draw_has_its_list(tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]]) -> None:
    """Prevents: epochs that train on rows of another draw, or on none."""
    config = tiny_experiment(tmp_path, **{"hard_negatives.source": "random", "hard_negatives.draws": 2, "dark_examples.mask_draws": 3})
    for stage in ("ingest", "hard_negatives", "dark_examples"):
        prep_run(config, stage=stage)
    rows = [row for path in sorted((tmp_path / "store" / "dark_examples").rglob("*.parquet")) for row in read_shard(path).to_pylist()]
    by_draw = {draw: [row for row in rows if row["draw"] == draw] for draw in range(3)}
    assert {len(listed) for listed in by_draw.values()} == {14 * 12}
    negatives = [{(r["query_id"], r["candidate_id"]) for r in listed if r["candidate_kind"] == 1} for listed in by_draw.values()]
    masks = [[r["text"] for r in listed if r["candidate_kind"] == 3] for listed in by_draw.values()]
    assert negatives[0] == negatives[2] != negatives[1] and masks[0] != masks[1] != masks[2] != masks[0]
