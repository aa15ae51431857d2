"""TF32 products of fp32 matrices for a while, by the one setting that cuBLAS goes by."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def tf32_products() -> Iterator[None]:
    """Inside, fp32 matrices are multiplied in TF32 on GPUs that have it. The caller's setting is restored, by whichever name it was made.

    PyTorch has this setting twice. `allow_tf32` writes both; `fp32_precision` writes its own, which alone decides, and while the two
    disagree `allow_tf32` can be neither read nor trusted. So only `fp32_precision` is looked at, and written where it is not TF32 anyway.
    """
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    if before == "tf32":
        yield
        return
    products.fp32_precision = "tf32"
    try:
        yield
    finally:
        products.fp32_precision = before
