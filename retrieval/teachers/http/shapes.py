"""What a server of rerankers is asked, and how its answer is read: documents of one query in, a score for each out.

    name       servers                 endpoint   asked for logits by
    rerank     Cohere, Jina, vLLM      /rerank    -
    infinity   Infinity                /rerank    raw_scores=true
    tei        TEI                     /rerank    raw_scores=true
    score      vLLM                    /score     use_activation=false

A server that gives no logit gives the sigmoid of one, which is undone here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEAREST = 2.0**-25  # half of what lies between 1 and the float32 below it: no probability is taken for nearer to 0 or 1
LARGEST_LOGIT = math.log((1 - NEAREST) / NEAREST)  # 17.3


class WrongAnswer(Exception):
    """An answer that is not one score for each document; the message says what it is instead."""


@dataclass(frozen=True)
class Shape:
    """The names that a kind of server has for things."""

    endpoint: str  # last part of its address
    query: str = "query"
    documents: str = "documents"
    results: str | None = "results"  # where the answer has its list; None: it is the list
    score: str = "relevance_score"
    raw: dict[str, bool] = field(default_factory=dict)  # what asks for logits; with the values turned round, for probabilities
    always: dict[str, Any] = field(default_factory=dict)
    instruction: str | None = None  # names of what only some servers take
    longest: str | None = None

    def body(
        self, query: str, documents: Sequence[str], *, model: str, logits: bool, more: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The request. `logits` is of no account where the server gives what it likes; `more` goes with it as it is."""
        asked = {name: value == logits for name, value in self.raw.items()}
        return {"model": model, self.query: query, self.documents: list(documents), **asked, **self.always, **(more or {})}

    def scores(self, answer: Any, count: int) -> NDArray[np.float64]:
        """[count] scores in the order of the documents that were sent, from the answer's JSON. Raises WrongAnswer."""
        listed = answer if self.results is None else answer.get(self.results) if isinstance(answer, dict) else None
        if not isinstance(listed, list):
            raise WrongAnswer(f"has no list{f' {self.results!r}' if self.results else ''}")
        if len(listed) != count:
            raise WrongAnswer(f"has {len(listed)} scores for {count} documents")
        scores = np.full(count, np.nan)
        for entry in listed:
            index, score = (entry.get("index"), entry.get(self.score)) if isinstance(entry, dict) else (None, None)
            if not isinstance(score, int | float) or isinstance(score, bool) or type(index) is not int:
                raise WrongAnswer(f"has an entry without a whole number 'index' and a number {self.score!r}")
            if not 0 <= index < count or not np.isnan(scores[index]):
                raise WrongAnswer(f"has index {index} {'twice' if 0 <= index < count else f'for {count} documents'}")
            if not abs(score) < sys.float_info.max:  # NaN, infinity, or a whole number that no float holds
                raise WrongAnswer("has a score that is not a finite number")
            scores[index] = score
        return scores


SHAPES = {
    "rerank": Shape("rerank"),
    "infinity": Shape("rerank", raw={"raw_scores": True}),
    # TEI refuses a pair that is too long unless it may cut it.
    "tei": Shape("rerank", documents="texts", results=None, score="score", raw={"raw_scores": True}, always={"truncate": True}),
    "score": Shape(
        "score", query="text_1", documents="text_2", results="data", score="score", raw={"use_activation": False},
        instruction="instruction", longest="truncate_prompt_tokens",
    ),
}  # fmt: skip


def served_models(answer: Any) -> list[str]:
    """The names in a list of models as OpenAI, vLLM and Infinity give it, or in what TEI says of itself. Empty where it is neither."""
    if not isinstance(answer, dict):
        return []
    if isinstance(answer.get("model_id"), str):
        return [answer["model_id"]]
    listed = answer.get("data")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return [entry["id"] for entry in entries if isinstance(entry.get("id"), str)]


def undo_sigmoid(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(p / (1 - p)), at most 17.3 in magnitude: a float32 tells nothing beyond."""
    inside = probabilities.clip(NEAREST, 1 - NEAREST)
    return np.log(inside) - np.log1p(-inside)
