"""The gradient of a global batch, in micro-batches, by one or many processes: encode, compare, go back.

1. Sequences that several groups of queries need (`trainer.steps.micro_batches`) are encoded once, without a graph; all processes get them.
2. Each group encodes its own sequences, takes its part of the loss and goes back, to the parameters and to the shared vectors.
3. Shared sequences are encoded again and the gradients of their vectors sent through (gradient caching; Gao et al., 2021, GradCache).
   One micro-batch of them, which is all that there is without in-batch negatives, keeps its graph instead.

Together they give the gradient of the undivided batch. Without in-batch negatives few sequences are shared, mostly none, and each
group's graph is freed before the next; with them all are shared, and the groups only divide the loss.

Dropout is seeded by (seed, step, micro-batch): a resumed run draws the same masks, the second encoding repeats the first, several
micro-batches can be computed at the same time (`trainer.cpu.workers`), and the number of processes changes nothing.

Frozen encoders (`trainer.steps.reference_models`) read the same sequences in the same places, each once: their vectors need no second
encoding.

Shapes: n sequences of L tokens, D dimensions, S of them shared, B queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from data.digests import hash64
from retrieval.compute.batching import pad, token_budget_batches
from trainer.cpu.dropout import CpuTrainingMode
from trainer.cpu.masks import seed_masks
from trainer.cpu.packing import packs
from trainer.cpu.workers import Workers
from trainer.objective.plan import BatchWork, QueryWork, Sequenced, token_count
from trainer.objective.total import LOSSES, GroupScores, QueryLosses, asked_of, total_loss
from trainer.steps.distributed import Ranks
from trainer.steps.micro_batches import MicroBatches, tokens_of
from trainer.steps.reference_models import FrozenEncoders

Pass = Callable[[nn.Module, int, Tensor | None], None]


@dataclass(frozen=True)
class StepSettings:
    """What a step needs to know besides its batch."""

    seed: int
    score_scale: float
    temperature: float
    micro_batch_tokens: int
    pad_id: int
    device: str
    precision: str  # fp32 or bf16
    distillation: str = "kl"  # `train.objective.distillation`
    cheap_dropout: bool = True  # on a CPU


def accumulate_gradients(
    workers: Workers,
    work: BatchWork,
    cut: MicroBatches,
    *,
    step: int,
    settings: StepSettings,
    ranks: Ranks,
    frozen: FrozenEncoders = FrozenEncoders(),  # noqa: B008 - frozen
) -> QueryLosses:
    """Add the gradient of the total loss (ADAM, Eq. 9) to the parameters of the workers' model. Returns each query's losses.

    Args:
        workers: Of [n, L] ids and mask to [n, D] vectors.
        work: The global batch.
        cut: Its micro-batches.
        step: Seeds the dropout.
        settings: See there.
        ranks: The processes; each gets all losses and the whole gradient.
        frozen: Encoders that the student is compared with.
    """
    return _Step(workers, work, cut, step=step, settings=settings, ranks=ranks, frozen=frozen).run()


class _Step:
    """The passes of a step that this process takes."""

    def __init__(
        self,
        workers: Workers,
        work: BatchWork,
        cut: MicroBatches,
        *,
        step: int,
        settings: StepSettings,
        ranks: Ranks,
        frozen: FrozenEncoders,
    ) -> None:
        self._workers, self._work, self._cut = workers, work, cut
        self._step, self._settings, self._ranks = step, settings, ranks
        self._frozen, self._frozen_SD = frozen.all, dict[str, Tensor]()
        self._chunks = [[cut.shared[row] for row in rows] for rows in cut.chunks]
        self._chunk_sizes = [sum(map(token_count, chunk)) for chunk in self._chunks]
        self._group_sizes = [tokens_of(self._queries(group)) for group in range(len(cut.groups))]
        self._my_chunks, self._my_groups = ranks.mine(self._chunk_sizes), ranks.mine(self._group_sizes)
        self._losses_3B = torch.zeros(len(LOSSES), len(work.queries), dtype=torch.float64, device=settings.device)

    def _queries(self, group: int) -> list[QueryWork]:
        return [self._work.queries[place] for place in self._cut.groups[group]]

    def run(self) -> QueryLosses:
        kept_SD = self._encode_shared() if self._keeps_graph() else None
        shared_SD = None
        if kept_SD is not None:
            shared_SD = kept_SD.detach().requires_grad_()
        elif self._chunks:
            shared_SD = self._shared_vectors().requires_grad_()
        if self._chunks:
            self._frozen_SD = {name: self._shared_vectors(encoder) for name, encoder in self._frozen.items()}
        self._each(self._my_groups, self._group_sizes, self._forward_backward, shared_SD)
        if kept_SD is not None and shared_SD is not None:
            kept_SD.backward(shared_SD.grad)
        elif shared_SD is not None:
            gradient_SD = self._ranks.sum(torch.zeros_like(shared_SD) if shared_SD.grad is None else shared_SD.grad)
            self._each(self._my_chunks, self._chunk_sizes, self._backward_cached, gradient_SD)
        self._ranks.sum_gradients(self._workers.model)
        return self._by_query(self._ranks.sum(self._losses_3B).tolist())

    def _by_query(self, losses: list[list[float]]) -> QueryLosses:
        queries = self._work.queries
        asked = asked_of(queries, keeps="start" in self._frozen)
        return QueryLosses(
            *(
                {query.query_id: loss for query, loss, one in zip(queries, row, which, strict=True) if one}
                for row, which in zip(losses, asked, strict=True)
            )
        )

    def _each(self, mine: list[int], sizes: list[int], go: Pass, shared: Tensor | None) -> None:
        """This process's passes of a kind."""
        self._workers.each([sizes[number] for number in mine], lambda encoder, number, leaf: go(encoder, mine[number], leaf), shared)

    def _keeps_graph(self) -> bool:
        """Whether the shared sequences are few enough to keep their graph until the groups are done, instead of making it again."""
        return len(self._chunks) == 1 and self._ranks.size == 1

    def _encode_shared(self) -> Tensor:
        """[S, D] vectors of the only chunk, with their graph."""
        return _in_given_order(self._encode_chunk(self._workers.model, 0), self._cut.chunks)

    def _shared_vectors(self, frozen: nn.Module | None = None) -> Tensor:
        """[S, D] vectors of the shared sequences without a graph, the same in all processes."""
        parts: dict[int, Tensor] = {}

        def encode(encoder: nn.Module, number: int, _: Tensor | None) -> None:
            with torch.no_grad():  # it belongs to the thread
                parts[number] = self._encode_chunk(frozen or encoder, self._my_chunks[number])

        self._workers.each([self._chunk_sizes[number] for number in self._my_chunks], encode)
        if not parts:  # how long a vector is, and of which type
            with torch.no_grad():
                parts[-1] = _encode_padded(frozen or self._workers.model, self._chunks[0][:1], settings=self._settings)
        some = next(iter(parts.values()))
        vectors_SD = some.new_zeros(len(self._cut.shared), some.shape[1])
        for place, number in enumerate(self._my_chunks):
            vectors_SD[torch.tensor(self._cut.chunks[number], device=some.device)] = parts[place]
        return self._ranks.sum(vectors_SD)

    def _forward_backward(self, encoder: nn.Module, group: int, shared_SD: Tensor | None) -> None:
        """Encode a group's own sequences, take its part of the loss, go back."""
        queries = self._queries(group)
        own = self._cut.own(queries)
        sequences = [*own, *self._cut.shared]

        def scores(encoder: nn.Module, shared_SD: Tensor | None) -> GroupScores:
            parts = [encode(encoder, own, settings=self._settings)] if own else []
            vectors_ND = torch.cat(parts if shared_SD is None else [*parts, shared_SD])
            return GroupScores(vectors_ND, sequences, scale=self._settings.score_scale)

        seed_dropout(self._settings.seed, self._step, len(self._chunks) + group)
        student = scores(encoder, shared_SD)
        frozen = {name: scores(other, self._frozen_SD.get(name)) for name, other in self._frozen.items()}
        total, losses = total_loss(
            student, frozen, queries, work=self._work,
            distillation=self._settings.distillation, temperature=self._settings.temperature,
        )  # fmt: skip
        total.backward()
        places = torch.tensor(self._cut.groups[group])
        for row, asked in enumerate(asked_of(queries, keeps="start" in frozen)):
            self._losses_3B[row, places[torch.from_numpy(asked)]] = losses[row]

    def _backward_cached(self, encoder: nn.Module, number: int, gradient_SD: Tensor | None) -> None:
        """Encode shared sequences again, now with a graph, and send the gradients of their vectors through it."""
        assert gradient_SD is not None
        rows = torch.tensor(self._cut.chunks[number], device=gradient_SD.device)
        torch.autograd.backward(self._encode_chunk(encoder, number), gradient_SD[rows])

    def _encode_chunk(self, encoder: nn.Module, number: int) -> Tensor:
        seed_dropout(self._settings.seed, self._step, number)
        return _encode_padded(encoder, self._chunks[number], settings=self._settings)


def seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    """Dropout masks of a micro-batch are a function of (seed, step, micro-batch) alone."""
    key = hash64("dropout", seed, step, micro_batch)
    seed_masks(key)
    torch.manual_seed(key)  # for GPUs, and for models with dropout of their own


def encode(encoder: nn.Module, sequences: Sequence[Sequenced], *, settings: StepSettings) -> Tensor:
    """[n, D] vectors of the sequences, in their order, as one graph, encoded in passes of similar lengths."""
    # Two passes for a full group, or queries and short passages would be padded to the longest (8 % of the time on a CPU); unless they
    # are packed, when each pass more is another cast of the weights.
    budget = settings.micro_batch_tokens // (1 if packs(encoder) else 2)
    chunks = token_budget_batches([token_count(sequence) for sequence in sequences], budget=budget)
    parts = [_encode_padded(encoder, [sequences[row] for row in rows], settings=settings) for rows in chunks]
    return _in_given_order(torch.cat(parts), chunks)


def _encode_padded(encoder: nn.Module, sequences: Sequence[Sequenced], *, settings: StepSettings) -> Tensor:
    ids, mask = pad([np.frombuffer(sequence, dtype=np.int32).tolist() for sequence in sequences], value=settings.pad_id)
    # No cache: cast weights that were kept without a graph would cut the gradient of a later call, and threads share it.
    autocast = torch.autocast(settings.device, dtype=torch.bfloat16, enabled=settings.precision == "bf16", cache_enabled=False)
    with autocast, CpuTrainingMode() if settings.device == "cpu" and settings.cheap_dropout else nullcontext():
        return encoder(ids.to(settings.device), mask.to(settings.device))


def _in_given_order(encoded_ND: Tensor, chunks: list[list[int]]) -> Tensor:
    place = np.empty(len(encoded_ND), dtype=np.int64)
    place[np.concatenate(chunks)] = np.arange(len(place))
    return encoded_ND.index_select(0, torch.from_numpy(place).to(encoded_ND.device))
