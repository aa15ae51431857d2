"""A teacher's scores as the logits that are stored."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.logits.declared import ScoreKind
from retrieval.teachers.http.shapes import undo_sigmoid

_SLACK = 1e-3  # of a cosine, which is computed in fp16 by some
_FORMS = {"logit": "a finite number", "probability": "a number from 0 to 1", "cosine": "a number from -1 to 1"}


def as_logits(scores: NDArray[np.float64], kind: ScoreKind) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(logits, which scores are none of their kind). NaN is a missing score, and stays one.

    The sigmoid of a probability is undone, a cosine stays as it is.
    """
    low, high = {"logit": (-np.inf, np.inf), "probability": (0.0, 1.0), "cosine": (-1 - _SLACK, 1 + _SLACK)}[kind]
    with np.errstate(over="ignore"):
        logits = (undo_sigmoid(scores) if kind == "probability" else scores).astype(np.float32)
        broken = (scores < low) | (scores > high) | np.isinf(logits) | np.isinf(scores)
    logits[broken] = np.nan
    return logits, broken


def expected(kind: ScoreKind) -> str:
    """What a score of this kind is, in words."""
    return _FORMS[kind]
