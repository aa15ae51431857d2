"""Every weight that a model computes with comes from its file, for all architectures; what does not is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.checkpoints import ARCHITECTURES, change_json, change_weights, randomised, save, save_tokenizer
from torch import Tensor

from data.config.settings import Student
from data.errors import UserError
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.models.loading import open_model
from retrieval.models.student import resolve_student
from retrieval.teachers.cross_encoder import TorchCrossEncoder
from retrieval.teachers.pair_scorer import PairScorer

KINDS = [(name, head) for name in ARCHITECTURES if name != "MobileBert" for head in (False, True)]  # MobileBert: see test_padding.py
NAMES = [f"{name}-{'teacher' if head else 'student'}" for name, head in KINDS]
TEXTS = ["ba", "be bi bo", " ".join(["fo gu zaxe ka"] * 8)]

Damage = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def copied(source: Path, folder: Path) -> Path:
    import shutil

    shutil.copytree(source, folder)
    return folder


def opened(folder: Path, head: bool) -> Any:
    """As a stage opens it."""
    if head:
        return TorchCrossEncoder(folder, precision="fp32", device="cpu")
    student = Student(model=str(folder), pooling="mean", query_tokens=40, passage_tokens=40)
    return TextEncoder(resolve_student(student), precision="fp32", device="cpu", batch_tokens=200)


def results(model: Any) -> Any:
    if isinstance(model, TextEncoder):
        return model.passages(TEXTS)
    ids = np.array([[7, 8, 9, 10, 11, 12], [13, 14, 15, 9, 0, 0]], dtype=np.int64)
    return model.logits(ids, (np.arange(6) < [[6], [4]]).astype(np.int64), np.zeros_like(ids))


@pytest.mark.medium
@pytest.mark.parametrize(("name", "head"), KINDS, ids=NAMES)
def test_two_loads_are_the_same_bits(built: Any, name: str, head: bool) -> None:
    """Prevents: a weight drawn at random, another one in each worker; a checkpoint that is whole and refused."""
    first, second = (results(opened(built(name, head), head)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first).all()


def a_weight(tensors: dict[str, Tensor]) -> str:
    """The name of a matrix in the middle of the stack of layers."""
    names = [name for name, tensor in tensors.items() if tensor.ndim == 2 and "embed" not in name and "pooler" not in name]
    return sorted(names)[len(names) // 2]


def without(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != a_weight(tensors)}


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace(".", ".old_", 1) if name == a_weight(tensors) else name: tensor for name, tensor in tensors.items()}


def reshaped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, a_weight(tensors): torch.zeros(3, 5)}


def prefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


DAMAGES: dict[str, tuple[Damage, str]] = {
    "without": (without, r"lacks \d of its weights"), "renamed": (renamed, r"lacks \d of its weights"),
    "reshaped": (reshaped, r"in another shape \(.*\[\d, 5\] in the file"), "prefixed": (prefixed, "begin with 'module"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("name", "head"), KINDS, ids=NAMES)
def test_a_weight_that_is_not_there_is_refused_by_name(built: Any, tmp_path: Path, name: str, head: bool, damage: str) -> None:
    """Prevents: logits and vectors of random weights in the store, by a file that lost, renamed or cut a tensor, without a word."""
    change, message = DAMAGES[damage]
    folder = copied(built(name, head), tmp_path / "model")
    lost: list[str] = []

    def note(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        lost.append(a_weight(tensors))
        return change(tensors)

    change_weights(folder, note)
    with pytest.raises(UserError, match=message) as refused:
        opened(folder, head)
    assert str(refused.value).startswith("teacher.model: " if head else "student.model: ")
    if damage != "prefixed" and name not in ("NomicBert", "Gte"):  # their files have fused tensors under other names
        assert lost[0].removeprefix("module.") in str(refused.value)


@pytest.mark.medium
def test_every_single_tensor_counts(built: Any, tmp_path: Path) -> None:
    """Prevents: a kind of tensor (a bias, a norm, a head) whose loss is passed over."""
    from safetensors import safe_open

    with safe_open(built("Bert", True) / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert any("pooler" in name for name in names) and any("classifier" in name for name in names)
    for number, name in enumerate(names):
        folder = copied(built("Bert", True), tmp_path / str(number))
        change_weights(folder, lambda tensors, name=name: {key: tensor for key, tensor in tensors.items() if key != name})
        with pytest.raises(UserError, match=rf"lacks 1 of its weights \({name}\)"):
            open_model("AutoModelForSequenceClassification", folder, option="teacher.model")


HEADLESS = [name for name in ARCHITECTURES if name not in ("MobileBert",)]


@pytest.mark.parametrize("name", HEADLESS)
def test_a_backbone_is_no_teacher(built: Any, tmp_path: Path, name: str) -> None:
    """Prevents: an encoder whose config.json says one label, scoring all pairs by a head drawn at random."""
    folder = copied(built(name, False), tmp_path / "model")
    change_json(folder / "config.json", id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    with pytest.raises(UserError, match=r"lacks \d of its weights .* scores at random: give a trained cross-encoder"):
        opened(folder, True)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "MobileBert"])
def test_a_new_head_is_for_training_alone(built: Any, tmp_path: Path, name: str) -> None:
    """Prevents: training a cross-encoder refused for want of the head that it is to learn; a backbone that is drawn with it."""
    folder = built(name, False)
    first, second = (PairScorer(folder, seed=1).backbone.state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    broken = change_weights(copied(folder, tmp_path / "broken"), without)
    with pytest.raises(UserError, match=r"lacks \d of its weights"):
        PairScorer(broken, seed=1)


def test_half_a_head_is_no_new_head(built: Any, tmp_path: Path) -> None:
    """Prevents: a head of which one tensor is lost, mended by chance where a plain encoder would be given a new one."""
    folder = copied(built("Roberta", True), tmp_path / "model")
    change_weights(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "classifier.out_proj.weight"})
    change_json(folder / "config.json", architectures=["RobertaModel"])
    with pytest.raises(UserError, match=r"classifier\.out_proj\.weight"):
        PairScorer(folder, seed=1)
    whole = copied(built("Roberta", True), tmp_path / "whole")
    change_weights(whole, lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier")})
    with pytest.raises(UserError, match="lacks 4 of its weights"):  # config.json promises a trained head
        PairScorer(whole, seed=1)


@pytest.mark.parametrize("name", ["Bert", "ModernBert", "Qwen3", "DistilBert"])
def test_layers_that_config_leaves_out_are_told(built: Any, tmp_path: Path, name: str) -> None:
    """Prevents: a shorter model than the one in the file, since config.json is of another one."""
    folder = copied(built(name, False), tmp_path / "model")
    changed: dict[str, Any] = {"n_layers": 1} if name == "DistilBert" else {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    change_json(folder / "config.json", **changed)
    with pytest.raises(UserError, match=r"has \d+ that this class has no place for \(.*1.*config\.json has fewer layers"):
        opened(folder, False)


def test_biases_without_a_place_are_told(tmp_path: Path) -> None:
    """Prevents: the biases of a checkpoint left out, as config.json wants none: another function of the same weights."""
    folder = save(tmp_path, "Llama", attention_bias=True)
    change_json(folder / "config.json", attention_bias=False)
    with pytest.raises(UserError, match=r"has 8 that this class has no place for \(layers\.0\.self_attn\.k_proj\.bias"):
        opened(folder, False)


OTHER_TASKS = [
    ("Bert", "ForMaskedLM"), ("Bert", "ForPreTraining"), ("Bert", "ForSequenceClassification"), ("XLMRoberta", "ForMaskedLM"),
    ("DistilBert", "ForMaskedLM"), ("Electra", "ForPreTraining"), ("Electra", "ForMaskedLM"), ("MPNet", "ForMaskedLM"),
    ("DebertaV2", "ForMaskedLM"), ("ModernBert", "ForMaskedLM"), ("Albert", "ForPreTraining"), ("EuroBert", "ForMaskedLM"),
    ("NomicBert", "ForMaskedLM"), ("Qwen3", "ForCausalLM"), ("Llama", "ForCausalLM"), ("Gemma3Text", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "task"), OTHER_TASKS)
def test_heads_of_other_tasks_are_left_alone(tmp_path: Path, name: str, task: str | None) -> None:
    """Prevents: BERT as it is published, with the heads that it was trained with, refused as a student or as a start for training."""
    folder = save(tmp_path, name)
    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, f"{name}{task}") if task else transformers.Gemma3ForCausalLM
    randomised(model_class(config), 3).save_pretrained(folder)
    model, bare = open_model("AutoModel", folder, option="student.model"), model_class.from_pretrained(folder)
    inside = getattr(bare, bare.base_model_prefix).state_dict()
    assert all(torch.equal(tensor, inside[key]) for key, tensor in model.state_dict().items() if key in inside)
    if name != "Gemma3Text" and task != "ForSequenceClassification":
        PairScorer(folder, seed=0)


def test_names_of_long_ago_are_the_same_weights(built: Any, tmp_path: Path) -> None:
    """Prevents: checkpoints of 2018 refused (gamma and beta, positions and rotations saved as weights, poolers), or read otherwise."""
    folder = copied(built("Bert", False), tmp_path / "model")

    def old(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta") for name in tensors}
        more = {"embeddings.position_ids": torch.arange(128)[None], "pooler.dense.weight": torch.zeros(32, 32)}
        return {**{f"bert.{names[name]}": tensor for name, tensor in tensors.items() if "pooler" not in name}, **more}

    change_weights(folder, old)
    np.testing.assert_array_equal(results(opened(folder, False)), results(opened(built("Bert", False), False)))


def test_a_folder_that_cannot_be_opened_is_a_sentence(tmp_path: Path) -> None:
    """Prevents: a traceback out of transformers for a model type of the future, a broken file, or none."""
    folder = save(tmp_path, "Bert")
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot be opened by transformers' AutoModel"):
        open_model("AutoModel", folder, option="student.model")
    change_json(folder / "config.json", model_type="of-2031")
    with pytest.raises(UserError, match="of-2031"):
        open_model("AutoModel", folder, option="student.model")
    save_tokenizer(folder, "bert")
    (folder / "tokenizer.json").write_text("{}")
    from retrieval.models.tokenizer import Tokenizer

    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        Tokenizer(folder)


@pytest.mark.parametrize(
    "said",
    [
        {"hidden_act": "nope"}, {"num_attention_heads": 0}, {"vocab_size": "many"}, {"pad_token_id": 99_999}, {"text_config": 5},
        {"_attn_implementation": "flash_attention_2"}, {"transformers_weights": 3},
    ],
)  # fmt: skip
@pytest.mark.parametrize("head", [False, True])
def test_a_configuration_that_no_class_takes_is_a_sentence(built: Any, tmp_path: Path, head: bool, said: dict[str, Any]) -> None:
    """Prevents: a traceback for all but two of the kinds of error that transformers raises: the first way of opening let them through."""
    folder = copied(built("Bert", head), tmp_path / "changed")
    change_json(folder / "config.json", **said)
    with pytest.raises(UserError, match=r"^(student|teacher)\.model: .*[^:]$"):
        opened(folder, head)
