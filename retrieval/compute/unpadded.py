"""Attention without padding on GPUs: a batch goes through the layer stack as one row of its real tokens.

The stack of a BERT-like model (its `encoder`) is wrapped. [n, L] states are packed to [1, tokens], and every layer's attention looks only
inside its own sequence (torch's variable-length kernel). The result is unpacked, so embeddings and head see what they always see.
It is used only where a check at the start gives the logits of the padded path.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from retrieval.compute.probe import agree, probe_batch
from retrieval.models.loading import base_of

ATTENTION = "unpadded"
# Of a text's states without the mean of all. Two ways to round in bf16 differ by 0.01 in all-MiniLM-L6 and by 0.12 in twelve layers of
# random weights; texts that see each other, by more than 1.
_TOLERANCE = 0.25


@dataclass
class Pack:
    """Where the sequences of the batch in work begin and end; read by the attention of every layer."""

    starts: Tensor  # [n + 1] int32
    longest: int
    places: Tensor  # [T] int64, of the real tokens in the [n * L] of the batch

    @staticmethod
    def of(mask: Tensor) -> Pack:
        """From the [n, L] mask. Its device is waited for."""
        lengths = mask.sum(1)
        starts = nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        return Pack(starts, int(lengths.max()), mask.flatten().nonzero()[:, 0])


_current: Pack | None = None
_known: Pack | None = None


@contextlib.contextmanager
def known_pack(pack: Pack) -> Iterator[None]:
    """In the block, batches are of these lengths, which the host knows: the device is not asked for them."""
    global _known
    _known = pack
    try:
        yield
    finally:
        _known = None


def install(model: nn.Module) -> bool:
    """Wrap the model's layer stack if that gives the same states, by our attention in every layer.

    Returns whether it was done; a model of another kind, one with an attention of its own, an old GPU or another result leaves the padded
    path in place.
    """
    base = base_of(model)
    config = cast(Any, model.config)
    stack = getattr(base, "encoder", None)
    if not isinstance(stack, nn.Module) or not isinstance(layers := getattr(stack, "layer", None), nn.ModuleList):
        return False
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ids, mask, _ = probe_batch(model)
    before = config._attn_implementation
    calls: list[nn.Module] = []

    def noted(module: nn.Module, *parts: Any, **options: Any) -> tuple[Tensor, None]:
        calls.append(module)
        return _attention(module, *parts, **options)

    @torch.inference_mode()
    def states() -> Tensor:
        return cast(Tensor, base(input_ids=ids, attention_mask=mask).last_hidden_state).float()

    def own_part(states: Tensor) -> Tensor:  # [n, L * H]; what all tokens have in common would hide what a wrong attention spoils
        return ((states - centre) * mask[..., None]).flatten(1)

    padded = states()
    centre = padded[mask.bool()].mean(0)
    base.encoder = UnpaddedStack(stack)
    hook = base.register_forward_pre_hook(base.encoder.note_mask, with_kwargs=True)
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, noted)
    config._attn_implementation = ATTENTION
    try:
        same = agree(own_part(states()), own_part(padded), within=_TOLERANCE) and len(calls) == len(layers)
    except (RuntimeError, TypeError, ValueError, LookupError, AssertionError, AttributeError, ImportError):
        same = False
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
    if not same:
        base.encoder, config._attn_implementation = stack, before
        hook.remove()
    return same


class UnpaddedStack(nn.Module):
    """A layer stack that works on the real tokens only."""

    def __init__(self, stack: nn.Module) -> None:
        super().__init__()
        self.stack = stack
        self._mask: Tensor | None = None

    def note_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The [n, L] mask of the batch, before the model makes another shape of it."""
        self._mask = kwargs["attention_mask"].bool()

    def forward(self, hidden_states: Tensor, *unused: Any, **options: Any) -> Any:
        """[n, L, H] states through the stack; places of padding come out as zeros."""
        global _current
        assert self._mask is not None
        _current = _known or Pack.of(self._mask)
        places, states = _current.places, hidden_states.flatten(0, 1)
        try:
            kept = {name: value for name, value in options.items() if name != "attention_mask"}
            output = self.stack(states.index_select(0, places)[None], attention_mask=None, **kept)
        finally:
            _current = None
        padded = states.new_zeros(states.shape, dtype=output[0].dtype).index_copy_(0, places, output[0][0])
        output.last_hidden_state = padded.view(hidden_states.shape)
        return output


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None, **more: Any
) -> tuple[Tensor, None]:
    """[1, h, tokens, d] each to [1, tokens, h, d], every sequence for itself."""
    assert _current is not None
    unknown = [attention_mask, *(more.get(name) for name in ("sliding_window", "softcap", "s_aux"))]
    if any(part is not None for part in unknown) or more.get("is_causal") or getattr(module, "is_causal", False):
        raise NotImplementedError("windows, capped scores, sinks, biases and causal masks")
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    if not query.is_cuda:
        return _sequence_by_sequence(query, key, value, _current, scaling)[None], None
    from torch.nn.attention.varlen import varlen_attn

    starts, longest = _current.starts, _current.longest
    return cast(Tensor, varlen_attn(query, key, value, starts, starts, longest, longest, scale=scaling))[None], None


def _sequence_by_sequence(query: Tensor, key: Tensor, value: Tensor, pack: Pack, scaling: float | None) -> Tensor:
    """What the kernel computes, in plain words: for devices that lack it, and for tests."""
    result = torch.empty_like(query)
    for start, stop in itertools.pairwise(pack.starts.tolist()):
        q, k, v = (part[start:stop].transpose(0, 1)[None] for part in (query, key, value))
        result[start:stop] = nn.functional.scaled_dot_product_attention(q, k, v, scale=scaling)[0].transpose(0, 1)
    return result
