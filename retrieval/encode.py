"""Texts to vectors in token-budget batches. `embed` and `retrieve` both encode here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from data.digests import DigestCache, json_digest
from data.errors import UserError
from data.manifest import Manifest, ShardRecord
from data.schemas import embeddings
from data.settings import Student
from data.shards import describe, read_footer, read_shard, write_shard
from retrieval import precision as precisions
from retrieval.batching import pad, token_budget_batches
from retrieval.dual_encoder import DualEncoder
from retrieval.student_spec import resolve_student
from retrieval.tokenizer import Tokenizer

TORCH_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TextEncoder:
    """A student ready to encode: weights in the chosen precision on the chosen device, in eval mode."""

    def __init__(self, student: Student, *, precision: str, device: str, batch_tokens: int) -> None:
        self.spec = resolve_student(student)
        self.model = DualEncoder(self.spec).eval().to(device=device, dtype=TORCH_TYPES[precision])
        self.tokenizer = Tokenizer(self.model.source)
        self._device, self._batch_tokens = device, batch_tokens

    def queries(self, texts: list[str], *, progress: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """[n, D] fp32 vectors of queries."""
        return self._encode([self.spec.query_prefix + text for text in texts], self.spec.query_tokens, progress)

    def passages(self, texts: list[str], *, progress: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """[n, D] fp32 vectors of passages."""
        return self._encode([self.spec.passage_prefix + text for text in texts], self.spec.passage_tokens, progress)

    @torch.inference_mode()
    def _encode(self, texts: list[str], max_tokens: int, progress: Callable[[int], None] | None) -> NDArray[np.float32]:
        tokens = self.tokenizer.encode(texts, max_tokens=max_tokens)
        vectors = np.empty((len(texts), self.model.size), dtype=np.float32)
        for rows in token_budget_batches([len(ids) for ids in tokens], budget=self._batch_tokens):
            ids, mask = pad([tokens[row] for row in rows], value=self.tokenizer.pad_id)
            vectors[rows] = self.model(ids.to(self._device), mask.to(self._device)).float().cpu().numpy()
            if progress:
                progress(len(rows))
        return vectors


def encode_shard(
    encoder: TextEncoder, table: pa.Table, *, kind: str, progress: Callable[[int], None] | None = None
) -> pa.Table:
    """A CORPUS or QUERIES shard to fp16 vectors (schema `embeddings`), in its row order. `kind` is corpus or queries."""
    encode, id_name = (encoder.passages, "doc_id") if kind == "corpus" else (encoder.queries, "query_id")
    vectors = encode(table.column("text").to_pylist(), progress=progress).astype(np.float16)
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), encoder.model.size)
    return pa.table([table.column(id_name), values], schema=embeddings(encoder.model.size, id_name=id_name))


def encode_table(
    student: Student, texts: Path, out: Path, *, kind: str, precision: str, device: str, batch_tokens: int, threads: int
) -> None:
    """Embed a stored table shard by shard into the folder `out`; shards that are complete there are kept.

    Raises UserError where `out` holds the embeddings of other texts or of another model.
    """
    if threads:
        torch.set_num_threads(threads)
    precision = precisions.resolve(precision, device=device)
    source = Manifest.read(texts)
    if source is None:
        raise UserError(f"texts={texts} is no stored table: it has no manifest.json (see `prep path stage=ingest`)")
    student_key = resolve_student(student).key(DigestCache(out.parent / "digests.json"))
    key = {"student": student_key, "precision": precision, "kind": kind, "texts": source.content_digest}
    fingerprint = json_digest(key)
    encoder: TextEncoder | None = None
    out.mkdir(parents=True, exist_ok=True)
    records = []
    for shard in source.shards:
        footer = read_footer(out / shard.name)
        if footer is not None and footer.get("fingerprint") != fingerprint:
            raise UserError(f"{out} holds embeddings of other texts or of another model; choose another out=FOLDER")
        if footer is None:
            encoder = encoder or TextEncoder(student, precision=precision, device=device, batch_tokens=batch_tokens)
            vectors = encode_shard(encoder, read_shard(texts / shard.name), kind=kind)
            write_shard(out / shard.name, vectors, {"fingerprint": fingerprint})
        records.append(ShardRecord(shard.name, *describe(out / shard.name)))
    rows = sum(record.rows for record in records)
    Manifest("embed", kind, fingerprint, key, records, {"in": rows, "kept": rows, "dropped": {}}).write(out)
