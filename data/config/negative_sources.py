"""The setting `hard_negatives.source`: where negatives come from, in which shares, and from which ranks.

student                      one source
student:3,bm25:1             three of four negatives from the student's search, the fourth from BM25
student:3@20-200,bm25:1      the student's from ranks 20 to 200; BM25's from range_min + 1 to range_max
student,mylab.sources:recent:2@1-50    with one of your own (docs/extending.md), given as package.module:function
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from data.config import mixtures
from data.config.mixtures import Share, name_pattern, refuse_twice, weight_of, whole_numbers
from data.config.registry import check_name, is_import_path

SOURCES = ("student", "bm25", "run", "random")  # their places are the numbers in `ranked_sources`: only ever append
_FIRST_PLUGIN = 64  # in `ranked_sources`, which has 8 bits; plug-ins count on from it in the order of the setting

_NAME = name_pattern(SOURCES)
_PART = re.compile(rf"(?P<name>{_NAME})(?::(?P<weight>[^:@\s]+))?(?:@(?P<first>\d+)-(?P<last>\d+))?")


@dataclass(frozen=True)
class Source:
    """One source of negatives. Weights are whole numbers without a common divisor."""

    name: str
    weight: int
    first_rank: int  # in the source's own list, positives removed, from 1
    last_rank: int
    plugin: int = 0  # its place among the setting's plug-ins

    @property
    def number(self) -> int:
        """As it stands in `ranked_sources`."""
        return _FIRST_PLUGIN + self.plugin if is_import_path(self.name) else SOURCES.index(self.name)


@functools.cache
def parse_sources(text: str, *, first_rank: int, last_rank: int) -> tuple[Source, ...]:
    """The sources of a setting, in its order, with the ranks of those that name none.

    Raises ValueError: an unknown source (with the nearest names), a weight that is no number above 0, a source named twice.
    """
    parts = [_parsed(part.strip()) for part in text.split(",")]
    names = [part["name"] for part in parts]
    refuse_twice(names, text=text, kind="source")
    weights = whole_numbers([weight_of(part["weight"], part["name"], kind="source") for part in parts])
    plugins = {name: place for place, name in enumerate(filter(is_import_path, names))}
    return tuple(
        Source(name, weight, int(part["first"] or first_rank), int(part["last"] or last_rank), plugins.get(name, 0))
        for part, name, weight in zip(parts, names, weights, strict=True)
    )


def canonical(sources: tuple[Source, ...]) -> str:
    """Names and weights as text: equal shares give equal text, and one source is its name alone."""
    return mixtures.canonical([Share(source.name, source.weight) for source in sources])


def _parsed(part: str) -> dict[str, str]:
    found = _PART.fullmatch(part)
    if not found:
        raise ValueError(f"a source is NAME, NAME:WEIGHT or NAME:WEIGHT@FIRST-LAST (ranks), got {part!r}; names: {', '.join(SOURCES)}")
    check_name(found["name"], SOURCES, kind="source")
    return found.groupdict(default="")
