"""The gradient of a global batch, in micro-batches, by one or many processes: encode, compare, go back.

1. Sequences that several groups of queries need (`trainer.steps.micro_batches`) are encoded; all processes get the vectors.
2. Each group encodes its own sequences, takes its part of the loss and goes back, to the parameters and to the shared vectors.
3. The gradients of the shared vectors go back through their graphs. A process keeps these where its shared sequences have few tokens
   (`kept_tokens`). Else it encodes them again (gradient caching; Gao et al., 2021, GradCache), which gives the same gradient to the bit.

Together they give the gradient of the undivided batch. Without in-batch negatives few sequences are shared, mostly none, and each
group's graph is freed before the next; with them all are shared, and the groups only divide the loss.

Dropout is seeded by (seed, step, micro-batch): a resumed run draws the same masks, the second encoding repeats the first, several
micro-batches can be computed at the same time (`trainer.steps.backend`), and the number of processes changes nothing.

Reference models (`trainer.steps.reference_models`) read the same sequences in the same places, each once: their vectors need no second
encoding.

Shapes: n sequences of L tokens, D dimensions, S of them shared, B queries, Q of them of this process, N in-batch passages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.digests import hash64
from trainer.objective.dimensions import WHOLE, Dimensions, total_over_dimensions
from trainer.objective.plan import BatchWork
from trainer.objective.total import GroupScores, QueryLosses, list_names
from trainer.processes.distributed import Distributed
from trainer.steps.backend import Backend, Work
from trainer.steps.micro_batches import MicroBatches
from trainer.steps.reference_models import References
from trainer.steps.step_plan import Gathered, InBatchPlan, OnDevice, Pass, Passes, StepPlan, plan_step


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
    teacher_temperature: float | None = None
    score_transform: str = "none"
    kept_tokens: int | None = None  # of a process's shared sequences, up to which it keeps their graphs; None: `micro_batch_tokens`

    def keeps(self, tokens: int) -> bool:
        """Whether the graphs of a process's shared sequences, of so many tokens, are kept until the groups are done."""
        return tokens <= (self.micro_batch_tokens if self.kept_tokens is None else self.kept_tokens)


Planner = Callable[[BatchWork, MicroBatches], StepPlan]


def step_planner(backend: Backend, *, settings: StepSettings, processes: Distributed, references: References) -> Planner:
    """What plans this process's part of a step, for `accumulate_gradients` with the same arguments."""
    encoders = [backend.model, *references.values()]
    return functools.partial(
        plan_step, processes=processes, passes=sorted({backend.passes(encoder) for encoder in encoders}),
        budget=settings.micro_batch_tokens, with_initial="initial" in references,
    )  # fmt: skip


def accumulate_gradients(
    backend: Backend,
    work: BatchWork,
    cut: MicroBatches,
    *,
    step: int,
    settings: StepSettings,
    processes: Distributed,
    references: References,
    plan: StepPlan | None = None,
) -> QueryLosses:
    """Add the gradient of the total loss (ADAM, Eq. 9) to the parameters of the backend's model. Returns each query's losses.

    `work` is the global batch, `cut` its micro-batches and `plan` what this process does of them; None: it is planned now. Every process
    gets all losses and the whole gradient.
    """
    if plan is None:
        plan = step_planner(backend, settings=settings, processes=processes, references=references)(work, cut)
    with backend.step([backend.model, *references.values()], precision=settings.precision):
        return _Step(backend, work, plan, step, settings, processes, references).run()


@dataclass
class _Step:
    """The passes of a step that this process takes. Nothing in them waits for the device: the losses are read once, at the end."""

    backend: Backend
    work: BatchWork
    plan: StepPlan
    step: int
    settings: StepSettings
    processes: Distributed
    references: References

    def __post_init__(self) -> None:
        self.read = OnDevice(self.plan.buffer, self.settings.device)
        self.open_QN = self._open_passages(self.plan.in_batch) if self.plan.in_batch else None
        self.references_SD: dict[str, Tensor] = {}
        self.kept: dict[int, Tensor] = {}  # of each of this process's chunks the vectors with their graph
        self.losses: dict[int, Tensor] = {}  # of each of this process's groups, one after the other

    def run(self) -> QueryLosses:
        plan, leaf_SD = self.plan, None
        if plan.gathered is not None:
            leaf_SD = self._shared_vectors(plan.gathered).requires_grad_()
            self.references_SD = {name: self._shared_vectors(plan.gathered, one) for name, one in self.references.items()}
        self._each(list(plan.groups), plan.group_tokens, self._forward_backward, leaf_SD)
        if leaf_SD is not None:
            gradient_SD = self.processes.sum(torch.zeros_like(leaf_SD) if leaf_SD.grad is None else leaf_SD.grad)
            self._each_chunk(self._backward_chunk, gradient_SD)
        self.processes.sum_gradients(self.backend.model)
        return self._gathered_losses()

    def _gathered_losses(self) -> QueryLosses:
        """All processes' losses, by query: the one place where the step waits for its device."""
        asked, queries = self.plan.asked, self.work.queries
        losses = torch.zeros(asked.size, dtype=torch.float64, device=self.settings.device)
        if self.losses:
            losses.index_copy_(0, self.read(self.plan.losses), torch.cat([self.losses[group] for group in self.plan.groups]))
        numbers = self.processes.sum(losses).tolist()
        names = list_names([query.query_id for query in queries])
        rows = (numbers[start : start + len(queries)] for start in range(0, len(numbers), len(queries)))
        return QueryLosses(
            *(
                {name: loss for name, loss, one in zip(names, row, which, strict=True) if one}
                for row, which in zip(rows, asked, strict=True)
            )
        )

    def _each(self, mine: list[int], tokens: list[int], work: Work, shared: Tensor | None = None) -> None:
        """This process's passes of a kind."""
        self.backend.each([tokens[number] for number in mine], lambda model, place, leaf: work(model, mine[place], leaf), shared)

    def _each_chunk(self, work: Work, shared: Tensor | None = None) -> None:
        """This process's chunks; the only one there is in this thread, which has all of the machine."""
        if len(self.plan.chunk_tokens) == 1 and self.processes.size == 1:
            work(self.backend.model, 0, shared)
        else:
            self._each(list(self.plan.chunks), self.plan.chunk_tokens, work, shared)

    def _shared_vectors(self, gathered: Gathered, reference: nn.Module | None = None) -> Tensor:
        """[S, D] vectors of the shared sequences without a graph, the same in all processes."""
        plan = self.plan
        parts: dict[int, Tensor] = {}
        keeps = reference is None and self.settings.keeps(sum(plan.chunk_tokens[number] for number in plan.chunks))

        def encode(model: nn.Module, number: int, _: Tensor | None) -> None:
            with torch.set_grad_enabled(keeps):  # it belongs to the thread
                vectors = self._encode_chunk(reference or model, number)
            if keeps:
                self.kept[number] = vectors
            parts[number] = vectors.detach()

        if reference is None:
            self._each_chunk(encode)
        else:
            self._each(list(plan.chunks), plan.chunk_tokens, encode)
        rows = [parts[number] for number in plan.chunks]
        if plan.any_chunk is not None:  # how long a vector is, and of which type
            with torch.no_grad():
                rows = [self._encode_pass(reference or self.backend.model, plan.any_chunk)[:0]]
        missing = gathered.rows - sum(map(len, rows))
        own = torch.cat([*rows, rows[0].new_zeros(missing, rows[0].shape[1])])
        return self.processes.gather(own).index_select(0, self.read(gathered.places))

    def _open_passages(self, plan: InBatchPlan) -> Tensor:
        """[Q, N] of this process's queries, which in-batch passages are their negatives."""
        closed = self.read(plan.closed)
        count = plan.shape[0] * plan.shape[1]
        return torch.ones(count, dtype=torch.bool, device=closed.device).index_fill_(0, closed, False).view(plan.shape)

    def _forward_backward(self, model: nn.Module, group: int, shared_SD: Tensor | None) -> None:
        """Encode a group's own sequences, take its part of the loss, go back."""
        plan = self.plan.groups[group]

        def scores(encoder: nn.Module, shared_SD: Tensor | None) -> GroupScores:
            parts = [self._encode(encoder, plan.own)] if plan.own else []
            return GroupScores(torch.cat(parts if shared_SD is None else [*parts, shared_SD]), scale=self.settings.score_scale)

        self._seed_dropout(len(self.plan.chunk_tokens) + group)
        student = scores(model, shared_SD)
        references = {name: scores(reference, self.references_SD.get(name)) for name, reference in self.references.items()}
        total, losses = total_over_dimensions(
            student, references, plan.lists.map(self.read), dimensions=self.settings.dimensions, work=self.work,
            distillation=self.settings.distillation, temperature=self.settings.temperature, open_QN=self.open_QN,
            teacher_temperature=self.settings.teacher_temperature, score_transform=self.settings.score_transform,
        )  # fmt: skip
        total.backward()
        self.losses[group] = torch.cat(losses)

    def _backward_chunk(self, model: nn.Module, number: int, gradient_SD: Tensor | None) -> None:
        """Send the gradients of shared vectors through their graph: the one that was kept, or that of a second encoding."""
        assert gradient_SD is not None
        own = gradient_SD.index_select(0, self.read(self.plan.chunks[number].rows))
        torch.autograd.backward(self.kept.pop(number) if number in self.kept else self._encode_chunk(model, number), own)

    def _seed_dropout(self, micro_batch: int) -> None:
        self.backend.seed_dropout(hash64("dropout", self.settings.seed, self.step, micro_batch))

    def _encode_chunk(self, model: nn.Module, number: int) -> Tensor:
        self._seed_dropout(number)
        return self._encode_pass(model, self.plan.chunks[number].encoded)

    def _encode(self, model: nn.Module, own: dict[int, Passes]) -> Tensor:
        """[n, D] vectors of a group's own sequences, in their order, as one graph."""
        plan = own[self.backend.passes(model)]
        return torch.cat([self._encode_pass(model, one) for one in plan.passes]).index_select(0, self.read(plan.order))

    def _encode_pass(self, model: nn.Module, one: Pass) -> Tensor:
        """[n, D] vectors of the sequences of a pass."""
        device = self.settings.device
        lengths_N1 = self.read(one.lengths_N1)
        real_NL = torch.arange(one.longest, device=lengths_N1.device) < lengths_N1
        ids_NL = lengths_N1.new_full(real_NL.shape, self.settings.pad_id).masked_scatter_(real_NL, self.read(one.tokens))
        # No cache: cast weights that were kept without a graph would cut the gradient of a later call, and threads share it.
        autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=self.settings.precision == "bf16", cache_enabled=False)
        with autocast, self.backend.context():
            return model(ids_NL, real_NL.long())
