"""The tables on disk: one Arrow schema a table, the candidate kinds, and the neutral marks inside dark examples.

The training-shard schema is the only thing that `pipeline` and `trainer` share. Change `SCHEMA_VERSION` with any column.
"""

from __future__ import annotations

from enum import IntEnum

import pyarrow as pa

SCHEMA_VERSION = 1


class CandidateKind(IntEnum):
    """What a candidate of a query is. The numbers are stored in `candidate_kind`."""

    POSITIVE = 0
    NEGATIVE = 1
    REINFORCED_NEGATIVE = 2  # p+ [SEP] p-   (ADAM, Eq. 5)
    NOISY_POSITIVE = 3  # p+ with masked tokens   (ADAM, Eq. 6)


# Dark examples are stored as text in which these marks stand for the special tokens, so that teacher and student may have
# different tokenizers: each replaces the marks by its own mask and separator token. A passage that holds a mark is quarantined.
MASK_MARK = "⟦MASK⟧"
SEPARATOR_MARK = "⟦SEP⟧"

CORPUS = pa.schema([("doc_id", pa.string()), ("text", pa.string()), ("text_hash", pa.int64())])
QUERIES = pa.schema([("query_id", pa.string()), ("text", pa.string())])
QRELS = pa.schema([("split", pa.string()), ("query_id", pa.string()), ("doc_id", pa.string()), ("relevance", pa.int32())])
QUARANTINE = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("record", pa.string())])


def embeddings(size: int, *, id_name: str) -> pa.Schema:
    """Rows of fp16 vectors of `size` dimensions, in the row order of the text shard they were made from."""
    return pa.schema([(id_name, pa.string()), ("embedding", pa.list_(pa.float16(), size))])


HARD_NEGATIVES = pa.schema(
    [
        ("query_id", pa.string()),
        ("positive_ids", pa.list_(pa.string())),  # all labelled positives, best label first, ties by id
        ("ranked_ids", pa.list_(pa.string())),  # the pool after removals, best first
        ("ranked_scores", pa.list_(pa.float32())),
        ("negative_ids", pa.list_(pa.list_(pa.string()))),  # [draws][m]
    ]
)

CANDIDATES = pa.schema(
    [
        ("query_id", pa.string()),
        ("draw", pa.int8()),
        ("position", pa.int16()),  # place in the query's list, from 0
        ("candidate_kind", pa.int8()),
        ("candidate_id", pa.string()),
        ("query", pa.string()),
        ("text", pa.string()),
    ]
)

TEACHER_SCORES = pa.schema(
    [
        ("query_id", pa.string()),
        ("draw", pa.int8()),
        ("position", pa.int16()),
        ("logit", pa.float32()),
        ("token_count", pa.int32()),  # of the pair, after truncation, special tokens included
        ("truncated", pa.bool_()),
    ]
)

CONFIDENCE = pa.schema(
    [
        ("query_id", pa.string()),
        ("draw", pa.int8()),
        ("confidence", pa.float32()),  # C(q), nats, at most 0 (ADAM, Eq. 7)
        ("positive_logit", pa.float32()),
        ("negative_mean", pa.float32()),
        ("negative_max", pa.float32()),
        ("positive_rank", pa.int16()),  # of p+ among {p+} and P-, from 1; a tie counts against p+
        ("label_entropy", pa.float32()),  # nats, of the teacher's softmax over P~ without p+
    ]
)

TRAINING = pa.schema(
    [
        ("query_id", pa.string()),
        ("draw", pa.int8()),
        ("query_tokens", pa.list_(pa.int32())),
        ("candidate_tokens", pa.list_(pa.list_(pa.int32()))),
        ("candidate_kind", pa.list_(pa.int8())),
        ("candidate_id", pa.list_(pa.string())),
        ("teacher_logits", pa.list_(pa.float32())),
        ("confidence", pa.float32()),
    ]
)
