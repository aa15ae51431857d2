"""One query against a stored corpus: the passages that a student finds for it, with their texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.config.settings import Student
from data.digests import DigestCache
from data.errors import UserError
from data.tables.manifest import Manifest
from retrieval.models.student import StudentSpec, resolve_student
from retrieval.search.embedding_table import EmbeddingTable
from retrieval.search.searcher import Searcher, ranked
from retrieval.search.stored_texts import texts_of

# What the vectors of query and passage must have in common.
_SHARED = ("weights", "tokenizer", "layers", "pooling", "normalize")
# What a corpus table may say of how its student reads queries (`retrieve encode` notes it, `prep` does not).
_READ_BACK = ("layers", "pooling", "normalize", "query_prefix", "query_tokens")


@dataclass(frozen=True)
class Hit:
    """A passage found."""

    rank: int
    score: float
    doc_id: str
    text: str


def noted_settings(corpus: Path) -> dict[str, str]:
    """The settings of a student, as words, that an embeddings table notes in its manifest."""
    key = _student_key(corpus)
    return {name: "null" if key[name] is None else str(key[name]) for name in _READ_BACK if name in key}


def _student_key(corpus: Path) -> dict[str, Any]:
    manifest = Manifest.read(corpus)
    if manifest is None:
        raise UserError(f"corpus={corpus} is no stored table: it has no manifest.json (see `prep path stage=embed table=corpus`)")
    return manifest.key.get("student") or manifest.key.get("settings", {}).get("student") or {}


def check_same_student(student: StudentSpec, corpus: Path) -> None:
    """Raises UserError where the corpus was embedded with another model, pooling or number of layers: the scores would mean nothing."""
    noted, own = _student_key(corpus), student.key(DigestCache(corpus.parent / "digests.json"))
    differing = [name for name in _SHARED if name in noted and noted[name] != own[name]]
    if noted and noted.get("truncate_dim") != own.get("truncate_dim"):  # keyed only where vectors are cut
        differing.append("truncate_dim")
    if differing:
        told = [f"{name}={noted.get(name)}" for name in differing if name not in ("weights", "tokenizer")]
        raise UserError(
            f"model={student.folder}: {corpus} was embedded with another model (differing: {', '.join(differing)})"
            + (f"; it was {', '.join(told)}" if told else "")
        )


def find(
    text: str,
    student: Student,
    *,
    corpus: Path,
    texts: Path,
    k: int,
    precision: str = "fp32",
    device: str = "cpu",
    threads: int = 1,
    memory_gb: float = 4.0,
) -> list[Hit]:
    """The k passages of the largest inner product with the query, best first.

    Args:
        text: the query.
        student: what embedded the corpus.
        corpus: its stored embeddings, read once, block by block.
        texts: the stored corpus table that they were made from.
        k: passages; fewer where the corpus is smaller.
        precision: fp32, bf16 or fp16, of the query's vector.
        device: cpu or cuda.
        threads: CPU threads of the search.
        memory_gb: peak memory of the process.

    Raises:
        UserError: another student, no such tables, or a passage found that `texts` does not have.
    """
    spec = resolve_student(student)
    check_same_student(spec, corpus)
    from retrieval.compute.batching import DEFAULT_BATCH_TOKENS
    from retrieval.encoding.text_encoder import TextEncoder

    encoder = TextEncoder(spec, precision=precision, device=device, batch_tokens=DEFAULT_BATCH_TOKENS[device])
    table = EmbeddingTable(corpus, "doc_id")
    (found_rows,) = Searcher(table, memory_gb=memory_gb, threads=threads).search(encoder.queries([text]), k=k)
    doc_ids, scores = ranked(found_rows.scores, found_rows.rows, table.ids)[0]
    found = texts_of(doc_ids, texts, id_name="doc_id")
    missing = [doc_id for doc_id in doc_ids if doc_id not in found]
    if missing:
        raise UserError(f"texts={texts} does not have passage {missing[0]} of {corpus}: is it another collection's?")
    return [Hit(rank, score, doc_id, found[doc_id]) for rank, (doc_id, score) in enumerate(zip(doc_ids, scores, strict=True), 1)]


def one_line(text: str, *, width: int) -> str:
    """The text on one line of at most `width` characters, an ellipsis where it is cut."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"
