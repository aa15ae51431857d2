"""Model FLOP utilisation (MFU): the arithmetic that the model needs against what the device can do, both per second.

Counted as usual (PaLM, appendix B, arXiv 2204.02311): forward and backward pass once, no recomputation, no padding. The device's rate
is measured here, with a matrix product in the run's precision, instead of taken from a data sheet.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from retrieval.compute.probe import text_config

_SIZE = {"cpu": 1024, "cuda": 8192}
_SECONDS = 0.3


def training_flop(backbone: nn.Module, lengths: Iterable[int]) -> int:
    """Floating-point operations to train on sequences of these lengths once: 6 a weight and token, and attention's 12 L^2 D a layer.

    A frozen weight has no gradient: 4.
    """
    weights = [module.weight for module in backbone.modules() if isinstance(module, nn.Linear)]
    linear = sum((6 if weight.requires_grad else 4) * weight.numel() for weight in weights)
    config = text_config(backbone)
    attention = 12 * int(config.num_hidden_layers) * int(config.hidden_size)
    counts = np.fromiter(lengths, dtype=np.int64)
    return linear * int(counts.sum()) + attention * int((counts * counts).sum())


def measured_flop_rate(*, device: str, precision: str) -> float:
    """FLOP a second of a square matrix product, the best of some."""
    size = _SIZE[device]
    best = 0.0
    factor = torch.ones(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    began = time.perf_counter()
    while not best or time.perf_counter() - began < _SECONDS:
        started = time.perf_counter()
        (factor @ factor)[0, 0].item()  # reading a number waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best
