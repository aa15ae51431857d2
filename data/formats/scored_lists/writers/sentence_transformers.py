"""sentence-transformers (6.x): Parquet with columns query, positive, negative (or negative_1 ... negative_n) and label.

Its collator takes the column named `label` as the labels, and every other column, in order, as text
(`sentence_transformers/base/data_collator.py`): so ids, kinds and C(q) lie in a part of their own, row by row.

    label: DistillKLDivLoss, MarginMSELoss   [1 + n] the teacher's scores, the positive's first
           MarginMSELoss with layout=margins [n] score of the positive less that of each negative
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.formats.scored_lists.writers.lists import Lists, ListSource, WriteOptions, Written
from data.formats.scored_lists.writers.parquet_parts import BESIDE, open_part, pattern
from data.formats.scored_lists.writers.rectangles import companion, list_array, rows_of, width


def write(folder: Path, source: ListSource, options: WriteOptions) -> Written:
    """Write `data` and `lists`, with a row for each list."""
    written = Written(configs={"default": pattern("data"), BESIDE: pattern(BESIDE)})
    negatives = width(source, options)
    written.notes.append(f"each row has {negatives} negatives (negatives=N sets another number)")
    with open_part(folder, "data") as data, open_part(folder, BESIDE) as beside:
        for piece in source.read():
            lists, candidates = rows_of(piece, negatives, written)
            data.write(_table(lists, candidates, options))
            beside.write(companion(lists, candidates))
    return written


def _table(lists: Lists, candidates: NDArray[np.int64], options: WriteOptions) -> pa.Table:
    negatives = candidates.shape[1] - 1
    names = ["negative"] if negatives == 1 else [f"negative_{number}" for number in range(1, negatives + 1)]
    columns = {"query": lists.queries}
    columns |= {name: lists.texts_of(candidates[:, place]) for place, name in enumerate(["positive", *names])}
    if options.scored:
        scores = lists.logits[candidates]
        labels = scores[:, :1] - scores[:, 1:] if options.margins else scores
        columns["label"] = list_array(pa.array(labels.ravel()), len(lists))
    return pa.table(columns)
