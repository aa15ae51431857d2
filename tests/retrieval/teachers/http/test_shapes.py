"""What servers are asked, and how their answers are read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from retrieval.teachers.http.shapes import LARGEST_LOGIT, SHAPES, WrongAnswer, served_models, undo_sigmoid


@pytest.mark.parametrize(
    ("shape", "logits", "body"),
    [
        ("rerank", False, {"model": "m", "query": "q", "documents": ["a", "b"]}),
        ("infinity", True, {"model": "m", "query": "q", "documents": ["a", "b"], "raw_scores": True}),
        ("infinity", False, {"model": "m", "query": "q", "documents": ["a", "b"], "raw_scores": False}),
        ("tei", True, {"model": "m", "query": "q", "texts": ["a", "b"], "raw_scores": True, "truncate": True}),
        ("score", True, {"model": "m", "text_1": "q", "text_2": ["a", "b"], "use_activation": False}),
        ("score", False, {"model": "m", "text_1": "q", "text_2": ["a", "b"], "use_activation": True}),
    ],
)
def test_requests_have_the_names_of_their_servers(shape: str, logits: bool, body: dict[str, Any]) -> None:
    """Prevents: a switch turned round, or a name that a server passes over: probabilities taken for logits."""
    assert SHAPES[shape].body("q", ["a", "b"], model="m", logits=logits) == body
    assert SHAPES[shape].body("q", ["a", "b"], model="m", logits=logits, more={"x": 1}) == {**body, "x": 1}


@pytest.mark.parametrize(
    ("shape", "answer"),
    [
        ("rerank", {"results": [{"index": 1, "relevance_score": 3, "document": {"text": "b"}}, {"index": 0, "relevance_score": -0.5}]}),
        ("tei", [{"index": 1, "score": 3.0}, {"index": 0, "score": -0.5}]),
        ("score", {"data": [{"index": 1, "score": 3.0, "object": "score"}, {"index": 0, "score": -0.5}]}),
    ],
)
def test_scores_go_by_index(shape: str, answer: Any) -> None:
    """Prevents: scores in the order of an answer that is sorted by them."""
    assert SHAPES[shape].scores(answer, 2).tolist() == [-0.5, 3.0]


def entries(*pairs: tuple[Any, Any]) -> Any:
    return {"results": [{"index": index, "relevance_score": score} for index, score in pairs]}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("what", "has no list 'results'"),
        ({"error": "x"}, "has no list 'results'"),
        ({"results": None}, "has no list"),
        (entries((0, 1.0)), "has 1 scores for 2 documents"),
        (entries((0, 1.0), (1, 1.0), (2, 1.0)), "has 3 scores for 2"),
        (entries((0, 1.0), (0, 2.0)), "has index 0 twice"),
        (entries((0, 1.0), (2, 2.0)), "has index 2 for 2 documents"),
        (entries((0, 1.0), (-1, 2.0)), "has index -1 for 2 documents"),
        (entries((0, 1.0), (True, 2.0)), "an entry without a whole number 'index'"),
        (entries((0, 1.0), (1, None)), "a number 'relevance_score'"),
        (entries((0, 1.0), (1, "0.5")), "a number 'relevance_score'"),
        ({"results": [1, 2]}, "an entry without"),
        (entries((0, 1.0), (1, math.nan)), "not a finite number"),
        (entries((0, 1.0), (1, math.inf)), "not a finite number"),
        (entries((0, 1.0), (1, 10**400)), "not a finite number"),
    ],
)
def test_an_answer_that_is_not_a_score_for_each_document_is_none(answer: Any, message: str) -> None:
    """Prevents: a document with the score of another one, or with one that nobody gave."""
    with pytest.raises(WrongAnswer, match=message):
        SHAPES["rerank"].scores(answer, 2)


def test_lists_of_models_are_read_in_the_forms_that_servers_have() -> None:
    """Prevents: a server refused for a list that is none, or another model that goes unseen."""
    assert served_models({"data": [{"id": "a"}, {"id": "b"}, {"name": "c"}, 3]}) == ["a", "b"]
    assert served_models({"model_id": "a", "model_sha": "0"}) == ["a"]
    for other in ([], {}, {"data": {}}, {"models": [{"name": "a"}]}, "a"):
        assert served_models(other) == []


def test_the_sigmoid_is_undone_as_far_as_float32_resolves() -> None:
    """Prevents: logits that are off, infinite, or out of order where probabilities come near to 0 and 1."""
    logits = np.linspace(-17, 17, 2001)
    exact = undo_sigmoid(1 / (1 + np.exp(-logits)))
    np.testing.assert_allclose(exact, logits, atol=1e-7)
    rounded = undo_sigmoid((1 / (1 + np.exp(-logits))).astype(np.float32).astype(np.float64))
    error = np.abs(rounded - logits)
    assert error[logits <= 10].max() < 1e-3 and error[logits <= 15].max() < 0.11
    assert (np.diff(undo_sigmoid(np.sort(rounded * 0 + np.linspace(0, 1, 2001)))) >= 0).all()
    np.testing.assert_allclose(undo_sigmoid(np.array([0.0, 1.0, 1e-300])), [-LARGEST_LOGIT, LARGEST_LOGIT, -LARGEST_LOGIT])
    assert 17.3 < LARGEST_LOGIT < 17.4
