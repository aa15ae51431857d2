"""Whether the teacher reads as much of the candidates as the student does, reported before a logit is paid for.

A teacher's logit is of the text that the teacher reads. Where query and candidate are longer than `teacher.max_tokens`, it cuts the
candidate's end: of `p+ [SEP] p-` that is p-, and on long passages p+ alone is left. The settings show whether the longest mixed passages
fit beside a query (`notes`); a sample of the texts shows how many are cut (`warnings`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.config.settings import Experiment
from data.tables.schemas import CANDIDATES, SEPARATOR_MARK, CandidateKind
from pipeline.stage import Stored
from retrieval.models.marks import Marks
from retrieval.models.resolved import ResolvedModels
from retrieval.models.tokenizer import Tokenizer, tokenizer_of
from retrieval.teachers.pair_template import PairText
from retrieval.teachers.pair_tokens import PairTokenizer, template_tokens, truncate_longest_first

_OWN = Marks()
_SAMPLED = 2000  # candidates
_SAMPLED_SHARDS = 20  # that they come from: a row group has thousands
_REPORTED_ABOVE = 0.01  # share of them; a few queries are always long
_SHORTEST_PAIR = 2  # tokens that a pair has more than its passage as the student reads it: a query of one, one more special token


@dataclass(frozen=True)
class Truncation:
    """What the teacher cuts from a sample of one kind of candidates."""

    candidates: int
    cut: int  # of which the teacher reads less than the student
    without_negative: int  # of these mixed passages of which it reads nothing of p-
    needed: int  # teacher.max_tokens at which none would be cut


def longest_mixed(models: ResolvedModels) -> int:
    """Longest mixed passage in tokens; that of any passage with a curriculum, which has none.

    The student's files are read only where its length comes from them.
    """
    experiment = models.experiment
    given = None if experiment.curriculum.enabled else experiment.dark_examples.mixed_tokens or experiment.student.passage_tokens
    return given or models.student.passage_tokens


def notes(experiment: Experiment, models: ResolvedModels) -> list[str]:
    """What a user should hear before any work where mixed passages may be longer than what the teacher reads beside any query at all, or
    a template leaves no room for a query and a passage.

    No error: passages may be short, whatever the models could read.
    """
    folder, text = models.teacher_tokenizer, models.teacher_template
    if folder is not None and text is not None and not text.pair:
        return _template_notes(experiment, longest_mixed(models), template_tokens(folder, text))
    if not experiment.dark_examples.reinforced or folder is None:
        return []
    longest, room = longest_mixed(models), experiment.teacher.max_tokens
    if longest + _SHORTEST_PAIR <= room:
        return []
    origin = "dark_examples.mixed_tokens" if experiment.dark_examples.mixed_tokens else "student.passage_tokens, of mixed passages too"
    query = experiment.student.query_tokens or 32
    shorter = f"dark_examples.mixed_tokens={room - query}" if room - query >= 8 else "a smaller dark_examples.mixed_tokens"
    return [
        f"teacher.max_tokens={room} has no room for a query and a mixed passage of {longest} tokens ({origin}): of one so long the teacher "
        f"cuts away of `p+ [SEP] p-` what the student reads; teacher.max_tokens={longest + query}, or {shorter}, leaves it whole"
    ]


def _template_notes(experiment: Experiment, longest: int, taken: int) -> list[str]:
    room, query = experiment.teacher.max_tokens - taken, experiment.student.query_tokens or 32
    if query + longest <= room:
        return []
    return [
        f"teacher.max_tokens={experiment.teacher.max_tokens}: the teacher's template takes {taken} of them, so {max(room, 0)} are left for "
        f"query and passage, of which the student reads {query} and {longest}; teacher.max_tokens={taken + query + longest} cuts nothing"
    ]


def warnings(models: ResolvedModels, candidates: Stored, shards: Sequence[int]) -> list[str]:
    """What a user should hear of the candidates of some shards. Reads a row group of some of them and the tokenizers, no model.

    Nothing where the teacher counts no tokens, or the student's files are not here: scoring does without them.
    """
    if models.teacher_tokenizer is None or not models.has_student:
        return []
    sample = _sample(candidates, shards)
    is_mixed = pc.equal(sample.column("candidate_kind"), int(CandidateKind.REINFORCED_NEGATIVE))
    lines = []
    for name, mixed, rows in (
        ("mixed passages (p+ [SEP] p-)", True, sample.filter(is_mixed)),
        ("passages", False, sample.filter(pc.invert(is_mixed))),
    ):
        found = truncation(models, rows.column("query").to_pylist(), rows.column("text").to_pylist(), mixed=mixed)
        if found.cut > _REPORTED_ABOVE * found.candidates:
            lost = f", and nothing of p- of {found.without_negative:,}" if found.without_negative else ""
            lines.append(
                f"the teacher reads less than the student of {found.cut:,} of {found.candidates:,} {name} looked at{lost}: "
                f"teacher.max_tokens={models.experiment.teacher.max_tokens} cuts them; {found.needed} would cut none"
            )
    return lines


def _sample(candidates: Stored, shards: Sequence[int]) -> pa.Table:
    """Candidates spread over the first row groups of up to `_SAMPLED_SHARDS` shards."""
    columns = ["candidate_kind", "query", "text"]
    tables = [pa.schema([CANDIDATES.field(name) for name in columns]).empty_table()]
    shards = shards[:: -(-len(shards) // _SAMPLED_SHARDS)]
    for shard in shards:
        for table in itertools.islice(candidates.shard_groups(shard, columns=columns), 1):
            tables.append(table.take(np.unique(np.linspace(0, table.num_rows - 1, -(-_SAMPLED // len(shards))).astype(int))))
    return pa.concat_tables(tables)


def truncation(models: ResolvedModels, queries: Sequence[str], texts: Sequence[str], *, mixed: bool) -> Truncation:
    """Compare, in the tokens of both, what teacher and student read of some candidates, mixed passages or others."""
    folder, experiment, text = models.teacher_tokenizer, models.experiment, models.teacher_template
    assert folder is not None
    teacher = Tokenizer(folder, trusted=experiment.teacher.trust_remote_code)
    before_query, before_passage = (text.before, text.between) if text is not None and text.pair else ("", "")
    of_queries = _tokens(teacher, [before_query + query for query in queries])
    whole = _tokens(teacher, [before_passage + passage for passage in texts], models.teacher_marks)
    added, cut = _rule(teacher, experiment, text)
    kept = np.array([cut(int(q), int(n))[1] for q, n in zip(of_queries, whole, strict=True)], np.int64)
    of_student, read = _student_reads(models, teacher, texts, mixed=mixed)
    less = (kept < whole) & (kept * of_student < read * whole)
    needed = of_queries + np.ceil(read / np.maximum(of_student, 1) * whole).astype(int) + added
    before = _tokens(teacher, [text.partition(SEPARATOR_MARK)[0] for text in texts], models.teacher_marks) if mixed else kept
    return Truncation(len(texts), int(less.sum()), int((less & mixed & (kept <= before + 1)).sum()), int(needed.max(initial=0)))


def _rule(teacher: Tokenizer, experiment: Experiment, text: PairText | None) -> tuple[int, Callable[[int, int], tuple[int, int]]]:
    """(tokens that a pair has besides query and passage, how many of each are kept of so many)."""
    most, trusted = experiment.teacher.max_tokens, experiment.teacher.trust_remote_code
    if text is not None and not text.pair:
        templated = PairTokenizer(teacher.folder, max_tokens=most, trusted=trusted, text=text).templated
        assert templated is not None
        return most - templated.room, templated.kept
    added = len(teacher.encode_pairs([("a", "a")], max_tokens=99)[0][0]) - 2 * int(_tokens(teacher, ["a"])[0])
    return added, lambda query, passage: truncate_longest_first(query, passage, room=most - added)


def _student_reads(
    models: ResolvedModels, teacher: Tokenizer, texts: Sequence[str], *, mixed: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(tokens of each text, how many of them the student reads), in the student's tokens."""
    student = models.student
    tokenizer = teacher if student.tokenizer_digest == teacher.digest else tokenizer_of(student)
    special = len(tokenizer.backend.encode("").ids)
    prefix = len(tokenizer.pieces(student.passage_prefix)) if student.passage_prefix else 0
    room = (longest_mixed(models) if mixed else student.passage_tokens) - special - prefix
    whole = _tokens(tokenizer, texts, models.student_marks)
    return whole, np.minimum(whole, room)


def _tokens(tokenizer: Tokenizer, texts: Sequence[str], marks: Marks = _OWN) -> NDArray[np.int64]:
    """How many tokens each text has, special ones around it left out."""
    read = [tokenizer.with_special_tokens(marks.read(text)) for text in texts]
    return np.array([len(ids) for ids in tokenizer.bare_ids(read)], np.int64)
