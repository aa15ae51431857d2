"""A run's first passages in the order of a teacher: what it makes of a student's list."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from data.config import settings
from data.digests import DigestCache
from data.errors import RunFailed, UserError
from data.formats.trec import Run
from retrieval.search.stored_texts import texts_of
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.base import TeacherSettings


def rerank(
    run: Run,
    teacher: settings.Teacher,
    *,
    queries: Path,
    corpus: Path,
    depth: int,
    device: str = "cpu",
    threads: int = 1,
    pairs_a_reading: int = 200_000,  # about 100 MB of texts
    report: Callable[[str], None] = lambda line: None,
) -> Run:
    """The first `depth` passages of each query, best logit first, equal logits by doc_id.

    What lies below `depth` is left out: a list then holds nothing but the teacher's logits, and its scores are of one kind.

    `queries` and `corpus` are stored tables. The corpus is read once for every `pairs_a_reading` pairs, whose texts are in memory at once.
    `report` gets what there is to note of the teacher, and a line every window of `teacher.segment_pairs`.

    Raises:
        UserError: a query or passage of the run that its table does not have; whatever `resolve_teacher` refuses.
        RunFailed: the teacher's files changed meanwhile, or what it gives is no logit.
    """
    spec = resolve_teacher(teacher, device=device)
    for note in spec.notes():
        report(f"note: {note}")
    digests = DigestCache(Path(os.devnull))
    key = spec.key(digests)
    query_texts = _all_texts(list(run), queries, id_name="query_id", what="queries")
    pairs = [(query, doc_id) for query, entries in run.items() for doc_id, _ in entries[:depth]]
    opened = spec.open(TeacherSettings.of(teacher, device=device, threads=threads))
    window = teacher.window_pairs(device)
    logits: dict[str, list[tuple[str, float]]] = {query: [] for query in run}
    started = time.monotonic()
    done = 0
    for first in range(0, len(pairs), pairs_a_reading):
        reading = pairs[first : first + pairs_a_reading]
        texts = _all_texts([doc_id for _, doc_id in reading], corpus, id_name="doc_id", what="passages")
        for start in range(0, len(reading), window):
            segment = reading[start : start + window]
            scored = opened.score([(query_texts[query], texts[doc_id]) for query, doc_id in segment])
            for (query, doc_id), logit in zip(segment, scored.tolist(), strict=True):
                logits[query].append((doc_id, logit))
            done += len(segment)
            report(f"{done:,} of {len(pairs):,} pairs, {done / max(time.monotonic() - started, 1e-9):,.0f} pairs/s")
    if spec.key(digests) != key:
        raise RunFailed(f"the files of model={teacher.model} changed while this run was under way; start it again")
    return {query: sorted(entries, key=lambda entry: (-entry[1], entry[0])) for query, entries in logits.items()}


def _all_texts(ids: list[str], folder: Path, *, id_name: str, what: str) -> dict[str, str]:
    texts = texts_of(ids, folder, id_name=id_name)
    missing = [identifier for identifier in dict.fromkeys(ids) if identifier not in texts]
    if missing:
        raise UserError(f"{len(missing):,} {what} of the run are not in {folder}, the first is {missing[0]}: is it another collection's?")
    return texts
