"""Teacher scores: paid once, whoever asks; never lost, wherever a job is killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.config.settings import load
from data.digests import pair_key
from data.logits.segment import as_keys
from data.logits.store import LogitStore
from data.tables.shards import read_shard, write_shard
from pipeline.scoring.requested_pairs import WantedPairs
from pipeline.stages.teacher_scores import _row_windows
from retrieval.compute.precision import cpu_computes_bf16
from retrieval.compute.prefetch import ahead, behind

Prep = Callable[..., list[str]]
Files = Callable[[Path], dict[str, bytes]]
ROWS = 168  # 14 queries with 12 candidates


def candidates(store: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(store.glob("dark_examples/*/*.parquet")) for row in read_shard(path).to_pylist()]


def distinct_pairs(store: Path) -> int:
    return len({(row["query"], row["text"]) for row in candidates(store)})


@pytest.mark.parametrize(
    "overrides",
    [{}, {"train.objective.supervised_weight": 0.5}, {"train.epochs": 9}, {"teacher.batch_tokens": 64}, {"teacher.segment_pairs": 10},
     {"runner.threads": 2}, {"train.recipe": "hard_kd"}, {"student.passage_tokens": 48}, {"teacher.compile": "off"}],
    ids=str,
)  # fmt: skip
def test_what_does_not_touch_a_pair_scores_nothing(copied: Any, prep_run: Prep, count_scored: list[int], overrides: dict[str, Any]) -> None:
    """Prevents: a new weight, batch size or recipe that pays the teacher again."""
    shutil.rmtree(copied.store / "teacher_scores")  # the logit store alone must do
    prep_run(copied.config, **overrides)
    assert count_scored == []


def test_more_negatives_score_only_the_new_ones(copied: Any, prep_run: Prep, count_scored: list[int]) -> None:
    """Prevents: m = 15 that pays for the ten of m = 10 again."""
    before = {(row["query"], row["text"]) for row in candidates(copied.store)}
    prep_run(copied.config, **{"hard_negatives.num_negatives": 5})
    new = {(row["query"], row["text"]) for row in candidates(copied.store)} - before
    assert sum(count_scored) == len(new) and len(new) <= 14 * 4


def test_other_masks_score_only_the_masked_ones(copied: Any, prep_run: Prep, count_scored: list[int]) -> None:
    """Prevents: a new masking seed that moves the negatives too, or pays for them."""
    before = {(row["query"], row["text"]) for row in candidates(copied.store)}
    prep_run(copied.config, **{"dark_examples.mask_seed": 7})
    new = [row for row in candidates(copied.store) if (row["query"], row["text"]) not in before]
    assert {row["candidate_kind"] for row in new} == {3} and 0 < sum(count_scored) == len({(row["query"], row["text"]) for row in new})


@pytest.mark.parametrize("change", ["weights", "length"])
def test_another_teacher_scores_all_in_a_namespace_of_its_own(
    copied: Any, models: Any, tmp_path: Path, prep_run: Prep, count_scored: list[int], change: str
) -> None:
    """Prevents: logits of another model, or of otherwise cut texts, taken for this one's."""
    teacher = shutil.copytree(models.teacher, tmp_path / "teacher")
    overrides: dict[str, Any] = {"teacher.model": teacher}
    if change == "weights":
        content = bytearray((teacher / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (teacher / "model.safetensors").write_bytes(content)
    else:
        overrides["teacher.max_tokens"] = 60
    before = set((copied.store / "teacher_logits").iterdir())
    prep_run(copied.config, **overrides)
    assert sum(count_scored) == distinct_pairs(copied.store) and len(set((copied.store / "teacher_logits").iterdir()) - before) == 1


def test_the_device_is_not_in_the_namespace(copied: Any) -> None:
    """Prevents: logits from GPUs that a CPU job pays for again."""
    from data.digests import DigestCache
    from retrieval.teachers.cross_encoder import resolve_teacher

    for precision in ("fp32", "bf16"):
        teacher = load({"config": str(copied.config), "teacher.precision": precision}).teacher
        if precision == "fp32" or cpu_computes_bf16():
            names = {resolve_teacher(teacher, device=device).namespace(DigestCache(copied.store / "d.json")) for device in ("cpu", "cuda")}
            assert len(names) == 1


def test_weights_that_change_under_a_run_are_told(copied: Any, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: the logits of one model stored under the name of another, for good."""
    from data.errors import RunFailed
    from pipeline.run import run
    from pipeline.stages import teacher_scores

    teacher = shutil.copytree(models.teacher, tmp_path / "teacher")
    shutil.rmtree(copied.store / "teacher_scores")
    shutil.rmtree(copied.store / "teacher_logits")
    plain = teacher_scores.load_cross_encoder

    def changed(*given: Any, **more: Any) -> Any:
        content = bytearray((teacher / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (teacher / "model.safetensors").write_bytes(content)
        return plain(*given, **more)

    monkeypatch.setattr(teacher_scores, "load_cross_encoder", changed)
    with pytest.raises(RunFailed, match="changed while this run began"):
        run(load({"config": str(copied.config), "teacher.model": str(teacher)}), stage="teacher_scores", say=lambda line: None)
    assert not list(copied.store.glob("teacher_logits/*/*.parquet"))


def test_a_warm_store_loads_no_model(copied: Any) -> None:
    """Prevents: a minute of loading a large teacher, and a GPU, to read numbers from a file."""
    shutil.rmtree(copied.store / "teacher_scores")
    code = f"""
import sys
from data.config.settings import load
from pipeline.run import run
run(load({{"config": {str(copied.config)!r}}}), stage="teacher_scores", say=print)
print("loaded", *sorted({{"transformers", "tokenizers", "retrieval.compute.mixed_precision"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].split() == ["loaded"], done.stdout + done.stderr


def test_wanted_pairs_are_the_rows_pairs(finished: Any) -> None:
    """Prevents: a row that gets another pair's logit."""
    for path in sorted(finished.store.glob("dark_examples/*/*.parquet")):
        rows = read_shard(path).to_pylist()
        wanted = WantedPairs.read(path)
        keys = as_keys([pair_key(row["query"], row["text"]) for row in rows])
        np.testing.assert_array_equal(wanted.keys[wanted.pair_of_row], keys)
        assert len(np.unique(wanted.keys, axis=0)) == len(wanted.keys)
        first = [wanted.pair_of_row.tolist().index(pair) for pair in range(len(wanted.keys))]
        assert first == sorted(first)


def test_keys_with_a_half_in_common_stay_apart(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: two pairs taken for one because the first halves of their hashes are the same."""
    from pipeline.scoring import requested_pairs as wanted_pairs

    monkeypatch.setattr(
        wanted_pairs, "pair_key", lambda query, text: bytes(7) + bytes([len(text) % 3]) + bytes(7) + bytes([len(query) % 5])
    )
    path = sorted(finished.store.glob("dark_examples/*/*.parquet"))[0]
    rows = [(len(row["text"]) % 3, len(row["query"]) % 5) for row in read_shard(path).to_pylist()]
    wanted = WantedPairs.read(path)
    assert [tuple(key) for key in wanted.keys.tolist()] == list(dict.fromkeys(rows))
    assert [tuple(wanted.keys[pair].tolist()) for pair in wanted.pair_of_row] == rows


@pytest.mark.parametrize("rows", [1, 7, 4096, 5000, 9000])
def test_windows_cover_all_rows_in_order(tmp_path: Path, rows: int) -> None:
    """Prevents: rows left out between two row groups, or a window that grows with the shard."""
    import pyarrow as pa

    from data.tables.schemas import CANDIDATES

    count = 9500 if rows > 100 else 50
    numbers = ("draw", "position", "candidate_kind")
    columns = {name: [1] * count if name in numbers else [str(n) for n in range(count)] for name in CANDIDATES.names}
    table = pa.table(columns, schema=CANDIDATES)
    write_shard(tmp_path / "s.parquet", table, {})
    windows = [window.column("query_id").to_pylist() for window in _row_windows(tmp_path / "s.parquet", rows)]
    assert [row for window in windows for row in window] == [str(n) for n in range(count)]
    assert max(map(len, windows)) <= rows


@pytest.mark.parametrize("segment_pairs", [1, 5, 100])
def test_segments_of_any_size_give_the_same_table_within_rounding(
    copied: Any, prep_run: Prep, count_scored: list[int], segment_pairs: int
) -> None:
    """Prevents: a pair lost or doubled at a window's edge."""
    (before,) = [read_shard(path).column("logit").to_numpy() for path in sorted(copied.store.glob("teacher_scores/*/part-00000*"))]
    shutil.rmtree(copied.store / "teacher_scores")
    shutil.rmtree(copied.store / "teacher_logits")
    prep_run(copied.config, **{"teacher.segment_pairs": segment_pairs})
    (after,) = [read_shard(path).column("logit").to_numpy() for path in sorted(copied.store.glob("teacher_scores/*/part-00000*"))]
    np.testing.assert_allclose(before, after, atol=1e-5)
    assert sum(count_scored) == distinct_pairs(copied.store)
    stored = [len(read_shard(path)) for path in copied.store.glob("teacher_logits/*/*.parquet")]
    assert sum(stored) == distinct_pairs(copied.store) and max(stored) <= segment_pairs


def test_a_damaged_segment_costs_its_own_pairs_only(copied: Any, prep_run: Prep, count_scored: list[int], parquet_files: Files) -> None:
    """Prevents: a flipped bit that is trained on, that stops every job, or that costs the whole store."""
    from typer.testing import CliRunner

    from pipeline.cli import app

    shutil.rmtree(copied.store / "teacher_logits")
    shutil.rmtree(copied.store / "teacher_scores")
    prep_run(copied.config, **{"teacher.segment_pairs": 20})
    before = parquet_files(copied.store)
    hit = sorted(copied.store.glob("teacher_logits/*/*.parquet"))[3]
    pairs = pq.read_metadata(hit).num_rows
    column = pq.read_metadata(hit).row_group(0).column(1)
    content = bytearray(hit.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 3] ^= 1
    hit.write_bytes(content)

    verified = CliRunner().invoke(app, ["cache", "verify", f"config={copied.config}"])
    assert verified.exit_code == 1 and hit.name in verified.output and "1 damaged" in verified.output
    assert CliRunner().invoke(app, ["cache", "verify", f"config={copied.config}"]).exit_code == 0
    shutil.rmtree(copied.store / "teacher_scores")
    count_scored.clear()
    prep_run(copied.config, **{"teacher.segment_pairs": 20})
    assert sum(count_scored) == pairs and parquet_files(copied.store) == before


def test_a_full_disk_is_told_and_the_next_run_goes_on(
    copied: Any, full_disk: Path, prep_run: Prep, count_scored: list[int], parquet_files: Files
) -> None:
    """Prevents: a traceback, half a segment, or all pairs scored again after the disk was full."""
    from data.errors import RunFailed

    shutil.rmtree(copied.store / "teacher_logits")
    shutil.rmtree(copied.store / "teacher_scores")
    namespaces = full_disk / "teacher_logits"
    namespaces.mkdir()
    (copied.store / "teacher_logits").symlink_to(namespaces, target_is_directory=True)
    ballast = full_disk / "ballast"
    ballast.write_bytes(b"x" * (256 - 40) * 1024)
    with pytest.raises(RunFailed, match="no space left"):
        prep_run(copied.config, **{"teacher.segment_pairs": 10})
    kept = sum(pq.read_metadata(path).num_rows for path in namespaces.glob("*/*.parquet"))
    assert 0 < kept < distinct_pairs(copied.store) and not list(full_disk.rglob("*.tmp"))
    ballast.unlink()
    count_scored.clear()
    prep_run(copied.config, **{"teacher.segment_pairs": 10})
    assert sum(count_scored) == distinct_pairs(copied.store) - kept


def test_items_are_made_ahead_and_errors_come_through() -> None:
    """Prevents: a window left out, or a failed write that nobody hears of."""
    assert list(ahead(range(5))) == list(range(5)) and list(ahead([])) == []

    def breaks() -> Any:
        yield 1
        raise OSError("tokenizer")

    items = ahead(breaks())
    assert next(items) == 1
    with pytest.raises(OSError, match="tokenizer"):
        next(items)

    def fails() -> None:
        raise OSError("full")

    done: list[int] = []
    with behind() as writes:
        for number in range(20):
            writes.do(done.append, number)
    assert done == list(range(20))
    with pytest.raises(OSError, match="full"), behind() as writes:
        writes.do(fails)


# The children note every pair before they score it, and are slowed down, so that a kill can fall into any part of the work.
SCORING = """
import os, time
import torch, transformers, pyarrow.parquet
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification, BertTokenizerFast
from data.config.settings import load
from pipeline.run import run
import pipeline.scoring.compile_choice, retrieval.mixed_precision, retrieval.unpadded
from retrieval.teachers.cross_encoder import TorchCrossEncoder

forward = TorchCrossEncoder.logits
def noted(self, ids, mask, segments):
    os.write(log, (str(len(ids)) + "\\n").encode())
    time.sleep(0.01)
    return forward(self, ids, mask, segments)
TorchCrossEncoder.logits = noted

def work(words):
    torch.set_num_threads(1)
    run(load(dict(word.split("=", 1) for word in words)), stage="teacher_scores", say=lambda line: None)
"""


@pytest.fixture(scope="module")
def zygotes(start_zygote: Callable[[str], Any]) -> list[Any]:
    return [start_zygote(SCORING), start_zygote(SCORING)]


def spelt(config: Path, words: dict[str, int]) -> list[str]:
    return [f"config={config}", *(f"{key}={value}" for key, value in words.items())]


def scored(log: Path) -> int:
    return sum(map(int, log.read_text().split())) if log.exists() else 0


def forget_scores(store: Path) -> None:
    for name in ("teacher_scores", "teacher_logits"):
        shutil.rmtree(store / name, ignore_errors=True)


WINDOW = 7


def test_killed_at_twenty_moments(copied: Any, tmp_path: Path, zygotes: list[Any], parquet_files: Files) -> None:
    """Prevents: a kill that loses more than the segments in flight, leaves half a segment, or ends in other bytes."""
    zygote, words = zygotes[0], {"teacher.segment_pairs": WINDOW}
    for name in ("first", "unbroken"):  # the first one also fills the machine's caches
        forget_scores(copied.store)
        started = time.monotonic()
        zygote.begin(tmp_path / name, *spelt(copied.config, words))
        assert zygote.end() == 0
    length, expected, pairs = time.monotonic() - started, parquet_files(copied.store), scored(tmp_path / "unbroken")
    assert pairs == distinct_pairs(copied.store)

    chance, kills, rounds = random.Random(20), 0, 0
    while kills < 20:
        rounds += 1
        forget_scores(copied.store)
        log, killed = tmp_path / f"round{rounds}", 0
        while True:
            child = zygote.begin(log, *spelt(copied.config, words))
            time.sleep(chance.uniform(0, length))
            if kills < 20:
                with contextlib.suppress(ProcessLookupError):  # it was done before
                    os.kill(child, signal.SIGKILL)
            code = zygote.end()
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills, killed = kills + 1, killed + 1
        assert parquet_files(copied.store) == expected, "other bytes than an unbroken run's"
        # In flight are the window that is scored and the one before it, which is being written.
        assert pairs <= scored(log) <= pairs + 2 * WINDOW * killed
        stored = LogitStore(copied.store, next((copied.store / "teacher_logits").iterdir()).name)
        assert stored.size()[0] == pairs and stored.verify() == []
    assert rounds <= 20


def test_two_jobs_fill_one_store_at_once(copied: Any, tmp_path: Path, zygotes: list[Any], prep_run: Prep, count_scored: list[int]) -> None:
    """Prevents: jobs that overwrite each other's logits, or that fail because of each other."""
    more = {"hard_negatives.num_negatives": 4}
    for stage in ("hard_negatives", "dark_examples"):
        prep_run(copied.config, stage=stage, **more)
    forget_scores(copied.store)
    words = {"teacher.segment_pairs": WINDOW}
    zygotes[0].begin(tmp_path / "one", *spelt(copied.config, words))
    zygotes[1].begin(tmp_path / "two", *spelt(copied.config, words | more))
    assert [zygote.end() for zygote in zygotes] == [0, 0]
    assert scored(tmp_path / "one") > 0 and scored(tmp_path / "two") > 0
    everything = distinct_pairs(copied.store)
    assert LogitStore(copied.store, next((copied.store / "teacher_logits").iterdir()).name).size()[0] == everything
    shutil.rmtree(copied.store / "teacher_scores")
    prep_run(copied.config)
    prep_run(copied.config, **more)
    assert count_scored == []


def descendants(process: int, *, title: bytes = b"") -> list[int]:
    """Processes below one, of a title, youngest last."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    found, front = [], [process]
    while front:
        front = [child for child, parent in parents.items() if parent in front]
        found += front
    titled = []
    for child in found:
        try:
            if (Path("/proc") / str(child) / "cmdline").read_bytes().startswith(title):
                titled.append(child)
        except OSError:
            continue
    return titled


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found through /proc")
@pytest.mark.parametrize("victim", ["worker", "driver", "all of Ray"])
def test_ray_killed_while_it_scores(copied: Any, victim: str, parquet_files: Files) -> None:
    """Prevents: what a killed actor, driver or Ray had scored and stored is lost, doubled, or ends in other bytes."""
    from pipeline.run import run

    settings = {"config": str(copied.config), "teacher.segment_pairs": "2"}
    forget_scores(copied.store)
    run(load(settings), stage="teacher_scores", say=lambda line: None)
    expected = parquet_files(copied.store)
    forget_scores(copied.store)

    words = ["run", *(f"{key}={value}" for key, value in settings.items()), "stage=teacher_scores", "runner=ray", "runner.workers=1"]
    script = Path(sys.executable).parent / "prep"
    process = subprocess.Popen([script, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    deadline, wanted = time.monotonic() + 60, random.Random(victim).randint(1, 40)  # segments, and then in the middle of the next
    while len(list(copied.store.glob("teacher_logits/*/*.parquet"))) < wanted and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    workers, everything = descendants(process.pid, title=b"ray::_RayWorker"), descendants(process.pid)
    hit = {"worker": workers, "driver": [process.pid], "all of Ray": [*everything, process.pid]}[victim]
    assert hit and process.poll() is None
    for one in hit:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    output, _ = process.communicate(timeout=90)
    for one in everything:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    if victim == "worker":
        assert process.returncode == 0, output  # it was replaced
    else:
        assert process.returncode == -signal.SIGKILL
        run(load(settings), stage="teacher_scores", say=lambda line: None)
    assert parquet_files(copied.store) == expected
    stored = LogitStore(copied.store, next((copied.store / "teacher_logits").iterdir()).name)
    rows = sum(pq.read_metadata(path).num_rows for path in stored.segment_paths())
    assert rows == stored.size()[0] == distinct_pairs(copied.store)


def test_hits_are_journalled_by_namespace(finished: Any) -> None:
    """Prevents: hit rates of one teacher that count another one's."""
    lines = [json.loads(line) for path in finished.store.glob("teacher_scores/*/journal.jsonl") for line in path.read_text().splitlines()]
    namespace = next((finished.store / "teacher_logits").iterdir()).name
    assert lines and all(line["namespace"] == namespace and line["pairs"] == line["cached"] + line["scored"] for line in lines)
