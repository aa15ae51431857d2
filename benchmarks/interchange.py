"""Pairs/s and peak memory of `prep import` on one core, side by side with `datasets`: `load_dataset`, then `map` with the same hashing.

    python benchmarks/interchange.py [--few 200000] [--many 2000000] [--rounds 3] [--format parquet] [--export config=FILE]

The lists are made up: a query, its positive and 19 negatives a row, passages of 300 to 500 characters of which each is in five lists, and a
score for each pair, as sentence-transformers' `mine_hard_negatives` writes them. `prep import` makes a collection, a run and stored logits
of them. The peer reads the same file and hashes the same, row by row, as `map` does unless told otherwise: the key of each pair and the id
of each text. It writes these beside the texts, keeps each text as often as it stands there, and joins no lists. `batched` is the same in
batches of 1,000 rows. `files` goes on from there to the files that the import makes, with everything in memory. `batched_ratio` and
`files_ratio` are to these. Each side and size has a process of its own on one core; sides take turns at the smaller size.

Rates are of processor time, user and system, without imports: other work on the machine is no part of it. The ratio is of those at the
smaller size; `memory_ratio` is the import's peak memory at the larger size over that at the smaller one.
With `--export` a finished store's lists are exported for sentence-transformers, too, and its candidates/s are told.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

NEGATIVES = 19
CANDIDATES = NEGATIVES + 1
LISTS_OF_A_PASSAGE = 5
ROWS_AT_ONCE = 1000
ONE_CORE = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def write_lists(path: Path, pairs: int) -> None:
    """Rows of a query, a positive, negatives and scores, as Parquet or JSON lines."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance = np.random.default_rng(0)
    words = chance.integers(97, 123, size=(1 << 20, 6), dtype=np.uint8)
    words[:, -1] = ord(" ")
    stream = words.tobytes().decode()
    passages = max(CANDIDATES, pairs // LISTS_OF_A_PASSAGE)
    begins, sizes = chance.integers(0, len(stream) - 600, passages), chance.integers(300, 501, passages)
    names = ["query", "positive", *(f"negative_{number}" for number in range(1, CANDIDATES))]
    schema = pa.schema([*((name, pa.string()) for name in names), ("scores", pa.list_(pa.float64()))])
    with pq.ParquetWriter(path, schema) if path.suffix == ".parquet" else open(path, "w") as file:
        for first in range(0, pairs // CANDIDATES, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, pairs // CANDIDATES - first)
            drawn = (
                chance.integers(0, passages, count) + np.arange(CANDIDATES)[:, None] * (passages // CANDIDATES)
            ) % passages  # all differ
            texts = [[stream[begins[one] : begins[one] + sizes[one]] for one in row] for row in drawn.tolist()]
            queries = [f"what is {number}, {stream[number % 10**6 : number % 10**6 + 40]}?" for number in range(first, first + count)]
            scores = chance.normal(0, 4, (count, CANDIDATES)).tolist()
            if isinstance(file, pq.ParquetWriter):
                file.write_table(pa.table([queries, *texts, scores], schema=schema))
            else:
                rows = zip(queries, *texts, scores, strict=True)
                file.writelines(json.dumps(dict(zip(schema.names, row, strict=True))) + "\n" for row in rows)


def ours(lists: Path, folder: Path) -> None:
    """The import."""
    from pipeline.interchange.importing import run_import

    words = [f"path={lists}", "format=sentence-transformers", f"out={folder / 'out'}", f"store={folder / 'store'}", "teacher=made-up"]
    run_import(words, say=lambda line: print(line, file=sys.stderr))


def loaded(lists: Path, folder: Path) -> Any:
    """The lists as `datasets` opens them."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    kind = "parquet" if lists.suffix == ".parquet" else "json"
    return load_dataset(kind, data_files=str(lists), split="train", cache_dir=str(folder / "cache"))


def text_id(text: str) -> str:
    """24 hex digits of a text's BLAKE2b."""
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def peer(lists: Path, folder: Path) -> None:
    """The same hashing with `datasets`; `map` writes its output as Arrow."""
    from data.digests import pair_key

    def hashed(row: dict[str, Any]) -> dict[str, Any]:
        query = row["query"].strip()
        texts = [row[name].strip() for name in ("positive", *(f"negative_{number}" for number in range(1, CANDIDATES)))]
        return {
            "query_id": text_id(query),
            "doc_ids": [text_id(text) for text in texts],
            "keys": [pair_key(query, text) for text in texts],
        }

    loaded(lists, folder).map(hashed, cache_file_name=str(folder / "hashed.arrow"))


def batched(lists: Path, folder: Path) -> Any:
    """The same in batches. Returns the data set."""
    from data.digests import pair_key

    def hashed(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns = [rows["positive"], *(rows[f"negative_{number}"] for number in range(1, CANDIDATES))]
        candidates = list(zip(*columns, strict=True))
        return {
            "query_id": [text_id(query.strip()) for query in rows["query"]],
            "doc_ids": [[text_id(text.strip()) for text in texts] for texts in candidates],
            "keys": [
                [pair_key(query.strip(), text.strip()) for text in texts] for query, texts in zip(rows["query"], candidates, strict=True)
            ],
        }

    return loaded(lists, folder).map(hashed, batched=True, batch_size=ROWS_AT_ONCE, cache_file_name=str(folder / "hashed.arrow"))


def files(lists: Path, folder: Path) -> None:
    """The same, and then the files that the import writes: texts once, a run, judgements, and keys with their scores in order."""
    import numpy as np

    seen: set[str] = set()
    keys: list[bytes] = []
    scores: list[float] = []
    names = ("corpus.jsonl", "queries.jsonl", "lists.trec", "train.tsv")
    corpus, queries, run, qrels = ((folder / name).open("w") for name in names)
    texts = ["positive", *(f"negative_{number}" for number in range(1, CANDIDATES))]
    for rows in batched(lists, folder).iter(ROWS_AT_ONCE):
        for query_id, query, doc_ids, *passages in zip(
            rows["query_id"], rows["query"], rows["doc_ids"], *(rows[n] for n in texts), strict=True
        ):
            queries.write(json.dumps({"_id": query_id, "text": query.strip()}) + "\n")
            for doc_id, text in zip(doc_ids, passages, strict=True):
                if doc_id not in seen:
                    seen.add(doc_id)
                    corpus.write(json.dumps({"_id": doc_id, "text": text.strip()}) + "\n")
            qrels.write(f"{query_id}\t{doc_ids[0]}\t1\n")
            run.writelines(f"{query_id} Q0 {doc_id} {rank} {CANDIDATES - rank} own\n" for rank, doc_id in enumerate(doc_ids[1:], 1))
        keys += [key for of_list in rows["keys"] for key in of_list]
        scores += [score for of_list in rows["scores"] for score in of_list]
    order = np.argsort(np.array(keys, dtype="S16"))
    np.save(folder / "keys.npy", np.array(keys, dtype="S16")[order])
    np.save(folder / "scores.npy", np.array(scores, np.float32)[order])
    for file in (corpus, queries, run, qrels):
        file.close()


def measure(side: Callable[[Path, Path], Any], lists: Path, folder: Path) -> None:
    """Seconds of the processor and peak memory in GB, as the last line."""
    import datasets  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow as pa

    import data.formats.scored_lists.readers.formats  # noqa: F401
    import pipeline.interchange.importing  # noqa: F401

    pa.set_cpu_count(1)
    started = time.process_time()
    side(lists, folder)
    seconds = time.process_time() - started
    print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}), flush=True)


SIDES = {"ours": ours, "peer": peer, "batched": batched, "files": files}


def run_side(side: str, lists: Path, folder: Path) -> dict[str, float]:
    """One side in a process of its own, on one core."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    core = str(max(os.sched_getaffinity(0)))
    command = ["taskset", "-c", core, sys.executable, *sys.argv, f"--side={side}", f"--lists={lists}", f"--folder={folder}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **ONE_CORE})
    shutil.rmtree(folder)
    return json.loads(done.stdout.splitlines()[-1])


def run_export(config: str, folder: Path) -> dict[str, float]:
    """`prep export` of a finished store for sentence-transformers: candidates/s, on one core, with the start of the process."""
    out = folder / "exported"
    words = ["export", config, "format=sentence-transformers", f"out={out}"]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pipeline", *words], check=True, stdout=subprocess.DEVNULL, env={**os.environ, **ONE_CORE})
    seconds = time.perf_counter() - started
    import pyarrow.parquet as pq

    candidates = 0
    for path in out.rglob("*.parquet"):
        file = pq.ParquetFile(path)
        candidates += file.metadata.num_rows * sum(name == "positive" or name.startswith("negative_") for name in file.schema_arrow.names)
    return {"export_candidates": candidates, "export_per_second": round(candidates / seconds)}


def main() -> None:
    """Both sides in turn, then the larger import, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=200_000)
    parser.add_argument("--many", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--format", choices=["parquet", "jsonl"], default="parquet")
    parser.add_argument("--export", metavar="config=FILE")
    for hidden in ("--side", "--lists", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measure(SIDES[arguments.side], Path(arguments.lists), Path(arguments.folder))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        few, many = (folder / f"{name}.{arguments.format}" for name in ("few", "many"))
        write_lists(few, arguments.few)
        done: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(arguments.rounds):
            for side in SIDES:
                done[side].append(run_side(side, few, folder / "work"))
        rates = {side: arguments.few / median(one["seconds"] for one in of_side) for side, of_side in done.items()}
        write_lists(many, arguments.many)
        large = run_side("ours", many, folder / "work")
        exported = run_export(arguments.export, folder) if arguments.export else {}
    peaks = {side: 1e3 * median(one["peak"] for one in of_side) for side, of_side in done.items()}
    for side, rate in rates.items():
        print(f"{side}: {rate:,.0f} pairs/s, peak {peaks[side]:.0f} MB, at {arguments.few:,} pairs")
    many_rate, many_peak = arguments.many / large["seconds"], 1e3 * large["peak"]
    print(f"ours: {many_rate:,.0f} pairs/s, peak {many_peak:.0f} MB, at {arguments.many:,} pairs")
    figures: dict[str, float] = {
        "ours": round(rates["ours"]),
        "peer": round(rates["peer"]),
        "ratio": round(rates["ours"] / rates["peer"], 2),
        **{f"{side}_ratio": round(rates["ours"] / rates[side], 2) for side in ("batched", "files")},
    }
    memory = {"memory_ratio": round(many_peak / peaks["ours"], 3), "peak_few": round(peaks["ours"]), "peak_many": round(many_peak)}
    print(json.dumps({"name": "interchange", **figures, "unit": "pairs/s", **memory, "many": round(many_rate), **exported}))


if __name__ == "__main__":
    main()
