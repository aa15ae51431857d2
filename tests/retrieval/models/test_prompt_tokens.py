"""Prompts that are not pooled: their tokens marked, counted and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import STYLES, change_json, save
from support.student_folders import TEXTS, lay_out, padded, peer

from data.config.settings import Student
from data.errors import UserError
from retrieval.models.prompt_tokens import marked, marked_lists, unmarked
from retrieval.models.student import resolve_student
from retrieval.models.tokenizer import Tokenizer, tokenizer_of

ARCHITECTURES = {"bert": "Bert", "roberta": "Roberta", "llama": "Llama", "qwen": "Qwen3", "t5": "Gemma"}


@given(texts=st.lists(st.lists(st.integers(0, 2**31 - 2), min_size=1, max_size=9), min_size=1, max_size=5), count=st.integers(0, 10))
def test_marks_come_off_again(texts: list[list[int]], count: int) -> None:
    """Prevents: id 0 that cannot be marked, a text shorter than its prompt, padding that is pooled."""
    ids, mask = padded(texts)
    found, pooled = unmarked(*padded(marked_lists(texts, count)))
    assert torch.equal(found, ids)
    assert torch.equal(pooled, mask * (torch.arange(ids.shape[1]) >= count))
    for text in texts:
        assert marked(np.array(text, np.int32), count).tolist() == marked_lists([text], count)[0]


@pytest.mark.medium
@pytest.mark.parametrize("style", STYLES)
def test_a_prompt_is_as_long_as_sentence_transformers_counts(tmp_path: Path, style: str) -> None:
    """Prevents: a first token of the text left out with its prompt, or the end of the text taken for the prompt's."""
    folder = lay_out(tmp_path / "m", save(tmp_path / "weights", ARCHITECTURES[style]), include_prompt=False)
    if style == "llama":  # theirs pads by the tokenizer
        change_json(folder / "tokenizer_config.json", pad_token="</s>")
    ours, transformer = Tokenizer(folder), peer(folder)[0]
    for prompt in ("ba", "ba be ", "zu zo: ", *TEXTS[:2], STYLES[style]["names"].get("eos", "ba")):
        assert ours.prompt_length(prompt) == transformer._get_prompt_length(prompt)
    assert ours.prompt_length("") == 0


def test_a_prompt_must_leave_room(cased: Path, tmp_path: Path) -> None:
    """Prevents: queries of which the prompt alone is read, all with the same vector."""
    folder = lay_out(tmp_path / "m", cased, prompts={"prompts": {"query": "ba be bi bo bu "}})
    with pytest.raises(UserError, match=r"student.query_tokens=7: the prompt .*'ba be bi bo bu '.* nothing of a text"):
        tokenizer_of(resolve_student(Student(model=str(folder), query_tokens=7)))
    tokenizer_of(resolve_student(Student(model=str(folder), query_tokens=8)))
