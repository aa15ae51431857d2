"""The student's ranking of a shard of queries, merged from the pieces of all blocks of vectors."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.tables.shards import open_footer, read_groups
from pipeline.negatives.corpus import Corpus
from pipeline.negatives.sources import Ranking
from pipeline.pooling.asked import Asked
from pipeline.pooling.block_search import GROUPS, Group
from pipeline.pooling.blocks import Block
from pipeline.pooling.merging import BlockList, merged
from pipeline.stage import StageContext
from retrieval.search.exact import ScoreArray
from retrieval.search.searcher import Found, rows_by_id


@dataclass(frozen=True)
class _Piece:
    """A block's results: where they lie, and its footer, parsed once a worker."""

    path: Path
    first_row: int  # of the block
    metadata: pq.FileMetaData
    groups: dict[int, list[Group]]  # by shard

    def read(self, row_group: int) -> tuple[NDArray[np.int64], ScoreArray]:
        """Flat (rows of the block, scores) of a row group; of none they are empty."""
        if row_group < 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        table = read_groups(self.path, [row_group], self.metadata)
        return table.column("row").to_numpy().astype(np.int64), table.column("score").to_numpy()


class MergedSearch:
    """The exact search over all vectors, from the lists that each block has of a shard's queries."""

    def __init__(self, context: StageContext, blocks: list[Block], asked: Asked, corpus: Corpus) -> None:
        self._corpus = corpus
        self._shard = context.shard
        pieces = [_piece(context, block, corpus) for block in blocks]
        self._pieces = [piece for piece in pieces if self._shard in piece.groups]  # of no passages, or no queries, there is nothing
        groups = self._pieces[0].groups[self._shard] if self._pieces else []
        self._bounds = [(group.first, group.stop) for group in groups]
        positives = asked.positives
        self._positives_from = positives.bounds
        self._scores = np.empty(len(positives.values), np.float32)
        self._has_score = np.zeros(len(positives.values), bool)
        for piece in self._pieces:
            for group in piece.groups[self._shard]:
                places, scores = piece.read(group.row_groups[0])
                places += positives.bounds[group.first]
                self._scores[places], self._has_score[places] = scores, True

    def rank(self, first: int, stop: int, *, k: int) -> Ranking:
        """The k best passages of the shard's queries first..stop-1, equal scores by id."""
        parts = []
        for number, (start, end) in enumerate(self._bounds):
            if start < stop and first < end:
                found = self._merged(number, k)
                parts.append(tuple(part[max(0, first - start) : stop - start] for part in found))
        if not parts:
            return np.empty((stop - first, 0), np.int64), np.empty((stop - first, 0), np.float32)
        rows, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
        return rows_by_id(Found(first, scores, rows), self._corpus.ids), scores

    def _merged(self, number: int, k: int) -> Ranking:
        """The k best of a group, by the heads of all lists; where they do not prove it, by the rest of some."""
        groups = [piece.groups[self._shard][number] for piece in self._pieces]
        lists = [self._list(*pair) for pair in zip(self._pieces, groups, strict=True)]
        rows, scores, short = merged(lists, k)
        if short:
            for place in short:
                lists[place] = self._list(self._pieces[place], groups[place], whole=lists[place])
            rows, scores, short = merged(lists, k)
            if short:
                raise AssertionError("more passages only raise the k-th: no other list can be too short now")
        return rows, scores

    def _list(self, piece: _Piece, group: Group, whole: BlockList | None = None) -> BlockList:
        """A block's heads of a group; with the heads as `whole` their rests as well."""
        part = 1 if whole is None else 2
        shape = (group.stop - group.first, -1)
        rows, scores = piece.read(group.row_groups[part])
        rows, scores = (rows + piece.first_row).reshape(shape), scores.reshape(shape)
        if whole is None:
            return BlockList(rows, scores, is_cut=group.head < group.length)
        return BlockList(np.concatenate([whole.rows, rows], axis=1), np.concatenate([whole.scores, scores], axis=1), is_cut=False)

    def scores_of(self, place: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n] the student's scores of the positives `rows` of the query at `place`."""
        mine = slice(*self._positives_from[place : place + 2])
        if len(rows) != mine.stop - mine.start or not self._has_score[mine].all():
            raise AssertionError("each positive lies in one of the blocks")
        return self._scores[mine]


def _piece(context: StageContext, block: Block, corpus: Corpus) -> _Piece:
    """A block's piece, its footer kept by the worker."""
    path = context.piece_path(block.name)
    records = context.inputs["embed.corpus"].manifest.shards[: block.vectors.start]

    def opened() -> _Piece:
        metadata, figures = open_footer(path)
        return _Piece(path, sum(shard.rows for shard in records), metadata, _by_shard(figures[GROUPS]))

    return corpus.kept(path, opened)


def _by_shard(groups: list[Any]) -> dict[int, list[Group]]:
    parsed = sorted((Group(*one) for one in groups), key=lambda group: (group.shard, group.first))
    return {shard: list(mine) for shard, mine in itertools.groupby(parsed, key=lambda group: group.shard)}
