"""The dev set as a trainer reads it, and the student's metrics on it by exact search.

    DIR/manifest.json                  names, rows, bytes and digests of the shards
    DIR/part-00000-of-00001.parquet    rows of `data.tables.schemas.DEV`; schema metadata "dev": see `DevMetadata`

Scores are products in float64, rounded to fp32; equal scores go by passage id: as in `retrieval.search.exact`, whatever the blocks.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.errors import RunFailed, UserError
from data.files.what_lies import refuse_other_table, what_lies
from data.formats.trec import Run
from data.tables.manifest import MANIFEST_NAME, Manifest
from data.tables.ragged import Ragged, bounds_of
from data.tables.schemas import DEV, SCHEMA_VERSION, DevRole
from data.tables.shards import read_row_groups
from retrieval.compute.batching import pad, token_budget_batches
from retrieval.evaluation.metrics import Qrels
from retrieval.evaluation.metrics import evaluate as evaluate_run

METADATA_KEY = b"dev"
METRICS = ("MRR@10", "nDCG@10", "Recall@100")
_BLOCK_PASSAGES = 8192  # encoded and searched at a time: enough that batches of like length need little padding
_TILE_QUERIES = 1024  # with a block: 64 MiB of scores in float64
_ROW_BITS = 32

Sequences = Sequence[NDArray[np.int32]]  # token ids of texts, special tokens included
Encode = Callable[[Sequences], Tensor]  # n sequences to [n, D] fp32 vectors


@dataclass(frozen=True)
class DevMetadata:
    """What the schema metadata says of how the dev set was made."""

    schema_version: int
    tokenizer: str  # digest of the student's tokenizer
    split: str  # of the qrels
    depth: int  # passages of each query's list in the first student's search
    random: int  # further passages by chance


@dataclass(frozen=True)
class DevSet:
    """Queries, passages and judgements. Passages are in the order of their ids."""

    digest: str
    metadata: DevMetadata
    query_ids: tuple[str, ...]
    queries: Ragged  # tokens
    doc_ids: tuple[str, ...]
    passages: Ragged  # tokens
    qrels: Qrels

    @cached_property
    def own_passages(self) -> frozenset[str]:
        """Queries that are passages themselves: the passage of a query's id has its tokens, and is no positive of it.

        Told by the tokens that not every query has (of the prefix), four fifths of them, since a passage may be cut.
        """
        tokens = [set(sequence.tolist()) for sequence in self.queries.part(0, len(self.queries))]
        everywhere, place = set.intersection(*tokens), {doc_id: row for row, doc_id in enumerate(self.doc_ids)}
        own = set()
        for query_id, mine in zip(self.query_ids, tokens, strict=True):
            if query_id in place and self.qrels[query_id].get(query_id, 0) <= 0 and (telling := mine - everywhere):
                (passage,) = self.passages.part(place[query_id], place[query_id] + 1)
                if len(telling & set(passage.tolist())) >= 0.8 * len(telling):
                    own.add(query_id)
        return frozenset(own)


def open_dev_set(folder: Path, *, tokenizer: str) -> DevSet:
    """Check a dev set, byte by byte, and read it.

    Args:
        folder: where manifest.json lies.
        tokenizer: digest of the student's tokenizer.

    Raises:
        UserError: no manifest, a missing shard, no dev set, another schema version, another tokenizer.
        DamagedShard: a shard whose bytes are not those that the manifest records.
    """
    manifest = Manifest.read(folder)
    if manifest is None:
        found = f"it is {what_lies(folder)}, without {MANIFEST_NAME}"
        raise UserError(f"dev={folder}: {found}; give the output folder of `prep run stage=dev` (see `prep path`)")
    refuse_other_table(folder, manifest, metadata=METADATA_KEY, option="dev", expected="a dev set, the output of stage=dev")
    metadata: DevMetadata | None = None
    rows = _Rows()
    for shard in manifest.shards:
        path = folder / shard.name
        shard.check(folder)
        metadata = _read_metadata(path, tokenizer=tokenizer)
        for group in read_row_groups(path):
            rows.add(group)
    if metadata is None or not rows.ids[DevRole.QUERY] or not rows.ids[DevRole.PASSAGE]:
        raise UserError(f"dev={folder}: no queries or no passages in it; make the dev set anew")
    doc_ids = rows.ids[DevRole.PASSAGE]
    if any(first >= second for first, second in itertools.pairwise(doc_ids)):
        raise UserError(f"dev={folder}: its passages are not in the order of their ids; make the dev set anew")
    queries, passages = rows.tokens(DevRole.QUERY), rows.tokens(DevRole.PASSAGE)
    return DevSet(manifest.content_digest, metadata, tuple(rows.ids[DevRole.QUERY]), queries, tuple(doc_ids), passages, rows.qrels)


class _Rows:
    """The rows of a dev set, read a row group at a time."""

    def __init__(self) -> None:
        self.ids: dict[DevRole, list[str]] = {role: [] for role in DevRole}
        self.qrels: dict[str, dict[str, int]] = {}
        self._tokens: dict[DevRole, list[Ragged]] = {role: [] for role in DevRole}

    def add(self, group: Any) -> None:
        roles, tokens = group.column("role").to_numpy(), Ragged.of_column(group.column("tokens"))
        for role in DevRole:
            places = np.flatnonzero(roles == role)
            mine = group.take(places)
            self.ids[role] += mine.column("id").to_pylist()
            self._tokens[role].append(tokens.take(places))
            if role == DevRole.QUERY:
                judged = (mine.column(name).to_pylist() for name in ("id", "judged_ids", "grades"))
                self.qrels.update({query: dict(zip(docs, grades, strict=True)) for query, docs, grades in zip(*judged, strict=True)})

    def tokens(self, role: DevRole) -> Ragged:
        parts = self._tokens[role]
        return Ragged(np.concatenate([part.values for part in parts]), bounds_of(np.concatenate([part.lengths for part in parts])))


def _read_metadata(path: Path, *, tokenizer: str) -> DevMetadata:
    schema = pq.read_schema(path)
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise UserError(f"{path} holds no dev set (no {METADATA_KEY.decode()!r} metadata); give dev= the output of stage=dev")
    content: dict[str, Any] = json.loads(raw)
    version = content.get("schema_version")
    if version != SCHEMA_VERSION or not schema.equals(DEV):
        raise UserError(
            f"{path} has schema version {version}, this trainer reads {SCHEMA_VERSION}: run `prep run stage=dev` with this version of the "
            "project and give the new folder"
        )
    metadata = DevMetadata(**{field.name: content[field.name] for field in fields(DevMetadata)})
    if metadata.tokenizer != tokenizer:
        raise UserError(
            f"{path} holds tokens of another tokenizer ({metadata.tokenizer}) than that of student.model ({tokenizer}): run "
            "`prep run stage=dev` with this student.model"
        )
    return metadata


def evaluate(encode: Encode, dev: DevSet, *, depth: int = 100) -> dict[str, float]:
    """Means over all queries of `METRICS`, as `retrieve evaluate` computes them: a query that is a passage does not find itself.

    Args:
        encode: token sequences to [n, D] fp32 vectors, on any device. It is asked for some thousands of passages at a time.
        dev: what to search.
        depth: passages of a query that are judged; below 100, Recall@100 is understated.

    Raises:
        RunFailed: a vector is not finite.
    """
    own = dev.own_passages  # left out, so that one more is searched for
    evaluation = evaluate_run(dev.qrels, search(encode, dev, depth=depth + bool(own)), without_own=own)
    return {name: evaluation.mean(name) for name in METRICS}


def search(encode: Encode, dev: DevSet, *, depth: int) -> Run:
    """The `depth` best passages of each query, fewer where the dev set has fewer. Raises as `evaluate` does."""
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    queries_QD = _vectors(encode, dev.queries.part(0, len(dev.queries)), what="queries")
    best_QK = torch.empty((len(queries_QD), 0), dtype=torch.int64, device=queries_QD.device)
    for first in range(0, len(dev.passages), _BLOCK_PASSAGES):
        block_ND = _vectors(encode, dev.passages.part(first, min(first + _BLOCK_PASSAGES, len(dev.passages))), what="passages")
        tiles = zip(queries_QD.split(_TILE_QUERIES), best_QK.split(_TILE_QUERIES), strict=True)
        best_QK = torch.cat([_better(best, queries @ block_ND.T, first=first, depth=depth) for queries, best in tiles])
    rows = ((1 << _ROW_BITS) - 1 - (best_QK & ((1 << _ROW_BITS) - 1))).tolist()
    scores = _scores_of(best_QK).tolist()
    return {
        query_id: [(dev.doc_ids[row], score) for row, score in zip(mine, of_mine, strict=True)]
        for query_id, mine, of_mine in zip(dev.query_ids, rows, scores, strict=True)
    }


def _vectors(encode: Encode, sequences: Sequences, *, what: str) -> Tensor:
    """[n, D] in float64. Searched, a vector that is not finite would rank first or nowhere without a word."""
    vectors_ND = encode(sequences).detach().double()
    if not bool(torch.isfinite(vectors_ND).all()):
        raise RunFailed(
            f"some of the student's vectors of dev {what} are not finite numbers: its weights are ruined; lower train.learning_rate"
        )
    return vectors_ND


def _better(best_QK: Tensor, scores_QN: Tensor, *, first: int, depth: int) -> Tensor:
    """The highest keys of a running best and a block of scores, falling: [Q, at most depth]."""
    found_QN = torch.cat([best_QK, _keys_of(scores_QN, first=first)], dim=1)
    return torch.topk(found_QN, min(depth, found_QN.shape[1]), dim=1).values


def _keys_of(scores_QN: Tensor, *, first: int) -> Tensor:
    """Scores in float64 to integers of which none are equal: the higher the fp32 score, the higher; of equal ones the lower row.

    The bits of an fp32 number, read as an integer, rise with it where it is positive and fall where it is negative.
    """
    bits = (scores_QN.float() + 0.0).view(torch.int32)  # -0.0 becomes 0.0, its equal
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    rows = torch.arange(first, first + scores_QN.shape[1], device=scores_QN.device)
    return (rising << _ROW_BITS) + ((1 << _ROW_BITS) - 1 - rows)


def _scores_of(keys: Tensor) -> Tensor:
    rising = (keys >> _ROW_BITS).to(torch.int32)
    return torch.where(rising < 0, rising ^ 0x7FFFFFFF, rising).view(torch.float32)


def encode_all(model: nn.Module, sequences: Sequences, *, budget_tokens: int, pad_id: int, device: str, precision: str) -> Tensor:
    """[n, D] fp32 vectors of token sequences, on the device: in eval mode, without gradients, in batches of like length.

    Args:
        model: (ids [n, L], mask [n, L]) to [n, D]; afterwards its modules are in the modes they were in.
        sequences: token ids, at least one of them.
        budget_tokens: of a batch, padding included.
        pad_id: the token of padding.
        device: where the model is: cpu or cuda.
        precision: fp32, or bf16 for autocast as in training.
    """
    batches = token_budget_batches([len(sequence) for sequence in sequences], budget=budget_tokens)
    autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")
    parts = []
    # Not inference_mode: what a model caches in there (rotary angles, say) cannot be used by a later training step. One autocast for all
    # batches: weights are cast once, and forgotten at its end.
    with _eval_mode(model), torch.no_grad(), autocast:
        for rows in batches:
            ids, mask = pad([sequences[row].tolist() for row in rows], value=pad_id)
            parts.append(model(ids.to(device), mask.to(device)).float())
    place = torch.empty(len(sequences), dtype=torch.int64)
    place[torch.tensor([row for rows in batches for row in rows])] = torch.arange(len(sequences))
    return torch.cat(parts).index_select(0, place.to(parts[0].device))


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode of all modules; then each is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
