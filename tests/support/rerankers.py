"""Tiny decoder rerankers with tokenizers that have merges, in which a template's space or line break joins with the text beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.checkpoints import ARCHITECTURES, SIZES, change_json, randomised, write_json

BYTES = [f"<0x{number:02X}>" for number in range(256)]
# Qwen3-Reranker's own, as sentence-transformers takes it.
ROLES = (
    '{%- set instruction = messages | selectattr("role", "eq", "system") | map(attribute="content") | first '
    '| default("Given a web search query, retrieve relevant passages that answer the query") -%}\n'
    '{%- set query_text = messages | selectattr("role", "eq", "query") | map(attribute="content") | first -%}\n'
    '{%- set document_text = messages | selectattr("role", "eq", "document") | map(attribute="content") | first -%}\n'
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
    'answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: {{ instruction }}\n<Query>: {{ query_text }}\n'
    "<Document>: {{ document_text }}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n\n"
)
GEMMA_ROLES = (
    '{{ bos_token }}A: {{ (messages | selectattr("role", "eq", "query") | first).content }}\n'
    'B: {{ (messages | selectattr("role", "eq", "document") | first).content }}\nGiven a query A and a passage B, determine.'
)
LLAMA_ROLES = (
    '{% for message in messages %}{% if message.role == "query" %}{{ bos_token }}query: {{ message.content[0].text }}{% elif '
    'message.role == "document" %}\ndocument: {{ message.content[0].text }}{{ eos_token }}{% endif %}{% endfor %}'
)

TEXTS = [
    "Is it true that the cat sat on the mat? The query asks: what is a document?\n",
    "<Query>: Is the passage about insurance?\n<Document>: The insurance covers 150 % of it.\nIs it?\n\nYes.\n",
    "query: how old is he?\ndocument: He is 42 years old; see (the) list: a, b & c.\n",
    "A: naïve café\nB: What of über? 漢字 and 日本語。\nGiven a query A and a passage B, determine.\n",
    ROLES,
] * 20
PAIRS = [
    ("Is it true?", "The cat sat on the mat."), ("what is a document", "document: a list of (the) mats"), ("naïve", "über 漢字、日本語。"),
    ("42", "150 % of it"), (" leading space", "\nleading line\nand more\n"), ("query?\n", " the end? "), ("", "empty query"), ("empty", ""),
    ("<|im_end|> in it", "says <|im_start|>user and <bos> and </s>"), ("tab\tand  spaces ", "😀 emoji…"), ("the " * 30, "long query"),
]  # fmt: skip
MORE = [
    (f"{query} {word}", f"{word} {document}" * 3) for query, document in PAIRS[:7] for word in ("mat", "?", "He is", "7", "\n", "Yes.", "ü")
]
LONG = [("Is it true?", "The cat sat on the mat. " * 60), ("what is it", "He is 42 years old; see? " * 40), ("a", "漢字 über\n" * 80)]


def trained_tokenizer(folder: Path, style: str) -> Path:
    """tokenizer.json and its settings: `qwen` byte-level, `gemma` and `llama` of characters, `unigram` with a space before each word."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    folder.mkdir(parents=True, exist_ok=True)
    if style == "qwen":
        from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=1200, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
        names = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    elif style == "unigram":
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    else:
        special = ["<pad>", "<eos>", "<bos>", "<unk>"] if style == "gemma" else ["<unk>", "<s>", "</s>", "<pad>"]
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+"), behavior="isolated")
        trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=[*special, *BYTES], show_progress=False)
        bos, eos = special[2:0:-1] if style == "gemma" else special[1:3]
        names = {"tokenizer_class": f"{style.title()}Tokenizer", "bos_token": bos, "eos_token": eos, "pad_token": "<pad>"}
    tokenizer.train_from_iterator(TEXTS, trainer)
    if style == "llama":
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    if style in ("gemma", "llama"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {**names, "unk_token": None if style == "qwen" else "<unk>"})
    if style in ("gemma", "llama"):  # the bytes are no tokens of their own in a text
        tables = json_of(folder / "tokenizer.json")
        change_json(folder / "tokenizer.json", added_tokens=[token for token in tables["added_tokens"] if token["content"] in special])
    return folder


def json_of(path: Path) -> Any:
    import json

    return json.loads(path.read_text())


def save_reranker(folder: Path, architecture: str, style: str, *, causal: bool = False, **changed: Any) -> Path:
    """A decoder with a scoring head of one output, or with that of a language model, for pairs of up to 1,024 tokens."""
    import transformers

    trained_tokenizer(folder, style)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sizes = {**SIZES, "max_position_embeddings": 1024, "vocab_size": len(tokenizer), **ARCHITECTURES[architecture][1]}
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = getattr(transformers, f"{architecture}Config")(**{**sizes, **ids, "num_labels": 1, **changed})
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    randomised(auto.from_config(config), 0).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def save_logit_score(folder: Path, true: int, false: int | None) -> Path:
    """Make a language model's folder of one that `save_sentence_transformers` has made."""
    modules = json_of(folder / "modules.json")
    kind = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
    write_json(folder / "modules.json", [*modules, {"idx": 1, "name": "1", "path": "1_LogitScore", "type": kind}])
    write_json(folder / "1_LogitScore" / "config.json", {"true_token_id": true, "false_token_id": false})
    change_json(folder / "sentence_bert_config.json", transformer_task="text-generation", module_output_name="causal_logits")
    return folder


def save_sentence_transformers(folder: Path, template: str, *, form: str = "flat", prompt: str | None = None, **given: Any) -> Path:
    """The files that sentence-transformers writes beside a cross-encoder whose pairs go through a chat template."""
    output = {"method": "forward", "method_output_name": "logits"}
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
    settings = {
        "transformer_task": "sequence-classification", "modality_config": {"text": output, "message": {**output, "format": form}},
        "module_output_name": "scores",
    }  # fmt: skip
    write_json(folder / "sentence_bert_config.json", {**settings, **({"processing_kwargs": {"chat_template": given}} if given else {})})
    prompts = {} if prompt is None else {"web_search": prompt}
    own = {"model_type": "CrossEncoder", "prompts": prompts, "default_prompt_name": None if prompt is None else "web_search"}
    write_json(folder / "config_sentence_transformers.json", {"activation_fn": "torch.nn.modules.linear.Identity", **own})
    (folder / "chat_template.jinja").write_text(template)
    return folder
