"""Stage `dark_examples`: the candidate list of every query, as text: p+, P-, reinforced negatives and noisy positives (ADAM 3.2).

A list's order is: the positive; the m negatives; `p+ [SEP] p-` of each, in the same order; p+ under each masking ratio. Special
tokens stand as neutral marks (`data.tables.schemas`). Masks and cuts follow the *teacher's* tokens: then a list depends on the teacher
alone, and another student, or one with another tokenizer, is distilled from the logits already paid for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.config.fields import keyed_values
from data.config.settings import DarkExamples, Experiment
from data.digests import uniforms
from data.tables import schemas
from data.tables.schemas import ADAM_KINDS, MASK_MARK, SEPARATOR_MARK, CandidateKind
from data.tables.shards import table_of
from pipeline.negatives.gathered_texts import GatheredTexts, TextReader
from pipeline.scoring import reading_lengths
from pipeline.scoring.reading_lengths import longest_mixed
from pipeline.stage import StageContext, Stored, Table
from retrieval.model_files.files import has_tokens_of_spaces, tokenizer_digest
from retrieval.models.marks import Marks
from retrieval.models.resolved import ResolvedModels
from retrieval.models.tokenizer import Tokenizer, splits_words

_SPECIAL_TOKENS_OF_A_PASSAGE = 2  # [CLS] and the final [SEP]

Spans = list[tuple[int, int]]  # (start, end) in characters
Measure = Callable[[str], int]  # tokens of a text with marks, special ones included


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


def mix(positive: str, negative: str, *, splitter: Splitter, max_tokens: int, truncation: str, measure: Measure | None = None) -> str:
    """`p+ [SEP] p-` in at most `max_tokens` tokens, special ones included (Eq. 5).

    longest_first shortens the longer part until both fit, so that both survive; right leaves the cut to the reader, which on
    a long p+ leaves nothing of p-. With `measure` the parts are shortened further as long as the whole has more tokens than that.
    """
    if truncation == "right":
        return f"{positive} {SEPARATOR_MARK} {negative}"
    positive_pieces, negative_pieces = splitter.pieces(positive), splitter.pieces(negative)
    room = max_tokens - _SPECIAL_TOKENS_OF_A_PASSAGE - 1  # and the separator between the parts
    while True:
        first, second = share_room(len(positive_pieces), len(negative_pieces), room=room)
        mixed = f"{_cut(positive, positive_pieces, first)} {SEPARATOR_MARK} {_cut(negative, negative_pieces, second)}"
        over = measure(mixed) - max_tokens if measure else 0
        if over <= 0 or room == 0:
            return mixed
        room = max(0, min(room, len(positive_pieces) + len(negative_pieces)) - over)


def share_room(first: int, second: int, *, room: int) -> tuple[int, int]:
    """Tokens kept of two parts when the longer one is always shortened first."""
    second_kept = min(second, max(room // 2, room - first))
    return min(first, room - second_kept), second_kept


def _cut(text: str, spans: Spans, keep: int) -> str:
    return text if keep >= len(spans) else text[: spans[keep - 1][1] if keep else 0]


def mask(text: str, ratio: float, *, splitter: Splitter, unit: str, seed_parts: tuple[object, ...]) -> str:
    """MASK_ratio(text), of p+: tokens replaced by the mask mark, by a ratio m_r in (0, 1] (Eq. 6). The draw is a function of `seed_parts`.

    `piece` masks each piece with probability m_r; `piece_exact` masks round(m_r * pieces) of them; `word` masks each word with probability
    m_r, one mark a piece as in whole-word masking.
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
    place = np.searchsorted([start for start, _ in masked_words], [start for start, _ in pieces], side="right") - 1
    return np.array([at >= 0 and end <= masked_words[at][1] for at, (_, end) in zip(place, pieces, strict=True)], dtype=bool)


def _replaced(text: str, spans: Spans) -> str:
    parts: list[str] = []
    at = 0
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
    splitter: Splitter | None,
    settings: DarkExamples,
    mixed_tokens: int,
    seed: int,
    measure: Measure | None = None,
) -> list[Candidate]:
    """The list of one query and draw. `positive` and `negatives` are (doc_id, text); without dark examples nothing is split."""
    positive_id, positive_text = positive
    listed = [Candidate(CandidateKind.POSITIVE, positive_id, positive_text)]
    listed += [Candidate(CandidateKind.NEGATIVE, doc_id, text) for doc_id, text in negatives]
    if splitter is None:
        return listed
    if settings.reinforced:
        for doc_id, text in negatives:
            mixed = mix(
                positive_text, text, splitter=splitter, max_tokens=mixed_tokens, truncation=settings.mixed_truncation, measure=measure
            )
            listed.append(Candidate(CandidateKind.REINFORCED_NEGATIVE, f"{positive_id}+{doc_id}", mixed))
    for ratio in settings.mask_ratios:
        parts = (seed if settings.mask_seed is None else settings.mask_seed, "mask", query_id, positive_id, ratio, mask_draw)
        masked = mask(positive_text, ratio, splitter=splitter, unit=settings.mask_unit, seed_parts=parts)
        listed.append(Candidate(CandidateKind.NOISY_POSITIVE, f"{positive_id}~{ratio}", masked))
    return listed


class _Kept:
    """What a worker keeps between the shards of this table."""

    def __init__(self, context: StageContext) -> None:
        folder, teacher = context.models.teacher_tokenizer, context.experiment.teacher
        self.tokenizer = Tokenizer(folder, trusted=teacher.trust_remote_code) if folder else None
        self.texts = TextReader(context)


def _requested_ids(experiment: Experiment, negatives: Stored, shard: int) -> Iterator[pa.Array]:
    """Of the shard's lists, as one part: each p+, and the negatives."""
    if experiment.hard_negatives.positives == "one":
        lists = negatives.read(shard, columns=["positive_ids", "negative_ids"])
        positives = pc.list_flatten(pc.list_slice(lists.column("positive_ids"), 0, 1))
    else:
        lists = negatives.read(shard, columns=["list_positive_ids", "negative_ids"])
        positives = pc.list_flatten(lists.column("list_positive_ids"))
    yield pa.chunked_array(
        [*positives.chunks, *pc.list_flatten(pc.list_flatten(lists.column("negative_ids"))).chunks], pa.string()
    ).unique()


_TEXTS = GatheredTexts("hard_negatives", _requested_ids)


def _build(context: StageContext) -> None:
    experiment, inputs, shard = context.experiment, context.inputs, context.shard
    settings = experiment.dark_examples
    longest = longest_mixed(context.models)
    splitter: Splitter = WordSplitter()
    measure: Measure | None = None
    kept = context.worker_cache.get_or_create(("dark examples", context.folder), lambda: _Kept(context))
    if (folder := context.models.teacher_tokenizer) and (tokenizer := kept.tokenizer):
        splitter = tokenizer
        if _is_measured(folder, marks := context.models.teacher_marks):
            measure = lambda text: tokenizer.count(marks.read(text))  # noqa: E731
    several = experiment.hard_negatives.positives != "one"
    columns = ["query_id", "negative_ids", *(["list_draws", "list_positive_ids"] if several else ["positive_ids"])]
    lists = inputs["hard_negatives"].read(shard, columns=columns).to_pylist()
    queries = {row["query_id"]: row["text"] for row in inputs["ingest.queries"].read(shard).to_pylist()}
    (needed,) = _requested_ids(experiment, inputs["hard_negatives"], shard)
    texts = dict(zip(needed.to_pylist(), kept.texts.texts_of(needed, shard=shard).to_pylist(), strict=True))
    rows: list[tuple[Any, ...]] = []
    by_kind = {kind: 0 for kind in ADAM_KINDS}
    for row in lists:
        query_id = row["query_id"]
        for draw, positive_id, negative_ids in _lists_of(row, experiment):
            listed = candidates_of(
                query_id,
                (positive_id, texts[positive_id]),
                [(doc_id, texts[doc_id]) for doc_id in negative_ids],
                mask_draw=draw % settings.mask_draws,
                splitter=splitter,
                settings=settings,
                mixed_tokens=longest,
                seed=experiment.seed,
                measure=measure,
            )
            for position, one in enumerate(listed):
                rows.append((query_id, draw, position, int(one.kind), one.id, queries[query_id], one.text))
                by_kind[one.kind] += 1
        context.report("queries", 1)
    candidates = {kind.name.lower(): count for kind, count in by_kind.items()}
    context.write(table_of(rows, schemas.CANDIDATES), {"in": len(lists), "kept": len(lists), "dropped": {}, "candidates": candidates})


def _lists_of(row: dict[str, Any], experiment: Experiment) -> Iterator[tuple[int, str, list[str]]]:
    """(draw, p+, negatives) of each list of a query; with more draws of masks the drawn lists come again."""
    if "list_draws" in row:
        drawn = list(zip(row["list_draws"], row["list_positive_ids"], row["negative_ids"], strict=True))
    else:
        drawn = [(draw, row["positive_ids"][0], negatives) for draw, negatives in enumerate(row["negative_ids"])]  # p+ stands first
    for draw in range(experiment.draws):
        of_draw = draw % experiment.hard_negatives.draws
        yield from ((draw, positive, negatives) for number, positive, negatives in drawn if number == of_draw)


def _key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    settings = experiment.dark_examples
    tokenizer, of_tokenizer = None, {}
    if experiment.teacher.backend != "none":
        tokenizer = models.teacher_tokenizer_digest
        of_tokenizer = _key_of_tokenizer(settings, models)
    if models.has_student:  # scoring does without its files; what needs them says what they lack
        _ = models.student_marks
    return {
        **keyed_values(settings, leave_out=("separator", "mask_text")),  # of the teacher's and the student's reading, not of these texts
        **of_tokenizer,
        "mixed_tokens": longest_mixed(models) if settings.reinforced else None,
        "draws": experiment.draws,
        "tokenizer": tokenizer,
        "seed": experiment.seed,
        "mask_seed": experiment.seed if settings.mask_seed is None else settings.mask_seed,
    }


def _key_of_tokenizer(settings: DarkExamples, models: ResolvedModels) -> dict[str, Any]:
    """What is done otherwise for some teachers' tokenizers: mixed passages are measured, words are found by white space."""
    folder, marks = models.teacher_tokenizer, models.teacher_marks
    key: dict[str, Any] = {}
    if folder is None:
        return key
    if settings.reinforced and settings.mixed_truncation == "longest_first" and _is_measured(folder, marks):
        key["measured"] = {"separator": marks.separator}
    if settings.mask_ratios and settings.mask_unit == "word":
        trusted = models.experiment.teacher.trust_remote_code
        key |= {} if splits_words(folder, tokenizer_digest(folder), trusted) else {"words": "white space"}
    return key


def _is_measured(folder: Path, marks: Marks) -> bool:
    """Whether a mixed passage is counted as a whole: its parts and one token do not make its length with every tokenizer.

    Some make a token of the space before a special token, or split a word that was cut otherwise; a separator that is a text may be
    several tokens. WordPiece does neither.
    """
    return has_tokens_of_spaces(folder) or marks.separator is not None


def _notes(experiment: Experiment, models: ResolvedModels) -> list[str]:
    settings = experiment.dark_examples
    of_student = models.student_marks.notes(settings, option="student.model") if models.has_student else []
    return [*models.teacher_marks.notes(settings, option="teacher.model"), *of_student, *reading_lengths.notes(experiment, models)]


TABLE = Table(
    stage="dark_examples", version=1, reads=("ingest.corpus", "ingest.queries", "hard_negatives"), key=_key, build=_build,
    rounds=(_TEXTS.round(),), notes=_notes,
)  # fmt: skip
