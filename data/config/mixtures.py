"""Names with weights in one setting, `top:4,stratified:6`: built-ins and import paths, in shares of whole numbers.

top                          one name
top:4,stratified:6           four of ten by the one, six by the other
top,mylab.samplers:own:2     with one of your own (docs/extending.md), given as package.module:object
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import NamedTuple

from data.config.registry import IMPORT_PATH, check_name


class Share(NamedTuple):
    """One name of a mixture. Weights are whole numbers without a common divisor."""

    name: str
    weight: int


def name_pattern(built_in: Collection[str]) -> str:
    """Behind a built-in's name a colon is followed by a weight, behind any other by a weight or by the object of an import path."""
    return rf"(?!(?:{'|'.join(built_in)}):){IMPORT_PATH}|[^:@\s]+"


def parse_mixture(text: str, built_in: Collection[str], *, kind: str) -> tuple[Share, ...]:
    """The names of a setting in its order, with their weights.

    Raises ValueError: an unknown name (with the nearest), a weight that is no number above 0, a name given twice.
    """
    pattern = re.compile(rf"(?P<name>{name_pattern(built_in)})(?::(?P<weight>[^:@\s]+))?")
    names, weights = [], []
    for part in text.split(","):
        found = pattern.fullmatch(part.strip())
        if not found:
            raise ValueError(f"a {kind} is NAME or NAME:WEIGHT, got {part.strip()!r}; names: {', '.join(built_in)}")
        names.append(check_name(found["name"], built_in, kind=kind))
        weights.append(weight_of(found["weight"] or "", found["name"], kind=kind))
    refuse_twice(names, text=text, kind=kind)
    return tuple(Share(name, weight) for name, weight in zip(names, whole_numbers(weights), strict=True))


def canonical(shares: Sequence[Share]) -> str:
    """Names and weights as text: equal shares give equal text, and one name is itself alone."""
    return shares[0].name if len(shares) == 1 else ",".join(f"{share.name}:{share.weight}" for share in shares)


def refuse_twice(names: Sequence[str], *, text: str, kind: str) -> None:
    """Raises ValueError where a name is given twice."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{kind}={text} names {twice[0]} twice; add up its weights")


def whole_numbers(weights: Sequence[Fraction]) -> list[int]:
    """The same shares in whole numbers without a common divisor."""
    scale = math.lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * scale) for weight in weights]
    divisor = math.gcd(*whole)
    return [weight // divisor for weight in whole]


def weight_of(text: str, name: str, *, kind: str) -> Fraction:
    """A weight as it was written, 1 where none was. Raises ValueError for what is no number above 0."""
    try:
        weight = Fraction(text or "1")
    except (ValueError, ZeroDivisionError):
        weight = Fraction(0)
    if weight <= 0:
        raise ValueError(f"the weight of {kind} {name} must be a number above 0, got {text}; leave the {kind} out instead")
    return weight
