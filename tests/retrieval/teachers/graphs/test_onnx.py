"""ONNX graphs as people have them: read as protobuf, cast, filled up or refused, and known by all files that hold their weights."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.model_files import LFS_POINTER, change_json, write_json
from support.onnx_graphs import save_graph

from data.config.settings import Teacher
from data.digests import DigestCache, file_digest, json_digest
from data.errors import UserError
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.base import TeacherSettings
from retrieval.teachers.cross_encoder import CrossEncoderSpec, load_cross_encoder
from retrieval.teachers.graphs.onnx import OnnxCrossEncoder, read_graph
from retrieval.teachers.pair_tokens import PairTokenizer
from retrieval.teachers.scoring import score_pairs

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PAIRS = [("ba be", "bi bo bu"), ("ca", "ce"), ("da de di do du", "fa " * 30), ("ga", ""), ("ha he", "hi ho hu ha he hi")]


def resolved(folder: Path, *, max_tokens: int = 32) -> CrossEncoderSpec:
    return resolve_teacher(Teacher(model=str(folder), backend="onnx", max_tokens=max_tokens), device="cpu")


def logits_of(folder: Path, *, pairs: list[tuple[str, str]] = PAIRS, batch_tokens: int = 128) -> list[float]:
    spec = resolved(folder)
    tokenizer = PairTokenizer(spec.folder, max_tokens=spec.max_tokens)
    model = load_cross_encoder(spec, device="cpu", threads=1, batch_tokens=batch_tokens)
    logits: list[float] = score_pairs(model, tokenizer.encode(pairs), pad_id=tokenizer.pad_id).tolist()
    return logits


@pytest.fixture(scope="module")
def free(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of int64 inputs in which everything is free."""
    return save_graph(tmp_path_factory.mktemp("free") / "model", models.teacher)


@pytest.mark.parametrize(
    "odd",
    [
        {"kind": "INT32"}, {"pairs": 1}, {"pairs": 2}, {"pairs": 3}, {"tokens": 32}, {"tokens": 40},
        {"pairs": 2, "tokens": 32, "kind": "INT32"},
        {"more": ("token_type_ids",)}, {"location": "weights.bin"}, {"positions": 64}, {"mask": True, "pairs": 64},
    ],
    ids=str,
)  # fmt: skip
def test_a_graph_with_fixed_sizes_or_other_numbers_gives_the_same_logits(
    models: Any, tmp_path: Path, free: Path, odd: dict[str, Any]
) -> None:
    """Prevents: a traceback of ONNX Runtime at stage teacher_scores, and a pair whose logit is that of the filling."""
    folder = save_graph(tmp_path / "model", models.teacher, **odd)
    np.testing.assert_allclose(logits_of(folder), logits_of(free), rtol=0, atol=1e-6)


@pytest.mark.parametrize("odd", [{}, {"mask": False}, {"pairs": 4}, {"tokens": 32}], ids=str)
def test_a_pair_alone_scores_as_in_any_batch(models: Any, tmp_path: Path, odd: dict[str, Any]) -> None:
    """Prevents: a graph without attention_mask to which the padding of its neighbours is text."""
    folder = save_graph(tmp_path / "model", models.teacher, **odd)
    together, alone = logits_of(folder, batch_tokens=4096), [logits_of(folder, pairs=[pair])[0] for pair in PAIRS]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)
    assert max(together) - min(together) > 0.01


def test_a_template_stands_around_the_pairs_of_a_graph(free: Path, tmp_path: Path) -> None:
    """Prevents: a setting that one backend reads and another passes over."""
    (tmp_path / "own.jinja").write_text("ba {{ query }} be {{ document }} bi")
    given = Teacher(model=str(free), backend="onnx", max_tokens=32, template=str(tmp_path / "own.jinja"))
    teacher = resolve_teacher(given, device="cpu").open(TeacherSettings.of(given, device="cpu", threads=1))
    (pair,) = teacher.prepare([("ca", "ce ci")]).pairs
    whole = PairTokenizer(free, max_tokens=32).backend.encode("ba ca be ce ci bi", add_special_tokens=False)
    assert pair.ids.tolist() == whole.ids
    assert teacher.score([("ca", "ce ci")]).tolist() != logits_of(free, pairs=[("ca", "ce ci")])


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "two": ({"outputs": 2}, r"the ONNX graph .* has 2 outputs; a cross-encoder with one output"),
    "names": ({"ids": "ids"}, r"has the inputs ids, attention_mask; a teacher is given input_ids, attention_mask, token_type_ids"),
    "unknown": ({"more": ("bbox",)}, r"has the inputs input_ids, attention_mask, bbox"),
    "positions": ({"more": ("position_ids",)}, r"wants position_ids, as a decoder's graph does"),
    "past": ({"more": ("past_key_values.0.key",)}, r"wants past_key_values\.0\.key, as a decoder's graph does"),
    "floats": ({"kind": "FLOAT"}, r"wants input_ids as float32 \[\?, \?\]; expected int64 \[pairs, tokens\]"),
    "length": ({"tokens": 16}, r"teacher\.max_tokens=32: .* can read 16 tokens at most \(its inputs .*; set teacher\.max_tokens=16"),
    "no mask": ({"tokens": 32, "mask": False}, r"reads 32 tokens, no fewer, and has no attention_mask"),
    "table": ({"positions": 24}, r"teacher\.max_tokens=32: .* can read 24 tokens at most .*position_embeddings\.weight\); set"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_fed_is_told_from_the_graph(models: Any, tmp_path: Path, name: str) -> None:
    """Prevents: graphs that fail once corpus, mining and dark examples are paid for."""
    odd, words = REFUSALS[name]
    folder = save_graph(tmp_path / "model", models.teacher, **odd)
    with pytest.raises(UserError, match=words):
        resolved(folder)


def test_the_states_of_an_encoder_are_no_logits(models: Any, tmp_path: Path, free: Path) -> None:
    """Prevents: an embedding model's graph taken for a cross-encoder's."""
    folder = shutil.copytree(free, tmp_path / "model")
    graph = onnx.load(str(folder / "model.onnx"))
    states = onnx.helper.make_tensor_value_info("words", onnx.TensorProto.FLOAT, ["pairs", "tokens", 1])
    graph.graph.output.insert(0, states)
    onnx.save(graph, str(folder / "model.onnx"))
    with pytest.raises(UserError, match=r"gives words \[\?, \?, 1\], as an encoder without a head does"):
        resolved(folder)


def test_a_length_that_only_the_tokenizer_names_is_held(models: Any, tmp_path: Path) -> None:
    """Prevents: a traceback at the first long pair of a folder without config.json."""
    folder = save_graph(tmp_path / "model", models.teacher)
    change_json(folder / "tokenizer_config.json", model_max_length=24)
    with pytest.raises(UserError, match=r"can read 24 tokens at most \(model_max_length in tokenizer_config\.json\)"):
        resolved(folder)
    write_json(folder / "config.json", {"model_type": "bert", "max_position_embeddings": 64})  # says it better
    resolved(folder)
    with pytest.raises(UserError, match=r"64 tokens at most \(its config\.json\)"):
        resolved(folder, max_tokens=65)
    (folder / "config.json").unlink()
    change_json(folder / "tokenizer_config.json", model_max_length=10**30)
    resolved(folder, max_tokens=5000)


@pytest.mark.parametrize("size", [1, 40, 200, 900])
def test_a_graph_that_was_cut_short_is_told(tmp_path: Path, free: Path, size: int) -> None:
    """Prevents: "Protobuf parsing failed", hours late."""
    folder = shutil.copytree(free, tmp_path / "model")
    (folder / "model.onnx").write_bytes((free / "model.onnx").read_bytes()[:size])
    with pytest.raises(UserError, match=rf"model\.onnx is no whole ONNX graph \({size} bytes\)"):
        resolved(folder)


@pytest.mark.parametrize(
    ("content", "words"), [(LFS_POINTER, "is a git-lfs pointer"), (b"", "is empty"), (b"<html>", "no whole ONNX graph")]
)
def test_something_else_in_the_graph_s_place_is_told(tmp_path: Path, free: Path, content: bytes, words: str) -> None:
    """Prevents: a clone without git-lfs, or a page of an error, found out at the first pair."""
    folder = shutil.copytree(free, tmp_path / "model")
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(UserError, match=words):
        resolved(folder)


def test_damage_within_is_told_in_words_or_not_at_all(tmp_path: Path, free: Path) -> None:
    """Prevents: a traceback out of the walk through a damaged file."""
    folder, whole = shutil.copytree(free, tmp_path / "model"), (free / "model.onnx").read_bytes()
    chance = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[int(chance.integers(min(len(whole), 2500)))] = int(chance.integers(256))
        (folder / "model.onnx").write_bytes(damaged)
        try:
            load_cross_encoder(resolved(folder), device="cpu", threads=1)
        except UserError as error:
            assert "model.onnx" in str(error) or "token" in str(error)


def test_external_weights_of_any_name_decide_the_digest(models: Any, tmp_path: Path) -> None:
    """Prevents: the logits of weights that were exchanged, taken for those of the new ones."""
    folder = save_graph(tmp_path / "model", models.teacher, location="weights.bin")
    before, logits = resolved(folder).namespace(DigestCache(tmp_path / "none")), logits_of(folder)
    weights = np.fromfile(folder / "weights.bin", np.uint8)
    np.fromfile(folder / "weights.bin", np.float32, len(weights) // 4).__neg__().tofile(folder / "weights.bin")
    assert resolved(folder).namespace(DigestCache(tmp_path / "none")) != before
    np.testing.assert_allclose(logits_of(folder), -np.array(logits), atol=1e-6)


@pytest.mark.parametrize("location", [None, "model.onnx_data", "model.onnx.data"])
def test_digests_of_graphs_known_before_stay(models: Any, tmp_path: Path, location: str | None) -> None:
    """Prevents: a store of a million logits scored anew, because files that were hashed all along are listed in another way."""
    folder = save_graph(tmp_path / "model", models.teacher, location=location)
    names = ["model.onnx", *([location] if location else [])]
    weights = json_digest({"config": {}, "weights": [file_digest(folder / name) for name in sorted(names)]})
    key = resolved(folder).key(DigestCache(tmp_path / "none"))
    assert key["weights"] == weights
    assert key.keys() == {"weights", "tokenizer", "template", "max_tokens", "head", "precision"}


def test_logits_that_depended_on_padding_are_not_taken_again(models: Any, tmp_path: Path) -> None:
    """Prevents: the logits of a graph without attention_mask, which were of the batch they were in, served from an older store."""
    folder = save_graph(tmp_path / "model", models.teacher, mask=False)
    assert resolved(folder).key(DigestCache(tmp_path / "none"))["batch"] == "one pair"


def test_external_weights_that_are_missing_cut_or_elsewhere_are_told(models: Any, tmp_path: Path) -> None:
    """Prevents: ONNX Runtime's words on a file that was left behind when the graph was copied."""
    folder = save_graph(tmp_path / "model", models.teacher, location="weights.bin")
    whole = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(whole[:-4])
    with pytest.raises(UserError, match=rf"weights\.bin is cut short: it has {len(whole) - 4} bytes, model\.onnx asks for {len(whole)}"):
        resolved(folder)
    (folder / "weights.bin").write_bytes(LFS_POINTER)
    with pytest.raises(UserError, match=r"weights\.bin is a git-lfs pointer"):
        resolved(folder)
    (folder / "weights.bin").unlink()
    with pytest.raises(UserError, match=r"keeps weights in weights\.bin, which is not beside it"):
        resolved(folder)
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes().replace(b"weights.bin", b"../ghts.bin"))
    with pytest.raises(UserError, match=r"keeps weights in \.\./ghts\.bin, outside its folder"):
        resolved(folder)


@pytest.mark.parametrize("location", [None, "weights.bin"])
def test_the_walk_finds_what_the_onnx_package_finds(models: Any, tmp_path: Path, location: str | None) -> None:
    """Prevents: a field read under another's number."""
    folder = save_graph(tmp_path / "model", models.teacher, kind="INT32", pairs=3, positions=64, location=location)
    ours, theirs = read_graph(folder / "model.onnx"), onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    assert list(ours.inputs) == [value.name for value in theirs.input] and list(ours.outputs) == [value.name for value in theirs.output]
    assert ours.inputs["input_ids"].kind == "int32" and (ours.batch, ours.length) == (3, None)
    assert ours.weights == {tensor.name: tuple(tensor.dims) for tensor in theirs.initializer}
    assert ours.operators == {node.op_type for node in theirs.node}
    assert list(ours.external) == ([location] if location else [])


def test_weights_in_subgraphs_and_constants_are_found(models: Any, tmp_path: Path, free: Path) -> None:
    """Prevents: a file of weights that only a branch of the graph reads, left out of the digest."""
    from onnx import TensorProto, helper

    def external(name: str) -> Any:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=f"{name}.bin")
        return tensor

    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=external("constant"))], "then", [], [], [external("branch")])
    model = onnx.load(str(free / "model.onnx"))
    model.graph.node.append(helper.make_node("If", ["condition"], [], then_branch=inner))
    model.functions.append(
        helper.make_function("own", "F", [], [], [helper.make_node("Constant", [], ["d"], value=external("function"))], [])
    )
    folder = shutil.copytree(free, tmp_path / "model")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    for name in ("branch", "constant", "function"):
        (folder / f"{name}.bin").write_bytes(b"12345678")
    assert sorted(read_graph(folder / "model.onnx").external) == ["branch.bin", "constant.bin", "function.bin"]


def test_a_missing_runtime_is_told_with_the_extra(free: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an ImportError in place of what to install."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'adam-distillation\[onnx\]'"):
        load_cross_encoder(resolved(free), device="cpu", threads=1)


def test_a_graph_gives_one_logit_a_pair(models: Any, tmp_path: Path, free: Path) -> None:
    """Prevents: outputs of a size that the file does not tell, folded into logits, or told when the pairs are there."""
    folder = shutil.copytree(free, tmp_path / "model")
    model = onnx.load(str(folder / "model.onnx"))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("words", onnx.TensorProto.FLOAT, None))
    onnx.save(model, str(folder / "model.onnx"))
    with pytest.raises(UserError, match=r"gives \[1, 2, 1\] for 1 pair\(s\); one logit a pair is needed"):
        OnnxCrossEncoder(folder / "model.onnx", device="cpu", threads=1, batch_tokens=64)
