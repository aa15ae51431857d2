"""`prep import` against a plain reading of what an import is, in dictionaries and with the field's own words."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.scored_lists import List, companions, write_lists

from data.errors import UserError
from data.formats.collection import find_collection
from data.formats.readers import Fault, read_corpus, read_qrels, read_queries
from data.formats.trec import read_entries
from data.logits.declared import DeclaredTeacher
from data.logits.segment import as_keys
from data.logits.store import LogitStore
from data.tables.shards import read_shard
from pipeline.interchange.importing import run_import
from pipeline.interchange.lists_in import spill

pytestmark = pytest.mark.usefixtures("plain_reader")
TEACHER = DeclaredTeacher("theirs", "1", "logit")


def key(query: str, text: str) -> bytes:
    """Of the logit store, spelt out."""
    parts = (query.encode(), text.encode())
    return hashlib.blake2b(b"".join(len(part).to_bytes(4, "little") + part for part in parts), digest_size=16).digest()


def own_id(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def imported(folder: Path, lists: list[List], *words: str, teacher: bool = True) -> list[str]:
    """Import lists into folder/out and folder/store; the lines said."""
    said: list[str] = []
    scored = [f"teacher={TEACHER.name}", f"store={folder / 'store'}"] if teacher else []
    run_import([f"path={write_lists(folder / 'lists.jsonl', lists)}", f"out={folder / 'out'}", *scored, *words], say=said.append)
    return said


@dataclass
class Found:
    """An import as later stages read it."""

    corpus: dict[str, str] = field(default_factory=dict)
    queries: dict[str, str] = field(default_factory=dict)
    qrels: dict[str, list[str]] = field(default_factory=dict)  # in the order of the file
    run: dict[str, list[str]] = field(default_factory=dict)
    logits: dict[tuple[str, str], float] = field(default_factory=dict)  # by query and passage text


def found_in(folder: Path) -> Found:
    """What lies in folder/out, read as `ingest` and the pools read it, and the store's logits of all pairs of its texts."""
    found = Found()
    collection = find_collection(folder / "out")
    for records, into in ((read_corpus(collection), found.corpus), (read_queries(collection), found.queries)):
        for line, record in records:
            assert not isinstance(record, Fault), line
            assert record[0] not in into
            into[record[0]] = record[1]
    for _, judgement in read_qrels(collection, split="train"):
        assert not isinstance(judgement, Fault) and judgement.relevance > 0
        found.qrels.setdefault(judgement.query_id, []).append(judgement.doc_id)
    entries = list(read_entries(folder / "out" / "lists.trec"))
    for entry in entries:
        found.run.setdefault(entry.query_id, []).append(entry.doc_id)
    assert [entry.score for entry in entries] == [len(found.run[entry.query_id]) + 1 - int(entry.rank) for entry in entries]
    pairs = [(query, text) for query in found.queries.values() for text in found.corpus.values()]
    known = LogitStore(folder / "store", TEACHER.namespace).lookup(as_keys([key(*pair) for pair in pairs])).logits
    found.logits = {pair: float(logit) for pair, logit in zip(pairs, known, strict=True) if not math.isnan(logit)}
    return found


def expected(lists: list[List]) -> tuple[Found, int]:
    """The same by plain reading, and how many broken records there are. Texts and ids of these lists are never broken themselves."""
    found, broken = Found(), 0
    rows: dict[str, dict[str, tuple[int | None, float | None]]] = {}
    for query_id, query, candidates in lists:
        assert query is not None
        name = query_id or own_id(query.strip())
        if found.queries.setdefault(name, query.strip()) != query.strip():
            broken += bool(candidates)  # one without candidates adds nothing
            for doc_id, title, text, _, _ in candidates:  # its passages are there, its judgements are not
                passage = f"{title.strip()} {text.strip()}".strip() if title is not None else text.strip()
                found.corpus.setdefault(doc_id or own_id(passage), passage)
            continue
        for doc_id, title, text, relevance, score in candidates:
            assert text is not None
            passage = f"{title.strip()} {text.strip()}".strip() if title is not None else text.strip()
            place = doc_id or own_id(passage)
            if found.corpus.setdefault(place, passage) != passage:
                broken += 1
                continue
            score = None if score is None or math.isnan(score) else float(np.float32(score))
            of_query = rows.setdefault(name, {})
            if place not in of_query:
                of_query[place] = (relevance, score)
                continue
            label, known = of_query[place]
            if score is not None and known is not None and score != known:
                broken += 1
            of_query[place] = (
                max(label if label is not None else -1, relevance if relevance is not None else -1),
                known if known is not None else score,
            )
    for name, of_query in rows.items():
        query = found.queries[name]
        for place, (relevance, score) in of_query.items():
            pair = (query, found.corpus[place])
            if score is not None and found.logits.setdefault(pair, score) != score:
                broken += 1
            elif relevance is not None and relevance > 0:
                found.qrels.setdefault(name, []).append(place)
            elif score is not None:
                found.run.setdefault(name, []).append(place)
    return found, broken


TEXTS = st.sampled_from(["one", " one\n", "two", "drei ß", "\u3000four", 'five "quoted" \\ and\ttabbed', "sechs 😀"])
IDS = st.sampled_from([None, None, None, "1", "2", "a b", "é/\"x'"])
SCORES = st.one_of(st.none(), st.just(math.nan), st.sampled_from([0.5, -3.25, 1 / 3, 7.0]))
CANDIDATES = st.tuples(IDS, st.sampled_from([None, None, "", " Title "]), TEXTS, st.sampled_from([None, 0, 1, 2]), SCORES)
LISTS = st.lists(st.tuples(st.sampled_from([None, "q1", "q 2"]), TEXTS, st.lists(CANDIDATES, max_size=5)), min_size=1, max_size=7)


@pytest.mark.medium
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LISTS)
def test_an_import_is_what_a_plain_reading_gives(lists: list[List]) -> None:
    """Prevents: a judgement, candidate, text or score that is lost, doubled or given to another on its way through the parts on disk."""
    lists = [(None, "a query that all have", [("p", None, "a positive", 1, 2.0), ("n", None, "a negative", 0, 1.0)]), *lists]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with mock.patch.object(spill, "CHUNK_BYTES", 300), mock.patch.object(spill, "READ_BYTES", 500):  # many parts, few of them at a time
            imported(folder, lists, "max_bad_fraction=1")
        found, (wanted, broken) = found_in(folder), expected(lists)
        counts = json.loads((folder / "out" / "import.json").read_text())["counts"]
        assert found.corpus == wanted.corpus and list(found.corpus) == list(wanted.corpus)
        assert found.queries == wanted.queries and list(found.queries) == list(wanted.queries)
        assert found.qrels == wanted.qrels and found.run == wanted.run
        assert found.logits == wanted.logits
        assert sum(counts["broken"].values()) == broken
        assert list(found.run) == list(wanted.run), "in the order of the lists"


def test_probabilities_become_logits_and_cosines_stay(tmp_path: Path) -> None:
    """Prevents: probabilities stored as if they were logits, which would all but vanish in a softmax."""
    for kind, given_score, stored in (("probability", 0.75, math.log(3)), ("cosine", -0.5, -0.5), ("logit", -7.5, -7.5)):
        folder = tmp_path / kind
        folder.mkdir()
        imported(folder, [("q", "who", [("d", None, "text", 1, given_score)])], f"scores={kind}")
        store = LogitStore(folder / "store", DeclaredTeacher(TEACHER.name, "1", kind).namespace)  # type: ignore[arg-type]
        assert store.lookup(as_keys([key("who", "text")])).logits[0] == pytest.approx(stored, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "score"),
    [("probability", 1.5), ("probability", -0.1), ("cosine", 1.01), ("logit", math.inf), ("logit", 1e39), ("cosine", -math.inf)],
)
def test_a_score_that_is_none_of_its_kind_is_broken(tmp_path: Path, kind: str, score: float) -> None:
    """Prevents: infinite logits in the store, and scores of another scale taken for what the user said."""
    lists: list[List] = [("q", "who", [("d", None, "text", 1, 0.5), ("bad", None, "other", 0, score)])]
    with pytest.raises(
        UserError, match=rf"1 of 2 candidates are broken.*1 score is no {kind}\n  lists.jsonl:1: .*expected a (finite )?number"
    ):
        imported(tmp_path, lists, f"scores={kind}")
    assert not (tmp_path / "store").exists(), "nothing is stored of an import that stops"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["quarantine"], "what is broken can be looked at"
    rows = read_shard(tmp_path / "out" / "quarantine" / "part-00000-of-00001.parquet").to_pylist()
    assert [(row["file"], row["line"]) for row in rows] == [("lists.jsonl", 1)]
    imported(tmp_path, lists, f"scores={kind}", "max_bad_fraction=0.5")
    assert len(list(read_corpus(find_collection(tmp_path / "out")))) == 1


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (("q", "  ", [("d", None, "text", 1, 1.0)]), "empty text: of the query"),
        (("q", None, [("d", None, "text", 1, 1.0)]), "no text: of the query"),
        (("q", "who", [("d", None, "\u2003", 1, 1.0)]), "empty text: of a candidate"),
        (("q", "who", [(" ", None, "text", 1, 1.0)]), "empty id: of a candidate"),
        (("q", "who", [("d\t1", None, "text", 1, 1.0)]), "tab or line break in an id: of a candidate"),
        (("q\nr", "who", [("d", None, "text", 1, 1.0)]), "tab or line break in an id: of the query"),
        (("q", "who", [("d", None, "a ⟦MASK⟧ b", 1, 1.0)]), "reserved mark in text: of a candidate"),
        (("q", "who", [("d", None, None, 1, 1.0)]), "no text: of a candidate"),
        (("p0", "another text", [("d", None, "text", 1, 1.0)]), "query id with two texts: a list before"),
        (("q", "who", [("d0", None, "another text", 1, 1.0)]), "id with two texts: the id was met before"),
        (("p0", "the query", [("d0", None, "a passage", 0, 9.0)]), "another score of the same pair: the first one stays"),
        (("other id", "the query", [("other", None, "a passage", 0, 9.0)]), "another score of the same pair: the first one stays"),
    ],
)
def test_a_broken_record_is_told_with_its_line(tmp_path: Path, one: List, reason: str) -> None:
    """Prevents: records that `ingest` would refuse later, or that contradict each other, imported without a word."""
    good: List = ("p0", "the query", [("d0", None, "a passage", 1, 1.0), ("d1", None, "a second", 0, 0.5)])
    fine: list[List] = [(f"p{number}", f"query {number}", [(f"e{number}", None, f"passage {number}", 1, 0.0)]) for number in range(1, 4)]
    with pytest.raises(UserError) as caught:
        imported(tmp_path, [good, *fine, one])
    assert f"lists.jsonl:5: {reason}" in str(caught.value)
    said = imported(tmp_path, [good, *fine, one], "max_bad_fraction=0.5")
    assert any(line.startswith(f"broken and left out: 1 {reason.partition(':')[0]}") for line in said)


def test_lists_without_scores_need_no_teacher(tmp_path: Path) -> None:
    """Prevents: a refusal, or a teacher without a logit, where a file has lists alone."""
    lists: list[List] = [("q", "who", [("d", None, "text", 1, None), ("e", None, "other", 0, None)])]
    said = imported(tmp_path, lists, teacher=False)
    assert found_in(tmp_path).run == {"q": ["e"]} and not (tmp_path / "store").exists()
    assert "imported" not in (tmp_path / "out" / "experiment.yaml").read_text()
    assert said[-1].startswith("next: say which student and teacher in ")
    (tmp_path / "again").mkdir()
    said = imported(tmp_path / "again", lists)
    assert "note: no scores in it: nothing is stored for teacher=theirs" in said and found_in(tmp_path / "again").run == {"q": ["e"]}


def test_scores_need_a_teacher_before_all_is_read(tmp_path: Path) -> None:
    """Prevents: an hour of work before it is said that a name is missing, and scores that go nowhere."""
    lists: list[List] = [("q", "who", [("d", None, "text", 1, 2.0)])]
    with pytest.raises(UserError, match=r"has scores: say whose they are, teacher=NAME .* store=FOLDER or config=FILE"):
        imported(tmp_path, lists, teacher=False)
    with pytest.raises(UserError, match="give store=FOLDER, or config=FILE"):
        imported(tmp_path, lists, "teacher=x", teacher=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.jsonl"]


@pytest.mark.parametrize(("unscored", "run", "stops_at"), [("drop", ["b"], 1), ("keep", ["a", "b", "c"], 3)])
def test_candidates_without_a_score(tmp_path: Path, unscored: str, run: list[str], stops_at: int) -> None:
    """Prevents: candidates in the run that the teacher's rules then miss, or left out where they were asked for."""
    listed = [("p", None, "pos", 1, None), ("a", None, "x", 0, None), ("b", None, "y", 0, 1.0), ("c", None, "z", None, math.nan)]
    said = imported(tmp_path, [("q", "who", listed)], f"unscored={unscored}")
    found = found_in(tmp_path)
    assert found.run == {"q": run} and found.qrels == {"q": ["p"]} and found.logits == {("who", "y"): 1.0}
    assert "note: 1 queries none of whose positives has a score, though others have" in said
    assert ("left out: 2 candidates without a score" in said) == (unscored == "drop")
    assert f"note: {stops_at} positives and candidates of the run have no score: a run stops until they have one" in said


def test_scores_that_look_like_probabilities_are_pointed_out(tmp_path: Path) -> None:
    """Prevents: a file of probabilities imported under the default kind, unseen."""
    said = imported(tmp_path, [("q", "who", [("d", None, "text", 1, 0.9), ("e", None, "other", 0, 0.1)])])
    assert any("these look like probabilities" in line for line in said)


def test_a_broken_positive_is_what_is_told(tmp_path: Path) -> None:
    """Prevents: a list without its broken positive taken for one that has negatives alone, and a collection asked for."""
    with pytest.raises(UserError, match=r"lists.jsonl:1: score is no probability: expected a number from 0 to 1, found '1.2'"):
        imported(tmp_path, [("q", "who", [("d", None, "text", 1, 1.2), ("e", None, "other", 0, 0.1)])], "scores=probability")


def test_negatives_alone_are_refused(tmp_path: Path) -> None:
    """Prevents: a collection that no query of can be trained."""
    for relevance, why in ((0, "has negatives alone"), (None, "says of no candidate that it is relevant")):
        with pytest.raises(UserError, match=f"{why}: give the collection that it is of, collection=FOLDER"):
            imported(tmp_path, [("q", "who", [("d", None, "text", relevance, 1.0)])])


def test_the_same_command_does_nothing_again(tmp_path: Path) -> None:
    """Prevents: work done twice, a folder of another import overwritten, and logits that are gone taken for there."""
    lists: list[List] = [("q", "who", [("d", None, "text", 1, 2.0)])]
    imported(tmp_path, lists)
    (tmp_path / "out" / "train").mkdir()  # what was made beside it stays
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert imported(tmp_path, lists) == [f"{tmp_path / 'out'} is of this import already: nothing to do"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match=r"is of another import \(teacher differ\)"):
        imported(tmp_path, lists, "revision=2")
    with pytest.raises(UserError, match=r"is of another import \(files differ\)"):
        imported(tmp_path, [*lists, *lists])
    write_lists(tmp_path / "lists.jsonl", lists)
    LogitStore(tmp_path / "store", TEACHER.namespace).delete()
    with pytest.raises(UserError, match="whose logits are no longer in"):
        imported(tmp_path, lists)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(UserError, match=r"a folder with other files \(mine.txt\)"):
        imported(tmp_path, lists, f"out={tmp_path / 'other'}")


def test_a_second_import_adds_what_is_new(tmp_path: Path) -> None:
    """Prevents: pairs stored twice, and a second score that is silently taken, or silently not, for a pair of the store."""
    first: list[List] = [("q", "who", [("d", None, "text", 1, 2.0), ("e", None, "other", 0, 1.0)])]
    imported(tmp_path, first)
    more: list[List] = [("q", "who", [("d", None, "text", 1, 2.0), ("f", None, "third", 0, 0.5), ("e", None, "other", 0, 7.0)])]
    with pytest.raises(UserError, match=r"another score than the store's: the store has another one of theirs, revision 1; it stays"):
        imported(tmp_path, more, f"out={tmp_path / 'second'}")
    said = imported(tmp_path, more, f"out={tmp_path / 'second'}", "max_bad_fraction=0.5")
    assert any(line.startswith("stored 1 logits") for line in said) and "note: 1 logits that were in the store already" in said
    store = LogitStore(tmp_path / "store", TEACHER.namespace)
    assert store.size()[:2] == (3, 2)
    assert store.lookup(as_keys([key("who", text) for text in ("text", "other", "third")])).logits.tolist() == [2.0, 1.0, 0.5]


IDS_ALONE: list[List] = [
    ("train0", None, [("d0", None, None, 1, 4.0), ("d5", None, None, 0, 1.0), ("d7", None, None, None, 2.0)]),
    ("train2", None, [("d9", None, None, None, -1.0), ("d2", None, None, None, 3.0)]),
]


def test_ids_find_their_texts_in_a_collection(tmp_path: Path, collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: logits under another text than the collection's, and labels that are not the collection's."""
    monkeypatch.chdir(collection.parent)
    imported(tmp_path, IDS_ALONE, f"collection={collection.name}")
    texts = {record[0]: record[1] for _, record in [*read_corpus(find_collection(collection)), *read_queries(find_collection(collection))]}
    pairs = [("train0", "d0"), ("train0", "d5"), ("train0", "d7"), ("train2", "d9"), ("train2", "d2"), ("train0", "d9")]
    keys = as_keys([key(texts[query], texts[passage]) for query, passage in pairs])
    logits = LogitStore(tmp_path / "store", TEACHER.namespace).lookup(keys).logits
    assert logits[:5].tolist() == [4.0, 1.0, 2.0, -1.0, 3.0] and math.isnan(logits[5])
    run: dict[str, list[str]] = {}
    for entry in read_entries(tmp_path / "out" / "lists.trec"):
        run.setdefault(entry.query_id, []).append(entry.doc_id)
    assert run == {"train0": ["d5", "d7"], "train2": ["d9"]}, "d0 and d2 are their labelled positives"
    assert not (tmp_path / "out" / "corpus.jsonl").exists()
    assert f'path: "{collection}"' in (tmp_path / "out" / "experiment.yaml").read_text()


def test_labels_that_no_list_scores_are_told(tmp_path: Path, collection: Path) -> None:
    """Prevents: a collection with more labels than the lists have scores, of which a run says after the import that it cannot go on."""
    labelled = {
        (one.query_id, one.doc_id)
        for _, one in read_qrels(find_collection(collection), split="train")
        if not isinstance(one, Fault) and one.relevance > 0
    }
    scored = {(query, candidate[0]) for query, _, candidates in IDS_ALONE for candidate in candidates}
    said = imported(tmp_path, IDS_ALONE, f"collection={collection}")
    assert any(line.startswith(f"note: {len(labelled - scored)} positives of the collection that no list scores: ") for line in said)
    # What it says to do: the labels of the lists as a split of their own.
    shutil.copytree(collection, tmp_path / "copy")
    shutil.copy(tmp_path / "out" / "qrels" / "train.tsv", tmp_path / "copy" / "qrels" / "lists.tsv")
    judged = [one[1:3] for _, one in read_qrels(find_collection(tmp_path / "copy"), split="lists") if not isinstance(one, Fault)]
    assert len(judged) == 2 and set(judged) == labelled & scored


def test_another_text_in_the_collection_is_another_import(tmp_path: Path, collection: Path) -> None:
    """Prevents: `nothing to do` after a text of the collection was mended, so that its pairs have no logit."""
    own = tmp_path / "copy"
    shutil.copytree(collection, own)
    imported(tmp_path, IDS_ALONE, f"collection={own}")
    assert len(imported(tmp_path, IDS_ALONE, f"collection={own}")) == 1
    corpus = own / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace('"text": "', '"text": "Mended. ', 1))
    with pytest.raises(UserError, match=r"is of another import \(collection differ\)"):
        imported(tmp_path, IDS_ALONE, f"collection={own}")


@pytest.mark.parametrize(
    ("lists", "reason"),
    [
        ([("nobody", None, [("d0", None, None, 1, 4.0)]), *IDS_ALONE], "lists.jsonl:1: unknown query id: not in the collection"),
        ([*IDS_ALONE, ("train3", None, [("d99", None, None, 1, 4.0)])], "lists.jsonl:3: unknown doc id: not in the collection"),
        ([(None, "text alone", [("d0", None, None, 1, 4.0)]), *IDS_ALONE], "lists.jsonl:1: no id: of the query"),
    ],
)
def test_unknown_ids_are_broken(tmp_path: Path, collection: Path, lists: list[List], reason: str) -> None:
    """Prevents: lists of another collection imported as if they were of this one."""
    with pytest.raises(UserError) as caught:
        imported(tmp_path, lists, f"collection={collection}")
    assert reason in str(caught.value)


def test_ids_without_texts_need_a_collection(tmp_path: Path) -> None:
    """Prevents: an import of empty texts."""
    with pytest.raises(
        UserError, match=r"gives ids of queries without texts .*: give the collection that has their texts, collection=FOLDER"
    ):
        imported(tmp_path, IDS_ALONE)


def test_a_collection_needs_the_split(tmp_path: Path, collection: Path) -> None:
    """Prevents: positives of another split, or none, found after all was read."""
    with pytest.raises(UserError, match=r"has no qrels of split 'valid'; splits found: dev, test, train; say which: split=NAME"):
        imported(tmp_path, IDS_ALONE, f"collection={collection}", "split=valid")
    with pytest.raises(UserError, match=r"collection=.*no collection folder"):
        imported(tmp_path, IDS_ALONE, f"collection={tmp_path / 'nowhere'}")


def test_texts_beside_the_lists_become_the_collection(tmp_path: Path, plain_reader: Callable[..., None]) -> None:
    """Prevents: lists of ids whose own files of texts are passed over, or keyed by the first half of a text."""
    plain_reader(companions([("q1", " who "), ("q2", "what")], [("d1", "Title", " one"), ("d2", None, "two "), ("d3", None, "three")]))
    lists: list[List] = [("q2", None, [("d2", None, None, 1, 1.5), ("d1", None, None, 0, -2.0)])]
    imported(tmp_path, lists)
    found = found_in(tmp_path)
    assert found.corpus == {"d1": "Title one", "d2": "two", "d3": "three"} and found.queries == {"q1": "who", "q2": "what"}
    assert found.qrels == {"q2": ["d2"]} and found.run == {"q2": ["d1"]}
    assert found.logits == {("what", "two"): 1.5, ("what", "Title one"): -2.0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scores=percent"], "scores=percent: expected logit or probability or cosine"),
        (["unscored=maybe"], "unscored=maybe: expected drop or keep"),
        (["max_bad_fraction=2"], "max_bad_fraction=2: expected a share from 0 to 1"),
        (["teacher=namespace:3f2a"], "namespace:3f2a names a teacher that the store has already"),
        (["columns=query"], "columns=query: expected name:column"),
        (["columns=query:a,query:b"], "query stands there twice"),
        (["split=../x"], "split='../x': expected the name of a split"),
        (["config=FILE"], "store= and config= both say which store"),
        (["store=lists.jsonl/store"], "store=lists.jsonl/store cannot be written: .*lists.jsonl is a file, not a folder"),
        (["out=s3://bucket/x"], "an import is a folder of this machine"),
        (["store=s3://"], "expected a bucket and a folder in it"),
        (["teachr=x"], "unknown .*teachr"),
        (["path=nowhere.jsonl"], "path=nowhere.jsonl: there is no such file or folder"),
    ],
)
def test_arguments_are_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str) -> None:
    """Prevents: an argument that is found wrong after hours, or never."""
    monkeypatch.chdir(tmp_path)
    lists: list[List] = [("q", "who", [("d", None, "text", 1, 2.0)])]
    with pytest.raises(UserError, match=message):
        imported(tmp_path, lists, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.jsonl"]


def test_the_starting_file_is_an_experiment(tmp_path: Path, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a file of settings that the next command refuses, or whose paths are others in another folder."""
    from data.config.settings import load

    monkeypatch.chdir(tmp_path)
    lists: list[List] = [("q", "who", [("d", None, "text", 1, 2.0), ("e", None, "other", 0, 1.0)])]
    imported(tmp_path, lists, "store=store", "out=out")
    experiment = load({"config": str(tmp_path / "out" / "experiment.yaml"), "student.model": str(models.student)})
    teacher = experiment.teacher
    assert (teacher.backend, teacher.model, teacher.revision, teacher.imported.scores) == ("imported", "theirs", "1", "logit")
    assert experiment.ingest.path == str(tmp_path / "out") and experiment.store == str(tmp_path / "store")
    negatives = experiment.hard_negatives
    assert (negatives.source, negatives.run_file, negatives.depth) == ("run", str(tmp_path / "out" / "lists.trec"), 1)
