"""`prep inspect`: one query as a person reads it: its candidates by kind, each with the teacher's logit, and C(q)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from data.config.settings import Experiment
from data.errors import UserError
from data.tables.cl_drd_groups import labels_of
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK, CandidateKind
from data.terminal import printable
from pipeline.plan import Planner
from pipeline.stage import Stored
from pipeline.stages.confidence import describe_list, list_bounds
from pipeline.stages.lists import export_of

_DESCRIBED = ["query_id", "draw", "position", "candidate_kind", "logit", "confidence"]
_GROUP_NAMES = {CandidateKind.TOP: "group 1", CandidateKind.NEAR: "group 2", CandidateKind.FAR: "group 3"}
KIND_NAMES = {kind: _GROUP_NAMES.get(kind, kind.name.lower().replace("_", " ")) for kind in CandidateKind}


@dataclass(frozen=True)
class ScoredList:
    """One query's candidates with their logits."""

    query_id: str
    query: str
    draw: int
    candidates: list[dict[str, Any]]  # candidate_kind, candidate_id, text, logit, token_count
    facts: dict[str, Any]  # its row of `confidence`; of a curriculum C(q) alone


def complete_tables(experiment: Experiment, *labels: str) -> list[Stored]:
    """The complete tables of these labels. Raises UserError naming the stage to run."""
    planner = Planner(experiment)
    return [planner.completed(label) for label in labels]


def scored_shards(experiment: Experiment, *, columns: list[str] | None = None) -> Iterator[tuple[pa.Table, list[dict[str, Any]]]]:
    """Shard by shard these columns of the candidates with their `logit`, and the facts of each list (see `ScoredList`)."""
    if experiment.curriculum.enabled or experiment.lists.path:
        if experiment.lists.path and not export_of(experiment).training.teachers:
            raise UserError(f"lists.path={experiment.lists.path}: these lists have no logits to show")
        (lists,) = complete_tables(experiment, "lists" if experiment.lists.path else "curriculum")
        for shard in range(len(lists.paths())):
            if not has_groups(experiment):
                yield lists.read(shard, columns=columns and [*columns, "logit"]), _described(lists.read(shard, columns=_DESCRIBED))
                continue
            of_list = lists.read(shard, columns=["position", "query_id", "draw", "confidence"])
            firsts = of_list.filter(pc.equal(of_list.column("position"), 0)).drop_columns(["position"])
            yield lists.read(shard, columns=columns and [*columns, "logit"]), firsts.to_pylist()
        return
    candidates, scores, confidence = complete_tables(experiment, "dark_examples", "teacher_scores", "confidence")
    for shard in range(len(candidates.paths())):
        logits = scores.read(shard, columns=["logit"]).column("logit")
        yield candidates.read(shard, columns=columns).append_column("logit", logits), confidence.read(shard).to_pylist()


def has_groups(experiment: Experiment) -> bool:
    """Whether the lists are of a curriculum, here or where they were exported."""
    return bool(export_of(experiment).training.curriculum) if experiment.lists.path else experiment.curriculum.enabled


def _described(rows: pa.Table) -> list[dict[str, Any]]:
    """What the table `confidence` holds of exported lists, C(q) as they carry it."""
    kinds, logits, confidences = (rows.column(name).to_numpy() for name in ("candidate_kind", "logit", "confidence"))
    return [
        {"query_id": query_id, "draw": draw, **describe_list(kinds[start:stop], logits[start:stop].astype(np.float64)),
         "confidence": float(confidences[start])}
        for (query_id, draw), start, stop in list_bounds(rows)
    ]  # fmt: skip


def scored_lists(experiment: Experiment, requested: Callable[[str, int], bool]) -> Iterator[ScoredList]:
    """The lists of those (query_id, draw) that are requested, shard after shard."""
    for rows, facts in scored_shards(experiment):
        for ((query_id, draw), start, stop), of_list in zip(list_bounds(rows), facts, strict=True):
            if requested(query_id, draw):
                candidates = rows.slice(start, stop - start).to_pylist()
                yield ScoredList(query_id, candidates[0]["query"], draw, candidates, of_list)


def show(experiment: Experiment, *, query_id: str | None, width: int) -> None:
    """Print one query, the first one where no id is given; of a curriculum its list of each iteration, of several positives all lists.

    `width` cuts each text to so many characters, 0 shows all.
    """
    begun: list[ScoredList] = []  # a query's lists stand together: after them comes another query's, which ends the search
    lists = scored_lists(experiment, lambda found, draw: bool(begun) or query_id in (None, found))
    first = next(lists, None)
    if first is None:
        raise UserError(f"query={query_id} is not among the training queries of these shards")
    begun.append(first)
    if experiment.hard_negatives.positives != "one" and not experiment.lists.path:
        for found in (first, *itertools.takewhile(lambda one: one.query_id == first.query_id, lists)):
            _print(found, width=width, of_several=True)
        return
    more = experiment.draws - 1 if experiment.curriculum.enabled else 0
    more = export_of(experiment).training.draws - 1 if experiment.lists.path and has_groups(experiment) else more
    for found in (first, *itertools.islice(lists, more)):
        _print(found, width=width)


def _print(found: ScoredList, *, width: int, of_several: bool = False) -> None:
    facts = found.facts
    kinds = [CandidateKind(candidate["candidate_kind"]) for candidate in found.candidates]
    labels = None if "positive_rank" in facts else labels_of(kinds)
    line = f"C(q) {facts['confidence']:.4f}"
    if labels is None:
        line += f"   positive is number {facts['positive_rank']} among {{p+}} and P-   "
        line += f"entropy of the soft label {facts['label_entropy']:.2f} nats"
    else:
        line = f"iteration {found.draw + 1}   {line}"
    if of_several:
        line = f"draw {found.draw}   {line}"
    grid = Grid(*(["kind"] if labels is None else ["group", "label"]), "id", "logit", "text", show_lines=True)
    for place, (kind, candidate) in enumerate(zip(kinds, found.candidates, strict=True)):
        label = [] if labels is None else [f"{labels[place]:.3g}"]
        identifier = Text(printable(candidate["candidate_id"]))
        text = Text(_readable(candidate["text"], width=width))
        grid.add_row(KIND_NAMES[kind], *label, identifier, f"{candidate['logit']:.2f}", text)
    console = Console()
    console.print(Text(printable(f"{found.query_id}  {found.query}"), style="bold"))
    console.print(line)
    console.print(grid)


def _readable(text: str, *, width: int) -> str:
    """A passage with its marks as [MASK] and [SEP], cut to `width` characters where that is above 0."""
    text = printable(text.replace(MASK_MARK, "[MASK]").replace(SEPARATOR_MARK, "[SEP]"))
    return text if not width or len(text) <= width else text[: width - 1] + "…"
