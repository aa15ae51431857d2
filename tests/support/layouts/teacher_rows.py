"""The rows of teachers: a layout, how it is named in the settings, and what must become of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from support.layouts import onnx_exports, rerankers
from support.layouts.references import (
    Reference,
    answers,
    as_cross_encoder,
    as_text,
    bge_gemma_text,
    by_onnx,
    by_transformers,
    difference,
    label,
    mxbai_text,
    qwen3_text,
    rankllama_pair,
    trusted,
    with_adapter,
)
from support.layouts.weights import HAS_PEFT, Layout


@dataclass(frozen=True)
class TeacherRow:
    """A line of the table."""

    name: str  # model family (layout)
    layout: Layout
    reference: Reference | None = None  # None: refused
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the section `teacher`, besides the model
    says: str = ""  # of a refusal, a regular expression
    at: str = ""  # folder inside the layout that teacher.model names
    tolerance: float = 1e-4
    trained: bool = False  # whether three steps of train.task=cross_encoder are made from it, and the saved one scored
    needs_peft: bool = False

    @property
    def skipped(self) -> str:
        """Why it cannot be measured here."""
        return "peft is not installed" if self.needs_peft and not HAS_PEFT else ""


PLAIN = by_transformers()
ONNX = {"backend": "onnx"}
UNCUT = {"max_tokens": 1024}  # templates cut the document where they must, which each library does in a way of its own
QWEN3 = {"template": "qwen3-reranker", **UNCUT}
MXBAI = {"template": "mxbai-rerank-v2", **UNCUT}
BGE_GEMMA = {"template": "bge-reranker-v2-gemma", **UNCUT}

ENCODERS = [
    TeacherRow("MiniLM, BERT (ms-marco)", rerankers.ms_marco_minilm, PLAIN, trained=True),
    TeacherRow("bge-reranker-v2-m3, XLM-R", rerankers.bge_m3, PLAIN, trained=True),
    TeacherRow("gte-reranker-modernbert-base, 400 tokens", rerankers.gte_modernbert, PLAIN, {"max_tokens": 400}, trained=True),
    TeacherRow("mxbai-rerank-base-v1 (DeBERTa-v2, fp16)", rerankers.mxbai_v1, PLAIN, trained=True),
    TeacherRow("ELECTRA", rerankers.electra, PLAIN, trained=True),
    TeacherRow("RoBERTa", rerankers.roberta, PLAIN, trained=True),
    TeacherRow("DistilBERT", rerankers.distilbert, PLAIN, trained=True),
    TeacherRow("EuroBERT", rerankers.eurobert, PLAIN, trained=True),
    TeacherRow("CrossEncoder folder of sentence-transformers 6.2", rerankers.saved_by_sentence_transformers, as_cross_encoder),
    TeacherRow("the same, Transformer in `0_Transformer/`", rerankers.in_sub_folder, as_cross_encoder),
    TeacherRow("the same, with a default prompt", rerankers.in_6_with_prompt, as_cross_encoder),
    TeacherRow("sharded safetensors", rerankers.sharded, PLAIN),
    TeacherRow("weights in bf16", rerankers.in_bf16, PLAIN),
    TeacherRow("Ettin (Transformer, Pooling, Dense, LayerNorm, Dense)", rerankers.ettin, as_cross_encoder),
    TeacherRow("Ettin, one label in its config.json", rerankers.ettin_with_a_label, as_cross_encoder),
    TeacherRow("its own Python code, not trusted", rerankers.with_own_code, says="trust_remote_code"),
    TeacherRow(
        "its own Python code, trusted", rerankers.with_own_code, by_transformers(opened=trusted), {"trust_remote_code": True}
    ),
]  # fmt: skip
LABELS = [
    TeacherRow("monoBERT (two labels)", rerankers.monobert, says=r"teacher\.label"),
    TeacherRow("monoBERT, one of its labels", rerankers.monobert, by_transformers(label(1)), {"label": 1}),
    TeacherRow("monoBERT, difference of both", rerankers.monobert, by_transformers(difference), {"label": "difference"}),
    TeacherRow("MonoELECTRA (two labels)", rerankers.monoelectra, by_transformers(label(1)), {"label": 1}),
    TeacherRow(
        "mxbai-rerank-base-v2-seq (Qwen2, two labels)", rerankers.mxbai_v2_classifier,
        by_transformers(difference, encode=as_text(mxbai_text)), {"label": "difference", **MXBAI},
    ),
]  # fmt: skip
DECODERS = [
    TeacherRow("Qwen3-Reranker", rerankers.qwen3_reranker, says=r"teacher\.answers.*teacher\.template|teacher\.template.*teacher\.answers"),
    TeacherRow(
        "Qwen3-Reranker with both named", rerankers.qwen3_reranker, by_transformers(answers("yes", "no"), encode=as_text(qwen3_text)),
        {"answers": ["yes", "no"], **QWEN3},
    ),
    TeacherRow("Qwen3-Reranker (sentence-transformers: LogitScore, chat template)", rerankers.qwen3_reranker_in_6, as_cross_encoder, UNCUT),
    TeacherRow("zerank-2 (LogitScore of one answer, chat template)", rerankers.zerank_2, as_cross_encoder, UNCUT),
    TeacherRow("Qwen3-Reranker-seq-cls (sentence-transformers: chat template)", rerankers.qwen3_classifier_in_6, as_cross_encoder, UNCUT),
    TeacherRow(
        "Qwen3-Reranker-seq-cls (plain)", rerankers.qwen3_classifier, by_transformers(encode=as_text(qwen3_text)), QWEN3
    ),
    TeacherRow("Qwen3-Reranker-seq-cls (plain), no template: a note", rerankers.qwen3_classifier, PLAIN, trained=True),
    TeacherRow("the same, `pad_token_id: null`", rerankers.qwen3_classifier_without_padding, says="pad_token_id"),
    TeacherRow(
        "mxbai-rerank-base-v2 (Qwen2)", rerankers.mxbai_v2, by_transformers(answers("1", "0"), encode=as_text(mxbai_text)),
        {"answers": ["1", "0"], **MXBAI},
    ),
    TeacherRow(
        "bge-reranker-v2-gemma", rerankers.bge_gemma, by_transformers(answers("Yes"), encode=as_text(bge_gemma_text)),
        {"answers": ["Yes"], **BGE_GEMMA},
    ),
    TeacherRow(
        "bge-reranker-v2-gemma as a classifier", rerankers.gemma_classifier, by_transformers(encode=as_text(bge_gemma_text)), BGE_GEMMA
    ),
    TeacherRow("RankLLaMA, merged (tokenizer without padding)", rerankers.rankllama, PLAIN, trained=True),
    TeacherRow(
        "RankLLaMA, merged", rerankers.rankllama, by_transformers(encode=rankllama_pair), {"template": "rankllama", **UNCUT}
    ),
    TeacherRow(
        "RankLLaMA (PEFT adapter with the head, on a language model)", rerankers.rankllama_adapter,
        by_transformers(encode=rankllama_pair, opened=with_adapter), {"template": "rankllama", **UNCUT}, needs_peft=True,
    ),
    TeacherRow(
        "PEFT adapter of a classifier, beside its config.json", rerankers.bert_adapter_beside_config, by_transformers(opened=with_adapter),
        needs_peft=True,
    ),
]  # fmt: skip
GRAPHS = [
    TeacherRow("ONNX, fp32", onnx_exports.fp32, by_onnx("model.onnx"), ONNX),
    TeacherRow("ONNX, fp16", onnx_exports.fp16, by_onnx("model.onnx"), ONNX, tolerance=2e-2),
    TeacherRow("ONNX, dynamic QUInt8", onnx_exports.unsigned, by_onnx("model.onnx"), ONNX),
    TeacherRow("ONNX, dynamic QInt8", onnx_exports.signed, by_onnx("model.onnx"), ONNX),
    TeacherRow("ONNX, weights in `model.onnx_data`", onnx_exports.external_data, by_onnx("model.onnx"), ONNX),
    TeacherRow("ONNX, weights in `weights.bin`", onnx_exports.external_other_name, by_onnx("model.onnx"), ONNX),
    TeacherRow("ONNX, hub layout (`onnx/` with several graphs)", onnx_exports.hub, by_onnx("onnx/model.onnx"), ONNX),
    TeacherRow(
        "the same, a quantised graph", onnx_exports.hub, by_onnx("onnx/model_quantized.onnx"),
        {**ONNX, "file": "onnx/model_quantized.onnx"},
    ),
    TeacherRow("the same, the folder `onnx/` itself", onnx_exports.hub, by_onnx("model.onnx"), ONNX, at="onnx"),
    TeacherRow("ONNX, hub layout, weights outside the graph", onnx_exports.hub_external, by_onnx("onnx/model.onnx"), ONNX),
    TeacherRow("ONNX, hub layout, no `model.onnx`", onnx_exports.only_variants, None, ONNX, says=r"teacher\.file"),
    TeacherRow("ONNX of a decoder", onnx_exports.decoder, None, ONNX, says="position_ids"),
]  # fmt: skip
OUTSIDE = [
    TeacherRow("monoT5 (an encoder with a decoder)", rerankers.monot5, says=r"encoder with a decoder.*teacher\.backend=http"),
    TeacherRow("T5 with a classifier", rerankers.t5_classifier, says=r"encoder with a decoder.*teacher\.backend=http"),
    TeacherRow("RankZephyr (lists, not pairs)", rerankers.rank_zephyr, says=r"MistralForCausalLM|teacher\.answers"),
    TeacherRow("jina-reranker-v2 (own code, no model_type)", rerankers.jina_v2, says="trust_remote_code"),
    TeacherRow("gte-multilingual-reranker-base (own code)", rerankers.gte_multilingual, says="trust_remote_code"),
    TeacherRow("llama-nemotron-rerank (own code)", rerankers.llama_nemotron, says="trust_remote_code"),
    TeacherRow("quantised with bitsandbytes", rerankers.quantised, says=r"quantised.*teacher\.backend=http"),
    TeacherRow("`pytorch_model.bin` alone", rerankers.only_pickled, says="pytorch_model.bin"),
    TeacherRow("weights without the head", rerankers.without_head, says="lacks|head"),
    TeacherRow("a layer's weights under other names", rerankers.renamed_layer, says="lacks"),
]  # fmt: skip
TEACHERS = {"Encoders": ENCODERS, "Several labels": LABELS, "Decoders": DECODERS, "ONNX": GRAPHS, "Refused": OUTSIDE}
