"""The lists of a store, shard after shard: with one positive and dark examples, in groups of a curriculum, or as they were given."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.formats.scored_lists.exported import LISTS
from data.formats.scored_lists.writers.lists import Lists
from data.tables.schemas import GROUPS, MASK_MARK, SEPARATOR_MARK, CandidateKind
from pipeline.negatives.pool_pairs import begins_of, scored_pairs, whole_lists
from pipeline.plan import Planner, tables
from pipeline.stage import Stored
from retrieval.models.marks import Marks

DARK_KINDS = (CandidateKind.REINFORCED_NEGATIVE, CandidateKind.NOISY_POSITIVE)
DARK, UNLABELLED = "dark examples", "passages of group 1 without a label"
_HEADS = ["query_id", "draw", "position", "candidate_kind", "candidate_id"]  # without texts


@dataclass(frozen=True)
class StoredLists:
    """The complete tables that hold the lists. All have the same shards, and the order of their rows."""

    lists: Stored  # schema CANDIDATES or CURRICULUM
    scores: Stored | None  # TEACHER_SCORES, None where the lists carry their logits, or there is no teacher
    confidence: Stored | None
    never: Stored  # query_id, never_ids
    promotions: Stored | None = None  # query_id, promoted_ids, which are never negatives either; None where none were asked for

    @staticmethod
    def of(planner: Planner) -> StoredLists:
        """The tables of an experiment. Raises UserError naming the stage to run where one is not complete."""
        made = {table.label for table in tables(planner.experiment)}
        own = next((label for label in ("lists", "curriculum") if label in made), None)
        names = (own or "dark_examples", *(() if own else ("teacher_scores", "confidence")))
        stored = [planner.completed(name) if name in made else None for name in names]
        lists, scores, confidence = stored if own is None else (stored[0], None, None)
        assert lists is not None
        never = planner.completed("lists.never" if own == "lists" else "pools.ranked")
        promotes = own is None and planner.experiment.hard_negatives.promote_margin is not None
        return StoredLists(lists, scores, confidence, never, planner.completed("hard_negatives") if promotes else None)

    @property
    def shards(self) -> int:
        """How many."""
        return len(self.lists.paths())

    def tables(self, shard: int, *, texts: bool = True) -> Iterator[pa.Table]:
        """The rows of a shard, schema LISTS, no list in two pieces; logit and C(q) are null without a teacher. Without `texts` the columns
        `query` and `text` are null."""
        columns = None if texts else _HEADS
        if self.scores is not None and self.confidence is not None:
            given = self.confidence.read(shard, columns=["confidence"]).column("confidence")
            yield from _with_confidence(scored_pairs(self.lists, self.scores, shard, columns=columns), given)
            return
        if columns and self._carry_logits:
            columns = [*columns, "logit", "confidence"]
        yield from map(_complete, whole_lists(self.lists.shard_groups(shard, columns=columns)))

    @functools.cached_property
    def _carry_logits(self) -> bool:
        return "logit" in pq.read_schema(self.lists.path(0)).names

    def never_ids(self, shard: int) -> dict[str, frozenset[str]]:
        """Of each query of a shard the passages that are never its negatives."""
        rows = self.never.read(shard, columns=["query_id", "never_ids"]).to_pydict()
        return dict(zip(rows["query_id"], map(frozenset, rows["never_ids"]), strict=True))


def _with_confidence(pieces: Iterator[pa.Table], of_lists: pa.ChunkedArray) -> Iterator[pa.Table]:
    """The pieces with the C(q) of each row's list; the table of C(q) has a row a list, in the same order."""
    done = 0
    for piece in pieces:
        begins = begins_of(piece)
        lengths = np.diff([*begins, piece.num_rows])
        values = of_lists.slice(done, len(begins)).to_numpy()
        yield _complete(piece.append_column("confidence", pa.array(np.repeat(values, lengths))))
        done += len(begins)
    if done != len(of_lists):
        raise AssertionError("lists and their C(q) lie in one order")


def _complete(piece: pa.Table) -> pa.Table:
    """With nulls for columns that are not there."""
    rows = piece.num_rows
    return pa.table([piece.column(one.name) if one.name in piece.column_names else pa.nulls(rows, one.type) for one in LISTS], schema=LISTS)


@dataclass(frozen=True)
class SelectedLists:
    """What of the lists is written for another trainer, as `data.formats.scored_lists.writers.lists.ListSource` gives it."""

    stored: StoredLists
    draws: Sequence[int]
    dark: bool  # with dark examples, whose marks stand as the teacher reads them
    marks: Marks  # the teacher's
    counted: Counter[str] = field(default_factory=Counter)  # by the last reading: DARK, written or not; UNLABELLED

    def read(self, *, texts: bool = True) -> Iterator[Lists]:
        """All lists of the draws, shard after shard; in memory is about a row group, and for lists of groups a shard's `never_ids`."""
        self.counted.clear()
        for shard in range(self.stored.shards):
            never = functools.cache(functools.partial(self.stored.never_ids, shard))
            for table in self.stored.tables(shard, texts=texts):
                lists = self._lists(table, never)
                dark = np.isin(lists.kinds, DARK_KINDS)
                self.counted[DARK] += int(dark.sum())
                lists = lists if self.dark else lists.keep(~dark)
                self.counted[UNLABELLED] += int(((lists.kinds == CandidateKind.TOP) & ~lists.positive).sum())
                yield lists

    def _lists(self, table: pa.Table, never: Callable[[], dict[str, frozenset[str]]]) -> Lists:
        begins = np.array(begins_of(table), np.int64)
        heads = pa.array(begins)
        kinds = _numbers(table, "candidate_kind")
        list_of = np.repeat(np.arange(len(begins)), np.diff(begins, append=table.num_rows))
        query_ids, ids = table.column("query_id").take(heads).combine_chunks(), _joined(table, "candidate_id")
        positive = kinds == CandidateKind.POSITIVE
        if np.isin(kinds, GROUPS).any():
            positive |= _labelled(query_ids, ids, list_of, kinds, never())
        lists = Lists(
            query_ids, table.column("query").take(heads).combine_chunks(), _numbers(table, "draw")[begins],
            _numbers(table, "confidence")[begins], list_of, np.arange(table.num_rows), ids, self._texts(table), kinds, positive,
            _numbers(table, "logit"),
        )  # fmt: skip
        return lists.keep_lists(np.isin(lists.draws, self.draws))

    def _texts(self, table: pa.Table) -> pa.Array:
        texts = _joined(table, "text")
        if not self.dark:
            return texts
        for mark, token in (*self.marks.texts, (SEPARATOR_MARK, "[SEP]"), (MASK_MARK, "[MASK]")):
            texts = pc.replace_substring(texts, mark, token)
        return texts


def _joined(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _numbers(table: pa.Table, name: str) -> NDArray:
    """A column of numbers, NaN for null."""
    return table.column(name).to_numpy()


def _labelled(
    query_ids: pa.Array, ids: pa.Array, list_of: NDArray[np.int64], kinds: NDArray[np.int8], never: dict[str, frozenset[str]]
) -> NDArray[np.bool_]:
    """[C] which passages of groups carry a label: pools hold none that are never negatives, so such a one in group 1 has a label."""
    names, doc_ids = query_ids.to_pylist(), ids.to_pylist()
    labelled = np.zeros(len(kinds), np.bool_)
    for place in np.flatnonzero(kinds == CandidateKind.TOP).tolist():
        labelled[place] = doc_ids[place] in never.get(names[list_of[place]], frozenset())
    return labelled
