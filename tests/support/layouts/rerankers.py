"""Folders of teachers, as their authors publish them: `NAME(folder)`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.checkpoints import save_own_code
from support.layouts import configs
from support.layouts.configs import ONE_LABEL, TWO_LABELS
from support.layouts.encoders import with_stopping_code
from support.layouts.folders import answer_chain, classifier_chain, ettin_chain
from support.layouts.weights import (
    Layout,
    adapter,
    changed,
    in_shards,
    made,
    only_weights,
    pickled,
    shared,
    stored_as,
    with_files,
    with_json,
    with_weights,
)

TASK = "Given a web search query, retrieve relevant passages that answer the query"


def _classifier(family: str, config: Callable[..., dict[str, Any]], tokenizer: str, **words: Any) -> Layout:
    """A sequence classifier, with one label unless `words` say otherwise."""
    return made(f"{family}ForSequenceClassification", config, tokenizer, **{**ONE_LABEL, **words})


ms_marco_minilm = _classifier(
    "Bert", configs.bert, "bert", seed=1, sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"}
)
bge_m3 = _classifier("XLMRoberta", configs.xlmr, "xlmr", seed=2)
gte_modernbert = _classifier("ModernBert", configs.modernbert, "modernbert", seed=3)
mxbai_v1 = _classifier("DebertaV2", configs.deberta, "deberta", seed=4, dtype=torch.float16, torch_dtype="float16")
electra = _classifier("Electra", configs.electra, "bert", seed=5)
roberta = _classifier("Roberta", configs.roberta, "roberta", seed=6)
distilbert = _classifier("DistilBert", configs.distilbert, "bert", seed=7)
eurobert = _classifier("EuroBert", configs.eurobert, "modernbert", seed=8)

in_6_with_prompt = changed(ms_marco_minilm, classifier_chain(prompts={"query": "search query: "}, default_prompt_name="query"))
sharded = changed(ms_marco_minilm, in_shards)
in_bf16 = changed(ms_marco_minilm, stored_as(torch.bfloat16))
only_pickled = changed(ms_marco_minilm, pickled)


def saved_by_sentence_transformers(folder: Path) -> Path:
    """As CrossEncoder.save_pretrained of the installed version writes it."""
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(shared(ms_marco_minilm)), device="cpu").save_pretrained(str(folder))
    return folder


def in_sub_folder(folder: Path) -> Path:
    """The Transformer in 0_Transformer/."""
    ms_marco_minilm(folder / "0_Transformer")
    classifier_chain(path="0_Transformer")(folder)
    return folder


monobert = made("BertForSequenceClassification", configs.bert, "bert", seed=8)  # two labels, of which its config.json says nothing
monoelectra = _classifier("Electra", configs.electra, "bert", seed=9, **TWO_LABELS)
mxbai_v2_classifier = _classifier("Qwen2", configs.qwen2, "qwen", seed=10, pad_token="<|endoftext|>", **TWO_LABELS)

QWEN3_TEMPLATE = (
    '{%- set instruction = messages | selectattr("role", "eq", "system") | map(attribute="content") | first '
    f'| default("{TASK}") -%}}\n'
    '{%- set query_text = messages | selectattr("role", "eq", "query") | map(attribute="content") | first -%}\n'
    '{%- set document_text = messages | selectattr("role", "eq", "document") | map(attribute="content") | first -%}\n'
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
    'answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {{ instruction }}\n<Query>: {{ query_text }}\n<Document>: {{ document_text }}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n\n"  # a renderer takes the last line's end away
)
SYSTEM_TEMPLATE = (
    '{%- set query_text = messages | selectattr("role", "eq", "query") | map(attribute="content") | first -%}\n'
    '{%- set document_text = messages | selectattr("role", "eq", "document") | map(attribute="content") | first -%}\n'
    "<|im_start|>system\n{{ query_text }}<|im_end|>\n<|im_start|>user\n{{ document_text }}<|im_end|>\n<|im_start|>assistant\n"
)
_own_prompt = {"prompts": {"web_search": TASK}, "default_prompt_name": "web_search"}

qwen3_reranker = made("Qwen3ForCausalLM", configs.qwen3, "qwen", seed=11, dtype=torch.bfloat16)
qwen3_reranker_in_6 = changed(
    qwen3_reranker, answer_chain("qwen", "yes", "no", **_own_prompt), with_files(chat_template__jinja=QWEN3_TEMPLATE)
)
zerank_2 = changed(qwen3_reranker, answer_chain("qwen", "Yes", None), with_files(chat_template__jinja=SYSTEM_TEMPLATE))
qwen3_classifier = _classifier("Qwen3", configs.qwen3, "qwen", seed=13, pad_token="<|endoftext|>", use_cache=False)
qwen3_classifier_in_6 = changed(
    qwen3_classifier, classifier_chain(chat=True, **_own_prompt), with_files(chat_template__jinja=QWEN3_TEMPLATE)
)
qwen3_classifier_without_padding = changed(qwen3_classifier, with_json("config.json", pad_token_id=None))
mxbai_v2 = made("Qwen2ForCausalLM", configs.qwen2, "qwen", seed=14)
bge_gemma = made("GemmaForCausalLM", configs.gemma, "gemma", seed=15)
gemma_classifier = _classifier("Gemma", configs.gemma, "gemma", seed=16)
rankllama = _classifier("Llama", configs.llama, "llama", seed=17, pad_token_id=2)  # the tokenizer has no padding token
rank_zephyr = made("MistralForCausalLM", configs.mistral, "mistral", seed=18)
monot5 = made("T5ForConditionalGeneration", configs.t5, "t5", seed=19)
t5_classifier = _classifier("T5", configs.t5, "t5", seed=20)
_llama = made("LlamaForCausalLM", configs.llama, "llama", seed=22, pad_token_id=0)
rankllama_adapter = adapter(_llama, "llama", head=True, targets=["q_proj", "v_proj"])
bert_adapter_beside_config = adapter(ms_marco_minilm, "bert", head=True, targets=["query", "value"], beside=True)


def _with_foreign_code(model_type: str | None, **more: Any) -> Layout:
    def config() -> dict[str, Any]:
        return configs.own_code(model_type, num_labels=1, **more)

    weights = only_weights({"classifier.weight": (1, 64)}, config, "xlmr", table="roberta.embeddings.word_embeddings.weight")
    return changed(weights, with_stopping_code)


jina_v2 = _with_foreign_code(None, use_flash_attn=True)
gte_multilingual = _with_foreign_code("new")
llama_nemotron = _with_foreign_code("llama_bidirec", architectures=["LlamaBidirectionalForSequenceClassification"])


def with_own_code(folder: Path) -> Path:
    """Python code beside the weights that does what it says."""
    return save_own_code(folder, head=True)


ettin = changed(made("ModernBertModel", configs.modernbert, "modernbert", seed=21), ettin_chain)
ettin_with_a_label = changed(ettin, with_json("config.json", **ONE_LABEL))
without_head = changed(
    ms_marco_minilm, with_weights(lambda weights: {name: tensor for name, tensor in weights.items() if "classifier" not in name})
)
renamed_layer = changed(
    ms_marco_minilm,
    with_weights(lambda weights: {name.replace("encoder.layer.1.", "encoder.block.1."): tensor for name, tensor in weights.items()}),
)
quantised = changed(ms_marco_minilm, with_json("config.json", quantization_config={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}))
