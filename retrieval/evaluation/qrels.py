"""Relevance labels from wherever they lie: a stored table of `ingest`, or a file of qrels in BEIR's form, MS MARCO's or TREC's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data.errors import UserError
from data.formats.readers import JUDGEMENT_FORM, Fault, read_judgements
from data.tables.shards import read_shard
from retrieval.search.embedding_table import table_paths
from retrieval.table_kinds import checked_table

Qrels = dict[str, dict[str, int]]  # query_id -> doc_id -> relevance


def read_qrels(path: Path, *, split: str, note: Callable[[str], None] = lambda line: None) -> Qrels:
    """The labels. `split` chooses among a stored table's splits; a file holds one split. `note` gets a line on what was passed over.

    Raises UserError: nothing there, a split without labels (naming those there are), a line that is no label, two labels of one pair.
    """
    if not path.exists():
        raise UserError(f"qrels={path}: no such file or folder")
    qrels = _from_table(path, split=split) if path.is_dir() else _from_file(path, note=note)
    if not qrels:
        raise UserError(f"{path} holds no relevance labels; expected lines of {JUDGEMENT_FORM}")
    return qrels


def _from_table(folder: Path, *, split: str) -> Qrels:
    qrels: Qrels = {}
    splits: set[str] = set()
    for shard in table_paths(checked_table(folder, "qrels", key="qrels")):
        for row in read_shard(shard).to_pylist():
            splits.add(row["split"])
            if row["split"] == split:
                qrels.setdefault(row["query_id"], {})[row["doc_id"]] = row["relevance"]
    if split not in splits:
        raise UserError(f"split={split}: {folder} has labels of {', '.join(sorted(splits))}")
    return qrels


def _from_file(path: Path, *, note: Callable[[str], None]) -> Qrels:
    """As `prep` reads it, but for what is broken: that stops here, since a metric over the rest would pass for one over all."""
    qrels: Qrels = {}
    lines: dict[tuple[str, str], int] = {}
    repeated = 0
    for line, judgement in read_judgements(path, name=str(path), split=""):
        if isinstance(judgement, Fault):
            if judgement.reason == "empty line":
                continue
            raise UserError(str(judgement))
        _, query_id, doc_id, label = judgement
        labels = qrels.setdefault(query_id, {})
        if labels.setdefault(doc_id, label) != label:
            before = f"{labels[doc_id]} in line {lines[query_id, doc_id]} and {label} here"
            raise UserError(f"{path}:{line.number}: query {query_id} and passage {doc_id} are judged {before}: leave one of the two")
        repeated += (query_id, doc_id) in lines
        lines.setdefault((query_id, doc_id), line.number)
    if repeated:
        note(f"{path}: {repeated:,} judgements stand there a second time, with the same label")
    return qrels
