"""Our own exported lists (`data.formats.scored_lists.exported`) as lists of passages with the scores of their teacher.

Positives and negatives, and the groups of a curriculum, are passages. Dark examples are texts that stand in no collection: they are counted
as left out, and `lists.path` is what trains from them. A query that has several lists is given as often. Whether a passage of a group is
relevant the lists do not say.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.errors import UserError
from data.formats.scored_lists.batches import LIST_CANDIDATES, Companions, ListBatch, ReadOptions
from data.formats.scored_lists.exported import LISTS, LISTS_FOLDER, NOTE_NAME, ExportNote
from data.formats.scored_lists.readers.records.assembling import queries_of
from data.formats.scored_lists.readers.records.data_files import DataFile
from data.formats.scored_lists.readers.records.rows import row_groups
from data.tables.schemas import CandidateKind

_DARK = (CandidateKind.REINFORCED_NEGATIVE, CandidateKind.NOISY_POSITIVE)
_RELEVANCE = {CandidateKind.POSITIVE: 1, CandidateKind.NEGATIVE: 0}
_COLUMNS = ("query_id", "position", "candidate_kind", "candidate_id", "query", "text", "logit")


class StoredLists:
    """Reads them, a `ListReader`."""

    name = "lists"

    def recognises(self, path: Path) -> bool:
        """See `ListReader`."""
        return (path / NOTE_NAME).is_file() and (path / LISTS_FOLDER).is_dir()

    def files(self, path: Path, options: ReadOptions) -> list[Path]:
        """See `ListReader`."""
        return [path / NOTE_NAME, *sorted((path / LISTS_FOLDER).glob("part-*.parquet"))]

    def companions(self, path: Path, options: ReadOptions) -> Companions | None:
        """See `ListReader`."""
        return None

    def read(self, path: Path, options: ReadOptions) -> Iterator[ListBatch]:
        """See `ListReader`. `columns=score:logit:NAME` takes the scores of a further teacher."""
        options.refuse_score_file(self.name)
        ExportNote.read(path)
        if set(options.columns) - {"score"}:
            raise UserError("columns=: of format lists only score can be named, e.g. columns=score:logit:NAME")
        score = options.columns.get("score", "logit")
        shards = self.files(path, options)[1:]
        if not shards:
            raise UserError(f"{path}/{LISTS_FOLDER} holds no part-*.parquet: export again")
        for shard in shards:
            file = DataFile(shard, shard.relative_to(path).as_posix(), "parquet")
            for first, group in row_groups(file, list(dict.fromkeys((*_COLUMNS, score)))):
                yield _batch(file, first, group, score)


def _batch(file: DataFile, first: int, rows: pa.RecordBatch, score: str) -> ListBatch:
    columns = {name: rows.column(name).cast(LISTS.field(name).type) for name in _COLUMNS}
    scores = rows.column(score).cast(pa.float64())
    kinds = columns["candidate_kind"].to_numpy(zero_copy_only=False)
    keep = pa.array(~np.isin(kinds, _DARK))
    dark = int(np.isin(kinds, _DARK).sum())
    query_id = columns["query_id"]
    is_first = columns["position"].to_numpy(zero_copy_only=False) == 0  # a draw may have a list for each positive of a query
    is_first[:1] = True
    heads = pa.array(np.flatnonzero(is_first))
    queries = queries_of(first + np.flatnonzero(is_first), query_id.take(heads), columns["query"].take(heads))
    relevance = pa.array([_RELEVANCE.get(kind) for kind in kinds.tolist()], pa.int32())
    candidates = pa.table(
        [
            pa.array(np.cumsum(is_first) - 1, pa.int32()),
            columns["candidate_id"],
            pa.nulls(rows.num_rows, pa.string()),
            columns["text"],
            relevance,
            pc.if_else(pc.is_nan(scores), pa.scalar(None, pa.float64()), scores),
        ],
        LIST_CANDIDATES,
    )
    return ListBatch(file.name, queries, candidates.filter(keep), [], {"dark examples": dark} if dark else {})
