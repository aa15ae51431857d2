"""What a checkpoint gives by its own library: token ids and logits of `PAIRS`, vectors of texts. None of this project's code.

A reference of a teacher is a function `(folder, max_tokens) -> Scores`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from support.layouts.rerankers import TASK
from support.layouts.texts import PAIRS


@dataclass(frozen=True)
class Scores:
    """[n] logits of the pairs, and the token ids of each."""

    ids: list[list[int]]
    logits: NDArray[np.float32]


Reference = Callable[[Path, int], Scores]
FP32 = {"dtype": torch.float32}


def as_cross_encoder(folder: Path, max_tokens: int) -> Scores:
    """sentence-transformers' CrossEncoder, without an activation."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", max_length=max_tokens, model_kwargs=FP32)
    prompt = model.prompts.get(model.default_prompt_name) if model.default_prompt_name else None
    read = [model.preprocess([pair], prompt=prompt) for pair in PAIRS]
    ids = [features["input_ids"][0][features["attention_mask"][0].bool()].tolist() for features in read]
    logits = model.predict(PAIRS, activation_fn=torch.nn.Identity(), batch_size=8, show_progress_bar=False)
    return Scores(ids, np.asarray(logits, np.float32))


def as_pair(tokenizer: Any, query: str, document: str, max_tokens: int) -> Any:
    """The tokenizer's own pair; in a batch of one, since an empty document would else count as none."""
    return tokenizer([query], [document], truncation="longest_first", max_length=max_tokens, return_tensors="pt")


def as_text(text: Callable[[str, str], str]) -> Callable[..., Any]:
    """One text in which special tokens are written out."""

    def encode(tokenizer: Any, query: str, document: str, max_tokens: int) -> Any:
        return tokenizer(text(query, document), add_special_tokens=False, return_tensors="pt")

    return encode


def label(number: int) -> Callable[..., Any]:
    return lambda logits, tokenizer: logits[0, number]


def difference(logits: Any, tokenizer: Any) -> Any:
    return logits[0, 1] - logits[0, 0]


def answers(true: str, false: str | None = None) -> Callable[..., Any]:
    """Of a causal language model: the logit of one token behind the last one, less that of another."""

    def score(logits: Any, tokenizer: Any) -> Any:
        last = logits[0, -1]
        no = last[tokenizer.convert_tokens_to_ids(false)] if false else 0.0
        return last[tokenizer.convert_tokens_to_ids(true)] - no

    return score


def _opened(folder: Path, auto: str) -> Any:
    import transformers

    return getattr(transformers, auto).from_pretrained(folder, **FP32)


def trusted(folder: Path, auto: str) -> Any:
    """With the code that comes with the folder."""
    import transformers

    return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, **FP32)


def by_transformers(
    score: Callable[..., Any] = label(0),  # noqa: B008 (a constant)
    *,
    encode: Callable[..., Any] = as_pair,
    opened: Callable[[Path, str], Any] = _opened,
) -> Reference:
    """Plain transformers, one pair after the other. `score` makes a logit of the model's output [1, ...] and the tokenizer."""

    def reference(folder: Path, max_tokens: int) -> Scores:
        import transformers

        auto = "AutoModelForCausalLM" if score.__qualname__.startswith("answers") else "AutoModelForSequenceClassification"
        model = opened(folder, auto).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=opened is trusted)
        read = [encode(tokenizer, *pair, max_tokens) for pair in PAIRS]
        with torch.inference_mode():
            logits = [float(score(model(**features).logits, tokenizer)) for features in read]
        return Scores([features["input_ids"][0].tolist() for features in read], np.array(logits, np.float32))

    return reference


def with_adapter(folder: Path, auto: str) -> Any:
    """The base beside the folder, with the adapter of the folder merged into it."""
    import transformers
    from peft import PeftModel

    base = getattr(transformers, auto).from_pretrained(folder.parent / f"{folder.name}-base", num_labels=1, **FP32)
    return PeftModel.from_pretrained(base, folder).merge_and_unload()


def by_onnx(graph: str) -> Reference:
    """ONNX Runtime on one pair after the other, with transformers' tokenizer."""

    def reference(folder: Path, max_tokens: int) -> Scores:
        import onnxruntime
        import transformers

        session = onnxruntime.InferenceSession(folder / graph, providers=["CPUExecutionProvider"])
        home = folder if (folder / "tokenizer.json").is_file() else folder.parent
        tokenizer = transformers.AutoTokenizer.from_pretrained(home)
        read = [as_pair(tokenizer, *pair, max_tokens) for pair in PAIRS]
        names = [given.name for given in session.get_inputs()]
        logits = [float(session.run(None, {name: features[name].numpy() for name in names})[0][0, 0]) for features in read]
        return Scores([features["input_ids"][0].tolist() for features in read], np.array(logits, np.float32))

    return reference


# The texts of model cards, written out.


def qwen3_text(query: str, document: str) -> str:
    return (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
        f'answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: {TASK}\n<Query>: {query}\n<Document>: {document}'
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def mxbai_text(query: str, document: str) -> str:
    return (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\nquery: {query}\ndocument: {document}\nYou are a search relevance expert who evaluates how well documents match "
        "search queries. For each query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant\n"
    )


def bge_gemma_text(query: str, document: str) -> str:
    return (
        f"<bos>A: {query}\nB: {document}\nGiven a query A and a passage B, determine whether the passage contains an answer to the query "
        "by providing a prediction of either 'Yes' or 'No'."
    )


def rankllama_pair(tokenizer: Any, query: str, document: str, max_tokens: int) -> Any:
    return as_pair(tokenizer, f"query: {query}", f"document: {document}", max_tokens)


# Students


def opened_by_sentence_transformers(folder: Path, **words: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", model_kwargs=FP32, **words)


def pooled(mode: str) -> Callable[..., Any]:
    """A transformers folder, pooled in this way."""

    def opened(folder: Path, **words: Any) -> Any:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling

        read = opened_by_sentence_transformers(folder)
        return SentenceTransformer(modules=[read[0], Pooling(read[0].get_embedding_dimension(), mode)], device="cpu", **words)

    return opened


def repooled(mode: str) -> Callable[..., Any]:
    """A sentence-transformers folder, pooled in another way than it says."""

    def opened(folder: Path, **words: Any) -> Any:
        model = opened_by_sentence_transformers(folder, **words)
        model[1].pooling_mode = mode
        return model

    return opened


def text_tower(folder: Path, **words: Any) -> Any:
    """The text model of a composite one: its part of config.json and of the weights. The whole wants processors of images, too."""
    import shutil

    from safetensors.torch import load_file, save_file
    from support.checkpoints import write_json

    tower = folder.parent / "text-tower"
    if not tower.exists():
        shutil.copytree(folder, tower)
        write_json(tower / "config.json", json.loads((folder / "config.json").read_text())["text_config"])
        weights = load_file(folder / "model.safetensors")
        kept = {name.removeprefix("language_model."): tensor for name, tensor in weights.items()}
        save_file(kept, tower / "model.safetensors", metadata={"format": "pt"})
    return opened_by_sentence_transformers(tower, **words)


@dataclass(frozen=True)
class Peer:
    """How sentence-transformers is asked for the vectors that are meant."""

    opened: Callable[..., Any] = opened_by_sentence_transformers
    reopened: Callable[..., Any] = opened_by_sentence_transformers  # what is trained and saved
    prompts: Mapping[str, str] | None = None  # in place of the folder's
    words: Mapping[str, Any] = field(default_factory=dict)  # of both encode_query and encode_document
    document_words: Mapping[str, Any] = field(default_factory=dict)

    def open(self, folder: Path, *, layers: int | None = None) -> Any:
        """The model, cut to its first layers."""
        model = self.opened(folder, **({"prompts": dict(self.prompts)} if self.prompts else {}))
        if layers:
            _cut(model[0].model, layers)
        return model

    def vectors(self, model: Any, queries: list[str], passages: list[str], *, saved: bool = False) -> tuple[Any, Any]:
        """Of queries and passages. `saved`: by a folder that has its prompts under the names that encode_document knows."""
        words = {"show_progress_bar": False, **self.words}
        return model.encode_query(queries, **words), model.encode_document(passages, **words, **({} if saved else self.document_words))


def _cut(backbone: Any, layers: int) -> None:
    names = ("layer", "layers", "block", "h")
    lists = ((part, name, getattr(part, name, None)) for part in backbone.modules() for name in names)
    owner, name, stack = next(found for found in lists if isinstance(found[2], torch.nn.ModuleList))
    setattr(owner, name, stack[:layers])
    backbone.config.num_hidden_layers = layers
