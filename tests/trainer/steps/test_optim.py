from __future__ import annotations

import pytest
import torch

from trainer.steps.optim import learning_rate, make_optimizer


def test_rate_rises_to_the_peak_and_falls_to_zero() -> None:
    """A first step at rate 0 is lost; a schedule that ends above 0 stops in mid-air."""
    rates = [learning_rate(step, peak=1.0, warmup_steps=4, steps=10) for step in range(11)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0])
    assert learning_rate(0, peak=1.0, warmup_steps=0, steps=1) == 1.0
    assert learning_rate(2, peak=1.0, warmup_steps=100, steps=3) == 0.03


def test_biases_and_norms_do_not_decay() -> None:
    """Decay pulls normalisation weights towards 0."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    decayed, plain = make_optimizer(model, weight_decay=0.01).param_groups
    assert [p is model[0].weight for p in decayed["params"]] == [True] and decayed["weight_decay"] == 0.01
    assert len(plain["params"]) == 3 and plain["weight_decay"] == 0.0
