"""AdamW and its learning rate: linear warm-up (ADAM, 4.3), then linear decay to 0 (ours: the paper does not say)."""

from __future__ import annotations

import torch
from torch import nn


def learning_rate(step: int, *, peak: float, warmup_steps: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: the peak is reached at the last warm-up step, 0 just after the last step."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (steps - step) / max(1, steps - warmup_steps)


def make_optimizer(model: nn.Module, *, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW; biases and normalisation weights, the parameters of one dimension, do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)
