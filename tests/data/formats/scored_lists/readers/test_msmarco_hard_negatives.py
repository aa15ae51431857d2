"""msmarco-hard-negatives, with its pickle of scores and without."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.read_lists import by_id, jsonl, read

from data.errors import UserError
from data.formats.scored_lists.batches import ReadOptions
from data.formats.scored_lists.readers.msmarco_hard_negatives import MsmarcoHardNegatives
from data.formats.scored_lists.readers.score_table import ScoreTable, number_of

READER = MsmarcoHardNegatives()


def pickled(folder: Path, scores: Any) -> Path:
    path = folder / "scores.pkl.gz"
    path.write_bytes(gzip.compress(pickle.dumps(scores, 4)))
    return path


def test_scores_of_the_pickle(tmp_path: Path) -> None:
    """Prevents: scores of another passage or query, doubles of the systems, and ids of another kind in the two files."""
    records = [
        {"qid": 867436, "pos": [5238393], "neg": {"bm25": [7, 9], "tas-b": [9, "11", 5238393]}},
        {"qid": "3", "pos": ["9"], "neg": {"bm25": []}},
        {"qid": 4, "pos": [], "neg": {"bm25": [1]}},
    ]
    path = jsonl(tmp_path / "hard.jsonl", records)
    scores = pickled(tmp_path, {3: {"9": 0.25}, "867436": {9: -2.5, 5238393: 9.5, 7: None, 11: 1, 12: 99.0}})
    assert READER.recognises(path) and READER.companions(path, ReadOptions()) is None
    found = read(READER, path, score_file=scores)
    assert by_id(found) == [
        ("867436", [("5238393", 1, 9.5), ("7", 0, None), ("9", 0, -2.5), ("11", 0, 1.0)]),
        ("3", [("9", 1, 0.25)]),
        ("4", [("1", 0, None)]),
    ]
    assert all(one.text is None for one in found.lists)
    assert READER.files(path, ReadOptions(score_file=scores)) == [path, scores]


def test_scores_in_the_records(tmp_path: Path) -> None:
    """Prevents: the mining system's own score taken for the cross-encoder's."""
    record = {
        "qid": "1",
        "pos": [{"pid": "7", "ce-score": 9.0}],
        "neg": {"bm25": [{"pid": "8", "score": 31.5, "ce-score": -4.0}, {"pid": "9", "score": 30.5}]},
    }
    assert by_id(read(READER, jsonl(tmp_path / "x.jsonl.gz.jsonl", [record]))) == [("1", [("7", 1, 9.0), ("8", 0, -4.0), ("9", 0, None)])]


def test_a_passage_with_another_score_stands_there_again(tmp_path: Path) -> None:
    """Prevents: the second of two scores that contradict each other, or the only one, passed over without a word."""
    systems = {"a": [{"pid": "8"}, {"pid": "9", "ce-score": 1.0}], "b": [{"pid": "9", "ce-score": 1.0}, {"pid": "8", "ce-score": 2.0}]}
    record = {"qid": "1", "pos": ["7"], "neg": {**systems, "c": [{"pid": "9", "ce-score": 3.0}]}}
    found = by_id(read(READER, jsonl(tmp_path / "x.jsonl", [record])))
    assert found == [("1", [("7", 1, None), ("8", 0, None), ("9", 0, 1.0), ("8", 0, 2.0), ("9", 0, 3.0)])]


def test_broken_records_by_line(tmp_path: Path) -> None:
    """Prevents: one strange record of half a million that ends the import, or is lost."""
    good: dict[str, Any] = {"qid": 1, "pos": [2], "neg": {"bm25": [3]}}
    odd: list[Any] = [good | change for change in ({}, {"neg": [3]}, {"qid": None}, {"qid": True}, {"neg": {"bm25": [[3]]}})]
    odd += [good | {"pos": None, "neg": None}, good | {"neg": {"bm25": [{"pid": 3, "ce-score": "high"}]}}, "{"]
    odd += [good | {"pos": 2.0, "neg": {"bm25": 3}}, good | {"neg": {"x": [3.5]}}]
    found = read(READER, jsonl(tmp_path / "x.jsonl", odd))
    assert [one.line for one in found.lists] == [1, 9]
    reasons = {int(fault.split(":")[1]): fault.split(": ")[1] for fault in found.faults}
    assert reasons == {
        2: "neg is no object of lists",
        3: "no qid",
        4: "qid is no id",
        5: "neg.bm25 is no id",
        6: "no candidate",
        7: "ce-score is not a number",
        8: "not JSON",
        10: "neg.x is no id",
    }


def test_another_layout_or_twice_a_query(tmp_path: Path) -> None:
    """Prevents: a file of another layout read as lists without candidates; half of a query's scores."""
    with pytest.raises(UserError, match="it has query, pos; expected qid, pos, neg"):
        read(READER, jsonl(tmp_path / "x.jsonl", [{"query": "q", "pos": ["p"]}]))
    path = jsonl(tmp_path / "y.jsonl", [{"qid": 1, "pos": [2], "neg": {}}])
    with pytest.raises(UserError, match="the scores of a query twice"):
        read(READER, path, score_file=pickled(tmp_path, {1: {2: 0.5}, "1": {3: 0.5}}))
    with pytest.raises(UserError, match="has no columns to name"):
        read(READER, path, columns={"pos": "neg"})


def test_batches_hold_whole_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: batches that grow with the file, and temporary scores that stay on the disk."""
    monkeypatch.setattr("data.formats.scored_lists.readers.msmarco_hard_negatives.BATCH_CANDIDATES", 10)
    path = jsonl(tmp_path / "x.jsonl", [{"qid": query, "pos": [1], "neg": {"a": [2, 3, 4]}} for query in range(50)])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = ReadOptions(score_file=pickled(tmp_path, {query: {1: query + 0.5} for query in range(50)}), scratch=scratch)
    batches = list(READER.read(path, options))
    assert [batch.candidates.num_rows for batch in batches][:2] == [12, 12] and sum(batch.queries.num_rows for batch in batches) == 50
    assert batches[-1].candidates.column("score").to_pylist()[-4:] == [49.5, None, None, None]
    assert not list(scratch.iterdir())


IDS = st.one_of(
    st.integers(0, 1 << 80), st.integers(-5, 40), st.text(max_size=4), st.sampled_from(["7", "07", "0", "+7", " 7", "٧", "7.0"])
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scores=st.dictionaries(IDS, st.dictionaries(IDS, st.floats(-9, 9), max_size=6), max_size=5))
def test_a_table_answers_as_the_dicts_do(tmp_path: Path, scores: dict[Any, dict[Any, float]]) -> None:
    """Prevents: two ids that share a number, and a score that is found for the wrong one."""
    by_text = {str(query): {str(passage): score for passage, score in own.items()} for query, own in scores.items()}
    if len(by_text) != len(scores) or any(len(by_text[str(query)]) != len(own) for query, own in scores.items()):
        return  # 7 and "7" are one id
    path = pickled(tmp_path, scores)
    table = ScoreTable.of_pickle(path, tmp_path)
    asked = sorted({passage for own in by_text.values() for passage in own} | {"7", "none"})
    for query in [*by_text, "nobody"]:
        found = table.of(query, asked)
        expected = [by_text.get(query, {}).get(passage) for passage in asked]
        assert [None if score != score else score for score in found.tolist()] == expected


def test_numbers_of_ids() -> None:
    """Prevents: a hash where the id is a number, which would be slow, and leading zeros that are lost."""
    assert number_of(7) == number_of("7") == 7 and number_of("07") != 7
    assert len({number_of(one) for one in ("07", "7.0", -7, "-7 ", 1 << 62, (1 << 62) - 1, "")}) == 7
