"""Texts to vectors in token-budget batches. `embed` and `retrieve` both encode here."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from data.digests import DigestCache, json_digest
from data.errors import RunFailed, UserError
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
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda, but torch sees no GPU here; use device=cpu")
        self.spec = resolve_student(student)
        self.model = DualEncoder(self.spec).eval().to(device=device, dtype=TORCH_TYPES[precision])
        self.tokenizer = Tokenizer(self.model.source, lower_case=self.spec.lower_case)
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


def encode_shard(encoder: TextEncoder, table: pa.Table, *, kind: str, progress: Callable[[int], None] | None = None) -> pa.Table:
    """A CORPUS or QUERIES shard to fp16 vectors (schema `embeddings`), in its row order. `kind` is corpus or queries.

    Raises RunFailed where a vector is not finite in fp16 (above 65,504, or a checkpoint with broken weights): searched, it would
    rank first or nowhere without a word.
    """
    encode, id_name = (encoder.passages, "doc_id") if kind == "corpus" else (encoder.queries, "query_id")
    with np.errstate(over="ignore"):  # an overflow is found below, by name
        vectors = encode(table.column("text").to_pylist(), progress=progress).astype(np.float16)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        first = table.column(id_name)[int(broken[0])].as_py()
        raise RunFailed(
            f"{len(broken)} vectors are not finite in fp16, the first of {id_name} {first}: check the weights, or set normalize=true"
        )
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), encoder.model.size)
    return pa.table([table.column(id_name), values], schema=embeddings(encoder.model.size, id_name=id_name))


def encode_table(
    student: Student,
    texts: Path,
    out: Path,
    *,
    kind: str,
    precision: str,
    device: str,
    batch_tokens: int,
    threads: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Embed a stored table shard by shard into the folder `out`; shards that are complete there are kept, the manifest comes last.

    Args:
        student: the encoder.
        texts: a stored table of schema CORPUS or QUERIES.
        out: the folder of the embeddings table.
        kind: corpus or queries.
        precision: auto, fp32, bf16 or fp16.
        device: cpu or cuda.
        batch_tokens: tokens of a batch, padding included.
        threads: CPU threads; 0 takes all.
        report: is told of every finished shard, one line each.

    Raises:
        UserError: `texts` is no such table, or `out` holds the embeddings of other texts or of another model.
    """
    if threads:
        torch.set_num_threads(threads)
    precision = precisions.resolve(precision, device=device)
    source = _text_table(texts, kind=kind)
    student_key = resolve_student(student).key(DigestCache(out.parent / "digests.json"))
    key = {"student": student_key, "precision": precision, "kind": kind, "texts": source.content_digest}
    fingerprint = json_digest(key)
    encoder: TextEncoder | None = None
    records = []
    for shard in source.shards:
        footer = read_footer(out / shard.name)
        if footer is not None and footer.get("fingerprint") != fingerprint:
            raise UserError(f"{out} holds embeddings of other texts or of another model; choose another out=FOLDER")
        if footer is None:
            encoder = encoder or TextEncoder(student, precision=precision, device=device, batch_tokens=batch_tokens)
            started = time.monotonic()
            vectors = encode_shard(encoder, read_shard(texts / shard.name), kind=kind)
            write_shard(out / shard.name, vectors, {"fingerprint": fingerprint})
            report(f"{shard.name}: {shard.rows:,} texts, {shard.rows / max(time.monotonic() - started, 1e-9):,.0f} texts/s")
        records.append(ShardRecord(shard.name, *describe(out / shard.name)))
    rows = sum(record.rows for record in records)
    Manifest("embed", kind, fingerprint, key, records, {"in": rows, "kept": rows, "dropped": {}}).write(out)


def _text_table(texts: Path, *, kind: str) -> Manifest:
    if kind not in ("corpus", "queries"):
        raise UserError(f"kind={kind}: expected corpus or queries")
    source = Manifest.read(texts)
    if source is None:
        raise UserError(f"texts={texts} is no stored table: it has no manifest.json (see `prep path stage=ingest`)")
    if source.table not in ("", kind):  # else passages would be cut and prefixed like queries, or the other way round
        raise UserError(f"texts={texts} is the table {source.table} of {source.stage}, but kind={kind}")
    return source
