"""config.json as published, with tiny sizes. Keys that decide nothing are there, too: they are what a reader has to pass over.

`kind` is the class that the checkpoint names.
"""

from __future__ import annotations

from typing import Any

from support.layouts.tokenizers import ids_of, size_of

HEADS = {"hidden_size": 64, "num_attention_heads": 4}
STACK = {"num_hidden_layers": 3, "intermediate_size": 128}
ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
TWO_LABELS = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def bert(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [kind], "model_type": "bert", "vocab_size": size_of("bert"), **HEADS, **STACK, **DROPOUT,
        "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "initializer_range": 0.02, "position_embedding_type": "absolute", "use_cache": True, "gradient_checkpointing": False, **more,
    }  # fmt: skip


def electra(kind: str, **more: Any) -> dict[str, Any]:
    return {
        **bert(kind), "model_type": "electra", "embedding_size": 32, "summary_activation": "gelu", "summary_last_dropout": 0.1,
        "summary_type": "first", "summary_use_proj": True, **more,
    }  # fmt: skip


def albert(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [kind], "model_type": "albert", "vocab_size": size_of("deberta"), **HEADS, **STACK, "embedding_size": 32,
        "num_hidden_groups": 1, "inner_group_num": 1, "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0,
        "hidden_act": "gelu_new", "classifier_dropout_prob": 0.1, **more,
    }  # fmt: skip


def distilbert(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [kind], "model_type": "distilbert", "vocab_size": size_of("bert"), "dim": 64, "n_heads": 4, "n_layers": 3,
        "hidden_dim": 128, "max_position_embeddings": 512, "sinusoidal_pos_embds": False, "tie_weights_": True, "pad_token_id": 0,
        "activation": "gelu", "dropout": 0.1, "attention_dropout": 0.1, "qa_dropout": 0.1, "seq_classif_dropout": 0.2, **more,
    }  # fmt: skip


def xlmr(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [kind], "model_type": "xlm-roberta", "vocab_size": size_of("xlmr"), **HEADS, **STACK, **DROPOUT,
        "max_position_embeddings": 8194, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
        "hidden_act": "gelu", "layer_norm_eps": 1e-5, "position_embedding_type": "absolute", "output_past": True,
        "torch_dtype": "float32", "transformers_version": "4.38.1", **more,
    }  # fmt: skip


def roberta(kind: str, **more: Any) -> dict[str, Any]:
    return {**xlmr(kind), "model_type": "roberta", "vocab_size": size_of("roberta"), "max_position_embeddings": 514, **more}


def mpnet(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [kind], "model_type": "mpnet", "vocab_size": size_of("mpnet"), **HEADS, **STACK, **DROPOUT,
        "max_position_embeddings": 514, "relative_attention_num_buckets": 32, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
        "layer_norm_eps": 1e-5, "hidden_act": "gelu", **more,
    }  # fmt: skip


def deberta(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [kind], "model_type": "deberta-v2", "vocab_size": size_of("deberta"), **HEADS, **STACK, **DROPOUT,
        "max_position_embeddings": 512, "max_relative_positions": -1, "position_biased_input": False, "position_buckets": 256,
        "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "relative_attention": True,
        "type_vocab_size": 0, "layer_norm_eps": 1e-7, "pad_token_id": 0, "pooler_dropout": 0, "pooler_hidden_act": "gelu",
        "pooler_hidden_size": 64, "hidden_act": "gelu", **more,
    }  # fmt: skip


def modernbert(kind: str, **more: Any) -> dict[str, Any]:
    ids = ids_of("modernbert")
    return {
        "architectures": [kind], "model_type": "modernbert", "vocab_size": size_of("modernbert"), **HEADS, "num_hidden_layers": 6,
        "intermediate_size": 96, "max_position_embeddings": 8192, "global_attn_every_n_layers": 3, "local_attention": 128,
        "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "norm_eps": 1e-5, "norm_bias": False, "layer_norm_eps": 1e-5,
        "mlp_bias": False, "mlp_dropout": 0.0, "attention_bias": False, "attention_dropout": 0.0, "embedding_dropout": 0.0,
        "hidden_activation": "gelu", "classifier_activation": "gelu", "classifier_bias": False, "classifier_dropout": 0.0,
        "classifier_pooling": "mean", "decoder_bias": True, "deterministic_flash_attn": False, "reference_compile": False,
        "repad_logits_with_grad": False, "sparse_prediction": False, "position_embedding_type": "absolute", "tie_word_embeddings": True,
        "bos_token_id": ids["[CLS]"], "cls_token_id": ids["[CLS]"], "eos_token_id": ids["[SEP]"], "sep_token_id": ids["[SEP]"],
        "pad_token_id": ids["[PAD]"], "torch_dtype": "float32", **more,
    }  # fmt: skip


def eurobert(kind: str, **more: Any) -> dict[str, Any]:
    ids = ids_of("modernbert")
    return {
        "architectures": [kind], "model_type": "eurobert", "vocab_size": size_of("modernbert"), **HEADS, **STACK, "num_key_value_heads": 4,
        "max_position_embeddings": 8192, "rope_theta": 250000, "rms_norm_eps": 1e-5, "hidden_act": "silu", "bos_token": "[CLS]",
        "bos_token_id": ids["[CLS]"], "eos_token_id": ids["[SEP]"], "pad_token_id": ids["[PAD]"], "mask_token_id": ids["[MASK]"],
        "clf_pooling": "late", "classifier_pooling": "late", "attention_bias": False, "attention_dropout": 0.0, **more,
    }  # fmt: skip


def qwen3(kind: str, vocabulary: str = "qwen", **more: Any) -> dict[str, Any]:
    ids = ids_of(vocabulary)
    return {
        "architectures": [kind], "model_type": "qwen3", "vocab_size": size_of(vocabulary) + 3, **HEADS, **STACK, "num_key_value_heads": 2,
        "head_dim": 16, "max_position_embeddings": 32768, "rope_theta": 1000000, "rope_scaling": None, "rms_norm_eps": 1e-6,
        "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "sliding_window": None, "use_sliding_window": False,
        "max_window_layers": 28, "tie_word_embeddings": True, "use_cache": True, "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"], "torch_dtype": "bfloat16", **more,
    }  # fmt: skip


def qwen2(kind: str, **more: Any) -> dict[str, Any]:
    own = {name: value for name, value in qwen3(kind).items() if name != "head_dim"}
    return {**own, "model_type": "qwen2", **more}


def llama(kind: str, vocabulary: str = "llama", **more: Any) -> dict[str, Any]:
    return {
        "architectures": [kind], "model_type": "llama", "vocab_size": size_of(vocabulary), **HEADS, **STACK, "num_key_value_heads": 4,
        "max_position_embeddings": 4096, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu", "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": None, "tie_word_embeddings": False, "use_cache": True, "torch_dtype": "float16", **more,
    }  # fmt: skip


def mistral(kind: str, **more: Any) -> dict[str, Any]:
    own = {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 4096, "max_position_embeddings": 32768}
    return {**llama(kind, "mistral"), **own, **more}


def gemma(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [kind], "model_type": "gemma", "vocab_size": size_of("gemma") + 6, **HEADS, **STACK, "num_key_value_heads": 1,
        "head_dim": 16, "max_position_embeddings": 8192, "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "hidden_act": "gelu",
        "hidden_activation": None, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "torch_dtype": "float32", **more,
    }  # fmt: skip


def embedding_gemma(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [kind], "model_type": "gemma3_text", "vocab_size": size_of("gemma_embedding"), **HEADS,
        "num_key_value_heads": 1, "head_dim": 32, "num_hidden_layers": 6, "intermediate_size": 128, "max_position_embeddings": 2048,
        "_sliding_window_pattern": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"], "sliding_window": 64,
        "use_bidirectional_attention": True, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_scaling": None,
        "query_pre_attn_scalar": 32, "attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": False,
        "attention_dropout": 0.0, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "bos_token_id": 2, "eos_token_id": 1,
        "pad_token_id": 0, "use_cache": True, "dtype": "float32", "transformers_version": "4.57.0.dev0", **more,
    }  # fmt: skip


def embedding_gemma2_text(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [kind], "model_type": "embedding_gemma2_text", "vocab_size": size_of("gemma_embedding"),
        **HEADS, "intermediate_size": 128, "num_hidden_layers": 6, "num_key_value_heads": 2, "head_dim": 16,
        "hidden_size_per_layer_input": 16, "embedding_dim": 48, "sliding_window": 32, "global_head_dim": 32,
        "num_global_key_value_heads": 1, "max_position_embeddings": 2048, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, **more,
    }  # fmt: skip


def embedding_gemma2(kind: str, **more: Any) -> dict[str, Any]:
    """A configuration in which that of the text model is one of several; those of images and sound are empty."""
    text = {name: value for name, value in embedding_gemma2_text(kind).items() if name != "architectures"}
    towers = {"text_config": text, "vision_config": None, "audio_config": None}
    return {"architectures": [kind], "model_type": "embedding_gemma2", **towers, **more}


def t5(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [kind], "model_type": "t5", "vocab_size": size_of("t5") + 6, "d_model": 64, "d_ff": 128, "d_kv": 16,
        "num_heads": 4, "num_layers": 3, "num_decoder_layers": 3, "relative_attention_num_buckets": 32, "n_positions": 512,
        "dropout_rate": 0.1, "feed_forward_proj": "relu", "is_encoder_decoder": True, "pad_token_id": 0, "eos_token_id": 1,
        "decoder_start_token_id": 0, "layer_norm_epsilon": 1e-6, "tie_word_embeddings": True, "output_past": True, **more,
    }  # fmt: skip


def dpr(kind: str, **more: Any) -> dict[str, Any]:
    return {**bert(kind), "model_type": "dpr", "projection_dim": 0, **more}


def gte(kind: str, **more: Any) -> dict[str, Any]:
    """Snowflake's arctic-embed-m-v2.0, whose code came with it before transformers had the class."""
    return {
        "architectures": [kind], "model_type": "gte", "vocab_size": size_of("xlmr"), **HEADS, **STACK, "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": 0.1, "max_position_embeddings": 8192, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12, "layer_norm_type": "layer_norm", "logn_attention_clip1": False, "logn_attention_scale": False,
        "pack_qkv": True, "pad_token_id": 1, "position_embedding_type": "rope", "rope_scaling": None, "rope_theta": 160000,
        "type_vocab_size": 1, "unpad_inputs": False, "use_memory_efficient_attention": False, "torch_dtype": "float32", **more,
    }  # fmt: skip


def nomic(kind: str, **more: Any) -> dict[str, Any]:
    """nomic-embed-text-v1.5, with the names of sizes that transformers' own class reads beside the published ones."""
    return {
        "architectures": [kind], "model_type": "nomic_bert", "activation_function": "swiglu", "attn_pdrop": 0.0,
        "bos_token_id": None, "causal": False, "dense_seq_output": True, "embd_pdrop": 0.0, "eos_token_id": None, "fused_bias_fc": True,
        "fused_dropout_add_ln": True, "initializer_range": 0.02, "layer_norm_epsilon": 1e-12, "max_trained_positions": 2048,
        "mlp_fc1_bias": False, "mlp_fc2_bias": False, "n_embd": 64, "n_head": 4, "n_inner": 128, "n_layer": 3, "n_positions": 8192,
        "prenorm": False, "qkv_proj_bias": False, "resid_pdrop": 0.0, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "rotary_scaling_factor": None, "type_vocab_size": 2,
        "use_flash_attn": True, "vocab_size": size_of("bert") + 6, "torch_dtype": "float32", **HEADS, **STACK, **more,
    }  # fmt: skip


def own_code(model_type: str | None, **more: Any) -> dict[str, Any]:
    """A configuration that names Python files beside it, or of another repository; `model_type` is none of transformers'."""
    classes = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    classes["AutoModelForSequenceClassification"] = "modeling_own.OwnForSequenceClassification"
    named = {"model_type": model_type} if model_type else {}
    return {**named, "auto_map": classes, "vocab_size": size_of("xlmr"), **HEADS, **STACK, **more}
