"""Pairs from stored ids: to the id what the tokenizer's own pair encoding gives."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.errors import UserError
from data.tables.ragged import Ragged, bounds_of
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK
from retrieval.models.tokenizer import Tokenizer, tokenizing_threads
from retrieval.teachers.pair_tokens import PairTemplate, PairTokenizer, StoredPairs, truncate_all, truncate_longest_first

TEXT = "ha bo bace di fo; Insurance (1.5%) naïve café's x\ty\n"
STYLES = ("bert", "roberta", "modernbert", "left padding")


def byte_level(folder: Path, style: str) -> Path:
    """A byte-level BPE tokenizer with the post-processor of RoBERTa or ModernBERT."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    cls, sep, pad, mask = ("<s>", "</s>", "<pad>", "<mask>") if style == "roberta" else ("[CLS]", "[SEP]", "[PAD]", "[MASK]")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [cls, pad, sep, "<unk>", mask]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator([TEXT] * 20, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet))
    ids = {token: backend.token_to_id(token) for token in special}
    if style == "roberta":
        backend.post_processor = processors.RobertaProcessing((sep, ids[sep]), (cls, ids[cls]), trim_offsets=True, add_prefix_space=False)
    else:
        pair = f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1"
        backend.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}", pair=pair, special_tokens=[(cls, ids[cls]), (sep, ids[sep])]
        )
    names = {"cls_token": cls, "sep_token": sep, "pad_token": pad, "mask_token": mask, "unk_token": "<unk>"}
    side = "left" if style == "left padding" else "right"
    PreTrainedTokenizerFast(tokenizer_object=backend, padding_side=side, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, models: Any) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {"bert": models.teacher, **{style: byte_level(root / style, style) for style in STYLES[1:]}}


WORDS = st.lists(st.sampled_from([*TEXT.split(), "zzz", MASK_MARK, SEPARATOR_MARK, "  ", "Ω", "😀", "[SEP]", "</s>"]), max_size=40)
ANY = st.one_of(WORDS.map(" ".join), st.text(max_size=30))


@pytest.mark.medium
@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=80, deadline=None)
@given(pairs=st.lists(st.tuples(ANY, ANY), min_size=1, max_size=6), max_tokens=st.integers(16, 80))
@example(pairs=[("", "")], max_tokens=16)
@example(pairs=[("ha " * 90, "bo " * 90), ("ha", "bo " * 90), ("ha " * 90, "bo")], max_tokens=17)
def test_is_the_tokenizer_s_own_pair_encoding(folders: dict[str, Path], style: str, pairs: list[tuple[str, str]], max_tokens: int) -> None:
    """Prevents: a wrong special token, segment id or cut, which moves every logit a little and shows nowhere."""
    ours = PairTokenizer(folders[style], max_tokens=max_tokens)
    assert ours.template is not None
    theirs = Tokenizer(folders[style]).encode_pairs(pairs, max_tokens=max_tokens)
    assert [(pair.ids.tolist(), pair.segments.tolist(), pair.truncated) for pair in ours.encode(pairs)] == theirs


@given(first=st.integers(0, 60), second=st.integers(0, 60), room=st.integers(2, 60))
def test_longest_first_fills_the_room(first: int, second: int, room: int) -> None:
    """Prevents: a cut that takes more than it must, or more from the shorter part than from the longer."""
    kept = truncate_longest_first(first, second, room=room)
    assert sum(kept) == min(first + second, room) and kept[0] <= first and kept[1] <= second
    if kept[0] < first and kept[1] < second:
        assert abs(kept[0] - kept[1]) <= 1


@given(pairs=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=20), room=st.integers(2, 60))
def test_many_are_cut_as_each_alone(pairs: list[tuple[int, int]], room: int) -> None:
    """Prevents: a pair that is cut by the rule of another case where many are cut at once."""
    first, second = np.array(pairs, np.int64).reshape(-1, 2).T
    kept = truncate_all(first, second, room=room)
    assert list(zip(*(part.tolist() for part in kept), strict=True)) == [truncate_longest_first(*pair, room=room) for pair in pairs]


IDS = st.lists(st.integers(0, 99), max_size=9)


@given(
    firsts=st.lists(IDS, min_size=1, max_size=4), seconds=st.lists(IDS, min_size=1, max_size=4), around=st.tuples(IDS, IDS, IDS),
    kinds=st.lists(st.integers(0, 2), min_size=29, max_size=29), room=st.integers(2, 20), data=st.data(),
)  # fmt: skip
def test_many_are_joined_as_each_alone(firsts: Any, seconds: Any, around: Any, kinds: list[int], room: int, data: st.DataObject) -> None:
    """Prevents: ids of one text behind the query of another, or segment ids that slip where a text is cut or empty."""
    before, between, after = (np.array(part, np.int32) for part in around)
    types = iter(np.array(kinds, np.int32))
    own = [np.array([next(types) for _ in part], np.int32) for part in around]
    template = PairTemplate(before, between, after, (own[0], int(next(types)), own[1], int(next(types)), own[2]))
    numbers = data.draw(st.lists(st.tuples(*(st.integers(0, len(part) - 1) for part in (firsts, seconds))), min_size=1, max_size=6))
    lists = [template.specials.tolist(), *firsts, *seconds]
    ids = Ragged(np.array([token for one in lists for token in one], np.int32), bounds_of(np.array([len(one) for one in lists])))
    of_first, of_second = np.array(numbers, np.int64).T
    found = template.join_all(ids, 1 + of_first, 1 + len(firsts) + of_second, max_tokens=template.added + room)
    for pair, (first, second) in zip(found, numbers, strict=True):
        alone = template.join(*(np.array(ids, np.int32) for ids in (firsts[first], seconds[second])), max_tokens=template.added + room)
        assert (pair.ids.tolist(), pair.segments.tolist(), pair.truncated) == (alone.ids.tolist(), alone.segments.tolist(), alone.truncated)


@pytest.mark.parametrize("parallel", ["true", "false"])
def test_threads_tokenise_whatever_the_environment_says(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, parallel: str) -> None:
    """Prevents: one core that tokenises for a GPU, since a shell sets TOKENIZERS_PARALLELISM=false; texts in another order."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
    both, plain = threading.Barrier(2, timeout=10), Tokenizer._bare_ids_of

    def together(self: Tokenizer, texts: list[str]) -> Any:
        if len(texts) == 32:
            both.wait()  # two parts are in work at the same time
        return plain(self, texts)

    texts = [f"ha {'bo ' * (number % 7)} {number}" for number in range(64)]
    alone = [ids.tolist() for ids in Tokenizer(folders["roberta"]).bare_ids(texts)]
    tokenizer = Tokenizer(folders["roberta"], threads=2)
    monkeypatch.setattr(Tokenizer, "_bare_ids_of", together)
    assert [ids.tolist() for ids in tokenizer.bare_ids(texts)] == alone
    assert tokenizer.encode(texts, max_tokens=6) == Tokenizer(folders["roberta"]).encode(texts, max_tokens=6)


def test_an_error_leaves_no_thread_that_tokenises(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: `Already borrowed` in place of the error, and truncation that stays, since a thread is in the backend that is to change."""
    both, ended = threading.Barrier(2, timeout=10), threading.Event()

    def broken(self: Tokenizer, texts: list[str]) -> Any:
        both.wait()
        if texts[0] == "0":
            raise ValueError("broken")
        time.sleep(0.2)
        ended.set()
        return [[] for _ in texts]

    monkeypatch.setattr(Tokenizer, "_ids_of", broken)
    with pytest.raises(ValueError, match="broken"):
        Tokenizer(folders["roberta"], threads=2).encode([str(number) for number in range(64)], max_tokens=6)
    assert ended.is_set()


def test_a_gpu_is_fed_by_all_cpus_unless_told_otherwise() -> None:
    """Prevents: a GPU that waits for one core that tokenises, since a worker has one thread by default; a CPU worker that takes all."""
    everything = len(os.sched_getaffinity(0))
    found = [tokenizing_threads(device=device, threads=threads) for device in ("cpu", "cuda") for threads in (1, 3)]
    assert found == [1, 3, everything, 3]


def test_each_text_is_tokenised_once(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a query tokenised for each of its candidates, or a passage for each of its queries."""
    seen: list[str] = []
    plain = Tokenizer.bare_ids

    def counted(self: Tokenizer, texts: list[str]) -> Any:
        seen.extend(texts)
        return plain(self, texts)

    monkeypatch.setattr(Tokenizer, "bare_ids", counted)
    tokenizer = PairTokenizer(folders["bert"], max_tokens=32)
    seen.clear()
    for query in ("ha bo", "di fo", "ha bo"):
        tokenizer.encode([(query, text) for text in ("bace", "fo ha", "bace")])
    assert sorted(seen) == sorted({"ha bo", "di fo", "bace", "fo ha"})


def test_what_is_remembered_is_bounded(folders: dict[str, Path]) -> None:
    """Prevents: memory that grows with the collection; and an answer that hangs on what is remembered."""
    few, many = (PairTokenizer(folders["bert"], max_tokens=32, kept_tokens=kept) for kept in (5, 10_000))
    pairs = [(f"ha {'bo ' * (number % 5)}", f"di {'fo ' * (number % 7)}") for number in range(60)]
    for start in range(0, 60, 9):
        found = [tokenizer.encode(pairs[start : start + 9]) for tokenizer in (few, many)]
        assert [pair.ids.tolist() for pair in found[0]] == [pair.ids.tolist() for pair in found[1]]
        alive = {text for pair in pairs[start : start + 9] for text in pair}
        assert len(few._seen.ids) <= len(alive) + 1 < len(many._seen.ids) + 1  # and the special tokens


def test_a_tokenizer_of_another_kind_is_asked_for_every_pair(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: pairs put together wrongly where a tokenizer treats the second text in its own way."""
    plain = Tokenizer.bare_ids
    monkeypatch.setattr(Tokenizer, "bare_ids", lambda self, texts: [ids[1:] for ids in plain(self, texts)])
    tokenizer = PairTokenizer(folders["bert"], max_tokens=32)
    assert tokenizer.template is None
    (pair,) = tokenizer.encode([("ha bo", "di")])
    assert (pair.ids.tolist(), pair.segments.tolist(), pair.truncated) == Tokenizer(folders["bert"]).encode_pairs(
        [("ha bo", "di")], max_tokens=32
    )[0]


@pytest.mark.medium
@pytest.mark.parametrize("style", ["bert", "roberta", "modernbert"])
@settings(max_examples=60, deadline=None)
@given(query=ANY.filter(lambda text: MASK_MARK not in text and SEPARATOR_MARK not in text), passage=ANY, max_tokens=st.integers(16, 80))
def test_pairs_of_texts_that_were_stored_alone(folders: dict[str, Path], style: str, query: str, passage: str, max_tokens: int) -> None:
    """Prevents: a cross-encoder trained on pairs with a doubled or a missing special token, which it never reads when it scores."""
    tokenizer = Tokenizer(folders[style])
    stored = [np.array(ids, np.int32) for ids in tokenizer.encode([query, passage], max_tokens=1000)]
    pair = StoredPairs(folders[style], max_tokens=max_tokens).join(*stored)
    ((ids, segments, truncated),) = tokenizer.encode_pairs([(query, passage)], max_tokens=max_tokens)
    assert (pair.ids.tolist(), pair.segments.tolist(), pair.truncated) == (ids, segments, truncated)


def test_tokens_of_another_tokenizer_are_refused(folders: dict[str, Path]) -> None:
    """Prevents: words taken for special tokens, and cut away."""
    stored = np.array([7, 8, 9, 10], np.int32)
    with pytest.raises(UserError, match="make the training shards again"):
        StoredPairs(folders["bert"], max_tokens=20).join(stored, stored)
