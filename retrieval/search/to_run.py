"""A search written as a TREC run, in parts as they are found: a killed one goes on where it stopped and ends in the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data.digests import json_digest
from data.errors import UserError
from data.formats.trec import run_lines
from data.tables.shards import atomic_path, atomic_write
from retrieval.search.embedding_table import EmbeddingTable
from retrieval.search.searcher import GROUP_QUERIES, Searcher, ranked

TAG = "dense"


def search_to_run(
    searcher: Searcher,
    queries: EmbeddingTable,
    out: Path,
    *,
    k: int,
    only: set[str] | None = None,
    how: dict[str, Any] | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Search the k best for every query, or for those in `only`, and write the run, queries by id. Returns the number of queries.

    Parts of 256 queries lie beside `out` until the run is whole. They are named after what decides them (the vectors of both tables,
    the depth, the queries, and `how`: what an approximate index is), so that a search of something else never takes them for its own.

    Raises UserError: the tables cannot be searched with each other, or a run cannot hold an id.
    """
    ids = queries.ids.to_pylist()
    order = np.array(sorted((row for row, name in enumerate(ids) if only is None or name in only), key=ids.__getitem__), dtype=np.int64)
    if only is not None and not len(order):
        raise UserError(f"{queries.folder} has none of the {len(only):,} judged queries ({min(only)}, ...): do they belong together?")
    vectors = queries.matrix()[order]
    names = [ids[row] for row in order.tolist()]
    key = {"queries": queries.manifest.content_digest, "only": names, "corpus": searcher.corpus.manifest.content_digest, "k": k}
    key |= how or {}
    key |= {"dimensions": searcher.corpus.dimensions} if searcher.corpus.dimensions else {}
    parts = out.with_name(f".{out.name}.{json_digest(key)[:16]}.parts")
    starts = range(0, len(order), GROUP_QUERIES)
    missing = [start for start in starts if not _part(parts, start).exists()]
    remaining = np.concatenate([np.arange(start, min(start + GROUP_QUERIES, len(order))) for start in missing] or [np.empty(0, np.int64)])
    done = len(order) - len(remaining)
    report(done, len(order))
    for found in searcher.search(vectors[remaining], k=k):
        lists = ranked(found, searcher.corpus.ids)
        for start in range(0, len(lists), GROUP_QUERIES):
            places = remaining[found.first + start : found.first + start + GROUP_QUERIES]
            listed = zip(places.tolist(), lists[start : start + GROUP_QUERIES], strict=True)
            text = "".join(run_lines(names[place], zip(*found_list, strict=True), tag=TAG, path=out) for place, found_list in listed)
            atomic_write(_part(parts, int(places[0])), text.encode())
        done += len(lists)
        report(done, len(order))
    with atomic_path(out) as temporary, open(temporary, "wb") as file:
        for start in starts:
            try:
                file.write(_part(parts, start).read_bytes())
            except FileNotFoundError as error:
                gone = f"{_part(parts, start)} is gone"
                raise UserError(f"{gone}: another search with the same out={out} has just finished?") from error
    shutil.rmtree(parts, ignore_errors=True)
    return len(order)


def _part(folder: Path, start: int) -> Path:
    return folder / f"{start:09d}.run"
