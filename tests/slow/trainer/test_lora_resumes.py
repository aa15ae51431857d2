"""Trainings of adapters alone, of 20 steps, killed in the middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.lora_runs import assert_resumed_equals_unbroken

from retrieval.compute.precision import cpu_computes_bf16

WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "plain PyTorch": {"train__cpu_fast_path": False},
    "in-batch negatives, two at a time": {"train__objective__in_batch": "both", "train__threads": 2, "train__workers": 2},
    "bf16, activations computed again": {"train__precision": "bf16", "train__activation_checkpointing": True},
    "near its start": {"train__recipe": "prod"},
}


@pytest.mark.parametrize("way", WAYS)
def test_killed_and_resumed_equals_unbroken(
    tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Prevents: adapters drawn anew, moments lost, dropout masks of other draws, or a gradient of a frozen weight in a run that goes on."""
    if "bf16" in way and not cpu_computes_bf16():
        pytest.skip("this processor would emulate bf16")
    assert_resumed_equals_unbroken(tmp_path, experiment_file, shards, monkeypatch, killed=10, **WAYS[way])
