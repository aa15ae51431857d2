"""What each stage reads, and how long it takes, over a large corpus with tiny models: two versions of the code side by side.

    python benchmarks/scale.py [--passages 1000000] [--queries 20000] [--query-shards 64] [--before COMMIT] [--compare pools]

A made-up collection (passages of about 100 bytes, words by Zipf's law), models of one layer and 64 dimensions with random weights, two
workers under Ray. Stages from `--compare` on are run by both versions, those before it once, by this one; `--before` is checked out into a
folder of its own. The shards of both are compared byte by byte.

`read` are bytes that the tasks of a stage read by read() and pread(), but for what they wrote themselves and read again to digest it,
which is `digested`; `mapped` are the sizes of files that they map into memory; `read_by_command` is the command's own reading, of Ray and
of modules for the most part. Seconds are those of the whole command, with the start of Ray; `cpu_seconds` are processor time of the
command and, with `--runner local`, of all its work. `ours` and `peer` are bytes read in the stage `pools`, after and before; `of_vectors`
is ours over the bytes of the corpus's vectors; `texts` are the bytes of the corpus's table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from support.versions import versions

ROOT = Path(__file__).parents[1]
STAGES = ("ingest", "embed", "pools", "hard_negatives", "dark_examples", "teacher_scores")
WORDS, SIZE = 20_000, 64
_LINES = 10_000  # written at a time


def texts(count: int, words: int, *, seed: int) -> Iterator[list[str]]:
    """Texts of about so many words, some thousands at a time."""
    chance = np.random.default_rng(seed)
    names = np.array([f"w{number}" for number in range(WORDS)])
    for start in range(0, count, _LINES):
        size = min(_LINES, count - start)
        drawn = names[np.minimum(chance.zipf(1.15, (size, words)), WORDS) - 1]
        yield [" ".join(one[: words - skipped]) for one, skipped in zip(drawn, chance.integers(0, words // 3, size), strict=True)]


def write_collection(folder: Path, passages: int, queries: int, *, words: int = 26) -> None:
    """A BEIR collection of passages of about so many words; each query has one positive."""
    (folder / "qrels").mkdir(parents=True)
    for name, count, length, letter in (("corpus", passages, words, "p"), ("queries", queries, 9, "q")):
        number = 0
        with open(folder / f"{name}.jsonl", "w") as file:
            for part in texts(count, length, seed=len(letter) + count):
                for text in part:
                    file.write(json.dumps({"_id": f"{letter}{number}", "text": f"{text} w{number % WORDS}"}) + "\n")
                    number += 1
    positives = np.random.default_rng(3).integers(0, passages, queries)
    lines = [f"q{number}\tp{row}\t1\n" for number, row in enumerate(positives.tolist())]
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))


def write_models(folder: Path) -> None:
    """A student and a teacher of one layer."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *(f"w{number}" for number in range(WORDS))]
    sizes = {
        "vocab_size": len(vocabulary), "hidden_size": SIZE, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": SIZE,
        "max_position_embeddings": 128, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    BertModel(BertConfig(**sizes), add_pooling_layer=False).save_pretrained(folder / "student")
    BertForSequenceClassification(BertConfig(**sizes, num_labels=1)).save_pretrained(folder / "teacher")
    for name in ("student", "teacher"):
        (folder / name / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
        BertTokenizerFast(vocab=str(folder / name / "vocab.txt")).save_pretrained(folder / name)


def write_config(folder: Path, store: Path, arguments: argparse.Namespace) -> Path:
    """An experiment over the collection and the models of a folder."""
    import yaml

    content = {
        "store": str(store),
        "ingest": {"path": str(folder / "collection"), "corpus_shards": arguments.corpus_shards, "query_shards": arguments.query_shards},
        "student": {"model": str(folder / "student"), "query_tokens": 16, "passage_tokens": 48, "pooling": "mean"},
        "teacher": {"model": str(folder / "teacher"), "precision": "fp32", "max_tokens": 64},
        "embed": {"precision": "fp32"},
        "search": {"memory_gb": arguments.memory},
        "hard_negatives": {"num_negatives": 5},
        "dark_examples": {"reinforced": True},
        "runner": {"kind": "ray", "workers": 2, "threads": 1} if arguments.runner == "ray" else {"kind": "local", "threads": 1},
    }
    path = store.parent / f"{store.name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run_stage(code: Path, config: Path, stage: str, scratch: Path) -> dict[str, float]:
    """Run a stage with a version of the code; what it read, and seconds."""
    side = config.parent.name  # the configurations of both versions have the same name
    log = scratch / f"{side}-{stage}.log"
    paths = [str(code), str(ROOT / "benchmarks" / "support" / "counting")]
    environment = {**os.environ, "READ_LOG": str(log), "ADAM_REMOTE_CACHE": str(scratch / f"cache-{side}")}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    started, before = time.perf_counter(), _seconds_of_children()
    command = [sys.executable, "-m", "pipeline", "run", f"config={config}", f"stage={stage}"]
    done = subprocess.run(command, cwd=code, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    mine = [line for line in lines if line["label"].split(".")[0] == stage]
    figures = {name: sum(line[name] for line in mine) for name in ("read", "digested", "mapped")}
    workers = {line["process"]: line["anonymous"] for line in mine}
    figures["read_by_command"] = sum(line["read"] for line in lines if not line["label"])
    times = {"seconds": round(seconds, 1), "cpu_seconds": round(_seconds_of_children() - before, 1)}
    return {**figures, **times, "worker_anonymous": max(workers.values(), default=0)}


def _seconds_of_children() -> float:
    """Processor time of ended child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table_bytes(store: Path, pattern: str) -> dict[str, bytes]:
    """All shards of some tables by their names."""
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.glob(f"{pattern}/part-*.parquet"))}


def compare(arguments: argparse.Namespace, folder: Path, sides: dict[str, Path]) -> dict[str, dict[str, dict[str, float]]]:
    """Figures by side and stage."""
    write_collection(folder / "collection", arguments.passages, arguments.queries)
    write_models(folder)
    stages = STAGES[: STAGES.index(arguments.until) + 1]
    shared = stages[: stages.index(arguments.compare)]
    found: dict[str, dict[str, dict[str, float]]] = {"shared": {}, **{side: {} for side in sides}}
    first = write_config(folder, folder / "store", arguments)
    for stage in shared:
        found["shared"][stage] = run_stage(ROOT, first, stage, folder)
        print(f"{stage:<16} shared {found['shared'][stage]}", flush=True)
    configs = {}
    for side in sides:
        if side == "before" and shared:
            shutil.copytree(folder / "store", folder / side / "store", copy_function=os.link)
        configs[side] = first if side == "after" else write_config(folder, folder / side / "store", arguments)
    for stage in stages[len(shared) :]:
        for side, code in sides.items():
            found[side][stage] = run_stage(code, configs[side], stage, folder)
            print(f"{stage:<16} {side:<6} {found[side][stage]}", flush=True)
    return found


def main() -> None:
    """Both sides stage by stage, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--corpus-shards", type=int, default=256)
    parser.add_argument("--query-shards", type=int, default=64)
    parser.add_argument("--memory", type=float, default=4.0, help="search.memory_gb")
    parser.add_argument("--runner", choices=("ray", "local"), default="ray", help="two workers, or one in the command's process")
    parser.add_argument("--before", help="commit that the same stages are run with; none: only this code is run")
    parser.add_argument("--compare", choices=STAGES, default="ingest", help="first stage that both versions run")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="last stage")
    parser.add_argument("--folder", type=Path, help="an empty place on a fast disk; none: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with versions(arguments.before, folder) as sides:
            found = compare(arguments, folder, sides)
            vectors = sum(path.stat().st_size for path in (folder / "store").glob("embed/corpus-*/part-*.parquet"))
            corpus = sum(path.stat().st_size for path in (folder / "store").glob("ingest/corpus-*/part-*.parquet"))
            same = True
            if arguments.before:
                ours, theirs = (table_bytes(store, "*/*") for store in (folder / "store", folder / "before" / "store"))
                same = ours == theirs
    figures: dict[str, Any] = {"name": "scale", "unit": "bytes", "passages": arguments.passages, "query_shards": arguments.query_shards}
    after = (found["after"].get("pools") or found["shared"].get("pools") or {}).get("read", 0)
    before = found.get("before", {}).get("pools", {}).get("read", after)
    ratio = round(before / after, 2) if after else 0
    figures |= {
        "ours": after,
        "peer": before,
        "ratio": ratio,
        "vectors": vectors,
        "texts": corpus,
        "of_vectors": round(after / vectors, 3) if vectors else 0,
    }
    print(json.dumps({**figures, "same_bytes": same, "stages": found}))


if __name__ == "__main__":
    main()
