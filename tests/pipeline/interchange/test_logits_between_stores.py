"""`prep cache export|import`: bit by bit, whole or not at all, and nothing that is not what it says."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from data.errors import EXIT_BAD_INPUT
from data.files.leftovers import this_place
from data.logits.declared import DeclaredTeacher
from data.logits.segment import Scores, as_keys
from data.logits.store import LogitStore, namespace_note
from pipeline.cli import app
from pipeline.interchange import incoming_logits, logits_between_stores, pair_texts

KEY = {"kind": "toy", "precision": "torch/fp32", "lengths": [1, 2.5, None]}


def digest(key: Any) -> str:
    text = json.dumps(key, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def key_of(query: str, text: str) -> bytes:
    """The key of a pair, from its definition."""
    parts = b"".join(len(part.encode()).to_bytes(4, "little") + part.encode() for part in (query, text))
    return hashlib.blake2b(parts, digest_size=16).digest()


NAMESPACE = digest(KEY)


def cache(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["cache", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def fill(root: Path, logits: dict[bytes, float], key: Any = KEY) -> LogitStore:
    """A store with these logits of a teacher, in several segments."""
    store = LogitStore(root, digest(key))
    store.describe(key=key, name=f"teacher {key['kind']}")
    pairs = list(logits.items())
    for part in (pairs[::2], pairs[1::2]):
        if part:
            values = np.array([logit for _, logit in part], np.float32)
            store.append(as_keys([one for one, _ in part]), Scores(values, np.arange(len(part), dtype=np.int32), values > 0))
    return store


def content(root: Path, namespace: str = NAMESPACE) -> dict[bytes, tuple[Any, ...]]:
    """What the segments of a namespace hold, read as plain Parquet; a pair that stands there twice fails."""
    rows = [row for path in (root / "teacher_logits" / namespace).glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    found = {row["key"]: (np.float32(row["logit"]).tobytes(), row["token_count"], row["truncated"]) for row in rows}
    assert len(found) == len(rows), "a pair is stored twice"
    return found


def pairs(count: int, start: int = 0) -> dict[bytes, float]:
    return {key_of("q", f"text {number}"): number / 7 - 3 for number in range(start, start + count)}


def state(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_namespaces_go_and_come_back(tmp_path: Path) -> None:
    """Prevents: a logit, a count or a teacher that is another one in the other store; rows stored twice; a lost note."""
    other = {**KEY, "kind": "second"}
    fill(tmp_path / "a", pairs(500))
    fill(tmp_path / "a", {**pairs(3), key_of("q", "-0"): -0.0, key_of("q", "tiny"): 1e-42}, other)
    code, said = cache("export", f"store={tmp_path / 'a'}", f"out={tmp_path / 'out'}", "licence=CC-BY 4.0, ours")
    assert code == 0 and "500 pairs ->" in said and "5 pairs ->" in said and "no licence" not in said, said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"{digest(key)}.parquet" for key in (KEY, other))
    exported = pq.read_table(tmp_path / "out" / f"{NAMESPACE}.parquet")
    assert exported.column_names == ["key", "logit", "token_count", "truncated"]
    assert json.loads(exported.schema.metadata[b"teacher_logits"]) == {
        "name": "teacher toy", "key": KEY, "namespace": NAMESPACE, "licence": "CC-BY 4.0, ours",
        "format": "teacher_logits", "format_version": 1,
    }  # fmt: skip
    keys = exported.column("key").to_pylist()
    assert keys == sorted(keys) and set(keys) == set(pairs(500))
    code, said = cache("import", tmp_path / "out", f"store={tmp_path / 'b'}")
    assert code == 0 and "500 rows, 500 new pairs stored, 0 there already" in said and "licence: CC-BY 4.0, ours" in said, said
    for key in (KEY, other):
        assert content(tmp_path / "b", digest(key)) == content(tmp_path / "a", digest(key))
        assert namespace_note(tmp_path / "b", digest(key)) == {"name": f"teacher {key['kind']}", "key": key}
    before = state(tmp_path / "b")
    code, said = cache("import", tmp_path / "out", f"store={tmp_path / 'b'}")
    assert code == 0 and "0 new pairs stored, 500 there already" in said and state(tmp_path / "b") == before


def test_a_run_on_imported_logits_scores_nothing(
    copied: Any, tmp_path: Path, prep_run: Any, parquet_files: Any, count_scored: list[int]
) -> None:
    """Prevents: an import that the store of the same teacher does not find, and texts that are not those of the keys."""
    out = tmp_path / "logits.parquet"
    code, said = cache("export", f"config={copied.config}", f"out={out}", "texts=true")
    assert code == 0 and ", 0 of which no table of this store has the texts" in said and "no licence is stated" in said, said
    rows = pq.read_table(out).to_pylist()
    assert len(rows) > 100 and all(row["key"] == key_of(row["query"], row["text"]) for row in rows)
    tables = parquet_files(copied.store)
    before = content(copied.store, only_namespace(copied.store))
    for folder in ("teacher_logits", "teacher_scores"):
        shutil.rmtree(copied.store / folder)
    assert cache("import", out, f"config={copied.config}")[0] == 0
    prep_run(copied.config)
    assert not sum(count_scored) and parquet_files(copied.store) == tables
    assert content(copied.store, only_namespace(copied.store)) == before
    assert not list(tmp_path.rglob("*.tmp"))


def only_namespace(store: Path) -> str:
    (folder,) = (store / "teacher_logits").iterdir()
    return folder.name


@pytest.mark.medium
@settings(max_examples=20, deadline=None)
@given(
    first=st.dictionaries(st.integers(0, 60), st.floats(-9, 9, width=32), max_size=40),
    second=st.dictionaries(st.integers(0, 60), st.floats(-9, 9, width=32), max_size=40),
    size=st.sampled_from([1, 3, 1000]),
)
def test_an_import_is_a_union(first: dict[int, float], second: dict[int, float], size: int, tmp_path_factory: Any) -> None:
    """Prevents: pairs lost or doubled where stores have some in common, at any size of the pieces that are in memory."""
    folder = tmp_path_factory.mktemp("union")
    here, there = ({key_of("q", str(n)): logit for n, logit in some.items()} for some in (first, second))
    fill(folder / "a", here)
    fill(folder / "b", there)
    with pytest.MonkeyPatch.context() as patch:
        for module in (incoming_logits, logits_between_stores):
            patch.setattr(module, "PART_ROWS", size)
        assert cache("export", f"store={folder / 'a'}", f"out={folder / 'x.parquet'}")[0] == 0
        code, said = cache("import", folder / "x.parquet", f"store={folder / 'b'}", "conflicts=keep")
    assert code == 0, said
    expected = {key: np.float32(logit).tobytes() for key, logit in {**here, **there}.items()}
    assert {key: row[0] for key, row in content(folder / "b").items()} == expected
    other = sum(here[key] != there[key] for key in here.keys() & there.keys())
    assert (f"{other:,} have another logit" in said) == bool(other)


def file_with(path: Path, columns: Any, note: Any = None) -> Path:
    table = pa.table(columns)
    whole = {"name": "t", "key": KEY, "namespace": NAMESPACE, "licence": None, "format": "teacher_logits", "format_version": 1}
    metadata = json.dumps({**whole, **note}) if isinstance(note, dict) else note
    pq.write_table(table.replace_schema_metadata({"teacher_logits": metadata} if metadata is not None else None), path)
    return path


A, B = key_of("q", "a"), key_of("q", "b")
FAULTS: dict[str, tuple[Any, Any, str]] = {
    "NaN": ({"key": [A, B], "logit": [1.0, float("nan")]}, {}, r"row 2: the logit is nan"),
    "infinite in fp32": ({"key": [A, B], "logit": [1.0, 1e300]}, {}, r"row 2: the logit is 1e\+300; expected a finite number of fp32"),
    "missing": ({"key": [A, B], "logit": [1.0, None]}, {}, r"row 2: the logit is missing"),
    "another text": (
        {"key": [A, B], "logit": [1.0, 2.0], "query": ["q", "q"], "text": ["a", "c"]},
        {},
        r"row 2: the key is .*query and text",
    ),
    "short key": ({"key": [A, b"short"], "logit": [1.0, 2.0]}, {}, r"row 2: the key is b'short'; expected 16 bytes"),
    "bad digits": ({"key": ["z" * 32], "logit": [1.0]}, {}, r"row 1: the key is 'zzz.*; expected 16 bytes, or 32 hex digits"),
    "neither": ({"key": [A, None], "logit": [1.0, 2.0]}, {}, r"row 2: it has neither a key nor texts"),
    "half a pair": ({"logit": [1.0], "query": ["q"], "text": pa.array([None], pa.string())}, {}, r"row 1: it has a query and no text"),
    "empty": ({"logit": [1.0], "query": ["q"], "text": [" "]}, {}, r"row 1: the text is empty"),
    "twice": ({"key": [A, B, A], "logit": [1.0, 2.0, 3.0]}, {}, r"row 3: the pair has logit 3, in row 1 of .*x\.parquet 1: leave one out"),
    "negative count": ({"key": [A], "logit": [1.0], "token_count": [-1]}, {}, r"row 1: token_count is -1"),
    "no logit": ({"key": [A], "score": [1.0]}, {}, r"expected the columns logit, and key or query and text; its columns are key, score"),
    "words": ({"key": [A], "logit": ["1.0"]}, {}, r"column logit has type string; expected numbers"),
    "numbers as texts": ({"logit": [1.0], "query": [1], "text": ["a"]}, {}, r"column query has type int64; expected strings"),
    "another key": ({"key": [A], "logit": [1.0]}, {"key": {**KEY, "kind": "x"}}, r"the digest of its teacher's key is .*, its namespace"),
    "later version": ({"key": [A], "logit": [1.0]}, {"format_version": 2}, r"format version 2"),
    "broken note": ({"key": [A], "logit": [1.0]}, "{", r"its note of the teacher is damaged"),
    "a list as note": ({"key": [A], "logit": [1.0]}, "[]", r"its note of the teacher is damaged"),
    "no teacher": ({"key": [A], "logit": [1.0]}, None, r"does not say whose logits it holds: declare it, teacher=NAME"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_cannot_be_taken_is_told_and_nothing_is_stored(tmp_path: Path, case: str) -> None:
    """Prevents: logits of nobody, of other texts or of no number in a store that is never looked through again; half an import."""
    columns, note, words = FAULTS[case]
    folder = tmp_path / "in"
    folder.mkdir()
    file_with(folder / "a.parquet", {"key": [key_of("q", "fine")], "logit": [0.5]}, {})
    file_with(folder / "x.parquet", columns, note)
    fill(tmp_path / "store", pairs(4))
    before = state(tmp_path / "store")
    code, said = cache("import", folder, f"store={tmp_path / 'store'}")
    assert code == EXIT_BAD_INPUT
    assert re.search(words, said), said
    assert state(tmp_path / "store") == before


def test_damaged_files_are_told(tmp_path: Path) -> None:
    """Prevents: a flipped bit that is another logit, and half a file taken for a whole one."""
    fill(tmp_path / "a", pairs(50))
    out = tmp_path / "x.parquet"
    assert cache("export", f"store={tmp_path / 'a'}", f"out={out}")[0] == 0
    whole = out.read_bytes()
    logits = pq.read_metadata(out).row_group(0).column(1)
    for place in (logits.data_page_offset + logits.total_compressed_size - 3, len(whole) - 200):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        out.write_bytes(damaged)
        code, said = cache("import", out, f"store={tmp_path / 'b'}")
        assert code == EXIT_BAD_INPUT and "damaged" in said, said
    for cut in (0, 10, len(whole) // 2):
        out.write_bytes(whole[:cut])
        code, said = cache("import", out, f"store={tmp_path / 'b'}")
        assert code == EXIT_BAD_INPUT and "arquet" in said, said
    assert not list((tmp_path / "b").rglob("*.parquet"))


def test_other_logits_of_one_pair(tmp_path: Path) -> None:
    """Prevents: a store whose logits change under tables that were made of them, or an import that drops pairs without a word."""
    fill(tmp_path / "store", {A: 1.0})
    path = file_with(tmp_path / "x.parquet", {"key": [A, B], "logit": [1.25, 2.0]}, {})
    before = state(tmp_path / "store")
    code, said = cache("import", path, f"store={tmp_path / 'store'}")
    assert code == EXIT_BAD_INPUT and state(tmp_path / "store") == before
    assert "1 of 2 pairs have another logit" in said and "row 1, 1.25 here and 1 there" in said and "conflicts=keep" in said, said
    code, said = cache("import", path, f"store={tmp_path / 'store'}", "conflicts=keep")
    assert (
        code == 0
        and "1 new pairs stored, 0 there already, 1 have another logit in this store, which is kept (largest difference 0.25)" in said
    )
    assert {key: np.frombuffer(row[0], np.float32)[0] for key, row in content(tmp_path / "store").items()} == {A: 1.0, B: 2.0}


def test_numbers_of_another_kind(tmp_path: Path) -> None:
    """Prevents: numbers beyond 1 stored as cosines, and probabilities stored as logits without a word."""
    path = file_with(tmp_path / "x.parquet", {"query": ["q", "r"], "text": ["a", "b"], "logit": [0.5, 1.5]})
    code, said = cache("import", path, f"store={tmp_path / 'store'}", "teacher=big", "scores=cosine")
    assert code == EXIT_BAD_INPUT and "x.parquet: row 2: 1.5 is no cosine: expected a number from -1 to 1" in said, said
    assert not content(tmp_path / "store", DeclaredTeacher("big", "1", "cosine").namespace)
    fine = file_with(tmp_path / "y.parquet", {"query": ["q", "r"], "text": ["a", "b"], "logit": [0.5, 1.0]})
    for kind, told in (("probability", True), ("logit", True), ("cosine", False)):
        code, said = cache("import", fine, f"store={tmp_path / 'store'}", "teacher=big", f"scores={kind}")
        assert code == 0 and ("these look like probabilities" in said) == told, said


def test_files_of_others(tmp_path: Path) -> None:
    """Prevents: texts and logits of a teacher that nobody has here, keyed otherwise than the store's tables key them."""
    columns = {"query": ["q", " q ", "q", "Q"], "text": ["a", "b\n", "a", "é"], "logit": [1, 2, 1, 3], "rank": [1, 2, 3, 4]}
    path = file_with(tmp_path / "x.parquet", columns)
    code, said = cache("import", path, f"store={tmp_path / 'store'}", "teacher=big", "revision=7")
    assert code == 0 and "4 rows, 3 new pairs stored, 0 there already, 1 rows repeat an earlier one" in said, said
    declared = {"kind": "imported", "name": "big", "revision": "7", "scores": "logit"}
    assert set(content(tmp_path / "store", digest(declared))) == {A, B, key_of("Q", "é")}
    assert namespace_note(tmp_path / "store", digest(declared)) == {"name": "big", "key": declared}
    coded = {name: pa.array(columns[name]).dictionary_encode() for name in ("query", "text")}
    code, said = cache(
        "import", file_with(tmp_path / "c.parquet", {**columns, **coded}), f"store={tmp_path / 'store'}", "teacher=big", "revision=7"
    )
    assert code == 0 and "0 new pairs stored, 3 there already" in said, said
    hexed = file_with(tmp_path / "y.parquet", {"key": [A.hex().upper()], "logit": pa.array([1.0], pa.float16())})
    code, said = cache("import", hexed, f"store={tmp_path / 'store'}", "teacher=big", "revision=7")
    assert "big (revision 7, logit)" in cache("stats", f"store={tmp_path / 'store'}")[1]
    assert code == 0 and "0 new pairs stored, 1 there already" in said, said
    code, said = cache(
        "import", file_with(tmp_path / "z.parquet", {"key": [A], "logit": [1.0]}, {}), f"store={tmp_path / 's'}", "teacher=b"
    )
    assert code == EXIT_BAD_INPUT and "says itself that its logits are t's; leave teacher= out" in said, said


def test_a_lost_note_is_written_again(tmp_path: Path) -> None:
    """Prevents: logits whose teacher nobody knows, where a file that knows it was imported."""
    fill(tmp_path / "a", pairs(5))
    out = f"out={tmp_path / 'x.parquet'}"
    assert cache("export", f"store={tmp_path / 'a'}", out)[0] == 0
    note = tmp_path / "a" / "teacher_logits" / NAMESPACE / "namespace.json"
    for damaged in ("{", '{"name": "x", "key": {}}'):
        note.write_text(damaged)
        code, said = cache("export", f"store={tmp_path / 'a'}", out)
        assert code == EXIT_BAD_INPUT and "namespace.json is lost or was changed" in said
    assert cache("import", tmp_path / "x.parquet", f"store={tmp_path / 'a'}")[0] == 0
    assert json.loads(note.read_text()) == {"name": "teacher toy", "key": KEY}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out={0}/x.parquet"], "is one file, and there are 2 teachers: choose namespace="),
        ([""], "out is empty"),
        (["out={0}/corpus.parquet", f"namespace={NAMESPACE[:8]}"], "is a file of another kind, which is left as it is"),
        (["out={0}/text.parquet", f"namespace={NAMESPACE[:8]}"], "is a file of another kind, which is left as it is"),
        (["out={0}/x.parquet", "namespace=zz"], "namespace=zz"),
        (["out={0}/x", "texts=yes"], "texts=yes: expected true or false"),
        (["out={0}/x", "texst=true"], "texst"),
    ],
)
def test_exports_that_cannot_be(tmp_path: Path, words: list[str], said: str) -> None:
    """Prevents: two teachers in one file, a corpus overwritten by logits, a misspelt word that is passed over."""
    fill(tmp_path / "a", pairs(5))
    fill(tmp_path / "a", pairs(5), {**KEY, "kind": "second"})
    pq.write_table(pa.table({"_id": ["d"]}), tmp_path / "corpus.parquet")
    (tmp_path / "text.parquet").write_text("text")
    before = state(tmp_path)
    code, found = cache("export", f"store={tmp_path / 'a'}", *[word.format(tmp_path) for word in words if word])
    assert code == EXIT_BAD_INPUT and said in found, found
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{0}/none"], "no such file or folder"),
        (["{0}/empty"], "has no file *.parquet"),
        ([], "path is empty"),
        (["{0}/x.parquet", "namespace=00zz"], "namespace=00zz: "),
        (["{0}/x.parquet", "conflicts=mine"], "conflicts=mine: expected refuse or keep"),
    ],
)
def test_imports_that_cannot_be(tmp_path: Path, words: list[str], said: str) -> None:
    """Prevents: tracebacks for what a person mistypes, and an import of everything where one teacher was asked for."""
    (tmp_path / "empty").mkdir()
    file_with(tmp_path / "x.parquet", {"key": [A], "logit": [1.0]}, {})
    code, found = cache("import", *[word.format(tmp_path) for word in words], f"store={tmp_path / 'b'}")
    assert code == EXIT_BAD_INPUT and said in found, found
    assert not list((tmp_path / "b").rglob("*.parquet"))


def test_texts_of_dark_examples_as_their_teacher_read_them(tmp_path: Path) -> None:
    """Prevents: exports without texts for teachers that have no mask token, whose pairs are keyed by other texts than the tables hold."""
    from data.tables.schemas import MASK_MARK, SEPARATOR_MARK
    from retrieval.models.marks import usual_marks

    table = pa.table({"query": ["q", "q"], "text": [f"a {MASK_MARK} b", f"a {SEPARATOR_MARK} b"]})
    found = set(pair_texts._keyed(table, usual_marks(None)).column("text").to_pylist())
    assert found == {f"a {MASK_MARK} b", "a ... b", f"a {SEPARATOR_MARK} b", "a \n b", "a --- b"}


def test_a_killed_import_is_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a folder of half an import that stays in the store, or that keeps the next one from its end."""
    fill(tmp_path / "a", pairs(300))
    assert cache("export", f"store={tmp_path / 'a'}", f"out={tmp_path / 'x.parquet'}")[0] == 0
    real, calls = LogitStore.append, list[int]()

    def killed(self: LogitStore, *words: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *words)

    monkeypatch.setattr(incoming_logits, "PART_ROWS", 20)
    monkeypatch.setattr(LogitStore, "append", killed)
    result = CliRunner().invoke(app, ["cache", "import", str(tmp_path / "x.parquet"), f"store={tmp_path / 'b'}"])
    assert result.exit_code != 0 and 0 < len(content(tmp_path / "b")) < 300
    assert [path.name for path in (tmp_path / "b" / "teacher_logits").iterdir()] == [NAMESPACE]
    assert cache("import", tmp_path / "x.parquet", f"store={tmp_path / 'b'}")[0] == 0
    assert content(tmp_path / "b") == content(tmp_path / "a")


def test_what_a_killed_command_left_goes(tmp_path: Path) -> None:
    """Prevents: gigabytes of rows on their way that stay for good after a `kill -9`, and pass for a namespace."""
    fill(tmp_path / "store", pairs(3))
    place = tmp_path / "store" / "teacher_logits"
    left = place / f".between.{this_place()}-{2**22 + 5}-0123456789ab.tmp"
    (left / NAMESPACE).mkdir(parents=True)
    assert [line for line in cache("stats", f"store={tmp_path / 'store'}")[1].splitlines() if "pairs" in line][1:] == []
    file_with(tmp_path / "x.parquet", {"key": [A], "logit": [1.0]}, {})
    assert cache("import", tmp_path / "x.parquet", f"store={tmp_path / 'store'}")[0] == 0
    assert [path.name for path in place.iterdir()] == [NAMESPACE]


def test_by_an_object_store(bucket: Any, tmp_path: Path) -> None:
    """Prevents: an address that is taken for a folder called `s3:`, in either direction."""
    fill(tmp_path / "a", pairs(20))
    code, said = cache("export", f"store={tmp_path / 'a'}", f"out={bucket}/logits")
    assert code == 0 and f"20 pairs -> {bucket}/logits/{NAMESPACE}.parquet" in said, said
    for number, address in enumerate((f"{bucket}/logits", f"{bucket}/logits/{NAMESPACE}.parquet")):
        code, said = cache("import", address, f"store={tmp_path / str(number)}")
        assert code == 0, said
        assert content(tmp_path / str(number)) == content(tmp_path / "a")
    code, said = cache("import", f"{bucket}/nothing", f"store={tmp_path / 'b'}")
    assert code == EXIT_BAD_INPUT and "has no file *.parquet" in said
