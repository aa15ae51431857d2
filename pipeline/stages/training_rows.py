"""The training rows of a shard of queries, in arrays: what is held for all of them, and the table of some of them.

Texts are read twice, a row group at a time: first to find which are the same, then to tokenise each distinct one once. Held for the whole
shard are the tokens of distinct texts, and for each candidate its kind, id, logit, label and the number of its text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.digests import pair_key
from data.logits.segment import as_keys
from data.tables import schemas
from data.tables.cl_drd_groups import labels_of
from data.tables.ragged import Ragged, RaggedBuilder, bounds_of, spans
from data.tables.schemas import CandidateKind
from pipeline.negatives.pool_pairs import begins_of
from pipeline.scoring.dedup import first_occurrence
from pipeline.stage import Stored

Encode = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class Encoders:
    """Texts to tokens, each kind with its own prefix and length."""

    query: Encode
    passage: Encode
    mixed: Encode


@dataclass(frozen=True)
class TrainingRows:
    """All that the rows of a shard hold, by list: n lists with C candidates in all, in the order of the table of lists."""

    query_ids: pa.ChunkedArray  # [n]
    draws: NDArray[np.int8]  # [n]
    queries: Ragged  # tokens of each list's query
    bounds: NDArray[np.int64]  # [n + 1]: where the candidates of a list begin and end
    texts: NDArray[np.int32]  # [C] numbers of the distinct texts
    passages: Ragged  # tokens of each distinct text
    kinds: NDArray[np.int8]  # [C]
    ids: pa.ChunkedArray  # [C]
    logits: NDArray[np.float32]  # [C]
    confidences: NDArray[np.float32]  # [n]
    never_ids: pa.ListArray  # [n]
    labels: NDArray[np.float32] | None  # [C], where the lists carry some
    grades: NDArray[np.int32] | None = None  # [n] labels of the p+, where they are asked for

    @property
    def candidate_tokens(self) -> int:
        """Tokens of all candidates."""
        return int(self.passages.lengths[self.texts].sum())

    def table(self, rows: NDArray[np.int64]) -> pa.Table:
        """Some lists in the order asked for, of schema `TRAINING`, `LABELLED_TRAINING` or `GRADED_TRAINING`."""
        lengths = np.diff(self.bounds)[rows]
        candidates = spans(self.bounds[rows], lengths)
        offsets = pa.array(bounds_of(lengths).astype(np.int32))
        chosen = pa.array(rows)

        def of_lists(values: pa.Array) -> pa.Array:
            return pa.ListArray.from_arrays(offsets, values)

        columns = [
            self.query_ids.take(chosen),
            pa.array(self.draws[rows]),
            self.queries.take(rows).arrow(),
            of_lists(self.passages.take(self.texts[candidates]).arrow()),
            of_lists(pa.array(self.kinds[candidates])),
            of_lists(self.ids.take(pa.array(candidates)).combine_chunks()),
            of_lists(pa.array(self.logits[candidates])),
            pa.array(self.confidences[rows]),
            self.never_ids.take(chosen),
        ]
        if self.grades is not None:
            return pa.table([*columns, pa.array(self.grades[rows])], schema=schemas.GRADED_TRAINING)
        if self.labels is None:
            return pa.table(columns, schema=schemas.TRAINING)
        return pa.table([*columns, of_lists(pa.array(self.labels[candidates]))], schema=schemas.LABELLED_TRAINING)


def read_rows(inputs: dict[str, Stored], shard: int, encoders: Encoders, *, labelled: bool, graded_by: str | None = None) -> TrainingRows:
    """The rows of a shard, `labelled` where they are the lists of a curriculum, with the grades of their p+ in the split `graded_by`.

    Each of the inputs `dark_examples`, `teacher_scores` and `confidence` has the same order; `curriculum` and `lists` are all three in one.
    `pools.ranked` or `lists.never` has the queries of all lists, and perhaps more; `hard_negatives` is there where passages were promoted,
    which are never negatives either. Where there is no teacher, logits and confidences are
    NaN: whatever used them all the same would say so.
    """

    def column(label: str, name: str) -> pa.ChunkedArray:
        return inputs[label].read(shard, columns=[name]).column(name)

    lists = next(label for label in ("curriculum", "lists", "dark_examples") if label in inputs)
    labels = None
    keys = [as_keys(_text_keys(group)) for group in inputs[lists].shard_groups(shard, columns=["candidate_kind", "text"])]
    first, texts = first_occurrence(np.concatenate([as_keys([]), *keys]))
    kinds = column(lists, "candidate_kind").to_numpy()
    begins = begins_of(inputs[lists].read(shard, columns=["position"]))
    bounds = np.array([*begins, len(kinds)], np.int64)
    if labelled:
        graded = [labels_of(kinds[start:stop].tolist()) for start, stop in itertools.pairwise(bounds.tolist())]
        labels = np.concatenate([np.empty(0), *graded]).astype(np.float32)
    if lists != "dark_examples":
        logits, confidences = column(lists, "logit").to_numpy(), column(lists, "confidence").to_numpy()[begins]
    elif "teacher_scores" in inputs:
        logits, confidences = column("teacher_scores", "logit").to_numpy(), column("confidence", "confidence").to_numpy()
    else:
        logits, confidences = (np.full(count, np.nan, np.float32) for count in (len(kinds), len(begins)))
    if len(logits) != len(kinds) or len(confidences) != len(begins):
        raise AssertionError("candidates, their logits and confidences lie in one order")
    query_ids = column(lists, "query_id").take(pa.array(begins, pa.int64()))
    pools = inputs["lists.never" if lists == "lists" else "pools.ranked"].read(shard, columns=["query_id", "never_ids"])
    places = pc.index_in(query_ids, value_set=pools.column("query_id").combine_chunks())
    if places.null_count:
        raise AssertionError("each list is of a query that has a pool")
    never_ids = pools.column("never_ids").take(places).combine_chunks()
    if "hard_negatives" in inputs:
        never_ids = with_promoted(never_ids, query_ids, inputs["hard_negatives"].read(shard, columns=["query_id", "promoted_ids"]))
    queries, passages = _tokenised(inputs[lists], shard, first, encoders)
    ids = column(lists, "candidate_id")
    grades = None
    if graded_by is not None:  # p+ stands first in its list
        grades = grades_of(query_ids, ids.take(pa.array(begins, pa.int64())), inputs["ingest.qrels"], split=graded_by)
    return TrainingRows(
        query_ids, column(lists, "draw").to_numpy()[begins], queries, bounds, texts, passages, kinds, ids, logits, confidences, never_ids,
        labels, grades,
    )  # fmt: skip


def grades_of(query_ids: pa.ChunkedArray, positive_ids: pa.ChunkedArray, qrels: Stored, *, split: str) -> NDArray[np.int32]:
    """[n] the label of each list's p+ in a split; 0 of one without a label above 0, which the teacher has promoted."""
    asked = query_ids.combine_chunks().unique()
    labels: dict[tuple[str, str], int] = {}
    for group in qrels.row_groups(columns=["split", "query_id", "doc_id", "relevance"]):
        mine = group.filter(pc.and_(pc.equal(group.column("split"), split), pc.is_in(group.column("query_id"), value_set=asked)))
        for _, query_id, doc_id, relevance in zip(*(column.to_pylist() for column in mine.columns), strict=True):
            labels[query_id, doc_id] = max(relevance, labels.get((query_id, doc_id), 0))
    pairs = zip(query_ids.to_pylist(), positive_ids.to_pylist(), strict=True)
    return np.array([labels.get(pair, 0) for pair in pairs], np.int32)


def with_promoted(never_ids: pa.Array, query_ids: pa.ChunkedArray, promotions: pa.Table) -> pa.ListArray:
    """[n] `never_ids` with the passages that were promoted for each query, by id. `promotions` are rows of `hard_negatives`."""
    promoted = dict(zip(promotions.column("query_id").to_pylist(), promotions.column("promoted_ids").to_pylist(), strict=True))
    lists = zip(query_ids.to_pylist(), never_ids.to_pylist(), strict=True)
    return pa.array([sorted({*never, *promoted.get(query_id, ())}) for query_id, never in lists], never_ids.type)


def _is_mixed(table: pa.Table) -> NDArray[np.bool_]:
    return table.column("candidate_kind").to_numpy() == CandidateKind.REINFORCED_NEGATIVE


def _text_keys(table: pa.Table) -> list[bytes]:
    """A text that is cut at another length has other tokens."""
    texts = table.column("text").to_pylist()
    return [pair_key("mixed" if mixed else "passage", text) for mixed, text in zip(_is_mixed(table).tolist(), texts, strict=True)]


def _tokenised(candidates: Stored, shard: int, first: NDArray[np.int64], encoders: Encoders) -> tuple[Ragged, Ragged]:
    """(tokens of each list's query, tokens of each distinct text by its number), a row group of texts at a time.

    `first` are the rows in which a text stands for the first time, by its number.
    """
    queries, passages = RaggedBuilder(), RaggedBuilder()
    before = 0
    for table in candidates.shard_groups(shard, columns=["position", "candidate_kind", "query", "text"]):
        queries.extend(encoders.query(table.column("query").take(pa.array(begins_of(table), pa.int64())).to_pylist()))
        low, high = np.searchsorted(first, [before, before + table.num_rows])
        new = first[low:high] - before
        passages.extend(_encoded(table.column("text").take(pa.array(new)).to_pylist(), _is_mixed(table)[new], encoders))
        before += table.num_rows
    return queries.finish(), passages.finish()


def _encoded(texts: list[str], mixed: NDArray[np.bool_], encoders: Encoders) -> list[list[int]]:
    """The tokens of each text, mixed or not, in their order."""
    tokens: list[list[int]] = [[]] * len(texts)
    for encode, places in ((encoders.passage, np.flatnonzero(~mixed)), (encoders.mixed, np.flatnonzero(mixed))):
        for place, found in zip(places.tolist(), encode([texts[place] for place in places]), strict=True):
            tokens[place] = found
    return tokens
