"""`prep` from end to end in this process: what is built, what is not, why, and what a user is told."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
from support.children import loaded_by
from typer.testing import CliRunner

from data.config.settings import load
from data.digests import DigestCache
from data.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED
from data.files.kept_folders import FolderGone, kept
from pipeline.cli import app
from pipeline.plan import TablePlan
from pipeline.stages import embed
from pipeline.tables import completeness
from pipeline.tables.building import build_stale
from pipeline.tables.journal import read_journal
from retrieval.models.resolved import ResolvedModels
from retrieval.teachers.backends import resolve_teacher

LABELS = (
    "ingest.corpus", "ingest.queries", "ingest.qrels", "embed.corpus", "embed.queries", "pools.ranked", "hard_negatives", "dark_examples",
    "teacher_scores", "confidence", "shards",
)  # fmt: skip
Prep = Callable[..., list[str]]
Files = Callable[[Path], dict[str, bytes]]


CACHES = ("digests.json", completeness.FILE_NAME)


def prep(*words: object) -> tuple[int, str]:
    """(exit code, all output) of the command."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def states(config: Path, **overrides: object) -> dict[str, str]:
    """What `prep plan` says of each table."""
    code, output = prep("plan", f"config={config}", *(f"{key}={value}" for key, value in overrides.items()))
    assert code == 0, output
    found: dict[str, str] = {}
    label = ""
    for line in output.splitlines():
        label = line.split()[0] if not line.startswith(" ") else label
        found[label] = f"{found.get(label, '')} {line.removeprefix(label).strip()}".strip()
    return found


def shard_of(store: Path, pattern: str) -> Path:
    return sorted(path for path in store.glob(pattern) if "quarantine" not in path.parts)[0]


def damage(path: Path) -> None:
    """Flip a bit of the last data page."""
    group = pq.read_metadata(path).row_group(0)
    column = group.column(group.num_columns - 1)
    at = column.data_page_offset + column.total_compressed_size - 3
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_finished_run_is_complete(finished: Any) -> None:
    """Prevents: a table that `run` calls done and `plan` calls stale, so that each run builds it again."""
    found = states(finished.config)
    assert tuple(found) == LABELS and all(state.startswith("complete") for state in found.values()), found


def test_a_second_run_touches_nothing_and_starts_nothing(finished: Any) -> None:
    """Prevents: minutes of Ray and torch to find out that nothing is to be done."""
    before = {path: path.stat().st_mtime_ns for path in finished.store.rglob("*") if path.is_file() and path.name not in CACHES}
    done, loaded = loaded_by("prep", "run", f"config={finished.config}", "runner=ray")
    assert done.returncode == 0, done.stderr
    assert "done: nothing to do" in done.stdout and not loaded & {"ray", "torch", "faiss", "transformers"}
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize(
    "table", ["ingest/corpus-*", "embed/corpus-*", "pools/*", "hard_negatives/*", "dark_examples/*", "teacher_scores/*", "shards/*"]
)
def test_a_deleted_shard_is_built_again_byte_for_byte(copied: Any, prep_run: Prep, parquet_files: Files, table: str) -> None:
    """Prevents: one lost file that costs a stage, or that comes back with other bytes and makes all later stages stale."""
    lost, before = shard_of(copied.store, f"{table}/*.parquet"), parquet_files(copied.store)
    times = {path: path.stat().st_mtime_ns for path in copied.store.rglob("*.parquet") if path != lost and "quarantine" not in path.parts}
    lost.unlink()
    lines = prep_run(copied.config)
    assert [line.split()[1:5] for line in lines if "built" in line] == [["built", "1", "of", "3" if "corpus" in table else "2"]]
    assert parquet_files(copied.store) == before
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_a_shard_cut_short_is_built_again(copied: Any, prep_run: Prep, parquet_files: Files) -> None:
    """Prevents: a final name that is enough to be complete."""
    before, cut = parquet_files(copied.store), shard_of(copied.store, "confidence/*/*.parquet")
    cut.write_bytes(cut.read_bytes()[:-20])
    assert states(copied.config)["confidence"] == "would build 1 of 2 shards shard 0: file is cut short or damaged"
    prep_run(copied.config)
    assert parquet_files(copied.store) == before


def test_a_shard_of_other_settings_is_not_taken(copied: Any, prep_run: Prep, parquet_files: Files) -> None:
    """Prevents: a file copied from another experiment that counts as this one's."""
    before, shard = parquet_files(copied.store), shard_of(copied.store, "confidence/*/*.parquet")
    prep_run(copied.config, **{"hard_negatives.num_negatives": 4})
    other = next(path for path in sorted(copied.store.glob(f"confidence/*/{shard.name}")) if path.parent != shard.parent)
    shutil.copyfile(other, shard)
    assert "file belongs to other settings" in states(copied.config)["confidence"]
    prep_run(copied.config)
    assert shard.read_bytes() == before[str(shard.relative_to(copied.store))]


def test_a_lost_manifest_is_written_again(copied: Any, prep_run: Prep) -> None:
    """Prevents: a kill between the last shard and the manifest that costs all shards."""
    manifest = shard_of(copied.store, "embed/corpus-*/manifest.json")
    before = json.loads(manifest.read_text())
    manifest.unlink()
    assert states(copied.config)["embed.corpus"] == "all shards built, the manifest is missing and would be written"
    assert any(line.startswith("embed.corpus") and "built 0 of 3" in line for line in prep_run(copied.config))
    assert json.loads(manifest.read_text())["content_digest"] == before["content_digest"]


def test_a_flipped_byte_stops_the_run_and_names_the_file(copied: Any, prep_run: Prep, parquet_files: Files) -> None:
    """Prevents: a flipped bit that is trained on; and a run that cannot go on after the remedy it names."""
    before, hit = parquet_files(copied.store), shard_of(copied.store, "dark_examples/*/*.parquet")
    damage(hit)
    shutil.rmtree(copied.store / "teacher_scores")
    code, output = prep("run", f"config={copied.config}")
    assert code == EXIT_FAILED and str(hit) in output and "delete it and start the same `prep run` again" in output
    hit.unlink()
    prep_run(copied.config)
    assert parquet_files(copied.store) == before


def test_a_changed_setting_builds_what_depends_on_it_and_says_why(copied: Any, prep_run: Prep) -> None:
    """Prevents: stale negatives under new settings, an embedding of the corpus for nothing, or a plan that does not say why."""
    found = states(copied.config, **{"hard_negatives.num_negatives": 4})
    assert all(found[label].startswith("complete") for label in LABELS[:6])
    assert "would build 2 of 2 shards" in found["hard_negatives"] and "negatives 3 -> 4" in found["hard_negatives"]
    assert all("waits for hard_negatives" in found[label] for label in LABELS[7:])
    lines = prep_run(copied.config, **{"hard_negatives.num_negatives": 4})
    assert [line.split()[0] for line in lines if "built" in line] == list(LABELS[6:])
    assert states(copied.config)["shards"].startswith("complete"), "the earlier settings' output must stay"


@pytest.mark.parametrize(
    "overrides",
    [{"train.learning_rate": 1e-4, "train.recipe": "hard_kd"}, {"runner.threads": 2, "runner.kind": "ray"}, {"teacher.batch_tokens": 128},
     {"runner.retries": 7, "ingest.max_bad_fraction": 0.5}],
    ids=str,
)  # fmt: skip
def test_execution_settings_make_nothing_stale(finished: Any, overrides: dict[str, object]) -> None:
    """Prevents: a learning rate or batch size that costs a day of teacher scoring."""
    assert all(state.startswith("complete") for state in states(finished.config, **overrides).values())


def test_models_and_collection_are_known_by_content(finished: Any, models: Any, collection: Path, tmp_path: Path) -> None:
    """Prevents: a model or collection moved elsewhere that makes everything stale."""
    for name, source in (("student", models.student), ("teacher", models.teacher), ("collection", collection)):
        shutil.copytree(source, tmp_path / name)
    moved = {"student.model": tmp_path / "student", "teacher.model": tmp_path / "teacher", "ingest.path": tmp_path / "collection"}
    assert all(state.startswith("complete") for state in states(finished.config, **moved).values())


def test_new_weights_under_the_old_path(copied: Any, models: Any, tmp_path: Path) -> None:
    """Prevents: a teacher trained further and saved in its place, whose old logits are used."""
    teacher = shutil.copytree(models.teacher, tmp_path / "teacher")
    settings = load({"config": str(copied.config), "teacher.model": str(teacher)})

    def namespace() -> str:
        return resolve_teacher(settings.teacher, device="cpu").namespace(DigestCache(copied.store / "digests.json"))

    before, weights = namespace(), teacher / "model.safetensors"
    content, times = bytearray(weights.read_bytes()), weights.stat()
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert namespace() != before
    found = states(copied.config, **{"teacher.model": teacher})
    assert found["dark_examples"].startswith("complete"), "its tokenizer is the same"
    assert "would build 2 of 2" in found["teacher_scores"] and "teacher.weights" in found["teacher_scores"]


def test_stored_logits_are_never_scored_again(copied: Any, prep_run: Prep, parquet_files: Files, count_scored: list[int]) -> None:
    """Prevents: the costliest work of all, done twice."""
    before = parquet_files(copied.store)
    shutil.rmtree(copied.store / "teacher_scores")
    prep_run(copied.config)
    assert count_scored == [] and parquet_files(copied.store) == before


def test_only_new_pairs_are_scored(copied: Any, prep_run: Prep, count_scored: list[int]) -> None:
    """Prevents: a larger m, or new masks, that pays for the pairs that were there."""
    prep_run(copied.config, **{"hard_negatives.num_negatives": 4})
    assert sum(count_scored) == 14 * 2  # a negative and its mix, for each query
    count_scored.clear()
    prep_run(copied.config, **{"dark_examples.mask_draws": 2})
    assert 14 * 4 < sum(count_scored) <= 14 * 5  # two masks of a text may happen to be the same
    files = copied.store.glob("teacher_scores/*/journal.jsonl")
    journals = [line for path in files for line in map(json.loads, path.read_text().splitlines()) if line["shards"]]
    assert sum(line["scored"] for line in journals) >= 14 * 11 and all(
        line["pairs"] == line["scored"] + line["cached"] for line in journals
    )


def test_part_of_a_lost_logit_store_is_scored(copied: Any, prep_run: Prep, parquet_files: Files, count_scored: list[int]) -> None:
    """Prevents: a store with holes, as a kill leaves it, that gives other logits than an unbroken run."""
    before = parquet_files(copied.store)
    shutil.rmtree(copied.store / "teacher_scores")
    segments = sorted(copied.store.glob("teacher_logits/*/*.parquet"))
    segments[0].unlink()
    prep_run(copied.config)
    assert 0 < sum(count_scored) < 14 * 12 and parquet_files(copied.store) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "stage=teacher_score"], "stage=teacher_scores"),
        (["plan", "stage=hard_negative"], "stage=hard_negatives"),
        (["path", "stage=embed", "table=corpis"], "table=corpus"),
        (["run", "hard_negatives.negativs=3"], "hard_negatives.num_negatives"),
        (["run", "student.model=/no/such/folder"], "student.model=/no/such/folder"),
        (["run", "ingest.path=/no/such/folder"], "/no/such/folder"),
        (["inspect", "query=nobody"], "query=nobody"),
        (["run", "runner.workers=0"], "runner.workers"),
    ],
    ids=str,
)
def test_bad_words_are_told_with_what_was_meant(finished: Any, words: list[str], expected: str) -> None:
    """Prevents: a traceback, or worse a run, for a misspelt word."""
    code, output = prep(words[0], f"config={finished.config}", *words[1:])
    assert code == EXIT_BAD_INPUT and expected in output and "Traceback" not in output


def test_a_stage_before_its_inputs(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: a cluster job of one stage that silently runs all stages before it, or fails without saying which is missing."""
    config = tiny_experiment(tmp_path)
    code, output = prep("run", f"config={config}", "stage=teacher_scores")
    assert code == EXIT_BAD_INPUT and re.search(r"teacher_scores needs ingest\.\w+, .*run stage=ingest first", output)
    code, output = prep("path", f"config={config}")
    assert code == EXIT_BAD_INPUT and "prep run stage=" in output


def test_no_gpu_is_told_at_once(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: a run that waits for ever for a GPU that is not there, or fails after the first stage."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, output = prep("run", f"config={tiny_experiment(tmp_path)}", "runner.device=cuda")
    assert code == EXIT_BAD_INPUT and "no usable GPU; use runner.device=cpu" in output and not list(tmp_path.rglob("*.parquet"))


def test_a_stage_without_a_model_needs_no_gpu(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: a cluster's CPU jobs that must hold a GPU, or a config that must differ between its jobs."""
    code, output = prep("run", f"config={tiny_experiment(tmp_path)}", "stage=ingest", "runner.device=cuda")
    assert code == 0, output


def test_a_finished_search_needs_no_gpu(copied: Any) -> None:
    """Prevents: stage=hard_negatives on a CPU node, refused for the sake of pools that are complete."""
    shutil.rmtree(copied.store / "hard_negatives")
    code, output = prep("run", f"config={copied.config}", "stage=hard_negatives", "runner.device=cuda")
    assert code == 0 and "pools.ranked     complete" in output and "hard_negatives   built 2 of 2" in output, output


def test_precision_on_a_gpu_is_the_same_on_every_machine(
    tmp_path: Path, tiny_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: vectors made on the GPU node that the CPU node takes for another model's, since its processor has no bf16."""
    from pipeline.stages.embed import CORPUS
    from retrieval.compute import precision

    auto = {"embed.precision": "auto", "teacher.precision": "auto", "runner.device": "cuda"}
    experiment = load({"config": str(tiny_experiment(tmp_path, **auto))})
    keys = []
    for has_bf16 in (True, False):
        monkeypatch.setattr(precision, "cpu_computes_bf16", lambda has_bf16=has_bf16: has_bf16)
        keys.append(CORPUS.key(experiment, ResolvedModels(experiment)))
    assert keys[0] == keys[1] and keys[0]["precision"] == "bf16-linear"


def test_queries_have_a_precision_of_their_own(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: passages embedded anew because queries are to be read otherwise, or the other way round."""
    from pipeline.stages.embed import CORPUS, QUERIES

    def keys(**settings: str) -> tuple[Any, Any]:
        experiment = load({"config": str(tiny_experiment(tmp_path, **{"runner.device": "cuda", **settings}))})
        models = ResolvedModels(experiment)
        return CORPUS.key(experiment, models), QUERIES.key(experiment, models)

    low, low_queries = keys(**{"embed.precision": "bf16"}), keys(**{"embed.precision": "bf16", "embed.query_precision": "fp16"})
    exact = keys(**{"embed.precision": "fp32"})
    assert (low[0]["precision"], low[1]["precision"], low_queries[1]["precision"]) == ("bf16-linear", "fp32", "fp16-linear")
    assert low[0] == low_queries[0] != exact[0] and low[1] == exact[1] != low_queries[1]


def test_workers_get_the_driver_s_precision(tmp_path: Path, tiny_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a worker on an older processor that fills a bf16 table with fp32 vectors."""
    from pipeline.executors.base import with_precisions
    from retrieval.compute import precision

    experiment = load({"config": str(tiny_experiment(tmp_path, **{"embed.precision": "auto", "teacher.precision": "auto"}))})
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: True)
    sent = with_precisions(experiment, ResolvedModels(experiment))
    assert (sent.embed.precision, sent.teacher.precision) == ("bf16", "bf16")


def test_a_run_file_of_another_collection_is_told(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: empty training shards and exit code 0."""
    (tmp_path / "other.run").write_text("stranger Q0 elsewhere 1 1.0 x\n")
    source = {"hard_negatives.source": "run", "hard_negatives.run_file": tmp_path / "other.run"}
    config = tiny_experiment(tmp_path, **source)
    for _ in range(2):  # the second time the table is complete, and still empty
        code, output = prep("run", f"config={config}")
        output = " ".join(output.split())
        assert code == EXIT_BAD_INPUT and "other.run has no passage for any of the 14 training queries, such as train" in output
        assert "its first line is of query stranger" in output


def test_a_dead_address_is_told_soon(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: Ray's own minutes of retries before it says that nobody is there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    code, output = prep("run", f"config={tiny_experiment(tmp_path)}", "runner=ray", f"runner.address={address}")
    assert code == EXIT_BAD_INPUT and f"runner.address={address} does not answer" in output and time.monotonic() - started < 15


def test_an_unwritable_store_is_told(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: a traceback from the first stage's first shard."""
    (tmp_path / "file").write_text("")
    code, output = prep("run", f"config={tiny_experiment(tmp_path)}", f"store={tmp_path / 'file' / 'store'}")
    assert code == EXIT_BAD_INPUT and "cannot be written" in output


@pytest.mark.parametrize("has_inputs", [False, True])
def test_no_table_is_begun_where_the_store_is_gone(tmp_path: Path, has_inputs: bool) -> None:
    """Prevents: a table's folder on the disk below a mount point, made by a driver whose store was unmounted between two tables; and one
    that is told to make the inputs again."""
    store, nothing = tmp_path / "store", cast(Any, None)
    (store / "claims").mkdir(parents=True)
    of_before: dict[str, Any] = {"ingest.corpus": SimpleNamespace(manifest=SimpleNamespace(shards=[0]), has=lambda shard: False)}
    plan = TablePlan(embed.CORPUS, folder=store / "embed" / "a", shard_count=1, stale={0: "new"}, inputs=of_before if has_inputs else {})
    with kept(store / "claims", within=store):
        store.rename(tmp_path / "unmounted")
        with pytest.raises(FolderGone):
            build_stale(plan, nothing, nothing, print)
    assert not store.exists()


def test_a_table_in_place_of_the_store_is_told(finished: Any) -> None:
    """Prevents: tables written into a table."""
    (folder,) = finished.store.glob("shards/*")
    code, output = prep("run", f"config={finished.config}", f"store={folder}", "stage=ingest")
    assert code == EXIT_BAD_INPUT and f"store={folder} is the stored table shards" in output and not (folder / "ingest").exists()


def test_read_only_looks(finished: Any) -> None:
    """Prevents: looks that fail on a complete store, write to it, or leave out what they are for."""
    config = f"config={finished.config}"
    code, output = prep("path", config, "stage=embed", "table=corpus")
    assert code == 0 and (Path(output.strip()) / "manifest.json").is_file() and "/embed/corpus-" in output
    code, output = prep("path", config)
    assert code == 0 and Path(output.strip()).parent.name == "shards"
    code, output = prep("status", config)
    assert code == 0 and all(label in output for label in LABELS) and output.count("complete") == len(LABELS) and "unjudged" not in output
    code, output = prep("inspect", config, "query=train3", "width=40")
    assert code == 0 and output.startswith("train3 ") and output.count("reinforced negative") == 3 and output.count("noisy positive") == 5
    assert "C(q) -" in output and "[MASK]" in output and "[SEP]" in prep("inspect", config)[1]
    code, output = prep("cache", "stats", config)
    assert code == 0 and re.search(r"[0-9a-f]{12} +16[0-8] pairs", output)
    assert prep("cache", "stat", config)[0] == EXIT_BAD_INPUT
    assert prep("inspect", config, "width=wide")[0] == EXIT_BAD_INPUT


def test_looks_at_an_empty_store(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: a first look that fails because nothing is there yet."""
    config = tiny_experiment(tmp_path)
    found = states(config)
    assert "would build 3 of 3 shards shard 0-2: never built" in found["ingest.corpus"]
    assert all("waits for ingest" in found[label] for label in LABELS[2:])
    assert prep("status", f"config={config}")[0] == 0 and prep("cache", "stats", f"config={config}")[0] == 0
    assert prep("inspect", f"config={config}")[0] == EXIT_BAD_INPUT


def test_brackets_in_a_path_are_no_markup(tmp_path: Path, tiny_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a folder shown without a part of its name."""
    config = tiny_experiment(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, output = prep("status", f"config={config}", "store=a [red]b [/x]")
    assert code == 0 and "a [red]b [/x]/ingest/corpus-" in output


def test_what_is_left_out_is_told(
    tmp_path: Path, tiny_experiment: Callable[..., Path], collection: Path, prep_run: Prep, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents: records that are dropped below the limit without a word."""
    shutil.copytree(collection, tmp_path / "c")
    with open(tmp_path / "c" / "corpus.jsonl", "a") as file:
        file.write('{"_id": "new", "text": " "}\n{"id": "x", "contents": "y"}\n{"_id": "d0", "text": "again"}\n')
    config = tiny_experiment(tmp_path, **{"ingest.path": tmp_path / "c", "ingest.max_bad_fraction": 0.1})
    lines = prep_run(config, stage="ingest")
    (warning,) = [line for line in lines if line.startswith("warning")]
    said = "ingest.corpus: 3 of 63 records are broken and left out (1 duplicate id, 1 empty text, 1 no id); listed in "
    assert said in warning and Path(warning.rpartition("listed in ")[2]).is_file()
    code, output = prep("run", f"config={config}", f"store={tmp_path / 's2'}", "ingest.max_bad_fraction=0", "stage=ingest")
    assert code == EXIT_BAD_INPUT
    assert "corpus.jsonl:62: no id: it has 'id, contents'; expected _id and text" in output


@pytest.mark.medium
def test_an_interrupted_run_goes_on(
    finished: Any, tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep, parquet_files: Files
) -> None:
    """Prevents: a job killed by its batch queue that starts anew, leaves litter, or ends in other bytes."""
    config = tiny_experiment(tmp_path / "run")
    script = Path(sys.executable).parent / "prep"
    process = subprocess.Popen([script, "run", f"config={config}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "store" / "teacher_scores").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == EXIT_INTERRUPTED and "the same command goes on from here" in output, output
    assert not list((tmp_path / "run" / "store").rglob("*.tmp"))
    assert not list((tmp_path / "run" / "store").glob("shards/*/manifest.json"))
    lines = prep_run(config)
    assert all("complete" in line for line in lines[:8]) and "built" in lines[-1]
    assert parquet_files(config.parent / "store") == parquet_files(finished.store)


def test_a_damaged_journal_loses_its_damaged_lines_alone(tmp_path: Path) -> None:
    """Prevents: a table that cannot be sealed, or a report that cannot be made, for a note of seconds."""
    good = '{"shards": [0], "seconds": 1.5, "wall": 2, "pairs": 3}'
    bad = ["", "[]", "3", '{"shards": [1], "secon', '{"seconds": 1}', '{"seconds": [], "wall": 2}', good.replace("3", "{}"), "[" * 5000]
    (tmp_path / "journal.jsonl").write_bytes("\n".join([good, *bad, good]).encode() + b"\n\xff\xfe")
    assert [line["pairs"] for line in read_journal(tmp_path)] == [3, 3]
    assert read_journal(tmp_path / "none") == []


def test_a_complete_shard_is_looked_at_once(copied: Any, prep_run: Prep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: thousands of shards of a network file system opened again for each table that reads them, before anything is built."""
    looked: Counter[Path] = Counter()
    read = completeness.read_footer

    def counted(path: Path) -> Any:
        looked[path] += 1
        return read(path)

    monkeypatch.setattr(completeness, "read_footer", counted)
    (copied.store / completeness.FILE_NAME).unlink(missing_ok=True)
    prep_run(copied.config)
    assert looked.keys() >= set(copied.store.glob("embed/*/part-*")) and set(looked.values()) == {1}
