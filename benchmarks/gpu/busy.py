"""How busy a GPU is while something runs, and how full: sampled by nvidia-smi, five times a second."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

_SAMPLE = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "200", "-i", "0"]


@contextlib.contextmanager
def watched(figures: dict[str, Any], *, is_gpu: bool) -> Iterator[None]:
    """Afterwards `figures` has `busy`, of the time from the first kernel to the last one, and `gb`, the most in use."""
    if not is_gpu or shutil.which("nvidia-smi") is None:
        yield
        return
    with subprocess.Popen(_SAMPLE, stdout=subprocess.PIPE, text=True) as sampler:
        try:
            yield
        finally:
            sampler.terminate()
            lines, _ = sampler.communicate()
    samples = [[float(number) for number in line.split(",")] for line in lines.splitlines() if line.count(",") == 1 and "[" not in line]
    working = [place for place, (share, _) in enumerate(samples) if share > 0]
    if working:
        of_work = samples[working[0] : working[-1] + 1]
        figures["busy"] = round(sum(share for share, _ in of_work) / len(of_work) / 100, 2)
        figures["gb"] = round(max(memory for _, memory in samples) * 2**20 / 1e9, 1)
