"""`prep import ANSWERS format=pairs config=FILE`: scores that any engine gave to exported pairs become logits of the declared teacher.

    JSONL      {"key": "<32 hex digits>", "score": 1.5} a line; `logit` in place of `score`; `query` and `text`, where both are there, are
               compared with the key; everything else is passed over
    TSV        key <tab> score a line, a header or none
    Parquet    the columns of JSONL; keys also as 16 bytes

A pair may be left out, or have no score: it stays unscored, and is asked for again. All else that is strange is a fault with file and line.
Where more than `max_bad_fraction` of the answers are faults (default: one is too many), nothing is stored. What is stored is one segment,
whole or not at all, and a repeated import stores nothing twice. In memory are about 100 bytes an answer, and 16 a pair that is asked for.
"""

from __future__ import annotations

import itertools
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.config.arguments import path_among
from data.config.fields import parse_arguments
from data.config.settings import load
from data.digests import pair_key
from data.errors import UserError
from data.files.paths import expanded
from data.files.text_lines import numbered_lines
from data.logits.lookup import Requested
from data.logits.segment import Keys, Scores
from data.remote.cache import local_file
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK
from pipeline.interchange.asked_tables import AskedTables
from pipeline.plan import Planner
from pipeline.scoring.dedup import first_occurrence
from pipeline.scoring.requested_pairs import store_of
from pipeline.stage import Say
from retrieval.teachers.http.shapes import undo_sigmoid
from retrieval.teachers.imported import ImportedSpec

_KEY = re.compile(r"[0-9a-fA-F]{32}", re.ASCII)
_SHOWN_FAULTS = 10
_ROWS = 4096  # of a Parquet file at a time
_LARGEST = float(np.finfo(np.float32).max)
_COSINE_SLACK = 1e-3  # rounding of engines that compute in half precision
_RANGES = {"logit": (-_LARGEST, _LARGEST), "probability": (0.0, 1.0), "cosine": (-1 - _COSINE_SLACK, 1 + _COSINE_SLACK)}
_MARKS = (MASK_MARK, SEPARATOR_MARK, "[MASK]", "[SEP]")


class Answer(NamedTuple):
    """One record, as it stands."""

    line: int  # from 1; of a Parquet file the row
    record: Any  # a dict, or why it is none


@dataclass
class Answers:
    """The answers that carry a key and a number, and what is wrong with the others."""

    kind: str  # of scores
    lines: array[int] = field(default_factory=lambda: array("q"))
    keys: bytearray = field(default_factory=bytearray)
    scores: array[float] = field(default_factory=lambda: array("d"))
    records: int = 0
    unscored: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)

    def add(self, answer: Answer) -> None:
        """Take an answer, or count its fault."""
        self.records += 1
        try:
            key, score = _read(answer.record, self.kind)
        except ValueError as error:
            self.broken(answer.line, str(error))
            return
        if score is None:
            self.unscored += 1
            return
        self.lines.append(answer.line)
        self.keys += key
        self.scores.append(score)

    def broken(self, line: int, reason: str) -> None:
        """Count a fault; the words up to a colon are its kind."""
        self.reasons[reason.partition(":")[0]] += 1
        self.faults.append((line, reason))
        if len(self.faults) > 1000 * _SHOWN_FAULTS:  # the wrong file must not fill the memory
            self.faults = sorted(self.faults)[:_SHOWN_FAULTS]

    @property
    def key_array(self) -> Keys:
        """[n, 2]."""
        return np.frombuffer(bytes(self.keys), ">u8").astype(np.uint64).reshape(-1, 2)

    @property
    def logits(self) -> NDArray[np.float32]:
        """[n]."""
        scores = np.frombuffer(self.scores, np.float64) if len(self.scores) else np.empty(0)
        return (undo_sigmoid(scores) if self.kind == "probability" else scores).astype(np.float32)


def import_pairs(args: list[str], *, say: Say) -> None:
    """Import what `path=` names; the other arguments are `config=FILE`, overrides, and `max_bad_fraction`.

    Raises UserError: another kind of teacher, nothing is asked yet, answers that cannot be taken.
    """
    values = parse_arguments(path_among(args))
    values.pop("format", None)
    given, allowed = values.pop("path", ""), _fraction(values.pop("max_bad_fraction", "0"))
    if not given or "config" not in values:
        raise UserError("missing: prep import ANSWERS format=pairs config=FILE")
    planner = Planner(load(values))
    spec = _declared_teacher(planner)
    asked = AskedTables.of(planner)
    path = local_file(expanded(given, key="path"))
    if not path.is_file():
        raise UserError(f"{given}: no such file of answers")
    answers = Answers(str(spec.stored_key["scores"]))
    for answer in _answers(path):
        answers.add(answer)
    _store(planner, spec, asked, answers, place=given, allowed=allowed, say=say)


def _declared_teacher(planner: Planner) -> ImportedSpec:
    """The teacher whose logits the answers become. Raises UserError where another kind of teacher scores for itself."""
    teacher = planner.experiment.teacher
    if teacher.backend == "imported" and isinstance(spec := planner.models.teacher, ImportedSpec) and spec.is_declared:
        return spec
    raise UserError(
        f"teacher.backend={teacher.backend} teacher.model={teacher.model}: scores of another engine would stand among this teacher's own "
        "logits, in the same lists; declare the engine as a teacher of its own: teacher.backend=imported teacher.model=NAME "
        "teacher.revision=1"
    )


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UserError(f"max_bad_fraction={text}: expected a number from 0 to 1")
    return value


def _store(planner: Planner, spec: ImportedSpec, asked: AskedTables, answers: Answers, *, place: str, allowed: float, say: Say) -> None:
    """Take the answers that are asked for, new and in one voice."""
    keys, logits = answers.key_array, answers.logits
    lines = np.frombuffer(answers.lines, np.int64) if len(answers.lines) else np.empty(0, np.int64)
    wanted = _all_asked(planner, asked)
    first, which = first_occurrence(keys)
    told = logits[first][which]  # by the first answer to each pair
    store = store_of(planner.models, warn=say)
    known = store.lookup(keys).logits
    requested = Requested(keys)
    requested.merge(wanted, Scores(np.zeros(len(wanted), np.float32), np.zeros(len(wanted), np.int32), np.zeros(len(wanted), bool)))
    unasked = np.isnan(requested.found.logits)
    twice, again = ~unasked & (logits != told), ~unasked & ~np.isnan(known) & (known != logits)
    for rows, reason in (
        (unasked, "a pair that is not asked for: the tables of this experiment have no such key"),
        (twice, "two scores of one pair: an answer before gives another"),
        (again & ~twice, "another logit than is stored: declare another teacher.revision for it"),
    ):
        for line in lines[rows].tolist():
            answers.broken(line, reason)
    _refuse_faults(answers, place=place, allowed=allowed, say=say)
    stood = np.zeros(len(keys), bool)
    stood[first] = True
    good = stood & ~unasked & np.isnan(known)
    if good.any():
        store.describe(key=spec.stored_key, name=spec.name)
        count = int(good.sum())
        store.append(keys[good], Scores(logits[good], np.zeros(count, np.int32), np.zeros(count, bool)))
    missing = int(np.isnan(store.lookup(wanted).logits).sum())
    there = int((stood & ~unasked & (known == logits)).sum())
    say(f"{int(good.sum()):,} logits of {spec.name} stored, {there:,} were there already, {answers.unscored:,} answers have no score")
    say(
        f"{missing:,} of {len(wanted):,} pairs have no logit yet"
        if missing
        else f"all {len(wanted):,} pairs have a logit: prep run config=FILE"
    )


def _all_asked(planner: Planner, asked: AskedTables) -> Keys:
    """[n, 2] all pairs of the complete tables, each once, in key order."""
    parts = [pairs.keys for _, requested in asked.shards(planner) for pairs in requested]
    keys = np.concatenate([np.empty((0, 2), np.uint64), *parts])
    keys = keys[first_occurrence(keys)[0]]
    return keys[np.lexsort((keys[:, 1], keys[:, 0]))]


def _refuse_faults(answers: Answers, *, place: str, allowed: float, say: Say) -> None:
    """Raises UserError where there is no answer, none has a score, or too many are faults."""
    broken = sum(answers.reasons.values())
    if not answers.records:
        raise UserError(f"{place} holds no answer")
    if answers.unscored == answers.records:
        raise UserError(f"{place}: none of its {answers.records:,} answers has a score; expected a field or column `score` (or `logit`)")
    if not broken:
        return
    kinds = ", ".join(f"{count:,} {reason}" for reason, count in answers.reasons.most_common())
    shown = "\n".join(f"  {place} line {line}: {reason}" for line, reason in sorted(answers.faults)[:_SHOWN_FAULTS])
    if broken > allowed * answers.records:
        raise UserError(
            f"{broken:,} of {answers.records:,} answers cannot be taken, and nothing is stored ({kinds}):\n{shown}\n"
            "Mend the file, or leave these answers out: max_bad_fraction=SHARE"
        )
    say(f"warning: {broken:,} of {answers.records:,} answers are left out ({kinds}):\n{shown}")


def _read(record: Any, kind: str) -> tuple[bytes, float | None]:
    """(key, score or None) of a record. Raises ValueError with what is wrong, its kind first."""
    if not isinstance(record, dict):
        raise ValueError(f"no answer: {record}" if isinstance(record, str) else "no answer: a JSON object with key and score is expected")
    key = _key(record.get("key"))
    query, text = record.get("query"), record.get("text")
    if isinstance(query, str) and isinstance(text, str) and not any(mark in text for mark in _MARKS) and pair_key(query, text) != key:
        raise ValueError("a text of another key: the key is not that of its query and text")
    score = record.get("score")
    score = record.get("logit") if score is None else score
    if score is None:
        return key, None
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ValueError(f"no number: the score is {str(score)[:40]!r}")
    low, high = _RANGES[kind]
    if not low <= score <= high:  # of NaN neither holds
        raise ValueError(f"no {kind}: the score is {str(score)[:40]}" + ("" if kind == "logit" else f" (teacher.imported.scores={kind})"))
    return key, float(score)


def _key(given: Any) -> bytes:
    if isinstance(given, bytes) and len(given) == 16:
        return given
    if isinstance(given, str) and _KEY.fullmatch(given.strip()):
        return bytes.fromhex(given.strip())
    raise ValueError(f"no key: 32 hex digits are expected, not {str(given)[:40]!r}")


def _answers(path: Path) -> Iterator[Answer]:
    """The records of a file, of what its first bytes say it is."""
    with open(path, "rb") as file:
        head = file.read(4)
    if head == b"PAR1":
        yield from _of_parquet(path)
        return
    lines = ((number, line) for number, line in numbered_lines(path) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip()[:1] == b"{":
        yield from (Answer(number, _json(line)) for number, line in itertools.chain([first], lines))
    elif first[1].lstrip()[:1] == b"[":
        raise UserError(f"{path} is one JSON array: give a JSON object a line (jq -c '.[]')")
    else:
        is_header = first[1].split(b"\t")[0].strip().lower() == b"key"
        yield from (Answer(number, _row(line)) for number, line in (lines if is_header else itertools.chain([first], lines)))


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return "no JSON"


def _row(line: bytes) -> Any:
    """A line of `key <tab> score`; an empty score is none."""
    parts = line.decode(errors="replace").split("\t")
    if len(parts) != 2:
        return f"{len(parts)} columns, `key <tab> score` is expected"
    try:
        return {"key": parts[0], "score": float(parts[1]) if parts[1].strip() else None}
    except ValueError:
        return {"key": parts[0], "score": parts[1]}


def _of_parquet(path: Path) -> Iterator[Answer]:
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in ("key", "score", "logit", "query", "text") if name in file.schema_arrow.names]
            if "key" not in names or not {"score", "logit"} & set(names):
                raise UserError(f"{path} has the columns {', '.join(file.schema_arrow.names)}; expected key and score")
            row = 0
            for batch in file.iter_batches(batch_size=_ROWS, columns=names):
                for record in batch.to_pylist():
                    row += 1
                    yield Answer(row, record)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from error
