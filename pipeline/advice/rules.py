"""From facts to advice, which says by which figures it speaks and what was measured for it; the page is docs/advice.md.

The recipe is chosen by what was measured on other collections (`evidence`). A rule whose effect nobody has measured with this project is a
hint, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data.tables.schemas import CandidateKind
from pipeline.advice.evidence import BASE, RECIPES, Choice, Place, Studied, choose, choose_for_others, likeness, nearest
from pipeline.advice.facts import Headroom, ListFacts

_SHOWN, _SHOWN_RECIPES = 2, 4  # collections, and recipes of each, whose figures stand beside the advice
_UNLIKE = 0.1  # a likeness
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
    return [*_doubtful(facts.headroom), *_recipes(facts, studied), *_hints(facts, studied)]


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


def _recipes(facts: Facts, studied: Sequence[Studied]) -> list[Advice]:
    """What to train, and where it differs, what kept more for other queries."""
    sure, above = facts.lists.sure, facts.lists.above.get(CandidateKind.NEGATIVE, 0.0)
    place = Place(sure, above, facts.queries)
    choice = choose(place, studied)
    alike = nearest(place, studied, count=_SHOWN)
    advice = [
        Advice(
            RECIPES[choice.recipe].how,
            f"{RECIPES[choice.recipe].title}: {_why(choice, place, alike)}. Here p+ has more than half of the teacher's probability in "
            f"{sure:.0%} of the lists, {above:.0%} of the mined negatives are above p+, and {facts.queries:,} queries are trained on",
            "test MRR@10 over the start, three seeds. " + "; ".join(_gains(one, choice.recipe) for one in alike),
        )
    ]
    other = choose_for_others(place, studied, instead_of=choice.recipe)
    if other is not None:
        first, second = RECIPES[other.recipe].title, RECIPES[choice.recipe].title
        advice.append(
            Advice(
                RECIPES[other.recipe].how,
                f"{first} instead, if many queries will be of another kind than those trained on: there it lost less than {second}, or "
                "gained more. On the queries of the collection it may have less",
                f"nDCG@10 on TREC DL 2019 (43 queries, one seed) and test MRR@10, over the start, {first} against {second}: "
                + "; ".join(_both(one, other.recipe, choice.recipe) for one in studied if _has_both(one, other.recipe, choice.recipe)),
            )
        )
    return advice


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


def _has_both(one: Studied, *recipes: str) -> bool:
    return all(name in one.recipes and one.recipes[name].zero_shot is not None for name in recipes)


def _both(one: Studied, *recipes: str) -> str:
    first, second = (one.recipes[name] for name in recipes)
    return (
        f"{one.collection}, {one.place.queries:,} queries: {first.zero_shot:+.3f} against {second.zero_shot:+.3f}, and {first.gain:+.3f} "
        f"against {second.gain:+.3f}"
    )


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
