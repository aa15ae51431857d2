"""Relevance labels from wherever they lie: a stored table of `ingest`, a BEIR TSV file, or a TREC qrels file."""

from __future__ import annotations

from pathlib import Path

from data.errors import UserError
from data.shards import read_shard

Qrels = dict[str, dict[str, int]]  # query_id -> doc_id -> relevance


def read_qrels(path: Path, *, split: str) -> Qrels:
    """The labels. `split` chooses among a stored table's splits; a file holds one split.

    Raises UserError: nothing there, a split without labels (naming those there are), a line that is no label.
    """
    qrels = _from_table(path, split=split) if path.is_dir() else _from_file(path)
    if not qrels:
        raise UserError(f"{path} holds no relevance labels")
    return qrels


def _from_table(folder: Path, *, split: str) -> Qrels:
    from retrieval.embedding_table import table_paths

    qrels: Qrels = {}
    splits: set[str] = set()
    for shard in table_paths(folder):
        for row in read_shard(shard).to_pylist():
            splits.add(row["split"])
            if row["split"] == split:
                qrels.setdefault(row["query_id"], {})[row["doc_id"]] = row["relevance"]
    if split not in splits:
        raise UserError(f"split={split}: {folder} has labels of {', '.join(sorted(splits))}")
    return qrels


def _from_file(path: Path) -> Qrels:
    qrels: Qrels = {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and not (number == 1 and line.startswith("query-id")):
                    query_id, doc_id, label = _parsed(line, place=f"{path}:{number}")
                    qrels.setdefault(query_id, {})[doc_id] = label
    except FileNotFoundError as error:
        raise UserError(f"qrels={path}: no such file or folder") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text, so it holds no relevance labels") from error
    return qrels


def _parsed(line: str, *, place: str) -> tuple[str, str, int]:
    fields = line.split()
    try:
        query_id, doc_id, label = (fields[0], fields[2], fields[3]) if len(fields) == 4 else fields
        return query_id, doc_id, int(label)
    except ValueError:
        shown = line.strip()[:80]
        raise UserError(f"{place}: expected `query doc label` or `query 0 doc label`, a whole number last, got {shown!r}") from None
