"""LoRA training of a student (Hu et al., 2021, arXiv 2106.09685): low-rank updates beside frozen linear layers, put there by peft.

    W x + alpha / rank * B A x        A is drawn from the seed, B is 0 at first: the student begins as the model it was

Only A and B are trained, have states of the optimizer and lie in checkpoints.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from data.config.settings import Lora, Student
from data.digests import hash64
from data.errors import UserError
from retrieval.model_files.adapter_files import ADAPTER_WEIGHTS, EXTRA
from retrieval.model_files.architectures import student_class
from retrieval.model_files.files import is_adapter
from retrieval.models.first_layers import keep_first_layers
from retrieval.models.student import StudentSpec

ALL_LINEAR = "all-linear"
_OURS = re.compile(r"\.lora_[AB]\.default\.")  # as peft names them; a checkpoint's own code may have weights named lora_A, too
_IN_A_STACK = re.compile(r"\.\d+\.")


def lora_key(spec: StudentSpec, lora: Lora) -> dict[str, Any]:
    """What the key of a training holds of the adapters: nothing without any. Loads no weights.

    Raises UserError: no peft, a target that no linear layer of the model is named after, a student that is an adapter itself.
    """
    if not lora.rank:
        return {}
    _peft()
    if is_adapter(spec.weights_folder):
        raise UserError(
            f"student.lora: {spec.weights_folder} is an adapter itself, on which no second one can be opened; give a folder in which it is "
            "merged (merge_and_unload), or train all weights with student.lora.rank=null"
        )
    names = {name.rpartition(".")[2] for name in targets_in(_skeleton(spec), lora.targets)}
    return {"lora": {"rank": lora.rank, "alpha": _alpha(lora), "targets": sorted(lora.targets or names), "dropout": lora.dropout}}


def add_lora(model: Any, student: Student, *, seed: int) -> Any:
    """The opened student `model`, frozen, with an adapter beside each target; the model itself where `student.lora` has no rank."""
    lora = student.lora
    if not lora.rank:
        return model
    names = targets_in(model.backbone, lora.targets)
    layers = [model.backbone.get_submodule(name) for name in names]
    alpha = _alpha(lora)
    config = _peft().LoraConfig(
        r=lora.rank, lora_alpha=int(alpha) if alpha.is_integer() else alpha, lora_dropout=lora.dropout, target_modules=names,
        task_type="FEATURE_EXTRACTION", fan_in_fan_out=not isinstance(layers[0], nn.Linear), **_base_of(model.spec, student),
    )  # fmt: skip
    model.requires_grad_(False)
    _peft().inject_adapter_in_model(config, model.backbone)
    for name, parameter in model.backbone.named_parameters():
        if ".lora_A." in name:  # as peft draws it, but from the layer's own generator
            bound = parameter.shape[1] ** -0.5
            nn.init.uniform_(parameter, -bound, bound, generator=torch.Generator().manual_seed(hash64("lora", seed, name)))
    return model.eval()


def has_lora(model: nn.Module) -> bool:
    """Whether adapters are trained in place of the model's weights."""
    return any(map(is_lora, dict(model.named_parameters())))


def is_lora(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return bool(_OURS.search(name))


def targets_in(model: Any, targets: Sequence[str]) -> list[str]:
    """Names of the linear layers that get an adapter. Raises UserError for a target that none is named after."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    from transformers.pytorch_utils import Conv1D

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    stack = [name for name in linear if _IN_A_STACK.search(name)]
    if not targets:
        usual = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
        return [name for name in stack if isinstance(usual, list) and _is_named(name, usual)] or stack
    if list(targets) == [ALL_LINEAR]:
        return stack
    unknown = [target for target in targets if not any(_is_named(name, [target]) for name in linear)]
    if unknown:
        there = sorted({name.rpartition(".")[2] for name in linear})
        raise UserError(
            f"student.lora.targets: {type(model).__name__} has no linear layer {', '.join(unknown)}; it has {', '.join(there)}, and "
            f"{ALL_LINEAR} stands for all of the layer stack"
        )
    return [name for name in linear if _is_named(name, targets)]


def without_adapters(backbone: Any) -> Any:
    """The model with its updates added to the weights: a copy, which shares all memory but that of these weights."""
    if not has_lora(backbone):
        return backbone
    from peft.tuners.tuners_utils import BaseTunerLayer

    memo: dict[int, Any] = {id(buffer): buffer for buffer in backbone.buffers()}
    for parameter in backbone.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    plain = copy.deepcopy(backbone, memo)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)  # into new memory; taken out again it would leave other bits
            plain.set_submodule(name, layer.get_base_layer())
    del plain.peft_config
    return plain


def save_adapter(model: Any, folder: Path) -> None:
    """Save the adapters of a student as a folder that `PeftModel.from_pretrained(base, folder)` opens."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone, spec = model.backbone, model.spec
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in backbone.named_parameters() if is_lora(name)}
    names = {name: f"base_model.model.{name.replace('.default.', '.')}" for name in tensors}
    save_file({names[name]: tensor for name, tensor in tensors.items()}, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = copy.copy(backbone.peft_config["default"])
    config.inference_mode = True
    # In full: the base as others open it may have more layers of the same name, which were not trained (a pooler, those cut off).
    config.target_modules = sorted({name.partition(".lora_")[0] for name in tensors})
    config.save_pretrained(folder)
    base = config.base_model_name_or_path
    cut = "" if spec.layers is None else f" It is of the first {spec.layers} layers of its base."
    use = f"Token vectors are pooled by {spec.pooling}{' and normalised' if spec.normalize else ''}; the prompts are "
    use += f"{spec.query_prefix!r} for queries and {spec.passage_prefix!r} for passages."
    card = f"---\nbase_model: {base}\nlibrary_name: peft\n---\n\nA LoRA adapter of {base}, trained as a dual encoder.{cut} {use}\n"
    (folder / "README.md").write_text(card, encoding="utf-8")


def _is_named(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _alpha(lora: Lora) -> float:
    return lora.alpha or 2.0 * (lora.rank or 0)


def _base_of(spec: StudentSpec, student: Student) -> dict[str, Any]:
    """How peft finds the base again: a hub id, or the folder of the weights."""
    is_hub_id = not Path(student.model).expanduser().is_dir() and spec.weights_folder == spec.folder
    return {
        "base_model_name_or_path": student.model if is_hub_id else str(spec.weights_folder),
        "revision": student.revision if is_hub_id else None,
    }


def _skeleton(spec: StudentSpec) -> Any:
    """The student without weights."""
    import transformers

    trusted = {"trust_remote_code": spec.trust_remote_code}
    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(spec.weights_folder, **trusted)
        kind = getattr(transformers, student_class(spec.weights_folder))
        model = kind.from_config(config, **trusted) if hasattr(kind, "from_config") else kind(config)
    if spec.layers is not None:
        keep_first_layers(model, spec.layers)
    return model


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError(f"student.lora.rank {EXTRA}") from error
    return peft
