"""`prep report`: one HTML file that needs no network: what the teacher thinks of the candidates, and what each stage did.

All text from the collection is escaped. The same store gives the same page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config.settings import Experiment
from data.digests import hash64
from data.tables.schemas import ADAM_KINDS, MASK_MARK, SEPARATOR_MARK, CandidateKind
from data.tables.shards import atomic_write, read_row_groups
from pipeline.negatives.query_selection import BANDS
from pipeline.plan import Planner, TablePlan, tables
from pipeline.report.cl_drd import curriculum_sections
from pipeline.report.figures import COLOURS, Logits, confidence_histogram, score_distributions, smoothed_distribution
from pipeline.report.html import escape, facts_table, figure, html_table, page
from pipeline.report.inspect import KIND_NAMES, ScoredList, complete_tables, scored_lists
from pipeline.report.negatives import Example, Findings, negatives_findings
from pipeline.run import read_journal
from pipeline.stages.ingest_tables import quarantine_file

SHOWN_QUERIES = 20
_SHOWN_QUARANTINED = 20


def write_report(experiment: Experiment, out: Path) -> None:
    """Write the page. Raises UserError, naming the stage to run, where the tables up to the teacher's scores are not complete."""
    head, confidences = curriculum_sections(experiment) if experiment.curriculum.enabled else _adam_sections(experiment)
    sections = [*head, _stage_table(experiment), _quarantine(experiment), _queries(_chosen(experiment, confidences))]
    atomic_write(out, page(sections).encode())


Confidences = dict[tuple[str, int], float]  # C(q) of each (query, draw)


def _adam_sections(experiment: Experiment) -> tuple[list[str], Confidences]:
    """What the teacher thinks of positives, negatives and dark examples; C(q) of each list."""
    logits, above, ratios, confidences = _scores(experiment)
    sections = [
        _head(experiment, queries=len({query_id for query_id, _ in confidences}), logits=logits),
        _figures(logits, confidences),
        _kind_table(logits, above, ratios, experiment.dark_examples.mask_ratios),
        _negatives(negatives_findings(experiment)),
    ]
    return sections, confidences


Above = dict[CandidateKind, NDArray[np.bool_]]


def _scores(experiment: Experiment) -> tuple[Logits, Above, NDArray[np.int64], Confidences]:
    """By kind the logits and whether each is above its p+; the place of each noisy positive's ratio; C(q) of each (query, draw)."""
    candidates, scores, confidence = complete_tables(experiment, "dark_examples", "teacher_scores", "confidence")
    by_kind: dict[CandidateKind, list[NDArray[np.float32]]] = {kind: [] for kind in ADAM_KINDS}
    above: dict[CandidateKind, list[NDArray[np.bool_]]] = {kind: [] for kind in ADAM_KINDS}
    ratio_names = {str(ratio): place for place, ratio in enumerate(experiment.dark_examples.mask_ratios)}
    ratios: list[int] = []
    confidences: Confidences = {}
    for shard in range(len(candidates.paths())):
        table = candidates.read(shard, columns=["position", "candidate_kind", "candidate_id"])
        kinds = table.column("candidate_kind").to_numpy()
        logits = scores.read(shard, columns=["logit"]).column("logit").to_numpy()
        lists = np.cumsum(table.column("position").to_numpy() == 0) - 1  # p+ opens each list
        is_above = logits > logits[kinds == CandidateKind.POSITIVE][lists]
        for kind in ADAM_KINDS:
            by_kind[kind].append(logits[kinds == kind])
            above[kind].append(is_above[kinds == kind])
        noisy = table.filter(kinds == CandidateKind.NOISY_POSITIVE).column("candidate_id").to_pylist()
        ratios += [ratio_names[name.rsplit("~", 1)[1]] for name in noisy]
        for row in confidence.read(shard, columns=["query_id", "draw", "confidence"]).to_pylist():
            confidences[row["query_id"], row["draw"]] = row["confidence"]
    joined = {kind: np.concatenate(parts) for kind, parts in by_kind.items()}
    return joined, {kind: np.concatenate(parts) for kind, parts in above.items()}, np.array(ratios, dtype=np.int64), confidences


def _head(experiment: Experiment, *, queries: int, logits: Logits) -> str:
    per_query = sum(map(len, logits.values())) / max(1, queries * experiment.draws)
    return facts_table(experiment, queries=queries, candidates=per_query, lists=[("sampler", experiment.hard_negatives.sampler)])


def _figures(logits: Logits, confidences: Confidences) -> str:
    dark = [CandidateKind.REINFORCED_NEGATIVE, CandidateKind.NOISY_POSITIVE]
    plain = [CandidateKind.POSITIVE, CandidateKind.NEGATIVE]
    values = np.array(list(confidences.values()), dtype=np.float32)
    sure = float((values > np.log(0.5)).mean())
    shown = [
        ("Positives and hard negatives (as ADAM, Figure 1). Far apart: too easy.", score_distributions(logits, plain)),
        ("With dark examples among the negatives (as ADAM, Figure 3b): they should fill the gap.", smoothed_distribution(logits)),
        ("Each kind of candidate by itself.", score_distributions(logits, [*plain, *dark])),
        (f"C(q). The labelled positive has more than half of the mass in {sure:.0%} of the lists.", confidence_histogram(values)),
    ]
    figures = "".join(figure(svg, caption=caption) for caption, svg in shown)
    return f'<h2>The teacher\'s scores</h2><div class="figures">{figures}</div>'


def _kind_table(logits: Logits, above: Above, ratios: NDArray[np.int64], mask_ratios: Sequence[float]) -> str:
    rows = [[KIND_NAMES[kind], *_moments(logits[kind], above[kind])] for kind in ADAM_KINDS]
    noisy, noisy_above = logits[CandidateKind.NOISY_POSITIVE], above[CandidateKind.NOISY_POSITIVE]
    for place, ratio in enumerate(mask_ratios):
        rows.append([f"noisy positive, ratio {ratio}", *_moments(noisy[ratios == place], noisy_above[ratios == place])])
    return html_table(["kind", *_MOMENTS], rows, numbers=_MOMENTS)


_MOMENTS = ("candidates", "mean logit", "standard deviation", "5 %", "95 %", "above p+")


def _moments(values: NDArray[np.float32], above: NDArray[np.bool_]) -> list[str]:
    if not len(values):
        return ["0", "", "", "", "", ""]
    low, high = np.quantile(values, [0.05, 0.95])
    return [f"{len(values):,}", *(f"{value:.2f}" for value in (values.mean(), values.std(), low, high)), f"{above.mean():.0%}"]


def _negatives(found: Findings) -> str:
    """What the rules dropped, and which queries have few negatives or none; nothing where there is neither."""
    parts = [_selection(found)] if found.ranks else []
    if found.dropped:
        counted = escape(", ".join(f"{rule} {count:,}" for rule, count in found.dropped.items()))
        names = ("query", "passage", "rule", "score", "limit", "p+")
        rows = [[escape(getattr(one, name)) for name in ("query", "text", "rule")] + _numbers(one) for one in found.examples]
        intro = f"<p>Dropped by rule: {counted}. {len(rows)} of them, by chance:</p>"
        parts.append(f"<h2>Taken for false negatives</h2>{intro}{html_table(names, rows, numbers=names[3:])}")
    if found.short or found.without:
        lines = [f"{found.short:,} have fewer negatives than asked for, {found.without:,} have none and are left out."]
        lines += [
            f"The first of the {kind}: {', '.join(ids)}." for kind, ids in (("few", found.short_ids), ("none", found.without_ids)) if ids
        ]
        parts.append(f"<h2>Queries short of negatives</h2><p>{escape(' '.join(lines))}</p>")
    return "".join(parts)


def _selection(found: Findings) -> str:
    """How many queries have p+ at which ranks, a row for each of the student's, which were left out, and the ranks of the others."""
    left_out = escape(", ".join(f"{reason} {count:,}" for reason, count in found.unselected.items()) or "none")
    intro = f"<p>Left out: {left_out}. Queries by the rank of p+, the student's beside the teacher's:</p>"
    kept = f"<p>Of them, those that are kept:</p>{_ranks(found.kept_ranks)}"
    return f"<h2>Selection of queries</h2>{intro}{_ranks(found.ranks)}{kept}"


def _ranks(counts: dict[str, int]) -> str:
    rows = [[student, *(f"{counts.get(f'{student} / {teacher}', 0):,}" for teacher in BANDS)] for student in BANDS]
    return html_table(("student \\ teacher", *BANDS), rows, numbers=BANDS)


def _numbers(example: Example) -> list[str]:
    return [f"{example.score:.2f}", f"{example.limit:.2f}", "" if example.positive is None else f"{example.positive:.2f}"]


def _stage_table(experiment: Experiment) -> str:
    rows = [_stage_row(plan) for plan in Planner(experiment).plan_all(tables(experiment)) if plan.manifest is not None]
    names = ["table", "rows", "shards", "kB", "in", "kept", "dropped", "figures", "worker seconds", "fingerprint"]
    return "<h2>Stages</h2>" + html_table(names, rows, numbers=("rows", "shards", "kB", "in", "kept", "worker seconds"))


def _stage_row(plan: TablePlan) -> list[str]:
    manifest = plan.stored.manifest
    counts = dict(manifest.counts)
    taken, kept, dropped = (counts.pop(name, default) for name, default in (("in", 0), ("kept", 0), ("dropped", {})))
    for line in read_journal(plan.folder):
        for name in ("cached", "scored"):
            if name in line:
                counts[name] = counts.get(name, 0) + line[name]
    kilobytes = sum(shard.bytes for shard in manifest.shards) / 1e3
    return [
        escape(plan.table.label),
        f"{manifest.rows:,}",
        str(len(manifest.shards)),
        f"{kilobytes:,.0f}",
        f"{taken:,}",
        f"{kept:,}",
        _named(dropped) or "none",
        _named(counts),
        f"{manifest.seconds:.1f}",
        f"<code>{escape(manifest.fingerprint[:12])}</code>",
    ]


def _named(counts: dict[str, Any]) -> str:
    parts = []
    for name, value in counts.items():
        parts.append(f"{escape(name)}: {_named(value)}" if isinstance(value, dict) else f"{escape(name)} {value:,}")
    return "; ".join(parts)


def _quarantine(experiment: Experiment) -> str:
    names = ("file", "line", "reason", "record")
    reasons: Counter[str] = Counter()
    first: list[list[str]] = []
    for plan in Planner(experiment).plan_all([table for table in tables(experiment) if table.stage == "ingest"]):
        path = quarantine_file(plan.folder)
        for group in read_row_groups(path) if path.exists() else ():
            reasons.update(group.column("reason").to_pylist())
            first += [[escape(row[name]) for name in names] for row in group.slice(0, _SHOWN_QUARANTINED - len(first)).to_pylist()]
    if not reasons:
        return ""
    counted = escape(", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common()))
    return f"<h2>Quarantine</h2><p>{counted}. The first {len(first)}:</p>{html_table(names, first)}"


def _chosen(experiment: Experiment, confidences: Confidences) -> list[ScoredList]:
    """Lists spread evenly over C(q), the least sure first."""
    one_draw = [key for key in confidences if key[1] == 0]
    ordered = sorted(one_draw, key=lambda key: (confidences[key], hash64(experiment.seed, *key), key))
    places = np.unique(np.linspace(0, len(ordered) - 1, min(SHOWN_QUERIES, len(ordered))).round().astype(int))
    wanted = {ordered[place]: rank for rank, place in enumerate(places)}
    found = [listed for listed in scored_lists(experiment) if (listed.query_id, listed.draw) in wanted]
    return sorted(found, key=lambda listed: wanted[listed.query_id, listed.draw])


def _queries(listed: list[ScoredList]) -> str:
    shown = "".join(_query(one) for one in listed)
    return f"<h2>{len(listed)} queries, from the least to the most confident</h2>{shown}"


def _query(listed: ScoredList) -> str:
    facts = listed.confidence
    scale = [candidate["logit"] for candidate in listed.candidates]
    rows = [_candidate(candidate, low=min(scale), high=max(scale)) for candidate in listed.candidates]
    place = f"C(q) {facts['confidence']:.3g}" + (f" · p+ is number {facts['positive_rank']}" if "positive_rank" in facts else "")
    title = f"{escape(listed.query)} <code>{escape(listed.query_id)} · {place}</code>"
    return f"<details><summary>{title}</summary>{html_table(['kind', 'logit', 'text'], rows)}</details>"


def _candidate(candidate: dict[str, Any], *, low: float, high: float) -> list[str]:
    kind = CandidateKind(candidate["candidate_kind"])
    width = 4 + 56 * (candidate["logit"] - low) / max(high - low, 1e-9)  # from the list's lowest logit to its highest
    bar = f'<span class="bar" style="width:{width:.0f}px;background:{COLOURS[kind]}"></span>'
    text = escape(candidate["text"])
    text = text.replace(MASK_MARK, "<mark>[MASK]</mark>").replace(SEPARATOR_MARK, '<mark class="sep">[SEP]</mark>')
    name = f'{escape(KIND_NAMES[kind])}<div class="id">{escape(candidate["candidate_id"])}</div>'
    return [name, f'<div class="logit">{bar}{candidate["logit"]:.2f}</div>', text]
