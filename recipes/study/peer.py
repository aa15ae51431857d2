"""One training by sentence-transformers, as its own documentation advises: the peer of the study, started by run.py.

`mine_hard_negatives` with the start, scores of the same teacher and a relative margin of 5 %; n-tuples with the teacher's logits of all
passages, of each question's 10 nearest. The teacher reads 10 and the most positives of any question, for every question: 1.4 to 2.4 times
ADAM's pairs (with 50 mining alone took several times the budget). Then `DistillKLDivLoss`; the Trainer with bf16 off, warm-up and a linear
rate. It reads the same training questions with a row for each labelled positive, the same student and the same lengths, and has the
processor time that it is given, of all its threads: mining and scoring count, and what is left is training, as many steps as fit. A short
trial before it says how long a step takes; it counts, too.

Its loss compares inner products of normalised vectors, so the student is given the scale that the other methods have. The rate is chosen on
dev by run.py as theirs is: here by `InformationRetrievalEvaluator`, over the dev questions and the passages among the 20 best of the start.

OUT/student, and OUT/result.json: dev (MRR@10), seconds, note.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset, load_from_disk
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
from sentence_transformers.util import mine_hard_negatives, semantic_search
from transformers import TrainerCallback

from data.config.settings import load
from data.tables.shards import atomic_write
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.base import TeacherSettings

NEGATIVES, RANGE, MARGIN = 5, 10, 0.05
TRIAL_STEPS = 3


class Teacher:
    """The study's teacher with the method that `mine_hard_negatives` calls. It gives raw logits."""

    def __init__(self, config: str, model: str, threads: int) -> None:
        settings = load({"config": config, "phase": "mined", "teacher.model": model}).teacher
        self._teacher = resolve_teacher(settings, device="cpu").open(TeacherSettings.of(settings, device="cpu", threads=threads))

    def predict(self, pairs: list[tuple[str, str]], **_: Any) -> torch.Tensor:
        """[n] logits."""
        return torch.from_numpy(self._teacher.score(pairs)).float()


def texts(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(passages, questions) by id, title and text as BEIR joins them."""
    found = []
    for name in ("corpus", "queries"):
        with open(folder / f"{name}.jsonl", encoding="utf-8") as file:
            entries = [json.loads(line) for line in file]
        found.append({entry["_id"]: f"{entry.get('title', '')} {entry['text']}".strip() for entry in entries})
    return found[0], found[1]


def labels(folder: Path, split: str) -> dict[str, list[str]]:
    """Positives by question."""
    found: dict[str, list[str]] = {}
    for line in (folder / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, passage, label = line.split("\t")
        if int(label) > 0:
            found.setdefault(query, []).append(passage)
    return found


def mined(student: SentenceTransformer, teacher: Teacher, folder: Path) -> Dataset:
    """Columns anchor, positive, negative_1 ... negative_m, and label: the teacher's logits of all passages."""
    corpus, queries = texts(folder)
    positives = labels(folder, "train")
    # All labels, so that no positive is mined as a negative.
    pairs = Dataset.from_dict(
        {
            "anchor": [queries[query] for query, own in positives.items() for _ in own],
            "positive": [corpus[passage] for own in positives.values() for passage in own],
        }
    )
    lists = mine_hard_negatives(
        pairs, student, corpus=list(dict.fromkeys(corpus.values())), cross_encoder=teacher, range_max=RANGE, relative_margin=MARGIN,  # type: ignore[arg-type]
        num_negatives=NEGATIVES, sampling_strategy="top", output_format="n-tuple", output_scores=True, batch_size=64, verbose=False,
    )  # fmt: skip
    (scores,) = (name for name in lists.column_names if name.startswith("score"))
    return lists.rename_column(scores, "label")


def dev_evaluator(student: SentenceTransformer, folder: Path) -> InformationRetrievalEvaluator:
    """Over the dev questions, and the start's 20 best passages of each with all positives."""
    corpus, queries = texts(folder)
    positives, names = labels(folder, "dev"), list(corpus)
    asked = {query: queries[query] for query in positives}
    vectors = student.encode(list(corpus.values()), convert_to_tensor=True, batch_size=64)
    hits = semantic_search(student.encode(list(asked.values()), convert_to_tensor=True), vectors, top_k=20)
    kept = {names[int(hit["corpus_id"])] for own in hits for hit in own} | {one for own in positives.values() for one in own}
    small = {name: corpus[name] for name in names if name in kept}
    return InformationRetrievalEvaluator(
        asked, small, {query: set(own) for query, own in positives.items()}, mrr_at_k=[10], show_progress_bar=False
    )


class StopInTime(TrainerCallback):
    """Ends the training when the time is up, should the trial have been too quick."""

    def __init__(self, ends: float) -> None:
        self._ends = ends

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer."""
        control.should_training_stop |= time.process_time() > self._ends


def train(
    student: SentenceTransformer, lists: Dataset, args: argparse.Namespace, *, steps: int, scale: float, batch: int, ends: float
) -> float:
    """Seconds that it took."""
    given = SentenceTransformerTrainingArguments(
        output_dir=str(args.out / "trainer"), max_steps=steps, per_device_train_batch_size=batch, learning_rate=float(args.rate),
        warmup_steps=max(1, steps // 10), lr_scheduler_type="linear", seed=args.seed, data_seed=args.seed, save_strategy="no",
        logging_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    # The product of scaled vectors: a temperature of the student alone would change the teacher's, too.
    loss = DistillKLDivLoss(student, similarity_fct=lambda left, right: scale * (left * right).sum(-1))
    began = time.process_time()
    SentenceTransformerTrainer(model=student, args=given, train_dataset=lists, loss=loss, callbacks=[StopInTime(ends)]).train()
    return time.process_time() - began


def opened(args: argparse.Namespace, file: dict[str, Any]) -> SentenceTransformer:
    """The start, as long texts as the other methods read."""
    student = SentenceTransformer(args.student, device="cpu")
    student.max_seq_length = int(file["student"].get("passage_tokens", 128))
    return student


def main(args: argparse.Namespace) -> None:
    """Train, measure on dev, and write what came out."""
    torch.set_num_threads(args.threads)
    file = yaml.safe_load(Path(args.config).read_text(encoding="utf-8"))
    began = time.process_time()
    student = opened(args, file)
    note = args.lists / "seconds.json"
    if note.is_file():
        spent = float(json.loads(note.read_text())["seconds"])
    else:  # made once for all rates and seeds, and charged to each
        mined(student, Teacher(args.config, args.teacher, args.threads), args.collection).save_to_disk(str(args.lists))
        spent = time.process_time() - began
        atomic_write(note, json.dumps({"seconds": spent}).encode())
    lists, batch = load_from_disk(str(args.lists)), int(file["train"]["batch_queries"])
    scale, left = float(file["train"]["score_scale"]), args.seconds - spent
    forever = time.process_time() + 1e6
    first = train(opened(args, file), lists, args, steps=1, scale=scale, batch=batch, ends=forever)  # with what is made once
    trial = train(opened(args, file), lists, args, steps=1 + TRIAL_STEPS, scale=scale, batch=batch, ends=forever)
    left -= first + trial
    steps = int(left / max(1e-3, (trial - first) / TRIAL_STEPS))
    if steps < 1:  # the start, untrained, is no result of the peer's
        sys.exit(
            f"mining and scoring took {spent:.0f} of {args.seconds:.0f} seconds, which leaves no step: have the teacher read fewer pairs"
        )
    said = f"mining and scoring took {spent:.0f} of {args.seconds:.0f} seconds, then up to {steps} steps of {batch} questions"
    torch.manual_seed(args.seed)
    spent += train(student, lists, args, steps=steps, scale=scale, batch=batch, ends=time.process_time() + left)
    dev = dev_evaluator(opened(args, file), args.collection)(student)
    student.save(str(args.out / "student"))
    figure = next(float(value) for name, value in dev.items() if name.endswith("cosine_mrr@10"))
    atomic_write(args.out / "result.json", json.dumps({"dev": figure, "seconds": spent + first + trial, "note": said}).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in {"collection": Path, "out": Path, "lists": Path, "seed": int, "rate": str, "seconds": float, "threads": int}.items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    for name in ("config", "student", "teacher"):
        parser.add_argument(f"--{name}", required=True)
    main(parser.parse_args())
