"""`prep inspect`: one query as a person reads it: its candidates by kind, each with the teacher's logit, and C(q)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from data.errors import UserError
from data.schemas import MASK_MARK, SEPARATOR_MARK, CandidateKind
from data.settings import Experiment
from pipeline.confidence import list_bounds
from pipeline.plan import Planner, table_named
from pipeline.stage import Stored

KIND_NAMES = {
    CandidateKind.POSITIVE: "positive",
    CandidateKind.NEGATIVE: "negative",
    CandidateKind.REINFORCED_NEGATIVE: "reinforced negative",
    CandidateKind.NOISY_POSITIVE: "noisy positive",
}


@dataclass(frozen=True)
class ScoredList:
    """One query's candidates with their logits, and its row of `confidence`."""

    query_id: str
    query: str
    draw: int
    candidates: list[dict[str, Any]]  # candidate_kind, candidate_id, text, logit, token_count
    confidence: dict[str, Any]


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
    candidates, scores, confidences = complete_tables(experiment, "dark_examples", "teacher_scores", "confidence")
    for shard in range(len(candidates.paths())):
        rows = candidates.read(shard)
        joined = rows.append_column("logit", scores.read(shard).column("logit"))
        confidence_rows = confidences.read(shard).to_pylist()
        for place, ((query_id, draw), start, stop) in enumerate(list_bounds(rows)):
            listed = joined.slice(start, stop - start).to_pylist()
            yield ScoredList(query_id, listed[0]["query"], draw, listed, confidence_rows[place])


def show(experiment: Experiment, *, query_id: str | None, width: int) -> None:
    """Print one query, the first one where no id is given. `width` cuts each text to so many characters, 0 shows all."""
    for found in scored_lists(experiment):
        if query_id in (None, found.query_id):
            _print(found, width=width)
            return
    raise UserError(f"query={query_id} is not among the training queries of these shards")


def readable(text: str, *, width: int = 0) -> str:
    """A passage with its marks as [MASK] and [SEP], cut to `width` characters where that is above 0."""
    text = text.replace(MASK_MARK, "[MASK]").replace(SEPARATOR_MARK, "[SEP]")
    return text if not width or len(text) <= width else text[: width - 1] + "…"


def _print(found: ScoredList, *, width: int) -> None:
    console = Console()
    facts = found.confidence
    console.print(Text(f"{found.query_id}  {found.query}", style="bold"))
    console.print(
        f"C(q) {facts['confidence']:.4f}   positive is number {facts['positive_rank']} among {{p+}} and P-   "
        f"entropy of the soft label {facts['label_entropy']:.2f} nats"
    )
    grid = Grid("kind", "id", "logit", "text", show_lines=True)
    for candidate in found.candidates:
        kind = KIND_NAMES[CandidateKind(candidate["candidate_kind"])]
        grid.add_row(kind, Text(candidate["candidate_id"]), f"{candidate['logit']:.2f}", Text(readable(candidate["text"], width=width)))
    console.print(grid)
