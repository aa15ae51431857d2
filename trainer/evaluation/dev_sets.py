"""Several dev sets of a run: opened and checked together. Their mean counts, and each set's own figures stand beside it.

MRR@10                 the mean over the sets, each counted alike whatever its size; of one set its figure
NanoSciFact/MRR@10     one set's, where there are several
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.files.what_lies import stored_table
from data.remote.cache import local_table
from data.tables.manifest import MANIFEST_NAME
from retrieval.models.prompt_tokens import NO_PROMPTS, PromptLengths
from trainer.evaluation.dev_set import DevSet, open_dev_set


def open_dev_sets(folders: Sequence[str], *, tokenizer: str, prompts: PromptLengths = NO_PROMPTS) -> tuple[DevSet, ...]:
    """Check and read the dev sets of `train.dev`, in its order.

    Raises UserError: what `open_dev_set` refuses, a folder of several dev sets, two sets of one name or of the same content.
    """
    sets: list[DevSet] = []
    for folder in folders:
        local = local_table(folder)
        _refuse_several(local)
        sets.append(open_dev_set(local, tokenizer=tokenizer, prompts=prompts))
    for (first, one), (second, other) in itertools.combinations(zip(folders, sets, strict=True), 2):
        if one.name == other.name:
            raise UserError(
                f"dev={first},{second}: both are called {one.name}, and nobody could tell their figures apart; leave one out, or make it "
                "from a folder of another name (dev.collections)"
            )
        if _same(one, other):
            raise UserError(f"dev={first},{second}: {one.name} and {other.name} are the same, which would count twice; leave one out")
    return tuple(sets)


def _refuse_several(folder: Path) -> None:
    """A folder with the dev sets of a store is none itself, and some of them may be of other settings."""
    if (folder / MANIFEST_NAME).exists() or not folder.is_dir():
        return
    tables = ((path.parent, stored_table(path.parent)) for path in sorted(folder.glob(f"*/{MANIFEST_NAME}")))
    below = [str(path) for path, manifest in tables if manifest is not None and manifest.stage == "dev"]
    if below:
        raise UserError(
            f"dev={folder} is a folder of {len(below)} dev sets, maybe of several settings: name those that are meant, as `prep path "
            f"stage=dev` does: dev={','.join(below)}"
        )


def _same(one: DevSet, other: DevSet) -> bool:
    """Whether an evaluation would find the same queries, passages and judgements."""
    if (one.query_ids, one.doc_ids, one.qrels) != (other.query_ids, other.doc_ids, other.qrels):
        return False
    pairs = ((one.queries, other.queries), (one.passages, other.passages))
    return all(np.array_equal(a.bounds, b.bounds) and np.array_equal(a.values, b.values) for a, b in pairs)


def content_key(sets: Sequence[DevSet]) -> str | list[str]:
    """What a run's key holds of the sets that it may stop by: of several in whatever order."""
    return sets[0].digest if len(sets) == 1 else sorted(dev.digest for dev in sets)


def with_means(by_name: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the sets, then each set's own; of one set just these."""
    first, *others = by_name.values()
    if not others:
        return dict(first)
    means = {metric: math.fsum(own[metric] for own in by_name.values()) / len(by_name) for metric in first}
    return means | {f"{name}/{metric}": value for name, own in by_name.items() for metric, value in own.items()}


def lines(figures: Mapping[str, float], names: Sequence[str], *, step: int, best_step: int) -> list[str]:
    """For people: a line, and of several sets one more for each."""

    def said(some: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {value:.4f}" for name, value in some.items())

    if len(names) == 1:
        return [f"dev set after step {step}: {said(figures)} (best at step {best_step})"]
    own = {name: {key.removeprefix(f"{name}/"): value for key, value in figures.items() if key.startswith(f"{name}/")} for name in names}
    means = {key: value for key, value in figures.items() if key.partition("/")[0] not in own}
    width = max(map(len, names))
    return [
        f"{len(names)} dev sets after step {step}, mean: {said(means)} (best at step {best_step})",
        *(f"  {name:<{width}}  {said(some)}" for name, some in own.items()),
    ]
