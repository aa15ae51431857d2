"""Adapters of PEFT, merged into their bases, against peft and sentence-transformers themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import change_adapter, merged_by_peft, save_adapter
from support.checkpoints import save
from support.student_folders import TEXTS, assert_equal, encoder_of, lay_out, peer

from data.config.settings import Teacher
from data.errors import UserError
from retrieval.models.loading import open_model
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.base import TeacherSettings
from retrieval.teachers.pair_scorer import PairScorer

IDS = torch.arange(4, 44).view(2, 20)
PAIRS = [("ba be", "bi bo bu"), ("zu", "ba " * 30), ("cedi fo gu", "zaxe")]


def states(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state


def logits(folder: Path, *, max_tokens: int = 60, **words: Any) -> np.ndarray:
    teacher = Teacher(model=str(folder), precision="fp32", max_tokens=max_tokens, **words)
    return resolve_teacher(teacher, device="cpu").open(TeacherSettings.of(teacher, device="cpu", threads=1)).score(PAIRS)


KINDS: dict[str, dict[str, Any]] = {
    "Lora": {},
    "DoRA": {"use_dora": True, "lora_alpha": 4},
    "rank-stabilised": {"use_rslora": True, "r": 4, "lora_alpha": 3, "rank_pattern": {"query": 2}, "alpha_pattern": {"value": 9}},
    "biases": {"bias": "all", "target_modules": ["query", "value"]},
    "one layer": {"target_modules": ["query"], "layers_to_transform": [1]},
    "PiSSA": {"init_lora_weights": "pissa"},
    "tokens": {"trainable_token_indices": {"word_embeddings": [7, 9]}, "target_modules": ["query"]},
    "token table": {"target_modules": ["word_embeddings", "query"]},
    "modules trained whole": {"modules_to_save": ["intermediate"], "target_modules": ["query"]},
    "LoHa": {"r": 4},
    "LoKr": {"r": 4},
    "IA3": {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]},
    "OFT": {"oft_block_size": 4, "target_modules": ["query", "value"]},
}


@pytest.mark.medium
@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_adapters_are_what_peft_makes_of_them(tmp_path: Path, name: str) -> None:
    """Prevents: a scale, a bias or a kind of update that is left out without a word."""
    base = save(tmp_path / "base", "Bert")
    kind = name if name in ("LoHa", "LoKr", "IA3", "OFT") else "Lora"
    adapter = save_adapter(tmp_path / "adapter", base, kind=kind, **KINDS[name])
    ours = states(open_model("AutoModel", adapter, option="student.model", ways=({"add_pooling_layer": False},)))
    torch.testing.assert_close(ours, states(merged_by_peft(adapter, base, "AutoModel")), atol=1e-5, rtol=0)
    assert (ours - states(open_model("AutoModel", base, option="student.model"))).abs().max() > 1e-2


def test_a_merged_model_can_be_trained(tmp_path: Path) -> None:
    """Prevents: a student that starts from an adapter and whose weights peft has frozen: a training that changes nothing."""
    adapter = save_adapter(tmp_path / "adapter", save(tmp_path / "base", "Bert"))
    model = open_model("AutoModel", adapter, option="student.model")
    assert all(parameter.requires_grad for parameter in model.parameters()) and not model.training
    assert not [name for name, _ in model.named_parameters() if "lora" in name] and not hasattr(model, "peft_config")


@pytest.mark.medium
@pytest.mark.parametrize("architecture", ["Bert", "Roberta", "XLMRoberta", "Qwen3", "ModernBert"])
def test_students(tmp_path: Path, architecture: str) -> None:
    """Prevents: vectors of the base, or of another model, under the adapter's name; a tokenizer that is not found."""
    base = save(tmp_path / "base", architecture)
    adapter = save_adapter(tmp_path / "adapter", base)
    shutil.rmtree(tmp_path / "merged", ignore_errors=True)
    merged_by_peft(adapter, base, "AutoModel").save_pretrained(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, tmp_path / "merged" / name)
    own = {"pooling": "mean", "query_tokens": 40, "passage_tokens": 90}
    ours, whole = (encoder_of(folder, **own).passages(TEXTS) for folder in (adapter, tmp_path / "merged"))
    np.testing.assert_allclose(ours, whole, atol=1e-5)


def test_a_folder_of_sentence_transformers(tmp_path: Path) -> None:
    """Prevents: a LoRA student of sentence-transformers refused for its missing config.json, or read with other lengths and prompts."""
    base = save(tmp_path / "base", "Bert")
    adapter = save_adapter(tmp_path / "adapter", base, tokenizer=True)
    prompts = {"prompts": {"query": "ba ", "document": "zu "}, "similarity_fn_name": "cosine"}
    own: dict[str, Any] = {"new": True, "normalize": True, "prompts": prompts, "sentence_bert": {"max_seq_length": 30}}
    reference = peer(lay_out(tmp_path / "st", adapter, **own))
    assert_equal(encoder_of(tmp_path / "st"), reference)
    # In a folder of its own, where sentence-transformers itself looks for the base's weights in a folder of that name.
    assert_equal(encoder_of(lay_out(tmp_path / "inner", adapter, **own, subfolder="0_Transformer")), reference)


@pytest.mark.medium
def test_a_folder_that_sentence_transformers_itself_saved(tmp_path: Path) -> None:
    """Prevents: a layout that only our own tests have."""
    from peft import LoraConfig

    model = peer(lay_out(tmp_path / "st", save(tmp_path / "base", "Bert"), new=True, normalize=True, sentence_bert={"max_seq_length": 30}))
    model.add_adapter(LoraConfig(target_modules=["query", "value"], init_lora_weights=False, r=4))
    model.save_pretrained(str(tmp_path / "saved"))
    change_adapter(tmp_path / "saved", base_model_name_or_path=str(tmp_path / "st"))
    assert not (tmp_path / "saved" / "config.json").exists()
    assert_equal(encoder_of(tmp_path / "saved"), model)


def test_an_adapter_alone_is_used_as_its_base_is(tmp_path: Path) -> None:
    """Prevents: an adapter of a mean-pooled model with prompts that is pooled by its first token and reads none."""
    prompts = {"prompts": {"query": "ba ", "document": "zu "}}
    base = lay_out(tmp_path / "st", save(tmp_path / "plain", "Bert"), normalize=True, prompts=prompts, sentence_bert={"max_seq_length": 30})
    adapter = save_adapter(tmp_path / "adapter", base)
    whole = tmp_path / "whole"
    shutil.copytree(base, whole)
    merged_by_peft(adapter, base, "AutoModel").save_pretrained(whole)
    assert_equal(encoder_of(adapter), peer(whole))


@pytest.mark.medium
@pytest.mark.parametrize("architecture", ["Bert", "Roberta", "XLMRoberta", "Qwen3", "Llama"])
def test_teachers_whose_head_the_adapter_brings(tmp_path: Path, architecture: str) -> None:
    """Prevents: RankLLaMA's layout refused, or scored with a head at random: the base is a language model, `score` lies in the adapter."""
    base = save(tmp_path / "base", architecture)
    adapter = save_adapter(tmp_path / "adapter", base, head=True)
    whole = tmp_path / "merged"
    merged_by_peft(adapter, base, "AutoModelForSequenceClassification", num_labels=1).save_pretrained(whole)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, whole / name)
    np.testing.assert_allclose(logits(adapter), logits(whole), atol=1e-5)


def test_a_reranker_made_of_an_embedding_model(tmp_path: Path) -> None:
    """Prevents: the pooling of an embedding model taken for a chain of modules, or its prompts put before the queries of a classifier."""
    plain = save(tmp_path / "plain", "Bert")
    base = lay_out(tmp_path / "base", plain, normalize=True, prompts={"prompts": {"query": "ba bo "}})
    adapter = save_adapter(tmp_path / "adapter", base, head=True)
    twin = change_adapter(shutil.copytree(adapter, tmp_path / "twin"), base_model_name_or_path=str(plain))
    np.testing.assert_array_equal(logits(adapter), logits(twin))


def test_a_base_with_an_adapter_of_its_own_is_refused(tmp_path: Path) -> None:
    """Prevents: transformers applying that one too, which no key holds."""
    base = save(tmp_path / "base", "Bert")
    adapter = save_adapter(tmp_path / "adapter", base, head=True)
    shutil.copyfile(adapter / "adapter_config.json", base / "adapter_config.json")
    with pytest.raises(UserError, match=r"base holds a PEFT adapter .* beside a whole model"):
        logits(adapter)


def test_a_teacher_that_changes_the_head_of_its_base(tmp_path: Path) -> None:
    """Prevents: two heads of different sizes, of which the base's is taken, or the folder refused."""
    base = save(tmp_path / "base", "Bert", num_labels=2)
    import transformers

    transformers.AutoModelForSequenceClassification.from_pretrained(base).save_pretrained(base)
    with pytest.raises(UserError, match="has 2 outputs"):
        logits(base)
    config = {"ignore_mismatched_sizes": True, "num_labels": 1}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, **config)
    one = tmp_path / "one"
    shutil.copytree(base, one)
    model.save_pretrained(one)
    adapter = change_adapter(save_adapter(tmp_path / "adapter", one, head=True), base_model_name_or_path=str(base))
    whole = shutil.copytree(one, tmp_path / "whole")
    merged_by_peft(adapter, one, "AutoModelForSequenceClassification").save_pretrained(whole)
    np.testing.assert_allclose(logits(adapter), logits(whole), atol=1e-5)


def test_the_adapter_of_a_reranker_as_a_student(tmp_path: Path) -> None:
    """Prevents: an adapter whose names begin one module higher refused, or passed over."""
    base = save(tmp_path / "base", "Bert")
    adapter = save_adapter(tmp_path / "adapter", base, head=True)
    reference = merged_by_peft(adapter, base, "AutoModelForSequenceClassification", num_labels=1).bert
    ours = open_model("AutoModel", adapter, option="student.model", ways=({"add_pooling_layer": False},))
    torch.testing.assert_close(states(ours), states(reference), atol=1e-5, rtol=0)


def test_a_cross_encoder_in_training_starts_from_the_adapter_s_head(tmp_path: Path) -> None:
    """Prevents: a head drawn at random over the one that the adapter brings, or a merged model that peft has frozen."""
    base = save(tmp_path / "base", "Bert")
    adapter = save_adapter(tmp_path / "adapter", base, head=True)
    scorer = PairScorer(adapter, seed=0).eval()
    reference = merged_by_peft(adapter, base, "AutoModelForSequenceClassification", num_labels=1)
    with torch.no_grad():
        expected = reference(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        torch.testing.assert_close(scorer(IDS, torch.ones_like(IDS)), expected, atol=1e-5, rtol=0)
    assert all(parameter.requires_grad for parameter in scorer.parameters())
    scorer.save(tmp_path / "saved")
    np.testing.assert_allclose(logits(tmp_path / "saved"), logits(adapter), atol=1e-5)


@pytest.mark.parametrize("auto", ["AutoModelForCausalLM", "AutoModel"])
def test_the_adapter_of_a_language_model(tmp_path: Path, auto: str) -> None:
    """Prevents: an adapter of a generative reranker that is merged into the layers and not into the output matrix, or not at all."""
    import transformers

    base = save(tmp_path / "base", "Qwen3")
    transformers.AutoModelForCausalLM.from_pretrained(base).save_pretrained(base)
    adapter = save_adapter(
        tmp_path / "adapter", base, auto="AutoModelForCausalLM", target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"
    )
    reference = merged_by_peft(adapter, base, "AutoModelForCausalLM")
    ours = open_model(auto, adapter, option="teacher.model")
    with torch.no_grad():
        if auto == "AutoModel":
            torch.testing.assert_close(states(ours), states(reference.model), atol=1e-5, rtol=0)
        else:
            torch.testing.assert_close(ours(IDS).logits, reference(IDS).logits, atol=1e-4, rtol=0)


def test_a_table_with_two_uses_is_not_merged(tmp_path: Path) -> None:
    """Prevents: an adapter of the output matrix that changes the tokens' own vectors as well."""
    import transformers

    base = save(tmp_path / "base", "Qwen3", tie_word_embeddings=True)
    transformers.AutoModelForCausalLM.from_pretrained(base).save_pretrained(base)
    for target in ("lm_head", "embed_tokens"):
        adapter = save_adapter(tmp_path / target, base, auto="AutoModelForCausalLM", target_modules=["q_proj", target])
        with pytest.raises(UserError, match=r"are one in its base \(tie_word_embeddings\), so it cannot be merged"):
            open_model("AutoModelForCausalLM", adapter, option="teacher.model")


def test_a_larger_token_table(tmp_path: Path) -> None:
    """Prevents: an adapter with tokens of its own that cannot be opened, or whose new tokens are another's."""
    import peft
    import transformers

    base = save(tmp_path / "base", "Qwen3")
    model = transformers.AutoModel.from_pretrained(base)
    model.resize_token_embeddings(490, mean_resizing=False)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    ours = open_model("AutoModel", tmp_path / "adapter", option="student.model")
    ids = torch.tensor([[484, 489, 3]])
    with torch.no_grad():
        expected = wrapped.eval()(input_ids=ids).last_hidden_state
        torch.testing.assert_close(ours(input_ids=ids).last_hidden_state, expected, atol=1e-5, rtol=0)


def test_settings_of_the_adapters_own(tmp_path: Path) -> None:
    """Prevents: a LLaMA reranker whose base names no padding, and for which there would be no file to name it in."""
    base = save(tmp_path / "base", "Llama")
    adapter = save_adapter(tmp_path / "adapter", base, head=True)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    with pytest.raises(UserError, match="pad_token_id"):
        logits(adapter)
    (adapter / "config.json").write_text(json.dumps(config))
    assert np.isfinite(logits(adapter)).all()


def without(folder: Path, end: str) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if not name.endswith(end)}, path)


FAULTS: dict[str, tuple[Any, str]] = {
    "a weight less": (lambda folder, base: without(folder, "0.attention.self.query.lora_B.weight"), "lacks 1 of its weights"),
    "a weight more": (lambda folder, base: change_adapter(folder, target_modules=["query"]), "has no place in its base for 22"),
    "another base": (lambda folder, base: shutil.copytree(save(folder / "b", "Bert", hidden_size=16), base, dirs_exist_ok=True), "not fit"),
    "a later setting": (lambda folder, base: change_adapter(folder, use_zora=True), "does not know .use_zora.: install a newer"),
    "a rank that is not its own": (lambda folder, base: change_adapter(folder, r=3), "does not fit a BertModel: .*size mismatch"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused(tmp_path: Path, fault: str) -> None:
    """Prevents: an adapter that is applied in part."""
    base = save(tmp_path / "base", "Bert")
    adapter = save_adapter(tmp_path / "adapter", base)
    spoil, message = FAULTS[fault]
    spoil(adapter, base)
    with pytest.raises(UserError, match=f"student.model: .*adapter.* {message}"):
        open_model("AutoModel", adapter, option="student.model")
