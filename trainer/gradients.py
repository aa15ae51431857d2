"""The gradient of a global batch, in micro-batches, by one or many processes: encode, compare, go back.

1. Sequences that several groups of queries need (`trainer.micro_batches`) are encoded once, without a graph; all processes get them.
2. Each group encodes its own sequences, takes its part of the loss and goes back, to the parameters and to the shared vectors.
3. Shared sequences are encoded again and the gradients of their vectors sent through (gradient caching; Gao et al., 2021, GradCache).

Together they give the gradient of the undivided batch. Without in-batch negatives few sequences are shared, mostly none, and each
group's graph is freed before the next; with them all are shared, and the groups only divide the loss.

Dropout is seeded by (seed, step, micro-batch): a resumed run draws the same masks, the second encoding repeats the first, and the
number of processes changes nothing.

Shapes: n sequences of L tokens, D dimensions, B queries, K candidates, N in-batch passages.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.digests import hash64
from retrieval.batching import pad, token_budget_batches
from trainer.batch import BatchWork, PoolPassage, QueryWork, Sequenced, token_count
from trainer.dropout import CheapDropout
from trainer.losses import curriculum_loss, distillation_loss, margin_mse_loss, supervised_loss
from trainer.micro_batches import MicroBatches, tokens_of
from trainer.ranks import Ranks


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
    distillation: str = "kl"  # or margin_mse, or curriculum
    cheap_dropout: bool = True  # on a CPU


@dataclass(frozen=True)
class QueryLosses:
    """Unweighted losses by query, nats (of MarginMSE squared scores; of CL-DRD sums over pairs); only of the queries they were asked of."""

    supervised: dict[str, float]
    distillation: dict[str, float]


def accumulate_gradients(
    encoder: nn.Module, work: BatchWork, cut: MicroBatches, *, step: int, settings: StepSettings, ranks: Ranks
) -> QueryLosses:
    """Add the gradient of the total loss (ADAM, Eq. 9) to the encoder's parameters. Returns each query's losses.

    Args:
        encoder: [n, L] ids and mask to [n, D] vectors; with several processes as `ranks.wrap` returns it.
        work: The global batch.
        cut: Its micro-batches.
        step: Seeds the dropout.
        settings: See there.
        ranks: The processes; each gets all losses and the whole gradient.
    """
    pass_ = _Passes(encoder, step=step, settings=settings, ranks=ranks)
    chunks = [[cut.shared[row] for row in rows] for rows in cut.chunks]
    my_chunks = ranks.mine([sum(map(token_count, chunk)) for chunk in chunks])
    my_groups = ranks.mine([tokens_of([work.queries[place] for place in group]) for group in cut.groups])

    shared_SD = None
    if chunks:
        shared_SD = ranks.sum(pass_.without_graph(cut, chunks, my_chunks)).requires_grad_()
    losses_2B = torch.zeros(2, len(work.queries), dtype=torch.float64, device=settings.device)
    for number in my_groups:
        queries, own = [work.queries[place] for place in cut.groups[number]], cut.own([work.queries[p] for p in cut.groups[number]])
        last = not chunks and number == my_groups[-1]
        with ranks.gradient_pass(encoder, last=last):
            vectors_ND = pass_.encode(own, micro_batch=len(chunks) + number) if own else None
            vectors_ND = torch.cat([part for part in (vectors_ND, shared_SD) if part is not None])
            total, supervised_B, distillation_B = _total_loss(vectors_ND, [*own, *cut.shared], queries, work=work, settings=settings)
            total.backward()
        places = torch.tensor(cut.groups[number])
        asked = torch.tensor([[bool(query.supervised) for query in queries], [bool(query.distilled) for query in queries]])
        losses_2B[0, places[asked[0]]], losses_2B[1, places[asked[1]]] = supervised_B, distillation_B
    if shared_SD is not None:
        gradient_SD = ranks.sum(torch.zeros_like(shared_SD) if shared_SD.grad is None else shared_SD.grad)
        for number in my_chunks:
            rows = torch.tensor(cut.chunks[number], device=gradient_SD.device)
            with ranks.gradient_pass(encoder, last=number == my_chunks[-1]):
                torch.autograd.backward(pass_.encode_padded(chunks[number], micro_batch=number), gradient_SD[rows])
    if not (my_chunks if chunks else my_groups):
        pass_.nothing()
    supervised, distillation = ranks.sum(losses_2B).tolist()
    return QueryLosses(
        {query.query_id: loss for query, loss in zip(work.queries, supervised, strict=True) if query.supervised},
        {query.query_id: loss for query, loss in zip(work.queries, distillation, strict=True) if query.distilled},
    )


class _Passes:
    """Forward passes of a step."""

    def __init__(self, encoder: nn.Module, *, step: int, settings: StepSettings, ranks: Ranks) -> None:
        self._encoder, self._step, self._settings, self._ranks = encoder, step, settings, ranks

    def without_graph(self, cut: MicroBatches, chunks: list[list[Sequenced]], mine: list[int]) -> Tensor:
        """[S, D] vectors of the shared sequences; rows of other processes' chunks are 0."""
        settings = self._settings
        with torch.no_grad():
            parts = {number: self.encode_padded(chunks[number], micro_batch=number) for number in mine}
            if not parts:  # how long a vector is, and of which type
                parts[-1] = _encode_padded(self._encoder, chunks[0][:1], settings=settings)
        some = next(iter(parts.values()))
        vectors_SD = some.new_zeros(len(cut.shared), some.shape[1])
        for number in mine:
            vectors_SD[torch.tensor(cut.chunks[number], device=some.device)] = parts[number]
        return vectors_SD

    def encode(self, sequences: Sequence[Sequenced], *, micro_batch: int) -> Tensor:
        """[n, D] vectors of the sequences, in their order, as one graph, encoded in passes of similar lengths."""
        seed_dropout(self._settings.seed, self._step, micro_batch)
        # Two passes for a full group: as one, queries and short passages would be padded to the longest (8 % of the time on a CPU).
        chunks = token_budget_batches(list(map(token_count, sequences)), budget=self._settings.micro_batch_tokens // 2)
        parts = [_encode_padded(self._encoder, [sequences[row] for row in rows], settings=self._settings) for rows in chunks]
        return _in_given_order(torch.cat(parts), chunks)

    def encode_padded(self, sequences: Sequence[Sequenced], *, micro_batch: int) -> Tensor:
        """[n, D] vectors of a chunk; again the same ones when it is called again."""
        seed_dropout(self._settings.seed, self._step, micro_batch)
        return _encode_padded(self._encoder, sequences, settings=self._settings)

    def nothing(self) -> None:
        """Go back through one token with a gradient of 0, where this process has no work: the others wait for its part of the sum."""
        if self._ranks.size > 1:
            token = np.array([self._settings.pad_id], dtype=np.int32).tobytes()
            with self._ranks.gradient_pass(self._encoder, last=True):
                vector_1D = _encode_padded(self._encoder, [token], settings=self._settings)
                torch.autograd.backward(vector_1D, torch.zeros_like(vector_1D))


def seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    """Dropout masks of a micro-batch are a function of (seed, step, micro-batch) alone."""
    torch.manual_seed(hash64("dropout", seed, step, micro_batch))


def _encode_padded(encoder: nn.Module, sequences: Sequence[Sequenced], *, settings: StepSettings) -> Tensor:
    ids, mask = pad([np.frombuffer(sequence, dtype=np.int32).tolist() for sequence in sequences], value=settings.pad_id)
    # A context for each call: autocast's cache of cast weights, filled without a graph, would cut the gradient of a later call.
    autocast = torch.autocast(settings.device, dtype=torch.bfloat16, enabled=settings.precision == "bf16")
    with autocast, CheapDropout() if settings.device == "cpu" and settings.cheap_dropout else nullcontext():
        return encoder(ids.to(settings.device), mask.to(settings.device))


def _in_given_order(encoded_ND: Tensor, chunks: list[list[int]]) -> Tensor:
    place = np.empty(len(encoded_ND), dtype=np.int64)
    place[np.concatenate(chunks)] = np.arange(len(place))
    return encoded_ND.index_select(0, torch.from_numpy(place).to(encoded_ND.device))


def _total_loss(
    vectors_ND: Tensor, sequences: list[Sequenced], queries: Sequence[QueryWork], *, work: BatchWork, settings: StepSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """These queries' part of the total loss, and the losses of those that are asked for one. Outside of autocast: scores are fp32,
    losses fp64."""
    scores = _Scores(vectors_ND, sequences, scale=settings.score_scale)
    supervised = [query for query in queries if query.supervised]
    distilled = [query for query in queries if query.distilled]
    none = vectors_ND.new_zeros(0, dtype=torch.float64)
    supervised_B, distillation_B = none, none
    if supervised:
        scores_BK, mask_BK = scores.own(supervised, [query.supervised for query in supervised])
        negatives_BK, negatives_mask_BK = scores_BK[:, 1:], mask_BK[:, 1:]
        if work.in_batch in ("supervised", "both"):
            pool_BN, pool_mask_BN = scores.pool(supervised, work.pool)
            negatives_BK, negatives_mask_BK = torch.cat([negatives_BK, pool_BN], 1), torch.cat([negatives_mask_BK, pool_mask_BN], 1)
        supervised_B = supervised_loss(scores_BK[:, 0], negatives_BK, negatives_mask_BK)
    if distilled:
        scores_BK, mask_BK = scores.own(distilled, [query.distilled for query in distilled])
        logits_BK = _padded([query.teacher_logits for query in distilled], like_BK=scores_BK)
        if work.in_batch in ("distillation", "both"):
            pool_BN, pool_mask_BN = scores.pool(distilled, work.pool)
            never_BN = torch.full_like(pool_BN, -torch.inf)  # the teacher never scored them: probability 0
            scores_BK, mask_BK = torch.cat([scores_BK, pool_BN], 1), torch.cat([mask_BK, pool_mask_BN], 1)
            logits_BK = torch.cat([logits_BK, never_BN], 1)
        if settings.distillation == "curriculum":
            distillation_B = curriculum_loss(scores_BK, _padded([query.labels for query in distilled], like_BK=scores_BK), mask_BK)
        elif settings.distillation == "margin_mse":
            distillation_B = margin_mse_loss(scores_BK, logits_BK, mask_BK)
        else:
            distillation_B = distillation_loss(scores_BK, logits_BK, mask_BK, settings.temperature)
    total = work.supervised_weight * supervised_B.sum() + work.distillation_weight * distillation_B.sum()
    return total, supervised_B.detach(), distillation_B.detach()


def _padded(values: Sequence[NDArray[Any]], *, like_BK: Tensor) -> Tensor:
    """[B, K] of lists of numbers, in their own precision, 0 on padding."""
    padded = np.zeros(like_BK.shape, dtype=values[0].dtype)
    for row, own in enumerate(values):
        padded[row, : len(own)] = own
    return torch.from_numpy(padded).to(like_BK.device)


class _Scores:
    """Student scores, score_scale * <q, p>, between vectors of known sequences."""

    def __init__(self, vectors_ND: Tensor, sequences: list[Sequenced], *, scale: float) -> None:
        self._vectors_ND, self._scale = vectors_ND, scale
        self._place = {sequence: place for place, sequence in enumerate(sequences)}

    def _rows(self, places: Sequence[int]) -> Tensor:
        # index_select, not indexing: on a CPU the backward of indexing adds in an order that is not fixed.
        return self._vectors_ND.index_select(0, torch.tensor(places, device=self._vectors_ND.device))

    def _queries(self, queries: Sequence[QueryWork]) -> Tensor:
        return self._rows([self._place[query.query] for query in queries])

    def own(self, queries: Sequence[QueryWork], passages: Sequence[tuple[Sequenced, ...]]) -> tuple[Tensor, Tensor]:
        """[B, K] scores of each query's own passages, and the mask of those that are no padding."""
        longest = max(map(len, passages))
        mask = np.arange(longest) < np.array([[len(row)] for row in passages])
        places = [self._place[sequence] for row in passages for sequence in (*row, *row[:1] * (longest - len(row)))]
        passages_BKD = self._rows(places).view(len(passages), longest, -1)
        scores_BK = self._scale * torch.einsum("bd,bkd->bk", self._queries(queries), passages_BKD)
        return scores_BK, torch.from_numpy(mask).to(scores_BK.device)

    def pool(self, queries: Sequence[QueryWork], passages: Sequence[PoolPassage]) -> tuple[Tensor, Tensor]:
        """[B, N] scores of in-batch passages, and the mask of those that are negatives of the query: none equal to its own."""
        passages_ND = self._rows([self._place[passage.sequence] for passage in passages])
        scores_BN = self._scale * self._queries(queries) @ passages_ND.T
        mask = [[passage.sequence not in query.own and query.own.isdisjoint(passage.ids) for passage in passages] for query in queries]
        return scores_BN, torch.tensor(mask, device=scores_BN.device)
