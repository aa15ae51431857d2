"""Seeded cases of steps by 1 to 8 processes, against the same steps by one; a child of test_ranks_never_hang.py.

    python rank_cases.py FOLDER CASES PORT     for each number of processes that many cases; a line for each in FOLDER/<processes>

A case is some steps on batches of its own, and in the middle of them a resume from a checkpoint. All processes of a number join once and go
through its cases together. A case that takes longer than `CASE_SECONDS` kills its process.
"""

from __future__ import annotations

import copy
import os
import shutil
import signal
import sys
import traceback
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from data.config.settings import Objective
from trainer.cpu.embedding_gradient import add_gradient_by_row
from trainer.cpu.fast_path import CpuBackend
from trainer.cpu.workers import Workers
from trainer.input.stream import TrainingRow
from trainer.objective.plan import plan_batch
from trainer.processes.distributed import Distributed, joined
from trainer.saving.checkpoint import TrainingState, resume, snapshot, start_digest, write_checkpoint
from trainer.steps.backend import PlainBackend
from trainer.steps.gradients import StepSettings, accumulate_gradients
from trainer.steps.micro_batches import cut

CASE_SECONDS = 180
WORDS, SIZE, STEPS = 40, 8, 3
KINDS = (0, 1, 1, 2, 2, 3)


class Bags(nn.Module):
    """Means of word vectors. `long` counts for long texts alone, `never` for none: gradients that some or all processes have not."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out, self.dropout = nn.Embedding(WORDS, SIZE, padding_idx=0), nn.Linear(SIZE, SIZE), nn.Dropout(0.2)
        self.long, self.never = nn.Parameter(torch.ones(SIZE)), nn.Parameter(torch.ones(SIZE, 2))
        add_gradient_by_row(self.words)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weights = attention_mask.unsqueeze(-1).float()
        vectors = (self.words(input_ids) * weights).sum(1) / weights.sum(1)
        if input_ids.shape[1] > 10:
            vectors = vectors * self.long
        return self.dropout(self.out(vectors.tanh()))


class Bert(nn.Module):
    """A layer of BERT, mean pooling."""

    def __init__(self) -> None:
        super().__init__()
        sizes = dict(vocab_size=WORDS, hidden_size=SIZE, num_hidden_layers=1, num_attention_heads=2, intermediate_size=SIZE)
        self.backbone = BertModel(BertConfig(**sizes, max_position_embeddings=32, initializer_range=0.2), add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weights = attention_mask.unsqueeze(-1).float()
        return (self.backbone(input_ids, attention_mask).last_hidden_state * weights).sum(1) / weights.sum(1)


class Untried(CpuBackend):
    """Without the trials, for which a model must be one of transformers; layers are not packed."""

    def __init__(self, model: nn.Module, workers: int) -> None:
        PlainBackend.__init__(self, model)
        self.at_once, self._workers = workers, Workers(model, workers) if workers > 1 else None


class Case:
    """All that a number decides."""

    def __init__(self, number: int) -> None:
        self.chance = np.random.default_rng(number)
        torch.manual_seed(number)
        self.model = (Bert if number % 4 == 0 else Bags)().train()
        prod = number % 5 == 0
        self.objective = Objective(
            in_batch=str(self.chance.choice(["none", "none", "supervised", "distillation", "both"])), supervised_weight=0.3,
            reference_kl_weight=1.0 if prod else 0.0, without=("adaptive",) if prod else (), include_positive=prod,
        )  # fmt: skip
        self.references = {"initial": copy.deepcopy(self.model).requires_grad_(False).eval()} if prod else {}
        self.settings = StepSettings(
            seed=number, score_scale=1.0, temperature=1.0, micro_batch_tokens=int(self.chance.choice([16, 64, 200, 400, 10_000])), pad_id=0,
            device="cpu", precision="fp32", kept_tokens=(None, 0, 150)[number % 3],
        )  # fmt: skip
        self.queries = int(self.chance.integers(1, 9))
        self.hubs = [self._tokens() for _ in range(self.chance.integers(0, 4))]  # passages of many queries
        self.workers = int(self.chance.choice([1, 1, 2]))
        self.resumes_after = int(self.chance.integers(1, STEPS))
        self.batches = [[self._row(f"q{step}-{place}") for place in range(self.queries)] for step in range(STEPS)]

    def _tokens(self) -> Any:
        return np.array([2, *self.chance.integers(5, WORDS, size=self.chance.integers(1, 14)), 3], dtype=np.int32)

    def _row(self, query_id: str) -> TrainingRow:
        passages = [self._tokens() for _ in KINDS]
        names = [f"{query_id}-{place}" for place in range(len(KINDS))]
        for hub, tokens in enumerate(self.hubs[:2]):
            if self.chance.random() < 0.7:
                passages[1 + hub], names[1 + hub] = tokens, f"hub{hub}"
        logits = self.chance.normal(size=len(KINDS)).astype(np.float32)
        return TrainingRow(query_id, self._tokens(), tuple(passages), KINDS, tuple(names), logits, -float(self.chance.random()))

    def trained(self, processes: Distributed, folder: Path | None) -> dict[str, Tensor]:
        """The parameters after all steps, with a resume from a checkpoint in `folder` in between."""
        model, optimizer = self._opened()
        for step, rows in enumerate(self.batches):
            if folder and step == self.resumes_after:
                if processes.first:
                    state = TrainingState(step=step, seconds=0.0, fingerprint="")
                    write_checkpoint(folder, snapshot(model, optimizer, state), keep=1)
                processes.wait()
                model, optimizer = self._opened()
                state = resume(folder, model=model, optimizer=optimizer, fingerprint="")
                processes.agree(start_digest(model, optimizer, state), about="the start")
            work = plan_batch(rows, objective=self.objective, share=Fraction(2, 3))
            optimizer.zero_grad(set_to_none=False)
            accumulate_gradients(
                Untried(model, self.workers), work, cut(work, budget=self.settings.micro_batch_tokens), step=step, settings=self.settings,
                processes=processes, references=self.references,
            )  # fmt: skip
            optimizer.step()
        return model.state_dict()

    def _opened(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = copy.deepcopy(self.model)
        if isinstance(model, Bags):
            model.words._forward_hooks.clear()
            add_gradient_by_row(model.words)
        # Not AdamW: where a gradient is 0 but for rounding, its first steps are signs of the rounding.
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def check(number: int, processes: Distributed, folder: Path) -> str:
    """What a line says of a case: `ok`, or what is wrong with it."""
    case = Case(number)
    found = case.trained(processes, folder)
    if not processes.first:
        return ""
    wanted = Case(number).trained(Distributed(), None)
    for name, value in wanted.items():
        if not torch.isfinite(value).all() or not torch.allclose(found[name], value, rtol=1e-4, atol=1e-5):
            return f"{name} is off by {float((found[name] - value).abs().max()):g}"
    return "ok"


def join(size: int, rank: int, port: str, cases: range, folder: Path) -> None:
    """All cases of a process."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    with joined("cpu") as processes, open(folder / f"{size}", "a") as lines:
        for number in cases:
            signal.alarm(CASE_SECONDS)
            said = check(number, processes, folder / f"run-{number}")
            processes.wait()
            if processes.first:
                print(number, said, file=lines, flush=True)
                shutil.rmtree(folder / f"run-{number}")
        signal.alarm(0)


def main() -> None:
    """Every number of processes, one after the other."""
    folder, cases, port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for size in range(1, 9):
        children = []
        for rank in range(size):
            child = os.fork()
            if child:
                children.append(child)
                continue
            try:
                join(size, rank, str(port + size), range(cases * (size - 1), cases * size), folder)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
