"""Teachers as somebody outside the project would write them; `teacher.backend=support.plugin_teachers:Overlap`."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np


class Overlap:
    """Words that query and passage have in common, and a little for the passage's length."""

    version = 1
    seen: list[tuple[str, str]] = []  # noqa: RUF012  by all of this process, for tests
    given: list[Any] = []  # noqa: RUF012

    def __init__(self, settings: Any) -> None:
        Overlap.given.append(settings)

    def score(self, pairs: Any) -> Any:
        Overlap.seen += pairs
        return np.array([len(set(query.split()) & set(text.split())) + len(text) / 1000 for query, text in pairs], np.float32)


class Prepares(Overlap):
    """The same, in two steps, with words for tokens."""

    def prepare(self, pairs: Any) -> Any:
        from retrieval.teachers.base import PreparedPairs

        counts = np.array([len(text.split()) for _, text in pairs], np.int32)
        return PreparedPairs([("prepared", pair) for pair in pairs], counts, counts > 20)

    def score_prepared(self, prepared: Any, *, on_batch: Any) -> Any:
        on_batch(len(prepared.pairs), int(prepared.token_counts.sum()), 0)
        return self.score([pair for _, pair in prepared.pairs])


def gives_two(settings: Any) -> Any:
    teacher = Overlap(settings)
    teacher.score = lambda pairs: np.zeros((len(pairs), 2))  # type: ignore[method-assign]
    return teacher


def gives_nan(settings: Any) -> Any:
    teacher = Overlap(settings)
    teacher.score = lambda pairs: [float("nan")] * len(pairs)  # type: ignore[method-assign]
    return teacher


def gives_none(settings: Any) -> Any:
    return None


class Slow(Overlap):
    """The same, as slow as a real one, with a line for every call in the file that ADAM_TEST_SCORED names."""

    def score(self, pairs: Any) -> Any:
        time.sleep(float(os.environ.get("ADAM_TEST_SECONDS", "0")) * len(pairs))
        if path := os.environ.get("ADAM_TEST_SCORED"):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{len(pairs)}\n".encode())
            os.close(descriptor)
        return super().score(pairs)
