"""LoRA of a student: where its adapters are, how they begin, and what is saved."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.adapters import merged_by_peft
from support.checkpoints import save
from support.student_folders import TEXTS, encoder_of, lay_out, peer

from data.config.settings import Lora, Student
from data.errors import UserError
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.lora import add_lora, has_lora, is_lora, lora_key, targets_in, without_adapters
from retrieval.models.student import resolve_student

OWN = {"pooling": "mean", "query_tokens": 40, "passage_tokens": 90}
IDS = torch.arange(4, 44).view(2, 20)
MASK = torch.ones_like(IDS)


def settings(folder: Path, *, rank: int | None = 4, layers: int | None = None, **lora: Any) -> Student:
    return Student(model=str(folder), layers=layers, lora=Lora(rank=rank, **lora), **OWN)


def student_of(folder: Path, *, seed: int = 0, trained: bool = True, **words: Any) -> DualEncoder:
    own = settings(folder, **words)
    model = add_lora(DualEncoder(resolve_student(own)), own, seed=seed)
    if trained:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if is_lora(name):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def key(folder: Path, **words: Any) -> dict[str, Any]:
    own = settings(folder, **words)
    return lora_key(resolve_student(own), own.lora)


def vectors(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, MASK)


ARCHITECTURES = ["Bert", "Roberta", "DistilBert", "ModernBert", "DebertaV2", "Qwen3", "Gemma3Text", "GPT2"]
CUT = ["Bert", "DistilBert", "ModernBert", "Qwen3"]


@pytest.mark.medium
@pytest.mark.parametrize(("architecture", "layers"), [*((name, None) for name in ARCHITECTURES), *((name, 1) for name in CUT)])
def test_saved_merged_and_as_an_adapter(tmp_path: Path, architecture: str, layers: int | None) -> None:
    """Prevents: a student that is another one once it is saved, or an adapter that peft reads otherwise."""
    base = save(tmp_path / "base", architecture)
    model = student_of(base, layers=layers)
    model.save(tmp_path / "out")
    expected = vectors(model)
    assert not list((tmp_path / "out").glob("adapter_*")) and has_lora(model)
    merged = DualEncoder(resolve_student(Student(model=str(tmp_path / "out"), query_tokens=None, passage_tokens=None)))
    torch.testing.assert_close(vectors(merged), expected, atol=1e-5, rtol=0)
    assert (expected - vectors(student_of(base, layers=layers, trained=False))).abs().max() > 1e-2
    if layers is None:
        backbone = merged_by_peft(tmp_path / "out" / "adapter", base, "AutoModel")
        with torch.no_grad():
            states = backbone(input_ids=IDS, attention_mask=MASK).last_hidden_state
        torch.testing.assert_close(states.mean(1), expected, atol=1e-5, rtol=0)
    again = DualEncoder(resolve_student(settings(tmp_path / "out" / "adapter", rank=None, layers=layers)))
    torch.testing.assert_close(vectors(again), expected, atol=1e-5, rtol=0)


def test_the_saved_folder_is_sentence_transformers_own(tmp_path: Path) -> None:
    """Prevents: a merged student whose prompts or pooling are lost; an adapter that names another base."""
    base = lay_out(tmp_path / "st", save(tmp_path / "base", "Bert"), normalize=True, prompts={"prompts": {"query": "ba "}})
    model = student_of(base)
    model.save(tmp_path / "out")
    np.testing.assert_allclose(encoder_of(tmp_path / "out").queries(TEXTS), peer(tmp_path / "out").encode_query(TEXTS), atol=1e-5)
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base) and config["inference_mode"] and config["peft_type"] == "LORA"
    assert str(config["lora_alpha"]) == "8"  # a whole number, as servers of adapters want it
    assert f"base_model: {base}" in (tmp_path / "out" / "adapter" / "README.md").read_text()
    np.testing.assert_allclose(
        encoder_of(tmp_path / "out" / "adapter", query_tokens=40).queries(TEXTS), encoder_of(tmp_path / "out").queries(TEXTS), atol=1e-5
    )


def test_at_first_the_student_is_what_it_was(tmp_path: Path) -> None:
    """Prevents: vectors mined with another student than the one that the training starts from."""
    base = save(tmp_path / "base", "Bert")
    assert torch.equal(vectors(student_of(base, trained=False)), vectors(DualEncoder(resolve_student(settings(base)))))


def test_a_is_drawn_from_the_seed_and_the_layer_alone(tmp_path: Path) -> None:
    """Prevents: a resumed run, or another process of it, that begins with other adapters; a seed that does nothing."""
    base = save(tmp_path / "base", "Bert")

    def drawn(**words: Any) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in student_of(base, trained=False, **words).named_parameters() if ".lora_A." in name}

    torch.manual_seed(5)
    one, more, other = drawn(), drawn(targets=("all-linear",)), drawn(seed=1)
    assert len(one) == 4 < len(more) and all(torch.equal(tensor, more[name]) for name, tensor in one.items())
    assert not any(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert len({float(tensor.detach()[0, 0]) for tensor in more.values()}) == len(more)
    first = next(iter(one.values()))
    assert 0.9 * 32**-0.5 < first.abs().max() <= 32**-0.5


def test_adapters_alone_are_trained(tmp_path: Path) -> None:
    """Prevents: frozen weights that move, or take memory for a gradient."""
    model = student_of(save(tmp_path / "base", "Bert"), rank=3, targets=("query", "value")).train()
    model(IDS, MASK).sum().backward()
    having = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert having == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert having == {name for name, _ in model.named_parameters() if is_lora(name)} and len(having) == 8
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 4 * 2 * 3 * 32


def test_the_merged_copy_leaves_the_training_alone(tmp_path: Path) -> None:
    """Prevents: weights that were merged and taken out again, in other bits, each time the best student so far is saved."""
    model = student_of(save(tmp_path / "base", "Bert"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = without_adapters(model.backbone)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    same = {name for name, tensor in plain.state_dict().items() if any(tensor.data_ptr() == own.data_ptr() for own in after.values())}
    assert "embeddings.word_embeddings.weight" in same and "encoder.layer.0.attention.self.query.weight" not in same


LINEAR = {"query", "key", "value", "dense"}
CHOICES: dict[str, tuple[str, tuple[str, ...], set[str], int]] = {
    "peft's choice": ("Bert", (), {"query", "value"}, 4),
    "peft's choice of a decoder": ("Qwen3", (), {"q_proj", "v_proj"}, 4),
    "none of peft's": ("ModernBert", (), {"Wqkv", "Wo", "Wi"}, 12),
    "all": ("Bert", ("all-linear",), LINEAR, 12),
    "named": ("Bert", ("key", "1.output.dense"), {"key", "dense"}, 3),
    "all of a decoder": ("Qwen3", ("all-linear",), {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, 14),
    "transposed": ("GPT2", (), {"c_attn"}, 2),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_targets(tmp_path: Path, choice: str) -> None:
    """Prevents: an adapter on a pooler that nothing reads, or none on layers that were asked for."""
    architecture, targets, names, count = CHOICES[choice]
    model = student_of(save(tmp_path / "base", architecture), targets=targets, trained=False)
    found = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert {name.rpartition(".")[2] for name in found} == names and len(found) == count


def test_a_name_that_no_layer_has(tmp_path: Path) -> None:
    """Prevents: a misspelt target that trains fewer layers than was asked for, and an embedding table taken for a layer."""
    base = save(tmp_path / "base", "Bert")
    there = "it has dense, key, query, value, and all-linear stands for all"
    for name in ("qury", "word_embeddings", "all_linear"):
        with pytest.raises(UserError, match=rf"student\.lora\.targets: BertModel has no linear layer {name}; {there}"):
            key(base, targets=("query", name))
    with pytest.raises(UserError, match=r"no linear layer 1\.output\.dense"):
        key(base, targets=("1.output.dense",), layers=1)


def test_what_the_key_of_a_training_holds(tmp_path: Path) -> None:
    """Prevents: a run that goes on with other adapters; a run without any whose key is another than before."""
    base = save(tmp_path / "base", "Bert")
    assert key(base, rank=None) == key(base, rank=0) == {}
    assert key(base) == {"lora": {"rank": 4, "alpha": 8.0, "targets": ["query", "value"], "dropout": 0.0}}
    assert key(base, alpha=8) == key(base) == key(base, targets=("value", "query"))
    own = resolve_student(settings(base))
    assert own == resolve_student(settings(base, rank=None))


def test_settings_without_a_rank_are_refused() -> None:
    """Prevents: a training of all weights by who set alpha alone."""
    for words in ({"alpha": 8}, {"targets": ("query",)}, {"dropout": 0.1}, {"rank": 0, "alpha": 8}):
        with pytest.raises(ValueError, match="there are none: set rank"):
            Lora(**words)


def test_without_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an ImportError in place of the name of what to install."""
    base, imported = save(tmp_path / "base", "Bert"), builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return imported(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"student\.lora\.rank needs peft: pip install 'adam-distillation\[lora\]'"):
        key(base)


def test_an_adapter_gets_no_second_one(tmp_path: Path) -> None:
    """Prevents: a saved adapter whose base is one itself, which nothing opens."""
    from support.adapters import save_adapter

    adapter = save_adapter(tmp_path / "adapter", save(tmp_path / "base", "Bert"))
    with pytest.raises(UserError, match="is an adapter itself"):
        key(adapter)


def test_linear_layers_of_a_model(tmp_path: Path) -> None:
    """Prevents: targets that follow another order than the model's, and so another run each time."""
    model = DualEncoder(resolve_student(settings(save(tmp_path / "base", "Bert")))).backbone
    assert targets_in(model, ("value", "query")) == targets_in(model, ()) == [
        f"encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in ("query", "value")
    ]  # fmt: skip
