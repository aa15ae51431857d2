"""A run's first passages in the order of a cross-encoder: what a teacher makes of a student's list."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from data.config.settings import Teacher
from data.digests import DigestCache
from data.errors import RunFailed, UserError
from data.formats.trec import Run
from retrieval.search.stored_texts import texts_of
from retrieval.teachers.cross_encoder import load_cross_encoder, resolve_teacher, score_pairs
from retrieval.teachers.pair_tokens import PairTokenizer

PAIRS_A_READING = 200_000  # whose texts are held at once, about 100 MB; the corpus table is read once for so many

Pair = tuple[str, str]  # query_id, doc_id


def rerank(
    run: Run,
    teacher: Teacher,
    *,
    queries: Path,
    corpus: Path,
    depth: int,
    device: str = "cpu",
    threads: int = 1,
    pairs_a_reading: int = PAIRS_A_READING,
    report: Callable[[str], None] = lambda line: None,
) -> Run:
    """The first `depth` passages of each query, best logit first, equal logits by doc_id.

    What lies below `depth` is left out: a list then holds nothing but the teacher's logits, and its scores are of one kind.

    Args:
        run: the lists to be ranked anew.
        teacher: the cross-encoder and its settings; `compile=auto` does not compile here.
        queries: a stored table of schema QUERIES.
        corpus: a stored table of schema CORPUS.
        depth: passages a query.
        device: cpu or cuda.
        threads: CPU threads.
        pairs_a_reading: how many pairs' texts are in memory at once.
        report: is told of the progress, a line every `teacher.segment_pairs` pairs.

    Raises:
        UserError: a query or passage of the run that its table does not have; whatever `resolve_teacher` refuses.
        RunFailed: the teacher's files changed meanwhile; see `score_pairs`.
    """
    spec, digests = resolve_teacher(teacher, device=device), DigestCache(Path(os.devnull))
    key = spec.key(digests)
    query_texts = _all_texts(list(run), queries, id_name="query_id", what="queries")
    cut = {query: entries[:depth] for query, entries in run.items()}
    total, done, started = sum(map(len, cut.values())), 0, time.monotonic()
    tokenizer = PairTokenizer(spec.folder, max_tokens=spec.max_tokens, trusted=spec.trust_remote_code)
    compiled = teacher.compile == "on" and teacher.backend == "torch"
    model = load_cross_encoder(spec, device=device, threads=threads, batch_tokens=teacher.batch_tokens, compiled=compiled)
    logits: dict[str, list[tuple[str, float]]] = {query: [] for query in run}
    for pairs in _readings(cut, size=pairs_a_reading):
        texts = _all_texts([doc_id for _, doc_id in pairs], corpus, id_name="doc_id", what="passages")
        for start in range(0, len(pairs), teacher.segment_pairs):
            segment = pairs[start : start + teacher.segment_pairs]
            encoded = tokenizer.encode([(query_texts[query], texts[doc_id]) for query, doc_id in segment])
            for (query, doc_id), logit in zip(segment, score_pairs(model, encoded, pad_id=tokenizer.pad_id).tolist(), strict=True):
                logits[query].append((doc_id, logit))
            done += len(segment)
            report(f"{done:,} of {total:,} pairs, {done / max(time.monotonic() - started, 1e-9):,.0f} pairs/s")
    if spec.key(digests) != key:
        raise RunFailed(f"the files of model={teacher.model} changed while this run was under way; start it again")
    return {query: sorted(entries, key=lambda entry: (-entry[1], entry[0])) for query, entries in logits.items()}


def _readings(run: Run, *, size: int) -> Iterator[list[Pair]]:
    """All pairs of the run in its order, `size` of them at a time."""
    waiting: list[Pair] = []
    for query, entries in run.items():
        waiting += [(query, doc_id) for doc_id, _ in entries]
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]
    if waiting:
        yield waiting


def _all_texts(ids: list[str], folder: Path, *, id_name: str, what: str) -> dict[str, str]:
    texts = texts_of(ids, folder, id_name=id_name)
    missing = [identifier for identifier in dict.fromkeys(ids) if identifier not in texts]
    if missing:
        raise UserError(f"{len(missing):,} {what} of the run are not in {folder}, the first is {missing[0]}: is it another collection's?")
    return texts
