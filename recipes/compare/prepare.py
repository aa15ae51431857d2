"""A small collection out of a large one: fewer questions, and as many passages as can be searched again and again.

    python recipes/compare/prepare.py FOLDER OUT train=128 dev=200 test=500 passages=4000

FOLDER is in BEIR form (corpus.jsonl, queries.jsonl, qrels/*.tsv). Questions of a split, and passages besides the labelled ones, are the
first by a hash of their ids: the same choice everywhere. Larger sizes of questions and passages alike hold the smaller ones.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from data.digests import hash64


def main(source: Path, target: Path, sizes: dict[str, int]) -> None:
    """Write OUT, splits that have no size left out."""
    (target / "qrels").mkdir(parents=True, exist_ok=True)
    queries, labelled = set[str](), set[str]()
    for path in sorted((source / "qrels").glob("*.tsv")):
        if path.stem not in sizes:
            continue
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        names = sorted({line.split("\t")[0] for line in lines}, key=lambda name: (hash64("query", name), name))
        chosen = set(names[: sizes[path.stem]])
        kept = [line for line in lines if line.split("\t")[0] in chosen]
        queries |= chosen
        labelled |= {line.split("\t")[1] for line in kept}
        (target / "qrels" / path.name).write_text("\n".join([head, *kept]) + "\n", encoding="utf-8")
    corpus = _lines(source / "corpus.jsonl")
    others = sorted(corpus.keys() - labelled, key=lambda name: (hash64("passage", name), name))
    passages = labelled | set(others[: max(0, sizes["passages"] - len(labelled))])
    for name, lines, chosen in (("corpus", corpus, passages), ("queries", _lines(source / "queries.jsonl"), queries)):
        kept = [line for key, line in lines.items() if key in chosen]
        (target / f"{name}.jsonl").write_text("".join(kept), encoding="utf-8")
        print(f"{len(kept):,} of {len(lines):,} lines of {name} in {target}")


def _lines(path: Path) -> dict[str, str]:
    with open(path, encoding="utf-8") as file:
        return {json.loads(line)["_id"]: line for line in file}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), {name: int(size) for name, size in (word.split("=") for word in sys.argv[3:])})
