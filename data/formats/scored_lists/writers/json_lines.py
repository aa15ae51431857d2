"""FlagEmbedding (1.4) and Tevatron: a JSON object a list, positives and negatives apart.

FlagEmbedding reads query, pos, neg, and with `--knowledge_distillation True` pos_scores and neg_scores (it would read prompt, type and
batch_size, too, which are not written): `FlagEmbedding/abc/finetune/embedder/AbsDataset.py`. Tevatron reads query, positive_passages and
negative_passages, of each passage its text (a title would be put in front: our texts have it) and, in `DistilTrainDataset`, its score:
`tevatron/retriever/dataset.py`. Both pass over other keys, so ids, kinds, the draw and C(q) stand in those. A list without a negative would
end their loaders.

Scores have the nine digits that tell any two fp32 numbers apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from data.errors import UserError
from data.formats.scored_lists.writers.lists import Lists, ListSource, WriteOptions, Written
from data.formats.scored_lists.writers.rectangles import NO_POSITIVE

NO_NEGATIVE = "lists without a negative"


class Candidate(NamedTuple):
    """A passage of a list."""

    id: str
    text: str
    kind: int
    score: float | None


class Record(NamedTuple):
    """One list."""

    facts: dict[str, Any]  # query_id, draw, confidence
    query: str
    positives: list[Candidate]
    negatives: list[Candidate]


def write_flagembedding(folder: Path, source: ListSource, options: WriteOptions) -> Written:
    """Write train.jsonl as FlagEmbedding's data sets read it."""
    return _write(folder, source, options, _flagembedding)


def write_tevatron(folder: Path, source: ListSource, options: WriteOptions) -> Written:
    """Write train.jsonl as Tevatron's data sets read it."""
    return _write(folder, source, options, _tevatron)


def short(value: float) -> float:
    """An fp32 number with the fewest digits that its nine have."""
    return float(f"{value:.9g}")


def _flagembedding(record: Record) -> dict[str, Any]:
    of_kind = {"pos": record.positives, "neg": record.negatives}
    row: dict[str, Any] = {"query": record.query, **{name: [one.text for one in listed] for name, listed in of_kind.items()}}
    for name, listed in of_kind.items():
        if listed[0].score is not None:
            row[f"{name}_scores"] = [one.score for one in listed]
        row |= {f"{name}_id": [one.id for one in listed], f"{name}_kind": [one.kind for one in listed]}
    return {**row, **record.facts}


def _tevatron(record: Record) -> dict[str, Any]:
    def passage(one: Candidate) -> dict[str, Any]:
        score = {} if one.score is None else {"score": one.score}
        return {"docid": one.id, "text": one.text, **score, "kind": one.kind}

    listed = {"positive_passages": record.positives, "negative_passages": record.negatives}
    return {**record.facts, "query": record.query, **{name: [passage(one) for one in found] for name, found in listed.items()}}


def _write(folder: Path, source: ListSource, options: WriteOptions, shape: Callable[[Record], dict[str, Any]]) -> Written:
    written = Written()
    with open(folder / "train.jsonl", "w", encoding="utf-8", newline="\n") as file:
        for piece in source.read():
            positives, others = piece.count(piece.positive), piece.count(~piece.positive)
            written.left_out[NO_POSITIVE] += int((positives == 0).sum())
            written.left_out[NO_NEGATIVE] += int(((positives > 0) & (others == 0)).sum())
            lists = piece.keep_lists((positives > 0) & (others > 0))
            written.counts.update({"lists": len(lists), "candidates": len(lists.places)})
            file.writelines(json.dumps(shape(one), ensure_ascii=False) + "\n" for one in _records(lists, scored=options.scored))
    if not written.counts["lists"]:
        raise UserError("no list has a labelled positive and a negative: there is nothing to write in this format")
    return written


def _records(lists: Lists, *, scored: bool) -> list[Record]:
    scores: list[float | None] = [short(value) for value in lists.logits.tolist()] if scored else [None] * len(lists.places)
    taken = [column.take(pa.array(lists.places)).to_pylist() for column in (lists.ids, lists.texts)]
    candidates = list(map(Candidate, *taken, lists.kinds.tolist(), scores))
    positive, bounds = lists.positive.tolist(), lists.bounds.tolist()
    records = []
    of_lists = zip(
        lists.query_ids.to_pylist(), lists.queries.to_pylist(), lists.draws.tolist(), lists.confidences.tolist(), bounds, bounds[1:],
        strict=False,
    )  # fmt: skip
    for query_id, query, draw, confidence, start, stop in of_lists:
        facts = {"query_id": query_id, "draw": draw}
        facts |= {} if math.isnan(confidence) else {"confidence": short(confidence)}
        kept: dict[bool, list[Candidate]] = {True: [], False: []}
        for place in range(start, stop):
            kept[positive[place]].append(candidates[place])
        records.append(Record(facts, query, kept[True], kept[False]))
    return records
