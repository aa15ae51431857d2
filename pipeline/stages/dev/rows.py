"""The rows of a dev set: first the queries by id, then the passages by id, in the student's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from data.tables import schemas
from data.tables.ragged import RaggedBuilder
from data.tables.schemas import SCHEMA_VERSION, DevRole
from data.tables.shards import ROW_GROUP_ROWS
from retrieval.models.student import StudentSpec
from retrieval.models.tokenizer import tokenizer_of

Grades = Mapping[str, Mapping[str, int]]  # query_id -> doc_id -> label above 0


def row_groups(
    queries: Mapping[str, str], grades: Grades, doc_ids: Sequence[str], texts: Sequence[str], *, student: StudentSpec
) -> Iterator[pa.Table]:
    """Row groups of schema DEV. `queries` (id -> text) and `doc_ids` come in the order of the ids; `texts` are of `doc_ids`."""
    tokenizer = tokenizer_of(student)

    def tables(
        role: DevRole, ids: Sequence[str], texts: Sequence[str], judged: Sequence[Mapping[str, int]], *, prefix: str, longest: int
    ) -> Iterator[pa.Table]:
        for start in range(0, len(ids), ROW_GROUP_ROWS):
            part = slice(start, start + ROW_GROUP_ROWS)
            tokens = RaggedBuilder()
            tokens.extend(tokenizer.encode([prefix + text for text in texts[part]], max_tokens=longest))
            labels = [[list(of_query) for of_query in judged[part]], [list(of_query.values()) for of_query in judged[part]]]
            roles = pa.array([role] * len(ids[part]), pa.int8())
            yield pa.table([roles, ids[part], tokens.finish().arrow(), *labels], schema=schemas.DEV)

    asked, of_queries = list(queries), [grades[query_id] for query_id in queries]
    yield from tables(DevRole.QUERY, asked, list(queries.values()), of_queries, prefix=student.query_prefix, longest=student.query_tokens)
    none: list[Mapping[str, int]] = [{}] * len(doc_ids)
    yield from tables(DevRole.PASSAGE, doc_ids, texts, none, prefix=student.passage_prefix, longest=student.passage_tokens)


def metadata(student: StudentSpec, **more: Any) -> dict[str, Any]:
    """What the schema says of a dev set, for whoever reads it."""
    return {"schema_version": SCHEMA_VERSION, "tokenizer": student.tokenizer_digest, **more}


def token_key(student: StudentSpec) -> dict[str, Any]:
    """What a fingerprint holds of the student: all that decides the tokens."""
    tokens = {name: getattr(student, name) for name in ("query_tokens", "passage_tokens", "query_prefix", "passage_prefix")}
    return {**tokens, "tokenizer": student.tokenizer_digest}
