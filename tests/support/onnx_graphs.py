"""Tiny ONNX cross-encoders: the mean of a row of numbers over the tokens that the mask leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from support.model_files import copy_tokenizer, vocabulary_size


def save_graph(
    folder: Path,
    tokenizer: Path,
    *,
    outputs: int = 1,
    kind: str = "INT64",
    pairs: int | str = "pairs",
    tokens: int | str = "tokens",
    mask: bool = True,
    ids: str = "input_ids",
    more: tuple[str, ...] = (),
    positions: int | None = None,
    location: str | None = None,
    name: str = "model.onnx",
    seed: int = 0,
) -> Path:
    """Write a graph with a tokenizer beside it, or above it where its name has a folder.

    Args:
        folder: made here.
        tokenizer: the folder whose tokenizer is copied.
        outputs: columns of the logits.
        kind: number format of the inputs.
        pairs: first dimension of the inputs, a number or a name.
        tokens: second dimension.
        mask: whether there is an attention_mask.
        ids: name of the token ids.
        more: further inputs, which the graph passes over.
        positions: rows of a table of positions, added to the tokens.
        location: file of the weights; None keeps them in the graph.
        name: of the graph in the folder; one that holds a tokenizer gets a further graph.
        seed: of the weights.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, array: Any) -> Any:
        return numpy_helper.from_array(array, name)

    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(tokenizer, folder)
    size = vocabulary_size(tokenizer)
    node, chance = helper.make_node, np.random.default_rng(seed)
    weights = [constant("bert.embeddings.word_embeddings.weight", chance.normal(size=(size, outputs)).astype(np.float32))]
    weights.append(constant("last", np.array([-1], np.int64)))
    nodes = [node("Cast", [ids], ["cast"], to=TensorProto.INT64), node("Gather", [weights[0].name, "cast"], ["words"], axis=0)]
    states = "words"
    if positions:
        weights.append(constant("bert.embeddings.position_embeddings.weight", np.zeros((positions, outputs), np.float32)))
        weights.append(constant("nothing", np.array(0, np.int64)))
        weights.append(constant("first", np.array(1, np.int64)))
        nodes += [
            node("Shape", ["cast"], ["shape"], start=1, end=2), node("Squeeze", ["shape"], ["length"]),
            node("Range", ["nothing", "length", "first"], ["places"]), node("Gather", [weights[2].name, "places"], ["placed"], axis=0),
            node("Add", [states, "placed"], ["sums"]),
        ]  # fmt: skip
        states = "sums"
    if mask:
        weights.append(constant("middle", np.array([1], np.int64)))
        nodes += [
            node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT), node("Unsqueeze", ["mask", "last"], ["column"]),
            node("Mul", [states, "column"], ["kept"]), node("ReduceSum", ["kept", "middle"], ["sum"], keepdims=0),
            node("ReduceSum", ["column", "middle"], ["count"], keepdims=0), node("Div", ["sum", "count"], ["logits"]),
        ]  # fmt: skip
    else:
        weights.append(constant("middle", np.array([1], np.int64)))
        nodes.append(node("ReduceMean", [states, "middle"], ["logits"], keepdims=0))
    names = [ids, *(["attention_mask"] if mask else []), *more]
    inputs = [helper.make_tensor_value_info(name, getattr(TensorProto, kind), [pairs, tokens]) for name in names]
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [pairs, outputs])
    model = helper.make_model(helper.make_graph(nodes, "graph", inputs, [out], weights), opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    external: dict[str, Any] = {"save_as_external_data": True, "location": location, "size_threshold": 64} if location else {}
    onnx.save(model, str(folder / name), **external)
    return folder
