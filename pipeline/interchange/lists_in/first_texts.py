"""The texts of all ids, each once, in the order in which they first occur: what becomes corpus.jsonl and queries.jsonl.

Texts go to disk as they come. What decides which of them stay, hashes of id and text, goes to a spill by id. In memory is a byte for
each distinct text, and what came lately, so that one that comes often is written once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.interchange.lists_in.identities import PASSAGE_SLOTS, Hashes, Recent, combined, hashes_of, text_hashes
from pipeline.interchange.lists_in.spill import Spill, bucket_ranges

_TEXTS = pa.schema([("_id", pa.string()), ("text", pa.string())])
_HASHES = pa.schema([("id", pa.uint64()), ("both", pa.uint64()), ("row", pa.int64())])


class FirstTexts:
    """Texts by id. Where an id has several, its first one is the right one."""

    def __init__(self, folder: Path, name: str, *, buckets: int, slots: int = PASSAGE_SLOTS) -> None:
        self._path = folder / f"{name}.arrow"
        self._file = pa.OSFile(str(self._path), "wb")
        self._writer = pa.ipc.new_stream(self._file, _TEXTS)
        self._hashes = Spill(folder / f"{name}.hashes", _HASHES, buckets=buckets)
        self._recent = Recent(slots)
        self.kept = 0

    def add(self, ids: pa.Array, texts: pa.Array, hashes: Hashes | None = None) -> Hashes:
        """Take in texts, whose hashes may be known. Returns a hash of id and text for each, by which `settle` names the wrong ones."""
        id_hashes = hashes_of(ids)
        both = combined(id_hashes, text_hashes(texts) if hashes is None else hashes)
        if len(new := self._recent.first_rows(both)):
            chosen = pa.array(new)
            self._writer.write_table(pa.table([ids.take(chosen), texts.take(chosen)], schema=_TEXTS))
            rows = np.arange(self._hashes.rows, self._hashes.rows + len(new))
            self._hashes.add(pa.table([id_hashes[new], both[new], rows], schema=_HASHES), id_hashes[new])
        return both

    def settle(self) -> Hashes:
        """Decide which texts stay. Returns the hashes, as `add` gave them, of ids with another text than their first."""
        self._writer.close()
        self._file.close()
        self._stays = np.zeros(self._hashes.rows, bool)
        wrong = [np.empty(0, np.uint64)]
        for buckets in bucket_ranges(self._hashes):
            ids, both, rows = (column.to_numpy() for column in self._hashes.read(buckets).columns)
            order = np.lexsort((rows, ids))
            begins = np.concatenate([[True], ids[order[1:]] != ids[order[:-1]]])
            self._stays[rows[order[begins]]] = True
            firsts = both[order[begins]][np.cumsum(begins) - 1]
            wrong.append(both[order][both[order] != firsts])
        self.kept = int(self._stays.sum())
        self._hashes.delete()
        return np.unique(np.concatenate(wrong))

    def write(self, path: Path) -> None:
        """BEIR's JSONL."""
        done = 0
        with open(path, "wb") as file, pa.OSFile(str(self._path)) as source:
            for batch in pa.ipc.open_stream(source):
                stays = self._stays[done : done + batch.num_rows]
                done += batch.num_rows
                pl.DataFrame(pl.from_arrow(batch)).filter(pl.Series(stays)).write_ndjson(file)
        self._path.unlink()
