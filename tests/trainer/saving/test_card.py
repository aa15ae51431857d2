"""The model card: what it says, that the hub's own reader takes it, that bytes repeat, and that a person's words stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from support.dev_sets import write_dev_rows
from support.training import make_row

from data.config.settings import TEACHER_OF_LISTS, Teacher, Train
from data.digests import bytes_digest
from retrieval.evaluation.metrics import Comparison
from trainer import loop, recipes
from trainer.evaluation.comparison import DevComparison
from trainer.evaluation.dev_set import evaluate, open_dev_set
from trainer.evaluation.schedule import encode_all
from trainer.loop import train
from trainer.saving.card import _figures, _index, _named, _teacher, own_card, sealed


def start(file: Path, shards: Path, **overrides: Any) -> int:
    words = {"config": str(file), **{key.replace("__", "."): str(value) for key, value in overrides.items()}}
    return train(recipes.load(words), shards_folder=shards)


@pytest.fixture
def dev_set(tmp_path: Path, student: Path) -> Path:
    generator = np.random.default_rng(1)
    return write_dev_rows(
        tmp_path / "dev", [make_row(generator, f"q{number:02d}") for number in range(22)], student=student, depth=3, random=0
    )


def front(folder: Path) -> dict[str, Any]:
    return ModelCard.load(folder / "README.md").data.to_dict()


@pytest.mark.medium
def test_the_card_of_a_student(tmp_path: Path, experiment_file: Path, shards: Path, dev_set: Path, student: Path) -> None:
    """Prevents: a model that nobody may publish as it is: no figures, no prompts, a path of this machine, bad front matter."""
    words = {"train__steps": 6, "train__dev": dev_set, "train__card__language": "en,de", "train__card__datasets": "ours/lists"}
    assert start(experiment_file, shards, **words, student__query_prefix="ask|me: ") == 0
    folder = tmp_path / "run" / "student"
    data = front(folder)
    assert (data["library_name"], data["pipeline_tag"], data["license"]) == ("sentence-transformers", "sentence-similarity", "FILL_IN")
    assert data["language"] == ["en", "de"] and data["datasets"] == ["ours/lists"] and "base_model" not in data
    text = (folder / "README.md").read_text()
    assert "license: FILL_IN #" in text and str(tmp_path) not in text and str(student.parent) not in text
    assert "`student`" in text and "| dimensions | 32 |" in text and "ask&#124;me: " in text and "recipe `adam`" in text
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert json.loads((tmp_path / "run" / "result.json").read_text())["fingerprint"] in text and run["shards"] in text

    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["dev"]
    assert {row["name"]: row["value"] for row in data["model-index"][0]["results"][0]["metrics"]} == {
        name: round(value, 4) for name, value in last.items()
    }
    assert "22 judged queries, exact search among 88 passages" in text
    (mrr,) = [line.split(" | ") for line in text.splitlines() if line.startswith("| MRR@10 |")]
    assert mrr[2] == f"{last['MRR@10']:.4f}" and sum(map(int, mrr[5].strip(" |").split(" / "))) == 22

    from sentence_transformers import SentenceTransformer

    assert SentenceTransformer(str(folder), device="cpu").encode(["w1 w2"]).shape == (1, 32)


@pytest.mark.medium
def test_before_is_the_student_that_the_run_began_with(tmp_path: Path, experiment_file: Path, shards: Path, dev_set: Path) -> None:
    """Prevents: a comparison with the trained model itself, or with one whose weights were drawn anew."""
    assert start(experiment_file, shards, train__steps=3, train__dev=dev_set) == 0
    experiment = recipes.load({"config": str(experiment_file), "train.dev": str(dev_set), "train.output": str(tmp_path / "other")})
    from data.digests import DigestCache
    from trainer.run import step_settings
    from trainer.task import task_of

    task = task_of(experiment, DigestCache(tmp_path / "digests"))
    model = task.open()
    settings = step_settings(experiment, model)
    expected = evaluate(lambda sequences: encode_all(model, sequences, settings=settings), open_dev_set(dev_set, tokenizer=task.tokenizer))
    text = (tmp_path / "run" / "student" / "README.md").read_text()
    for name, value in expected.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert line.split(" | ")[1] == f"{value:.4f}"


@pytest.mark.medium
def test_a_resumed_run_has_the_same_folder(
    tmp_path: Path, experiment_file: Path, shards: Path, dev_set: Path, monkeypatch: pytest.MonkeyPatch, contents: Any
) -> None:
    """Prevents: times, paths or names in a card, by which equal models look different."""
    words = {"train__steps": 7, "train__dev": dev_set, "train__evaluate_every": 3}
    assert start(experiment_file, shards, train__output=tmp_path / "whole", **words) == 0

    class Killed(Exception):
        pass

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as context, pytest.raises(Killed):
        context.setattr(loop, "write_result", kill)
        start(experiment_file, shards, train__output=tmp_path / "elsewhere" / "broken", **words)
    assert start(experiment_file, shards, train__output=tmp_path / "elsewhere" / "broken", **words) == 0
    for name in ("student", "best"):
        whole, broken = contents(tmp_path / "whole" / name), contents(tmp_path / "elsewhere" / "broken" / name)
        assert whole == broken and "README.md" in whole


@pytest.mark.medium
def test_a_card_that_was_changed_is_kept(
    tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, dev_set: Path
) -> None:
    """Prevents: an afternoon of somebody's words, gone with a run that is finished again; and a card of an older best student."""
    assert start(experiment_file, shards, train__steps=2) == 0
    output, readme = tmp_path / "run", tmp_path / "run" / "student" / "README.md"
    made = readme.read_bytes()
    for content in (made.replace(b"FILL_IN", b"mit", 1), "# Ours, ünïcode\r\n".encode(), b"\xff\xfe", b""):
        readme.write_bytes(content)
        (output / "result.json").unlink()
        assert start(experiment_file, shards, train__steps=2) == 0
        assert readme.read_bytes() == content
    readme.unlink()
    (output / "result.json").unlink()
    assert start(experiment_file, shards, train__steps=2) == 0
    assert readme.read_bytes() == made


@pytest.mark.medium
def test_the_card_of_a_cross_encoder(tmp_path: Path, experiment_file: Path, shards: Path, cross_encoder: Path) -> None:
    """Prevents: a reranker that the hub lists among the sentence embedders, or shows with their code."""
    words = {
        "train__task": "cross_encoder",
        "teacher__model": cross_encoder,
        "teacher__max_tokens": 64,
        "train__steps": 2,
        "train__card__base_model": "ours/base",
    }
    assert start(experiment_file, shards, **words, train__card__license="mit") == 0
    data = front(tmp_path / "run" / "cross_encoder")
    assert (data["pipeline_tag"], data["base_model"], data["license"]) == ("text-ranking", "ours/base", "mit")
    text = (tmp_path / "run" / "cross_encoder" / "README.md").read_text()
    assert "CrossEncoder(" in text and "SentenceTransformer(" not in text and "`cross-encoder`" in text and "without a teacher" in text


@pytest.mark.medium
def test_the_card_of_an_adapter(tmp_path: Path, experiment_file: Path, shards: Path) -> None:
    """Prevents: an adapter without a word on what it is of, or whose card names a folder of this machine."""
    assert start(experiment_file, shards, train__steps=2, student__lora__rank=2) == 0
    folder = tmp_path / "run" / "student"
    data, text = front(folder / "adapter"), (folder / "adapter" / "README.md").read_text()
    assert data["library_name"] == "peft" and data["license"] == "FILL_IN" and "lora" in data["tags"]
    assert "PeftModel.from_pretrained" in text and str(tmp_path) not in text and "rank: 2" in text
    assert "LoRA adapter" not in (folder / "README.md").read_text()


def test_each_of_several_dev_sets_has_its_own_figures() -> None:
    """Prevents: the figures of two sets under one name, of which a reader, and the hub, takes the last."""
    sets = [
        DevComparison(name, 2, 9, (Comparison("MRR@10", 0.5, after, 0.00002, 1, 0, 1),)) for name, after in [("fiqa", 0.75), ("nq", 1.0)]
    ]
    text = _figures({}, sets)
    assert text.index("dev set fiqa: 2 judged") < text.index("+0.2500 | 2e-5 |") < text.index("dev set nq") < text.index("+0.5000 |")
    results = _index("m", {one.name: {row.metric: row.after for row in one.metrics} for one in sets})["results"]
    assert [(result["dataset"]["name"], result["metrics"][0]["value"]) for result in results] == [
        ("dev set fiqa", 0.75),
        ("dev set nq", 1.0),
    ]


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("BAAI/bge-reranker-v2-m3", "`BAAI/bge-reranker-v2-m3`"), ("gpt2", "`gpt2`"), ("/scratch/me/ce", "a local model, `ce`"),
        ("runs/mine/student", "a local model, `student`"), ("./ce/", "a local model, `ce`"),
        ("https://me:key@host/ce", "a local model, `ce`"),
    ],
)  # fmt: skip
def test_a_path_of_another_machine_is_not_told(model: str, named: str) -> None:
    """Prevents: the name of somebody's home in public, from a teacher that was never on the machine that trains."""
    assert _named(model) == named


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("their reranker | v2", "<code>'their reranker &#124; v2'</code>"),
        ("ours/ce", "<code>'ours/ce'</code>"),
        ("/home/me/ce", "<code>'ce'</code>"),
    ],
)
def test_a_declared_teacher_is_no_local_model(model: str, named: str) -> None:
    """Prevents: a card that says that there was a model on the machine, where only its scores were imported."""
    teacher = Teacher.model_validate({"model": model, "backend": "imported", "revision": "1"})
    assert _teacher(teacher) == f"{named}, of which imported scores were used"


def test_the_teacher_of_given_lists_is_no_local_model() -> None:
    """Prevents: "a local model, `the lists' own`", where lists.path named no teacher."""
    assert _teacher(Teacher(model=TEACHER_OF_LISTS, backend="none")) == "that of the lists, which were given"


def test_what_a_person_changed_is_known_by_the_last_line(tmp_path: Path) -> None:
    """Prevents: a changed card that is taken for the run's own since its last line is still there."""
    path, card = tmp_path / "README.md", sealed("# Model\n\n<!-- made by hand -->\ntext\n")
    assert own_card(path) is None
    for content, own in [
        (card, False), (card.replace("text", "texts"), True), (card + "more\n", True), (card.rstrip("\n"), True), (card[5:], True),
        ("<!-- made by", True), (f"<!-- made by `train run`; digest of the text above: {bytes_digest(b'')} -->\n", True),
    ]:  # fmt: skip
        path.write_text(content)
        assert own_card(path) == (content.encode() if own else None)


def test_card_settings_are_no_part_of_a_run() -> None:
    """Prevents: a finished run that is another one since its licence was chosen."""
    from data.config.fields import keyed_values

    assert keyed_values(Train()) == keyed_values(Train(card={"license": "mit", "language": "en"}, tracker="none"))
