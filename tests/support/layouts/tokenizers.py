"""Small tokenizers with the special tokens, normalisers, pre-tokenizers and post-processors of real ones, and their settings files."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from support.checkpoints import write_json
from support.layouts.texts import TRAINING
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SIZE = 700
ENDLESS = 1000000000000000019884624838656  # what tokenizers without a length write


def _save(folder: Path, tokenizer: Tokenizer, **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", settings)
    return folder


def _around(tokenizer: Tokenizer, single: str, pair: str, *special: str) -> None:
    numbered = [(token, tokenizer.token_to_id(token)) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=numbered)


def _special(content: str, **words: bool) -> AddedToken:
    return AddedToken(content, **{"special": True, "normalized": False, **words})


@cache
def _word_piece() -> dict[str, int]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TRAINING, trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=special, show_progress=False))
    return dict(sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]))


def _lower_cased(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def bert(folder: Path) -> Path:
    tokenizer = _lower_cased(_word_piece())
    tokenizer.add_special_tokens([_special(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")])
    _around(tokenizer, "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", "[CLS]", "[SEP]")
    _save(
        folder, tokenizer, tokenizer_class="BertTokenizer", do_lower_case=True, strip_accents=None, tokenize_chinese_chars=True,
        cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", mask_token="[MASK]", unk_token="[UNK]", model_max_length=512,
    )  # fmt: skip
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in _word_piece()), encoding="utf-8")
    return folder


def mpnet(folder: Path) -> Path:
    """BERT's words behind RoBERTa's special tokens."""
    tokens = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *_word_piece(), "<mask>"])
    tokenizer = _lower_cased({token: number for number, token in enumerate(tokens)})
    tokenizer.add_special_tokens([*map(_special, ("<s>", "<pad>", "</s>")), _special("<mask>", lstrip=True)])
    start, end = (("<s>", 0), ("</s>", 2))
    tokenizer.post_processor = processors.RobertaProcessing(end, start, trim_offsets=True, add_prefix_space=False)
    return _save(
        folder, tokenizer, tokenizer_class="MPNetTokenizer", do_lower_case=True, strip_accents=None, tokenize_chinese_chars=True,
        bos_token="<s>", eos_token="</s>", sep_token="</s>", cls_token="<s>", unk_token="[UNK]", pad_token="<pad>", mask_token="<mask>",
        model_max_length=512,
    )  # fmt: skip


@cache
def _trained_unigram(special: tuple[str, ...], unknown: str) -> str:
    tokenizer = Tokenizer(models.Unigram())
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=SIZE, special_tokens=list(special), unk_token=unknown, show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer.to_str()


def _unigram(*special: str, unknown: str = "<unk>") -> Tokenizer:
    return Tokenizer.from_str(_trained_unigram(special, unknown))


def xlmr(folder: Path) -> Path:
    tokenizer = _unigram("<s>", "<pad>", "</s>", "<unk>")
    tokenizer.add_special_tokens([_special("<mask>", lstrip=True)])
    _around(tokenizer, "<s> $A </s>", "<s> $A </s> </s> $B </s>", "<s>", "</s>")
    return _save(
        folder, tokenizer, tokenizer_class="XLMRobertaTokenizer", bos_token="<s>", eos_token="</s>", sep_token="</s>", cls_token="<s>",
        unk_token="<unk>", pad_token="<pad>", mask_token="<mask>", model_max_length=8192, sp_model_kwargs={},
    )  # fmt: skip


def deberta(folder: Path) -> Path:
    tokenizer = _unigram("[PAD]", "[CLS]", "[SEP]", "[UNK]", unknown="[UNK]")
    tokenizer.add_special_tokens([_special("[MASK]")])
    _around(tokenizer, "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", "[CLS]", "[SEP]")
    return _save(
        folder, tokenizer, tokenizer_class="DebertaV2Tokenizer", bos_token="[CLS]", cls_token="[CLS]", eos_token="[SEP]", sep_token="[SEP]",
        mask_token="[MASK]", pad_token="[PAD]", unk_token="[UNK]", do_lower_case=False, split_by_punct=False, sp_model_kwargs={},
        vocab_type="spm", model_max_length=512,
    )  # fmt: skip


def t5(folder: Path) -> Path:
    tokenizer, extra = _unigram("<pad>", "</s>", "<unk>"), [f"<extra_id_{number}>" for number in range(10)]
    tokenizer.add_special_tokens(extra)
    _around(tokenizer, "$A </s>", "$A </s> $B </s>", "</s>")
    return _save(
        folder, tokenizer, tokenizer_class="T5Tokenizer", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=extra, extra_ids=10, model_max_length=512, sp_model_kwargs={},
    )  # fmt: skip


@cache
def _trained_bytes(normal: bool, special: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    if normal:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=list(special), initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer.to_str()


def _bytes(*special: str, normal: bool = True) -> Tokenizer:
    return Tokenizer.from_str(_trained_bytes(normal, special))


def roberta(folder: Path) -> Path:
    tokenizer = _bytes("<s>", "<pad>", "</s>", "<unk>", normal=False)
    tokenizer.add_special_tokens([_special("<mask>", lstrip=True)])
    start, end = ("<s>", 0), ("</s>", 2)
    tokenizer.post_processor = processors.RobertaProcessing(end, start, trim_offsets=True, add_prefix_space=False)
    return _save(
        folder, tokenizer, tokenizer_class="RobertaTokenizer", bos_token="<s>", eos_token="</s>", sep_token="</s>", cls_token="<s>",
        unk_token="<unk>", pad_token="<pad>", mask_token="<mask>", add_prefix_space=False, model_max_length=512,
    )  # fmt: skip


def modernbert(folder: Path) -> Path:
    """Special tokens stand behind the words, as in the published one."""
    tokenizer, special = _bytes(), ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
    tokenizer.add_special_tokens([_special(token, lstrip=token == "[MASK]") for token in special])
    _around(tokenizer, "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:0 [SEP]:0", "[CLS]", "[SEP]")
    return _save(
        folder, tokenizer, tokenizer_class="PreTrainedTokenizerFast", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token="[MASK]", unk_token="[UNK]", model_input_names=["input_ids", "attention_mask"], model_max_length=8192,
    )  # fmt: skip


def qwen(folder: Path) -> Path:
    """Nothing is put around a text."""
    return _qwen(folder, processors.ByteLevel(trim_offsets=False))


def qwen_embedding(folder: Path) -> Path:
    """Its post-processor ends every text with <|endoftext|>, whatever the settings call its end."""
    tokenizer = _qwen_words()
    numbered = [("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))]
    around = processors.TemplateProcessing(single="$A:0 <|endoftext|>:0", pair="$A:0 $B:1 <|endoftext|>:1", special_tokens=numbered)
    return _qwen(folder, processors.Sequence([processors.ByteLevel(trim_offsets=False), around]))


def _qwen_words() -> Tokenizer:
    tokenizer = _bytes()
    tokenizer.add_special_tokens([*map(_special, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))])
    tokenizer.add_tokens([_special(token, special=False) for token in ("<think>", "</think>")])
    return tokenizer


def _qwen(folder: Path, post_processor: Any) -> Path:
    tokenizer = _qwen_words()
    tokenizer.post_processor = post_processor
    return _save(
        folder, tokenizer, tokenizer_class="Qwen2Tokenizer", add_bos_token=False, add_prefix_space=False, bos_token=None,
        eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None, errors="replace", model_max_length=131072,
        split_special_tokens=False, additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip


@cache
def _trained_sentence_pieces(special: tuple[str, ...], llama: bool) -> str:
    """Merges inside words; bytes for what is in none. Trained with a pre-tokenizer that the finished one does not have."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if llama else spaces
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+"), "isolated")
    every_byte = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=SIZE + 256, special_tokens=[*special, *every_byte], show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer.to_str()


def _sentence_pieces(*special: str, llama: bool) -> Tokenizer:
    import json

    content = json.loads(_trained_sentence_pieces(special, llama))
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    content["pre_tokenizer"] = None if llama else split
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    words = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*words, *([decoders.Strip(" ", 1, 0)] * llama)])
    return tokenizer


def llama(folder: Path) -> Path:
    """No padding token."""
    tokenizer = _sentence_pieces("<unk>", "<s>", "</s>", llama=True)
    _around(tokenizer, "<s>:0 $A:0", "<s>:0 $A:0 <s>:1 $B:1", "<s>")
    return _save(
        folder, tokenizer, tokenizer_class="LlamaTokenizer", add_bos_token=True, add_eos_token=False, bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", pad_token=None, model_max_length=ENDLESS, legacy=False, padding_side="right", sp_model_kwargs={},
    )  # fmt: skip


def mistral(folder: Path) -> Path:
    """As e5-mistral has it: texts end with </s>, padding on the left."""
    tokenizer = _sentence_pieces("<unk>", "<s>", "</s>", llama=True)
    _around(tokenizer, "<s>:0 $A:0 </s>:0", "<s>:0 $A:0 </s>:0 <s>:1 $B:1 </s>:1", "<s>", "</s>")
    return _save(
        folder, tokenizer, tokenizer_class="LlamaTokenizer", add_bos_token=True, add_eos_token=True, bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", pad_token="</s>", model_max_length=ENDLESS, legacy=True, padding_side="left", sp_model_kwargs={},
    )  # fmt: skip


def gemma(folder: Path) -> Path:
    return _gemma(folder, "<bos>:0 $A:0", "<bos>:0 $A:0 <bos>:1 $B:1", ends=False, longest=ENDLESS)


def gemma_embedding(folder: Path) -> Path:
    return _gemma(folder, "<bos>:0 $A:0 <eos>:0", "<bos>:0 $A:0 <eos>:0 <bos>:1 $B:1 <eos>:1", ends=True, longest=2048)


def _gemma(folder: Path, single: str, pair: str, *, ends: bool, longest: int) -> Path:
    tokenizer = _sentence_pieces("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", llama=False)
    tokenizer.add_special_tokens([_special("<start_of_turn>"), _special("<end_of_turn>")])
    _around(tokenizer, single, pair, "<bos>", *(["<eos>"] * ends))
    return _save(
        folder, tokenizer, tokenizer_class="GemmaTokenizer", add_bos_token=True, add_eos_token=ends, bos_token="<bos>", eos_token="<eos>",
        pad_token="<pad>", unk_token="<unk>", model_max_length=longest, spaces_between_special_tokens=False, sp_model_kwargs=None,
    )  # fmt: skip


TOKENIZERS: dict[str, Callable[[Path], Path]] = {
    made.__name__: made
    for made in (bert, mpnet, xlmr, deberta, t5, roberta, modernbert, qwen, qwen_embedding, llama, mistral, gemma, gemma_embedding)
}


@cache
def ids_of(name: str) -> dict[str, int]:
    """Ids of the tokens of a tokenizer, added ones too."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        TOKENIZERS[name](Path(folder))
        return Tokenizer.from_file(f"{folder}/tokenizer.json").get_vocab()


def size_of(name: str) -> int:
    """Rows that a model's token table needs."""
    return max(ids_of(name).values()) + 1
