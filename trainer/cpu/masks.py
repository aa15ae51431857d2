"""Masks of dropout for CPUs: 16 random bits make an integer of ones (kept) or zeros (dropped), and a bitwise AND applies it.

The probability is rounded to a multiple of 2^-15, and the scale 1 / (1 - p) is that of the rounded one, so the expectation is exact. The
stream is the thread's, so micro-batches that are computed at the same time have the masks that they would have alone.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

_LEVELS = 1 << 15
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number


class _Stream(threading.local):
    """Where the thread's stream stands: the next mask is a function of both, its shape and p."""

    state: tuple[int, int] = (0, 0)  # key, masks drawn since it was set


mask_stream = _Stream()


def seed_masks(key: int) -> None:
    """Begin this thread's stream again. The key is at least 0."""
    mask_stream.state = key, 0


def keep_mask(shape: torch.Size, *, p: float) -> Tensor:
    """The thread's next mask: int16, 0 with probability p, and else -1."""
    key, drawn = mask_stream.state
    mask_stream.state = key, drawn + 1
    count = shape.numel()
    # SFC64 takes a third of the time of torch's Mersenne twister; the stream of a bit generator is the same in every numpy version.
    bits = np.random.SFC64([key, drawn]).random_raw((count + 3) // 4)
    mask = torch.from_numpy(bits.view(np.int16))[:count].view(shape)
    mask.bitwise_or_(-_LEVELS).add_(_dropped_levels(p))  # -2^15 to -1, each as likely; as many of them reach 0
    return mask.bitwise_right_shift_(15)


def _dropped_levels(p: float) -> int:
    return round(p * _LEVELS)


def keep_scale(p: float) -> float:
    """What keeps the expectation: 1 / (1 - p), p rounded as the masks have it."""
    return _LEVELS / (_LEVELS - _dropped_levels(p))


def drop(values: Tensor, mask: Tensor | None) -> Tensor:
    """Values where the mask is -1, and 0 where it is 0; without a mask the values themselves."""
    if mask is None:
        return values
    integers = _INTEGERS[values.element_size()]
    return values.view(integers).bitwise_and(mask.to(integers)).view(values.dtype)
