"""What the host does for each pair and each text while a model computes: scoring and embedding with the forward pass stubbed.

    python benchmarks/host_rates.py TEACHER STUDENT COLLECTION [--pairs 20800] [--texts 16384] [--rounds 5] [--before COMMIT]

TEACHER is a folder of torch weights or with an ONNX graph, STUDENT one of torch weights; COLLECTION is in BEIR form. Every training query
stands in front of its positive and 25 passages at random. The real stages `teacher_scores` and `embed` run in one process, on the paths of
a GPU and with a GPU's default batches; the model is a stub. `--before` is checked out into a folder of its own, and the sides take turns.

Of scoring, with the token ids of all texts known and with none known (`cold`): pairs/s of the whole stage, and its CPU time a pair of all
threads, without what the threads that call the tokenizer spend in it (`us`), and without reading and writing row groups (`held_us`). That
is an upper bound of the time for which Python's lock is held: copies of arrays and the file system count too. `cold_serial` is cold under
TOKENIZERS_PARALLELISM=false; cold itself may tokenise in threads that are not counted apart. Of embedding: CPU time a text in the thread
that feeds the device (`feeder_us`), and of all threads but the tokenizer's. Figures are medians over the rounds, in microseconds. `ours`
and `peer` are `held_us` a pair with known ids, after and before; `ratio` is before over after. On a busy machine rates depend on what else
runs; CPU times less so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
PER_QUERY = 26  # candidates: p+, m = 10 negatives, 10 mixed, 5 masked (ADAM, section 4.3)
MAX_TOKENS = 128  # of a pair; with it the demo's pairs have 95 on average
KNOWN = 1 << 40  # tokens whose texts are remembered: all
_SERIAL = {"TOKENIZERS_PARALLELISM": "false"}
CASES: dict[str, dict[str, str]] = {"known": {}, "cold": {}, "cold_serial": _SERIAL, "embed": _SERIAL}


class StubTeacher:
    """The shape of a cross-encoder without its arithmetic."""

    length_multiple = 8
    one_thread_each = False
    packs = True

    def __init__(self, batch_tokens: int) -> None:
        self.batch_tokens = batch_tokens
        self.on_device = stub_on_device

    def logits(self, ids: Any, mask: Any, segments: Any) -> Any:
        """[n, L] arrays to [n] numbers of each pair's first tokens."""
        return (ids[:, 1] % 1009).astype("float32")


def stub_on_device(pairs: Any) -> Any:
    """Batches put together as for a GPU, and not computed: code that has such a path calls no `logits`."""
    from retrieval.batches.on_device import OnDevice

    class Stub(OnDevice):
        def launch(self, batch: Any) -> Any:
            return lambda: (batch.ids[:, 1] % 1009).float().numpy()

    return Stub(None, pairs.ids, segments=pairs.segments, pad_id=0, device="cpu")  # type: ignore[arg-type]


class CountedTokenizer:
    """A tokenizer's backend that counts the CPU seconds inside its calls, of the threads that make them and of its own."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self.seconds = 0.0

    @staticmethod
    def around(tokenizer: Any) -> CountedTokenizer:
        """In place of the backend of a `retrieval.models.tokenizer.Tokenizer`."""
        tokenizer.backend = CountedTokenizer(tokenizer.backend)
        counted: CountedTokenizer = tokenizer.backend
        return counted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def encode_batch_fast(self, texts: Any, **options: Any) -> Any:
        """As the backend's own."""
        started = time.thread_time()
        encodings = self._backend.encode_batch_fast(texts, **options)
        with self._lock:
            self.seconds += time.thread_time() - started
        return encodings


def candidate_groups(collection: Path, pairs: int) -> Iterator[Any]:
    """Tables of 4,096 candidates: training queries, each with its positive and passages at random."""
    import pyarrow as pa

    from data.tables.schemas import CANDIDATES

    texts: dict[str, dict[str, str]] = {}
    for name in ("corpus", "queries"):
        with open(collection / f"{name}.jsonl", encoding="utf-8") as file:
            texts[name] = {record["_id"]: record["text"] for record in map(json.loads, file)}
    with open(collection / "qrels" / "train.tsv", encoding="utf-8") as file:
        positives = dict(line.split("\t")[:2] for line in itertools.islice(file, 1, None))
    chance = random.Random(0)
    doc_ids = sorted(texts["corpus"])
    rows = []
    for query_id, doc_id in itertools.islice(positives.items(), -(-pairs // PER_QUERY)):
        others = chance.sample(doc_ids, min(PER_QUERY - 1, len(doc_ids)))
        for place, candidate in enumerate([doc_id, *others]):
            rows.append((query_id, 0, place, int(place > 0), candidate, texts["queries"][query_id], texts["corpus"][candidate]))
    for start in range(0, min(pairs, len(rows)), 4096):
        columns = zip(*rows[start : min(start + 4096, pairs)], strict=True)
        yield pa.table([list(column) for column in columns], schema=CANDIDATES)


def text_groups(collection: Path, count: int) -> Iterator[Any]:
    """Tables of 4,096 passages."""
    import pyarrow as pa

    from data.digests import text_hash
    from data.tables.schemas import CORPUS

    with open(collection / "corpus.jsonl", encoding="utf-8") as file:
        records = [json.loads(line) for line in itertools.islice(file, count)]
    for start in range(0, len(records), 4096):
        part = records[start : start + 4096]
        texts = [record["text"] for record in part]
        yield pa.table([[record["_id"] for record in part], texts, [text_hash(text) for text in texts]], schema=CORPUS)


class CountedParquet:
    """CPU seconds of the threads that read and write row groups, in the calls that leave Python's lock to others."""

    def __init__(self) -> None:
        import pyarrow.parquet as pq

        self._lock = threading.Lock()
        self.seconds = 0.0
        for owner, name in ((pq.ParquetFile, "read_row_group"), (pq.ParquetWriter, "write_table")):
            setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, call: Any) -> Any:
        def counted(*given: Any, **options: Any) -> Any:
            started = time.thread_time()
            try:
                return call(*given, **options)
            finally:
                with self._lock:
                    self.seconds += time.thread_time() - started

        return counted


class Stages:
    """Both stages of the code that this process has, each run as often as asked, every time into an empty store."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        import torch
        from support.sides import write_table

        from data.config import settings
        from pipeline.stage import Stored, WorkerCache
        from retrieval.compute.batching import DEFAULT_BATCH_TOKENS
        from retrieval.teachers import cross_encoder

        torch.set_num_threads(1)  # a host that launches computes nothing itself
        self._given, self._folder = given, folder
        self._runs = itertools.count()
        tables = {
            "dark_examples": candidate_groups(given.collection, given.pairs),
            "ingest.corpus": text_groups(given.collection, given.texts),
        }
        self._inputs = {name: Stored(folder / name, write_table(folder / name, groups)) for name, groups in tables.items()}
        self._batch_tokens = DEFAULT_BATCH_TOKENS["cuda"]
        windows = getattr(settings, "WINDOW_PAIRS", None)  # None: of code with one default for all devices
        self._window = {"segment_pairs": windows["cuda"]} if windows else {}
        cross_encoder.load_cross_encoder = lambda *spec, **more: StubTeacher(self._batch_tokens)  # type: ignore[assignment]
        self._kept = {case: WorkerCache() for case in CASES}  # a worker's, which keeps its models from shard to shard
        self._counted: dict[str, CountedTokenizer] = {}
        self._parquet = CountedParquet()

    def run(self, case: str) -> dict[str, float]:
        """Rows a second; CPU microseconds a row of all threads but the tokenizer's, and of this one."""
        os.environ.pop("TOKENIZERS_PARALLELISM", None)
        os.environ |= CASES[case]
        return self._embed() if case == "embed" else self._score(case)

    def _context(self, case: str, table: Any, **section: Any) -> Any:
        from data.config.settings import Experiment
        from pipeline.executors.resources import usable_cpus
        from pipeline.stage import StageContext
        from retrieval.models.resolved import ResolvedModels

        root = self._folder / f"run-{next(self._runs)}"
        backend = "torch" if (self._given.teacher / "config.json").exists() else "onnx"
        settings = {
            "store": str(root / "store"), "ingest": {"path": str(root)}, "student": {"model": str(self._given.student)},
            "teacher": {"model": str(self._given.teacher), "backend": backend, "precision": "fp32", "max_tokens": MAX_TOKENS}
            | self._window,
            "runner": {"threads": usable_cpus()}, **section,
        }  # fmt: skip
        return StageContext(
            ResolvedModels(Experiment.model_validate(settings)), table, root / "out", "f", [0], 1, self._inputs, self._kept[case],
            report=lambda unit, count: None, warn=print,
        )  # fmt: skip

    def _score(self, case: str) -> dict[str, float]:
        from pipeline.scoring.requested_pairs import open_teacher
        from pipeline.stages import teacher_scores
        from retrieval.teachers import cross_encoder

        def opened() -> Any:
            kept = KNOWN if case == "known" else 0
            cross_encoder.PairTokenizer = partial(plain, kept_tokens=kept)  # type: ignore[assignment,misc]
            teacher: Any = open_teacher(context.models)
            teacher.load()
            cross_encoder.PairTokenizer = plain  # type: ignore[misc]
            self._counted[case] = CountedTokenizer.around(teacher._tokenizer._tokenizer)
            teacher.prepare([("once", "so that threads have started")] * 2)
            return teacher

        plain, context = cross_encoder.PairTokenizer, self._context(case, teacher_scores.TABLE)
        self._kept[case].get_or_create(("teacher", context.models.namespace), opened)
        return self._timed(case, context, "dark_examples")

    def _embed(self) -> dict[str, float]:
        from pipeline.executors.resources import usable_cpus
        from pipeline.stages import embed
        from retrieval.encoding import text_encoder

        def opened() -> Any:
            torch.set_num_threads(usable_cpus())  # as many tokenise
            encoder: Any = text_encoder.TextEncoder(context.models.miner, precision="fp32", device="cpu", batch_tokens=self._batch_tokens)
            torch.set_num_threads(1)
            vectors = torch.ones(self._batch_tokens, encoder.size)
            encoder._forward = lambda ids, mask, *more: vectors[: len(ids)]
            encoder.one_thread_each = False  # as on a GPU: batches one after the other
            self._counted["embed"] = CountedTokenizer.around(encoder.tokenizer)
            return encoder

        import torch

        text_encoder.side_by_side = lambda compute, batches: map(compute, batches)  # the same for code that has no such switch
        context = self._context("embed", embed.CORPUS, embed={"precision": "fp32"})
        self._kept["embed"].get_or_create("fp32 encoder", opened)
        return self._timed("embed", context, "ingest.corpus")

    def _timed(self, case: str, context: Any, rows_of: str) -> dict[str, float]:
        rows, counted = self._inputs[rows_of].manifest.rows, self._counted[case]
        parquet, inside, cpu, own, wall = (
            self._parquet.seconds,
            counted.seconds,
            time.process_time(),
            time.thread_time(),
            time.perf_counter(),
        )
        context.table.build(context)
        wall, own, cpu = time.perf_counter() - wall, time.thread_time() - own, time.process_time() - cpu
        apart = cpu - (counted.seconds - inside)
        held = apart - (self._parquet.seconds - parquet)
        return {"rate": rows / wall, "us": apart / rows * 1e6, "held_us": held / rows * 1e6, "feeder_us": own / rows * 1e6}


class Side:
    """A version of the code in a process of its own."""

    def __init__(self, code: Path) -> None:
        paths = os.pathsep.join([str(code), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, *sys.argv, f"--side={code}"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process: Any = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, **pipes)  # type: ignore[call-overload]
        self.rounds: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
        for case in CASES:  # models are opened, and ids become known
            self._ask(case)

    def _ask(self, case: str) -> dict[str, float]:
        print(case, file=self._process.stdin, flush=True)
        if not (answer := self._process.stdout.readline()):
            raise SystemExit(f"a side ended: {' '.join(self._process.args)}")
        found: dict[str, float] = json.loads(answer)
        return found

    def run_round(self, case: str) -> None:
        """Run a case once."""
        self.rounds[case].append(self._ask(case))

    def medians(self) -> dict[str, float]:
        """The medians of each figure over the rounds."""
        return {
            f"{case}_{name}": round(median(one[name] for one in rounds), 2) for case, rounds in self.rounds.items() for name in rounds[0]
        }

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def be_a_side(given: argparse.Namespace) -> None:
    """Answer every line of standard input, the name of a case, with its figures."""
    import pipeline

    assert Path(pipeline.__file__).is_relative_to(given.side), f"{pipeline.__file__} is not of {given.side}"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        stages = Stages(given, Path(folder))
        for line in sys.stdin:
            print(json.dumps(stages.run(line.strip())), flush=True)


def compare(given: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Medians by side; the sides take turns, case by case."""
    from support.versions import versions

    with versions(given.before, folder) as codes:
        sides = {name: Side(code) for name, code in codes.items()}
        for number, case in itertools.product(range(given.rounds), CASES):
            for name, side in sides.items():
                side.run_round(case)
                print(f"round {number + 1}: {case:<12} {name:<7} {side.rounds[case][-1]}", file=sys.stderr, flush=True)
        for side in sides.values():
            side.close()
    return {name: side.medians() for name, side in sides.items()}


def main() -> None:
    """All sides, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--pairs", type=int, default=800 * PER_QUERY)
    parser.add_argument("--texts", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", help="commit whose code is the other side; none: only this code is run")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        be_a_side(given)
        return
    from support.ceiling import ceilings, print_ceilings

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = compare(given, Path(folder))
    after, before = found["after"], found.get("before", found["after"])
    for side, figures in found.items():
        print(f"{side:<7}", ", ".join(f"{name} {figure:,.1f}" for name, figure in figures.items()))
    ratios = {f"{case}_rate_ratio": round(after[f"{case}_rate"] / before[f"{case}_rate"], 2) for case in CASES}
    ours, peer = after["known_held_us"], before["known_held_us"]
    figures = {"name": "host_rates", "ours": ours, "peer": peer, "ratio": round(peer / ours, 2), "unit": "us a pair"}
    print(json.dumps({**figures, **ratios, **print_ceilings(ceilings(given.student)), "sides": found}))


if __name__ == "__main__":
    main()
