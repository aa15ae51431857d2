"""Queries/s of training, side by side with sentence-transformers' trainer, and the peak memory of each.

    python benchmarks/training.py STUDENT COLLECTION [--steps 4] [--batch 16] [--layers 3] [--threads N]

STUDENT is a sentence-transformers folder of a BERT-like model, COLLECTION a folder in BEIR form. `pip install -e '.[dev]'` brings the
peer. Each query has 26 candidates, as ADAM's lists do: its positive, 10 passages at random, the reinforced negative of each, 5 noisy
positives; cut at 128 tokens; the teacher's logits are made up, since no cost depends on them. All sides train the first `--layers`
layers of the same weights, with the dropout of the model's configuration, on the same lists:

    ours        `trainer.loop.take_step` on training shards of these lists, KL over all 26 (without the supervised loss)
    peer        SentenceTransformerTrainer with DistillKLDivLoss on the texts, its defaults (fp32)
    peer bf16   the same with bf16=True
    everything  ours, T = 3 epochs, every query distilled
    KL shares   the same with ADAM's selected shares (Eq. 8, t from 0): the queries that are not selected have no loss, and are not encoded
    KL from 1   the same, t counted from 1
    ADAM        ADAM's objective: its shares, and the supervised loss of every query, whose dark examples are not encoded unless selected
    ADAM from 1 the same, t counted from 1

Each side is a process of its own; they take turns, step by step, first those without epochs, then those with, and a waiting side computes
nothing. A step's time is from when it may begin to its end, with reading or tokenising its batch, which `train run` does ahead. The first
step of each side, in which models and data are opened, is left out. Ratios are medians over the rounds; with epochs, of each epoch, and
then of the epochs' mean times. Beside them stands how fast this processor multiplies matrices, measured just before, and each side's share
of that in bf16: forward and backward pass once, without padding.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean, median
from typing import Any

from support.ceiling import ceilings, print_ceilings

NEGATIVES, MASK_RATIOS = 10, (0.1, 0.2, 0.3, 0.4, 0.5)  # 26 candidates with p+
QUERY_TOKENS, PASSAGE_TOKENS = 32, 128  # ADAM, section 4.3
EPOCHS = 3
WHOLE = {"include_positive": True, "without": ["adaptive", "supervised"]}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "ours": WHOLE,
    "everything": WHOLE,
    "KL shares": {"include_positive": True, "without": ["supervised"]},
    "KL from 1": {"include_positive": True, "without": ["supervised"], "count_epochs_from": 1},
    "ADAM": {},
    "ADAM from 1": {"count_epochs_from": 1},
}


def prepare(arguments: argparse.Namespace) -> dict[str, float]:
    """Write the cut student, the lists as texts and as training shards. Returns what the lists are like."""
    from data.config.settings import Student
    from retrieval.models.dual_encoder import DualEncoder
    from retrieval.models.student import resolve_student
    from retrieval.models.tokenizer import Tokenizer
    from trainer.reporting.mfu import training_flop

    given = Student(
        model=str(arguments.student), layers=arguments.layers, query_tokens=QUERY_TOKENS, passage_tokens=PASSAGE_TOKENS,
        query_prefix="", passage_prefix="",
    )  # fmt: skip
    student = DualEncoder(resolve_student(given))
    student.save(arguments.work / "student")
    tokenizer = Tokenizer(arguments.work / "student")
    lists = [
        {**one, "texts": [tokenizer.with_special_tokens(text) for text in one["texts"]]}
        for one in itertools.islice(candidate_lists(arguments.collection, tokenizer), arguments.steps * arguments.batch)
    ]
    for one in lists:
        (one["query_tokens"],) = tokenizer.encode([one["query"]], max_tokens=QUERY_TOKENS)
        one["tokens"] = tokenizer.encode(one["texts"], max_tokens=PASSAGE_TOKENS)
    (arguments.work / "lists.json").write_text(json.dumps(lists))
    for name, count in (("whole", len(lists)), ("epochs", epoch_steps(arguments.steps) * arguments.batch)):
        write_shards(arguments.work / name, lists[:count], tokenizer=tokenizer.digest)
    lengths = [len(tokens) for one in lists for tokens in one["tokens"]]
    flop = training_flop(student.backbone, [*lengths, *(len(one["query_tokens"]) for one in lists)]) / len(lists)
    parameters = sum(parameter.numel() for parameter in student.parameters())
    return {"tokens": mean(lengths), "longest": max(lengths), "parameters": parameters, "flop_a_query": flop}


def epoch_steps(steps: int) -> int:
    """Steps of each epoch, on the sides with epochs."""
    return max(2, steps // 2)


def candidate_lists(collection: Path, tokenizer: Any) -> Any:
    """Training queries with their lists as text, in the order of the labels, one for each query."""
    from data.config.settings import DarkExamples
    from pipeline.stages.dark_examples import candidates_of

    texts: dict[str, dict[str, str]] = {}
    for name in ("corpus", "queries"):
        with open(collection / f"{name}.jsonl", encoding="utf-8") as file:
            texts[name] = {record["_id"]: record["text"] for record in map(json.loads, file)}
    chance = random.Random(0)
    doc_ids = sorted(texts["corpus"])
    settings = DarkExamples(mask_ratios=MASK_RATIOS)
    seen: set[str] = set()
    with open(collection / "qrels" / "train.tsv", encoding="utf-8") as file:
        for line in itertools.islice(file, 1, None):
            query_id, doc_id, _ = line.split("\t")
            if query_id not in seen:
                seen.add(query_id)
                negatives = [(name, texts["corpus"][name]) for name in chance.sample(doc_ids, NEGATIVES)]
                listed = candidates_of(
                    query_id, (doc_id, texts["corpus"][doc_id]), negatives, mask_draw=0, splitter=tokenizer, settings=settings,
                    mixed_tokens=PASSAGE_TOKENS, seed=0,
                )  # fmt: skip
                yield {
                    "query_id": query_id, "query": texts["queries"][query_id], "texts": [one.text for one in listed],
                    "kinds": [int(one.kind) for one in listed], "ids": [one.id for one in listed],
                    "logits": [chance.gauss(0, 3) for _ in listed], "confidence": -chance.random(),
                }  # fmt: skip


def write_shards(folder: Path, lists: list[dict[str, Any]], *, tokenizer: str, copies: int = 1) -> None:
    """The lists as the stage `shards` writes them, each copy of all of them a shard."""
    import pyarrow as pa

    from data.tables.manifest import Manifest, ShardRecord
    from data.tables.schemas import TRAINING, TRAINING_VERSION
    from data.tables.shards import TRAINING_GROUP_ROWS, describe, open_shard, shard_name

    metadata = {
        "schema_version": TRAINING_VERSION, "tokenizer": tokenizer, "teachers": ["made up"], "draws": 1, "negatives_source": "random",
        "mask_ratios": MASK_RATIOS, "negatives": NEGATIVES,
    }  # fmt: skip
    rows = [
        {
            "query_id": one["query_id"], "draw": 0, "query_tokens": one["query_tokens"], "candidate_tokens": one["tokens"],
            "candidate_kind": one["kinds"], "candidate_id": one["ids"], "teacher_logits": one["logits"], "confidence": one["confidence"],
            "never_ids": one["ids"][:1],
        }
        for one in lists
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=TRAINING.with_metadata({b"training": json.dumps(metadata).encode()}))
    paths = [folder / shard_name(copy, copies) for copy in range(copies)]
    for path in paths:
        with open_shard(path, table.schema, {"fingerprint": "made up"}) as writer:
            for start in range(0, len(table), TRAINING_GROUP_ROWS):
                writer.write_row_group(table.slice(start, TRAINING_GROUP_ROWS))
    Manifest("shards", "", "made up", {}, [ShardRecord(path.name, *describe(path)) for path in paths], {}).write(folder)


class Turns:
    """A side's own clock: a step begins when something comes in, and its figures go out."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._started = pipe, 0.0

    def begin(self) -> None:
        """Wait for the next turn; end where there is none."""
        try:
            self._pipe.recv()
        except EOFError:
            sys.exit(0)
        self._started = time.perf_counter()

    def end(self, figure: float, *, tokens: int = 0) -> None:
        """Report the step, a figure that belongs to it, and the tokens that it encoded."""
        seconds = time.perf_counter() - self._started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        self._pipe.send({"seconds": seconds, "peak": peak, "figure": figure, "tokens": tokens})


def train_ours(side: str, arguments: argparse.Namespace, turns: Turns) -> None:
    """The steps of `train run`."""
    from data.config.settings import Experiment
    from trainer.loop import take_step
    from trainer.processes.distributed import Distributed
    from trainer.run import check_machine, open_run

    whole = side == "ours"
    experiment = Experiment.model_validate(
        {
            "store": "unused", "ingest": {"path": "unused"}, "teacher": {"model": "unused"},
            "student": {"model": str(arguments.work / "student"), "query_tokens": None, "passage_tokens": None},
            "train": {
                "output": str(arguments.work / f"run-{side}"), "epochs": 1 if whole else EPOCHS, "warmup_steps": 0,
                "batch_queries": arguments.batch, "objective": OBJECTIVES[side], "precision": arguments.precision,
                "threads": arguments.threads, "workers": arguments.workers, "micro_batch_tokens": arguments.micro_batch_tokens,
            },
        }
    )  # fmt: skip
    turns.begin()
    check_machine(experiment)
    run = open_run(experiment, shards_folder=arguments.work / ("whole" if whole else "epochs"), processes=Distributed())
    assert run
    for batch in run.batches():
        losses, _ = take_step(run, batch)
        turns.end(sum(losses.distillation.values()) / max(1, batch.work.terms), tokens=sum(batch.work.lengths))
        turns.begin()


def train_peer(side: str, arguments: argparse.Namespace, turns: Turns) -> None:
    """SentenceTransformerTrainer with its defaults: AdamW, fused; no evaluation, no saving, no reports."""
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import DistillKLDivLoss
    from transformers import TrainerCallback

    torch.set_num_threads(arguments.threads)
    lists = json.loads((arguments.work / "lists.json").read_text())
    columns = {f"candidate {place}": [one["texts"][place] for one in lists] for place in range(len(lists[0]["texts"]))}
    data = Dataset.from_dict({"query": [one["query"] for one in lists], **columns, "label": [one["logits"] for one in lists]})
    model = SentenceTransformer(str(arguments.work / "student"), device="cpu")
    losses: list[float] = []

    class Loss(DistillKLDivLoss):
        def forward(self, *given: Any, **named: Any) -> Any:
            loss = super().forward(*given, **named)
            losses.append(float(loss.detach()))
            return loss

    class InTurns(TrainerCallback):
        def on_step_end(self, *given: Any, **named: Any) -> None:
            turns.end(losses[-1])
            turns.begin()

    settings = SentenceTransformerTrainingArguments(
        output_dir=str(arguments.work / side), per_device_train_batch_size=arguments.batch, num_train_epochs=1, use_cpu=True,
        bf16=side == "peer bf16", save_strategy="no", eval_strategy="no", logging_strategy="no", report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(model=model, args=settings, train_dataset=data, loss=Loss(model), callbacks=[InTurns()])
    turns.begin()
    trainer.train()


SIDES: dict[str, Callable[[str, argparse.Namespace, Turns], None]] = {
    "peer": train_peer, "peer bf16": train_peer, **{name: train_ours for name in OBJECTIVES},
}  # fmt: skip
SPAWN = multiprocessing.get_context("spawn")
WITHOUT_EPOCHS = ("ours", "peer", "peer bf16")
RATIOS = {
    "ratio": ("ours", "peer"), "bf16_ratio": ("ours", "peer bf16"), "shares_ratio": ("KL shares", "everything"),
    "shares_from_1_ratio": ("KL from 1", "everything"), "adam_ratio": ("ADAM", "everything"),
    "adam_from_1_ratio": ("ADAM from 1", "everything"),
}  # fmt: skip


class Side:
    """One competitor in a process of its own."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name, self.epochs = name, 1 if name in WITHOUT_EPOCHS else EPOCHS
        self.steps: list[dict[str, float]] = []
        self.pipe, theirs = multiprocessing.Pipe()
        SPAWN.Process(target=play, args=(name, arguments, theirs), daemon=True).start()
        theirs.close()

    def step(self) -> None:
        """Let it take a step."""
        self.pipe.send(None)
        self.steps.append(self.pipe.recv())
        print(f"{self.name}: step {len(self.steps)}, {self.steps[-1]['seconds']:.2f} s", file=sys.stderr, flush=True)

    def values(self, key: str) -> list[float]:
        """Of each step."""
        return [step[key] for step in self.steps]


def play(name: str, arguments: argparse.Namespace, pipe: Connection) -> None:
    """The process of a side."""
    sys.stdout = sys.stderr  # peers print
    SIDES[name](name, arguments, Turns(pipe))


def interleave(names: list[str], arguments: argparse.Namespace, *, steps: int) -> dict[str, Side]:
    """Start the sides, and let each take its steps."""
    sides = {name: Side(name, arguments) for name in names}
    for _ in range(steps):
        for side in sides.values():
            side.step()
    for side in sides.values():
        side.pipe.close()
    return sides


def typical(values: list[float], *, epochs: int) -> float:
    """Mean over the epochs of each one's median, the very first step left out: their selected shares differ."""
    steps = len(values) // epochs
    return mean(median(values[max(1, epoch * steps) : (epoch + 1) * steps]) for epoch in range(epochs))


def main() -> None:
    """Take turns, then print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--steps", type=int, default=4, help="of each side; half as many in each epoch of the sides with epochs")
    parser.add_argument("--batch", type=int, default=16, help="queries of a step")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--precision", default="auto", help="of our sides")
    parser.add_argument("--threads", type=int, help="of each side; default all")
    parser.add_argument("--workers", type=int, help="of our sides: `train.workers`; default as many as it takes by itself")
    parser.add_argument("--micro_batch_tokens", type=int, default=4096, help="of our sides: `train.micro_batch_tokens`")
    parser.add_argument("--only", nargs="*", choices=SIDES, default=list(SIDES), help="these sides alone")
    arguments = parser.parse_args()
    if not arguments.threads:
        from pipeline.executors.resources import usable_cpus

        arguments.threads = usable_cpus()
    with tempfile.TemporaryDirectory() as work:
        arguments.work = Path(work)
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run the sides and print their figures."""
    with SPAWN.Pool(1) as pool:
        about = pool.apply(prepare, (arguments,))
        ceiling = pool.apply(ceilings, (arguments.work / "student",), {"threads": arguments.threads})
    print(f"26 candidates a query, mean {about['tokens']:.0f} tokens, longest {about['longest']}")
    print(f"{about['parameters'] / 1e6:.1f} M parameters")
    sides = interleave([name for name in WITHOUT_EPOCHS if name in arguments.only], arguments, steps=arguments.steps)
    with_epochs = [name for name in OBJECTIVES if name in arguments.only and name != "ours"]
    sides |= interleave(with_epochs, arguments, steps=epoch_steps(arguments.steps) * EPOCHS)
    figures: dict[str, Any] = {"name": "training", "unit": "queries/s", **print_ceilings(ceiling)}
    for name, side in sides.items():
        rate = arguments.batch / typical(side.values("seconds"), epochs=side.epochs)
        peak, loss = max(side.values("peak")), mean(side.values("figure"))
        key = name.replace(" ", "_")
        figures |= {key: round(rate, 3), f"{key}_gb": round(peak, 3), f"{key}_loss": round(loss, 4)}
        of_ceiling = ""
        if name in WITHOUT_EPOCHS:  # the others encode less than all tokens of a query
            share = rate * about["flop_a_query"] / ceiling["bf16"]
            figures[f"{key}_ceiling_share"] = round(share, 3)
            of_ceiling = f", {share:.2f} of the bf16 ceiling"
        print(f"{name:11} {rate:6.2f} queries/s{of_ceiling}, peak {peak:5.2f} GB, mean loss {loss:.3f}")
    for ratio, (over, under) in RATIOS.items():
        if over in sides and under in sides:
            pairs = zip(sides[over].values("seconds"), sides[under].values("seconds"), strict=True)  # of the steps of one round
            figures[ratio] = round(1 / typical([own / others for own, others in pairs], epochs=sides[over].epochs), 3)
            print(f"{over:11} {figures[ratio]:.2f} times as fast as {under}", end="")
            tokens = [sum(sides[name].values("tokens")) for name in (over, under)]
            print(f", with {tokens[0] / tokens[1]:.3f} of its tokens" if under == "everything" else "")
    if "ours" in sides and "peer" in sides:
        figures["memory_ratio"] = round(max(sides["ours"].values("peak")) / max(sides["peer"].values("peak")), 3)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
