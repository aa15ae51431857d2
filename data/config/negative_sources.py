"""The setting `hard_negatives.source`: where negatives come from, in which shares, and from which ranks.

student                      one source
student:3,bm25:1             three of four negatives from the student's search, the fourth from BM25
student:3@20-200,bm25:1      the student's from ranks 20 to 200; BM25's from range_min + 1 to range_max
student,mylab.sources:recent:2@1-50    with one of your own (docs/extending.md), given as package.module:function
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from data.config.registry import IMPORT_PATH, check_name, is_import_path

SOURCES = ("student", "bm25", "run", "random")  # their places are the numbers in `ranked_sources`: only ever append
_FIRST_PLUGIN = 64  # in `ranked_sources`, which has 8 bits; plug-ins count on from it in the order of the setting

# Behind a built-in's name a colon is followed by a weight, behind any other by a weight or by the object of an import path.
_NAME = rf"(?!(?:{'|'.join(SOURCES)}):){IMPORT_PATH}|[^:@\s]+"
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


def parse_sources(text: str, *, first_rank: int, last_rank: int) -> tuple[Source, ...]:
    """The sources of a setting, in its order, with the ranks of those that name none.

    Raises ValueError: an unknown source (with the nearest names), a weight that is no number above 0, a source named twice.
    """
    parts = [_parsed(part.strip()) for part in text.split(",")]
    names = [part["name"] for part in parts]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"source={text} names {twice[0]} twice; add up its weights")
    weights = [_weight(part["weight"], part["name"]) for part in parts]
    scale = math.lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * scale) for weight in weights]
    divisor = math.gcd(*whole)
    plugins = {name: place for place, name in enumerate(filter(is_import_path, names))}
    return tuple(
        Source(name, weight // divisor, int(part["first"] or first_rank), int(part["last"] or last_rank), plugins.get(name, 0))
        for part, name, weight in zip(parts, names, whole, strict=True)
    )


def canonical(sources: tuple[Source, ...]) -> str:
    """Names and weights as text: equal shares give equal text, and one source is its name alone."""
    return sources[0].name if len(sources) == 1 else ",".join(f"{source.name}:{source.weight}" for source in sources)


def _parsed(part: str) -> dict[str, str]:
    found = _PART.fullmatch(part)
    if not found:
        raise ValueError(f"a source is NAME, NAME:WEIGHT or NAME:WEIGHT@FIRST-LAST (ranks), got {part!r}; names: {', '.join(SOURCES)}")
    check_name(found["name"], SOURCES, kind="source")
    return found.groupdict(default="")


def _weight(text: str, name: str) -> Fraction:
    try:
        weight = Fraction(text or "1")
    except (ValueError, ZeroDivisionError):
        weight = Fraction(0)
    if weight <= 0:
        raise ValueError(f"the weight of source {name} must be a number above 0, got {text}; leave the source out instead")
    return weight
