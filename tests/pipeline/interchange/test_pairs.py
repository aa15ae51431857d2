"""Pairs that are scored elsewhere: what is written, what comes back, and what of it is refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.stores import candidates

from data.config.arguments import Args
from data.config.settings import load
from data.errors import UserError
from data.logits.declared import DeclaredTeacher
from data.logits.segment import as_keys
from data.logits.store import LogitStore
from data.tables.shards import read_shard
from pipeline.interchange.pairs import export_pairs, import_pairs

Prep = Callable[..., list[str]]
NAMED: dict[str, Any] = {
    "teacher.backend": "imported", "teacher.model": "lab/vllm", "teacher.precision": "auto",
    "dark_examples.reinforced": False, "dark_examples.mask_ratios": [], "hard_negatives.source": "bm25",
}  # fmt: skip


def key_of(query: str, text: str) -> str:
    parts = [part.encode() for part in (query, text)]
    return hashlib.blake2b(b"".join(len(part).to_bytes(4, "little") + part for part in parts), digest_size=16).hexdigest()


def exported(config: Path, out: Path, missing: str = "true", **overrides: Any) -> list[str]:
    lines: list[str] = []
    experiment = load({"config": str(config), **{key: str(value) for key, value in overrides.items()}})
    export_pairs(experiment, Args({"out": str(out), "missing": missing}), say=lines.append)
    return lines


def imported(config: Path, answers: Path, *words: str) -> str:
    lines: list[str] = []
    import_pairs([str(answers), "format=pairs", f"config={config}", *words], say=lines.append)
    return "\n".join(lines)


def json_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Any, prep_run: Prep) -> tuple[Path, Path]:
    """(config, pairs.jsonl) of a declared teacher, mined and not scored."""
    folder = tmp_path_factory.mktemp("mined")
    config = tiny_experiment(folder, **NAMED)
    for stage in ("ingest", "pools", "hard_negatives", "dark_examples"):
        prep_run(config, stage=stage)
    exported(config, folder / "pairs.jsonl")
    return config, folder / "pairs.jsonl"


@pytest.fixture
def asked(mined: tuple[Path, Path], tmp_path: Path, tiny_experiment: Any) -> tuple[Path, list[dict[str, Any]]]:
    """(config of a copy, the pairs that were exported)."""
    config = tiny_experiment(tmp_path / "run", **NAMED)
    shutil.copytree(mined[0].parent / "store", tmp_path / "run" / "store")
    return config, [json.loads(line) for line in mined[1].read_text().splitlines()]


def stored(config: Path, keys: list[str], scores: str = "logit") -> list[float]:
    place = LogitStore(config.parent / "store", DeclaredTeacher("lab/vllm", "1", scores).namespace)  # type: ignore[arg-type]
    return place.lookup(as_keys([bytes.fromhex(key) for key in keys])).logits.tolist()


def segments(config: Path) -> list[Path]:
    return list((config.parent / "store" / "teacher_logits").glob("*/*.parquet"))


def test_what_is_written_is_what_the_teacher_would_read(mined: tuple[Path, Path]) -> None:
    """Prevents: a pair written twice or left out; a key under which no run looks for it."""
    config, out = mined
    written = [json.loads(line) for line in out.read_text().splitlines()]
    asked = {(row["query"], row["text"]) for row in candidates(config.parent / "store")}
    assert {(row["query"], row["text"]) for row in written} == asked and len(written) == len(asked)
    assert all(row["key"] == key_of(row["query"], row["text"]) for row in written)


@pytest.mark.medium
def test_the_answers_complete_a_run(asked: tuple[Path, list[dict[str, Any]]], tmp_path: Path, prep_run: Prep) -> None:
    """Prevents: scores that come back under other pairs; a second round that asks for all of them again."""
    config, pairs = asked
    scores = {pair["key"]: math.sin(place) * 5 for place, pair in enumerate(pairs)}
    half = [{"key": key, "score": score, "custom": [1]} for key, score in list(scores.items())[: len(pairs) // 2]]
    told = imported(config, json_lines(tmp_path / "a.jsonl", [*half, {"key": pairs[-1]["key"], "score": None}]))
    assert f"{len(half)} logits of lab/vllm stored" in told and "1 answers have no score" in told
    assert f"{len(pairs) - len(half):,} of {len(pairs):,} pairs have no logit yet" in told
    with pytest.raises(UserError, match=f"{len(pairs) - len(half)} of {len(pairs)} distinct pairs"):
        prep_run(config)
    exported(config, tmp_path / "rest.parquet")
    rest = pq.read_table(tmp_path / "rest.parquet").to_pylist()
    assert {row["key"] for row in rest} == scores.keys() - {row["key"] for row in half}
    answers = pa.table(
        {"key": [row["key"] for row in rest], "score": [scores[row["key"]] for row in rest], "text": [row["text"] for row in rest]}
    )
    pq.write_table(answers, tmp_path / "b.parquet")
    assert "all " in imported(config, tmp_path / "b.parquet")
    prep_run(config)
    rows, logits = (
        [row for path in sorted((config.parent / "store").glob(f"{stage}/*/*.parquet")) for row in read_shard(path).to_pylist()]
        for stage in ("dark_examples", "teacher_scores")
    )
    for row, logit in zip(rows, logits, strict=True):
        assert logit["logit"] == pytest.approx(scores[key_of(row["query"], row["text"])], abs=1e-6)
    with pytest.raises(UserError, match="have a logit; nothing is written"):
        exported(config, tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()
    exported(config, tmp_path / "all.jsonl", missing="false")
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == len(pairs)


def test_the_same_answers_again_store_nothing(asked: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Prevents: a store that grows with each repeated import; another logit that quietly takes the place of the first."""
    config, pairs = asked
    answers = json_lines(tmp_path / "a.jsonl", [{"key": pair["key"].upper(), "logit": 0.5} for pair in [*pairs, pairs[0]]])
    assert f"{len(pairs)} logits" in imported(config, answers)
    assert len(segments(config)) == 1
    assert f"0 logits of lab/vllm stored, {len(pairs)} were there already" in imported(config, answers)
    assert len(segments(config)) == 1
    with pytest.raises(UserError, match=r"line 2: another logit than is stored: declare another teacher.revision"):
        imported(
            config, json_lines(tmp_path / "b.jsonl", [{"key": pairs[0]["key"], "score": 0.5}, {"key": pairs[1]["key"], "score": 0.75}])
        )


STRANGE: dict[str, tuple[Any, str]] = {
    "another pair": ({"key": "0" * 32, "score": 1}, "a pair that is not asked for"),
    "half a key": ({"key": "abc", "score": 1}, "no key: 32 hex digits are expected, not 'abc'"),
    "no key": ({"score": 1}, "no key"),
    "a number as key": ({"key": 12, "score": 1}, "no key"),
    "NaN": ({"key": 1, "score": float("nan")}, "no logit: the score is nan"),
    "infinity": ({"key": 1, "score": float("inf")}, "no logit: the score is inf"),
    "beyond float32": ({"key": 1, "score": 1e39}, "no logit"),
    "beyond float64": ({"key": 1, "score": 10**400}, "no logit"),
    "a word": ({"key": 1, "score": "yes"}, "no number: the score is 'yes'"),
    "true": ({"key": 1, "score": True}, "no number"),
    "a list": ([1, 2], "no answer: a JSON object"),
    "another text": ({"key": 1, "score": 1, "query": "q", "text": "t"}, "a text of another key"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_strange_answer_is_refused_with_its_line(case: str, asked: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Prevents: a logit of a pair that nobody asked for, NaN in the store, or half a file stored before the fault is found."""
    config, pairs = asked
    strange, told = STRANGE[case]
    if isinstance(strange, dict) and strange.get("key") == 1:
        strange = {**strange, "key": pairs[1]["key"]}
    answers = json_lines(tmp_path / "a.jsonl", [{"key": pairs[0]["key"], "score": 2}, strange, {"key": pairs[2]["key"], "score": 3}])
    with pytest.raises(UserError, match=rf"1 of 3 answers cannot be taken, and nothing is stored(.|\n)*a.jsonl line 2: {told}"):
        imported(config, answers)
    assert not segments(config)
    told = imported(config, answers, "max_bad_fraction=0.5")
    assert "warning: 1 of 3 answers are left out" in told and "2 logits of lab/vllm stored" in told
    assert stored(config, [pairs[0]["key"], pairs[2]["key"]]) == [2, 3]


def test_two_scores_of_a_pair_are_refused(asked: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Prevents: whichever of two scores happens to be read last."""
    config, pairs = asked
    with pytest.raises(UserError, match="line 3: two scores of one pair"):
        imported(
            config,
            json_lines(tmp_path / "a.jsonl", [{"key": pairs[place]["key"], "score": score} for place, score in ((0, 1), (1, 1), (0, 2))]),
        )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no answer"),
        (b'{"key": "x"', "no answer: no JSON"),
        (b'[{"key": "x"}]', "is one JSON array"),
        (b"key\tscore\nabc\t1\textra\n", "3 columns"),
        (b"PAR1nothing", "cannot be read as Parquet"),
        ("key\tscore\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_that_holds_no_answers(content: bytes, told: str, asked: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Prevents: a traceback, or an import of nothing that looks like a success."""
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=told):
        imported(asked[0], tmp_path / "a")
    with pytest.raises(UserError, match="no such file of answers"):
        imported(asked[0], tmp_path / "missing")
    with pytest.raises(UserError, match="none of its 1 answers has a score"):
        imported(asked[0], json_lines(tmp_path / "b", [{"key": asked[1][0]["key"], "value": 1}]))
    with pytest.raises(UserError, match="has the columns id; expected key and score"):
        pq.write_table(pa.table({"id": ["a"]}), tmp_path / "c")
        imported(asked[0], tmp_path / "c")


@pytest.mark.medium
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scores=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=10), form=st.sampled_from(["jsonl", "tsv", "header", "gz", "parquet"])
)
def test_probabilities_come_back_as_their_logits(
    scores: list[float], form: str, asked: tuple[Path, list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Any
) -> None:
    """Prevents: a softmax over probabilities; another number by another layout of the file."""
    folder = tmp_path_factory.mktemp("probability")
    config = tiny_experiment(folder, **NAMED, **{"teacher.imported": {"scores": "probability"}})
    (folder / "store").mkdir()
    for stage in ("ingest", "pools", "hard_negatives", "dark_examples"):
        (folder / "store" / stage).symlink_to(asked[0].parent / "store" / stage)
    keys = [pair["key"] for pair in asked[1]][: len(scores)]
    rows = list(zip(keys, scores, strict=True))
    answers = folder / "answers"
    if form == "parquet":
        pq.write_table(pa.table({"key": pa.array([bytes.fromhex(key) for key in keys], pa.binary(16)), "logit": scores}), answers)
    elif form in ("tsv", "header"):
        answers.write_text("key\tscore\r\n" * (form == "header") + "".join(f"{key}\t{score!r}\r\n" for key, score in rows))
    else:
        text = "\n".join(json.dumps({"key": key, "score": score}) for key, score in rows).encode()
        answers.write_bytes(gzip.compress(text) if form == "gz" else text)
    imported(config, answers)
    for found, score in zip(stored(config, keys, "probability"), scores, strict=True):
        inside = min(max(score, 2.0**-25), 1 - 2.0**-25)
        assert found == pytest.approx(math.log(inside / (1 - inside)), rel=1e-5, abs=1e-6)


def test_what_goes_nowhere_is_said_before_any_work(
    mined: tuple[Path, Path], finished: Any, tmp_path: Path, tiny_experiment: Any, prep_run: Prep
) -> None:
    """Prevents: logits of two engines in one list; a file of another kind overwritten; nothing written, and no reason given."""
    config, pairs = mined
    with pytest.raises(UserError, match="declare the engine as a teacher of its own"):
        imported(finished.config, pairs)
    fresh = tiny_experiment(tmp_path / "fresh", **NAMED)
    with pytest.raises(UserError, match="which pairs are asked for is not known yet: prep run stage=dark_examples first"):
        exported(fresh, tmp_path / "a.jsonl")
    for out, told in (("a.tsv", "written as FILE.jsonl or FILE.parquet"), ("a", "written as FILE.jsonl")):
        with pytest.raises(UserError, match=told):
            exported(config, tmp_path / out)
    (tmp_path / "notes.jsonl").write_text("my notes")
    with pytest.raises(UserError, match="a file of another kind"):
        exported(config, tmp_path / "notes.jsonl")
    assert (tmp_path / "notes.jsonl").read_text() == "my notes"
    with pytest.raises(UserError, match="nothing is asked of a teacher"):
        exported(config, tmp_path / "a.jsonl", **{"teacher.backend": "none"})
    with pytest.raises(UserError, match="missing=maybe"):
        exported(config, tmp_path / "a.jsonl", missing="maybe")
    for words, told in (
        ((f"config={config}", "path="), "prep import ANSWERS"),
        ((str(pairs), f"config={config}", "max_bad_fraction=2"), "from 0 to 1"),
    ):
        with pytest.raises(UserError, match=told):
            import_pairs(list(words), say=print)


def test_dark_examples_are_written_as_a_model_reads_them(finished: Any, tmp_path: Path) -> None:
    """Prevents: marks that no tokenizer knows in the texts that another engine scores."""
    exported(finished.config, tmp_path / "a.jsonl", missing="false")
    texts = [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert any("[SEP]" in text for text in texts) and any("[MASK]" in text for text in texts) and not any("⟦" in text for text in texts)
