"""`prep report`: one HTML file that needs no network: what the teacher thinks of the candidates, and what each stage did.

The page itself is `page.html.j2`, which escapes all text. The same store gives the same page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import polars as pl
from markupsafe import Markup, escape
from numpy.typing import NDArray

from data.config.settings import Experiment
from data.digests import hash64
from data.store import mirror
from data.tables.cl_drd_groups import FAR_LABEL, NEAR_LABEL
from data.tables.schemas import ADAM_KINDS, GROUPS, MASK_MARK, SEPARATOR_MARK, CandidateKind
from data.tables.shards import atomic_write, read_row_groups
from data.terminal import printable
from pipeline.negatives.query_selection import BANDS
from pipeline.plan import Planner, TablePlan, tables
from pipeline.report.figures import COLOURS, MIXED, Series, confidence_histogram, score_distributions
from pipeline.report.inspect import KIND_NAMES, ScoredList, has_groups, scored_lists, scored_shards
from pipeline.report.negatives import negatives_findings
from pipeline.stages.ingest_tables import quarantine_file
from pipeline.stages.lists import export_of
from pipeline.tables.journal import read_journal

SHOWN_QUERIES = 20
_SHOWN_QUARANTINED = 20
_MOMENTS = ("candidates", "mean logit", "standard deviation", "lowest", "5 %", "95 %", "highest", "above the first positive")
_LABELS = {CandidateKind.TOP: "1/place", CandidateKind.NEAR: f"{NEAR_LABEL}", CandidateKind.FAR: f"{FAR_LABEL}"}

Confidences = list[tuple[str, int, float]]  # query, draw and C(q) of each list


def write_report(experiment: Experiment, out: Path) -> None:
    """Write the page. Raises UserError, naming the stage to run, where the tables up to the teacher's scores are not complete."""
    scores, confidences = _read_scores(experiment)
    of_method = _of_curriculum(experiment, scores) if has_groups(experiment) else _of_adam(experiment, scores, confidences)
    plans = list(Planner(experiment).plan_all(tables(experiment)))
    quarantined, quarantine = _quarantine([plan for plan in plans if plan.table.stage == "ingest"])
    page = _template().render(
        facts=_facts(
            experiment, queries=len({query_id for query_id, _, _ in confidences}), candidates=len(scores) / max(1, len(confidences))
        ),
        **of_method,
        bands=BANDS,
        stages=[_stage_row(plan) for plan in plans if plan.manifest is not None],
        quarantined=quarantined,
        quarantine=quarantine,
        lists=_chosen(experiment, confidences),
        kind_names=KIND_NAMES,
        colours=COLOURS,
    )
    atomic_write(out, page.encode())


def _template() -> jinja2.Template:
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(
        loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown, undefined=jinja2.StrictUndefined
    )
    page.filters["marked"] = _marked
    return page.get_template("page.html.j2")


def _shown(value: Any) -> Any:
    """A value as the page shows it: control characters as their codes."""
    return value if hasattr(value, "__html__") else printable(str(value))


def _marked(text: str) -> Markup:
    """A candidate's text with its marks highlighted."""
    safe = str(escape(printable(text)))
    return Markup(safe.replace(MASK_MARK, "<mark>[MASK]</mark>").replace(SEPARATOR_MARK, '<mark class="sep">[SEP]</mark>'))


def _read_scores(experiment: Experiment) -> tuple[pl.DataFrame, Confidences]:
    """A row a candidate (`above`: its list's first positive; `ratio`: of a noisy positive), and C(q) of each list."""
    columns = ["draw", "position", "candidate_kind", "candidate_id"]
    frames: list[pl.DataFrame] = []
    confidences: Confidences = []
    for rows, facts in scored_shards(experiment, columns=columns):
        lists = (pl.col("position") == 0).cum_sum()  # a positive opens each list
        ratio = pl.when(pl.col("candidate_kind") == CandidateKind.NOISY_POSITIVE).then(pl.col("candidate_id").str.split("~").list.last())
        frame = pl.DataFrame(pl.from_arrow(rows)).with_columns(above=pl.col("logit") > pl.col("logit").first().over(lists), ratio=ratio)
        frames.append(frame.select("draw", "candidate_kind", "logit", "above", "ratio"))
        confidences += [(of_list["query_id"], of_list["draw"], of_list["confidence"]) for of_list in facts]
    return pl.concat(frames), confidences


def _facts(experiment: Experiment, *, queries: int, candidates: float) -> list[tuple[str, object]]:
    """What was made, of what. `candidates` is the mean length of a list."""
    if experiment.lists.path:
        return _facts_of_lists(experiment, queries=queries, candidates=candidates)
    curriculum = experiment.curriculum
    groups = [("groups, an iteration", ", ".join(curriculum.iterations)), ("group 2 up to rank", curriculum.near_rank)]
    return [
        ("student", experiment.student.model),
        ("teacher", f"{experiment.teacher.model} ({experiment.teacher.backend})"),
        ("negatives from", experiment.hard_negatives.source),
        ("mined with", experiment.embed.model or experiment.student.model),
        *(groups if curriculum.enabled else [("sampler", experiment.hard_negatives.sampler)]),
        *([("positives", experiment.hard_negatives.positives)] if experiment.hard_negatives.positives != "one" else []),
        ("training queries", f"{queries:,}"),
        ("candidates a query", f"{candidates:.1f}"),
        ("seed", experiment.seed),
        ("store", experiment.store),
    ]


def _facts_of_lists(experiment: Experiment, *, queries: int, candidates: float) -> list[tuple[str, object]]:
    """The same of lists that were exported elsewhere."""
    export = export_of(experiment)
    return [
        ("student", experiment.student.model),
        ("teacher", export.note.teacher.get("name", "?")),
        ("lists from", experiment.lists.folder),
        ("negatives from", export.training.negatives_source),
        ("training queries", f"{queries:,}"),
        ("candidates a query", f"{candidates:.1f}"),
        ("seed", experiment.seed),
        ("store", experiment.store),
    ]


def _kind(scores: pl.DataFrame, kind: CandidateKind) -> pl.DataFrame:
    return scores.filter(pl.col("candidate_kind") == kind)


def _moments(rows: pl.DataFrame) -> list[str]:
    if rows.is_empty():
        return ["0", *[""] * (len(_MOMENTS) - 1)]
    logits = rows["logit"].to_numpy()
    low, high = np.quantile(logits, [0.05, 0.95])
    figures = (logits.mean(), logits.std(), logits.min(), low, high, logits.max())
    return [f"{len(logits):,}", *(f"{figure:.2f}" for figure in figures), f"{rows['above'].to_numpy().mean():.0%}"]


def _series(scores: pl.DataFrame, kinds: Sequence[CandidateKind]) -> list[Series]:
    return [(KIND_NAMES[kind], _kind(scores, kind)["logit"].to_numpy(), COLOURS[kind]) for kind in kinds]


def _of_adam(experiment: Experiment, scores: pl.DataFrame, confidences: Confidences) -> dict[str, Any]:
    """What the page shows of positives, negatives and dark examples."""
    rows = [[KIND_NAMES[kind], *_moments(_kind(scores, kind))] for kind in ADAM_KINDS]
    of_lists = export_of(experiment).training if experiment.lists.path else None
    for ratio in of_lists.mask_ratios if of_lists else experiment.dark_examples.mask_ratios:
        rows.append([f"noisy positive, ratio {ratio}", *_moments(scores.filter(pl.col("ratio") == str(ratio)))])
    kinds = _series(scores, ADAM_KINDS)
    dark = ("negatives and dark examples", np.concatenate([logits for _, logits, _ in kinds[1:]]), MIXED)
    values: NDArray[np.float32] = np.array([value for _, _, value in confidences], dtype=np.float32)
    sure = float((values > np.log(0.5)).mean())
    figures = [
        ("Positives and hard negatives (as ADAM, Figure 1). Far apart: too easy.", score_distributions(kinds[:2], span=_span(scores))),
        ("With dark examples among the negatives (as ADAM, Figure 3b): they should fill the gap.", score_distributions([*kinds[:2], dark])),
        ("Each kind of candidate by itself.", score_distributions(kinds)),
        (f"C(q). The labelled positive has more than half of the mass in {sure:.0%} of the lists.", confidence_histogram(values)),
    ]
    return {
        "figures": figures,
        "group_names": ["kind", *_MOMENTS],
        "groups": rows,
        "findings": None if of_lists else negatives_findings(experiment),
    }


def _of_curriculum(experiment: Experiment, scores: pl.DataFrame) -> dict[str, Any]:
    """What the page shows of CL-DRD's groups, iteration by iteration."""
    figures = []
    rows = []
    iterations = export_of(experiment).training.curriculum if experiment.lists.path else experiment.curriculum.iterations
    for number, name in enumerate(iterations):
        own = scores.filter(pl.col("draw") == number)
        present = [kind for kind in GROUPS if not _kind(own, kind).is_empty()]
        what = "the groups should part." if len(present) > 1 else "one group, graded by place."
        # One axis, so that the iterations can be compared.
        figures.append((f"Iteration {number + 1} ({name}): {what}", score_distributions(_series(own, GROUPS), span=_span(scores))))
        rows += [[f"{KIND_NAMES[kind]} of iteration {number + 1}", _LABELS[kind], *_moments(_kind(own, kind))] for kind in present]
    return {"figures": figures, "group_names": ["group", "label", *_MOMENTS], "groups": rows, "findings": None}


def _span(scores: pl.DataFrame) -> tuple[float, float]:
    logits = scores["logit"].to_numpy()
    return float(logits.min()), float(logits.max())


def _stage_row(plan: TablePlan) -> list[Any]:
    manifest = plan.stored.manifest
    counts = dict(manifest.counts)
    taken, kept, dropped = (counts.pop(name, default) for name, default in (("in", 0), ("kept", 0), ("dropped", {})))
    for line in read_journal(plan.folder):
        for name in ("cached", "scored"):
            if name in line:
                counts[name] = counts.get(name, 0) + line[name]
    kilobytes = sum(shard.bytes for shard in manifest.shards) / 1e3
    numbers = [f"{manifest.rows:,}", len(manifest.shards), f"{kilobytes:,.0f}", f"{taken:,}", f"{kept:,}"]
    fingerprint = Markup("<code>{}</code>").format(manifest.fingerprint[:12])
    return [plan.table.label, *numbers, _named(dropped) or "none", _named(counts), f"{manifest.seconds:.1f}", fingerprint]


def _named(counts: dict[str, Any]) -> str:
    return "; ".join(f"{name}: {_named(value)}" if isinstance(value, dict) else f"{name} {value:,}" for name, value in counts.items())


def _quarantine(ingested: Sequence[TablePlan]) -> tuple[dict[str, int], list[list[str]]]:
    """How many lines were quarantined for which reason, and the first of them: file, line, reason, record."""
    reasons: Counter[str] = Counter()
    first: list[list[str]] = []
    for plan in ingested:
        path = quarantine_file(plan.folder)
        for group in read_row_groups(path) if mirror.exists(path) else ():
            reasons.update(group.column("reason").to_pylist())
            first += [list(row.values()) for row in group.slice(0, _SHOWN_QUARANTINED - len(first)).to_pylist()]
    return dict(reasons.most_common()), first


def _chosen(experiment: Experiment, confidences: Confidences) -> list[ScoredList]:
    """Queries spread evenly over C(q), the least sure first, each with its lists of the first draw: a query counts by its least."""
    least = {query_id: confidence for query_id, draw, confidence in sorted(confidences, key=lambda one: -one[2]) if draw == 0}
    ordered = sorted(least, key=lambda query_id: (least[query_id], hash64(experiment.seed, query_id, 0), query_id))
    places = np.unique(np.linspace(0, len(ordered) - 1, min(SHOWN_QUERIES, len(ordered))).round().astype(int))
    rank_of = {(ordered[place], 0): rank for rank, place in enumerate(places)}
    found = scored_lists(experiment, lambda query_id, draw: (query_id, draw) in rank_of)
    return sorted(found, key=lambda listed: rank_of[listed.query_id, listed.draw])
