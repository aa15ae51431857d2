"""`prep inspect`: one query as a person reads it: its candidates by kind, each with the teacher's logit, and C(q)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from data.config.settings import Experiment
from data.errors import UserError
from data.tables.cl_drd_groups import labels_of
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK, CandidateKind
from data.terminal import printable
from pipeline.plan import Planner, table_named
from pipeline.stage import Stored
from pipeline.stages.confidence import list_bounds

KIND_NAMES = {
    CandidateKind.POSITIVE: "positive",
    CandidateKind.NEGATIVE: "negative",
    CandidateKind.REINFORCED_NEGATIVE: "reinforced negative",
    CandidateKind.NOISY_POSITIVE: "noisy positive",
    CandidateKind.TOP: "group 1",
    CandidateKind.NEAR: "group 2",
    CandidateKind.FAR: "group 3",
}


@dataclass(frozen=True)
class ScoredList:
    """One query's candidates with their logits, and its row of `confidence`."""

    query_id: str
    query: str
    draw: int
    candidates: list[dict[str, Any]]  # candidate_kind, candidate_id, text, logit, token_count
    confidence: dict[str, Any]  # of a curriculum C(q) alone


def complete_tables(experiment: Experiment, *labels: str) -> list[Stored]:
    """The complete tables of these labels. Raises UserError naming the stage to run."""
    planner, found = Planner(experiment), []
    for label in labels:
        plan = planner.plan(table_named(experiment, label))
        if plan.waits_for or not plan.complete:
            raise UserError(f"{label} is not complete: prep run stage={label.split('.')[0]} first")
        found.append(plan.stored)
    return found


def scored_lists(experiment: Experiment) -> Iterator[ScoredList]:
    """All queries' lists, shard after shard."""
    if experiment.curriculum.enabled:
        yield from _lists_of_groups(experiment)
        return
    candidates, scores, confidences = complete_tables(experiment, "dark_examples", "teacher_scores", "confidence")
    for shard in range(len(candidates.paths())):
        rows = candidates.read(shard)
        joined = rows.append_column("logit", scores.read(shard).column("logit"))
        confidence_rows = confidences.read(shard).to_pylist()
        for place, ((query_id, draw), start, stop) in enumerate(list_bounds(rows)):
            listed = joined.slice(start, stop - start).to_pylist()
            yield ScoredList(query_id, listed[0]["query"], draw, listed, confidence_rows[place])


def _lists_of_groups(experiment: Experiment) -> Iterator[ScoredList]:
    (lists,) = complete_tables(experiment, "curriculum")
    for shard in range(len(lists.paths())):
        rows = lists.read(shard)
        for (query_id, draw), start, stop in list_bounds(rows):
            listed = rows.slice(start, stop - start).to_pylist()
            yield ScoredList(query_id, listed[0]["query"], draw, listed, {"confidence": listed[0]["confidence"]})


def show(experiment: Experiment, *, query_id: str | None, width: int) -> None:
    """Print one query, the first one where no id is given; of a curriculum, its list of each iteration.

    `width` cuts each text to so many characters, 0 shows all.
    """
    lists = (found for found in scored_lists(experiment) if query_id in (None, found.query_id))
    first = next(lists, None)
    if first is None:
        raise UserError(f"query={query_id} is not among the training queries of these shards")
    more = experiment.draws - 1 if experiment.curriculum.enabled else 0
    for found in (first, *itertools.islice(lists, more)):  # a query's lists stand together
        _print(found, width=width)


def readable(text: str, *, width: int = 0) -> str:
    """A passage with its marks as [MASK] and [SEP], cut to `width` characters where that is above 0."""
    text = printable(text.replace(MASK_MARK, "[MASK]").replace(SEPARATOR_MARK, "[SEP]"))
    return text if not width or len(text) <= width else text[: width - 1] + "…"


def _print(found: ScoredList, *, width: int) -> None:
    console = Console()
    facts = found.confidence
    console.print(Text(printable(f"{found.query_id}  {found.query}"), style="bold"))
    if "positive_rank" not in facts:
        _print_groups(found, console, width=width)
        return
    console.print(
        f"C(q) {facts['confidence']:.4f}   positive is number {facts['positive_rank']} among {{p+}} and P-   "
        f"entropy of the soft label {facts['label_entropy']:.2f} nats"
    )
    grid = Grid("kind", "id", "logit", "text", show_lines=True)
    for candidate in found.candidates:
        kind = KIND_NAMES[CandidateKind(candidate["candidate_kind"])]
        grid.add_row(
            kind, Text(printable(candidate["candidate_id"])), f"{candidate['logit']:.2f}", Text(readable(candidate["text"], width=width))
        )
    console.print(grid)


def _print_groups(found: ScoredList, console: Console, *, width: int) -> None:
    console.print(f"iteration {found.draw + 1}   C(q) {found.confidence['confidence']:.4f}")
    labels = labels_of([candidate["candidate_kind"] for candidate in found.candidates])
    grid = Grid("group", "label", "id", "logit", "text", show_lines=True)
    for candidate, label in zip(found.candidates, labels.tolist(), strict=True):
        kind, text = KIND_NAMES[CandidateKind(candidate["candidate_kind"])], Text(readable(candidate["text"], width=width))
        grid.add_row(kind, f"{label:.3g}", Text(printable(candidate["candidate_id"])), f"{candidate['logit']:.2f}", text)
    console.print(grid)
