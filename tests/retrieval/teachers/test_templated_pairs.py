"""Pairs with a template around them: to the id what sentence-transformers and the tokenizer make of the whole text."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rerankers import (
    GEMMA_ROLES,
    LLAMA_ROLES,
    LONG,
    MORE,
    PAIRS,
    ROLES,
    save_reranker,
    save_sentence_transformers,
    trained_tokenizer,
)

from data.config.settings import Teacher
from data.errors import UserError
from data.tables.schemas import SEPARATOR_MARK
from retrieval.models.tokenizer import Tokenizer
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.cross_encoder import CrossEncoderSpec, load_cross_encoder
from retrieval.teachers.pair_template import PairText
from retrieval.teachers.pair_tokens import PairTokenizer, TemplatedPairs
from retrieval.teachers.scoring import score_pairs

TEMPLATES = {
    "qwen": ROLES,
    "gemma": GEMMA_ROLES,
    "llama": LLAMA_ROLES,
}
ARCHITECTURE = {"qwen": "Qwen3", "gemma": "Gemma", "llama": "Llama"}
PROMPT = "Given a question, find passages that answer it"
STYLES = ("qwen", "gemma", "llama", "unigram")
QWEN = PairText("<|im_start|>user\n<Query>: ", "\n<Document>: ", "<|im_end|>\n<|im_start|>assistant\n")
PLAIN = PairText("query: ", "\ndocument: ", "\nRelevance:")
BARE = PairText("", "", "")


@pytest.fixture(scope="module")
def rerankers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("rerankers"), dict[str, Path]()

    def get(style: str) -> Path:
        if style not in made:
            folder = save_reranker(root / style, ARCHITECTURE[style], style)
            form = "structured" if style == "llama" else "flat"
            made[style] = save_sentence_transformers(folder, TEMPLATES[style], form=form, prompt=PROMPT)
        return made[style]

    return get


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {style: trained_tokenizer(root / style, style) for style in STYLES}


def resolved(folder: Path, **given: Any) -> CrossEncoderSpec:
    spec = resolve_teacher(Teacher(model=str(folder), precision="fp32", **given), device="cpu")
    assert isinstance(spec, CrossEncoderSpec)
    return spec


def opened(spec: CrossEncoderSpec) -> PairTokenizer:
    return PairTokenizer(spec.folder, max_tokens=spec.max_tokens, text=spec.template)


def reference(folder: Path, max_tokens: int) -> Any:
    import torch
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(folder), device="cpu", max_length=max_tokens, model_kwargs={"dtype": torch.float32})


def ids_of(encoder: Any, pairs: list[tuple[str, str]]) -> list[list[int]]:
    read = encoder.preprocess(pairs, prompt=encoder._resolve_prompt(None, None))
    return [ids[mask.bool()].tolist() for ids, mask in zip(read["input_ids"], read["attention_mask"], strict=True)]


@pytest.mark.medium
@pytest.mark.parametrize("style", ARCHITECTURE)
def test_ids_and_logits_are_those_of_sentence_transformers(rerankers: Callable[[str], Path], style: str) -> None:
    """Prevents: a reranker that reads another text than it was trained on, or loses the end of its template on a long passage."""
    import torch

    folder, pairs = rerankers(style), [*PAIRS, *MORE]
    assert len(pairs) >= 60
    for max_tokens in (512, 200 if style == "qwen" else 160):
        spec, encoder = resolved(folder, max_tokens=max_tokens), reference(folder, max_tokens)
        tokenizer = opened(spec)
        assert tokenizer.templated is not None and tokenizer.templated.seam is not None
        tried = [*pairs, *LONG] if max_tokens < 512 else pairs
        short = [pair for pair in tried if len(pair[0]) < 100]  # beside a longer query the passage keeps a fourth of the room here
        encoded = tokenizer.encode(short)
        assert [pair.ids.tolist() for pair in encoded] == ids_of(encoder, short)
        assert all(pair.truncated == (len(pair.ids) == max_tokens) for pair in encoded[-3:])
        logits = score_pairs(load_cross_encoder(spec, device="cpu", threads=1), encoded, pad_id=tokenizer.pad_id)
        theirs = encoder.predict(short, activation_fn=torch.nn.Identity(), batch_size=8, show_progress_bar=False)
        assert np.abs(logits - theirs).max() < 1e-4 and theirs.std() > 0.1


@pytest.mark.medium
def test_a_prompt_stands_before_the_query_of_a_plain_pair(rerankers: Callable[[str], Path], tmp_path: Path, models: Any) -> None:
    """Prevents: a default prompt left out (three standard deviations off), put before the passage, or cut apart from its query."""
    from support.model_files import write_json

    folder = shutil.copytree(models.teacher, tmp_path / "model")
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"web": "ba be bi "}, "default_prompt_name": "web"})
    pairs = [("ba bo", "ce ci"), ("", "da"), ("ha bo di", "fo ca " * 60), ("ba " * 40, "be")]
    for own, prompt in (({}, "ba be bi "), ({"instruction": "fo "}, "fo "), ({"instruction": ""}, None)):
        spec, encoder = resolved(folder, max_tokens=48, **own), reference(folder, 48)
        read = encoder.preprocess(pairs, prompt=prompt)
        theirs = [ids[mask.bool()].tolist() for ids, mask in zip(read["input_ids"], read["attention_mask"], strict=True)]
        segments = [ids[mask.bool()].tolist() for ids, mask in zip(read["token_type_ids"], read["attention_mask"], strict=True)]
        ours = opened(spec).encode(pairs)
        assert [pair.ids.tolist() for pair in ours] == theirs and [pair.segments.tolist() for pair in ours] == segments


@pytest.mark.medium
def test_rankllama_reads_two_texts(tokenizers: dict[str, Path]) -> None:
    """Prevents: the second beginning-of-sequence token of its card's pair encoding left out."""
    from transformers import AutoTokenizer

    text = PairText("query: ", "document: ", "", pair=True)
    ours = PairTokenizer(tokenizers["llama"], max_tokens=300, text=text).encode(PAIRS)
    theirs = AutoTokenizer.from_pretrained(tokenizers["llama"])
    for pair, (query, document) in zip(ours, PAIRS, strict=True):
        assert pair.ids.tolist() == theirs(f"query: {query}", f"document: {document}")["input_ids"]


PIECES = st.sampled_from(
    [
        "Is",
        " it",
        "?",
        "\n",
        " ",
        "  ",
        "the",
        "42",
        ".",
        ":",
        "<",
        ">",
        "query",
        "<|im_end|>",
        "</s>",
        "<bos>",
        "über",
        "漢",
        "e\u0301",
        "😀",
        "\t",
    ]
)
ANY = st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=20)).filter(lambda text: "⟦" not in text)
TEXTS = {"qwen": QWEN, "gemma": PLAIN, "llama": PLAIN, "unigram": PLAIN}


@pytest.mark.medium
@pytest.mark.parametrize("document_first", [False, True])
@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(st.tuples(ANY, ANY), min_size=1, max_size=5))
def test_halves_are_the_whole_text(tokenizers: dict[str, Path], style: str, document_first: bool, pairs: list[tuple[str, str]]) -> None:
    """Prevents: a text that joins with its template's words in a way that was not tried at the start."""
    own = TEXTS[style]
    text = PairText(own.before, own.between, own.after, document_first)
    tokenizer = _cached(tokenizers[style], text)
    assert tokenizer.templated is not None and tokenizer.templated.seam is not None
    whole = Tokenizer(tokenizers[style]).bare_ids([text.of(*pair) for pair in pairs])
    assert [pair.ids.tolist() for pair in tokenizer.encode(pairs)] == [ids.tolist() for ids in whole]


_OPENED: dict[tuple[Path, PairText], PairTokenizer] = {}


def _cached(folder: Path, text: PairText) -> PairTokenizer:
    if (folder, text) not in _OPENED:
        _OPENED[folder, text] = PairTokenizer(folder, max_tokens=2000, text=text)
    return _OPENED[folder, text]


@pytest.mark.parametrize("style", STYLES)
def test_texts_with_nothing_between_them_are_tokenised_whole(tokenizers: dict[str, Path], style: str) -> None:
    """Prevents: two texts that join with one another read as if they were apart."""
    tokenizer = PairTokenizer(tokenizers[style], max_tokens=60, text=BARE)
    assert tokenizer.templated is not None and tokenizer.templated.seam is None
    whole = Tokenizer(tokenizers[style]).bare_ids([BARE.of(*pair) for pair in PAIRS])
    for pair, ids in zip(tokenizer.encode(PAIRS), whole, strict=True):
        assert len(ids) > 60 or pair.ids.tolist() == ids.tolist()
    (cut,) = tokenizer.encode([("the cat", " sat on the mat" * 40)])
    assert cut.truncated and len(cut.ids) == 60


@pytest.mark.parametrize("document_first", [False, True])
@pytest.mark.parametrize("seam", [True, False])
def test_only_the_document_is_cut(tokenizers: dict[str, Path], document_first: bool, seam: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a template cut at its end, whose last token gives the logit; and a passage of no token beside a long query."""
    text = PairText(QWEN.before, QWEN.between, QWEN.after, document_first)
    backend = Tokenizer(tokenizers["qwen"]).backend
    if not seam:
        monkeypatch.setattr(TemplatedPairs, "_find_seam", lambda self: None)
    tokenizer = PairTokenizer(tokenizers["qwen"], max_tokens=80, text=text)
    assert tokenizer.templated is not None and (tokenizer.templated.seam is not None) == seam
    for query, document in (("Is it?", "the mat " * 90), ("the cat " * 60, "the mat " * 60), ("the cat " * 90, "mat")):
        (pair,) = tokenizer.encode([(query, document)])
        read = backend.decode(pair.ids.tolist(), skip_special_tokens=False)
        assert pair.truncated and len(pair.ids) == 80
        assert read.startswith(text.before) and read.endswith(text.after) and read.count("\n<Document>:") == 1
        room, mats = tokenizer.templated.room, read.count("mat")
        if query == "Is it?":
            assert query in read and mats > room // 3
        else:
            assert 1 <= mats <= room // 4 and read.count("cat") > 10


def test_marks_are_special_tokens_of_the_document(models: Any) -> None:
    """Prevents: the separator of a mixed passage read as letters, where a template stands around it."""
    tokenizer = PairTokenizer(models.teacher, max_tokens=64, text=PairText("ba ", " be ", " bi"))
    (pair,) = tokenizer.encode([("ca", f"ce {SEPARATOR_MARK} ci")])
    whole = Tokenizer(models.teacher).backend.encode("ba ca be ce [SEP] ci bi", add_special_tokens=False)
    assert pair.ids.tolist() == whole.ids and not pair.segments.any()


def test_a_template_that_leaves_no_room_is_refused(tokenizers: dict[str, Path]) -> None:
    """Prevents: pairs of a template and next to no text, whose logits are all the same."""
    with pytest.raises(UserError, match=r"teacher\.max_tokens=24: the template takes \d+ of them.*set teacher\.max_tokens=\d+"):
        PairTokenizer(tokenizers["qwen"], max_tokens=24, text=QWEN)


def test_each_text_is_tokenised_once_with_a_template(tokenizers: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a template that has every pair tokenised again, which is most of the work of a fast GPU's host."""
    seen: list[str] = []
    plain = Tokenizer.bare_ids

    def counted(self: Tokenizer, texts: list[str]) -> Any:
        seen.extend(texts)
        return plain(self, texts)

    tokenizer = PairTokenizer(tokenizers["qwen"], max_tokens=100, text=QWEN)
    monkeypatch.setattr(Tokenizer, "bare_ids", counted)
    for query in ("Is it", "what is", "Is it"):
        tokenizer.encode([(query, text) for text in ("the mat", "the cat", "the mat")])
    assert len(seen) == len(set(seen)) == 4
