"""Stage `dark_examples`: the candidate list of every query, as text: p+, P-, reinforced negatives and noisy positives (ADAM 3.2).

A list's order is: the positive; the m negatives; `p+ [SEP] p-` of each, in the same order; p+ under each masking ratio. Special
tokens stand as neutral marks (`data.tables.schemas`). Masks and cuts follow the *teacher's* tokens: then a list depends on the teacher
alone, and another student, or one with another tokenizer, is distilled from the logits already paid for.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.config.fields import keyed_values
from data.config.settings import DarkExamples, Experiment
from data.digests import DigestCache, uniforms
from data.errors import UserError
from data.tables import schemas
from data.tables.schemas import ADAM_KINDS, MASK_MARK, SEPARATOR_MARK, CandidateKind
from pipeline.scoring import reading_lengths
from pipeline.scoring.reading_lengths import longest_mixed
from pipeline.scoring.requested_pairs import teacher_tokenizer
from pipeline.stage import StageContext, Table
from retrieval.checkpoints.checks import check_marks
from retrieval.checkpoints.files import tokenizer_digest
from retrieval.models.student import resolve_student

_SPECIAL_TOKENS_OF_A_PASSAGE = 2  # [CLS] and the final [SEP]

Spans = list[tuple[int, int]]  # (start, end) in characters


class Splitter(Protocol):
    """What dark examples need of a tokenizer."""

    def pieces(self, text: str) -> Spans:
        """Spans of the text's tokens."""

    def words(self, text: str) -> Spans:
        """Spans of the text's words."""


class WordSplitter:
    """For a teacher without a tokenizer: words and signs are its tokens."""

    def pieces(self, text: str) -> Spans:
        """Spans of words and signs."""
        return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]

    words = pieces


@dataclass(frozen=True)
class Candidate:
    """One candidate of a query."""

    kind: CandidateKind
    id: str
    text: str


def mix(positive: str, negative: str, *, splitter: Splitter, max_tokens: int, truncation: str) -> str:
    """`p+ [SEP] p-` in at most `max_tokens` tokens, special ones included (Eq. 5).

    longest_first shortens the longer part until both fit, so that both survive; right leaves the cut to the reader, which on
    a long p+ leaves nothing of p-.
    """
    if truncation == "longest_first":
        positive_pieces, negative_pieces = splitter.pieces(positive), splitter.pieces(negative)
        room = max_tokens - _SPECIAL_TOKENS_OF_A_PASSAGE - 1  # and the separator between the parts
        first, second = share_room(len(positive_pieces), len(negative_pieces), room=room)
        positive, negative = _cut(positive, positive_pieces, first), _cut(negative, negative_pieces, second)
    return f"{positive} {SEPARATOR_MARK} {negative}"


def share_room(first: int, second: int, *, room: int) -> tuple[int, int]:
    """Tokens kept of two parts when the longer one is always shortened first."""
    if first + second <= room:
        return first, second
    half = room // 2
    if second <= half:
        return room - second, second
    if first <= half:
        return first, room - first
    return room - half, half


def _cut(text: str, spans: Spans, keep: int) -> str:
    return text if keep >= len(spans) else text[: spans[keep - 1][1] if keep else 0]


def mask(text: str, ratio: float, *, splitter: Splitter, unit: str, seed_parts: tuple[object, ...]) -> str:
    """MASK_ratio(text): tokens replaced by the mask mark (Eq. 6).

    Args:
        text: p+.
        ratio: m_r in (0, 1].
        splitter: gives the units.
        unit: `piece` masks each piece with probability m_r; `piece_exact` masks round(m_r * pieces) of them; `word` masks each
            word with probability m_r, one mark a piece as in whole-word masking.
        seed_parts: what the draw is a pure function of.
    """
    pieces = splitter.pieces(text)
    if unit == "word":
        chosen = _pieces_of_words(pieces, splitter.words(text), ratio, seed_parts)
    else:
        draws = uniforms(len(pieces), *seed_parts)
        if unit == "piece":
            chosen = draws < ratio
        else:
            chosen = np.zeros(len(pieces), dtype=bool)
            chosen[np.argsort(draws, kind="stable")[: math.floor(ratio * len(pieces) + 0.5)]] = True
    return _replaced(text, [span for span, masked in zip(pieces, chosen, strict=True) if masked])


def _pieces_of_words(pieces: Spans, words: Spans, ratio: float, seed_parts: tuple[object, ...]) -> NDArray[np.bool_]:
    masked_words = [span for span, draw in zip(words, uniforms(len(words), *seed_parts), strict=True) if draw < ratio]
    starts = np.array([start for start, _ in masked_words], dtype=np.int64)
    ends = np.array([end for _, end in masked_words], dtype=np.int64)
    if not len(starts):
        return np.zeros(len(pieces), dtype=bool)
    place = np.searchsorted(starts, [start for start, _ in pieces], side="right") - 1
    return np.array([p >= 0 and end <= ends[p] for p, (_, end) in zip(place, pieces, strict=True)], dtype=bool)


def _replaced(text: str, spans: Spans) -> str:
    parts, at = [], 0
    for start, end in spans:
        if end > start:  # a tokenizer may give a token no characters
            parts += [text[at:start], MASK_MARK]
            at = end
    return "".join([*parts, text[at:]])


def candidates_of(
    query_id: str,
    positive: tuple[str, str],
    negatives: list[tuple[str, str]],
    *,
    mask_draw: int,
    splitter: Splitter,
    settings: DarkExamples,
    mixed_tokens: int,
    seed: int,
) -> list[Candidate]:
    """The list of one query and draw. `positive` and `negatives` are (doc_id, text)."""
    positive_id, positive_text = positive
    listed = [Candidate(CandidateKind.POSITIVE, positive_id, positive_text)]
    listed += [Candidate(CandidateKind.NEGATIVE, doc_id, text) for doc_id, text in negatives]
    if settings.reinforced:
        for doc_id, text in negatives:
            mixed = mix(positive_text, text, splitter=splitter, max_tokens=mixed_tokens, truncation=settings.mixed_truncation)
            listed.append(Candidate(CandidateKind.REINFORCED_NEGATIVE, f"{positive_id}+{doc_id}", mixed))
    for ratio in settings.mask_ratios:
        parts = (seed if settings.mask_seed is None else settings.mask_seed, "mask", query_id, positive_id, ratio, mask_draw)
        masked = mask(positive_text, ratio, splitter=splitter, unit=settings.mask_unit, seed_parts=parts)
        listed.append(Candidate(CandidateKind.NOISY_POSITIVE, f"{positive_id}~{ratio}", masked))
    return listed


def _build(context: StageContext) -> None:
    from retrieval.models.tokenizer import Tokenizer

    experiment = context.experiment
    settings, longest = experiment.dark_examples, longest_mixed(experiment)
    splitter: Splitter = WordSplitter()
    if folder := teacher_tokenizer(experiment):
        splitter = context.worker_cache.get_or_create(
            "teacher tokenizer", lambda: Tokenizer(folder, trusted=experiment.teacher.trust_remote_code)
        )
    rows = context.inputs["hard_negatives"].read(context.shard, columns=["query_id", "positive_ids", "negative_ids"]).to_pylist()
    query_table = context.inputs["ingest.queries"].read(context.shard)
    queries = dict(zip(query_table.column("query_id").to_pylist(), query_table.column("text").to_pylist(), strict=True))
    needed = {row["positive_ids"][0] for row in rows} | {doc_id for row in rows for draw in row["negative_ids"] for doc_id in draw}
    texts = context.inputs["ingest.corpus"].texts_of(needed, id_name="doc_id")

    columns: dict[str, list[Any]] = {name: [] for name in schemas.CANDIDATES.names}
    for row in rows:
        query_id, positive_id = row["query_id"], row["positive_ids"][0]  # see pipeline.trained_positive
        for draw in range(experiment.draws):
            negative_ids = row["negative_ids"][draw % len(row["negative_ids"])]
            listed = candidates_of(
                query_id,
                (positive_id, texts[positive_id]),
                [(doc_id, texts[doc_id]) for doc_id in negative_ids],
                mask_draw=draw % settings.mask_draws,
                splitter=splitter,
                settings=settings,
                mixed_tokens=longest,
                seed=experiment.seed,
            )
            for position, candidate in enumerate(listed):
                values = (query_id, draw, position, int(candidate.kind), candidate.id, queries[query_id], candidate.text)
                for name, value in zip(columns, values, strict=True):
                    columns[name].append(value)
        context.report("queries", 1)
    table = pa.table(columns, schema=schemas.CANDIDATES)
    kinds = table.column("candidate_kind").to_pylist()
    by_kind = {kind.name.lower(): kinds.count(kind) for kind in ADAM_KINDS}
    context.write(table, {"in": len(rows), "kept": len(rows), "dropped": {}, "candidates": by_kind})


def _key(experiment: Experiment, digests: DigestCache) -> dict[str, Any]:
    folder = teacher_tokenizer(experiment)
    if experiment.teacher.backend != "none":
        _check_tokenizers(experiment, folder)
    key = keyed_values(experiment.dark_examples, leave_out=("mixed_tokens", "mask_seed"))
    return {
        **key,
        "mixed_tokens": longest_mixed(experiment) if experiment.dark_examples.reinforced else None,
        "draws": experiment.draws,
        "tokenizer": tokenizer_digest(folder) if folder else None if experiment.teacher.backend == "none" else "words",
        "seed": experiment.seed,
        "mask_seed": experiment.seed if experiment.dark_examples.mask_seed is None else experiment.dark_examples.mask_seed,
    }


def _check_tokenizers(experiment: Experiment, teacher: Path | None) -> None:
    """Teacher and student both read the marks, the student long after the teacher's logits were paid for."""
    settings = experiment.dark_examples
    asked = {"masked": bool(settings.mask_ratios), "mixed": settings.reinforced}
    if teacher:
        check_marks(teacher, option="teacher.model", trusted=experiment.teacher.trust_remote_code, **asked)
    try:
        student = resolve_student(experiment.student)
    except UserError:
        return  # scoring does without its files; what needs them says what they lack
    check_marks(student.weights_folder, option="student.model", trusted=student.trust_remote_code, **asked)


TABLE = Table(
    stage="dark_examples", name="", version=1, reads=("ingest.corpus", "ingest.queries", "hard_negatives"), key=_key,
    shard_count=lambda experiment: experiment.ingest.query_shards, build=_build, notes=reading_lengths.notes,
)  # fmt: skip
