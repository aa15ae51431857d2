"""`prep advise`: run the samples, look at them, say what was found and what it speaks for."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import polars as pl

from data.config.settings import Experiment
from data.errors import UserError
from pipeline.advice.evidence import known_evidence
from pipeline.advice.facts import facts_of_lists, headroom_of
from pipeline.advice.reading import KIND_WORDS, lists_of, pools_of, positives_of
from pipeline.advice.rules import Advice, Facts, advise
from pipeline.advice.sampling import FEWEST, Samples, refuse_early, samples_of
from pipeline.plan import tables_leading_to
from pipeline.pooling.judged_queries import labels_above_0
from pipeline.report.inspect import complete_tables
from pipeline.run import run_tables
from pipeline.stage import Say
from retrieval.evaluation.metrics import said

BUDGET_PAIRS = 10_000


def run_advice(experiment: Experiment, *, budget_pairs: int, say: Say) -> None:
    """Score what the samples lack, and print facts, advice, and both as JSON on the last line.

    Raises UserError as `refuse_early` and `samples_of`, and where a stage does.
    """
    refuse_early(experiment, budget_pairs=budget_pairs)
    labels = _labels(experiment, say)
    samples = samples_of(experiment, labels, budget_pairs=budget_pairs)
    if (few := samples.fewest(labels)) < FEWEST:
        say(f"only {few} queries for a sample: the figures will say little")
    if experiment.curriculum.enabled:
        say("curriculum: its lists are not looked at; the advice is over lists of hard negatives and dark examples")
    for sample, last in ((samples.held_out, "pool_scores"), (samples.lists, "confidence")):
        run_tables(sample, tables_leading_to(sample, last), say=say)
    facts = _facts(samples, *positives_of(experiment, labels))
    for line in _said(facts, samples):
        say(line)
    found = advise(facts, known_evidence())
    for one in found:
        for line in _lines(one):
            say(line)
    say(json.dumps({"facts": _plain(facts), "advice": [asdict(one) for one in found]}))


def _labels(experiment: Experiment, say: Say) -> pl.DataFrame:
    """Those above 0 of all splits, read in where they are not."""
    run_tables(experiment, tables_leading_to(experiment, "ingest.qrels"), say=say)
    (qrels,) = complete_tables(experiment, "ingest.qrels")
    return labels_above_0(qrels)


def _facts(samples: Samples, queries: int, several: float) -> Facts:
    lists, pools = list(lists_of(samples.lists)), list(pools_of(samples.held_out))
    if not lists or not pools:
        raise UserError("none of the sampled queries has a list: do qrels and corpus belong together?")
    return Facts(facts_of_lists(lists), headroom_of(pools), queries, several)


def _said(facts: Facts, samples: Samples) -> list[str]:
    lists, headroom = facts.lists, facts.headroom
    p_value = _equal(said(headroom.p_value, floor=headroom.p_floor))
    held_out = f"queries of the split {samples.split}" + (", which is trained on" if samples.trains_on_split else "")
    above = ", ".join(f"{share:.0%} of the {KIND_WORDS[kind]}" for kind, share in lists.above.items())
    return [
        "",
        f"looked at {lists.lists:,} lists of {facts.queries:,} training queries ({lists.pairs:,} pairs), and at the student's first "
        f"{samples.held_out.hard_negatives.depth} passages for {headroom.queries:,} {held_out}",
        f"  headroom       MRR@10 of the student's order {headroom.student:.3f}, of the teacher's order of the same {headroom.teacher:.3f} "
        f"(p {p_value}); {headroom.found:.0%} have a positive among them",
        f"  certainty      C(q) is above log 1/2 in {lists.sure:.0%} of the lists, its median {lists.confidence:.2f} nats",
        f"  above p+       {above}",
        f"  margin         p+ is {lists.margin:.1f} above the mean of its negatives (median); a negative of any list is above a p+ of any "
        f"with probability {lists.overlap:.2f}",
        f"  spread         the teacher's probability lies on {lists.shared:.2f} passages of {{p+}} and P-, on {lists.shared_with_dark:.2f} "
        "of the whole list (medians)",
        f"  labels         {facts.several_positives:.0%} of the training queries have several positives; {lists.nearly_positive:.1%} of "
        "the negatives have nearly the words of p+",
        "",
    ]


def _equal(p_value: str) -> str:
    return p_value if p_value.startswith("<") else f"= {p_value}"


def _lines(advice: Advice) -> list[str]:
    return [advice.settings, f"  {advice.why}", f"  {f'measured: {advice.evidence}' if advice.evidence else 'not measured: a hint'}"]


def _plain(facts: Facts) -> dict[str, Any]:
    plain = asdict(facts)
    plain["lists"]["above"] = {kind.name.lower(): share for kind, share in facts.lists.above.items()}
    return plain
