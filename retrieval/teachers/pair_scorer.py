"""A cross-encoder in training: a transformers sequence-classification model with one output, opened from and saved as its common folder.

Sequences are one array of numbers each for all that encodes them: a pair's segment ids are packed into the upper bits of its token ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.digests import hash64
from retrieval.checkpoints.checks import has_head
from retrieval.checkpoints.files import copy_tokenizer
from retrieval.models.loading import open_model
from retrieval.teachers.pair_tokens import PairEncoding

_SEGMENT_BIT = 24  # no vocabulary is larger than 2^24
_ID_BITS = (1 << _SEGMENT_BIT) - 1


def packed(pair: PairEncoding) -> NDArray[np.int32]:
    """[L] token ids with the segment ids above them."""
    return pair.ids | pair.segments << _SEGMENT_BIT


class PairScorer(nn.Module):
    """A pair's logit, as a vector of one dimension."""

    size = 1
    option = "teacher.model"  # the setting that names it, for errors

    def __init__(self, folder: Path, *, seed: int, trusted: bool = False) -> None:
        """Open a cross-encoder, or an encoder, which gets a new head drawn from the seed.

        `trusted`: whether code that comes with the checkpoint may run.

        What its files can tell has been checked (`check_training_start`). Raises UserError where weights are missing but for a whole head.
        """
        super().__init__()
        self.source = folder
        self.trusted = trusted
        torch.manual_seed(hash64("head", seed))
        self.backbone: Any = open_model(
            "AutoModelForSequenceClassification", folder, option=self.option, trusted=trusted, new_head=not has_head(folder), num_labels=1
        )
        self._has_segments = getattr(self.backbone.config, "type_vocab_size", 1) > 1

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[n, L] packed pairs and mask to [n, 1] fp32 logits."""
        given = {"input_ids": input_ids & _ID_BITS, "attention_mask": attention_mask}
        if self._has_segments:
            given["token_type_ids"] = input_ids >> _SEGMENT_BIT
        return self.backbone(**given).logits.float()

    def save(self, folder: Path) -> None:
        """Save as a folder that `teacher.model` takes."""
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.save_pretrained(folder, safe_serialization=True)
        copy_tokenizer(self.source, folder)
