"""The setting `hard_negatives.source`: where negatives come from, in which shares, and from which ranks.

student                      one source
student:3,bm25:1             three of four negatives from the student's search, the fourth from BM25
student:3@20-200,bm25:1      the student's from ranks 20 to 200; BM25's from range_min + 1 to range_max
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from fractions import Fraction

SOURCES = ("student", "bm25", "run", "random")  # their places are the numbers in `ranked_sources`: only ever append

_PART = re.compile(r"(?P<name>[^:@\s]+)(?::(?P<weight>[^:@\s]+))?(?:@(?P<first>\d+)-(?P<last>\d+))?")


@dataclass(frozen=True)
class Source:
    """One source of negatives. Weights are whole numbers without a common divisor."""

    name: str
    weight: int
    first_rank: int  # in the source's own list, positives removed, from 1
    last_rank: int

    @property
    def number(self) -> int:
        """As it stands in `ranked_sources`."""
        return SOURCES.index(self.name)


def parse_sources(text: str, *, first_rank: int, last_rank: int) -> tuple[Source, ...]:
    """The sources of a setting, in its order, with the ranks of those that name none.

    Raises ValueError: an unknown source (with the nearest names), a weight that is no number above 0, a source named twice.
    """
    parts = [_parsed(part.strip()) for part in text.split(",")]
    names = [part["name"] for part in parts]
    twice = [name for name in SOURCES if names.count(name) > 1]
    if twice:
        raise ValueError(f"source={text} names {twice[0]} twice; add up its weights")
    weights = [_weight(part["weight"], part["name"]) for part in parts]
    scale = math.lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * scale) for weight in weights]
    divisor = math.gcd(*whole)
    return tuple(
        Source(part["name"], weight // divisor, int(part["first"] or first_rank), int(part["last"] or last_rank))
        for part, weight in zip(parts, whole, strict=True)
    )


def canonical(sources: tuple[Source, ...]) -> str:
    """Names and weights as text: equal shares give equal text, and one source is its name alone."""
    return sources[0].name if len(sources) == 1 else ",".join(f"{source.name}:{source.weight}" for source in sources)


def _parsed(part: str) -> dict[str, str]:
    found = _PART.fullmatch(part)
    if not found:
        raise ValueError(f"a source is NAME, NAME:WEIGHT or NAME:WEIGHT@FIRST-LAST (ranks), got {part!r}; names: {', '.join(SOURCES)}")
    name = found["name"]
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=2, cutoff=0.3)
        raise ValueError(f"no source {name!r}; " + (f"nearest: {', '.join(near)}" if near else f"there are {', '.join(SOURCES)}"))
    return found.groupdict(default="")


def _weight(text: str, name: str) -> Fraction:
    try:
        weight = Fraction(text or "1")
    except (ValueError, ZeroDivisionError):
        weight = Fraction(0)
    if weight <= 0:
        raise ValueError(f"the weight of source {name} must be a number above 0, got {text}; leave the source out instead")
    return weight
