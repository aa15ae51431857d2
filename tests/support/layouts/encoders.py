"""Folders of students, as their authors publish them: `NAME(folder)`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from support.checkpoints import write_json
from support.layouts import configs
from support.layouts.folders import IDENTITY, embedder, module_list
from support.layouts.weights import Layout, changed, made, only_weights, with_files, with_json, with_weights, without

E5 = {"query": "query: ", "document": "passage: "}
GEMMA_PROMPTS = {
    "query": "task: search result | query: ", "document": "title: none | text: ", "BitextMining": "task: search result | query: ",
    "STS": "task: sentence similarity | query: ",
}  # fmt: skip
INSTRUCTION = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
LINEAR: dict[str, Any] = {"bias": False, "activation": IDENTITY}

bert_base = made("BertModel", configs.bert, "bert")
minilm = changed(bert_base, embedder(normalize=True, longest=256))
e5 = changed(bert_base, embedder(normalize=True))
bge_small = changed(bert_base, embedder("cls", normalize=True, lower=True))
labse = changed(bert_base, embedder("cls", denses=[(64, {})], normalize=True, longest=256))
gte_modernbert = changed(made("ModernBertModel", configs.modernbert, "modernbert"), embedder("cls", longest=8192))
multilingual_e5 = changed(made("XLMRobertaModel", configs.xlmr, "xlmr", max_position_embeddings=514), embedder(normalize=True))
bge_m3 = changed(made("XLMRobertaModel", configs.xlmr, "xlmr"), embedder("cls", normalize=True, longest=8192))
all_mpnet = changed(made("MPNetModel", configs.mpnet, "mpnet", kind="MPNetForMaskedLM"), embedder(normalize=True, longest=384))
tas_b = changed(made("DistilBertModel", configs.distilbert, "bert"), embedder("cls"))
deberta = changed(made("DebertaV2Model", configs.deberta, "deberta"), embedder())
electra = changed(made("ElectraModel", configs.electra, "bert"), embedder())
eurobert = changed(made("EuroBertModel", configs.eurobert, "modernbert"), embedder())
albert = changed(made("AlbertModel", configs.albert, "deberta"), embedder(longest=100))

qwen3_base = made("Qwen3Model", configs.qwen3, "qwen", kind="Qwen3ForCausalLM", dtype=torch.bfloat16)
qwen3_embedding = changed(
    made("Qwen3Model", configs.qwen3, "qwen_embedding", kind="Qwen3ForCausalLM", dtype=torch.bfloat16, vocabulary="qwen_embedding"),
    embedder("lasttoken", normalize=True, prompts={"query": INSTRUCTION, "document": ""}),
    without("sentence_bert_config.json"),
)
e5_mistral = changed(
    made("MistralModel", configs.mistral, "mistral", dtype=torch.float16),
    embedder(
        "lasttoken", normalize=True, longest=4096, prompts={"web_search_query": f"{INSTRUCTION} ", "sts_query": "Instruct: ...\nQuery: "}
    ),
)
llama_mean = changed(
    made("LlamaModel", configs.llama, "llama", pad_token_id=2),
    with_json("tokenizer_config.json", pad_token="</s>"), embedder(normalize=True),
)  # fmt: skip
llama_bidirectional = changed(llama_mean, with_json("config.json", is_causal=False))
embedding_gemma_backbone = made("Gemma3TextModel", configs.embedding_gemma, "gemma_embedding")
embedding_gemma = changed(
    embedding_gemma_backbone, embedder(denses=[(128, LINEAR), (64, LINEAR)], normalize=True, longest=2048, prompts=GEMMA_PROMPTS)
)
embedding_gemma_plain = changed(embedding_gemma_backbone, embedder(normalize=True, longest=2048, prompts=GEMMA_PROMPTS))
_gemma2_prompts = {name: GEMMA_PROMPTS[name] for name in ("query", "document")}
embedding_gemma2 = changed(
    made("EmbeddingGemma2Model", configs.embedding_gemma2, "gemma_embedding"),
    embedder(size=48, normalize=True, new=True, prompts=_gemma2_prompts),
)
embedding_gemma2_text = changed(
    made("EmbeddingGemma2TextModel", configs.embedding_gemma2_text, "gemma_embedding"),
    embedder(size=48, normalize=True, new=True, prompts=_gemma2_prompts),
)
_t5_encoder = made("T5EncoderModel", configs.t5, "t5")
gtr = changed(_t5_encoder, embedder(denses=[(48, LINEAR)], normalize=True))
t5_plain = changed(_t5_encoder, embedder(normalize=True))
instructor = changed(
    bert_base, embedder(normalize=True, include_prompt=False, prompts={"query": "Represent the question: ", "document": "Represent it: "})
)
sgpt = changed(bert_base, embedder("weightedmean"))
pooled_by_maximum = changed(bert_base, embedder("max"))
pooled_by_root = changed(bert_base, embedder("mean_sqrt_len_tokens"))
pooled_twice = changed(bert_base, embedder(), with_json("1_Pooling/config.json", pooling_mode_cls_token=True))
bert_in_6 = changed(bert_base, embedder(normalize=True, new=True))


def with_stopping_code(folder: Path) -> None:
    """Python files that stop whoever runs them."""
    with_files(configuration_own__py="raise SystemExit('remote code ran')\n", modeling_own__py="raise SystemExit('remote code ran')\n")(
        folder
    )


def _gte_names(native: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under the names of the code that came with the model: query, key and value in one matrix, gate and up in another."""
    old = {"layers.": "encoder.layer.", "self_attn.o_proj": "attention.o_proj", "post_attention_layernorm": "attn_ln",
           "post_mlp_layernorm": "mlp_ln"}  # fmt: skip
    found = {}
    for name, tensor in native.items():
        renamed = name
        for new, there in old.items():
            renamed = renamed.replace(new, there)
        if "self_attn.q_proj" in name:
            parts = [native[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            found[renamed.replace("self_attn.q_proj", "attention.qkv_proj")] = torch.cat(parts)
        elif "mlp.up_proj" in name:
            found[renamed.replace("up_proj", "up_gate_proj")] = torch.cat([tensor, native[name.replace("up_proj", "gate_proj")]])
        elif not re.search(r"self_attn\.[kv]_proj|mlp\.gate_proj", name):
            found[renamed] = tensor
    return found


arctic_m_v2 = changed(
    made("GteModel", configs.gte, "xlmr"), with_weights(_gte_names), with_stopping_code,
    with_json("config.json", auto_map={"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}),
    embedder("cls", normalize=True, longest=8192, prompts={"query": "query: ", "document": ""}),
)  # fmt: skip


def _nomic_names(native: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    old = {"embeddings.LayerNorm": "emb_ln", "self_attn.o_proj": "attn.out_proj", "mlp.up_proj": "mlp.fc11", "mlp.gate_proj": "mlp.fc12",
           "mlp.down_proj": "mlp.fc2", "post_attention_layernorm": "norm1", "post_mlp_layernorm": "norm2"}  # fmt: skip
    found = {}
    for name, tensor in native.items():
        renamed = re.sub(r"^layers\.", "encoder.layers.", name)
        for new, there in old.items():
            renamed = renamed.replace(new, there)
        if "q_proj" in name:
            parts = [native[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            found[renamed.replace("self_attn.q_proj", "attn.Wqkv")] = torch.cat(parts)
        elif not re.search(r"[kv]_proj", name):
            found[renamed] = tensor
    return found


def _with_experts(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every second layer has experts, and all linear layers have biases."""
    kept = {name: tensor for name, tensor in weights.items() if ".mlp." not in name}
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / 8

    for layer in range(3):
        inside = f"encoder.layers.{layer}"
        kept |= {f"{inside}.attn.Wqkv.bias": drawn(192), f"{inside}.attn.out_proj.bias": drawn(64)}
        if layer % 2:
            experts = f"{inside}.mlp.experts"
            kept |= {f"{experts}.mlp.w1": drawn(8 * 128, 64), f"{experts}.mlp.w2": drawn(8 * 128, 64), f"{experts}.bias": drawn(64)}
            kept[f"{inside}.mlp.router.layer.weight"] = drawn(8, 64)
        else:
            kept |= {f"{inside}.mlp.fc1.weight": drawn(128, 64), f"{inside}.mlp.fc1.bias": drawn(128)}
            kept |= {f"{inside}.mlp.fc2.weight": drawn(64, 128), f"{inside}.mlp.fc2.bias": drawn(64)}
    return kept


_elsewhere = {
    "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
    "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
}
nomic_v1_5 = changed(
    made("NomicBertModel", configs.nomic, "bert"), with_weights(_nomic_names), with_json("config.json", auto_map=_elsewhere),
    embedder(longest=8192),
)  # fmt: skip
nomic_v2_moe = changed(
    nomic_v1_5, with_weights(_with_experts),
    with_json(
        "config.json", activation_function="gelu", moe_every_n_layers=2, num_experts=8, moe_top_k=2, mlp_fc1_bias=True, mlp_fc2_bias=True,
        qkv_proj_bias=True, expert_choice_router=False, num_shared_experts=0,
    ),
    embedder(normalize=True, prompts={"query": "search_query: ", "passage": "search_document: "}),
)  # fmt: skip
gte_multilingual = changed(arctic_m_v2, with_json("config.json", model_type="new", architectures=["NewModel"]))
_jina_layers = {f"roberta.encoder.layers.{layer}.mixer.Wqkv.parametrizations.weight.original": (192, 64) for layer in range(3)}


def _jina_config() -> dict[str, Any]:
    return configs.xlmr(
        "XLMRobertaModel", position_embedding_type="rotary", rotary_emb_base=20000.0, lora_rank=4, matryoshka_dimensions=[32, 64],
        lora_adaptations=["retrieval.query", "retrieval.passage"], truncate_dim=None, use_flash_attn=True,
        auto_map={
            "AutoConfig": "jinaai/xlm-roberta-flash-implementation--configuration_xlm_roberta.XLMRobertaFlashConfig",
            "AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA",
        },
    )  # fmt: skip


jina_v3_plain = only_weights(
    _jina_layers, _jina_config, "xlmr", table="roberta.embeddings.word_embeddings.parametrizations.weight.original"
)
jina_v3 = changed(
    jina_v3_plain, embedder(normalize=True),
    lambda folder: module_list(folder, ("custom_st.Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")),
)  # fmt: skip


def static(folder: Path) -> Path:
    """model2vec, and static-retrieval-mrl-en-v1: a table of vectors."""
    only_weights({}, dict, "bert", table="embedding.weight")(folder)
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "hidden_dim": 64, "seq_length": 1000000, "normalize": True}
    write_json(folder / "config.json", {**config, "apply_pca": 64, "apply_zipf": True})
    module_list(folder, ("StaticEmbedding", "."), ("Normalize", "1_Normalize"))
    return folder


static_alone = changed(static, without("modules.json"))


def clip(folder: Path) -> Path:
    write_json(folder / "config.json", {})
    module_list(folder, ("CLIPModel", "0_CLIPModel"))
    return folder


def pylate(folder: Path) -> Path:
    """ColBERT as PyLate saves it: a vector for every token."""
    bert_base(folder)
    chain = ("sentence_transformers.models.Transformer", ""), ("pylate.models.Dense.Dense", "1_Dense")
    module_list(folder, *chain)
    write_json(folder / "1_Dense" / "config.json", {"in_features": 64, "out_features": 32, "bias": False, "activation_function": IDENTITY})
    write_json(
        folder / "config_sentence_transformers.json", {"query_prefix": "[Q] ", "document_prefix": "[D] ", "similarity_fn_name": "MaxSim"}
    )
    return folder


def router(folder: Path) -> Path:
    """Another model for queries than for documents."""
    write_json(folder / "config.json", {})
    module_list(folder, ("sentence_transformers.base.modules.router.Router", ""))
    structure = {"query": ["query_0"], "document": ["document_0"]}
    types = {f"{role}_0": "sentence_transformers.models.Transformer" for role in structure}
    write_json(folder / "router_config.json", {"types": types, "structure": structure, "parameters": {"default_route": "document"}})
    bert_base(folder / "query_0")
    bert_base(folder / "document_0")
    return folder


dpr = made("DPRQuestionEncoder", configs.dpr, "bert")


def _unread_tokenizer(name: str) -> Layout:
    """A sentencepiece model alone, which has to be made a tokenizer.json first."""

    def change(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / name).write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")

    return changed(deberta if name == "spm.model" else llama_mean, change)


only_spm_model = _unread_tokenizer("spm.model")
only_tokenizer_model = _unread_tokenizer("tokenizer.model")


def minilm_with_dropout(folder: Path) -> Path:
    minilm(folder)
    chain = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dropout", "3_Dropout"), ("Normalize", "2_Normalize")
    module_list(folder, *chain)
    write_json(folder / "3_Dropout" / "config.json", {"dropout": 0.2})
    return folder


def saved_adapter(folder: Path) -> Path:
    """As SentenceTransformer saves a model to which it added an adapter: no config.json."""
    import peft
    from sentence_transformers import SentenceTransformer

    base = minilm(folder.parent / f"{folder.name}-base")
    model = SentenceTransformer(str(base), device="cpu")
    torch.manual_seed(0)
    model[0].model.add_adapter(peft.LoraConfig(r=4, lora_alpha=16, target_modules=["query", "value"]))
    for name, weight in model[0].model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(str(folder))
    return folder
