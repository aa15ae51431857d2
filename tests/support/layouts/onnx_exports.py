"""The ms-marco cross-encoder as ONNX graphs, in the ways that hub repositories and exporters lay them out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from support.layouts.rerankers import ms_marco_minilm
from support.layouts.weights import Layout, new_folder, shared

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class _Logits(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Any, mask: Any, segments: Any) -> Any:
        return self.model(input_ids=ids, attention_mask=mask, token_type_ids=segments).logits


@cache
def exported() -> Path:
    """The graph in fp32, one file."""
    import warnings

    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(shared(ms_marco_minilm), attn_implementation="eager").eval()
    path = new_folder() / "model.onnx"
    ids = torch.arange(5, 23).reshape(2, 9)
    axes: dict[str, dict[int, str]] = {name: {0: "pairs", 1: "tokens"} for name in INPUTS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Logits(model), (ids, torch.ones_like(ids), torch.zeros_like(ids)), str(path), input_names=list(INPUTS),
            output_names=["logits"], dynamic_axes={**axes, "logits": {0: "pairs"}}, dynamo=False, opset_version=17,
        )  # fmt: skip
    return path


def in_fp32(path: Path) -> None:
    shutil.copyfile(exported(), path)


def in_fp16(path: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(str(exported()))), str(path))


def in_int8(kind: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(str(exported()), str(path), weight_type=getattr(QuantType, kind))

    return write


def external(location: str) -> Callable[[Path], None]:
    """Weights in a file of their own beside the graph."""

    def write(path: Path) -> None:
        import onnx

        onnx.save_model(
            onnx.load(str(exported())), str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=location,
            size_threshold=100,
        )  # fmt: skip

    return write


def decoder_inputs(path: Path) -> None:
    """A graph that asks for positions and past keys, as a decoder's does."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(str(exported()))
    for name, kind, shape in (
        ("position_ids", TensorProto.INT64, ["pairs", "tokens"]), ("past_key_values.0.key", TensorProto.FLOAT, ["pairs", 2, "past", 16]),
    ):  # fmt: skip
        model.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    onnx.save(model, str(path))


def graphs(torch_weights: bool = False, **written: Callable[[Path], None]) -> Layout:
    """Tokenizer and config.json, and graphs: `onnx__model` is onnx/model.onnx. With `torch_weights` model.safetensors, too."""

    def build(folder: Path) -> Path:
        folder.mkdir(parents=True)
        for path in shared(ms_marco_minilm).iterdir():
            if torch_weights or path.suffix != ".safetensors":
                shutil.copyfile(path, folder / path.name)
        for name, write in written.items():
            path = folder / f"{name.replace('__', '/')}.onnx"
            path.parent.mkdir(exist_ok=True)
            write(path)
        return folder

    return build


fp32 = graphs(model=in_fp32)
fp16 = graphs(model=in_fp16)
unsigned = graphs(model=in_int8("QUInt8"))
signed = graphs(model=in_int8("QInt8"))
external_data = graphs(model=external("model.onnx_data"))
external_other_name = graphs(model=external("weights.bin"))
hub = graphs(torch_weights=True, onnx__model=in_fp32, onnx__model_quantized=in_int8("QUInt8"), onnx__model_fp16=in_fp16)
hub_external = graphs(onnx__model=external("model.onnx_data"))
only_variants = graphs(onnx__model_quantized=in_int8("QUInt8"), onnx__model_uint8=in_int8("QUInt8"))
decoder = graphs(model=decoder_inputs)
