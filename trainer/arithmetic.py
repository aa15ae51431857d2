"""How the device does its arithmetic: TF32 products, and operations that repeat to the bit. Both are the process's, not a model's.

`torch.use_deterministic_algorithms` also decides for attention (its backward pass on a GPU then adds in one order) and for compiled code
(which then chooses no kernel by a stop-watch). cuBLAS needs a fixed workspace, which it reads when CUDA starts; cuDNN's attention is left
out, whose order of sums nobody promises.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from data.config.settings import Train
from data.errors import UserError, first_line
from retrieval.compute import precision
from retrieval.compute.probe import probe_batch
from trainer.steps.prepare_model import Model

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_FIXED = (":4096:8", ":16:8")  # with which cuBLAS repeats; the first is the faster one
_REMEDY = "leave train.deterministic out"


def set_arithmetic(settings: Train) -> None:
    """Set up this process, before CUDA starts.

    Raises UserError: TF32 where it is not computed, or for products that are not fp32; a workspace of cuBLAS that does not repeat.
    """
    if settings.tf32:
        _check_tf32(settings)
        torch.backends.cuda.matmul.fp32_precision = "tf32"  # the legacy `allow_tf32` must not be read after it
    if settings.deterministic:
        given = os.environ.setdefault(_WORKSPACE, _FIXED[0])
        if given not in _FIXED:
            raise UserError(f"{_WORKSPACE}={given} in the environment does not repeat: unset it, or set {_FIXED[0]}, or {_REMEDY}")
    if torch.are_deterministic_algorithms_enabled() != settings.deterministic:
        torch.use_deterministic_algorithms(settings.deterministic)
        torch.backends.cuda.enable_cudnn_sdp(not settings.deterministic)


def _check_tf32(settings: Train) -> None:
    if settings.device != "cuda":
        raise UserError("train.tf32=true is for GPUs: leave it out with train.device=cpu")
    if precision.resolve(settings.precision, device=settings.device) != "fp32":
        raise UserError("train.tf32=true is of fp32 products, and this run computes in bf16: set train.precision=fp32, or leave it out")
    if not torch.cuda.is_tf32_supported():
        raise UserError("train.tf32=true: this GPU has no TF32 (compute capability 8.0 on); leave it out")


@contextlib.contextmanager
def refused_where_it_cannot_repeat() -> Iterator[None]:
    """Around operations of any model and loss. Raises UserError in place of torch's error where one of them has no way that repeats."""
    try:
        yield
    except RuntimeError as error:
        if not torch.are_deterministic_algorithms_enabled() or "determinis" not in str(error):
            raise
        raise UserError(f"train.deterministic=true: {first_line(error).split('. ')[0]}; {_REMEDY}") from error


def check_repeats(model: Model) -> None:
    """Go through the model once, forward and back, with operations that repeat. Raises UserError where it has another one.

    The model is as before: no gradient stays, and no random number is drawn.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return
    ids, mask, _ = probe_batch(model.backbone)
    devices = [ids.device] if ids.is_cuda else []
    with torch.random.fork_rng(devices=devices), refused_where_it_cannot_repeat():
        model(ids, mask).float().sum().backward()
    model.zero_grad(set_to_none=True)
