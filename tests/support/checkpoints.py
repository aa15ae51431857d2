"""Tiny checkpoints with random weights in the layouts of many architectures, and the damage that real ones come with.

`save(folder, "Bert", head=True)` writes config.json, model.safetensors and a tokenizer whose special tokens and pair template are those of
the architecture. Weights are large enough that a wrong mask, position or tensor shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support.model_files import write_json
from torch import Tensor

CONSONANTS, VOWELS = "bcdfghjklmnprstvwxyz", "aeiou"
WORDS = [f"{consonant}{vowel}" for consonant in CONSONANTS for vowel in VOWELS]

# Special tokens in the order of their ids, and what stands around a text and a pair.
STYLES: dict[str, dict[str, Any]] = {
    "bert": {
        "special": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "single": "[CLS]:0 $A:0 [SEP]:0",
        "pair": "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        "names": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    },
    "roberta": {
        "special": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "single": "<s> $A </s>", "pair": "<s> $A </s> </s> $B </s>",
        "names": {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>", "bos": "<s>", "eos": "</s>"},
    },
    "llama": {  # no padding token of its own
        "special": ["<unk>", "<s>", "</s>"], "single": "<s> $A </s>", "pair": "<s> $A $B </s>",
        "names": {"unk": "<unk>", "bos": "<s>", "eos": "</s>"},
    },
    "qwen": {  # byte-level, as transformers has it for these models whatever tokenizer.json says
        "bytes": True, "special": ["<unk>", "<|end|>", "<|pad|>"], "single": "$A <|end|>", "pair": "$A $B <|end|>",
        "names": {"unk": "<unk>", "eos": "<|end|>", "pad": "<|pad|>"},
    },
    "t5": {
        "special": ["<pad>", "</s>", "<unk>"], "single": "$A </s>", "pair": "$A </s> $B </s>",
        "names": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
    },
}  # fmt: skip

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 128,
    "vocab_size": 480,
}  # fmt: skip
# EmbeddingGemma 2: vectors of another size than the hidden one, layers of two kinds.
GEMMA2 = {
    "num_key_value_heads": 2, "head_dim": 8, "hidden_size_per_layer_input": 8, "embedding_dim": 24, "sliding_window": 16,
    "global_head_dim": 16, "num_global_key_value_heads": 1, "num_hidden_layers": 6, "eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
# Architecture -> style of its tokenizer, and what its configuration has besides the sizes.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("bert", {}),
    "DistilBert": ("bert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    "Electra": ("bert", {"embedding_size": 16}),
    "Albert": ("bert", {"embedding_size": 16}),
    "MPNet": ("roberta", {}),
    "Roberta": ("roberta", {"type_vocab_size": 1}),
    "XLMRoberta": ("roberta", {"type_vocab_size": 1}),
    "Camembert": ("roberta", {"type_vocab_size": 1}),
    "DebertaV2": ("bert", {
        "relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "position_buckets": 16, "pooler_hidden_size": 32, "type_vocab_size": 0,
    }),
    "ModernBert": ("bert", {
        "global_attn_every_n_layers": 2, "local_attention": 16, "num_hidden_layers": 3, "cls_token_id": 2, "sep_token_id": 3,
    }),
    "EuroBert": ("bert", GROUPED | {"classifier_pooling": "late"}),
    "NomicBert": ("bert", {}),
    "Gte": ("bert", {}),
    "MobileBert": ("bert", {"embedding_size": 16, "intra_bottleneck_size": 16}),
    "RoFormer": ("bert", {"embedding_size": 32}),
    "Qwen2": ("qwen", {"num_key_value_heads": 2}),
    "Qwen3": ("qwen", GROUPED),
    "Llama": ("llama", {"num_key_value_heads": 4, "pad_token_id": 2}),
    "Mistral": ("llama", GROUPED | {"pad_token_id": 2, "sliding_window": 16}),
    "Gemma": ("t5", GROUPED),
    "Gemma2": ("t5", GROUPED | {"sliding_window": 16, "query_pre_attn_scalar": 8}),
    "Gemma3Text": ("t5", GROUPED | {"sliding_window": 16, "query_pre_attn_scalar": 8}),
    "GPTNeoX": ("llama", {"pad_token_id": 0}),
    "GPT2": ("llama", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 128, "pad_token_id": 2}),
    "OPT": ("roberta", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
}  # fmt: skip


# Language models without a class for scoring: a scale of the logits, a divisor of them, a bias of the output matrix.
LANGUAGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Cohere": ("llama", {"num_key_value_heads": 2, "pad_token_id": 2, "logit_scale": 0.25}),
    "Granite": ("llama", {"num_key_value_heads": 2, "pad_token_id": 2, "logits_scaling": 3.0, "tie_word_embeddings": False}),
    "Phi": ("llama", {"pad_token_id": 2}),
}


def save(
    folder: Path, architecture: str, *, head: bool = False, causal: bool = False, seed: int = 0, style: str | None = None, **changed: Any
) -> Path:
    """A checkpoint folder: an encoder, with `head` a cross-encoder with one output, or with `causal` a language model.

    `changed` is of its configuration.
    """
    import transformers

    own_style, extra = {**ARCHITECTURES, **LANGUAGE_MODELS}[architecture]
    style = style or own_style
    save_tokenizer(folder, style)
    config_class = getattr(transformers, f"{architecture}Config")
    ids = {f"{name}_token_id": STYLES[style]["special"].index(token) for name, token in STYLES[style]["names"].items()}
    given = {**SIZES, **{name: ids[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id") if name in ids}, **extra, **changed}
    config = config_class(**{**({"num_labels": 1} if head else {}), **given})
    model_class = transformers.AutoModelForSequenceClassification if head else transformers.AutoModel
    model_class = transformers.AutoModelForCausalLM if causal else model_class
    model = randomised(model_class.from_config(config), seed)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def save_t5(folder: Path, *, family: str = "T5", whole: bool = False, **changed: Any) -> Path:
    """T5, MT5 or UMT5: the encoder alone, or, `whole`, with its decoder."""
    import transformers

    save_tokenizer(folder, "t5")
    sizes = {"vocab_size": 480, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
    config = getattr(transformers, f"{family}Config")(**sizes, relative_attention_num_buckets=8, **changed)
    model_class = getattr(transformers, f"{family}{'ForConditionalGeneration' if whole else 'EncoderModel'}")
    randomised(model_class(config), 0).save_pretrained(folder)
    return folder


def randomised(model: Any, seed: int) -> Any:
    """Weights in which every tensor counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                scale = 1.0 if "embed" in name or "wte" in name else 1.5 / math.sqrt(parameter.shape[-1])
                parameter.copy_(noise * scale)
            else:
                middle = 1.0 if "norm" in name.lower() and name.endswith("weight") and "Gemma" not in type(model).__name__ else 0.0
                parameter.copy_(middle + 0.2 * noise)
    return model.eval()


def save_tokenizer(folder: Path, style: str, **changed: Any) -> Path:
    """tokenizer.json of whole words, with the special tokens and templates of the style; `changed` is of tokenizer_config.json."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    own = STYLES[style]
    tokens = [*own["special"], *WORDS]
    if own.get("bytes"):
        letters = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
        tokens = [*own["special"], *letters, *WORDS, *(f"Ġ{word}" for word in WORDS)]
        merges = [*((word[0], word[1]) for word in WORDS), *(("Ġ", word) for word in WORDS)]
        tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        vocabulary = {token: number for number, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=own["names"]["unk"]))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(own["special"])
    numbered = [(token, number) for number, token in enumerate(own["special"])]
    tokenizer.post_processor = processors.TemplateProcessing(single=own["single"], pair=own["pair"], special_tokens=numbered)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": token for name, token in own["names"].items()}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names, **changed})
    return folder


def save_sentencepiece(folder: Path, *, split: bool = False) -> Path:
    """A tokenizer as LLaMA's and Gemma's: white space is a letter of the vocabulary, and a text is not cut into words before."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    folder.mkdir(parents=True)
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz.-\n"]
    words = ["▁b", "▁c", "▁ba", "▁ca", "ba", "ca"]
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokens = [*special, *letters, *words]
    merges = [("▁", "b"), ("▁", "c"), ("▁b", "a"), ("▁c", "a"), ("b", "a"), ("c", "a")]
    backend = Backend(models.BPE({token: number for number, token in enumerate(tokens)}, merges, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    if split:
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")  # as Gemma's: the normaliser leaves no space to split at
    backend.decoder = decoders.Replace("▁", " ")
    backend.add_special_tokens(special)
    backend.save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    return folder


def change_json(path: Path, **changed: Any) -> None:
    """Set keys of a JSON file; None takes a key away."""
    content = {**json.loads(path.read_text()), **changed}
    write_json(path, {key: value for key, value in content.items() if value is not None})


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """Write model.safetensors anew, as `change` has its tensors."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file({name: tensor.contiguous() for name, tensor in change(tensors).items()}, path, metadata={"format": "pt"})
    return folder


OWN_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput


class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(self, vocab_size=480, hidden_size=32, **more):
        super().__init__(**more)
        self.vocab_size, self.hidden_size = vocab_size, hidden_size


class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    base_model_prefix = "own"

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.dense = torch.nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **unused):
        return BaseModelOutput(last_hidden_state=self.dense(self.embeddings(input_ids)).sin())


class OwnForSequenceClassification(PreTrainedModel):
    config_class = OwnConfig
    base_model_prefix = "own"

    def __init__(self, config):
        super().__init__(config)
        self.own = OwnModel(config)
        self.classifier = torch.nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **unused):
        states = self.own(input_ids).last_hidden_state * attention_mask[..., None]
        return SequenceClassifierOutput(logits=self.classifier(states.sum(1)))
"""


def save_own_code(folder: Path, *, head: bool = False, code: str = OWN_CODE, model_type: str = "own") -> Path:
    """A checkpoint whose architecture is Python code beside its weights (`auto_map`)."""
    save_tokenizer(folder, "bert")
    (folder / "modeling_own.py").write_text(code)
    names = {"AutoConfig": "OwnConfig", "AutoModel": "OwnModel", "AutoModelForSequenceClassification": "OwnForSequenceClassification"}
    sizes = {"vocab_size": 480, "hidden_size": 32, "num_labels": 1, "pad_token_id": 0}
    auto_map = {name: f"modeling_own.{own}" for name, own in names.items()}
    write_json(folder / "config.json", {"model_type": model_type, "auto_map": auto_map, **sizes})
    generator = torch.Generator().manual_seed(0)
    shapes = {"embeddings.weight": (480, 32), "dense.weight": (32, 32), "dense.bias": (32,)}
    if head:
        shapes = {**{f"own.{name}": shape for name, shape in shapes.items()}, "classifier.weight": (1, 32), "classifier.bias": (1,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
