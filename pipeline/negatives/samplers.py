"""How m negatives are drawn from a query's rank windows: each sampler puts a window in order of preference, then a weighted round robin.

    uniform      the lowest hashes of (seed, query, draw, passage)
    top          the best ranks
    simans       by chance, p(d) in proportion to exp(-a (s(q,d) - s(q,p+) - b)^2), without replacement
    stratified   over the teacher's scores: see `stratified`

`SAMPLERS` has them under these names; `hard_negatives.sampler` may also be the import path of one of your own. Each is called with a
`Window` and returns its passages, the preferred first; what else it asks of the settings is in `data.config.traits`.

Each is a pure function of the seed, the ids and the scores. With uniform, top and simans a larger m keeps the smaller sample, and what was
scored for it; with stratified the strata move with m.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from data.config.registry import Registry, is_import_path, plugin_call
from data.config.settings import HardNegatives
from data.errors import UserError

SeededHash = Callable[[str], int]  # of a passage id
_SETTING = "hard_negatives.sampler"


class NotAsked(Sequence[float]):
    """Stands where a sampler's `needs` has nothing. Raises UserError when it is read."""

    def __init__(self, name: str, settings: HardNegatives) -> None:
        self._message = f'{_SETTING}={settings.sampler}: it reads {name}, which it does not ask for; set its attribute needs = {{"{name}"}}'

    def __len__(self) -> int:
        raise UserError(self._message)

    def __getitem__(self, place: Any) -> Any:
        raise UserError(self._message)


@dataclass(frozen=True)
class Window:
    """What a sampler is given of a query: the rank window of one source, without what is taken for false negatives."""

    query_id: str
    doc_ids: list[str]  # n passages, best rank first
    count: int  # how many of them will be taken, where nothing stands in the way
    hashed: SeededHash  # all chance comes from it: another one for each seed, query and draw
    settings: HardNegatives
    student_scores: Sequence[float] = ()  # [n] where the sampler's `needs` has them
    positive_score: float = math.nan  # the student's score of p+; nan where the student is no source
    teacher_logits: Sequence[float] = ()  # [n] where the sampler's `needs` has them
    positive_logit: float = math.nan  # the teacher's logit of p+; nan where nothing needs it


Sampler = Callable[[Window], Iterable[str]]


def by_hash(doc_ids: Sequence[str], hashed: SeededHash) -> list[str]:
    """Passages in the order of their hashes."""
    return sorted(doc_ids, key=lambda doc_id: (hashed(doc_id), doc_id))


def simans(window: Window) -> list[str]:
    """SimANS (Zhou et al., EMNLP 2022, https://arxiv.org/abs/2210.11773), as a seeded order.

    Drawing one passage after the other, each in proportion to the weights w of those that are left, gives the order of E / w with
    independent exponential E (Efraimidis and Spirakis, 2006). Taken as logarithms, since w may be below the smallest number.
    """
    a, b = window.settings.simans_a, window.settings.simans_b  # sharpness, offset

    def log_key(doc_id: str, score: float) -> float:
        uniform = ((window.hashed(doc_id) >> 11) + 0.5) * 2.0**-53  # in (0, 1)
        return math.log(-math.log1p(-uniform)) + a * (score - window.positive_score - b) ** 2

    keys = {doc_id: log_key(doc_id, float(score)) for doc_id, score in zip(window.doc_ids, window.student_scores, strict=True)}
    return sorted(window.doc_ids, key=lambda doc_id: (keys[doc_id], doc_id))


def stratified(window: Window) -> list[str]:
    """Passages spread evenly over the quantiles of the teacher's scores, from the highest to the lowest, then the others by hash.

    After Jang et al., "Beyond Hard Negatives" (SIGIR 2026, https://arxiv.org/abs/2604.04734): negatives that cover the whole spectrum of
    the teacher's scores uniformly, so that their distribution is that of the pool. [our reading of the abstract] Target j of `count` is
    the quantile 1 - j / (count - 1) of the logits (the median where `count` is 1), linear between ranks; it takes the passage
    nearest to it that is not taken yet, the lower hash where two are as near.
    """
    hashes = {doc_id: window.hashed(doc_id) for doc_id in window.doc_ids}
    left = {doc_id: float(logit) for doc_id, logit in zip(window.doc_ids, window.teacher_logits, strict=True)}
    ordered = sorted(left.values())
    chosen = []
    count = min(window.count, len(window.doc_ids))
    for place in range(count):
        target = _between(ordered, *((count - 1 - place, count - 1) if count > 1 else (1, 2)))
        nearest = min(left, key=lambda doc_id: (abs(left[doc_id] - target), hashes[doc_id], doc_id))
        chosen.append(nearest)
        del left[nearest]
    return [*chosen, *sorted(left, key=lambda doc_id: (hashes[doc_id], doc_id))]


def _between(ordered: list[float], part: int, parts: int) -> float:
    """The quantile part / parts of sorted values, linear between ranks. In whole numbers, so that a target halfway is exactly halfway."""
    rank, rest = divmod(part * (len(ordered) - 1), parts)
    return ordered[rank] + rest / parts * (ordered[min(rank + 1, len(ordered) - 1)] - ordered[rank])


SAMPLERS: Registry[Sampler] = Registry(
    "sampler",
    {
        "uniform": lambda window: by_hash(window.doc_ids, window.hashed),
        "top": lambda window: window.doc_ids,
        "simans": simans,
        "stratified": stratified,
    },
)


def sampler_key(settings: HardNegatives) -> dict[str, object]:
    """What a fingerprint holds of a sampler of one's own. Raises UserError where it is not there, or lacks what it needs."""
    try:
        settings.check_sampler()
    except ValueError as error:
        raise UserError(f"hard_negatives: {error}") from error
    return SAMPLERS.key(settings.sampler, setting=_SETTING)


def preferred(window: Window) -> list[str]:
    """A window's passages in the order of preference of its settings' sampler. One of your own may leave some out.

    Raises UserError where it returns anything else than passages of the window, each once.
    """
    name = window.settings.sampler
    sampler = SAMPLERS.get(name, setting=_SETTING)
    with plugin_call(name, setting=_SETTING):
        listed = list(sampler(window))
    if is_import_path(name) and (not set(listed) <= set(window.doc_ids) or len(set(listed)) < len(listed)):
        raise UserError(f"{_SETTING}={name}: of query {window.query_id} it returned other ids than those of its window, each once")
    return listed


def round_robin(weights: Sequence[int], count: int) -> list[int]:
    """Whose turn it is, `count` times: each goes to the source that is furthest behind its share, the first of equals.

    The turns of a smaller count are the first ones of a larger.
    """
    taken = [0] * len(weights)
    listed: list[int] = []
    for number in range(1, count + 1):
        deficits = [weight * number - sum(weights) * have for weight, have in zip(weights, taken, strict=True)]
        listed.append(deficits.index(max(deficits)))
        taken[listed[-1]] += 1
    return listed


def interleave(preferences: Sequence[Sequence[str]], turns: Sequence[int]) -> tuple[list[str], list[int]]:
    """The passages that the sources take, none twice, and how often each was backfilled by another because it had none left.

    A turn that its source cannot use goes to the first of the others that has a passage left.
    """
    following = [iter(listed) for listed in preferences]
    chosen: dict[str, None] = {}
    backfilled = [0] * len(preferences)
    for source in turns:
        for taker in (source, *(other for other in range(len(preferences)) if other != source)):
            doc_id = next((doc_id for doc_id in following[taker] if doc_id not in chosen), None)
            if doc_id is not None:
                chosen[doc_id] = None
                backfilled[source] += taker != source
                break
        else:
            break
    return list(chosen), backfilled
