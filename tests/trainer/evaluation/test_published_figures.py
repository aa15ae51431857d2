"""From folders of collections to the mean of dev sets: the figures of sentence-transformers' evaluator of NanoBEIR on the same texts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import NanoBEIREvaluator
from support.models import SYLLABLES

from data.config.settings import Student
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.student import resolve_student
from trainer.evaluation.dev_sets import open_dev_sets
from trainer.evaluation.schedule import dev_figures
from trainer.objective.dimensions import Dimensions
from trainer.processes.distributed import Distributed
from trainer.steps.gradients import StepSettings

NAMES = ("NanoSciFact", "NanoNFCorpus")
Records = dict[str, list[dict[str, str]]]


def made(name: str) -> Records:
    """Two collections of other sizes; the queries are some words of their passages, so that figures lie between 0 and 1."""
    chance = random.Random(name)
    passages, queries = (60, 12) if name == "NanoSciFact" else (35, 7)
    corpus = [{"_id": f"d{number}", "text": " ".join(chance.choices(SYLLABLES, k=chance.randint(6, 20)))} for number in range(passages)]
    asked = [{"_id": f"q{number}", "text": " ".join(chance.sample(corpus[number]["text"].split(), 3))} for number in range(queries)]
    qrels = [{"query-id": f"q{number}", "corpus-id": f"d{number}"} for number in range(queries)]
    qrels += [{"query-id": f"q{number}", "corpus-id": f"d{passages - 1 - number}"} for number in range(0, queries, 2)]
    return {"corpus": corpus, "queries": asked, "qrels": qrels}


def write(folder: Path, records: Records) -> None:
    (folder / "qrels").mkdir(parents=True)
    for kind in ("corpus", "queries"):
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records[kind]))
    lines = ["query-id\tcorpus-id\tscore", *(f"{one['query-id']}\t{one['corpus-id']}\t1" for one in records["qrels"])]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")


class Offline(NanoBEIREvaluator):  # type: ignore[misc]
    """The evaluator with collections that are made here, in place of those that it downloads."""

    def _load_dataset_subset_split(self, subset: str, split: str, required_columns: list[str]) -> Any:
        return Dataset.from_list(made(split)[subset])


@pytest.mark.medium
def test_as_the_evaluator_of_nano_beir(
    tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]], models: Any
) -> None:
    """Prevents: figures under the names of published ones that are others: passages left out, another mean, other texts or cuts."""
    for name in NAMES:
        write(tmp_path / "nano" / name, made(name))
    lengths = {"student.query_tokens": 64, "student.passage_tokens": 64, "dev.collections": tmp_path / "nano" / "*"}
    config = tiny_experiment(tmp_path / "run", **lengths)
    prep_run(config, stage="dev")
    spec = resolve_student(Student(model=str(models.student), query_tokens=64, passage_tokens=64))
    folders = [str(next((tmp_path / "run" / "store" / "dev").glob(f"{name}-*"))) for name in NAMES]
    sets = open_dev_sets(folders, tokenizer=spec.tokenizer_digest)
    cut = Dimensions(((32, 1.0), (8, 1.0)), False)
    settings = StepSettings(0, 1.0, 1.0, micro_batch_tokens=512, pad_id=0, device="cpu", precision="fp32", dimensions=cut)
    ours = dev_figures(DualEncoder(spec), sets, settings=settings, processes=Distributed())

    peer = SentenceTransformer(str(models.student), device="cpu", similarity_fn_name="dot")
    peer.max_seq_length = 64
    for size, suffix in ((None, ""), (8, "/8")):
        theirs = Offline(["scifact", "nfcorpus"], truncate_dim=size, show_progress_bar=False, write_csv=False)(peer)
        for name, start in [(f"{NAMES[0]}/", NAMES[0]), (f"{NAMES[1]}/", NAMES[1]), ("", "NanoBEIR")]:
            for mine, ending in [("MRR@10", "mrr@10"), *([] if suffix else [("nDCG@10", "ndcg@10")])]:
                (value,) = [value for key, value in theirs.items() if key.startswith(start) and key.endswith(f"_{ending}")]
                assert ours[f"{name}{mine}{suffix}"] == pytest.approx(value, abs=1e-4), (name, mine, size)
                assert 0.02 < value < 0.95
