"""Which shard of queries a segment's pairs are of, by its name, so that a lookup for another shard need not open it.

A query's shard is a hash of its text modulo the number of shards (`pipeline.stages.ingest.shard_of_query`): so it is known of a pair
whatever table asks for it, and shards of different numbers of shards have pairs in common only where they agree modulo the common divisor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

_NAME = re.compile(r"q(\d+)of(\d+)-")


@dataclass(frozen=True)
class QueryShard:
    """Number `number` of `count` shards of queries."""

    number: int
    count: int

    @property
    def prefix(self) -> str:
        """What the name of a segment of its pairs begins with."""
        return f"q{self.number}of{self.count}-"

    def may_share(self, other: QueryShard) -> bool:
        """Whether a query may lie in both."""
        return (self.number - other.number) % math.gcd(self.count, other.count) == 0


def shard_in(name: str) -> QueryShard | None:
    """The shard whose pairs a segment of this name holds; None where it may hold any."""
    found = _NAME.match(name)
    return QueryShard(int(found[1]), int(found[2])) if found and int(found[2]) else None


def may_hold(name: str, asked: Collection[QueryShard]) -> bool:
    """Whether a segment of this name may hold pairs of one of the shards; of none: whether it may hold any."""
    own = shard_in(name)
    return own is None or not asked or any(own.may_share(shard) for shard in asked)
