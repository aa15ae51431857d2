"""Attention masks made for the model, on a GPU, so that it need not look whether a batch has padding: looking waits for the device.

transformers makes a mask [n, 1, L, L] of the one that it is given, and none where nothing is padded, for which it reads the mask back in
every pass. A mask that has that shape already is taken as it is, by layers with a sliding window too: models that have some are left alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from retrieval.compute.probe import FP32_NOISE, agree, probe_batch, text_config
from trainer.steps.modes import in_mode


def whole_masks(model: Any) -> bool:
    """Have the model's `backbone` get masks [n, 1, L, L], where a trial shows that it reads them alike. Returns whether it does."""
    if getattr(text_config(model.backbone), "sliding_window", None) is not None:  # which may be longer than the texts of the trial
        return False
    with in_mode(model, training=False), torch.no_grad():
        ids, mask, _ = probe_batch(model.backbone)
        batches = [(ids, mask), (ids[:1], mask[:1])]  # the first text is the longest: nothing is padded
        expected = [model(*batch) for batch in batches]
        hook = model.backbone.register_forward_pre_hook(_whole, with_kwargs=True)
        try:
            same = all(agree(model(*batch), wanted, within=FP32_NOISE) for batch, wanted in zip(batches, expected, strict=True))
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):  # code of any model
            same = False
    if not same:
        hook.remove()
    return same


def _whole(backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    mask = kwargs.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return None
    whole = mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    return args, {**kwargs, "attention_mask": whole}
