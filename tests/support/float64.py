"""A student in float64, for references of a step."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from transformers import AutoModel


class Float64Encoder(nn.Module):
    """The student without the rounding of vectors to fp32."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.backbone = AutoModel.from_pretrained(folder, add_pooling_layer=False).double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).double()
        return nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)
