"""Prompts that are read and left out of the pooling (sentence-transformers' `include_prompt: false`).

Which tokens are a prompt's is a number for each role. A batch mixes roles, and a sequence goes far from where its role is known to where it
is pooled. So it says itself what is not pooled: the token t of a prompt is marked, as -1 - t. Only models of this kind see marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.models.student import StudentSpec
from retrieval.models.tokenizer import Tokenizer


class PromptLengths(NamedTuple):
    """Leading tokens of queries and of passages that are not pooled."""

    query: int = 0
    passage: int = 0


NO_PROMPTS = PromptLengths()


def prompt_lengths(student: StudentSpec, tokenizer: Tokenizer) -> PromptLengths:
    """How much of a text is its prompt: none where the student pools it."""
    if student.pools_prompt:
        return NO_PROMPTS
    return PromptLengths(tokenizer.prompt_length(student.query_prefix), tokenizer.prompt_length(student.passage_prefix))


def marked(ids: NDArray[np.int32], count: int) -> NDArray[np.int32]:
    """The token ids of a text with its first `count` marked."""
    return np.concatenate([-1 - ids[:count], ids[count:]]) if count else ids


def marked_lists(texts: Sequence[list[int]], count: int) -> list[list[int]]:
    """The same of lists of ids."""
    return [[*(-1 - token for token in ids[:count]), *ids[count:]] for ids in texts] if count else list(texts)


def unmarked(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """[n, L] token ids, some of them marked, and mask to the ids as a model reads them, and the mask of what is pooled."""
    return torch.where(ids < 0, -1 - ids, ids), mask * (ids >= 0)
