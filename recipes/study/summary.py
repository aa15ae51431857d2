"""The first lines of the page: where ADAM helps, what to use instead, and where sentence-transformers stands.

What is used is what `prep advise` names before anything is trained, by the other collections' results; where that is not measured, what dev
chooses. The test questions then judge it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from effects import Effect, effect, holm
from methods import METHODS
from rows import METRIC, Row, offers_with_all_seeds, recipes_with_all_seeds

ADAM, BASE, PEER = "adam_positive", "hard_kd", "sentence-transformers"
WITH_DARK = ("adam", ADAM)  # train on dark examples
_BUDGETED = {"mined", "random"}  # phases whose pairs are among those of the budget, or as many as a part of them


def in_short(
    found: dict[str, dict[str, Row]], advised: dict[str, str | None] | None = None, budgets: dict[str, dict[str, Any]] | None = None
) -> list[str]:
    """Lines of the page, by collection -> method -> row. A collection without a recipe that has all seeds is named as missing.

    Args:
        found: The rows.
        advised: The recipe that is advised for a collection, if there is one.
        budgets: `Results.budget` of the collections that have one.
    """
    lines = [
        f"{_where_adam_helps(found)}\n",
        "What to use, as `prep advise` names it before anything is trained, by the other collections' results:\n",
    ]
    for name, rows in found.items():
        lines.append(f"- **{name}**: {_use(rows, (advised or {}).get(name))}.")
    return [*lines, "", *_against_peer(found, budgets or {})]


def chosen_by_dev(rows: dict[str, Row]) -> str | None:
    """Of some rows that whose mean on dev is the highest."""
    means = {name: float(np.mean([cell["dev"] for cell in row.cells.values()])) for name, row in rows.items()}
    return max(means, key=lambda name: means[name]) if means else None


def _where_adam_helps(found: dict[str, dict[str, Row]]) -> str:
    """Against Hard KD, which learns from the same teacher without what is ADAM's own."""
    where: dict[str, list[str]] = {}
    for name, rows in found.items():
        whole = recipes_with_all_seeds(rows)
        if ADAM in whole and BASE in whole:
            where.setdefault(_standing(_of(whole[ADAM], whole[BASE])), []).append(name)
    said = ", ".join(f"{standing} it on {' and '.join(names)}" for standing, names in where.items())
    open_ones = [name for name in found if not any(name in names for names in where.values())]
    intervals = f"by test {METRIC} (95 % intervals, each for itself)"
    sentences = [f"{METHODS[ADAM].title} against {METHODS[BASE].title}, {intervals}: {said}."] if said else []
    sentences += [f"Not measured yet: {', '.join(open_ones)}."] if open_ones else []
    return " ".join(sentences)


def _use(rows: dict[str, Row], asked: str | None) -> str:
    """The recipe that is advised, what it gains over the start, what others have beside it, and what dev would choose."""
    whole = recipes_with_all_seeds(rows)
    by_dev = chosen_by_dev(whole)
    if by_dev is None:
        return "no recipe has all its seeds yet"
    name = asked if asked in whole else by_dev
    words = [f"{METHODS[name].title}{'' if asked in whole else ' (by dev)'}, test {METRIC} {rows[name].mean(METRIC)}"]
    if rows["start"].cells:
        words.append(f"{_shown(effect(rows[name].values(METRIC), rows['start'].values(METRIC), without_seeds=True))} over the start")
    for other in (ADAM, BASE):
        if other != name and other in whole:
            one = _of(rows[name], rows[other])
            words.append(f"{_standing(one)} {METHODS[other].title} ({_shown(one)})")
    if by_dev != name:
        words.append(f"dev would choose {METHODS[by_dev].title} ({_shown(_of(rows[by_dev], rows[name]))} to it)")
    return "; ".join(words)


def _against_peer(found: dict[str, dict[str, Row]], budgets: dict[str, dict[str, Any]]) -> list[str]:
    """What dev chooses of what can have the peer's time, more steps too, against the peer; the collections are one family."""
    both = {
        name: chosen
        for name, rows in found.items()
        if rows[PEER].cells and not rows[PEER].missing and (chosen := chosen_by_dev(_in_its_time(rows)))
    }
    if not both:
        return [f"{METHODS[PEER].title}: not measured yet.\n"]
    effects = [_of(found[name][chosen], found[name][PEER]) for name, chosen in both.items()]
    heads = (
        "| collection | choice | difference to sentence-transformers | p by Holm | seconds of the choice, and of sentence-transformers |"
    )
    lines = [heads, "|---|---|---|---|---|"]
    for (name, chosen), one, adjusted in zip(both.items(), effects, holm([one.p_value for one in effects]), strict=True):
        times = _times(found[name][chosen], budgets.get(name, {}), dark=chosen in WITH_DARK)
        lines.append(f"| {name} | {METHODS[chosen].title} | {_shown(one)} | {adjusted:.2g} | {times} |")
    return [*lines, ""]


def _in_its_time(rows: dict[str, Row]) -> dict[str, Row]:
    """Those whose data the peer's time is measured by: not lists over whole pools, of which the teacher reads several times as many."""
    return {
        name: row
        for name, row in offers_with_all_seeds(rows).items()
        if {training.data for training in METHODS[name].trainings} <= _BUDGETED
    }


def _times(row: Row, budget: dict[str, Any], *, dark: bool) -> str:
    """Of data and training of the choice, and what the peer had: the same processor's."""
    if "data_without_dark" not in budget:
        return ""
    training = float(np.mean([cell["seconds"]["train"] for cell in row.cells.values()]))
    ours = "as many" if dark else f"{budget['data_without_dark'] + training:,.0f}"
    return f"{ours}, {budget['seconds']:,.0f}"


def _of(row: Row, base: Row) -> Effect:
    return effect(row.values(METRIC), base.values(METRIC))


def _standing(one: Effect) -> str:
    """By the 95 % interval. Without an interval nothing is said to differ."""
    if math.isnan(one.low) or one.low <= 0 <= one.high:
        return "level with"
    return "ahead of" if one.difference > 0 else "behind"


def _shown(one: Effect) -> str:
    return f"{one.difference:+.4f}" + ("" if math.isnan(one.low) else f" [{one.low:+.4f}, {one.high:+.4f}]")
