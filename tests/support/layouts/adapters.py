"""PEFT adapters in their own folders, as a hub has them: adapter_config.json and adapter_model.safetensors, the base elsewhere.

Made with library peft where it is installed; a row whose layout needs it is left out elsewhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from support.layouts.tokenizers import TOKENIZERS
from support.layouts.weights import Layout

HAS_PEFT = find_spec("peft") is not None


def adapter(base: Layout, tokenizer: str | None, *, head: bool, targets: Sequence[str], beside: bool = False) -> Layout:
    """An adapter whose base lies in the folder `base` beside it. `head`: of a sequence classifier, whose head comes with the adapter.

    Args:
        base: layout of the base.
        tokenizer: the adapter's own, None where it has none.
        head: whether the base is a sequence classifier.
        targets: names of the layers adapted.
        beside: whether config.json of the base lies in the adapter's folder, too.
    """

    def build(folder: Path) -> Path:
        import torch
        import transformers
        from peft import LoraConfig, get_peft_model

        below = base(folder.parent / f"{folder.name}-base")
        auto = transformers.AutoModelForSequenceClassification if head else transformers.AutoModel
        torch.manual_seed(0)
        config = LoraConfig(task_type="SEQ_CLS" if head else "FEATURE_EXTRACTION", r=4, lora_alpha=16, target_modules=list(targets))
        model = get_peft_model(auto.from_pretrained(below, dtype=torch.float32), config)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
        model.save_pretrained(folder)
        if tokenizer:
            TOKENIZERS[tokenizer](folder)
        if beside:
            shutil.copyfile(below / "config.json", folder / "config.json")
        return folder

    return build
