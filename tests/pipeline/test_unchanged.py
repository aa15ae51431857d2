"""Models, collections and run files that are exchanged while a run is under way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline.tables.building
from data.errors import RunFailed, UserError
from data.logits.store import LogitStore
from pipeline.stages import ingest_tables

Prep = Callable[..., list[str]]
Files = Callable[[Path], dict[str, bytes]]


def flip(path: Path) -> None:
    """Another file under the same name, of the same size: the last weight differs."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    other = path.with_name("other")
    other.write_bytes(content)
    os.replace(other, path)


def after_first_shard(monkeypatch: pytest.MonkeyPatch, label: str, exchange: Callable[[], None]) -> None:
    """Exchange something when the first shard of a table is done."""
    journal, done = pipeline.tables.building.write_journal, []

    def hooked(folder: Path, finished: Any, **words: Any) -> None:
        journal(folder, finished, **words)
        if finished.task.label == label and finished.task.piece is None and not done:
            done.append(label)
            exchange()

    monkeypatch.setattr(pipeline.tables.building, "write_journal", hooked)


def edit_tokenizer(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "do_lower_case": not config.get("do_lower_case", True)}))


CASES = {
    "teacher_scores": ("teacher", lambda folder: flip(folder / "model.safetensors"), "teacher.model"),
    "embed.corpus": ("student", lambda folder: flip(folder / "model.safetensors"), "student.model"),
    "embed.queries": ("student", lambda folder: flip(folder / "model.safetensors"), "student.model"),
    "dark_examples": ("teacher", edit_tokenizer, "its model"),
    "shards": ("student", edit_tokenizer, "its model"),
    "pool_scores": ("teacher", lambda folder: flip(folder / "model.safetensors"), "teacher.model"),
    "dev": ("student", edit_tokenizer, "its model"),  # its vectors are those of the tables `embed`
}
ASKED_FOR: dict[str, dict[str, Any]] = {"pool_scores": {"hard_negatives.score_pools": True}, "dev": {"dev.queries": 3, "dev.depth": 5}}


@pytest.mark.medium
@pytest.mark.parametrize("label", CASES)
def test_a_model_exchanged_after_the_first_shard(
    label: str, tmp_path: Path, models: Any, tiny_experiment: Callable[..., Path], prep_run: Prep, parquet_files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Prevents: a table whose shards are of two models, under the fingerprint of the first."""
    role, exchange, named = CASES[label]
    model = shutil.copytree(getattr(models, role), tmp_path / "model")
    config = tiny_experiment(tmp_path / "run", **{f"{role}.model": model}, **ASKED_FOR.get(label, {}))
    after_first_shard(monkeypatch, label, lambda: exchange(model))
    with pytest.raises(RunFailed, match=f"{label}: the files of .*{named}.* changed while this run was under way"):
        prep_run(config)
    stage, _, name = label.partition(".")
    (folder,) = (config.parent / "store" / stage).glob(f"{name}*")
    assert len(list(folder.glob("part-*"))) == 1 and not (folder / "manifest.json").exists() and not list(folder.glob(".*"))
    if label not in ("embed.corpus", "teacher_scores"):
        return  # what goes on from there is the same for all
    prep_run(config)
    after = parquet_files(config.parent / "store")
    fresh = tiny_experiment(tmp_path / "fresh", **{f"{role}.model": model})
    prep_run(fresh)
    expected = parquet_files(fresh.parent / "store")
    assert expected.items() <= after.items()


def test_a_model_exchanged_between_two_tables(
    tmp_path: Path, models: Any, tiny_experiment: Callable[..., Path], prep_run: Prep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a run whose tables are of two models, since each table looks its model up for itself."""
    student = shutil.copytree(models.student, tmp_path / "student")
    config = tiny_experiment(tmp_path / "run", **{"student.model": student})
    after_first_shard(monkeypatch, "ingest.qrels", lambda: flip(student / "model.safetensors"))
    with pytest.raises(RunFailed, match=r"embed\.corpus: the files of .*student\.model changed while this run was under way"):
        prep_run(config)
    assert not list((config.parent / "store" / "embed").rglob("part-*"))


def test_a_teacher_exchanged_between_two_windows(
    copied: Any, models: Any, tmp_path: Path, prep_run: Prep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: logits in the store under the name of weights that were gone, for ever."""
    teacher = shutil.copytree(models.teacher, tmp_path / "teacher")
    shutil.rmtree(copied.store / "teacher_scores")
    shutil.rmtree(copied.store / "teacher_logits")
    append, appended = LogitStore.append, []

    def hooked(self: LogitStore, *words: Any, **named: Any) -> Path:
        appended.append(append(self, *words, **named))
        if len(appended) == 2:
            flip(teacher / "model.safetensors")
        return appended[-1]

    monkeypatch.setattr(LogitStore, "append", hooked)
    with pytest.raises(RunFailed, match=r"teacher_scores: the files of teacher\.model changed"):
        prep_run(copied.config, **{"teacher.model": teacher, "teacher.segment_pairs": 8})
    # One window may have been scored, and looked at, while the second was written.
    assert len(appended) in (2, 3) and not list(copied.store.glob("teacher_scores/*/part-*"))


def test_a_teacher_exchanged_while_it_is_loaded(
    copied: Any, models: Any, tmp_path: Path, prep_run: Prep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a tokenizer of the old folder with weights of the new one."""
    from retrieval.teachers import cross_encoder

    teacher = shutil.copytree(models.teacher, tmp_path / "teacher")
    shutil.rmtree(copied.store / "teacher_scores")
    shutil.rmtree(copied.store / "teacher_logits")
    load = cross_encoder.PairTokenizer

    def hooked(folder: Path, **words: Any) -> Any:
        loaded = load(folder, **words)
        flip(folder / "model.safetensors")
        return loaded

    monkeypatch.setattr(cross_encoder, "PairTokenizer", hooked)
    with pytest.raises(RunFailed, match=r"teacher\.model.* changed while"):
        prep_run(copied.config, **{"teacher.model": teacher})
    assert not list(copied.store.glob("teacher_logits/*/*.parquet"))


def test_a_run_file_exchanged_meanwhile(
    tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: pools of two runs in one table."""
    run = tmp_path / "some.run"
    run.write_text("".join(f"train{q} Q0 d{d} {d + 1} {60 - d} x\n" for q in range(14) for d in range(59)))
    config = tiny_experiment(tmp_path / "run", **{"hard_negatives.source": "run", "hard_negatives.run_file": run})
    after_first_shard(monkeypatch, "pools.ranked", lambda: flip_line(run))
    with pytest.raises(RunFailed, match=r"pools\.ranked: the files of hard_negatives\.run_file changed"):
        prep_run(config)
    assert not list((config.parent / "store" / "pools").glob("*/manifest.json"))


def flip_line(run: Path) -> None:
    run.write_text(run.read_text().replace("Q0 d7 8 53", "Q0 d7 8 52.5", 1))


def test_a_collection_exchanged_before_the_seal(
    tmp_path: Path, collection: Path, tiny_experiment: Callable[..., Path], prep_run: Prep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: passages of another corpus file than the one that the fingerprint names. All shards are one piece of work here."""
    own = shutil.copytree(collection, tmp_path / "collection")
    config = tiny_experiment(tmp_path / "run", **{"ingest.path": own})
    with monkeypatch.context() as patch:
        after_first_shard(patch, "ingest.corpus", lambda: (own / "corpus.jsonl").write_text((own / "corpus.jsonl").read_text() + "\n"))
        with pytest.raises(RunFailed, match=r"ingest\.corpus: the files of ingest\.path changed"):
            prep_run(config)
    assert not list((config.parent / "store" / "ingest").glob("*/manifest.json"))


def test_what_is_touched_only_goes_on(
    tmp_path: Path, models: Any, tiny_experiment: Callable[..., Path], prep_run: Prep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a run that stops because a model was copied over itself, or a backup changed a time."""
    student = shutil.copytree(models.student, tmp_path / "student")
    config = tiny_experiment(tmp_path / "run", **{"student.model": student})
    after_first_shard(monkeypatch, "embed.corpus", lambda: os.utime(student / "model.safetensors"))
    assert "embed.corpus     built 3 of 3 shards" in "\n".join(prep_run(config, stage="ingest") + prep_run(config, stage="embed"))


@pytest.mark.parametrize("label", ["embed.corpus", "teacher_scores"])
def test_a_table_is_not_finished_on_another_device(label: str, copied: Any, prep_run: Prep) -> None:
    """Prevents: half a table of GPU arithmetic and half of CPU arithmetic, under one fingerprint."""
    folder = next(path.parent for path in copied.store.glob(f"{label.replace('.', '/')}*/**/manifest.json"))
    assert json.loads((folder / "device.json").read_text()) == {"device": "cpu"}
    (folder / "device.json").write_text('{"device": "cuda"}')  # as on a machine with a GPU, killed after the first shard
    parts = sorted(folder.glob("part-*"))
    parts[0].unlink()
    with pytest.raises(UserError, match=r"was begun with runner\.device=cuda, .* go on with runner\.device=cuda, or delete its part-"):
        prep_run(copied.config)
    for part in parts[1:]:
        part.unlink()
    prep_run(copied.config)
    assert json.loads((folder / "device.json").read_text()) == {"device": "cpu"} and len(list(folder.glob("part-*"))) == len(parts)


def test_a_complete_table_of_another_device_serves(copied: Any, prep_run: Prep) -> None:
    """Prevents: vectors made on a GPU node that a CPU node refuses to mine with."""
    for note in copied.store.rglob("device.json"):
        note.write_text('{"device": "cuda"}')
    shutil.rmtree(copied.store / "shards")
    assert any("built 2 of 2" in line for line in prep_run(copied.config))


def test_a_worker_of_other_code_is_refused(copied: Any, prep_run: Prep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: shards of another version's rows under this version's fingerprint, from the one host that was not updated."""
    from dataclasses import replace

    from pipeline.executors import worker as work

    find = work.table_named
    monkeypatch.setattr(work, "table_named", lambda experiment, label: replace(find(experiment, label), version=99))
    shutil.rmtree(copied.store / "hard_negatives")
    with pytest.raises(RunFailed, match=r"hard_negatives, shard 0 of 2: .* has other code than the driver .*version 99"):
        prep_run(copied.config)


def test_a_collection_is_looked_at_as_often_for_many_shards(
    tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a listing of the object store for each of a thousand shards, after all of them are written."""
    find, looks = ingest_tables.find_collection, []

    def hooked(*words: Any, **named: Any) -> Any:
        looks[-1] += 1
        return find(*words, **named)

    monkeypatch.setattr(ingest_tables, "find_collection", hooked)
    for shards in (2, 20):
        looks.append(0)
        prep_run(tiny_experiment(tmp_path / str(shards), **{"ingest.corpus_shards": shards}), stage="ingest")
    assert looks[0] == looks[1] > 0
