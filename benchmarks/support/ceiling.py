"""What a rate is measured against: how fast this processor multiplies matrices, in the same run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median

_ROWS = 2048  # tokens of a batch of the project's default size
_SECONDS = 0.75  # for each precision


def ceilings(folder: Path, *, threads: int | None = None) -> dict[str, float]:
    """FLOP/s of `torch.nn.functional.linear` at the shapes of a model's layers, by precision (bf16, fp32).

    A model whose configuration has other names for its sizes counts as BERT-base. `threads` are torch's; None leaves them as they are.
    """
    import torch

    from retrieval.model_files.files import transformer_folder

    if threads is not None:
        torch.set_num_threads(threads)
    config = json.loads((transformer_folder(folder) / "config.json").read_text())
    size = config.get("hidden_size", 768)
    inner = config.get("intermediate_size", 4 * size)
    shapes = [(size, size)] * 4 + [(size, inner), (inner, size)]
    work = sum(2 * _ROWS * i * o for i, o in shapes)
    found = {}
    for name, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32}.items():
        layers = [[torch.randn(*shape).to(dtype) for shape in ((_ROWS, i), (o, i), (o,))] for i, o in shapes]
        times: list[float] = []
        started = time.perf_counter()
        with torch.inference_mode():
            while time.perf_counter() - started < _SECONDS:
                before = time.perf_counter()
                for values, weight, bias in layers:
                    torch.nn.functional.linear(values, weight, bias)
                times.append(time.perf_counter() - before)
        found[name] = work / median(times)
    return found


def print_ceilings(found: dict[str, float]) -> dict[str, float]:
    """Print `ceilings`; returns them as figures of the JSON line, GFLOP/s."""
    figures = {f"ceiling_{precision}_gflops": round(rate / 1e9, 1) for precision, rate in found.items()}
    print("ceiling    ", ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {precision}" for precision, rate in found.items()))
    return figures
