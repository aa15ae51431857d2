"""How a process that computes on a CPU treats its memory."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

_KEPT_PRODUCTS = "16"
_OBJECTS_BETWEEN_COLLECTIONS = 100_000


def tune_allocator() -> None:
    """Set up this process's memory for batches of ever new shapes on a CPU. Call it before the first model is made, and
    before threads are started.

    glibc keeps freed blocks of any size: else each large tensor is mapped and zeroed by the kernel again, a third of the time of a forward
    pass. Not for processes that must give memory back between jobs.

    No more heaps are made; threads share those that there are (polars and pyarrow bring a few when they are imported). Each thread that a
    stage starts for a shard would else leave its own behind, one more a shard (a tenth of the memory of scoring).

    oneDNN and the layer between it and torch keep a compiled product for each of the last 1,024 shapes, by a megabyte each; batches
    of like length hardly ever repeat a shape but from layer to layer, so a few are enough (0.5 GB less, measured, at the same speed).

    Python looks for unreachable cycles less often, of which there are few (torch and transformers imported so: 2.9 s instead of 3.7).
    """
    gc.set_threshold(max(gc.get_threshold()[0], _OBJECTS_BETWEEN_COLLECTIONS))
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, _KEPT_PRODUCTS)
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library: slower, nothing else
    trim_threshold, mmap_threshold, most_arenas = -1, -3, -8
    mallopt(most_arenas, 1)
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)
