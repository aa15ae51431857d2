"""How m negatives are drawn from a query's rank windows: each sampler puts a window in order of preference, then a weighted round robin.

    uniform        the lowest hashes of (seed, query, draw, passage)
    top            the best ranks
    simans         by chance, p(d) in proportion to exp(-a (s(q,d) - s(q,p+) - b)^2), without replacement
    stratified     over the quantiles of the teacher's scores: see `stratified`
    score_strata   over the range of the teacher's scores: see `score_strata`

`SAMPLERS` has them under these names; `hard_negatives.sampler` may also be the import path of one of your own, or a mixture of several
with their shares, as top:4,stratified:6. Each is called with a `Window` and returns its passages, the preferred first; what else it asks
of the settings is in `data.config.traits`.

Each is a pure function of the seed, the ids and the scores. With uniform, top and simans a larger m keeps the smaller sample, and what was
scored for it. The strata of stratified and score_strata move with m; in a mixture they are halved again and again, so that a larger m keeps
them, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.config.registry import Registry, is_import_path, plugin_call
from data.config.settings import HardNegatives, traits_of_sampler
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
    count: int  # how many of them will be taken by this sampler, where nothing stands in the way
    hashed: SeededHash  # all chance comes from it: another one for each seed, query and draw
    settings: HardNegatives
    student_scores: Sequence[float] = ()  # [n] where the sampler's `needs` has them
    positive_score: float = math.nan  # the student's score of p+; nan where the student is no source
    teacher_logits: Sequence[float] = ()  # [n] where the sampler's `needs` has them
    positive_logit: float = math.nan  # the teacher's logit of p+; nan where nothing needs it
    mixed: bool = False  # whether other samplers draw from it, too: then the order must not depend on `count`


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
    ordered = sorted(map(float, window.teacher_logits))
    return _nearest_to(window, lambda part, parts: _between(ordered, part, parts))


def score_strata(window: Window) -> list[str]:
    """Passages spread evenly over the range of the teacher's scores, from the greatest to the least, then the others by hash.

    The other reading of the same paper's "uniformly covers the entire score spectrum": in the space of scores instead of ranks, so that
    scores which few passages have are held as well as those of the many. [the abstract names neither space; the places of the anchors are
    ours] Anchor j of `count` lies at the share 1 - j / (count - 1) of the way from the least logit to the greatest (halfway where `count`
    is 1); it takes the nearest passage that is not taken yet, the lower hash where two are as near.
    """
    least, greatest = min(window.teacher_logits, default=0.0), max(window.teacher_logits, default=0.0)
    return _nearest_to(window, lambda part, parts: least + (greatest - least) * part / parts)


def _nearest_to(window: Window, target: Callable[[int, int], float]) -> list[str]:
    """The passages nearest to the targets of evenly spread levels, none twice, then the others by hash."""
    hashes = {doc_id: window.hashed(doc_id) for doc_id in window.doc_ids}
    left = {doc_id: float(logit) for doc_id, logit in zip(window.doc_ids, window.teacher_logits, strict=True)}
    chosen = []
    for level in _levels(window):
        at = target(*level)
        nearest = min(left, key=lambda doc_id: (abs(left[doc_id] - at), hashes[doc_id], doc_id))
        chosen.append(nearest)
        del left[nearest]
    return [*chosen, *sorted(left, key=lambda doc_id: (hashes[doc_id], doc_id))]


def _levels(window: Window) -> list[tuple[int, int]]:
    """(part, parts) of evenly spread levels between 0 and 1, as whole numbers.

    Alone `count` of them, from the top. In a mixture m, of which any number of the first are spread: more than m are never looked at.
    """
    if window.mixed:
        return list(itertools.islice(halved_levels(), min(window.settings.num_negatives, len(window.doc_ids))))
    count = min(window.count, len(window.doc_ids))
    return [(count - 1 - place, count - 1) for place in range(count)] if count > 1 else [(1, 2)] * count


def halved_levels() -> Iterator[tuple[int, int]]:
    """1, 0, then the middles of all gaps, from the top: 1/2; 3/4, 1/4; 7/8, 5/8, 3/8, 1/8; and so on without end."""
    yield from ((1, 1), (0, 1))
    for parts in (2**power for power in itertools.count(1)):
        yield from ((part, parts) for part in range(parts - 1, 0, -2))


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
        "score_strata": score_strata,
    },
)


def sampler_key(settings: HardNegatives) -> dict[str, object]:
    """What a fingerprint holds of a sampler of one's own. Raises UserError where it is not there, or lacks what it needs."""
    try:
        settings.check_sampler()
    except ValueError as error:
        raise UserError(f"hard_negatives: {error}") from error
    keys = [SAMPLERS.key(sampler.name, setting=_SETTING) for sampler in settings.samplers]
    if len(keys) == 1:
        return keys[0]
    return {"plugins": [key for key in keys if key]} if any(keys) else {}


def preferred(window: Window) -> list[str]:
    """A window's passages in the order of preference of its settings' sampler. One of your own may leave some out.

    Of a mixture the first m, in turns by the shares: a sampler whose passage another has taken goes on to its next.
    Raises UserError where a sampler returns anything else than passages of the window, each once.
    """
    samplers = window.settings.samplers
    if len(samplers) == 1:
        return _listed(samplers[0].name, window)
    turns = round_robin([sampler.weight for sampler in samplers], window.settings.num_negatives)
    lists = []
    for place, sampler in enumerate(samplers):
        needs = traits_of_sampler(sampler.name).needs
        given = replace(
            window,
            count=turns[: window.count].count(place),
            mixed=True,
            student_scores=window.student_scores if "student_scores" in needs else NotAsked("student_scores", window.settings),
            teacher_logits=window.teacher_logits if "teacher_logits" in needs else NotAsked("teacher_logits", window.settings),
        )
        lists.append(_listed(sampler.name, given))
    return interleave(lists, turns)[0]


def _listed(name: str, window: Window) -> list[str]:
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
