"""Readers: every kind of broken record, both formats, gzip, and arbitrary bytes."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from data.files import text_lines
from data.formats import readers
from data.formats.collection import Collection, find_collection
from data.formats.readers import Fault, Judgement, Passage, Query
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK

HEADER = b"query-id\tcorpus-id\tscore\n"
PASSAGE = b'{"_id": "d1", "title": "Fleas", "text": "They jump."}\n'
QUERY = b'{"_id": "q1", "text": "do fleas jump"}\n'


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def beir(
    folder: Path, *, corpus: bytes = PASSAGE, queries: bytes = QUERY, qrels: bytes = HEADER + b"q1\td1\t1\n", end: str = ""
) -> Collection:
    write(folder / f"corpus.jsonl{end}", corpus)
    write(folder / f"queries.jsonl{end}", queries)
    write(folder / "qrels" / f"train.tsv{end}", qrels)
    return find_collection(folder)


def msmarco(folder: Path, *, corpus: bytes = b"7\tThey jump.\n", qrels: bytes = b"1 0 7 1\n", end: str = "") -> Collection:
    write(folder / f"collection.tsv{end}", corpus)
    write(folder / f"queries.train.tsv{end}", b"1\tdo fleas jump\n")
    write(folder / f"qrels.train.tsv{end}", qrels)
    return find_collection(folder)


def records(lines: Iterator[tuple[readers.Line, Any]]) -> list[Any]:
    return [record for _, record in lines]


def corpus_of(collection: Collection) -> list[Any]:
    return records(readers.read_corpus(collection))


def qrels_of(collection: Collection, split: str = "train") -> list[Any]:
    return records(readers.read_qrels(collection, split=split))


@pytest.mark.parametrize("end", ["", ".gz"])
def test_beir(tmp_path: Path, end: str) -> None:
    """A reader that drops the title, or reads the header as a judgement, changes every later stage without an error."""
    collection = beir(tmp_path, end=end)
    assert collection.format == "beir"
    assert corpus_of(collection) == [Passage("d1", "Fleas They jump.")]
    assert records(readers.read_queries(collection)) == [Query("q1", "do fleas jump")]
    assert qrels_of(collection) == [Judgement("train", "q1", "d1", 1)]


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("line", [b"1 0 7 1\n", b"1\t0\t7\t1\n", b"1\tQ0\t7\t1", b"1\t7\t1\n", b"1 7  1.0\r\n"])
def test_msmarco(tmp_path: Path, end: str, line: bytes) -> None:
    """TREC's second column read as the passage id would make every judgement unknown, or another passage positive."""
    collection = msmarco(tmp_path, qrels=line, end=end)
    assert collection.format == "msmarco"
    assert corpus_of(collection) == [Passage("7", "They jump.")]
    assert records(readers.read_queries(collection)) == [Query("1", "do fleas jump")]
    assert qrels_of(collection) == [Judgement("train", "1", "7", 1)]


GOOD_PASSAGES = [
    (b'{"_id": 12, "text": "a"}', Passage("12", "a")),
    (b'{"_id": " x ", "title": null, "text": "  a \\n"}', Passage("x", "a")),
    (b'{"_id": "x", "title": "", "text": "a"}', Passage("x", "a")),
    (b'{"_id": "x", "title": " T ", "text": " a "}', Passage("x", "T a")),
    (b'{"_id": "x", "title": "T", "text": ""}', Passage("x", "T")),
    ('{"_id": "é", "text": "日本 \U0001f642", "metadata": {}}'.encode(), Passage("é", "日本 \U0001f642")),
    (b'{"_id": "x", "text": "\\ud83d\\ude42"}', Passage("x", "\U0001f642")),
    (b'\xef\xbb\xbf{"_id": "x", "text": "a"}', Passage("x", "a")),
    ('{"_id": "x", "text": "a\u2028b\x85c"}'.encode(), Passage("x", "a\u2028b\x85c")),
]


@pytest.mark.parametrize(("line", "passage"), GOOD_PASSAGES)
def test_good_passages(tmp_path: Path, line: bytes, passage: Passage) -> None:
    """Usable records must not be lost: titles alone, whole-number ids, a byte-order mark, Unicode's own line separators."""
    assert corpus_of(beir(tmp_path, corpus=line + b"\r\n")) == [passage]


BROKEN_PASSAGES = [
    (b'{"_id": "d", "text": "\xff"}', "bad UTF-8"),
    (b'{"_id": "d", "text": "a"', "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'{"_id": ' + b"9" * 5000 + b', "text": "a"}', "not JSON"),
    (b'["d", "a"]', "not a JSON object"),
    (b'"text"', "not a JSON object"),
    (b'{"text": "a"}', "no id"),
    (b'{"_id": null, "text": "a"}', "no id"),
    (b'{"_id": "", "text": "a"}', "empty id"),
    (b'{"_id": " ", "text": "a"}', "empty id"),
    (b'{"_id": true, "text": "a"}', "id is not a string"),
    (b'{"_id": 1.5, "text": "a"}', "id is not a string"),
    (b'{"_id": ["d"], "text": "a"}', "id is not a string"),
    (b'{"_id": "d"}', "no text"),
    (b'{"_id": "d", "text": null}', "no text"),
    (b'{"_id": "d", "text": " "}', "empty text"),
    (b'{"_id": "d", "text": ["a", "b"]}', "text is not a string"),
    (b'{"_id": "d", "text": 3}', "text is not a string"),
    (b'{"_id": "d", "title": ["t"], "text": "a"}', "title is not a string"),
    (f'{{"_id": "d", "text": "a {MASK_MARK}"}}'.encode(), "reserved mark in text"),
    (json.dumps({"_id": "d", "text": f"a {SEPARATOR_MARK} b"}).encode(), "reserved mark in text"),
    (f'{{"_id": "d", "title": "{MASK_MARK}", "text": "a"}}'.encode(), "reserved mark in text"),
    (b'{"_id": "d", "text": "\\ud83d"}', "lone surrogate"),
    (b'{"_id": "\\udc00", "text": "a"}', "lone surrogate"),
    (b"", "empty line"),
    (b"  ", "empty line"),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN_PASSAGES)
def test_broken_passages(tmp_path: Path, line: bytes, reason: str) -> None:
    """A list taken for a text becomes single characters; a lone surrogate kills the writer hours later; a mark breaks dark examples."""
    good = b'{"_id": "d1", "text": "a"}'
    found = corpus_of(beir(tmp_path, corpus=b"\n".join([good, line, good])))
    assert found[0] == found[2] == Passage("d1", "a")
    assert found[1][:3] == ("corpus.jsonl", 2, reason)
    assert found[1].record == line.strip().decode("utf-8", "replace")[:500]


@pytest.mark.parametrize(
    ("line", "reason"), [(b"7", "too few columns"), (b"\ttext", "empty id"), (b"7\t ", "empty text"), (b"7\t\xc3", "bad UTF-8")]
)
def test_broken_tsv_passages(tmp_path: Path, line: bytes, reason: str) -> None:
    """A passage cut off in the middle of the file must be listed, not stored empty."""
    [fault, _] = corpus_of(msmarco(tmp_path, corpus=line + b"\n7\ta\n"))
    assert fault[:3] == ("collection.tsv", 1, reason)


def test_tab_inside_text(tmp_path: Path) -> None:
    """Splitting at every tab would lose the rest of the passage."""
    assert corpus_of(msmarco(tmp_path, corpus=b"7\ta\tb\n")) == [Passage("7", "a\tb")]


BROKEN_JUDGEMENTS = [
    (b"q1\td1", "too few columns"),
    (b"q1,d1,1", "too few columns"),
    (b"q1 Q0 d1 1 0.5 tag", "too many columns"),
    (b"q1\td1\t\xd9\xa1", "relevance is not an integer"),
    (b"q1\td1\t", "relevance is not an integer"),
    (b"\td1\t1", "empty id"),
    (b"q1\td1\tyes", "relevance is not an integer"),
    (b"q1\td1\t0.5", "relevance is not an integer"),
    (b"q1\td1\t1_0", "relevance is not an integer"),
    (b"q1\td1\tnan", "relevance is not an integer"),
    (b"q1\td1\t99999999999", "relevance is not an integer"),
    (b"q1\td1\t4000000000", "relevance is not an integer"),
    (b"q1\t\xff\t1", "bad UTF-8"),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN_JUDGEMENTS)
def test_broken_judgements(tmp_path: Path, line: bytes, reason: str) -> None:
    """A relevance of 0.5 cut to 0 silently turns a positive into an unjudged passage."""
    [fault] = qrels_of(beir(tmp_path, qrels=HEADER + line + b"\n"))
    assert fault[:3] == ("qrels/train.tsv", 2, reason)
    assert reason == "bad UTF-8" or fault.detail.startswith(f"expected {readers.JUDGEMENT_FORM}, found ")


@pytest.mark.parametrize("relevance", ["0", "1", "-1", "+2", "1.0", "3.", " 1"])
def test_relevances(tmp_path: Path, relevance: str) -> None:
    """Whole numbers written as floats are common in exported qrels; losing them loses all positives."""
    [judgement] = qrels_of(beir(tmp_path, qrels=HEADER + f"q1\td1\t{relevance}\r\n".encode()))
    assert judgement == Judgement("train", "q1", "d1", int(float(relevance)))


def test_missing_header(tmp_path: Path) -> None:
    """Dropping the first line unseen would lose the first judgement of a file without a header."""
    assert len(qrels_of(beir(tmp_path, qrels=b"q1\td1\t1\nq2\td1\t1\n"))) == 2


def test_blank_lines(tmp_path: Path) -> None:
    """Blank lines at the end are no records; blank lines before the end are holes, and line numbers count them."""
    found = corpus_of(beir(tmp_path, corpus=b"\n\n" + PASSAGE + b" \n" + PASSAGE.replace(b"d1", b"d2") + b"\r\n \n\n"))
    assert [fault.line for fault in found if isinstance(fault, Fault)] == [1, 2, 4]
    assert len(found) == 5


def test_long_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without newlines must not fill the memory, and a cut line must not pass for a whole one."""
    monkeypatch.setattr(text_lines, "MAX_LINE_BYTES", 20)
    texts = {size: b"7\t" + b"x" * (size - 2) for size in (19, 20, 21, 22, 23, 60, 66, 67)}
    for end in (b"\n", b"\r\n", b"\r\r\n"):
        found = corpus_of(msmarco(tmp_path, corpus=b"".join(text + end for text in texts.values())))
        assert len(found) == len(texts)
        for size, record in zip(texts, found, strict=True):
            too_long = size + len(end.removesuffix(b"\n").removesuffix(b"\r")) > 20
            assert isinstance(record, Fault) == too_long
            assert too_long or record.text == "x" * (size - 2)


def test_long_records_are_cut(tmp_path: Path) -> None:
    """A quarantine of whole broken lines could be as large as the collection."""
    [fault] = corpus_of(beir(tmp_path, corpus="日".encode() * 5000))
    assert fault.record == "日" * 500


@given(content=st.binary(max_size=200) | st.lists(st.sampled_from([*b'{}[]":,\\ud8\t\n\r 01q', 0xFF])).map(bytes))
def test_never_raises(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """One strange byte in line 8 million must not end an ingest; whatever is read can be stored, and every line is accounted for."""
    folder = tmp_path_factory.getbasetemp() / "arbitrary"
    for collection in (beir(folder / "beir", corpus=content, queries=content, qrels=content), msmarco(folder / "ms", corpus=content)):
        try:
            for lines in (readers.read_corpus(collection), readers.read_queries(collection), readers.read_qrels(collection, split="train")):
                for line, record in lines:
                    assert all(isinstance(value, int) or value.encode() is not None for value in record)
                    assert not isinstance(record, Fault) or record[:2] == line[:2]
        except UserError as refused:
            named = (
                "expected lines of UTF-8 text",
                "is not a whole gzip file",
                "is not a whole Parquet file",
            )  # another kind of file, by its first bytes
            assert any(words in str(refused) for words in named)
            continue
        lines_read = [line.number for line, _ in readers.read_corpus(collection)]
        written = content.split(b"\n" if b"\n" in content else b"\r")
        while written and not written[-1].removeprefix(b"\xef\xbb\xbf" if len(written) == 1 else b"").strip():
            written.pop()
        assert lines_read == list(range(1, len(written) + 1))


@pytest.mark.parametrize("damage", ["cut", "flipped", "nothing"])
def test_damaged_gzip(tmp_path: Path, damage: str) -> None:
    """A download cut short must not pass for a smaller collection."""
    collection = beir(tmp_path, corpus=PASSAGE * 5000, end=".gz")
    whole = collection.corpus[0].read_bytes()
    flipped = whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:]
    collection.corpus[0].write_bytes({"cut": whole[: len(whole) // 2], "flipped": flipped, "nothing": b""}[damage])
    with pytest.raises(UserError, match=r"corpus\.jsonl\.gz is not a whole gzip"):
        corpus_of(collection)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_files_of_other_systems(tmp_path: Path, end: str, packed: bool, mark: bytes, newline: bytes) -> None:
    """Prevents: a file that a name, a byte-order mark or old line ends make unreadable, or into one record, or into one with another id."""
    collection = beir(tmp_path, end=end)
    lines = {
        collection.corpus[0]: [PASSAGE.strip(), PASSAGE.strip().replace(b"d1", b"d2")], collection.queries[0]: [QUERY.strip()],
        collection.qrels["train"][0]: [HEADER.strip(), b"q1\td1\t1", b"q1 0 d2 2"],
    }  # fmt: skip
    for path, content in lines.items():
        written = mark + newline.join(content) + newline
        path.write_bytes(gzip.compress(written) if packed else written)
    assert [passage.doc_id for passage in corpus_of(collection)] == ["d1", "d2"]
    assert records(readers.read_queries(collection)) == [Query("q1", "do fleas jump")]
    assert qrels_of(collection) == [Judgement("train", "q1", "d1", 1), Judgement("train", "q1", "d2", 2)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}\n".encode("utf-16"), "UTF-16"),
        ("{}\n".encode("utf-16-le"), "UTF-16"),
        ("{}\n".encode("utf-16-be"), "UTF-16"),
        (b"\x28\xb5\x2f\xfd\x24\x00", "zstd -d"),
        (b"BZh91AY&SY", "bunzip2"),
        (b"\xfd7zXZ\x00", "unxz"),
        (b"PK\x03\x04", "zip archive"),
        (b"PAR1\x15\x04", "Parquet"),
        (b"x" * 257 + b"ustar\x0000", "tar archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html>\n", "HTML"),
    ],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_other_kinds_of_files_are_told(tmp_path: Path, content: bytes, words: str, end: str) -> None:
    """Prevents: thousands of faults of an archive's bytes, which say everything but what the file is."""
    with pytest.raises(UserError, match=rf"(?s)corpus\.jsonl.* is .*{words}"):
        corpus_of(beir(tmp_path, corpus=content, end=end))
    with pytest.raises(UserError, match=rf"(?s)train\.tsv.* is .*{words}"):
        qrels_of(beir(tmp_path, qrels=content, end=end))


@pytest.mark.parametrize(
    ("line", "query_id", "doc_id"),
    [
        (b"my query\ta passage\t1", "my query", "a passage"),
        (b"my query\t0\ta passage\t1", "my query", "a passage"),
        (b" q1 \t d1 \t1\t\t", "q1", "d1"),
        (b"q1 \t 0\td1  1", "q1", "d1"),
        (b"q1 d1 1", "q1", "d1"),
        (b"query\td1\t1", "query", "d1"),
    ],
)
@pytest.mark.parametrize("form", ["beir", "msmarco"])
def test_columns_of_qrels(tmp_path: Path, line: bytes, query_id: str, doc_id: str, form: str) -> None:
    """Prevents: ids cut at their spaces, so that `my query` is judged as `my`; a first judgement of a query called `query` lost."""
    collection = beir(tmp_path, qrels=line) if form == "beir" else msmarco(tmp_path, qrels=line)
    assert qrels_of(collection) == [Judgement("train", query_id, doc_id, 1)]


@pytest.mark.parametrize("header", [b"query-id\tcorpus-id\tscore", b"query_id,x x", b'"qid"\t"pid"\t"label"', b"#qid iter docid rel"])
@pytest.mark.parametrize("form", ["beir", "msmarco"])
def test_headers_of_qrels(tmp_path: Path, header: bytes, form: str) -> None:
    """Prevents: a header that one form of collection takes for a broken judgement."""
    content = header.replace(b",", b" ") + b"\nq1\td1\t1\n"
    collection = beir(tmp_path, qrels=content) if form == "beir" else msmarco(tmp_path, qrels=content)
    assert qrels_of(collection) == [Judgement("train", "q1", "d1", 1)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"id": "d", "contents": "a"}', "it has 'id, contents'; expected _id and text"),
        (b"{}", "it has no key; expected _id and text"),
        (b'{"_id": "d", "passage": "a"}', "it has '_id, passage'; expected _id and text"),
        (b'{"_id": 1.0, "text": "a"}', "found '1.0'; expected a string or a whole number"),
        (b"d1\ta passage", 'expected {"_id": ..., "text": ...}, found \'d1\\ta passage\''),
        (b'[{"_id": "d", "text": "a"}]', "the file is a JSON array; expected an object a line"),
        (b"[", "the file is a JSON array; expected an object a line"),
        ('{"_id": "\xe9", "text": "a"}'.encode("latin-1"), "byte 0xe9 at 10: save the file as UTF-8"),
    ],
)
def test_a_fault_says_what_was_found_and_expected(tmp_path: Path, line: bytes, words: str) -> None:
    """Prevents: `no id`, sixty times over, for records whose ids are called otherwise."""
    [fault] = corpus_of(beir(tmp_path, corpus=line))
    assert words in fault.detail and str(fault).startswith("corpus.jsonl:1: ")


def test_a_header_of_texts_is_told(tmp_path: Path) -> None:
    """Prevents: a header that becomes a passage; a title column that stays in the text; an address in front of every text."""
    [fault, passage] = corpus_of(msmarco(tmp_path, corpus=b"id\ttext\n7\ta\n"))
    assert fault[:3] == ("collection.tsv", 1, "header line") and passage == Passage("7", "a")
    for first in (b"id\ttext\ttitle\n", b'"pid"\t"title"\t"body"\n', b"D1\thttps://a.b/\ttitle\tbody\n"):
        with pytest.raises(UserError, match=r"collection\.tsv:1: .* columns .*expected `id <tab> text`"):
            corpus_of(msmarco(tmp_path, corpus=first + b"7\ta\n"))


def test_streams(tmp_path: Path) -> None:
    """Readers that hold a file use gigabytes on a real collection."""
    collection = beir(tmp_path, corpus=PASSAGE.replace(b"They", b"They" * 100) * 10_000)
    size = collection.corpus[0].stat().st_size
    tracemalloc.start()
    count = sum(1 for _ in readers.read_corpus(collection))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 10_000
    assert peak < size / 20


@pytest.mark.parametrize(
    ("gone", "wanted", "there"),
    [
        ("corpus.jsonl", "corpus.jsonl", "queries.jsonl"),
        ("queries.jsonl", "queries.jsonl", "corpus.jsonl"),
        ("qrels/train.tsv", "<split>.tsv", "empty"),
    ],
)
def test_missing_beir_files(tmp_path: Path, gone: str, wanted: str, there: str) -> None:
    """The message must say what was looked for and what is there, or a misspelt name takes an hour to find."""
    beir(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(UserError, match=rf"looked for .*{wanted}.*{there}"):
        find_collection(tmp_path)


@pytest.mark.parametrize("gone", ["collection.tsv", "queries.train.tsv", "qrels.train.tsv"])
def test_missing_msmarco_files(tmp_path: Path, gone: str) -> None:
    """As above, for MS MARCO."""
    msmarco(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(UserError, match=rf"looked for .*{gone.split('.')[0]}.*it holds"):
        find_collection(tmp_path, format="msmarco")


def test_no_folder(tmp_path: Path) -> None:
    """A wrong path is bad input, not a crash."""
    with pytest.raises(UserError, match=r"ingest\.path"):
        find_collection(tmp_path / "none")


def test_two_formats_in_a_folder(tmp_path: Path) -> None:
    """Guessing between two collections would train on the wrong one."""
    beir(tmp_path)
    write(tmp_path / "collection.tsv", b"7\tThey jump.\n")
    with pytest.raises(UserError, match=r"ingest\.format=beir"):
        find_collection(tmp_path)
    assert find_collection(tmp_path, format="beir").format == "beir"


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["qrels.tsv"], ["train"]),
        (["qrels.train.tsv", "qrels.dev.small.tsv"], ["dev", "train"]),
        (["qrels.train.tsv", "qrels.dev.small.tsv", "qrels.dev.tsv.gz"], ["dev", "dev.small", "train"]),
        (["qrels.dl19-passage.tsv"], ["dl19-passage"]),
        (["qrels.train.tsv", "qrels.tsv"], None),
    ],
)
def test_msmarco_splits(tmp_path: Path, names: list[str], splits: list[str] | None) -> None:
    """Two files under one split's name would overwrite each other: a split's judgements would vanish."""
    write(tmp_path / "collection.tsv", b"7\ta\n")
    write(tmp_path / "queries.tsv", b"1\ta\n")
    for name in names:
        write(tmp_path / name, b"1 0 7 1\n")
    if splits is None:
        with pytest.raises(UserError, match="both of split train"):
            find_collection(tmp_path)
    else:
        assert list(find_collection(tmp_path).qrels) == splits


def test_plain_beside_gzip(tmp_path: Path) -> None:
    """After `gunzip -k` both lie there: reading both would make every record a duplicate."""
    beir(tmp_path, end=".gz")
    collection = beir(tmp_path)
    assert [collection.name(file) for file in (*collection.corpus, *collection.queries, *collection.qrels["train"])] == [
        "corpus.jsonl",
        "queries.jsonl",
        "qrels/train.tsv",
    ]
