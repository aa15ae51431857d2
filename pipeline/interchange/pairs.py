"""`prep export format=pairs` and `prep import format=pairs`: the pairs that an experiment asks of its teacher, for any engine elsewhere.

    out=FILE.jsonl      {"key": "<32 hex digits>", "query": ..., "text": ...} a line
    out=FILE.parquet    the same columns

A key is that of the pair in the logit store. Answers carry it and a score: see `pipeline.interchange.answers`, which reads them. In memory
are the keys of a shard and a row group of texts.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.config.arguments import Args
from data.config.settings import Experiment
from data.errors import UserError
from data.files.outputs import Kind
from data.files.paths import expanded
from data.logits.segment import Keys
from data.remote.cache import output_file
from data.tables.shards import atomic_path, read_row_groups
from pipeline.interchange.answers import import_pairs
from pipeline.interchange.asked_tables import AskedTables
from pipeline.plan import Planner
from pipeline.scoring.dedup import first_occurrence
from pipeline.scoring.requested_pairs import RequestedPairs, store_of, texts_of_rows
from pipeline.stage import Say
from retrieval.teachers.base import with_plain_marks

__all__ = ["export_pairs", "import_pairs"]

PAIRS = pa.schema([("key", pa.string()), ("query", pa.string()), ("text", pa.string())])
_KINDS: dict[str, Kind] = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
Write = Callable[[pa.Table], None]


def export_pairs(experiment: Experiment, own: Args, *, say: Say) -> None:
    """Write the distinct pairs that the tables of the experiment ask of its teacher; with `missing=true` those without a logit alone.

    Raises UserError: nothing is asked yet, another kind of file, a file that may not be written.
    """
    missing = Args({"missing": own["missing"] or "false"}).one_of("missing", "true", "false") == "true"
    out = own["out"]
    kind = _KINDS.get(Path(out).suffix.lower())
    if kind is None:
        raise UserError(f"out={out}: pairs are written as FILE.jsonl or FILE.parquet (texts may hold tabs and line breaks)")
    planner = Planner(experiment)
    asked = AskedTables.of(planner)
    for label in asked.waiting:
        say(f"{label} is not complete yet: its pairs are not among these")
    with output_file(expanded(out, key="out"), option="out", kind=kind) as path, atomic_path(path) as temporary:
        with _writer(temporary, kind) as write:
            written, distinct = _write_all(planner, asked, write, missing=missing, say=say)
        if not written:
            raise UserError(f"out={out}: all {distinct:,} pairs that are asked for have a logit; nothing is written")
    say(f"wrote {written:,} of {distinct:,} distinct pairs to {out}")
    say('next: score them, a line {"key": ..., "score": ...} each, then prep import ANSWERS format=pairs config=FILE')


def _write_all(planner: Planner, asked: AskedTables, write: Write, *, missing: bool, say: Say) -> tuple[int, int]:
    """(pairs written, distinct pairs)."""
    store = store_of(planner.models, warn=say)
    written = distinct = 0
    for paths, requested in asked.shards(planner):
        keys = np.concatenate([pairs.keys for pairs in requested])
        wanted = np.zeros(len(keys), bool)  # of each key the first occurrence, in the order of the tables
        wanted[first_occurrence(keys)[0]] = True
        distinct += int(wanted.sum())
        if missing:
            wanted &= np.isnan(store.lookup(keys).logits)
        written += int(wanted.sum())
        start = 0
        for path, pairs in zip(paths, requested, strict=True):
            _write_some(path, pairs, wanted[start : start + len(pairs.keys)], planner, write)
            start += len(pairs.keys)
    return written, distinct


def _write_some(path: Path, pairs: RequestedPairs, wanted: NDArray[np.bool_], planner: Planner, write: Write) -> None:
    """The wanted ones of a file's distinct pairs, each from the first row that it stands in."""
    _, first_rows = np.unique(pairs.pair_of_row, return_index=True)
    places = np.flatnonzero(wanted)
    rows = first_rows[places]  # rising: pairs are numbered in the order in which they first occur
    start = 0
    for table in read_row_groups(path, columns=["query", "text"]):
        low, high = np.searchsorted(rows, [start, start + table.num_rows])
        if high > low:
            texts = with_plain_marks(texts_of_rows(table.take(pa.array(rows[low:high] - start)), planner.models.teacher_marks))
            write(pa.table([_hex(pairs.keys[places[low:high]]), *map(list, zip(*texts, strict=True))], schema=PAIRS))
        start += table.num_rows


def _hex(keys: Keys) -> list[str]:
    return [f"{high:016x}{low:016x}" for high, low in keys.tolist()]


@contextlib.contextmanager
def _writer(path: Path, kind: Kind) -> Iterator[Write]:
    """What appends rows to a file."""
    if kind == "parquet":
        with pq.ParquetWriter(path, PAIRS, compression="zstd") as parquet:
            yield parquet.write_table
        return
    with open(path, "w", encoding="utf-8", newline="\n") as file:

        def write_lines(table: pa.Table) -> None:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())

        yield write_lines
