"""Masks that are made for the model, and the models that take them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkpoints import save

from data.config.settings import Student
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.student import resolve_student
from trainer.steps.attention_mask import whole_masks


@pytest.mark.medium
def test_windows_longer_than_the_trial_stay(tmp_path: Path) -> None:
    """Prevents: local layers that look at all of a long text, because the texts of the trial lay within one window."""
    folder = save(tmp_path / "student", "ModernBert", local_attention=128)  # 64 tokens to each side, as in the published ones
    model = DualEncoder(resolve_student(Student(model=str(folder), query_tokens=128, passage_tokens=128))).eval()
    ids = torch.arange(5, 125)[None].repeat(2, 1)
    mask = (torch.arange(120) < torch.tensor([[120], [90]])).long()
    with torch.no_grad():
        before = model(ids, mask)
        used = whole_masks(model)
        after = model(ids, mask)
    assert not used and torch.equal(after, before)
