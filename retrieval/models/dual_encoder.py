"""The student: a transformers encoder, its pooling and what comes behind it, opened from and saved as common checkpoint folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError, first_line
from retrieval.compute.cpu_attention import own_attention
from retrieval.compute.probe import text_config
from retrieval.model_files.architectures import student_class
from retrieval.model_files.checks import causal_decoder
from retrieval.model_files.files import copy_tokenizer
from retrieval.model_files.module_files import PoolingSpec, pooling_file, size_after
from retrieval.models.first_layers import keep_first_layers
from retrieval.models.loading import open_model
from retrieval.models.lora import has_lora, save_adapter, without_adapters
from retrieval.models.modules import open_modules, save_module
from retrieval.models.pooling import pool
from retrieval.models.prompt_tokens import unmarked
from retrieval.models.student import StudentSpec


class DualEncoder(nn.Module):
    """Enc(text) -> vector of D dimensions; one encoder for queries and passages."""

    def __init__(self, spec: StudentSpec, *, attention: str | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.source = spec.weights_folder
        self.backbone = _backbone(spec, attention)
        if spec.layers is not None:
            keep_first_layers(self.backbone, spec.layers)
        self._token_size = _token_size(self.backbone, spec)
        pooled = self._token_size * len(spec.pooling.split("+"))
        self._vector_size = size_after(spec.modules, pooled, option=spec.option) or pooled
        self.projection = open_modules(spec.modules, option=spec.option)

    @property
    def size(self) -> int:
        """D, dimensions of a vector."""
        return min(self._vector_size, self.spec.truncate_dim or self._vector_size)

    @property
    def option(self) -> str:
        """The setting that names it, for errors."""
        return self.spec.option

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[n, L] token ids and mask to [n, D] fp32 vectors. Tokens that are not pooled may be marked (`retrieval.models.prompt_tokens`)."""
        ids, pooled = (input_ids, attention_mask) if self.spec.pools_prompt else unmarked(input_ids, attention_mask)
        hidden = self.backbone(input_ids=ids, attention_mask=attention_mask).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):
            vectors = self.projection(pool(hidden, pooled, self.spec.pooling))[:, : self.size]
        return nn.functional.normalize(vectors, dim=-1) if self.spec.normalize else vectors

    def save(self, folder: Path) -> None:
        """Save as a sentence-transformers folder that `SentenceTransformer(folder)` opens; a transformers folder too.

        LoRA updates are added to the weights, and lie in `adapter/` by themselves.

        There `encode_query` and `encode_document` give the vectors that queries and passages have here: prompts, lengths, lower-casing.
        Vectors that are cut to `truncate_dim` and normalised are, there, of length 1 only with `normalize_embeddings=True`: it cuts last.
        """
        folder.mkdir(parents=True, exist_ok=True)
        without_adapters(self.backbone).save_pretrained(folder, safe_serialization=True)
        if has_lora(self.backbone):
            save_adapter(self, folder / "adapter")
        copy_tokenizer(self.source, folder)
        after = [f"{place}_{module.kind}" for place, module in enumerate(self.spec.modules, 2)]
        modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *((path, path.partition("_")[2]) for path in after)]
        modules += [(f"{len(modules)}_Normalize", "Normalize")] * self.spec.normalize
        listed = [
            {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for place, (path, kind) in enumerate(modules)
        ]
        _write_json(folder / "modules.json", listed)
        pooling = PoolingSpec(self.spec.pooling, self.spec.pools_prompt)
        _write_json(folder / "1_Pooling" / "config.json", pooling_file(pooling, self._token_size))
        for path, module in zip(after, self.projection, strict=True):
            save_module(module, folder / path)
        _write_json(folder / "sentence_bert_config.json", {**_lengths(self.spec), "do_lower_case": self.spec.lower_case})
        similarity = "cosine" if self.spec.normalize else "dot"
        kept = {} if self.spec.truncate_dim is None else {"truncate_dim": self.spec.truncate_dim}
        _write_json(folder / "config_sentence_transformers.json", {**_prompts(self.spec), "similarity_fn_name": similarity, **kept})
        if self.spec.normalize:
            (folder / modules[-1][0]).mkdir(exist_ok=True)


def _lengths(spec: StudentSpec) -> dict[str, int]:
    """A plain `encode` reads as far as the longer of the two; the shorter one is a key that sentence-transformers knows from 6.0 on."""
    lengths = {"query_length": spec.query_tokens, "document_length": spec.passage_tokens}
    longest = max(lengths.values())
    return {"max_seq_length": longest, **{name: length for name, length in lengths.items() if length < longest}}


def _prompts(spec: StudentSpec) -> dict[str, Any]:
    """A plain `encode` has a prompt only where queries and passages share one."""
    prompts = {"query": spec.query_prefix, "document": spec.passage_prefix}
    shared = spec.query_prefix == spec.passage_prefix != ""
    return {"prompts": prompts, "default_prompt_name": "document" if shared else None}


def _backbone(spec: StudentSpec, attention: str | None) -> Any:
    """The encoder in fp32; with transformers' own attention where the model cannot have the one asked for."""
    # A pooler would be trained by nothing and saved for nothing; models without the option ignore it or raise a TypeError.
    ways: list[dict[str, Any]] = [{"add_pooling_layer": False}, {}]
    kind = student_class(spec.weights_folder)
    if attention and kind == "AutoModel":  # the others add trained biases to their scores
        ways = [{**way, "attn_implementation": attention} for way in ways] + ways
    return open_model(kind, spec.weights_folder, option=spec.option, trusted=spec.trust_remote_code, ways=ways)


def _token_size(backbone: Any, spec: StudentSpec) -> int:
    """Dimensions of the vectors that a model gives for tokens, found by running it on two short texts.

    Raises UserError where it does not run on tokens and a mask, gives no vectors of tokens, or, with cls pooling, where the first one's
    does not depend on the last token.
    """
    name = type(backbone).__name__
    try:
        vocabulary = text_config(backbone).vocab_size
        ids = (vocabulary // 2 + torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]])) % vocabulary
        with torch.no_grad(), own_attention(backbone):
            hidden = getattr(backbone(input_ids=ids, attention_mask=torch.ones_like(ids)), "last_hidden_state", None)
    except Exception as error:  # code of any model
        raise UserError(f"{spec.option}: {name} does not run on the tokens of a text alone ({first_line(error)})") from error
    if hidden is None or hidden.shape[:2] != ids.shape:
        raise UserError(f"{spec.option}: {name} gives no vectors of tokens (last_hidden_state), so that there is nothing to pool")
    if "cls" in spec.pooling.split("+") and torch.equal(hidden[0, 0], hidden[1, 0]):
        raise UserError(f"{spec.option}: {name} {causal_decoder(spec.option)}")
    return int(hidden.shape[-1])


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
