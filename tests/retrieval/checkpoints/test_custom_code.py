"""Code that comes with a checkpoint: never run unasked, never guessed at, and part of the key where it is trusted."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import OWN_CODE, change_json, change_weights, save, save_own_code, write_json
from support.onnx_graphs import save_graph
from transformers import AutoTokenizer

from data.config.settings import Student, Teacher
from data.digests import DigestCache
from data.errors import UserError
from retrieval.checkpoints.files import resolve_folder
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.loading import open_model, open_tokenizer
from retrieval.models.student import resolve_student
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.cross_encoder import CrossEncoderSpec, load_cross_encoder

TEXTS = ["ba", "be bi bo", "fo gu zaxe ka"]


@pytest.fixture(autouse=True)
def _nobody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """transformers asks on stdin unless it is told; a piped `y` then runs the code."""

    def asked(*question: Any) -> str:
        raise AssertionError(f"asked: {question}")

    monkeypatch.setattr(builtins, "input", asked)
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))


def student(folder: Path, **words: Any) -> Student:
    return Student(model=str(folder), pooling="mean", query_tokens=16, passage_tokens=16, **words)


def teacher(folder: Path, **words: Any) -> Teacher:
    return Teacher(model=str(folder), precision="fp32", max_tokens=32, **words)


def test_own_code_is_refused_in_words_before_anything_is_loaded(tmp_path: Path) -> None:
    """Prevents: a question on stdin, answered by whatever is piped in; a traceback after hours; code that runs unasked."""
    ran = tmp_path / "ran"
    folder = save_own_code(tmp_path / "model", head=True, code=f"open({str(ran)!r}, 'w')\n{OWN_CODE}")
    with pytest.raises(UserError, match=r"auto_map in config\.json.*'own'.*set student\.trust_remote_code=true"):
        resolve_student(student(folder))
    with pytest.raises(UserError, match=r"set teacher\.trust_remote_code=true"):
        resolve_teacher(teacher(folder), device="cpu")
    for option in ("embed.model", "train.objective.teacher_model"):
        with pytest.raises(UserError, match=f"never for {option}"):
            resolve_student(student(folder), option=option)
    for auto in ("AutoModel", "AutoModelForSequenceClassification"):
        with pytest.raises(UserError, match="cannot be opened"):
            open_model(auto, folder, option="teacher.model")
    assert not ran.exists()


def test_a_tokenizer_of_own_code_is_refused_and_a_file_beside_it_used(tmp_path: Path) -> None:
    """Prevents: the same question, asked for a tokenizer; a tokenizer.json that is passed over for code."""
    folder = save(tmp_path, "Bert")
    expected = open_tokenizer(folder)("ba be").input_ids
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Slow", None]}, tokenizer_class="OwnTokenizer")
    resolve_student(student(folder))
    assert open_tokenizer(folder)("ba be").input_ids == expected
    (folder / "tokenizer.json").rename(folder / "vocab.txt")
    with pytest.raises(UserError, match=r"auto_map in tokenizer_config\.json"):
        resolve_student(student(folder))


@pytest.mark.medium
def test_a_class_of_transformers_stands_in_only_where_it_has_all_weights(tmp_path: Path) -> None:
    """Prevents: a folder of own code under a known model_type, computed as that model: experts left out, or other layers at random."""
    folder = save(tmp_path, "Bert")
    expected = TextEncoder(resolve_student(student(folder)), precision="fp32", device="cpu", batch_tokens=64).passages(TEXTS)
    change_json(folder / "config.json", auto_map={"AutoModel": "modeling_own.OwnModel"})
    np.testing.assert_array_equal(
        TextEncoder(resolve_student(student(folder)), precision="fp32", device="cpu", batch_tokens=64).passages(TEXTS), expected
    )
    for name in ("encoder.layer.1.mlp.experts.weight", "projection.weight"):  # a part of a layer, and one above all layers
        change_weights(folder, lambda tensors, name=name: {**tensors, name: torch.ones(32, 32)})
        with pytest.raises(UserError, match=rf"{name}.*Python code of its own.*student\.trust_remote_code=true"):
            DualEncoder(resolve_student(student(folder)))
        change_weights(folder, lambda tensors, name=name: {key: tensor for key, tensor in tensors.items() if key != name})


def test_trusted_code_runs_and_is_keyed_by_its_content(tmp_path: Path) -> None:
    """Prevents: logits and vectors of changed code taken for those of the code before; a key that changes for who trusts nothing."""
    folder, digests = save_own_code(tmp_path / "teacher", head=True), DigestCache(tmp_path / "digests.json")
    spec = resolve_teacher(teacher(folder, trust_remote_code=True), device="cpu")
    ids = np.array([[5, 6, 7, 0]])
    logits = load_cross_encoder(spec, device="cpu", threads=1).logits(ids, (ids > 0).astype(np.int64), ids * 0)
    assert np.isfinite(logits).all()
    before = spec.namespace(digests)
    (folder / "modeling_own.py").write_text(OWN_CODE.replace(".sin()", ".cos()"))
    assert resolve_teacher(teacher(folder, trust_remote_code=True), device="cpu").namespace(digests) != before

    plain = save(tmp_path / "plain", "Bert", head=True)
    keys = [resolve_teacher(teacher(plain, trust_remote_code=trusted), device="cpu").key(digests) for trusted in (False, True)]
    assert keys[0] == keys[1] and "code" not in keys[0]
    assert CrossEncoderSpec(plain, "", "torch", "fp32", 32).key(digests) == keys[0]


def test_a_trusted_student_embeds_and_is_saved_with_its_code(tmp_path: Path) -> None:
    """Prevents: a student that trains and cannot be opened again."""
    folder = save_own_code(tmp_path / "student")
    given = student(folder, trust_remote_code=True, normalize=True)
    encoder = TextEncoder(resolve_student(given), precision="fp32", device="cpu", batch_tokens=64)
    vectors = encoder.passages(TEXTS)
    encoder = TextEncoder(resolve_student(given), precision="fp32", device="cpu", batch_tokens=1)
    np.testing.assert_allclose(encoder.passages(TEXTS), vectors, atol=1e-6)
    DualEncoder(resolve_student(given)).save(tmp_path / "saved")
    again = TextEncoder(
        resolve_student(student(tmp_path / "saved", trust_remote_code=True)), precision="fp32", device="cpu", batch_tokens=64
    )
    np.testing.assert_allclose(again.passages(TEXTS), vectors, atol=1e-6)
    key = again.spec.key(DigestCache(tmp_path / "digests.json"))
    assert "code" in key and not {"option", "trust_remote_code"} & set(key)
    with pytest.raises(UserError, match="trust_remote_code"):
        resolve_student(student(tmp_path / "saved"))


def test_what_trusted_code_raises_is_a_sentence(tmp_path: Path) -> None:
    """Prevents: a traceback for a package that the code asks for, and for a configuration without vocab_size."""
    folder = save_own_code(tmp_path / "imports", code=f"import a_package_that_is_not_here\n{OWN_CODE}")
    with pytest.raises(UserError, match=r"cannot be opened.*a_package_that_is_not_here"):
        TextEncoder(resolve_student(student(folder, trust_remote_code=True)), precision="fp32", device="cpu", batch_tokens=64)
    folder = save_own_code(
        tmp_path / "names", code=OWN_CODE.replace("self.vocab_size,", "self.rows,").replace("config.vocab_size", "config.rows")
    )
    change_json(folder / "config.json", vocab_size=None)
    with pytest.raises(UserError, match=r"student\.model: OwnModel does not run.*vocab_size"):
        TextEncoder(resolve_student(student(folder, trust_remote_code=True)), precision="fp32", device="cpu", batch_tokens=64)


@pytest.mark.parametrize("auto_map", [5, [1, 2], {"AutoModel": {}}])
def test_an_auto_map_of_another_type_is_a_sentence(tmp_path: Path, auto_map: Any) -> None:
    """Prevents: a traceback for a damaged file."""
    folder = save_own_code(tmp_path)
    change_json(folder / "config.json", auto_map=auto_map)
    with pytest.raises(UserError, match=r"config\.json says auto_map=.*names of classes"):
        resolve_student(student(folder))


def test_a_graph_needs_no_code_of_the_model_s_own(models: Any, tmp_path: Path) -> None:
    """Prevents: an ONNX teacher refused for code that its export left behind in config.json, and that nothing runs."""
    folder = save_graph(tmp_path / "graph", models.teacher)
    write_json(folder / "config.json", {"model_type": "own", "auto_map": {"AutoModel": "modeling_own.OwnModel"}})
    assert resolve_teacher(teacher(folder, backend="onnx"), device="cpu").folder == folder
    (folder / "tokenizer.json").rename(folder / "vocab.txt")
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": "own.Slow"})
    with pytest.raises(UserError, match=r"auto_map in tokenizer_config\.json"):
        resolve_teacher(teacher(folder, backend="onnx"), device="cpu")


def test_code_of_another_repository_is_refused(tmp_path: Path) -> None:
    """Prevents: trusted code that is fetched from where no key knows of it, and may be another tomorrow."""
    folder = save_own_code(tmp_path)
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    change_json(folder / "config.json", auto_map={**auto_map, "AutoModel": "someone/code--modeling_own.OwnModel"})
    with pytest.raises(UserError, match="another repository"):
        resolve_student(student(folder, trust_remote_code=True))


def test_trust_on_the_hub_needs_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: code that somebody pushes to a branch tonight and that runs here tomorrow; a revision that is silently not used."""
    asked: dict[str, Any] = {}

    def download(model: str, **words: Any) -> str:
        asked.update(words)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    commit = "0123456789abcdef" * 2 + "01234567"
    for revision in (None, "main", commit[:7], commit.upper()):
        with pytest.raises(UserError, match=r"set student\.revision to a commit"):
            resolve_folder("some/model", option="student.model", revision=revision, with_code=True)
    resolve_folder("some/model", option="student.model", revision=commit, with_code=True)
    assert asked["revision"] == commit and "*.py" in asked["allow_patterns"]
    resolve_folder("some/model", option="student.model", revision="v2")
    assert asked["revision"] == "v2" and "*.py" not in asked["allow_patterns"]
    with pytest.raises(UserError, match=r"student\.revision=v2: .* is a folder"):
        resolve_folder(str(tmp_path), option="student.model", revision="v2")


def test_the_tokenizers_of_both_ways_are_the_same(tmp_path: Path) -> None:
    """Prevents: a tokenizer opened here that is not the one transformers opens."""
    for name in ("Bert", "Roberta", "Llama", "Qwen3", "Gemma"):
        folder = save(tmp_path / name, name)
        assert open_tokenizer(folder)("ba be", "bi").input_ids == AutoTokenizer.from_pretrained(folder)("ba be", "bi").input_ids
