"""Teacher scores: paid once, whoever asks; never lost, wherever a job is killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.children import loaded_by
from support.stores import candidates, distinct_pairs

from data.config.settings import load
from data.digests import json_digest, pair_key
from data.errors import UserError
from data.logits.segment import as_keys
from data.logits.store import LogitStore
from data.tables.shards import read_shard, write_shard
from pipeline.scoring.requested_pairs import RequestedPairs
from pipeline.scoring.windows import spans_of, windows
from retrieval.models.marks import Marks

Prep = Callable[..., list[str]]
Files = Callable[[Path], dict[str, bytes]]
ROWS = 168  # 14 queries with 12 candidates


@pytest.mark.parametrize(
    "overrides",
    [{}, {"train.objective.supervised_weight": 0.5}, {"train.epochs": 9}, {"teacher.batch_tokens": 64}, {"teacher.segment_pairs": 10},
     {"runner.threads": 2}, {"train.recipe": "hard_kd"}, {"student.passage_tokens": 48}, {"teacher.compile": False}],
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


def of_a_gpu(store: Path) -> Path:
    """Make the logits of a store those of a GPU, as it would have filed them; their folder."""
    (folder,) = (store / "teacher_logits").iterdir()
    note = json.loads((folder / "namespace.json").read_text())
    note["key"]["precision"] += "-cuda"
    (folder / "namespace.json").write_text(json.dumps(note))
    shutil.rmtree(store / "teacher_scores")
    return folder.rename(folder.with_name(json_digest(note["key"])))


def test_a_cpu_job_takes_the_logits_of_gpus_and_adds_none(copied: Any, prep_run: Prep, count_scored: list[int]) -> None:
    """Prevents: logits from GPUs that a CPU job pays for again, also after one that ended before its first logit; and a table of which a
    CPU scored the rest, under the same fingerprint."""
    (own,) = (path.name for path in (copied.store / "teacher_logits").iterdir())
    note = (copied.store / "teacher_logits" / own / "namespace.json").read_bytes()
    folder = of_a_gpu(copied.store)
    (copied.store / "teacher_logits" / own).mkdir()
    (copied.store / "teacher_logits" / own / "namespace.json").write_bytes(note)
    prep_run(copied.config)
    assert count_scored == [] and {folder.name, own} == {path.name for path in (copied.store / "teacher_logits").iterdir()}
    with pytest.raises(UserError, match=r"has its logits from cuda, .* give runner\.device=cuda"):
        prep_run(copied.config, **{"hard_negatives.num_negatives": 5})
    assert count_scored == []
    shutil.rmtree(folder)
    prep_run(copied.config, **{"hard_negatives.num_negatives": 5})  # anew, and its own from now on
    assert count_scored


def test_a_gpu_job_that_scored_nothing_keeps_no_cpu_from_it(copied: Any, prep_run: Prep, count_scored: list[int]) -> None:
    """Prevents: a store that no CPU scores for, since a job on GPUs ended there before its first logit."""
    folder = of_a_gpu(copied.store)
    for segment in folder.glob("*.parquet"):
        segment.unlink()
    prep_run(copied.config)
    assert count_scored and len(list((copied.store / "teacher_logits").iterdir())) == 2


def test_weights_that_change_under_a_run_are_told(copied: Any, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: the logits of one model stored under the name of another, for good."""
    from data.errors import RunFailed
    from pipeline.run import run
    from retrieval.teachers import cross_encoder

    teacher = shutil.copytree(models.teacher, tmp_path / "teacher")
    shutil.rmtree(copied.store / "teacher_scores")
    shutil.rmtree(copied.store / "teacher_logits")
    plain = cross_encoder.load_cross_encoder

    def changed(*given: Any, **more: Any) -> Any:
        content = bytearray((teacher / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (teacher / "model.safetensors").write_bytes(content)
        return plain(*given, **more)

    monkeypatch.setattr(cross_encoder, "load_cross_encoder", changed)
    with pytest.raises(RunFailed, match="changed while this run was under way"):
        run(load({"config": str(copied.config), "teacher.model": str(teacher)}), stage="teacher_scores", say=lambda line: None)
    assert not list(copied.store.glob("teacher_logits/*/*.parquet"))


@pytest.mark.medium
def test_a_warm_store_loads_no_model(copied: Any) -> None:
    """Prevents: a minute of loading a large teacher, and a GPU, to read numbers from a file."""
    shutil.rmtree(copied.store / "teacher_scores")
    done, loaded = loaded_by("prep", "run", f"config={copied.config}", "stage=teacher_scores")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not loaded & {"transformers", "tokenizers", "retrieval.compute.low_precision"}


def test_wanted_pairs_are_the_rows_pairs(finished: Any) -> None:
    """Prevents: a row that gets another pair's logit."""
    for path in sorted(finished.store.glob("dark_examples/*/*.parquet")):
        rows = read_shard(path).to_pylist()
        wanted = RequestedPairs.read(path)
        keys = as_keys([pair_key(row["query"], row["text"]) for row in rows])
        np.testing.assert_array_equal(wanted.keys[wanted.pair_of_row], keys)
        assert len(np.unique(wanted.keys, axis=0)) == len(wanted.keys)
        first = [wanted.pair_of_row.tolist().index(pair) for pair in range(len(wanted.keys))]
        assert first == sorted(first)


def test_keys_with_a_half_in_common_stay_apart(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: two pairs taken for one because the first halves of their hashes are the same."""
    from pipeline.scoring import requested_pairs

    def colliding(queries: Any, counts: Any, texts: Any) -> bytes:
        of_rows = [query for query, count in zip(queries.to_pylist(), counts.tolist(), strict=True) for _ in range(count)]
        pairs = zip(of_rows, texts.to_pylist(), strict=True)
        return b"".join(bytes(7) + bytes([len(text) % 3]) + bytes(7) + bytes([len(query) % 5]) for query, text in pairs)

    monkeypatch.setattr(requested_pairs, "pair_keys", colliding)
    path = sorted(finished.store.glob("dark_examples/*/*.parquet"))[0]
    rows = [(len(row["text"]) % 3, len(row["query"]) % 5) for row in read_shard(path).to_pylist()]
    wanted = RequestedPairs.read(path)
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
    spans = spans_of(tmp_path / "s.parquet", rows)
    nothing = np.zeros(0, np.int64)
    found = list(windows(tmp_path / "s.parquet", spans, nothing, nothing.astype(bool), None, marks=Marks(), ids=True))  # type: ignore[arg-type]
    listed = [window.ids.column("query_id").to_pylist() for window in found if window.ids is not None]
    assert [row for window in listed for row in window] == [str(n) for n in range(count)]
    assert max(map(len, listed)) <= rows and max(span.stop - span.start for span in spans) <= rows


@pytest.mark.medium
@pytest.mark.parametrize("segment_pairs", [1, 5, 100])
def test_segments_of_any_size_give_the_same_table_within_rounding(
    copied: Any, prep_run: Prep, count_scored: list[int], monkeypatch: pytest.MonkeyPatch, segment_pairs: int
) -> None:
    """Prevents: a pair lost or doubled at a window's edge; a pile of small segments that stays."""
    appended: list[int] = []
    plain = LogitStore.append
    monkeypatch.setattr(
        LogitStore, "append", lambda self, keys, scores, **more: (appended.append(len(keys)), plain(self, keys, scores, **more))[1]
    )
    (before,) = [read_shard(path).column("logit").to_numpy() for path in sorted(copied.store.glob("teacher_scores/*/part-00000*"))]
    shutil.rmtree(copied.store / "teacher_scores")
    shutil.rmtree(copied.store / "teacher_logits")
    prep_run(copied.config, **{"teacher.segment_pairs": segment_pairs})
    (after,) = [read_shard(path).column("logit").to_numpy() for path in sorted(copied.store.glob("teacher_scores/*/part-00000*"))]
    np.testing.assert_allclose(before, after, atol=1e-5)
    assert sum(count_scored) == distinct_pairs(copied.store)
    stored = [len(read_shard(path)) for path in copied.store.glob("teacher_logits/*/*.parquet")]
    assert sum(stored) == sum(appended) == distinct_pairs(copied.store) and max(appended) <= segment_pairs
    assert len(stored) == 2 < len(appended) if segment_pairs < 100 else sorted(stored) == sorted(appended)


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


# The children note every pair before they score it, and are slowed down, so that a kill can fall into any part of the work.
def test_hits_are_journalled_by_namespace(finished: Any) -> None:
    """Prevents: hit rates of one teacher that count another one's."""
    journals = finished.store.glob("teacher_scores/*/journal.jsonl")
    lines = [line for path in journals for line in map(json.loads, path.read_text().splitlines()) if line["shards"]]
    namespace = next((finished.store / "teacher_logits").iterdir()).name
    assert lines and all(line["namespace"] == namespace and line["pairs"] == line["cached"] + line["scored"] for line in lines)
