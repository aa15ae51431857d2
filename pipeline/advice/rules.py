"""From facts to advice, which says by which figures it speaks and what was measured for it; the page is docs/advice.md.

The recipe is chosen by what was measured on other collections (`evidence`). A rule whose effect nobody has measured with this project is a
hint, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data.tables.schemas import CandidateKind
from pipeline.advice.evidence import BASE, RECIPES, Choice, Place, Studied, choose, likeness, nearest, zero_shot_by_rate
from pipeline.advice.facts import Headroom, ListFacts

_SHOWN, _SHOWN_RECIPES = 2, 4  # collections, and recipes of each, whose figures stand beside the advice
_UNLIKE = 0.1  # a likeness
_SEVERAL_STUDENTS = 3
_ZSCORE = "margin_mse_zscore"
_MANY_ABOVE = 0.05  # share of negatives above p+
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


def advise(facts: Facts, studied: Sequence[Studied]) -> list[Advice]:
    """The recipe first, then hints; where the teacher is no better than the student no recipe. What may be chance is called so before.

    Args:
        facts: What was found of the collection.
        studied: What was measured on others.
    """
    if facts.headroom.teacher <= facts.headroom.student:
        return [*_doubtful(facts.headroom), _nothing_to_learn(facts.headroom)]
    return [*_doubtful(facts.headroom), _recipe(facts, studied), *_rate(studied), *_hints(facts, studied)]


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


def _recipe(facts: Facts, studied: Sequence[Studied]) -> Advice:
    sure, above = facts.lists.sure, facts.lists.above.get(CandidateKind.NEGATIVE, 0.0)
    place = Place(sure, above, facts.queries)
    choice = choose(place, studied)
    alike = nearest(place, studied, count=_SHOWN)
    return Advice(
        RECIPES[choice.recipe].how,
        f"{RECIPES[choice.recipe].title}: {_why(choice, place, alike)}. Here p+ has more than half of the teacher's probability in "
        f"{sure:.0%} of the lists, {above:.0%} of the mined negatives are above p+, and {facts.queries:,} queries are trained on",
        "test MRR@10 over the start, three seeds. " + "; ".join(_gains(one, choice.recipe) for one in alike),
    )


def _why(choice: Choice, place: Place, alike: Sequence[Studied]) -> str:
    """What speaks for it."""
    unlike = all(likeness(place, one.place) < _UNLIKE for one in alike)
    words = "nothing like this collection was measured, so this is a guess: " if unlike else "by what was measured "
    if choice.recipe == BASE:
        return f"{words}no other recipe is expected to be better, and none has the teacher read fewer pairs"
    return f"{words}{choice.more:+.3f} test MRR@10 over {RECIPES[BASE].title} is expected"


def _named(one: Studied) -> str:
    place = one.place
    return f"{one.collection} ({place.sure:.0%} of the lists, {place.above:.0%} of the negatives, {place.queries:,} queries)"


def _gains(one: Studied, chosen: str) -> str:
    """The best recipes of a collection, what others are compared with, and the one that is advised."""
    ordered = sorted(one.recipes, key=lambda name: -one.recipes[name].gain)
    shown = [name for place, name in enumerate(ordered) if place < _SHOWN_RECIPES or name in (BASE, chosen)]
    figures = ", ".join(f"{RECIPES[name].title} {one.recipes[name].gain:+.3f}" for name in shown)
    return f"{_named(one)}: {figures} [{one.source}]"


def _rate(studied: Sequence[Studied]) -> list[Advice]:
    """What the rate costs on queries of another kind, where two rates or more were measured on several students each."""
    by_rate = {rate: gains for rate, gains in zero_shot_by_rate(studied).items() if len(gains) >= _SEVERAL_STUDENTS}
    if len(by_rate) < 2:
        return []
    figures = [f"{rate:g}: {gains[0]:+.3f} to {gains[-1]:+.3f}, {len(gains)} students" for rate, gains in by_rate.items()]
    return [
        Advice(
            "a lower train.learning_rate than dev chooses",
            "as a try, if many queries will be of another kind than those trained on: students trained at a higher one had forgotten more",
            f"nDCG@10 on TREC DL 2019 over the start (43 queries, one seed), by the peak rate. {'; '.join(figures)} [docs/study.md]",
        )
    ]


def _hints(facts: Facts, studied: Sequence[Studied]) -> list[Advice]:
    lists, hints = facts.lists, []
    above = lists.above.get(CandidateKind.NEGATIVE, 0.0)
    if above > _MANY_ABOVE:
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
                "MedQuAD (a margin of 13.6), raw margins: nothing gained, p = 0.22; the transform "
                + ("is in docs/study.md" if any(_ZSCORE in one.recipes for one in studied) else "was not measured"),
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
                "train.objective.temperature=2 or 4, where the loss is a KL",
                f"the teacher's probability lies on {lists.shared:.2f} passages of a list, with dark examples on "
                f"{lists.shared_with_dark:.2f}: nearly a label",
            )
        )
    return hints
