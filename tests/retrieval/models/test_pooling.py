"""Every way to make one vector of a text's tokens, against sentence-transformers' Pooling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.modules.pooling import Pooling
from torch import Tensor

from data.config.settings import POOLINGS
from retrieval.model_files.folder_file import FolderFile
from retrieval.model_files.module_files import PoolingSpec, pooling_file, read_pooling
from retrieval.models.pooling import pool

LENGTHS = [9, 1, 4, 6]
SEVERAL = ["cls+mean", "lasttoken+max", "mean+weightedmean+mean_sqrt_len_tokens"]


def batch(*, left_out: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Token vectors, mask, and mask of what is pooled."""
    hidden = torch.randn(len(LENGTHS), 9, 5, generator=torch.Generator().manual_seed(0)) - 1  # negative maxima, too
    mask = (torch.arange(9) < torch.tensor(LENGTHS)[:, None]).long()
    pooled = mask * (torch.arange(9) >= left_out)
    return hidden, mask, pooled


def theirs(modes: str, hidden: Tensor, mask: Tensor, **features: Any) -> Tensor:
    module = Pooling(5, modes.split("+"), include_prompt="prompt_length" not in features)
    result: Tensor = module({"token_embeddings": hidden, "attention_mask": mask, **features})["sentence_embedding"]
    return result


@pytest.mark.parametrize("modes", [*POOLINGS, *SEVERAL])
def test_vectors_and_gradients_are_sentence_transformers(modes: str) -> None:
    """Prevents: padding that is pooled, the last place of a batch taken for the last token of a text, weights counted from 0."""
    hidden, mask, _ = batch()
    results = []
    for compute in (lambda states: pool(states, mask, modes), lambda states: theirs(modes, states, mask)):
        states = hidden.clone().requires_grad_()
        vectors = compute(states)
        (vectors * torch.linspace(-1, 2, vectors.numel()).view(vectors.shape)).sum().backward()
        results.append((vectors.detach(), states.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("modes", [*POOLINGS, *SEVERAL])
def test_a_prompt_is_left_out_as_there(modes: str) -> None:
    """Prevents: another first token, other places of the weighted mean, a text that is shorter than its prompt."""
    if "max" in modes:  # of no token at all it is no number
        hidden, mask, pooled = (part[[0, 2, 3]] for part in batch(left_out=3))
    else:
        hidden, mask, pooled = batch(left_out=3)
    torch.testing.assert_close(pool(hidden, pooled, modes), theirs(modes, hidden, mask, prompt_length=3), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("modes", POOLINGS)
def test_padding_is_no_matter(modes: str, padding: int) -> None:
    """Prevents: a vector that depends on the longest text beside it."""
    hidden, mask, _ = batch()
    wider = (torch.cat([part, torch.full_like(part[:, :padding], fill)], 1) for part, fill in ((hidden, 7.0), (mask, 0)))
    for row, length in enumerate(LENGTHS):
        alone = pool(hidden[row : row + 1, :length], mask[row : row + 1, :length], modes)
        torch.testing.assert_close(alone[0], pool(hidden, mask, modes)[row])
    torch.testing.assert_close(pool(*wider, modes), pool(hidden, mask, modes))


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("modes", [*POOLINGS, *SEVERAL, "mean+cls", "cls+mean+max"])
def test_a_saved_pooling_is_read_as_it_was(tmp_path: Path, modes: str, include_prompt: bool) -> None:
    """Prevents: a student served by another pooling than it was trained with, here or in sentence-transformers."""
    spec = PoolingSpec(modes, include_prompt)
    (tmp_path / "config.json").write_text(json.dumps(pooling_file(spec, 5)))
    assert read_pooling(FolderFile.read(tmp_path / "config.json", option="student.model")) == spec
    module = Pooling.load(str(tmp_path))
    assert [module.pooling_mode] if isinstance(module.pooling_mode, str) else list(module.pooling_mode) == modes.split("+")
    assert (module.include_prompt, module.embedding_dimension) == (include_prompt, 5)


def test_the_usual_poolings_are_written_as_ever() -> None:
    """Prevents: folders that older versions of sentence-transformers do not open any more."""
    flags = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}
    assert pooling_file(PoolingSpec("mean", True), 7) == {
        "word_embedding_dimension": 7, **flags, "pooling_mode_mean_sqrt_len_tokens": False,
    }  # fmt: skip
