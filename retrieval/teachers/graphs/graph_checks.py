"""Whether an ONNX graph is a cross-encoder that can be fed, as its inputs, outputs and weights say. ONNX Runtime is not needed."""

from __future__ import annotations

import re
from pathlib import Path

from data.errors import UserError
from retrieval.model_files.checks import check_token_rows
from retrieval.model_files.files import behind_transformer, module_list
from retrieval.model_files.model_lengths import check_length, usual_length
from retrieval.teachers.graphs.graph_files import GraphFiles
from retrieval.teachers.graphs.onnx import INPUTS, OnnxGraph, read_graph
from retrieval.teachers.plain_pairs import ONE_OUTPUT, check_texts

_INTEGERS = ("int64", "int32")
_NUMBERS = (*_INTEGERS, "bool", "float32", "float16")
_POSITIONS_AFTER_PADDING = re.compile("roberta|camembert|mpnet")  # their first two are padding's (`retrieval.model_files.model_lengths`)


def check_graph(files: GraphFiles, *, max_tokens: int, option: str) -> None:
    """Raises UserError where the graph is none of a cross-encoder with one output, is damaged, or wants what is not fed."""
    graph, path = read_graph(files.graph), files.graph
    for folder in files.places:
        _refuse_modules(folder, option=option)
    _check_inputs(path, graph, option=option)
    _check_output(path, graph, option=option)
    _check_length(files, graph, max_tokens=max_tokens, option=option)
    table = _table(graph, "word_embeddings.weight")
    check_token_rows(files.tokenizer, table[1] if table else None, option=option)
    for folder in files.places:
        check_texts(folder, option=option)


def _refuse_modules(folder: Path, *, option: str) -> None:
    """A graph is of the Transformer alone; what follows it in a sentence-transformers folder makes another score."""
    if behind_transformer(folder):
        kinds = [module["type"].rsplit(".", 1)[-1] for module in module_list(folder)]
        raise UserError(
            f"{option}: {folder} is a chain of sentence-transformers modules ({', '.join(kinds)} in its modules.json), of which a graph "
            f"holds the Transformer alone; {ONE_OUTPUT}, or teacher.backend=torch"
        )


def _check_inputs(path: Path, graph: OnnxGraph, *, option: str) -> None:
    fed = f"a teacher is given {', '.join(INPUTS)}"
    unknown = [name for name in graph.inputs if name not in INPUTS]
    if any("past" in name or name == "position_ids" for name in unknown):
        raise UserError(f"{option}: {path} wants {unknown[0]}, as a decoder's graph does, which is not supported; {fed}")
    if unknown or "input_ids" not in graph.inputs:
        raise UserError(f"{option}: {path} has the inputs {', '.join(graph.inputs) or 'none'}; {fed}: export it with these names")
    for name, value in graph.inputs.items():
        kinds = _NUMBERS if name == "attention_mask" else _INTEGERS
        if value.kind not in kinds or (value.dims is not None and len(value.dims) != 2):
            raise UserError(f"{option}: {path} wants {name} as {value.kind} {_shape(value.dims)}; expected {kinds[0]} [pairs, tokens]")


def _check_output(path: Path, graph: OnnxGraph, *, option: str) -> None:
    name, logits = next(iter(graph.outputs.items()))
    if logits.dims is None:
        return
    if len(logits.dims) not in (1, 2):
        raise UserError(f"{option}: {path} gives {name} {_shape(logits.dims)}, as an encoder without a head does; {ONE_OUTPUT}")
    if len(logits.dims) == 2 and logits.dims[1] not in (None, 1):
        raise UserError(f"{option}: the ONNX graph {path} has {logits.dims[1]} outputs; {ONE_OUTPUT}")


def _check_length(files: GraphFiles, graph: OnnxGraph, *, max_tokens: int, option: str) -> None:
    path, length = files.graph, graph.length
    if length is not None and not graph.masks_padding:
        raise UserError(
            f"{option}: {path} reads {length} tokens, no fewer, and has no attention_mask, so it would read padding as text; export it "
            "with a free length, or with attention_mask"
        )
    check_length(max_tokens, files.config, option="teacher.max_tokens")
    most, source = _most_tokens(files, graph)
    if most is not None and max_tokens > most:
        raise UserError(f"teacher.max_tokens={max_tokens}: {path} can read {most} tokens at most ({source}); set teacher.max_tokens={most}")


def _most_tokens(files: GraphFiles, graph: OnnxGraph) -> tuple[int | None, str]:
    """Tokens of a pair, and which file says so: a length that is fixed, a table of positions, or else what the tokenizer names."""
    if graph.length is not None:
        return graph.length, "its inputs are of that length"
    if table := _table(graph, "position_embeddings.weight"):
        name, rows = table
        return rows - (2 if _POSITIONS_AFTER_PADDING.search(name) else 0), f"its table {name}"
    if (files.config / "config.json").is_file():
        return None, ""
    return usual_length(files.tokenizer), "model_max_length in tokenizer_config.json"


def _table(graph: OnnxGraph, ending: str) -> tuple[str, int] | None:
    """Name and rows of a table of the graph, in fp32 or quantised, where the exporter kept its name."""
    for name, shape in graph.weights.items():
        if name.endswith((ending, f"{ending}_quantized")) and len(shape) == 2:
            return name, shape[0]
    return None


def _shape(dims: tuple[int | None, ...] | None) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in dims or ())}]"
