"""What a language model takes in memory while it is opened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkpoints import change_weights, save

from retrieval.compute.precision import cpu_computes_bf16

MEASURE = """
import re, sys
from pathlib import Path
from retrieval.teachers.causal_lm import AnswerHead
from retrieval.teachers.cross_encoder import TorchCrossEncoder
import torch, transformers.models.qwen3.modeling_qwen3
if sys.argv[2] == "fp32":
    AnswerHead.keeps_stored = lambda self, folder: False
def megabytes(name):
    return int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = megabytes("VmRSS")
TorchCrossEncoder(Path(sys.argv[1]), precision="bf16", device="cpu", head=AnswerHead(20, 30))
print(megabytes("VmHWM") - before)
"""


@pytest.mark.skipif(not cpu_computes_bf16(), reason="this processor would emulate bf16")
@pytest.mark.slow
def test_a_model_of_100_million_weights_is_opened_in_less_memory(tmp_path: Path) -> None:
    """Prevents: a language model that is blown up to fp32 before it is lowered."""
    sizes = {"hidden_size": 768, "num_hidden_layers": 10, "intermediate_size": 3072, "vocab_size": 20_000, "num_attention_heads": 12}
    folder = save(tmp_path / "model", "Qwen3", causal=True, head_dim=64, num_key_value_heads=4, tie_word_embeddings=True, **sizes)
    change_weights(folder, lambda tensors: {name: part.bfloat16() for name, part in tensors.items()})
    peaks = {
        way: float(subprocess.run([sys.executable, "-c", MEASURE, folder, way], check=True, capture_output=True, text=True).stdout)
        for way in ("fp32", "stored")
    }
    print(json.dumps(peaks))
    assert peaks["stored"] < 0.8 * peaks["fp32"]
