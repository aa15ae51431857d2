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
class Lists:
    """The candidate lists of a shard, n of them with C candidates in all, in the order of `dark_examples` or `curriculum`."""

    query_ids: pa.ChunkedArray  # [n]
    draws: NDArray[np.int8]  # [n]
    bounds: NDArray[np.int64]  # [n + 1]: where the candidates of a list begin and end
    kinds: NDArray[np.int8]  # [C]
    ids: pa.ChunkedArray  # [C]
    texts: NDArray[np.int32]  # [C] numbers of the distinct texts
    first: NDArray[np.int64]  # rows in which a text stands for the first time, by its number

    @staticmethod
    def read(candidates: Stored, shard: int) -> Lists:
        """A column at a time; of the texts, a row group at a time, only their keys."""

        def column(name: str) -> pa.ChunkedArray:
            return candidates.read(shard, columns=[name]).column(name)

        keys = [as_keys(_text_keys(group)) for group in candidates.shard_groups(shard, columns=["candidate_kind", "text"])]
        first, texts = first_occurrence(np.concatenate([as_keys([]), *keys]))
        begin = _begin(column("position"))
        bounds = np.append(begin, len(texts)).astype(np.int64)
        query_ids, draws = column("query_id").take(pa.array(begin)), column("draw").to_numpy()[begin]
        return Lists(query_ids, draws, bounds, column("candidate_kind").to_numpy(), column("candidate_id"), texts, first)


def _begin(positions: pa.ChunkedArray) -> NDArray[np.int64]:
    """Rows at which a list begins; it may go on in the next row group."""
    return np.flatnonzero(positions.to_numpy() == 0)


def _is_mixed(table: pa.Table) -> NDArray[np.bool_]:
    return table.column("candidate_kind").to_numpy() == CandidateKind.REINFORCED_NEGATIVE


def _text_keys(table: pa.Table) -> list[bytes]:
    """A text that is cut at another length has other tokens."""
    texts = table.column("text").to_pylist()
    return [pair_key("mixed" if mixed else "passage", text) for mixed, text in zip(_is_mixed(table).tolist(), texts, strict=True)]


@dataclass(frozen=True)
class TrainingRows:
    """All that the rows of a shard hold, by list: n of them with C candidates in all."""

    lists: Lists
    queries: Ragged  # tokens of each list's query
    passages: Ragged  # tokens of each distinct text
    logits: NDArray[np.float32]  # [C]
    confidences: NDArray[np.float32]  # [n]
    never_ids: pa.ListArray  # [n]
    labels: NDArray[np.float32] | None = None  # [C], where the lists carry some

    @property
    def candidate_tokens(self) -> int:
        """Tokens of all candidates."""
        return int(self.passages.lengths[self.lists.texts].sum())

    def table(self, rows: NDArray[np.int64]) -> pa.Table:
        """Some lists in the order asked for, of schema `TRAINING`, with labels `LABELLED_TRAINING`."""
        lists = self.lists
        lengths = np.diff(lists.bounds)[rows]
        candidates = spans(lists.bounds[rows], lengths)
        offsets, chosen = pa.array(bounds_of(lengths).astype(np.int32)), pa.array(rows)

        def of_lists(values: pa.Array) -> pa.Array:
            return pa.ListArray.from_arrays(offsets, values)

        columns = [
            lists.query_ids.take(chosen),
            pa.array(lists.draws[rows]),
            self.queries.take(rows).arrow(),
            of_lists(self.passages.take(lists.texts[candidates]).arrow()),
            of_lists(pa.array(lists.kinds[candidates])),
            of_lists(lists.ids.take(pa.array(candidates)).combine_chunks()),
            of_lists(pa.array(self.logits[candidates])),
            pa.array(self.confidences[rows]),
            self.never_ids.take(chosen),
        ]
        if self.labels is None:
            return pa.table(columns, schema=schemas.TRAINING)
        return pa.table([*columns, of_lists(pa.array(self.labels[candidates]))], schema=schemas.LABELLED_TRAINING)


def _tokenised(candidates: Stored, shard: int, lists: Lists, encoders: Encoders) -> tuple[Ragged, Ragged]:
    """(tokens of each list's query, tokens of each distinct text by its number), a row group of texts at a time."""
    queries, passages = RaggedBuilder(), RaggedBuilder()
    before = 0
    for table in candidates.shard_groups(shard, columns=["position", "candidate_kind", "query", "text"]):
        queries.extend(encoders.query(table.column("query").take(pa.array(_begin(table.column("position")))).to_pylist()))
        low, high = np.searchsorted(lists.first, [before, before + table.num_rows])
        new = lists.first[low:high] - before
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


def read_rows(inputs: dict[str, Stored], shard: int, encoders: Encoders) -> TrainingRows:
    """The rows of a shard.

    Each of the inputs `dark_examples`, `teacher_scores` and `confidence` has the same order; `curriculum` is all three in one.
    `pools.ranked` has the queries of all lists, and perhaps more. Where there is no teacher, logits and confidences are NaN: whatever used
    them all the same would say so.
    """

    def column(label: str, name: str) -> NDArray[np.float32]:
        return inputs[label].read(shard, columns=[name]).column(name).to_numpy()

    candidates, labels = inputs["curriculum" if "curriculum" in inputs else "dark_examples"], None
    lists = Lists.read(candidates, shard)
    if "curriculum" in inputs:
        logits, confidences = column("curriculum", "logit"), column("curriculum", "confidence")[lists.bounds[:-1]]
        graded = [labels_of(lists.kinds[start:stop].tolist()) for start, stop in itertools.pairwise(lists.bounds.tolist())]
        labels = np.concatenate([np.empty(0), *graded]).astype(np.float32)
    elif "teacher_scores" in inputs:
        logits, confidences = column("teacher_scores", "logit"), column("confidence", "confidence")
    else:
        logits, confidences = (np.full(len(numbers), np.nan, np.float32) for numbers in (lists.kinds, lists.draws))
    if len(logits) != len(lists.kinds) or len(confidences) != len(lists.draws):
        raise AssertionError("candidates, their logits and confidences lie in one order")
    queries, passages = _tokenised(candidates, shard, lists, encoders)
    return TrainingRows(lists, queries, passages, logits, confidences, _never_ids(inputs["pools.ranked"], shard, lists), labels)


def _never_ids(pools: Stored, shard: int, lists: Lists) -> pa.ListArray:
    """[n] of each list's query the ids of the passages that are never its negatives."""
    table = pools.read(shard, columns=["query_id", "never_ids"])
    places = pc.index_in(lists.query_ids, value_set=table.column("query_id").combine_chunks())
    if places.null_count:
        raise AssertionError("each list is of a query that has a pool")
    return table.column("never_ids").take(places).combine_chunks()
