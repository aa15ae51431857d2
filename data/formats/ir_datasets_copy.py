"""A data set of ir_datasets as a BEIR folder: `irds:msmarco-passage/train`, or several ids of one corpus, joined by `+`.

    CACHE/inputs/irds/<first id>/<digest of the ids and of ir_datasets' version>/corpus.jsonl queries.jsonl qrels/<split>.jsonl

ir_datasets downloads, unpacks and parses; its rows are written once, whole or not at all, and read like any collection. So what enters a
fingerprint is their content, whatever machine they were fetched on. A split is what an id has after that of its corpus: `train`,
`dev.small`; of an id that is the corpus itself its last part.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data.digests import json_digest, text_hash
from data.errors import RunFailed, UserError
from data.files.leftovers import remove_leftovers, temporary_name
from data.remote.folders import cache_folder

_SCHEME = "irds:"
_SHOWN = 12


def is_ir_datasets(path: str | Path) -> bool:
    """Whether a path is `irds:ID`."""
    return str(path).startswith(_SCHEME)


def local_copy(path: str) -> Path:
    """The BEIR folder of `irds:ID+ID`, which is made where it is not there.

    Raises UserError: the package is missing, no such id, an id without passages, queries or judgements, ids of several corpora; RunFailed:
    ir_datasets could not read it.
    """
    ids = [part.strip().removeprefix(_SCHEME).strip("/") for part in path.removeprefix(_SCHEME).replace(",", "+").split("+")]
    if not all(ids) or len(set(ids)) < len(ids):
        raise UserError(f"{path}: expected irds:ID, or different ids joined by +, as irds:beir/scifact/train+beir/scifact/test")
    package = _package(path)
    place = cache_folder() / "inputs" / "irds" / urllib.parse.quote(ids[0], safe="")
    folder = place / json_digest([ids, package.__version__])
    if folder.is_dir():
        return folder
    data_sets = {name: _opened(package, name) for name in ids}
    corpora = {name: package.docs_parent_id(name) for name in ids}
    if len(set(corpora.values())) > 1:
        found = ", ".join(f"{name} of {corpus}" for name, corpus in corpora.items())
        raise UserError(f"{path}: these are data sets of several corpora ({found}); give those of one")
    splits = {_split(name, corpora[name]): data_set for name, data_set in data_sets.items()}
    place.mkdir(parents=True, exist_ok=True)
    remove_leftovers(place)
    print(f"copying {', '.join(ids)} from ir_datasets to {folder}", file=sys.stderr, flush=True)
    _write_whole(folder, splits, path=path)
    return folder


def _package(path: str) -> Any:
    try:
        package = importlib.import_module("ir_datasets")
    except ImportError as error:
        remedy = "pip install -c constraints.txt -e '.[irds]'"
        raise UserError(f"{path} needs the package ir_datasets, which is not installed ({error}): {remedy}") from error
    return package


def _opened(package: Any, name: str) -> Any:
    try:
        data_set = package.load(name)
    except KeyError:
        root = name.split("/")[0]
        near = [one for one in package.registry if one.split("/")[0] == root][:_SHOWN]
        known = f"it has {', '.join(near)}" if near else "https://ir-datasets.com lists what it has"
        raise UserError(f"irds:{name}: ir_datasets has no data set of this id; {known}") from None
    missing = [what for what in ("docs", "queries", "qrels") if not getattr(data_set, f"has_{what}")()]
    if missing:
        whole = [one for one in package.registry if one.startswith(f"{name}/") and _is_whole(package, one)][:_SHOWN]
        remedy = f"those that have all are {', '.join(whole)}" if whole else "give an id that has docs, queries and qrels"
        raise UserError(f"irds:{name} has no {' and no '.join(missing)}; {remedy}")
    return data_set


def _is_whole(package: Any, name: str) -> bool:
    data_set = package.load(name)
    return data_set.has_docs() and data_set.has_queries() and data_set.has_qrels()


def _split(name: str, corpus: str) -> str:
    below = name.removeprefix(corpus).strip("/")
    return below.replace("/", ".") or name.split("/")[-1]


def _write_whole(folder: Path, splits: dict[str, Any], *, path: str) -> None:
    temporary = temporary_name(folder)
    try:
        (temporary / "qrels").mkdir(parents=True)
        first = next(iter(splits.values()))
        _write_lines(temporary / "corpus.jsonl", _passages(first.docs_iter()))
        _write_lines(temporary / "queries.jsonl", _queries(splits))
        for split, data_set in splits.items():
            _write_lines(temporary / "qrels" / f"{split}.jsonl", _judgements(data_set.qrels_iter()))
        try:
            os.replace(temporary, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same rows
                raise
    except UserError:
        raise
    except Exception as error:  # ir_datasets raises what its downloads and parsers raise
        said = " ".join(str(error).split())[:300]
        raise RunFailed(f"{path}: ir_datasets could not read it ({type(error).__name__}: {said})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with open(path, "w", encoding="ascii") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _passages(docs: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for doc in docs:
        if hasattr(doc, "title") and hasattr(doc, "text"):
            yield {"_id": doc.doc_id, "title": doc.title, "text": doc.text}
        else:
            yield {"_id": doc.doc_id, "text": _text(doc)}


def _queries(splits: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Queries of all splits; one that stands in several is written once."""
    seen: dict[str, int] = {}
    for split, data_set in splits.items():
        within: set[str] = set()
        for query in data_set.queries_iter():
            text = _text(query)
            if query.query_id not in within and (known := seen.get(query.query_id)) is not None:
                if known != text_hash(text):
                    raise UserError(f"query {query.query_id} of split {split} has another text in another split: read them one by one")
                continue
            within.add(query.query_id)
            seen[query.query_id] = text_hash(text)
            yield {"_id": query.query_id, "text": text}


def _judgements(qrels: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for qrel in qrels:
        yield {"query-id": qrel.query_id, "corpus-id": qrel.doc_id, "score": qrel.relevance}


def _text(record: Any) -> str:
    """What ir_datasets calls the text of a passage or a query."""
    return str(record.default_text() if hasattr(record, "default_text") else record.text)
