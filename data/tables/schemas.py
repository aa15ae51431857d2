"""The tables on disk: one Arrow schema a table, the candidate kinds, and the neutral marks inside dark examples.

Training shards and dev sets are all that `pipeline` and `trainer` share. A column that changes raises the `version` of its table, which is
then made again with all that is made from it. `SCHEMA_VERSION` is in every fingerprint, that of the embeddings too.
"""

from __future__ import annotations

from enum import IntEnum

import pyarrow as pa

SCHEMA_VERSION = 2
_FP16 = pa.float16()
TRAINING_VERSION, LABELLED_VERSION, GRADED_VERSION = 3, 4, 5  # of training shards alone; see TRAINING_SCHEMAS


class CandidateKind(IntEnum):
    """What a candidate of a query is. The numbers are stored in `candidate_kind`."""

    POSITIVE = 0
    NEGATIVE = 1
    REINFORCED_NEGATIVE = 2  # p+ [SEP] p-   (ADAM, Eq. 5)
    NOISY_POSITIVE = 3  # p+ with masked tokens   (ADAM, Eq. 6)
    TOP = 4  # group 1: the labelled positives, then the teacher's best   (CL-DRD)
    NEAR = 5  # group 2: passages of middle rank
    FAR = 6  # group 3: the other passages


# A list has either kinds of the one or of the other.
ADAM_KINDS = (CandidateKind.POSITIVE, CandidateKind.NEGATIVE, CandidateKind.REINFORCED_NEGATIVE, CandidateKind.NOISY_POSITIVE)
GROUPS = (CandidateKind.TOP, CandidateKind.NEAR, CandidateKind.FAR)


class FalseNegativeRule(IntEnum):
    """Why a passage is never drawn. Stored in `dropped_rules`: only ever append."""

    MAX_SCORE = 0
    ABSOLUTE_MARGIN = 1
    TEACHER_PERCENTILE = 2
    STUDENT_MARGIN = 3
    RELATIVE_MARGIN = 4
    STUDENT_RELATIVE_MARGIN = 5
    MIN_SCORE = 6

    @property
    def of_student(self) -> bool:
        """Whether it looks at the student's scores."""
        return self in (FalseNegativeRule.STUDENT_MARGIN, FalseNegativeRule.STUDENT_RELATIVE_MARGIN)


class DevRole(IntEnum):
    """What a row of a dev set is. The numbers are stored in `role`."""

    QUERY = 0
    PASSAGE = 1


# Dark examples are stored as text in which these marks stand for the special tokens, so that teacher and student may have
# different tokenizers: each replaces the marks by its own mask and separator token. A passage that holds a mark is quarantined.
MASK_MARK = "⟦MASK⟧"
SEPARATOR_MARK = "⟦SEP⟧"

CORPUS = pa.schema([("doc_id", pa.string()), ("text", pa.string()), ("text_hash", pa.int64())])
QUERIES = pa.schema([("query_id", pa.string()), ("text", pa.string())])
QRELS = pa.schema([("split", pa.string()), ("query_id", pa.string()), ("doc_id", pa.string()), ("relevance", pa.int32())])
QUARANTINE = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("record", pa.string())])

INDEX = pa.schema([("rows", pa.int64()), ("part", pa.large_binary())])  # of one shard of vectors: how many, and bytes of its faiss index


def embeddings(size: int, *, id_name: str, kind: pa.DataType = _FP16) -> pa.Schema:
    """Rows of vectors of `size` numbers, fp16 unless quantised, in the row order of the text shard they were made from."""
    return pa.schema([(id_name, pa.string()), ("embedding", pa.list_(kind, size))])


POOLS = pa.schema(
    [
        ("query_id", pa.string()),
        ("positive_ids", pa.list_(pa.string())),  # labelled in the training split, best label first, ties by id
        ("positive_scores", pa.list_(pa.float32())),  # the student's scores of these, null where it is no source
        # The pool after removals: the list of each source, best first, one after the other. A passage may stand in several.
        ("ranked_ids", pa.list_(pa.string())),
        ("ranked_scores", pa.list_(pa.float32())),  # each source's own
        ("ranked_sources", pa.list_(pa.int8())),  # `Source.number` of data.config.negative_sources
        ("never_ids", pa.list_(pa.string())),  # what was removed wherever it was ranked, and all that is never a negative; by id
    ]
)

HARD_NEGATIVES = pa.schema(
    [
        ("query_id", pa.string()),
        ("positive_ids", pa.list_(pa.string())),  # p+ of the query's list first, then the others as in POOLS
        ("negative_ids", pa.list_(pa.list_(pa.string()))),  # [draws][m]
        # Passages that are never drawn, of the rank windows and of the deeper ranks that `fill_to` looked at, the first rule that
        # dropped each, the score that it looked at, and the limit that was exceeded (of MIN_SCORE: not reached).
        ("dropped_ids", pa.list_(pa.string())),
        ("dropped_rules", pa.list_(pa.int8())),  # FalseNegativeRule
        ("dropped_scores", pa.list_(pa.float32())),
        ("dropped_limits", pa.list_(pa.float32())),
    ]
)

# The same with several positives: each list of a query has its own p+, and `positive_ids` are in the order of POOLS.
HARD_NEGATIVES_BY_POSITIVE = pa.schema(
    [
        *HARD_NEGATIVES,  # `negative_ids` and the next two: [lists], draw after draw
        ("list_draws", pa.list_(pa.int8())),
        ("list_positive_ids", pa.list_(pa.string())),
        ("dropped_positive_ids", pa.list_(pa.string())),  # p+ of the lists that a passage was dropped from, beside `dropped_ids`
        ("promoted_ids", pa.list_(pa.string())),  # passages that became positives, the highest logit first
        ("promoted_scores", pa.list_(pa.float32())),  # their logits
        ("promoted_limits", pa.list_(pa.float32())),  # that these exceed
    ]
)

CANDIDATES = pa.schema(
    [
        ("query_id", pa.string()),
        ("draw", pa.int8()),
        ("position", pa.int32()),  # place in the query's list, from 0
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
        ("position", pa.int32()),
        ("logit", pa.float32()),
        ("token_count", pa.int32()),  # of the pair, after truncation, special tokens included
        ("truncated", pa.bool_()),
    ]
)

# The lists of a curriculum: each draw is one iteration, each list its groups in order, with what the teacher and the labels say of them.
CURRICULUM = pa.schema(
    [
        *CANDIDATES,
        ("logit", pa.float32()),  # the teacher's, raw
        ("confidence", pa.float32()),  # the list's C(q), nats: its first labelled positive among it and all that carry no label
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
        ("never_ids", pa.list_(pa.string())),  # passages that are never negatives of the query, so none of the batch's for it; as in POOLS
    ]
)
# A list may carry labels, whoever makes it: for each candidate the number that a loss of labels learns from, the higher the better.
LABELLED_TRAINING = TRAINING.append(pa.field("labels", pa.list_(pa.float32())))
# A row may carry the label of its p+ in the training split; 0: it was promoted, and has none.
GRADED_TRAINING = TRAINING.append(pa.field("positive_grade", pa.int32()))
# What a trainer reads, by version. Shards of version 2 do not say which passages are never negatives. Shards without labels and
# grades stay of version 3, and the same bytes: the order of training depends on them.
TRAINING_SCHEMAS = {
    2: pa.schema([field for field in TRAINING if field.name != "never_ids"]),
    TRAINING_VERSION: TRAINING,
    LABELLED_VERSION: LABELLED_TRAINING,
    GRADED_VERSION: GRADED_TRAINING,
}

DEV = pa.schema(
    [
        ("role", pa.int8()),  # DevRole: first the queries, by id, then the passages, by id
        ("id", pa.string()),  # query_id or doc_id
        ("tokens", pa.list_(pa.int32())),  # the student's
        ("judged_ids", pa.list_(pa.string())),  # of a query: its labelled positives, all of them among the passages; of a passage: none
        ("grades", pa.list_(pa.int32())),  # their labels, above 0
    ]
)
