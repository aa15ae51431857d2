"""One query against a stored corpus: the passages that a student finds for it, with their texts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from data.config.settings import Student
from data.digests import DigestCache
from data.errors import UserError
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.models.student import StudentSpec, resolve_student
from retrieval.search.embedding_table import EmbeddingTable, differences
from retrieval.search.searcher import Searcher, ranked
from retrieval.search.stored_texts import texts_of

# What a corpus table may say of how its student reads queries (`retrieve encode` notes it, `prep` does not).
_READ_BACK = ("layers", "pooling", "normalize", "query_prefix", "query_tokens")


@dataclass(frozen=True)
class Hit:
    """A passage found: its rank from 1, inner product with the query, id and text."""

    rank: int
    score: float
    doc_id: str
    text: str


def noted_settings(corpus: Path) -> dict[str, str]:
    """The settings of a student, as arguments, that an embeddings table notes in its manifest."""
    key = EmbeddingTable(corpus, "doc_id").student_key
    return {name: "null" if key[name] is None else str(key[name]) for name in _READ_BACK if name in key}


def _check_same_student(student: StudentSpec, corpus: EmbeddingTable) -> None:
    """Raises UserError where the corpus was embedded with another model, pooling or number of layers: the scores would mean nothing."""
    noted = corpus.student_key
    differing = differences(noted, student.key(DigestCache(corpus.folder.parent / "digests.json")))
    if differing:
        noted_values = [f"{name}={noted.get(name)}" for name in differing if name not in ("weights", "tokenizer")]
        raise UserError(
            f"model={student.folder}: {corpus.folder} was embedded with another model (differing: {', '.join(differing)})"
            + (f"; it was {', '.join(noted_values)}" if noted_values else "")
        )


def find(
    text: str,
    student: Student,
    *,
    corpus: Path,
    texts: Path,
    k: int,
    precision: str,
    device: str,
    threads: int,
    dimensions: int | None = None,
) -> list[Hit]:
    """The k passages (fewer where the corpus is smaller) of the largest inner product with the query, best first.

    `corpus` are stored embeddings, read once, block by block; `texts` is the stored table that they were made from. `precision` (fp32,
    bf16 or fp16) and `device` (cpu or cuda) are those of the query's vector, `threads` those of the search on the CPU. `dimensions`: the
    first ones that are compared; None: all that the corpus has.

    Raises UserError: another student, no such tables, or a passage found that `texts` does not have.
    """
    table = EmbeddingTable(corpus, "doc_id", dimensions)
    spec = resolve_student(student)
    if (noted := table.student_key.get("truncate_dim")) and not spec.truncate_dim:  # by `retrieve encode dimensions=`
        spec = replace(spec, truncate_dim=noted)
    _check_same_student(spec, table)
    if dimensions and table.size:
        spec = replace(spec, truncate_dim=dimensions)
    encoder = TextEncoder(spec, precision=precision, device=device)
    (best,) = Searcher(table, memory_gb=4.0, threads=threads).search(encoder.queries([text]), k=k)
    doc_ids, scores = ranked(best, table.ids)[0]
    found = texts_of(doc_ids, texts, id_name="doc_id")
    missing = [doc_id for doc_id in doc_ids if doc_id not in found]
    if missing:
        raise UserError(f"texts={texts} does not have passage {missing[0]} of {corpus}: is it another collection's?")
    return [Hit(rank, score, doc_id, found[doc_id]) for rank, (doc_id, score) in enumerate(zip(doc_ids, scores, strict=True), 1)]


def one_line(text: str, *, width: int) -> str:
    """The text on one line of at most `width` characters, an ellipsis where it is cut."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"
