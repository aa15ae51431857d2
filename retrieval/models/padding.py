"""Whether a text's result depends on the texts beside it: a batch is padded to its longest text, on the right, and masked.

Models that take the state of a text's last token (decoders with a head) find it by `config.pad_token_id`, whatever the mask says. So
padding has that id (`probe.pad_id_of`), not the tokenizer's, which may be another one. A text that ends in the padding token is read as
transformers reads it alone. What then still differs is found by trying it out, and refused: no padding id at all, states that mix along
the batch's length, a head that wants as many end tokens in every text.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from data.errors import UserError, first_line
from retrieval.compute.cpu_attention import own_attention
from retrieval.compute.probe import FP32_NOISE, Check, largest_difference, pad_id_of, probe_batch


def results_of(model: Any) -> Check:
    """What a model of token ids and mask alone gives, without a graph."""

    @torch.no_grad()
    def results(ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        return cast(Tensor, model(ids, mask))

    return results


def check_padding(model: Any, *, check: Check, option: str) -> None:
    """Raises UserError for a transformers model that gives a text another result in a batch than alone.

    The model is in fp32, in eval mode, on its device. `check` takes ids, mask and segments [n, L] and gives its results, [n] or [n, D].
    `option` is the setting that names it, for errors.
    """
    kind = type(model).__name__
    with own_attention(model):
        try:
            ids, mask, segments = probe_batch(model)
            together = check(ids, mask, segments)
            rows = enumerate(mask.sum(1).tolist())
            alone = torch.cat([check(*(part[row : row + 1, :length] for part in (ids, mask, segments))) for row, length in rows])
        except MemoryError:
            raise
        except Exception as error:  # code of any model
            remedy = "give a model of another architecture"
            if pad_id_of(model) is None:
                remedy = "its config.json has no pad_token_id: write one into it that no text ends in, such as the tokenizer's"
            reason = f"cannot compute a batch of texts of several lengths ({first_line(error)})"
            raise UserError(f"{option}: a {kind} {reason}; {remedy}") from error
    off = largest_difference(together, alone)
    if not off <= FP32_NOISE:
        raise UserError(
            f"{option}: a {kind} gives a text another result beside longer ones than alone (off by {off:.1%}), so its results would "
            "depend on how texts are put together: give a model that leaves padding out"
        )
