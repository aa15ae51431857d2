"""Mining hard negatives end to end, beside sentence-transformers: seconds, peak memory, and whether the right passages are found.

    python benchmarks/mining.py STUDENT COLLECTION [--queries 2000] [--passages N] [--rounds 1] [--threads N]

STUDENT is a sentence-transformers folder, COLLECTION a folder in BEIR form. Both sides read the collection from its files, embed all
passages and the training questions cut at the checkpoint's own length, and take 10 negatives of each question's top 100 without its
positives. Ours is `prep run stage=hard_negatives` with all that it needs, into an empty store, by cosine as the peer, which is
`mine_hard_negatives` with faiss. Each round of each side is a process of its own, timed with its imports; they take turns.
Then our top is compared with exact search over the fp32 vectors of the peer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from support.ceiling import ceilings, print_ceilings
from support.sides import middle, report, run_again

from pipeline.executors.resources import usable_cpus

NEGATIVES = 10


def write_collection(source: Path, out: Path, *, queries: int, passages: int) -> None:
    """The first passages and the first training questions whose positives are among them, as a collection of its own."""
    out.mkdir(parents=True)
    (out / "qrels").mkdir()
    kept: set[str] = set()
    with open(source / "corpus.jsonl", encoding="utf-8") as file, open(out / "corpus.jsonl", "w", encoding="utf-8") as target:
        for line in itertools.islice(file, passages or None):
            kept.add(json.loads(line)["_id"])
            target.write(line)
    chosen: dict[str, None] = {}  # in the order of the file
    with open(source / "qrels" / "train.tsv", encoding="utf-8") as file, open(out / "qrels" / "train.tsv", "w", encoding="utf-8") as target:
        target.write(next(file))
        for line in file:
            query_id, doc_id, _ = line.split("\t")
            if doc_id in kept and (query_id in chosen or len(chosen) < queries):
                chosen[query_id] = None
                target.write(line)
    with open(source / "queries.jsonl", encoding="utf-8") as file, open(out / "queries.jsonl", "w", encoding="utf-8") as target:
        target.writelines(line for line in file if json.loads(line)["_id"] in chosen)


def read_collection(folder: Path) -> tuple[dict[str, str], dict[str, str], list[tuple[str, str]]]:
    """Passages, queries, and (query_id, doc_id) of the positives."""
    texts = []
    for name in ("corpus", "queries"):
        with open(folder / f"{name}.jsonl", encoding="utf-8") as file:
            texts.append({record["_id"]: " ".join(filter(None, (record.get("title"), record["text"]))) for record in map(json.loads, file)})
    with open(folder / "qrels" / "train.tsv", encoding="utf-8") as file:
        labels = [(fields[0], fields[1]) for fields in (line.split("\t") for line in itertools.islice(file, 1, None))]
    return texts[0], texts[1], labels


def ours(arguments: argparse.Namespace, collection: Path, work: Path) -> None:
    """`prep run` in this process, into an empty store; then (not timed) the top passages are written down."""
    started = time.perf_counter()  # before the imports, of which ours come when a stage wants them
    from data.config.settings import Experiment
    from pipeline.plan import Planner, table_named
    from pipeline.run import run

    settings = {
        "store": str(work / "store"),
        "ingest": {"path": str(collection)},
        "student": {"model": str(arguments.student), "normalize": True, "query_tokens": None, "passage_tokens": None},
        "teacher": {"model": str(arguments.student)},
        "embed": {"precision": arguments.precision},
        "hard_negatives": {"depth": arguments.top, "range_max": arguments.top, "num_negatives": NEGATIVES},
        "runner": {"kind": "local", "threads": arguments.threads},
    }
    experiment = Experiment.model_validate(settings)
    for stage in ("ingest", "embed", "hard_negatives"):
        run(experiment, stage=stage, say=lambda line: print(line, file=sys.stderr, flush=True))
    report(started)
    pools = Planner(experiment).plan(table_named(experiment, "pools.ranked")).stored
    ranked = {row["query_id"]: row["ranked_ids"] for group in pools.row_groups() for row in group.to_pylist()}
    (work / "top.json").write_text(json.dumps(ranked))


def peer(arguments: argparse.Namespace, collection: Path, work: Path) -> None:
    """sentence-transformers, with its defaults but for faiss, the range and the number of negatives (and its vectors kept, to compare)."""
    started = time.perf_counter()
    import faiss
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    if not faiss.get_num_gpus() and hasattr(faiss, "GpuMultipleClonerOptions"):
        del faiss.GpuMultipleClonerOptions  # with faiss-gpu and no GPU the peer would crash; without this name it searches on the CPU
    torch.set_num_threads(arguments.threads)
    passages, queries, labels = read_collection(collection)
    pairs = Dataset.from_dict({"question": [queries[query] for query, _ in labels], "answer": [passages[passage] for _, passage in labels]})
    mine_hard_negatives(
        pairs, SentenceTransformer(str(arguments.student), device="cpu"), corpus=list(passages.values()), range_max=arguments.top,
        num_negatives=NEGATIVES, sampling_strategy="random", output_format="n-tuple", use_faiss=True, verbose=False,
        cache_folder=str(work / "cache"),
    )  # fmt: skip
    report(started)


def overlap(collection: Path, ours: Path, peer: Path, top: int) -> float:
    """Share that was found of the exact top: products of the peer's own fp32 vectors, without positives and their duplicates."""
    passages, queries, labels = read_collection(collection)
    found = json.loads((ours / "top.json").read_text())
    positives: dict[str, set[str]] = {}
    for query, passage in labels:
        positives.setdefault(queries[query], set()).add(passages[passage])
    texts = list(dict.fromkeys(passages.values()))  # the order in which the peer embeds
    (query_file,), (corpus_file,) = peer.glob("cache/query_*.npy"), peer.glob("cache/corpus_*.npy")
    scores = np.load(query_file) @ np.load(corpus_file).T
    asked = {text: row for row, text in enumerate(dict.fromkeys(queries[query] for query, _ in labels))}
    shares = []
    for query, doc_ids in found.items():
        order = np.argsort(-scores[asked[queries[query]]], kind="stable")
        exact = set(itertools.islice((texts[row] for row in order if texts[row] not in positives[queries[query]]), top))
        shares.append(len(exact & {passages[doc_id] for doc_id in doc_ids}) / len(exact))
    return float(np.mean(shares))


def main() -> None:
    """Take turns, then print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--passages", type=int, default=0, help="0 takes all")
    parser.add_argument("--top", type=int, default=100, help="ranks that negatives are drawn from")
    parser.add_argument("--precision", default="auto", help="of our vectors")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="of each side")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        {"ours": ours, "peer": peer}[arguments.side](arguments, arguments.work.parent / "collection", arguments.work)
        return

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_collection(arguments.collection, root / "collection", queries=arguments.queries, passages=arguments.passages)
        rounds: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
        for number in range(arguments.rounds):
            for side, done in rounds.items():
                work = root / f"{side}-{number}"
                work.mkdir()
                done.append(run_again("--side", side, "--work", work))
                print(f"{side}: {done[-1]['seconds']:.1f} s, {done[-1]['peak']:.2f} GB", file=sys.stderr, flush=True)
        share = overlap(root / "collection", root / "ours-0", root / "peer-0", arguments.top)
    seconds, peak = middle(rounds, "seconds"), middle(rounds, "peak")
    for side in rounds:
        print(f"{side:5} {seconds[side]:8.1f} s {peak[side]:6.2f} GB")
    print(f"overlap of the top {arguments.top} with exact fp32 search: {share:.5f}")
    figures = {
        "name": "mining", "ours": round(seconds["ours"], 2), "peer": round(seconds["peer"], 2),
        "ratio": round(seconds["peer"] / seconds["ours"], 3), "unit": "seconds", "memory_ours_gb": round(peak["ours"], 3),
        "memory_peer_gb": round(peak["peer"], 3), "memory_ratio": round(peak["ours"] / peak["peer"], 3), "overlap": round(share, 5),
        **print_ceilings(ceilings(arguments.student, threads=arguments.threads)),
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
