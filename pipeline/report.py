"""`prep report`: one HTML file that needs no network: what the teacher thinks of the candidates, and what each stage did.

All text from the collection is escaped. The same store gives the same page.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.digests import hash64
from data.schemas import MASK_MARK, SEPARATOR_MARK, CandidateKind
from data.settings import Experiment
from data.shards import atomic_write, read_row_groups
from pipeline.ingest_tables import quarantine_file
from pipeline.inspect_query import KIND_NAMES, ScoredList, complete_tables, scored_lists
from pipeline.plan import Planner, TablePlan, tables
from pipeline.progressive import BANDS
from pipeline.report_figures import COLOURS, Logits, confidence_histogram, score_distributions, smoothed_distribution
from pipeline.report_negatives import Example, Findings, negatives_findings
from pipeline.run import read_journal

SHOWN_QUERIES = 20
_SHOWN_QUARANTINED = 20

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-size: 13px; display: block; overflow-x: auto; margin-top: 1rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #e3e6ea; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; } figure svg { max-width: 100%; height: auto; } figcaption { color: #57606a; font-size: 13px; }
details { border: 1px solid #e3e6ea; border-radius: 6px; margin: .4rem 0; padding: .4rem .8rem; } summary { cursor: pointer; }
mark { background: #fff3c4; } mark.sep { background: #ffd9b3; font-weight: 600; } code { font-size: 12px; color: #57606a; }
.logit { white-space: nowrap; }
.bar { display: inline-block; height: .6rem; margin-right: .4rem; }
.id { color: #57606a; font-size: 12px; overflow-wrap: anywhere; }
"""


def write_report(experiment: Experiment, out: Path) -> None:
    """Write the page. Raises UserError, naming the stage to run, where the tables up to `confidence` are not complete."""
    logits, above, ratios, confidences = _scores(experiment)
    body = [
        _head(experiment, queries=len({query_id for query_id, _ in confidences}), logits=logits),
        _figures(logits, confidences),
        _kind_table(logits, above, ratios, experiment.dark_examples.mask_ratios),
        _negatives(negatives_findings(experiment)),
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


Above = dict[CandidateKind, NDArray[np.bool_]]


def _scores(experiment: Experiment) -> tuple[Logits, Above, NDArray[np.int64], dict[tuple[str, int], float]]:
    """By kind the logits and whether each is above its p+; the place of each noisy positive's ratio; C(q) of each (query, draw)."""
    candidates, scores, confidence = complete_tables(experiment, "dark_examples", "teacher_scores", "confidence")
    by_kind: dict[CandidateKind, list[NDArray[np.float32]]] = {kind: [] for kind in CandidateKind}
    above: dict[CandidateKind, list[NDArray[np.bool_]]] = {kind: [] for kind in CandidateKind}
    ratio_names = {str(ratio): place for place, ratio in enumerate(experiment.dark_examples.mask_ratios)}
    ratios: list[int] = []
    confidences: dict[tuple[str, int], float] = {}
    for shard in range(len(candidates.paths())):
        table = candidates.read(shard, columns=["position", "candidate_kind", "candidate_id"])
        kinds = table.column("candidate_kind").to_numpy()
        logits = scores.read(shard, columns=["logit"]).column("logit").to_numpy()
        lists = np.cumsum(table.column("position").to_numpy() == 0) - 1  # p+ opens each list
        is_above = logits > logits[kinds == CandidateKind.POSITIVE][lists]
        for kind in CandidateKind:
            by_kind[kind].append(logits[kinds == kind])
            above[kind].append(is_above[kinds == kind])
        noisy = table.filter(kinds == CandidateKind.NOISY_POSITIVE).column("candidate_id").to_pylist()
        ratios += [ratio_names[name.rsplit("~", 1)[1]] for name in noisy]
        for row in confidence.read(shard, columns=["query_id", "draw", "confidence"]).to_pylist():
            confidences[row["query_id"], row["draw"]] = row["confidence"]
    joined = {kind: np.concatenate(parts) for kind, parts in by_kind.items()}
    return joined, {kind: np.concatenate(parts) for kind, parts in above.items()}, np.array(ratios, dtype=np.int64), confidences


def _escape(value: object) -> str:
    return html.escape(str(value), quote=True)


def _head(experiment: Experiment, *, queries: int, logits: Logits) -> str:
    per_query = sum(map(len, logits.values())) / max(1, queries * experiment.draws)
    facts = [
        ("student", experiment.student.model),
        ("teacher", f"{experiment.teacher.model} ({experiment.teacher.backend})"),
        ("negatives from", experiment.hard_negatives.source),
        ("mined with", experiment.miner.model),
        ("sampler", experiment.hard_negatives.sampler),
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
        (f"C(q). The labelled positive has more than half of the mass in {sure:.0%} of the lists.", confidence_histogram(values)),
    ]
    figures = "".join(_figure(svg, caption=caption) for caption, svg in shown)
    return f'<h2>The teacher\'s scores</h2><div class="figures">{figures}</div>'


def _figure(svg: str, *, caption: str) -> str:
    caption = _escape(caption)
    return f'<figure role="img" aria-label="{caption}">{svg}<figcaption>{caption}</figcaption></figure>'


def _kind_table(logits: Logits, above: Above, ratios: NDArray[np.int64], mask_ratios: Sequence[float]) -> str:
    rows = [[KIND_NAMES[kind], *_moments(logits[kind], above[kind])] for kind in CandidateKind]
    noisy, noisy_above = logits[CandidateKind.NOISY_POSITIVE], above[CandidateKind.NOISY_POSITIVE]
    for place, ratio in enumerate(mask_ratios):
        rows.append([f"noisy positive, ratio {ratio}", *_moments(noisy[ratios == place], noisy_above[ratios == place])])
    return _table(["kind", *_MOMENTS], rows, numbers=_MOMENTS)


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
        counted = _escape(", ".join(f"{rule} {count:,}" for rule, count in found.dropped.items()))
        names = ("query", "passage", "rule", "score", "limit", "best p+")
        rows = [[_escape(getattr(one, name)) for name in ("query", "text", "rule")] + _numbers(one) for one in found.examples]
        intro = f"<p>Dropped by rule: {counted}. {len(rows)} of them, by chance:</p>"
        parts.append(f"<h2>Taken for false negatives</h2>{intro}{_table(names, rows, numbers=names[3:])}")
    if found.short or found.without:
        lines = [f"{found.short:,} have fewer negatives than asked for, {found.without:,} have none and are left out."]
        lines += [
            f"The first of the {kind}: {', '.join(ids)}." for kind, ids in (("few", found.short_ids), ("none", found.without_ids)) if ids
        ]
        parts.append(f"<h2>Queries short of negatives</h2><p>{_escape(' '.join(lines))}</p>")
    return "".join(parts)


def _selection(found: Findings) -> str:
    """How many queries have p+ at which ranks, a row for each of the student's, and which were left out."""
    rows = [[student, *(f"{found.ranks.get(f'{student} / {teacher}', 0):,}" for teacher in BANDS)] for student in BANDS]
    left_out = _escape(", ".join(f"{reason} {count:,}" for reason, count in found.unselected.items()) or "none")
    intro = f"<p>Left out: {left_out}. Queries by the rank of p+, the student's beside the teacher's:</p>"
    names = ("student \\ teacher", *BANDS)
    return f"<h2>Selection of queries</h2>{intro}{_table(names, rows, numbers=BANDS)}"


def _numbers(example: Example) -> list[str]:
    return [f"{example.score:.2f}", f"{example.limit:.2f}", "" if example.positive is None else f"{example.positive:.2f}"]


def _stage_table(experiment: Experiment) -> str:
    rows = [_stage_row(plan) for plan in Planner(experiment).plan_all(tables(experiment)) if plan.manifest is not None]
    names = ["table", "rows", "shards", "kB", "in", "kept", "dropped", "figures", "worker seconds", "fingerprint"]
    return "<h2>Stages</h2>" + _table(names, rows, numbers=("rows", "shards", "kB", "in", "kept", "worker seconds"))


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
        _escape(plan.table.label),
        f"{manifest.rows:,}",
        str(len(manifest.shards)),
        f"{kilobytes:,.0f}",
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
    names = ("file", "line", "reason", "record")
    reasons: Counter[str] = Counter()
    first: list[list[str]] = []
    for plan in Planner(experiment).plan_all([table for table in tables(experiment) if table.stage == "ingest"]):
        path = quarantine_file(plan.folder)
        for group in read_row_groups(path) if path.exists() else ():
            reasons.update(group.column("reason").to_pylist())
            first += [[_escape(row[name]) for name in names] for row in group.slice(0, _SHOWN_QUARANTINED - len(first)).to_pylist()]
    if not reasons:
        return ""
    counted = _escape(", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common()))
    return f"<h2>Quarantine</h2><p>{counted}. The first {len(first)}:</p>{_table(names, first)}"


def _chosen(experiment: Experiment, confidences: dict[tuple[str, int], float]) -> list[ScoredList]:
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
    place = f"C(q) {facts['confidence']:.3g} · p+ is number {facts['positive_rank']}"
    title = f"{_escape(listed.query)} <code>{_escape(listed.query_id)} · {place}</code>"
    return f"<details><summary>{title}</summary>{_table(['kind', 'logit', 'text'], rows)}</details>"


def _candidate(candidate: dict[str, Any], *, low: float, high: float) -> list[str]:
    kind = CandidateKind(candidate["candidate_kind"])
    width = 4 + 56 * (candidate["logit"] - low) / max(high - low, 1e-9)  # from the list's lowest logit to its highest
    bar = f'<span class="bar" style="width:{width:.0f}px;background:{COLOURS[kind]}"></span>'
    text = _escape(candidate["text"])
    text = text.replace(MASK_MARK, "<mark>[MASK]</mark>").replace(SEPARATOR_MARK, '<mark class="sep">[SEP]</mark>')
    name = f'{_escape(KIND_NAMES[kind])}<div class="id">{_escape(candidate["candidate_id"])}</div>'
    return [name, f'<div class="logit">{bar}{candidate["logit"]:.2f}</div>', text]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str] = ()) -> str:
    """An HTML table of cells that are escaped already; the columns in `numbers` stand to the right."""
    head = "".join(f"<th>{_escape(name)}</th>" for name in names)
    classes = [' class="n"' if name in numbers else "" for name in names]
    lines = ("".join(f"<td{css}>{cell}</td>" for css, cell in zip(classes, row, strict=True)) for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"
