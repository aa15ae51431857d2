"""From facts to advice. Each rule says by which figures it speaks, and what was measured for it; the page is docs/advice.md.

A rule whose effect nobody has measured with this project is a hint, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from data.tables.schemas import CandidateKind
from pipeline.advice.facts import Headroom, ListFacts

# A teacher that is sure, as on MedQuAD (97 % and 2 %), and one that is not, as on InsuranceQA (73 % and 17 %); docs/recipes.md.
_SURE_LISTS, _SURE_ABOVE = 0.9, 0.05
_FEW_QUERIES = 300  # between 128, where MarginMSE was ahead on InsuranceQA, and 600, where nothing was
_DOUBT = 0.05  # p-value
_NEARLY = 0.01  # share of negatives with nearly the words of p+
_SEVERAL = 0.1  # share of queries with several positives
_WIDE_MARGIN = 10.0  # logits; 20 times a difference of cosines seldom is as wide
_ONE_HOT = 1.2  # passages that share the teacher's probability


@dataclass(frozen=True)
class Facts:
    """All that was found."""

    lists: ListFacts
    headroom: Headroom
    queries: int  # training queries, no more than hard_negatives.queries leaves
    several_positives: float  # share of them


@dataclass(frozen=True)
class Advice:
    """What to set, why, and what was measured. `evidence` is empty where nothing was."""

    settings: str
    why: str
    evidence: str = ""


def advise(facts: Facts) -> list[Advice]:
    """The recipe first, then hints; where the teacher is no better than the student no recipe. What may be chance is called so before."""
    if facts.headroom.teacher <= facts.headroom.student:
        return [*_doubtful(facts.headroom), _nothing_to_learn(facts.headroom)]
    return [*_doubtful(facts.headroom), _recipe(facts), *_hints(facts)]


def _nothing_to_learn(headroom: Headroom) -> Advice:
    return Advice(
        "a stronger teacher, or train.task=dual_encoder, which learns from the labels alone",
        f"the teacher puts the student's own passages into no better order ({headroom.teacher:.3f} against {headroom.student:.3f}), so "
        "there is nothing to learn from it here",
        "by what distillation is: a student that follows it exactly ranks as it does",
    )


def _doubtful(headroom: Headroom) -> list[Advice]:
    if headroom.p_value <= _DOUBT:
        return []
    return [
        Advice(
            "a larger budget_pairs, before the teacher's bill is paid",
            f"whether the teacher is better than the student {headroom.queries} queries do not tell (p = {headroom.p_value:.2g})",
        )
    ]


def _recipe(facts: Facts) -> Advice:
    sure, above = facts.lists.sure, facts.lists.above.get(CandidateKind.NEGATIVE, 0.0)
    figures = f"p+ has more than half of its probability in {sure:.0%} of the lists, and {above:.0%} of the mined negatives are above p+"
    with_positive = "train.recipe=adam train.objective.include_positive=true"
    if sure >= _SURE_LISTS and above <= _SURE_ABOVE:
        return Advice(
            with_positive,
            f"the teacher is sure: {figures}; dark examples lie between p+ and negatives that are all far below it",
            "MedQuAD (97 %, 2 %), 128 queries: MRR@10 +0.066 over the start, Hard KD +0.046 (p = 0.0003), three seeds; with 480 queries "
            "+0.183, Hard KD +0.193 without the dark examples' bill (p = 0.2)",
        )
    if facts.queries < _FEW_QUERIES:
        return Advice(
            "train.recipe=margin_mse dark_examples.reinforced=false dark_examples.mask_ratios=[]",
            f"the teacher is not sure: {figures}; and {facts.queries:,} training queries are few",
            "InsuranceQA (73 %, 17 %), 128 queries: MarginMSE +0.030, Hard KD +0.009, ADAM with p+ -0.006, three seeds",
        )
    return Advice(
        f"{with_positive} train.objective.supervised_weight=0.1",
        f"the teacher is not sure: {figures}; what p+ is, the label must say, too",
        "InsuranceQA, 600 queries, the whole corpus: +0.041, one seed, settings chosen on its test queries; on an earlier size of it Hard "
        "KD 0.012 less (p = 0.001). On a cut corpus neither was ahead (p = 0.14). SciFact, 480 queries, without that weight: +0.019, and "
        "Hard KD +0.056 (p = 0.0005): try that, too",
    )


def _hints(facts: Facts) -> list[Advice]:
    lists, hints = facts.lists, []
    above = lists.above.get(CandidateKind.NEGATIVE, 0.0)
    if above > _SURE_ABOVE:
        hints.append(
            Advice(
                "hard_negatives.false_negatives.absolute_margin=0, or hard_negatives.promote_margin=1 hard_negatives.positives=each",
                f"{above:.0%} of the mined negatives are above p+: they may be positives without a label; look at some (prep report)",
            )
        )
    if lists.nearly_positive >= _NEARLY:
        hints.append(
            Advice(
                "hard_negatives.false_negatives.student_relative_margin=0.05, where the student is among hard_negatives.source",
                f"{lists.nearly_positive:.1%} of the mined negatives have nearly the words of p+",
            )
        )
    if lists.margin > _WIDE_MARGIN:
        hints.append(
            Advice(
                "train.objective.score_transform=zscore, where train.recipe=margin_mse",
                f"p+ is {lists.margin:.1f} above its negatives, more than a student's scores can differ: raw margins would not be reached",
                "MedQuAD (a margin of 13.6), raw margins: nothing gained, p = 0.22; the transform was not measured",
            )
        )
    if facts.several_positives >= _SEVERAL:
        hints.append(
            Advice(
                "hard_negatives.positives=rotate hard_negatives.draws=3 (as many as train.epochs), or hard_negatives.positives=each",
                f"{facts.several_positives:.0%} of the training queries have several positives, of which one is trained by default",
            )
        )
    if lists.shared < _ONE_HOT and lists.shared_with_dark < _ONE_HOT:
        hints.append(
            Advice(
                "train.objective.temperature=2 or 4",
                f"the teacher's probability lies on {lists.shared:.2f} passages of a list, with dark examples on "
                f"{lists.shared_with_dark:.2f}: nearly a label",
            )
        )
    return hints
