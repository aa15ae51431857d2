"""ONNX graphs as folders and the hub have them: which one is taken, with which tokenizer and settings, and what is downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.hub import Hub
from support.model_files import change_json, vocabulary_size, write_json
from support.onnx_graphs import save_graph
from transformers import AutoTokenizer

from data.config.settings import Teacher
from data.digests import DigestCache
from data.errors import UserError
from retrieval.model_files import files as model_files
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.base import TeacherSettings
from retrieval.teachers.cross_encoder import CrossEncoderSpec

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PAIRS = [("ba be", "bi bo bu"), ("ca", "ce"), ("da de di do du", "fa " * 30), ("ga", ""), ("ha he", "hi ho hu ha he hi")]
CONFIG = {"model_type": "bert", "max_position_embeddings": 64}


def teacher_of(model: Path | str, **words: Any) -> Teacher:
    return Teacher(**{"model": str(model), "backend": "onnx", "max_tokens": 32, **words})


def resolved(model: Path | str, **words: Any) -> CrossEncoderSpec:
    spec: Any = resolve_teacher(teacher_of(model, **words), device="cpu")
    return spec


def logits_of(model: Path | str, **words: Any) -> list[float]:
    given = TeacherSettings.of(teacher_of(model, **words), device="cpu", threads=1)
    logits: list[float] = resolved(model, **words).open(given).score(PAIRS).tolist()
    return logits


def expected(tokenizer: Path) -> list[float]:
    """What `save_graph` computes with the first seed: the mean of a table's numbers over the tokens of a pair."""
    opened = AutoTokenizer.from_pretrained(tokenizer)
    table = np.random.default_rng(0).normal(size=(vocabulary_size(tokenizer), 1)).astype(np.float32)
    encoded = opened(*map(list, zip(*PAIRS, strict=True)), truncation="longest_first", max_length=32)
    return [float(table[ids].mean()) for ids in encoded.input_ids]


def namespace(model: Path | str, folder: Path, **words: Any) -> str:
    return resolved(model, **words).namespace(DigestCache(folder / "digests.json"))


def graph_of(spec: CrossEncoderSpec) -> str:
    assert spec.graph is not None
    return spec.graph.graph.relative_to(spec.graph.source).as_posix()


@pytest.fixture
def repo(models: Any, tmp_path: Path) -> Callable[..., Path]:
    """`repo("onnx/model.onnx", ...)`: a folder with the tokenizer and config.json, and graphs that differ by their weights."""

    def make(*names: str, folder: str = "repo", **words: Any) -> Path:
        for seed, name in enumerate(names):
            save_graph(tmp_path / folder, models.teacher, name=name, seed=seed, **words)
        write_json(tmp_path / folder / "config.json", CONFIG)
        return tmp_path / folder

    return make


LAYOUTS = ["model.onnx", "onnx/model.onnx", "onnx/model_quantized.onnx", "model_fp16.onnx", "exports/small/model.onnx"]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("location", [None, "weights.bin"])
def test_a_graph_scores_alike_wherever_it_lies(models: Any, repo: Callable[..., Path], name: str, location: str | None) -> None:
    """Prevents: a tokenizer, a configuration or external weights looked for beside the graph alone, where exporters do not put them."""
    folder = repo(name, location=location)
    np.testing.assert_allclose(logits_of(folder, file=name), expected(models.teacher), rtol=0, atol=1e-6)
    if not name.startswith("exports"):
        assert logits_of(folder) == logits_of(folder, file=name)


def test_model_onnx_is_taken_first_then_the_one_in_onnx_then_the_only_one(repo: Callable[..., Path]) -> None:
    """Prevents: another graph than the folder's main one, taken by the order of the alphabet."""
    folder = repo("onnx/model_fp16.onnx", "onnx/model.onnx", "model.onnx", "a.onnx")
    assert graph_of(resolved(folder)) == "model.onnx"
    (folder / "model.onnx").unlink()
    assert graph_of(resolved(folder)) == "onnx/model.onnx"
    (folder / "onnx" / "model.onnx").unlink()
    with pytest.raises(UserError, match=r"holds no model\.onnx, but 2 graphs; set teacher\.file to one of a\.onnx, onnx/model_fp16\.onnx"):
        resolved(folder)
    assert graph_of(resolved(folder, file="a.onnx")) == "a.onnx"
    (folder / "a.onnx").unlink()
    assert graph_of(resolved(folder)) == "onnx/model_fp16.onnx"
    (folder / "onnx" / "model_fp16.onnx").unlink()
    with pytest.raises(UserError, match=r"holds no model\.onnx, which teacher\.backend=onnx needs; try teacher\.backend=torch"):
        resolved(folder)


def test_the_folder_of_the_graph_may_be_named(repo: Callable[..., Path]) -> None:
    """Prevents: "no tokenizer" said of a folder whose tokenizer lies one level above, as on the hub."""
    folder = repo("onnx/model_quantized.onnx")
    assert logits_of(folder / "onnx") == logits_of(folder)
    spec = resolved(folder / "onnx")
    assert spec.folder == folder and spec.graph is not None and spec.graph.config == folder
    with pytest.raises(UserError, match=r"64 tokens at most \(its config\.json\)"):
        resolved(folder / "onnx", max_tokens=65)


def test_a_tokenizer_beside_the_graph_wins(repo: Callable[..., Path], models: Any, tmp_path: Path) -> None:
    """Prevents: an export with a tokenizer of its own read with that of the repository."""
    folder = repo("onnx/model.onnx")
    for path in [*folder.glob("*.json"), folder / "vocab.txt"]:
        if path.is_file() and path.name != "config.json":
            shutil.move(path, folder / "onnx" / path.name)
    spec = resolved(folder)
    assert spec.folder == folder / "onnx" and spec.graph is not None and spec.graph.config == folder
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "query: "}, "default_prompt_name": "query"})
    template = resolved(folder).template
    assert template is not None and template.before == "query: "


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("onnx/model_fp16.onnx", r"teacher\.file=onnx/model_fp16\.onnx: .* holds no such file; its graphs are onnx/model\.onnx"),
        ("../repo/onnx/model.onnx", r"give the name of a graph within teacher\.model"),
        ("/model.onnx", r"give the name of a graph within teacher\.model"),
        ("onnx", r"give the name of a graph within teacher\.model"),
    ],
)
def test_a_file_that_is_not_there_is_told(repo: Callable[..., Path], file: str, words: str) -> None:
    """Prevents: a misspelt graph for which another one is scored."""
    with pytest.raises(UserError, match=words):
        resolved(repo("onnx/model.onnx"), file=file)


def test_a_file_is_refused_under_torch(models: Any) -> None:
    """Prevents: the weights for torch scored by somebody who named a quantised graph."""
    with pytest.raises(ValueError, match=r"file=onnx/model\.onnx names an ONNX graph, which is read under backend=onnx alone"):
        Teacher(model=str(models.teacher), file="onnx/model.onnx")


def test_the_digest_is_of_the_graph_its_weights_and_its_settings(repo: Callable[..., Path], tmp_path: Path) -> None:
    """Prevents: a million logits scored anew for a file that has no part in them, or served after one that has was exchanged."""
    folder, file = repo("onnx/model_quantized.onnx", location="weights.bin"), "onnx/model_quantized.onnx"
    before = namespace(folder, tmp_path, file=file)
    for name in ("model.safetensors", "onnx/model_fp16.onnx", "onnx/model.onnx_data", "onnx/other.onnx"):
        (folder / name).write_bytes(b"of no account")
    change_json(folder / "config.json", transformers_version="5.0")
    assert namespace(folder, tmp_path, file=file) == before
    assert namespace(folder / "onnx", tmp_path, file="model_quantized.onnx") == before
    for name in ("weights.bin", "model_quantized.onnx"):
        path = folder / "onnx" / name
        content = path.read_bytes()
        path.write_bytes(content.replace(b"graph", b"grapf") if name.endswith("onnx") else content[:-1] + b"\1")
        assert namespace(folder, tmp_path, file=file) != before
        path.write_bytes(content)
    change_json(folder / "config.json", hidden_act="relu")
    assert namespace(folder, tmp_path, file=file) != before


def test_a_graph_has_one_namespace_wherever_it_lies(repo: Callable[..., Path], tmp_path: Path) -> None:
    """Prevents: a graph scored anew because it was copied into a folder of its own."""
    plain, folder = repo("model.onnx", folder="plain"), repo("onnx/model.onnx")
    assert namespace(folder, tmp_path) == namespace(plain, tmp_path)
    assert namespace(plain, tmp_path, file="model.onnx") == namespace(plain, tmp_path)


def published(folder: Path, hub: Callable[[Path], Hub]) -> Hub:
    """A folder on the hub, with what repositories have beside their graphs."""
    for name in ("model.safetensors", "openvino/model.bin", "onnx/README.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"heavy")
    return hub(folder)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (None, {"onnx/model.onnx", "onnx/weights.bin"}),
        ("onnx/model_fp16.onnx", {"onnx/model_fp16.onnx", "onnx/weights.bin"}),
        ("model_quantized.onnx", {"model_quantized.onnx", "weights.bin"}),
    ],
)
def test_of_the_hub_the_graph_alone_is_downloaded(
    repo: Callable[..., Path], hub: Callable[[Path], Hub], file: str | None, expected: set[str]
) -> None:
    """Prevents: ten graphs and the weights for torch downloaded for one of them; external weights left behind."""
    folder = repo("onnx/model.onnx", "onnx/model_fp16.onnx", "model_quantized.onnx", location="weights.bin")
    there = published(folder, hub)
    spec = resolved("some/model", file=file)
    assert there.fetched == expected
    assert spec.folder == there.snapshot and (there.snapshot / "config.json").is_file()
    assert logits_of("some/model", file=file) == logits_of(folder, file=file or "onnx/model.onnx")


def test_of_the_hub_the_only_graph_is_taken_and_several_are_listed(
    repo: Callable[..., Path], hub: Callable[[Path], Hub], tmp_path: Path
) -> None:
    """Prevents: a repository whose graph has a name of its own, refused as one without graphs."""
    folder = repo("onnx/model_quantized.onnx")
    there = published(folder, hub)
    assert graph_of(resolved("some/model")) == "onnx/model_quantized.onnx"
    assert there.fetched == {"onnx/model_quantized.onnx"}
    there.answers = False
    model_files._from_hub.cache_clear()
    assert graph_of(resolved("some/model")) == "onnx/model_quantized.onnx"
    there = published(repo("onnx/model_quantized.onnx", "onnx/model_uint8.onnx", "deeper/onnx/model.onnx"), hub)
    shutil.rmtree(there.cache)
    with pytest.raises(UserError, match=r"2 graphs; set teacher\.file to one of onnx/model_quantized\.onnx, onnx/model_uint8\.onnx"):
        resolved("some/model")
    with pytest.raises(UserError, match=r"teacher\.file=onnx/model\.onnx: .* its graphs are onnx/model_quantized\.onnx, onnx/model_uint8"):
        resolved("some/model", file="onnx/model.onnx")
    assert not there.fetched


def test_a_graph_at_the_root_of_the_hub_has_the_digest_it_had(
    repo: Callable[..., Path], hub: Callable[[Path], Hub], tmp_path: Path
) -> None:
    """Prevents: all logits of such a teacher scored anew, for its digest covers the weights for torch that were downloaded with it."""
    folder = repo("model.onnx", "onnx/model.onnx")
    there = published(folder, hub)
    before = namespace(folder, tmp_path)
    assert namespace("some/model", tmp_path) == namespace("some/model", tmp_path, file="model.onnx") == before
    assert there.fetched == {"model.onnx", "model.safetensors"}
