"""How long a training step waits for a checkpoint: for the copy of the state alone, or for the files too.

    python benchmarks/checkpoint.py [--layers 12] [--width 768] [--rounds 5] [--folder DIR]

A BERT of random weights with AdamW's moments, in fp32; 12 layers of 768 are BERT-base. `ours` are the seconds of the copy, which a step
waits for, `peer` those of copy, files and fsync, which it waited for before; medians. The first copy, for which the kernel gives pages that
are kept then, is printed above. `--folder` is where the files go: a run's disk.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median


def main() -> None:
    """Both times, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()

    import torch
    from transformers import BertConfig, BertModel

    from retrieval.compute.allocator import tune_allocator
    from trainer.saving.checkpoint import TrainingState, snapshot, write_checkpoint
    from trainer.steps.optim import make_optimizer

    tune_allocator()
    width = arguments.width
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
    }
    model = BertModel(BertConfig(**sizes), add_pooling_layer=False)
    optimizer = make_optimizer(model, weight_decay=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    copies: list[float] = []
    writes: list[float] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for step in range(1, arguments.rounds + 2):
            began = time.perf_counter()
            copied = snapshot(model, optimizer, TrainingState(step, 0.0, "key"))
            copies.append(time.perf_counter() - began)
            write_checkpoint(Path(folder), copied, 1)
            writes.append(time.perf_counter() - began)
            size = sum(tensor.nbytes for part in (copied.model, copied.optimizer) for tensor in part.values())
            del copied
    ours, peer = median(copies[1:]), median(writes[1:])
    print(f"state       {size / 1e9:.2f} GB; first copy {copies[0]:.2f} s, then {ours:.2f} s; with the files {peer:.2f} s")
    figures = {"ours": round(ours, 3), "peer": round(peer, 3), "ratio": round(ours / peer, 4), "unit": "s a checkpoint"}
    print(json.dumps({"name": "checkpoint", **figures, "gigabytes": round(size / 1e9, 3), "first": round(copies[0], 3)}))


if __name__ == "__main__":
    main()
