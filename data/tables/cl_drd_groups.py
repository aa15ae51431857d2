"""CL-DRD's three groups of a query's list: their sizes in each iteration, and the labels that follow from a candidate's group and place.

Zeng et al., "Curriculum Learning for Dense Retrieval Distillation" (SIGIR 2022, https://arxiv.org/abs/2204.13679).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.tables.schemas import CandidateKind

PAPER_ITERATIONS = ("5/12/13", "10/10/10", "30/0/0")
NEAR_LABEL, FAR_LABEL = -0.25, -0.5

_SIZES = re.compile(r"\s*(\d+)\s*/\s*(\d+)\s*/\s*(\d+)\s*")


class GroupSizes(NamedTuple):
    """How many passages each group of a list has."""

    top: int  # K
    near: int  # N_h
    far: int  # N_s


def parse_sizes(text: str) -> GroupSizes:
    """`K/N_h/N_s`. Raises ValueError on anything else, and where K is 0: a list begins with its positives."""
    found = _SIZES.fullmatch(text)
    if found is None or int(found[1]) < 1:
        raise ValueError(f"an iteration is K/N_h/N_s, three whole numbers with K at least 1, such as 5/12/13; got {text!r}")
    return GroupSizes(*map(int, found.groups()))


def labels_of(kinds: Sequence[int]) -> NDArray[np.float64]:
    """[K] the label of each candidate of a list of groups: 1/r at place r of the first (from 1), then -0.25, then -0.5."""
    top = sum(kind == CandidateKind.TOP for kind in kinds)
    rest = [NEAR_LABEL if kind == CandidateKind.NEAR else FAR_LABEL for kind in kinds[top:]]
    return np.concatenate([1 / np.arange(1, top + 1), rest])
