"""Which teacher a setting names, and under which name its logits are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.plugin_teachers import Overlap

from data.config.fields import warn_once
from data.config.settings import TEACHER_BACKENDS, HttpServer, Teacher
from data.digests import DigestCache
from data.errors import RunFailed, UserError
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK
from retrieval.teachers.backends import BACKENDS, resolve_teacher
from retrieval.teachers.base import TeacherSettings

OVERLAP = "support.plugin_teachers:Overlap"


def key_of(**words: Any) -> dict[str, Any]:
    return resolve_teacher(Teacher(**{"model": "none", **words}), device="cpu").key(DigestCache(Path("/nowhere")))


def opened(backend: str, model: str = "bm25") -> Any:
    teacher = Teacher(model=model, backend=backend)
    return resolve_teacher(teacher, device="cpu").open(TeacherSettings.of(teacher, device="cpu", threads=3))


def test_names_are_those_that_settings_are_checked_by() -> None:
    """Prevents: a backend that `prep` accepts and does not find, or finds and does not accept."""
    assert tuple(BACKENDS) == TEACHER_BACKENDS


@pytest.fixture
def fixed(tmp_path: Path) -> Path:
    """A cross-encoder's folder of bytes that no library decides."""
    from safetensors.numpy import save_file

    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 6, "max_position_embeddings": 40, "type_vocab_size": 2,
        "num_labels": 1, "id2label": {"0": "LABEL_0"}, "pad_token_id": 0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 40}))
    shapes = {"word": (6, 4), "position": (40, 4), "token_type": (2, 4)}
    tables = {f"bert.embeddings.{name}_embeddings.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    head = {"classifier.weight": np.zeros((1, 4), np.float32), "classifier.bias": np.zeros(1, np.float32)}
    save_file(tables | head, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("precision", "namespace"), [("fp32", "5cca46aae6e68aa827a4a3437752883e"), ("fp16", "222239ff0dedc1ff180e3a018babdda3")]
)
def test_a_built_in_keeps_the_name_of_its_logits(fixed: Path, precision: str, namespace: str) -> None:
    """Prevents: a store of a million logits scored anew. The names are those of version 0.1."""
    device = "cuda" if precision == "fp16" else "cpu"  # a GPU's fp32 got a name of its own later
    spec = resolve_teacher(Teacher(model=str(fixed), precision=precision, max_tokens=32), device=device)
    assert spec.namespace(DigestCache(Path("/nowhere"))) == namespace


def test_all_that_a_plugin_s_logits_depend_on_is_in_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: logits of another class, version, model or setting taken for this one's; a new name for what changes none."""
    plain = key_of(backend=OVERLAP)
    assert plain == {"plugin": OVERLAP, "version": 1, "model": "none", "revision": None, "max_tokens": 160, "precision": "auto"}
    for other in ({"model": "k1=0.9"}, {"max_tokens": 64}, {"precision": "fp32"}, {"revision": "v2"}):
        assert key_of(**{"backend": OVERLAP, **other}) != plain
    assert key_of(backend="support.plugin_teachers:Prepares") != plain
    for other in ({"batch_tokens": 64}, {"compile": True}, {"segment_pairs": 3}):
        assert key_of(**{"backend": OVERLAP, **other}) == plain
    monkeypatch.setattr(Overlap, "version", 2)
    assert key_of(backend=OVERLAP) == {**plain, "version": 2}


def test_a_model_that_is_a_folder_or_file_is_its_content(tmp_path: Path) -> None:
    """Prevents: logits scored again in another folder, or those of other weights served from the same one."""
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "weights").write_bytes(b"abc")
    one = key_of(backend=OVERLAP, model=str(tmp_path / "one"))
    assert one == key_of(backend=OVERLAP, model=str(tmp_path / "two")) and list(one["model"]) == ["sub/weights"]
    (tmp_path / "two" / "sub" / "weights").write_bytes(b"abd")
    assert key_of(backend=OVERLAP, model=str(tmp_path / "two")) != one
    assert key_of(backend=OVERLAP, model=str(tmp_path / "one" / "sub" / "weights"))["model"] == {".": one["model"]["sub/weights"]}


def test_a_plugin_reads_texts_and_gets_the_settings() -> None:
    """Prevents: marks of the project's own in other people's texts, or settings that never arrive."""
    Overlap.seen.clear()
    teacher = opened(OVERLAP)
    logits = teacher.score([("a b", f"a {SEPARATOR_MARK} {MASK_MARK}{MASK_MARK} b"), ("a", "c")])
    assert logits.dtype == np.float32 and logits.shape == (2,)
    assert Overlap.seen == [("a b", "a [SEP] [MASK][MASK] b"), ("a", "c")]
    assert (Overlap.given[-1].model, Overlap.given[-1].threads, Overlap.given[-1].max_tokens) == ("bm25", 3, 160)


def test_a_plugin_may_prepare_its_pairs_itself() -> None:
    """Prevents: token counts and cuts of a teacher that has them, lost on the way; logits of another order."""
    pairs = [("a b", "b c"), ("d", "d " * 30)]
    teacher, batches = opened("support.plugin_teachers:Prepares"), list[tuple[int, ...]]()
    prepared = teacher.prepare(pairs)
    logits = teacher.score_prepared(prepared, on_batch=lambda *figures: batches.append(figures))
    assert prepared.token_counts.tolist() == [2, 30] and prepared.truncated.tolist() == [False, True]
    assert batches == [(2, 32, 0)]
    np.testing.assert_array_equal(logits, opened(OVERLAP).score(pairs))
    assert not opened(OVERLAP).prepare(pairs).token_counts.any()


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("support.plugin_teachers:Overlpa", r"teacher.backend=.* support.plugin_teachers has no Overlpa; nearest: Overlap"),
        ("not_installed_lab.teachers:T", "has no module not_installed_lab: install it there, or put its folder on PYTHONPATH"),
        ("support.plugin_teachers:gives_none", r"gives a NoneType, which has no score\(pairs\)"),
        ("support.plugin_teachers:gives_two", r"gave \[1, 2\] logits for 1 pairs"),
        ("support.plugin_teachers:gives_nan", "gave 1 logits that are not finite numbers"),
    ],
)
def test_a_faulty_plugin_is_told_of_when_it_is_tried_out(backend: str, message: str) -> None:
    """Prevents: a traceback, or logits that are none in the store, after hours of mining."""
    with pytest.raises((UserError, RunFailed), match=message):
        opened(backend).load()


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    """Prevents: a misspelt backend found out by an import."""
    with pytest.raises(ValueError, match="no teacher 'troch'; nearest: torch"):
        Teacher(model="m", backend="troch")


@pytest.mark.parametrize(("given", "meant"), [("auto", False), ("off", False), ("on", True)])
def test_the_words_of_before_still_say_whether_to_compile(given: str, meant: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: an experiment file of the version before that is refused, or changes its meaning without a word, or with one each time."""
    warn_once.cache_clear()
    assert Teacher(model="m", compile=given).compile is meant
    assert f"warning: teacher.compile={given} is now teacher.compile={str(meant).lower()}" in capsys.readouterr().err
    assert Teacher(model="m", compile=given).compile is meant and not capsys.readouterr().err
    assert Teacher(model="m", compile="true").compile is True and not capsys.readouterr().err


def test_a_server_that_no_backend_asks_is_refused() -> None:
    """Prevents: a model of the hub opened in place of the server that was meant."""
    with pytest.raises(UserError, match=r"teacher\.http is given, which teacher\.backend=torch does not read"):
        resolve_teacher(Teacher(model="organisation/name", http=HttpServer(url="http://host:8000")), device="cpu")
