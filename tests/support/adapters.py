"""PEFT adapters of tiny checkpoints, trained by nobody: every tensor is drawn, so that a missing one shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def save_adapter(
    folder: Path, base: Path, *, head: bool = False, kind: str = "Lora", tokenizer: bool = False, auto: str | None = None, **config: Any
) -> Path:
    """An adapter of the checkpoint `base`, saved by peft itself; with a `head`, of a sequence classifier with one output.

    `auto` is the auto class that the adapter was trained on, `config` goes to the configuration of the `kind`.
    """
    import peft
    import transformers

    name = auto or ("AutoModelForSequenceClassification" if head else "AutoModel")
    model = getattr(transformers, name).from_pretrained(base, **({"num_labels": 1} if head else {}))
    given = {"target_modules": "all-linear", **({"task_type": "SEQ_CLS"} if head else {}), **config}
    wrapped = peft.get_peft_model(model, getattr(peft, f"{kind}Config")(**given))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.copy_(parameter + noise if "ia3" in key or "magnitude" in key else noise)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    if tokenizer:
        for file in TOKENIZER:
            shutil.copyfile(base / file, folder / file)
    return folder


def change_adapter(folder: Path, **changed: Any) -> Path:
    """Set keys of adapter_config.json; None takes a key away."""
    path = folder / "adapter_config.json"
    content = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def merged_by_peft(folder: Path, base: Path, auto: str, **given: Any) -> Any:
    """The model that peft makes of base and adapter."""
    import peft
    import transformers

    model = getattr(transformers, auto).from_pretrained(base, **given)
    return peft.PeftModel.from_pretrained(model, folder).merge_and_unload().eval()
