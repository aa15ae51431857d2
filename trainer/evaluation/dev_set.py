"""The dev set as a trainer reads it, and the student's metrics on it by exact search.

    DIR/manifest.json                  names, rows, bytes and digests of the shards
    DIR/part-00000-of-00001.parquet    rows of `data.tables.schemas.DEV`; metadata "dev": schema_version, tokenizer, split, depth, random;
                                       of a whole collection split, name

Passages are searched by `retrieval.search.exact`; equal scores go by passage id, since passages are in the order of their ids.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from data.errors import RunFailed, UserError
from data.files.what_lies import output_of
from data.formats.trec import Run
from data.tables.ragged import Ragged
from data.tables.schemas import DEV, SCHEMA_VERSION, DevRole
from data.tables.shards import read_row_groups
from retrieval.encoding.text_encoder import encode_tokens
from retrieval.encoding.vector_formats import first_dimensions
from retrieval.evaluation.metrics import Evaluation
from retrieval.evaluation.metrics import evaluate as evaluate_run
from retrieval.evaluation.qrels import Qrels
from retrieval.models.prompt_tokens import NO_PROMPTS, PromptLengths, marked
from retrieval.search.exact import exact_search
from retrieval.search.matmul import Vectors
from trainer.objective.dimensions import WHOLE, Dimensions
from trainer.steps.gradients import StepSettings
from trainer.steps.modes import in_mode

METADATA_KEY = b"dev"
OWN_NAME = "dev"  # of the set that `dev.queries` asks for, in which no name is written
METRICS = ("MRR@10", "nDCG@10", "Recall@100")
_BLOCK_PASSAGES = 8192  # encoded at a time: enough that batches of like length need little padding

Sequences = Sequence[NDArray[np.int32]]  # token ids of texts, special tokens included
Encode = Callable[[Sequences], Vectors]  # n sequences to [n, D] vectors


@dataclass(frozen=True)
class DevSet:
    """Queries, passages and judgements. Passages are in the order of their ids."""

    digest: str
    query_ids: tuple[str, ...]
    queries: Ragged  # tokens
    doc_ids: tuple[str, ...]
    passages: Ragged  # tokens
    qrels: Qrels
    prompts: PromptLengths = NO_PROMPTS  # leading tokens that the student does not pool
    name: str = OWN_NAME  # of its figures, where there are several sets

    @cached_property
    def own_passages(self) -> frozenset[str]:
        """Queries that are passages themselves: the passage of a query's id has its tokens, and is no positive of it.

        Known by the tokens that not every query has (of the prefix), four fifths of them, since a passage may be cut.
        """
        tokens = [set(sequence.tolist()) for sequence in self.queries.part(0, len(self.queries))]
        everywhere = set.intersection(*tokens)
        place = {doc_id: row for row, doc_id in enumerate(self.doc_ids)}
        own = set()
        for query_id, mine in zip(self.query_ids, tokens, strict=True):
            if query_id in place and self.qrels[query_id].get(query_id, 0) <= 0 and (marks := mine - everywhere):
                (passage,) = self.passages.part(place[query_id], place[query_id] + 1)
                if len(marks & set(passage.tolist())) >= 0.8 * len(marks):
                    own.add(query_id)
        return frozenset(own)


def open_dev_set(folder: Path, *, tokenizer: str, prompts: PromptLengths = NO_PROMPTS) -> DevSet:
    """Check a dev set, byte by byte, and read it. `tokenizer` is the digest of the student's, `prompts` what of a text it does not pool.

    Raises:
        UserError: no manifest, a missing shard, no dev set, another schema version, another tokenizer.
        DamagedShard: a shard whose bytes are not those that the manifest records.
    """
    manifest = output_of("dev", folder, metadata=METADATA_KEY, what="a dev set")
    groups, name = [DEV.empty_table()], OWN_NAME
    for shard in manifest.shards:
        shard.check(folder)
        name = _metadata_of(folder / shard.name, tokenizer=tokenizer).get("name", OWN_NAME)
        groups += read_row_groups(folder / shard.name)
    table = pa.concat_tables(groups)
    roles = table.column("role").to_numpy()
    queries, passages = (table.take(np.flatnonzero(roles == role)) for role in (DevRole.QUERY, DevRole.PASSAGE))
    if not len(queries) or not len(passages):
        raise UserError(f"dev={folder}: no queries or no passages in it; make the dev set again")
    query_ids, doc_ids = queries.column("id").to_pylist(), passages.column("id").to_pylist()
    if any(first >= second for first, second in itertools.pairwise(doc_ids)):
        raise UserError(f"dev={folder}: its passages are not in the order of their ids; make the dev set again")
    judged = zip(queries.column("judged_ids").to_pylist(), queries.column("grades").to_pylist(), strict=True)
    return DevSet(
        digest=manifest.content_digest,
        query_ids=tuple(query_ids),
        queries=Ragged.of_lists(queries.column("tokens").combine_chunks()),
        doc_ids=tuple(doc_ids),
        passages=Ragged.of_lists(passages.column("tokens").combine_chunks()),
        qrels={query: dict(zip(docs, grades, strict=True)) for query, (docs, grades) in zip(query_ids, judged, strict=True)},
        prompts=prompts,
        name=name,
    )


def _metadata_of(path: Path, *, tokenizer: str) -> dict[str, Any]:
    """What its schema says of a dev set that this student can read."""
    schema = pq.read_schema(path)
    content: dict[str, Any] = json.loads((schema.metadata or {}).get(METADATA_KEY, "{}"))
    version = content.get("schema_version")
    own = content.get("tokenizer")
    if version != SCHEMA_VERSION or not schema.equals(DEV):
        raise UserError(
            f"{path} has schema version {version}, this trainer reads {SCHEMA_VERSION}: run `prep run stage=dev` with this version of the "
            "project and give the new folder"
        )
    if own != tokenizer:
        raise UserError(
            f"{path} holds tokens of another tokenizer ({own}) than that of student.model ({tokenizer}): run `prep run stage=dev` with "
            "this student.model"
        )
    return content


def evaluate(encode: Encode, dev: DevSet, *, depth: int = 100, dimensions: Dimensions = WHOLE) -> dict[str, float]:
    """Means over all queries of `METRICS`, as `retrieve evaluate` computes them: a query that is a passage does not find itself.

    `depth` passages of a query are judged; below 100, Recall@100 is understated. `MRR@10/64` is of vectors cut to 64 dimensions, for
    those of `dimensions` that cut them. Raises RunFailed where a vector is not finite.
    """
    own = dev.own_passages  # left out, so that one more is searched for
    vectors = encoded(encode, dev)

    def judged(kept: int) -> Evaluation:
        cut = vectors.cut(kept, normalize=dimensions.normalize)
        return evaluate_run(dev.qrels, search(cut, dev, depth=depth + bool(own)), without_own=own)

    whole = judged(vectors.size)
    figures = {name: whole.mean(name) for name in METRICS}
    return figures | {f"{METRICS[0]}/{kept}": judged(kept).mean(METRICS[0]) for kept in dimensions.below(vectors.size)}


@dataclass(frozen=True)
class DevVectors:
    """Vectors of a dev set: of its queries [n, D], and of its passages in blocks (number of the first row, [b, D])."""

    queries: Vectors
    blocks: Sequence[tuple[int, Vectors]]

    @property
    def size(self) -> int:
        """D."""
        return int(self.queries.shape[1])

    def cut(self, kept: int, *, normalize: bool) -> DevVectors:
        """The first dimensions of each, with `normalize` of length 1 again."""
        return DevVectors(first_dimensions(self.queries, kept, normalize=normalize), [
            (row, first_dimensions(block, kept, normalize=normalize)) for row, block in self.blocks
        ])  # fmt: skip


def encoded(encode: Encode, dev: DevSet) -> DevVectors:
    """The vectors of a dev set. Raises RunFailed where one is not finite."""

    def part(texts: Ragged, start: int, stop: int, *, unpooled: int, what: str) -> Vectors:
        return _finite(encode([marked(tokens, unpooled) for tokens in texts.part(start, stop)]), what=what)

    queries = part(dev.queries, 0, len(dev.queries), unpooled=dev.prompts.query, what="queries")
    starts = range(0, len(dev.passages), _BLOCK_PASSAGES)
    blocks = [
        (start, part(dev.passages, start, start + _BLOCK_PASSAGES, unpooled=dev.prompts.passage, what="passages")) for start in starts
    ]
    return DevVectors(queries, blocks)


def search(vectors: DevVectors, dev: DevSet, *, depth: int) -> Run:
    """The `depth` best passages of each query, fewer where the dev set has fewer."""
    scores, rows = exact_search(vectors.queries, vectors.blocks, k=depth, threads=torch.get_num_threads())
    return {
        query_id: [(dev.doc_ids[row], score) for row, score in zip(mine, of_mine, strict=True) if row >= 0]
        for query_id, mine, of_mine in zip(dev.query_ids, rows.tolist(), scores.tolist(), strict=True)
    }


def _finite(vectors: Vectors, *, what: str) -> Vectors:
    """Searched, a vector that is not finite would rank first or nowhere without a word."""
    if not np.isfinite(vectors).all():
        raise RunFailed(
            f"some of the student's vectors of dev {what} are not finite numbers: its weights are ruined; lower train.learning_rate"
        )
    return vectors


def encode_all(model: Any, sequences: Sequences, *, settings: StepSettings) -> NDArray[np.float32]:
    """[n, D] vectors of token sequences by a student in training, in eval mode and without gradients.

    Its modules are in the modes they were in afterwards. Precision and tokens of a batch are those of the training.
    """
    autocast = torch.autocast(settings.device, dtype=torch.bfloat16, enabled=settings.precision == "bf16")
    # Not inference_mode: what a model caches in there (rotary angles, say) cannot be used by a later training step. One autocast for
    # all batches: weights are cast once, and forgotten at its end.
    with in_mode(model, training=False), torch.no_grad(), autocast:
        return encode_tokens(
            model, sequences, size=model.size, batch_tokens=settings.micro_batch_tokens, pad_id=settings.pad_id, device=settings.device
        )
