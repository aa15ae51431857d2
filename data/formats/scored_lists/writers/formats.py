"""The layouts that `prep export` writes for others, by the name that `format=` has."""

from __future__ import annotations

from dataclasses import dataclass

from data.formats.scored_lists.writers import by_query, json_lines, pylate, sentence_transformers
from data.formats.scored_lists.writers.lists import Writer


@dataclass(frozen=True)
class Format:
    """One layout: who writes it, and what it can hold."""

    write: Writer
    needs_scores: bool = False  # it is nothing without them
    holds_texts: bool = True  # beside each candidate: then it can hold dark examples, which are no passages of a collection
    rectangular: bool = False  # lists have one number of negatives
    no_place: tuple[str, ...] = ()  # for what it has none at all


FORMATS = {
    "sentence-transformers": Format(sentence_transformers.write, rectangular=True),
    "flagembedding": Format(json_lines.write_flagembedding),
    "tevatron": Format(json_lines.write_tevatron),
    "pylate": Format(pylate.write, needs_scores=True, holds_texts=False, rectangular=True),
    "trec": Format(
        by_query.write_trec, needs_scores=True, holds_texts=False, no_place=("texts", "the order of lists", "kinds", "draws", "C(q)")
    ),
    "tsv": Format(by_query.write_tsv, needs_scores=True, holds_texts=False, no_place=("texts", "kinds", "draws", "C(q)")),
    "beir": Format(by_query.write_beir, holds_texts=False, no_place=("scores", "the order of lists", "kinds", "draws", "C(q)")),
}
