"""A collection as the study reads it: some questions of each split, and all passages or a part of them.

Questions, and passages besides the labelled ones, are the first by a hash of their ids: the same choice everywhere. Larger sizes hold the
smaller ones. Dev questions come out of the training questions where a collection has no dev split: more of them are others trained on.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from data.digests import file_digest, hash64, json_digest
from data.errors import UserError
from data.tables.shards import atomic_write

_NOTE = "prepared.json"


def prepare(source: Path, name: str, sizes: dict[str, int | None], target: Path) -> str:
    """Write the collection into `target` unless it is there. Returns the digest of its files.

    Args:
        source: folder of collections; `name` or `name`.tar.gz in it is in BEIR form.
        sizes: questions of `train` and `dev`, and `passages`; None takes all. All test questions are taken.

    Raises UserError: no such collection.
    """
    note = target / _NOTE
    if note.is_file() and (known := json.loads(note.read_text(encoding="utf-8")))["sizes"] == sizes:
        return str(known["digest"])
    shutil.rmtree(target, ignore_errors=True)
    unpacked = target.with_name(f"{target.name}.unpacked")
    try:
        written = _write(_folder(source, name, unpacked), target, sizes)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    digest = json_digest({path.relative_to(target).as_posix(): file_digest(path) for path in sorted(target.rglob("*")) if path.is_file()})
    atomic_write(note, json.dumps({"sizes": sizes, "digest": digest, "written": written}).encode())
    return digest


def _folder(source: Path, name: str, unpacked: Path) -> Path:
    if (source / name / "corpus.jsonl").is_file():
        return source / name
    archive = source / f"{name}.tar.gz"
    if not archive.is_file():
        raise UserError(f"there is neither {source / name}/corpus.jsonl nor {archive}: give the folder that holds the collections")
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(archive) as packed:
        packed.extractall(unpacked, filter="data")
    found = list(unpacked.rglob("corpus.jsonl"))
    if len(found) != 1:
        raise UserError(f"{archive} holds {len(found)} files named corpus.jsonl, one is expected")
    return found[0].parent


def _write(source: Path, target: Path, sizes: dict[str, int | None]) -> dict[str, int]:
    """The counts of what was written."""
    splits = {path.stem: _judged(path) for path in sorted((source / "qrels").glob("*.tsv")) if path.stem in ("train", "dev", "test")}
    chosen = {split: _first(splits[split], None if split == "test" else sizes[split]) for split in splits}
    if "dev" not in splits and "train" in splits:
        both = _first(splits["train"], None)
        count = sizes["dev"] or 0
        chosen |= {"dev": both[:count], "train": both[count:][: sizes["train"]]}
        splits["dev"] = splits["train"]
    (target / "qrels").mkdir(parents=True)
    labelled = set[str]()
    for split, names in chosen.items():
        kept = [line for name in names for line in splits[split][name]]
        labelled |= {line.split("\t")[1] for line in kept}
        (target / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *kept]) + "\n", encoding="utf-8")
    queries = {name for names in chosen.values() for name in names}
    counts = {"queries": _copy(source / "queries.jsonl", target, queries)}
    if sizes["passages"] is None:
        return {**counts, "corpus": _copy(source / "corpus.jsonl", target, None)}
    with open(source / "corpus.jsonl", encoding="utf-8") as file:
        others = {json.loads(line)["_id"] for line in file} - labelled
    ordered = sorted(others, key=lambda name: (hash64("passage", name), name))
    kept_passages = labelled | set(ordered[: max(0, sizes["passages"] - len(labelled))])
    return {**counts, "corpus": _copy(source / "corpus.jsonl", target, kept_passages)}


def _judged(path: Path) -> dict[str, list[str]]:
    """Lines of the labels by question."""
    lines: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        lines.setdefault(line.split("\t")[0], []).append(line)
    return lines


def _first(names: Any, count: int | None) -> list[str]:
    return sorted(names, key=lambda name: (hash64("query", name), name))[:count]


def _copy(path: Path, target: Path, kept: set[str] | None) -> int:
    """Lines of the ids in `kept`; None keeps all."""
    count = 0
    with open(path, encoding="utf-8") as file, open(target / path.name, "w", encoding="utf-8") as out:
        for line in file:
            if kept is None or json.loads(line)["_id"] in kept:
                out.write(line)
                count += 1
    return count
