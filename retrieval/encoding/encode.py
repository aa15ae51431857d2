"""Stored tables of texts to stored tables of vectors. The stage `embed` and `retrieve encode` are this one code."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from data.config.settings import Embed, Student
from data.digests import DigestCache, json_digest
from data.errors import RunFailed, UserError
from data.tables.device_note import note_device
from data.tables.manifest import Manifest, ShardRecord, refuse_others
from data.tables.ragged import Ragged
from data.tables.shards import describe, open_shard, read_footer, read_row_groups
from retrieval.batches.encoded import ragged
from retrieval.compute import precision as precisions
from retrieval.compute.prefetch import ahead, behind
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.encoding.vector_formats import QUANTIZED, VectorFormat
from retrieval.models.student import EMBEDDING_VERSION, OF_THE_OTHERS, StudentSpec, resolve_student
from retrieval.search.embedding_table import manifest_of

_CALIBRATED_ROWS = 16_384  # passages whose values give the ranges of int8 and uint8, spread evenly over the corpus
_ID_NAMES = {"corpus": "doc_id", "queries": "query_id"}
_WINDOW_ROWS = 8192  # texts in work at a time: sorted by length within a window, so that padding is small and memory bounded


def embedded_groups(
    encoder: TextEncoder,
    texts: Path,
    *,
    kind: str,
    stored: VectorFormat | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Iterator[pa.Table]:
    """A CORPUS or QUERIES shard to vectors (schema `embeddings`), in its row order, a window at a time.

    The next window is tokenised, and the vectors of the last one are checked and stored, while one is computed. `kind` is corpus or
    queries, `stored` what becomes of a vector; None: fp16.

    Raises RunFailed where a vector is not finite in fp16 (above 65,504, or a checkpoint with broken weights): searched, it would
    rank first or nowhere without a word.
    """
    id_name, tokens_of = _ID_NAMES[kind], encoder.passage_tokens if kind == "corpus" else encoder.query_tokens
    stored = stored or VectorFormat("fp16", encoder.size)

    def windows() -> Iterator[tuple[pa.ChunkedArray, Ragged]]:
        waiting: list[pa.Table] = []
        groups = read_row_groups(texts, columns=[id_name, "text"])
        for group in itertools.chain(groups, [None]):
            waiting += [group] if group is not None else []
            if waiting and (group is None or sum(table.num_rows for table in waiting) >= _WINDOW_ROWS):
                table, waiting = pa.concat_tables(waiting), []
                yield table.column(id_name), ragged(tokens_of(table.column("text").to_numpy().tolist()))

    last: Future[pa.Table] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="store") as thread, contextlib.closing(ahead(windows())) as made:
        for ids, tokens in made:
            vectors = encoder.vectors(tokens, progress=progress)
            if last is not None:
                yield last.result()
            last = thread.submit(_rows, ids, vectors, stored=stored, id_name=id_name)
        if last is not None:
            yield last.result()


def _rows(ids: pa.ChunkedArray, vectors: NDArray[np.float32], *, stored: VectorFormat, id_name: str) -> pa.Table:
    with np.errstate(over="ignore"):  # an overflow is found below, by name
        finite = np.isfinite(vectors.astype(np.float16)).all(axis=1)
    broken = np.flatnonzero(~finite)
    if len(broken):
        first = ids[int(broken[0])].as_py()
        found = f"{len(broken)} vectors are not finite in fp16, the first of {id_name} {first}"
        raise RunFailed(f"{found}: check the weights, or set normalize=true")
    numbers = pa.array(stored.store(vectors).reshape(-1))
    return pa.table([ids, pa.FixedSizeListArray.from_arrays(numbers, stored.width)], schema=stored.schema(id_name=id_name))


@dataclass(frozen=True)
class TableEncoding:
    """How a stored table of texts becomes vectors, found out before any work."""

    spec: StudentSpec
    kind: str  # corpus or queries
    precision: str  # of the computation: fp32, bf16 or fp16
    form: str  # what is stored: fp16, or one of `QUANTIZED`
    device: str
    dimensions: int | None  # that were asked for
    student_key: dict[str, Any]  # of all of the student's settings
    key: dict[str, Any]  # what decides the bytes
    digests: DigestCache

    @property
    def fingerprint(self) -> str:
        """Of the vectors."""
        return json_digest(self.key)


def table_encoding(
    student: Student,
    texts: Path,
    digests: DigestCache,
    *,
    kind: str,
    precision: str,
    device: str,
    dimensions: int | None = None,
    of_kind: bool = False,
) -> TableEncoding:
    """What `write_vectors` will do, by the arguments of `encode_table`.

    With `of_kind` the key is without what the vectors of this kind do not depend on: other prompts for queries leave a corpus as it is.

    Raises UserError: `texts` is no such table, queries are to be quantised, what `resolve_student` refuses.
    """
    form = precision if precision in QUANTIZED else "fp16"
    if form != "fp16":
        precision = "auto"
        if kind == "queries":
            raise UserError(
                f"precision={form} is how a corpus is stored; queries are few and rank better in fp16: encode them with precision=auto, "
                "and search the corpus with them"
            )
    if precision == "auto" and kind == "queries":
        precision = Embed().query_precision
    precision = precisions.resolve(precision, device=device)
    source = manifest_of(texts)
    if source.table not in ("", kind):  # else passages would be cut and prefixed like queries, or the other way round
        raise UserError(f"texts={texts} is the table {source.table} of {source.stage}, but kind={kind}")
    spec = resolve_student(student)
    if dimensions:
        spec = replace(spec, truncate_dim=dimensions if spec.truncate_dim is None else min(dimensions, spec.truncate_dim))
    student_key = spec.key(digests)
    own = {name: value for name, value in student_key.items() if not (of_kind and name in OF_THE_OTHERS[kind])}
    key = {"version": EMBEDDING_VERSION, "student": own, "precision": precisions.class_of(precision)}
    key |= {"kind": kind, "texts": source.content_digest, **({} if form == "fp16" else {"stored": form})}
    return TableEncoding(spec, kind, precision, form, device, dimensions, student_key, key, digests)


def encode_table(
    student: Student,
    texts: Path,
    out: Path,
    *,
    kind: str,
    precision: str,
    device: str,
    dimensions: int | None = None,
    batch_tokens: int | None = None,
    threads: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Embed a stored table shard by shard into the folder `out`; shards that are complete there are kept, the manifest comes last.

    Args:
        student: the encoder.
        texts: a stored table of schema CORPUS or QUERIES.
        out: the folder of the embeddings table.
        kind: corpus or queries.
        precision: of the computation fp32, bf16, fp16 or auto, which is fp32 for queries and for passages bf16 where the device computes
            it; or of what is stored, one of `QUANTIZED`, computed as by auto.
        device: cpu or cuda.
        dimensions: first ones that are kept of a vector, which gets length 1 again where the student normalises; None: all.
        batch_tokens: tokens of a batch, padding included; None takes the device's default.
        threads: CPU threads; 0 takes all.
        report: gets a line for every finished shard.

    Raises:
        UserError: `texts` is no such table, `out` holds the embeddings of other texts or of another model, queries are to be quantised,
            or a vector has fewer than `dimensions`.
    """
    if threads:
        torch.set_num_threads(threads)
    digests = DigestCache(out.parent / "digests.json")
    encoding = table_encoding(student, texts, digests, kind=kind, precision=precision, device=device, dimensions=dimensions)
    write_vectors(encoding, texts, out, batch_tokens=batch_tokens, report=report)


def write_vectors(
    encoding: TableEncoding,
    texts: Path,
    out: Path,
    *,
    batch_tokens: int | None = None,
    report: Callable[[str], None] = lambda line: None,
    open_encoder: Callable[..., TextEncoder] = TextEncoder,
) -> None:
    """The work of `encode_table`. `open_encoder` may give one that was opened before."""
    spec, kind, fingerprint = encoding.spec, encoding.kind, encoding.fingerprint
    source = manifest_of(texts)
    footers = {shard.name: read_footer(out / shard.name) for shard in source.shards}
    refuse_others(out, fingerprint, footers, what="embeddings of other texts or of another model")
    missing = [shard for shard in source.shards if footers[shard.name] is None]
    if missing:
        note_device(out, encoding.device, option="device", begun=any(footers.values()))
        for note in spec.notes:
            report(f"note: {note}")
        encoder = open_encoder(spec, precision=encoding.precision, device=encoding.device, batch_tokens=batch_tokens)
        if encoding.dimensions and encoder.size < encoding.dimensions:
            raise UserError(f"dimensions={encoding.dimensions}: the vectors of model={spec.folder} have {encoder.size}")
        stored = _format(encoder, source, texts, footers, form=encoding.form, report=report)
        schema = stored.schema(id_name=_ID_NAMES[kind])
    for shard in missing:
        started = time.monotonic()
        with open_shard(out / shard.name, schema, {"fingerprint": fingerprint, **stored.footer}) as writer:
            with behind() as write_behind:
                for group in embedded_groups(encoder, texts / shard.name, kind=kind, stored=stored):
                    write_behind(writer.write, group)
            if spec.key(encoding.digests) != encoding.student_key:
                raise RunFailed(f"the files of model={spec.folder} changed while {shard.name} was computed; start the command again")
        report(f"{shard.name}: {shard.rows:,} texts, {shard.rows / max(time.monotonic() - started, 1e-9):,.0f} texts/s")
    records = [ShardRecord(shard.name, *describe(out / shard.name)) for shard in source.shards]
    counts = {"in": source.rows, "kept": source.rows, "dropped": {}}
    Manifest("embed", kind, fingerprint, encoding.key, records, counts).write(out)


def _format(
    encoder: TextEncoder,
    source: Manifest,
    texts: Path,
    footers: dict[str, dict[str, Any] | None],
    *,
    form: str,
    report: Callable[[str], None],
) -> VectorFormat:
    """The format of the vectors: that of a shard which is complete already, else by passages of the corpus. Those are embedded twice."""
    if form == "fp16":
        return VectorFormat(form, encoder.size)
    for footer in footers.values():
        if footer is not None:
            return VectorFormat.of_footer(footer)
    if form in ("binary", "ubinary"):
        return VectorFormat(form, encoder.size)
    every = max(1, -(-source.rows // _CALIBRATED_ROWS))
    sample: list[str] = []
    row = 0
    for shard in source.shards:
        for group in read_row_groups(texts / shard.name, columns=["text"]):
            sample += group.column("text").take(pa.array(range(-row % every, group.num_rows, every), pa.int64())).to_pylist()
            row += group.num_rows
    if not sample:
        raise UserError(f"texts={texts} holds no passages, and precision={form} goes by their values")
    report(f"{form}: ranges of each dimension by {len(sample):,} passages")
    return VectorFormat.calibrated(form, encoder.passages(sample))
