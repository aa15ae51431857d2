"""The gradient of a global batch, in micro-batches, by one or many processes: encode, compare, go back.

1. Sequences that several groups of queries need (`trainer.steps.micro_batches`) are encoded once, without a graph; all processes get them.
2. Each group encodes its own sequences, takes its part of the loss and goes back, to the parameters and to the shared vectors.
3. Shared sequences are encoded again and the gradients of their vectors sent through (gradient caching; Gao et al., 2021, GradCache).
   One micro-batch of them, which is all that there is without in-batch negatives, keeps its graph instead.

Together they give the gradient of the undivided batch. Without in-batch negatives few sequences are shared, mostly none, and each
group's graph is freed before the next; with them all are shared, and the groups only divide the loss.

Dropout is seeded by (seed, step, micro-batch): a resumed run draws the same masks, the second encoding repeats the first, several
micro-batches can be computed at the same time (`trainer.steps.backend`), and the number of processes changes nothing.

Reference models (`trainer.steps.reference_models`) read the same sequences in the same places, each once: their vectors need no second
encoding.

Shapes: n sequences of L tokens, D dimensions, S of them shared, B queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from data.digests import hash64
from retrieval.compute.batching import pad, token_budget_batches
from trainer.objective.dimensions import WHOLE, Dimensions, total_over_dimensions
from trainer.objective.plan import BatchWork, QueryWork, Sequenced, token_count
from trainer.objective.total import LOSSES, GroupScores, QueryLosses, asked_of, list_names
from trainer.steps.backend import Backend, Work
from trainer.steps.distributed import Distributed
from trainer.steps.micro_batches import MicroBatches, tokens_of
from trainer.steps.reference_models import References


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
    dimensions: Dimensions = WHOLE  # to which vectors are cut


def accumulate_gradients(
    backend: Backend,
    work: BatchWork,
    cut: MicroBatches,
    *,
    step: int,
    settings: StepSettings,
    processes: Distributed,
    references: References,
) -> QueryLosses:
    """Add the gradient of the total loss (ADAM, Eq. 9) to the parameters of the backend's model. Returns each query's losses.

    `work` is the global batch and `cut` its micro-batches; every process gets all losses and the whole gradient.
    """
    return _Step(backend, work, cut, step, settings, processes, references).run()


@dataclass
class _Step:
    """The passes of a step that this process takes."""

    backend: Backend
    work: BatchWork
    cut: MicroBatches
    step: int
    settings: StepSettings
    processes: Distributed
    references: References

    def __post_init__(self) -> None:
        self.chunks = [[self.cut.shared[row] for row in rows] for rows in self.cut.chunks]
        self.chunk_tokens = [sum(map(token_count, chunk)) for chunk in self.chunks]
        self.group_tokens = [tokens_of(self.queries(group)) for group in range(len(self.cut.groups))]
        self.my_chunks = self.processes.mine(self.chunk_tokens)
        self.my_groups = self.processes.mine(self.group_tokens)
        self.references_SD: dict[str, Tensor] = {}
        self.losses_3B = torch.zeros(len(LOSSES), len(self.work.queries), dtype=torch.float64, device=self.settings.device)

    def queries(self, group: int) -> list[QueryWork]:
        return [self.work.queries[place] for place in self.cut.groups[group]]

    def run(self) -> QueryLosses:
        encoded_SD = leaf_SD = None
        if self.chunks:
            keeps_graph = len(self.chunks) == 1 and self.processes.size == 1  # few enough to keep it until the groups are done
            encoded_SD = (
                _in_given_order(self._encode_chunk(self.backend.model, 0), self.cut.chunks) if keeps_graph else self._shared_vectors()
            )
            leaf_SD = encoded_SD.detach().requires_grad_()
            self.references_SD = {name: self._shared_vectors(reference) for name, reference in self.references.items()}
        self._each(self.my_groups, self.group_tokens, self._forward_backward, leaf_SD)
        if encoded_SD is not None and leaf_SD is not None:
            gradient_SD = self.processes.sum(torch.zeros_like(leaf_SD) if leaf_SD.grad is None else leaf_SD.grad)
            if encoded_SD.requires_grad:
                encoded_SD.backward(gradient_SD)
            else:
                self._each(self.my_chunks, self.chunk_tokens, self._backward_cached, gradient_SD)
        self.processes.sum_gradients(self.backend.model)
        asked = asked_of(self.work.queries, with_initial="initial" in self.references)
        losses = self.processes.sum(self.losses_3B).tolist()
        names = list_names([query.query_id for query in self.work.queries])
        return QueryLosses(
            *(
                {name: loss for name, loss, one in zip(names, row, which, strict=True) if one}
                for row, which in zip(losses, asked, strict=True)
            )
        )

    def _each(self, mine: list[int], tokens: list[int], work: Work, shared: Tensor | None = None) -> None:
        """This process's passes of a kind."""
        self.backend.each([tokens[number] for number in mine], lambda model, place, leaf: work(model, mine[place], leaf), shared)

    def _shared_vectors(self, reference: nn.Module | None = None) -> Tensor:
        """[S, D] vectors of the shared sequences without a graph, the same in all processes."""
        parts: dict[int, Tensor] = {}

        def encode(model: nn.Module, number: int, _: Tensor | None) -> None:
            with torch.no_grad():  # it belongs to the thread
                parts[number] = self._encode_chunk(reference or model, number)

        self._each(self.my_chunks, self.chunk_tokens, encode)
        if not parts:  # how long a vector is, and of which type
            with torch.no_grad():
                some = self._encode_padded(reference or self.backend.model, self.chunks[0][:1])
        else:
            some = next(iter(parts.values()))
        vectors_SD = some.new_zeros(len(self.cut.shared), some.shape[1])
        for number, part in parts.items():
            vectors_SD[torch.tensor(self.cut.chunks[number], device=some.device)] = part
        return self.processes.sum(vectors_SD)

    def _forward_backward(self, model: nn.Module, group: int, shared_SD: Tensor | None) -> None:
        """Encode a group's own sequences, take its part of the loss, go back."""
        queries = self.queries(group)
        own = self.cut.own(queries)

        def scores(encoder: nn.Module, shared_SD: Tensor | None) -> GroupScores:
            parts = [self._encode(encoder, own)] if own else []
            vectors_ND = torch.cat(parts if shared_SD is None else [*parts, shared_SD])
            return GroupScores(vectors_ND, [*own, *self.cut.shared], scale=self.settings.score_scale)

        self._seed_dropout(len(self.chunks) + group)
        student = scores(model, shared_SD)
        references = {name: scores(reference, self.references_SD.get(name)) for name, reference in self.references.items()}
        total, losses = total_over_dimensions(
            student, references, queries, dimensions=self.settings.dimensions, work=self.work,
            distillation=self.settings.distillation, temperature=self.settings.temperature,
        )  # fmt: skip
        total.backward()
        places = torch.tensor(self.cut.groups[group])
        for row, asked in enumerate(asked_of(queries, with_initial="initial" in references)):
            self.losses_3B[row, places[torch.from_numpy(asked)]] = losses[row]

    def _backward_cached(self, model: nn.Module, number: int, gradient_SD: Tensor | None) -> None:
        """Encode shared sequences again, now with a graph, and send the gradients of their vectors through it."""
        assert gradient_SD is not None
        rows = torch.tensor(self.cut.chunks[number], device=gradient_SD.device)
        torch.autograd.backward(self._encode_chunk(model, number), gradient_SD[rows])

    def _seed_dropout(self, micro_batch: int) -> None:
        self.backend.seed_dropout(hash64("dropout", self.settings.seed, self.step, micro_batch))

    def _encode_chunk(self, model: nn.Module, number: int) -> Tensor:
        self._seed_dropout(number)
        return self._encode_padded(model, self.chunks[number])

    def _encode(self, model: nn.Module, sequences: Sequence[Sequenced]) -> Tensor:
        """[n, D] vectors of the sequences, in their order, as one graph, encoded in passes of like lengths."""
        budget = self.settings.micro_batch_tokens // self.backend.passes(model)
        chunks = token_budget_batches([token_count(sequence) for sequence in sequences], budget=budget)
        return _in_given_order(torch.cat([self._encode_padded(model, [sequences[row] for row in rows]) for rows in chunks]), chunks)

    def _encode_padded(self, model: nn.Module, sequences: Sequence[Sequenced]) -> Tensor:
        device = self.settings.device
        ids, mask = pad([np.frombuffer(sequence, dtype=np.int32).tolist() for sequence in sequences], value=self.settings.pad_id)
        # No cache: cast weights that were kept without a graph would cut the gradient of a later call, and threads share it.
        autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=self.settings.precision == "bf16", cache_enabled=False)
        with autocast, self.backend.context():
            return model(ids.to(device), mask.to(device))


def _in_given_order(encoded_ND: Tensor, chunks: list[list[int]]) -> Tensor:
    place = np.empty(len(encoded_ND), dtype=np.int64)
    place[np.concatenate(chunks)] = np.arange(len(place))
    return encoded_ND.index_select(0, torch.from_numpy(place).to(encoded_ND.device))
