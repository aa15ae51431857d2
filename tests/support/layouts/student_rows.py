"""The rows of students, of what a sentence-transformers folder says, and of tokenizers that put marks into dark examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from support.layouts import encoders
from support.layouts.encoders import E5
from support.layouts.references import Peer, pooled, repooled, text_tower
from support.layouts.weights import HAS_PEFT, Layout, changed, pickled, stored_as, with_json, with_weights


@dataclass(frozen=True)
class StudentRow:
    """A line of the table."""

    name: str  # model family (layout)
    layout: Layout
    works: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the section `student`, besides the model and its lengths
    peer: Peer = field(default_factory=Peer)
    says: str = ""  # of a refusal, a regular expression
    layers: str | None = "works"  # student.layers=1 works, is refused with these words, or None: not measured
    trained: bool = True  # whether three steps are trained, and the saved student reopened
    tolerance: float = 1e-5
    needs_peft: bool = False

    @property
    def skipped(self) -> str:
        """Why it cannot be measured here."""
        return "peft is not installed" if self.needs_peft and not HAS_PEFT else ""


def refused(name: str, layout: Layout, says: str, **settings: Any) -> StudentRow:
    return StudentRow(name, layout, works=False, says=says, settings=settings)


PREFIXES = {"query_prefix": E5["query"], "passage_prefix": E5["document"]}
NOMIC = {"query": "search_query: ", "document": "search_document: "}
COSINE = Peer(words={"normalize_embeddings": True})  # where a folder says cosine and has no Normalize
SIZES = "different sizes|layers"  # a refusal of layers=1
ALONE = Peer(words={"batch_size": 1})  # there, padding on the left moves a text's positions

ENCODERS = [
    StudentRow("bert-base (plain folder)", encoders.bert_base, peer=Peer(pooled("cls"))),
    StudentRow("all-MiniLM-L6-v2", encoders.minilm),
    StudentRow("e5-base-v2 with its prefixes", encoders.e5, settings=PREFIXES, peer=Peer(prompts=E5)),
    StudentRow("bge-small-en-v1.5 (cls, lower-cased)", encoders.bge_small),
    StudentRow("LaBSE (Dense with tanh)", encoders.labse),
    StudentRow("gte-modernbert-base", encoders.gte_modernbert, tolerance=1e-4),
    StudentRow("multilingual-e5-base with its prefixes", encoders.multilingual_e5, settings=PREFIXES, peer=Peer(prompts=E5)),
    StudentRow("bge-m3, 8,192 tokens", encoders.bge_m3),
    StudentRow("all-mpnet-base-v2", encoders.all_mpnet),
    StudentRow("msmarco-distilbert-base-tas-b", encoders.tas_b),
    StudentRow("DeBERTa-v2, mean", encoders.deberta),
    StudentRow("ELECTRA, mean", encoders.electra),
    StudentRow("EuroBERT, mean", encoders.eurobert),
    StudentRow("paraphrase-albert-small-v2", encoders.albert, layers="stacks of layers"),
    StudentRow("snowflake-arctic-embed-m-v2.0 (own names and code, not run)", encoders.arctic_m_v2),
    StudentRow(
        "nomic-embed-text-v1.5 (own names and code, not run)", encoders.nomic_v1_5,
        settings={"query_prefix": NOMIC["query"], "passage_prefix": NOMIC["document"], "query_tokens": 512, "passage_tokens": 512},
        peer=Peer(prompts=NOMIC), tolerance=1e-4,
    ),
    StudentRow("layout of sentence-transformers 6", encoders.bert_in_6),
    StudentRow("pooled by max", encoders.pooled_by_maximum),
    StudentRow("SGPT: weighted mean", encoders.sgpt),
    StudentRow("mean by the root of the length", encoders.pooled_by_root, tolerance=1e-4),
    StudentRow("cls and mean, one behind the other", encoders.pooled_twice),
    StudentRow("instructor, bge-icl (`include_prompt: false`)", encoders.instructor),
    StudentRow("weights in fp16", changed(encoders.minilm, stored_as(torch.float16)), trained=False, layers=None),
    StudentRow("weights in bf16", changed(encoders.minilm, stored_as(torch.bfloat16)), trained=False, layers=None),
    StudentRow("adapter saved by SentenceTransformer", encoders.saved_adapter, needs_peft=True, layers=None),
]  # fmt: skip
DECODERS = [
    StudentRow("Qwen3-Embedding-0.6B", encoders.qwen3_embedding),
    StudentRow("Qwen3-Embedding-0.6B by mean", encoders.qwen3_embedding, settings={"pooling": "mean"}, peer=Peer(repooled("mean"))),
    StudentRow("Qwen3-0.6B-Base (plain folder): last token", encoders.qwen3_base, peer=Peer(pooled("lasttoken")), tolerance=1e-4),
    StudentRow("e5-mistral-7b-instruct", encoders.e5_mistral),
    StudentRow("LLaMA, mean", encoders.llama_mean),
    StudentRow("LLaMA, mean, `is_causal: false`", encoders.llama_bidirectional),
    StudentRow("EmbeddingGemma-300m", encoders.embedding_gemma),
    StudentRow("EmbeddingGemma-300m without its Dense", encoders.embedding_gemma_plain),
    StudentRow("EmbeddingGemma 2 (several towers)", encoders.embedding_gemma2, peer=Peer(text_tower, reopened=text_tower), layers=SIZES),
    StudentRow("EmbeddingGemma 2 (text alone)", encoders.embedding_gemma2_text, layers=SIZES),
    StudentRow("GTR, sentence-T5 (encoder with Dense)", encoders.gtr),
    StudentRow("T5 encoder without Dense", encoders.t5_plain),
]  # fmt: skip
OUTSIDE = [
    refused("nomic-embed-text-v2-moe", encoders.nomic_v2_moe, "trust_remote_code|no place|lacks"),
    refused("gte-multilingual-base (own code)", encoders.gte_multilingual, "trust_remote_code"),
    refused("jina-embeddings-v3 (own modules)", encoders.jina_v3, "custom_st|trust_remote_code"),
    refused("the same, plain folder", encoders.jina_v3_plain, "trust_remote_code|lacks|no place"),
    refused("model2vec, static embeddings", encoders.static, "StaticEmbedding|model2vec"),
    refused("model2vec, plain folder", encoders.static_alone, "model2vec"),
    refused("CLIP", encoders.clip, "CLIPModel"),
    refused("ColBERT (PyLate)", encoders.pylate, "pylate|Dense"),
    refused("Router", encoders.router, "Router"),
    refused("DPR", encoders.dpr, "DPR|vectors of tokens"),
    refused("`pytorch_model.bin` alone", changed(encoders.minilm, pickled), "pytorch_model.bin"),
    refused("quantised", changed(encoders.minilm, with_json("config.json", quantization_config={"quant_method": "gptq"})), "quantised"),
    refused("`spm.model` alone", encoders.only_spm_model, "spm.model"),
    refused("`tokenizer.model` alone", encoders.only_tokenizer_model, "tokenizer.model"),
    refused(
        "weights of a layer missing",
        changed(
            encoders.minilm, with_weights(lambda weights: {name: value for name, value in weights.items() if ".layer.1." not in name})
        ), "lacks",
    ),
]  # fmt: skip
STUDENTS = {"Encoders": ENCODERS, "Decoders and encoders of T5": DECODERS, "Refused": OUTSIDE}


def _key(name: str, file: str, works: bool = True, *, peer: Peer | None = None, says: str = "", **values: Any) -> StudentRow:
    """A file's key, set in all-MiniLM's folder."""
    layout = changed(encoders.minilm, with_json(file, **values))
    return StudentRow(name, layout, works, peer=peer or Peer(), says=says, layers=None, trained=False)


_INSIDE, _OUTSIDE, _TOKENIZER = "sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer_config.json"
_THREE = {"query": "search_query: ", "document": "search_document: ", "Classification": "classification: "}
_TWO = {"query": "search_query: ", "passage": "search_document: "}
KEYS = [
    _key("`truncate_dim`", _OUTSIDE, peer=COSINE, truncate_dim=16),
    _key("`processor_kwargs.model_max_length`", _INSIDE, max_seq_length=None, processor_kwargs={"model_max_length": 24}),
    _key("`tokenizer_args.model_max_length` (its old name)", _INSIDE, max_seq_length=None, tokenizer_args={"model_max_length": 24}),
    _key("`tokenizer_args.truncation_side`", _INSIDE, False, says="truncation_side", tokenizer_args={"truncation_side": "left"}),
    _key("`config_kwargs.num_hidden_layers`", _INSIDE, False, says="num_hidden_layers", config_kwargs={"num_hidden_layers": 1}),
    _key("`config_args.hidden_act`", _INSIDE, False, says="hidden_act", config_args={"hidden_act": "relu"}),
    _key("`model_args.attn_implementation`", _INSIDE, model_args={"attn_implementation": "eager"}),
    _key("`processing_kwargs.text.max_length`", _INSIDE, max_seq_length=None, processing_kwargs={"text": {"max_length": 16}}),
    _key("`query_length`, `document_length`", _INSIDE, query_length=16, document_length=48),
    _key("`transformer_task: fill-mask`", _INSIDE, False, says="transformer_task", transformer_task="fill-mask"),
    _key("`truncation_side: left` of the tokenizer", _TOKENIZER, False, says="truncation_side", truncation_side="left"),
    _key("`padding_side: left` of the tokenizer", _TOKENIZER, peer=ALONE, padding_side="left"),
    _key("`model_max_length` of 1e30", _TOKENIZER, model_max_length=1000000000000000019884624838656),
    _key("`default_prompt_name: query` alone", _OUTSIDE, prompts={"query": "search_query: "}, default_prompt_name="query"),
    _key("`prompts` of many tasks", _OUTSIDE, prompts=_THREE),
    _key("`prompts.passage`, no `document`", _OUTSIDE, peer=Peer(document_words={"prompt_name": "passage"}), prompts=_TWO),
    StudentRow(
        "`similarity_fn_name: cosine`, no Normalize", changed(encoders.deberta, with_json(_OUTSIDE, similarity_fn_name="cosine")),
        peer=COSINE, layers=None,
    ),
    _key("`add_pooling_layer` in config.json", "config.json", add_pooling_layer=True),
    _key("`tie_word_embeddings: false` in config.json", "config.json", tie_word_embeddings=False),
    StudentRow("a Dropout module", encoders.minilm_with_dropout, layers=None, trained=False),
]  # fmt: skip

# Tokenizers by name, and models that have them.
MARKS = {
    "bert": "BERT, MiniLM", "deberta": "DeBERTa-v2", "modernbert": "ModernBERT, EuroBERT", "xlmr": "XLM-R, bge-m3", "roberta": "RoBERTa",
    "mpnet": "MPNet", "gemma": "Gemma", "qwen": "Qwen", "llama": "LLaMA", "mistral": "Mistral", "t5": "T5",
}  # fmt: skip
