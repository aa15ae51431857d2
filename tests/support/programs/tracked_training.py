"""A training that ends itself by a signal as soon as a step has reached its tracker, and what W&B's offline files then hold.

train STEP SIGNAL SHARDS key=value ...     0 is never
wandb FILE                                 prints the rows, as JSON
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def trained(step: str, signal: str, shards: str, *args: str) -> int:
    from trainer import recipes
    from trainer.loop import train
    from trainer.reporting import mfu
    from trainer.reporting.trackers.tracking import Tracking

    mfu._SECONDS = 0.0
    log = Tracking.log

    def killed(self: Tracking, number: int, figures: dict[str, float]) -> None:
        log(self, number, figures)
        if number == int(step):
            os.kill(os.getpid(), int(signal))

    Tracking.log = killed
    return train(recipes.load(dict(arg.split("=", 1) for arg in args)), shards_folder=Path(shards))


def records(content: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 KiB, chunks of (crc 4, length 2, kind 1), after a header of 7 bytes."""
    place, parts = 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        if not kind:  # what was not written to its end
            return
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def wandb_rows(file: str) -> list[dict[str, float]]:
    from wandb.proto import wandb_internal_pb2

    rows = []
    for record in records(Path(file).read_bytes()):
        parsed = wandb_internal_pb2.Record()
        parsed.ParseFromString(record)
        if parsed.HasField("history"):
            items = parsed.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


if __name__ == "__main__":
    if sys.argv[1] == "wandb":
        print(json.dumps(wandb_rows(sys.argv[2])))
    else:
        sys.exit(trained(*sys.argv[2:]))
