"""A small collection of made-up texts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from support.models import SYLLABLES


def _text(chance: random.Random, words: int) -> str:
    """Words of one to three syllables: as many WordPieces each."""
    return " ".join("".join(chance.choices(SYLLABLES, k=chance.choice((1, 1, 2, 3)))) for _ in range(words))


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder: 60 passages; 24 queries, 14 of them train, 4 dev, 6 test. `twin` has the text of `d0`, the positive of `train0`;
    `train1` has two positives."""
    return write_collection(tmp_path_factory.mktemp("collection"))


def write_collection(folder: Path, *, passages: int = 60, train: int = 14) -> Path:
    """The collection of the fixture, or a larger one of the same kind."""
    chance = random.Random(0)
    texts = {f"d{number}": _text(chance, chance.randint(8, 24)) for number in range(passages - 1)}
    texts["twin"] = texts["d0"]
    split_of = [("train", train), ("dev", 4), ("test", 6)]
    labels = [(split, f"{split}{number}") for split, count in split_of for number in range(count)]
    queries: dict[str, str] = {}
    qrels: dict[str, list[str]] = {split: ["query-id\tcorpus-id\tscore"] for split, _ in split_of}
    for place, (split, query_id) in enumerate(labels):
        words = texts[f"d{place}"].split()
        queries[query_id] = " ".join([*chance.sample(words, 3), chance.choice(SYLLABLES)])
        qrels[split].append(f"{query_id}\td{place}\t1")
    qrels["train"].append("train1\td40\t1")
    (folder / "qrels").mkdir(parents=True)
    for name, lines in (("corpus", texts), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in lines.items()))
    for split, judgements in qrels.items():
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(judgements) + "\n")
    return folder
