"""`part=3/16`: what one of several batch jobs does of each table, and how it ends where others are not as far yet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from data.errors import EXIT_INTERRUPTED, UserError


class OthersNotDone(UserError):
    """This part is done as far as it can be; the same command goes on when the other parts are."""

    exit_code = EXIT_INTERRUPTED


@dataclass(frozen=True)
class Part:
    """Every shard whose number leaves the remainder `number` when it is divided by `of`; numbers are 0 to `of` - 1."""

    number: int
    of: int

    @staticmethod
    def parse(text: str) -> Part | None:
        """Of `part=TEXT`, None for an empty one. Raises UserError: no K/N, or K not below N."""
        if not text:
            return None
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if not found:
            raise UserError(
                f"part={text}: expected the number of this part, from 0 on, and how many there are, as part=3/16; "
                "in a Slurm array part=$SLURM_ARRAY_TASK_ID/16"
            )
        number, of = int(found[1]), int(found[2])
        if number >= of:
            begun = "an array that counts from 1 gives part=$((SLURM_ARRAY_TASK_ID - 1))/N, or is submitted as --array=0-(N-1)"
            raise UserError(f"part={text}: parts are numbered from 0, so {of} parts are 0/{of} to {max(of - 1, 0)}/{of}; {begun}")
        return Part(number, of)

    def of_shards(self, shards: Sequence[int], *, together: bool) -> list[int]:
        """Those of some shards that are this part's. With `together` they are one task, which is part 0's."""
        if together:
            return list(shards) if self.number == 0 else []
        return [shard for shard in shards if shard % self.of == self.number]

    def __str__(self) -> str:
        return f"part {self.number}/{self.of}"
