"""The gradient of a global batch, in micro-batches: encode, compare, go back.

Without in-batch negatives a query's loss needs only its own passages: groups of whole queries are encoded, and each group's graph is
freed before the next. With them the loss needs every passage of the batch: gradient caching (Gao et al., 2021, GradCache) encodes all
without a graph, takes the loss and its gradient at the vectors, then encodes each micro-batch again and sends these gradients through
it. Both give the gradient of the undivided batch.

Dropout is seeded by (seed, step, micro-batch): a resumed run draws the same masks, the second encoding repeats the first, and several
micro-batches can be computed at the same time (`trainer.workers`).

Shapes: n sequences of L tokens, D dimensions, B queries, K candidates, N in-batch passages.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from data.digests import hash64
from retrieval.batching import pad, token_budget_batches
from trainer.batch import BatchWork, PoolPassage, QueryWork, Sequenced, query_groups, token_count
from trainer.dropout import CheapDropout
from trainer.losses import distillation_loss, supervised_loss
from trainer.masks import seed_masks
from trainer.packing import packs
from trainer.workers import Workers

Encoder = nn.Module  # [n, L] ids and mask to [n, D] vectors


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


@dataclass(frozen=True)
class QueryLosses:
    """Unweighted losses by query, nats; only of the queries they were asked of."""

    supervised: dict[str, float]
    distillation: dict[str, float]


def accumulate_gradients(workers: Workers, work: BatchWork, *, step: int, settings: StepSettings) -> QueryLosses:
    """Add the gradient of the total loss (ADAM, Eq. 9) to the parameters of the workers' model. Returns each query's losses."""
    if work.pool:
        parts = _with_cached_gradients(workers, work, step=step, settings=settings)
    else:
        parts = _by_groups(workers, work, step=step, settings=settings)
    losses = QueryLosses({}, {})
    for queries, supervised_B, distillation_B in parts:  # read after the last group: each read waits for the device
        losses.supervised.update(zip([q.query_id for q in queries if q.supervised], supervised_B.tolist(), strict=True))
        losses.distillation.update(zip([q.query_id for q in queries if q.distilled], distillation_B.tolist(), strict=True))
    return losses


Part = tuple[Sequence[QueryWork], Tensor, Tensor]


def _by_groups(workers: Workers, work: BatchWork, *, step: int, settings: StepSettings) -> list[Part]:
    groups = query_groups(work.queries, budget=settings.micro_batch_tokens)
    parts: dict[int, Part] = {}

    def go(encoder: Encoder, micro_batch: int, shared: Tensor | None) -> None:
        queries = groups[micro_batch]
        sequences = list(dict.fromkeys(sequence for query in queries for sequence in query.sequences))
        seed_dropout(settings.seed, step, micro_batch)
        vectors_ND = encode(encoder, sequences, settings=settings)
        total, parts[micro_batch] = _total_loss(vectors_ND, sequences, queries, work=work, settings=settings)
        total.backward()

    workers.each([sum(query.tokens for query in queries) for queries in groups], go)
    return [parts[micro_batch] for micro_batch in range(len(groups))]


def _with_cached_gradients(workers: Workers, work: BatchWork, *, step: int, settings: StepSettings) -> list[Part]:
    wanted = [sequence for query in work.queries for sequence in query.sequences] + [passage.sequence for passage in work.pool]
    sequences = list(dict.fromkeys(wanted))
    lengths = [token_count(sequence) for sequence in sequences]
    chunks = token_budget_batches(lengths, budget=settings.micro_batch_tokens)
    sizes = [sum(lengths[row] for row in rows) for rows in chunks]
    encoded: dict[int, Tensor] = {}

    def encode_chunk(encoder: Encoder, micro_batch: int) -> Tensor:
        seed_dropout(settings.seed, step, micro_batch)
        return _encode_padded(encoder, [sequences[row] for row in chunks[micro_batch]], settings=settings)

    def forward(encoder: Encoder, micro_batch: int, shared: Tensor | None) -> None:
        with torch.no_grad():  # it belongs to the thread
            encoded[micro_batch] = encode_chunk(encoder, micro_batch)

    workers.each(sizes, forward)
    encoded_ND = torch.cat([encoded[micro_batch] for micro_batch in range(len(chunks))])
    vectors_ND = _in_given_order(encoded_ND, chunks).requires_grad_()
    queries = [query for query in work.queries if query.sequences]
    total, part = _total_loss(vectors_ND, sequences, queries, work=work, settings=settings)
    total.backward()
    assert vectors_ND.grad is not None
    gradient_ND = vectors_ND.grad

    def backward(encoder: Encoder, micro_batch: int, shared: Tensor | None) -> None:
        rows = torch.tensor(chunks[micro_batch], device=gradient_ND.device)
        torch.autograd.backward(encode_chunk(encoder, micro_batch), gradient_ND[rows])

    workers.each(sizes, backward)
    return [part]


def seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    """Dropout masks of a micro-batch are a function of (seed, step, micro-batch) alone."""
    key = hash64("dropout", seed, step, micro_batch)
    seed_masks(key)
    torch.manual_seed(key)  # for GPUs, and for models with dropout of their own


def encode(encoder: Encoder, sequences: Sequence[Sequenced], *, settings: StepSettings) -> Tensor:
    """[n, D] vectors of the sequences, in their order, as one graph, encoded in passes of similar lengths."""
    # Two passes for a full group, or queries and short passages would be padded to the longest (8 % of the time on a CPU); unless they
    # are packed, when each pass more is another cast of the weights.
    budget = settings.micro_batch_tokens // (1 if packs(encoder) else 2)
    chunks = token_budget_batches([token_count(sequence) for sequence in sequences], budget=budget)
    parts = [_encode_padded(encoder, [sequences[row] for row in rows], settings=settings) for rows in chunks]
    return _in_given_order(torch.cat(parts), chunks)


def _encode_padded(encoder: Encoder, sequences: Sequence[Sequenced], *, settings: StepSettings) -> Tensor:
    ids, mask = pad([np.frombuffer(sequence, dtype=np.int32).tolist() for sequence in sequences], value=settings.pad_id)
    # No cache: cast weights that were kept without a graph would cut the gradient of a later call, and threads share it.
    autocast = torch.autocast(settings.device, dtype=torch.bfloat16, enabled=settings.precision == "bf16", cache_enabled=False)
    with autocast, CheapDropout() if settings.device == "cpu" else nullcontext():
        return encoder(ids.to(settings.device), mask.to(settings.device))


def _in_given_order(encoded_ND: Tensor, chunks: list[list[int]]) -> Tensor:
    place = np.empty(len(encoded_ND), dtype=np.int64)
    place[np.concatenate(chunks)] = np.arange(len(place))
    return encoded_ND.index_select(0, torch.from_numpy(place).to(encoded_ND.device))


def _total_loss(
    vectors_ND: Tensor, sequences: list[Sequenced], queries: Sequence[QueryWork], *, work: BatchWork, settings: StepSettings
) -> tuple[Tensor, Part]:
    """These queries' part of the total loss, and their losses one by one. Outside of autocast: scores are fp32, losses fp64."""
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
        logits_BK = torch.zeros_like(scores_BK)
        for row, query in enumerate(distilled):
            logits_BK[row, : len(query.distilled)] = torch.from_numpy(query.teacher_logits)
        if work.in_batch in ("distillation", "both"):
            pool_BN, pool_mask_BN = scores.pool(distilled, work.pool)
            never_BN = torch.full_like(pool_BN, -torch.inf)  # the teacher never scored them: probability 0
            scores_BK, mask_BK = torch.cat([scores_BK, pool_BN], 1), torch.cat([mask_BK, pool_mask_BN], 1)
            logits_BK = torch.cat([logits_BK, never_BN], 1)
        distillation_B = distillation_loss(scores_BK, logits_BK, mask_BK, settings.temperature)
    total = work.supervised_weight * supervised_B.sum() + work.distillation_weight * distillation_B.sum()
    return total, (queries, supervised_B.detach(), distillation_B.detach())


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
