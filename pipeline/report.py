"""`prep report`: one HTML file that needs no network: what the teacher thinks of the candidates, and what each stage did.

All text from the collection is escaped. The same store gives the same page.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.digests import hash64
from data.schemas import MASK_MARK, SEPARATOR_MARK, CandidateKind
from data.settings import Experiment
from data.shards import atomic_write, read_shard
from pipeline.ingest_tables import quarantine_file
from pipeline.inspect_query import KIND_NAMES, ScoredList, complete_tables, scored_lists
from pipeline.plan import Planner, TablePlan, tables
from pipeline.report_figures import COLOURS, Logits, confidence_histogram, score_distributions, smoothed_distribution
from pipeline.run import read_journal

SHOWN_QUERIES = 20
_SHOWN_QUARANTINED = 20

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-size: 13px; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #e3e6ea; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figure svg { max-width: 100%; height: auto; } figcaption { color: #57606a; font-size: 13px; }
details { border: 1px solid #e3e6ea; border-radius: 6px; margin: .4rem 0; padding: .4rem .8rem; } summary { cursor: pointer; }
mark { background: #fff3c4; } mark.sep { background: #ffd9b3; font-weight: 600; } code { font-size: 12px; color: #57606a; }
.bar { display: inline-block; height: .6rem; margin-right: .4rem; }
.id { color: #57606a; font-size: 12px; overflow-wrap: anywhere; }
"""


def write_report(experiment: Experiment, out: Path) -> None:
    """Write the page. Raises UserError, naming the stage to run, where the tables up to `confidence` are not complete."""
    logits, ratios, confidences = _scores(experiment)
    body = [
        _head(experiment, queries=len(confidences), logits=logits),
        _figures(logits, confidences),
        _kind_table(logits, ratios, experiment.dark_examples.mask_ratios),
        _stage_table(experiment),
        _quarantine(experiment),
        _queries(_chosen(experiment, confidences)),
    ]
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Distillation data report</title><style>{_STYLE}</style></head>
<body>{"".join(body)}</body></html>
"""
    atomic_write(out, page.encode())


def _scores(experiment: Experiment) -> tuple[Logits, NDArray[np.int64], dict[tuple[str, int], float]]:
    """Logits by kind, the place among the masking ratios of each noisy positive, and C(q) of each (query, draw)."""
    candidates, scores, confidence = complete_tables(experiment, "dark_examples", "teacher_scores", "confidence")
    by_kind: dict[CandidateKind, list[NDArray[np.float32]]] = {kind: [] for kind in CandidateKind}
    ratio_names = {str(ratio): place for place, ratio in enumerate(experiment.dark_examples.mask_ratios)}
    ratios: list[int] = []
    confidences: dict[tuple[str, int], float] = {}
    for shard in range(len(candidates.paths())):
        table = candidates.read(shard, columns=["candidate_kind", "candidate_id"])
        kinds = table.column("candidate_kind").to_numpy()
        logits = scores.read(shard, columns=["logit"]).column("logit").to_numpy()
        for kind in CandidateKind:
            by_kind[kind].append(logits[kinds == kind])
        noisy = table.filter(kinds == CandidateKind.NOISY_POSITIVE).column("candidate_id").to_pylist()
        ratios += [ratio_names[name.rsplit("~", 1)[1]] for name in noisy]
        for row in confidence.read(shard, columns=["query_id", "draw", "confidence"]).to_pylist():
            confidences[row["query_id"], row["draw"]] = row["confidence"]
    return {kind: np.concatenate(parts) for kind, parts in by_kind.items()}, np.array(ratios, dtype=np.int64), confidences


def _escape(value: object) -> str:
    return html.escape(str(value), quote=True)


def _head(experiment: Experiment, *, queries: int, logits: Logits) -> str:
    per_query = sum(map(len, logits.values())) / max(1, queries)
    facts = [
        ("student", experiment.student.model),
        ("teacher", f"{experiment.teacher.model} ({experiment.teacher.backend})"),
        ("negatives from", experiment.hard_negatives.source),
        ("training queries", f"{queries:,}"),
        ("candidates a query", f"{per_query:.1f}"),
        ("seed", experiment.seed),
        ("store", experiment.store),
    ]
    return "<h1>What the student will learn from</h1>" + _table(["", ""], [[_escape(name), _escape(value)] for name, value in facts])


def _figures(logits: Logits, confidences: dict[tuple[str, int], float]) -> str:
    dark = [CandidateKind.REINFORCED_NEGATIVE, CandidateKind.NOISY_POSITIVE]
    plain = [CandidateKind.POSITIVE, CandidateKind.NEGATIVE]
    values = np.array(list(confidences.values()), dtype=np.float32)
    sure = float((values > np.log(0.5)).mean())
    shown = [
        ("Positives and hard negatives (as ADAM, Figure 1). Far apart: too easy.", score_distributions(logits, plain)),
        ("With dark examples among the negatives (as ADAM, Figure 3b): they should fill the gap.", smoothed_distribution(logits)),
        ("Each kind of candidate by itself.", score_distributions(logits, [*plain, *dark])),
        (f"C(q). The labelled positive has more than half of the mass in {sure:.0%} of the queries.", confidence_histogram(values)),
    ]
    figures = "".join(_figure(svg, caption=caption) for caption, svg in shown)
    return f'<h2>The teacher\'s scores</h2><div class="figures">{figures}</div>'


def _figure(svg: str, *, caption: str) -> str:
    caption = _escape(caption)
    return f'<figure role="img" aria-label="{caption}">{svg}<figcaption>{caption}</figcaption></figure>'


def _kind_table(logits: Logits, ratios: NDArray[np.int64], mask_ratios: Sequence[float]) -> str:
    rows = [[_escape(KIND_NAMES[kind]), *_moments(logits[kind])] for kind in CandidateKind]
    noisy = logits[CandidateKind.NOISY_POSITIVE]
    rows += [[_escape(f"noisy positive, ratio {ratio}"), *_moments(noisy[ratios == place])] for place, ratio in enumerate(mask_ratios)]
    return _table(["kind", "candidates", "mean logit", "standard deviation", "5 %", "95 %"], rows)


def _moments(values: NDArray[np.float32]) -> list[str]:
    if not len(values):
        return ["0", "", "", "", ""]
    low, high = np.quantile(values, [0.05, 0.95])
    return [f"{len(values):,}", *(f"{value:.2f}" for value in (values.mean(), values.std(), low, high))]


def _stage_table(experiment: Experiment) -> str:
    rows = [_stage_row(plan) for plan in Planner(experiment).plan_all(tables(experiment)) if plan.manifest is not None]
    names = ["table", "rows", "shards", "MB", "in", "kept", "dropped", "figures", "worker seconds", "fingerprint"]
    return "<h2>Stages</h2>" + _table(names, rows)


def _stage_row(plan: TablePlan) -> list[str]:
    manifest = plan.stored.manifest
    counts = dict(manifest.counts)
    taken, kept, dropped = (counts.pop(name, default) for name, default in (("in", 0), ("kept", 0), ("dropped", {})))
    for line in read_journal(plan.folder):
        for name in ("cached", "scored"):
            if name in line:
                counts[name] = counts.get(name, 0) + line[name]
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    return [
        _escape(plan.table.label),
        f"{manifest.rows:,}",
        str(len(manifest.shards)),
        f"{megabytes:.1f}",
        f"{taken:,}",
        f"{kept:,}",
        _named(dropped) or "none",
        _named(counts),
        f"{manifest.seconds:.1f}",
        f"<code>{_escape(manifest.fingerprint[:12])}</code>",
    ]


def _named(counts: dict[str, Any]) -> str:
    parts = []
    for name, value in counts.items():
        parts.append(f"{_escape(name)}: {_named(value)}" if isinstance(value, dict) else f"{_escape(name)} {value:,}")
    return "; ".join(parts)


def _quarantine(experiment: Experiment) -> str:
    rows = []
    for plan in Planner(experiment).plan_all([table for table in tables(experiment) if table.stage == "ingest"]):
        path = quarantine_file(plan.folder)
        if path.exists():
            rows += [[_escape(row[name]) for name in ("file", "line", "reason", "record")] for row in read_shard(path).to_pylist()]
    if not rows:
        return ""
    shown = _table(["file", "line", "reason", "record"], rows[:_SHOWN_QUARANTINED])
    return f"<h2>Quarantine</h2><p>{len(rows):,} broken records, the first {min(len(rows), _SHOWN_QUARANTINED)}:</p>{shown}"


def _chosen(experiment: Experiment, confidences: dict[tuple[str, int], float]) -> list[ScoredList]:
    """Lists spread evenly over C(q), the least sure first."""
    ordered = sorted(confidences, key=lambda key: (confidences[key], hash64(experiment.seed, *key), key))
    places = np.unique(np.linspace(0, len(ordered) - 1, min(SHOWN_QUERIES, len(ordered))).round().astype(int))
    wanted = {ordered[place]: rank for rank, place in enumerate(places)}
    found = [listed for listed in scored_lists(experiment) if (listed.query_id, listed.draw) in wanted]
    return sorted(found, key=lambda listed: wanted[listed.query_id, listed.draw])


def _queries(listed: list[ScoredList]) -> str:
    shown = "".join(_query(one) for one in listed)
    return f"<h2>{len(listed)} queries, from the least to the most confident</h2>{shown}"


def _query(listed: ScoredList) -> str:
    facts = listed.confidence
    top = max(abs(candidate["logit"]) for candidate in listed.candidates) or 1.0
    rows = [_candidate(candidate, top=top) for candidate in listed.candidates]
    place = f"C(q) {facts['confidence']:.3f} · p+ is number {facts['positive_rank']}"
    title = f"{_escape(listed.query)} <code>{_escape(listed.query_id)} · {place}</code>"
    return f"<details><summary>{title}</summary>{_table(['kind', 'logit', 'text'], rows)}</details>"


def _candidate(candidate: dict[str, Any], *, top: float) -> list[str]:
    kind = CandidateKind(candidate["candidate_kind"])
    width = 60 * abs(candidate["logit"]) / top
    opacity = 1.0 if candidate["logit"] >= 0 else 0.35  # a pale bar is a negative logit
    bar = f'<span class="bar" style="width:{width:.0f}px;background:{COLOURS[kind]};opacity:{opacity}"></span>'
    text = _escape(candidate["text"])
    text = text.replace(MASK_MARK, "<mark>[MASK]</mark>").replace(SEPARATOR_MARK, '<mark class="sep">[SEP]</mark>')
    name = f'{_escape(KIND_NAMES[kind])}<div class="id">{_escape(candidate["candidate_id"])}</div>'
    return [name, f"{bar}{candidate['logit']:.2f}", text]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of cells that are escaped already; cells that are numbers stand to the right."""
    head = "".join(f"<th>{_escape(name)}</th>" for name in names)
    lines = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _cell(cell: str) -> str:
    return f'<td class="n">{cell}</td>' if _is_number(cell) else f"<td>{cell}</td>"


def _is_number(cell: str) -> bool:
    return bool(cell) and cell.replace(",", "").replace(".", "").replace("-", "").isdigit()
