"""Lookups/s of the teacher-logit store at 3 M keys, side by side with SQLite on the same keys.

    python benchmarks/logit_store.py [--keys 3000000] [--segment 4096] [--rounds 3]

The store is written in segments of `--segment` pairs, then all keys are looked up in random order; SQLite gets the same keys in one table
with the key as primary key, and is asked in the same order. They take turns; the ratio is of medians.
"""

from __future__ import annotations

import argparse
import json
import resource
import sqlite3
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from data.logits.segment import Keys, Scores
from data.logits.store import LogitStore


def filled(root: Path, keys: Keys, segment: int) -> LogitStore:
    """A store of all keys."""
    store = LogitStore(root, "benchmark")
    for start in range(0, len(keys), segment):
        part = keys[start : start + segment]
        logits = np.arange(start, start + len(part)).astype(np.float32)
        store.append(part, Scores(logits, np.full(len(part), 100, np.int32), np.zeros(len(part), bool)))
    return store


def filled_sqlite(path: Path, keys: Keys) -> sqlite3.Connection:
    """The peer with the same keys."""
    database = sqlite3.connect(path)
    database.execute("create table logits (key blob primary key, logit real) without rowid")
    rows = ((key.tobytes(), float(number)) for number, key in enumerate(keys.astype(">u8")))
    database.executemany("insert into logits values (?, ?)", rows)
    database.commit()
    return database


def ask_sqlite(database: sqlite3.Connection, keys: Keys) -> float:
    """Seconds for all keys, in the order given."""
    blobs = [key.tobytes() for key in keys.astype(">u8")]
    started = time.perf_counter()
    for blob in blobs:
        database.execute("select logit from logits where key = ?", (blob,)).fetchone()
    return time.perf_counter() - started


def main() -> None:
    """Fill both, ask both in turn, print figures and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=3_000_000)
    parser.add_argument("--segment", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    chance = np.random.default_rng(0)
    keys = chance.integers(0, 2**64, size=(arguments.keys, 2), dtype=np.uint64)
    order = chance.permutation(len(keys))
    asked_of_peer = order[: len(order) // 10]  # a tenth, since it is slow; its rate does not depend on how many are asked
    with tempfile.TemporaryDirectory() as folder:
        store = filled(Path(folder), keys, arguments.segment)
        database = filled_sqlite(Path(folder) / "peer.sqlite", keys)
        ours, peer = [], []
        for _ in range(arguments.rounds):
            started = time.perf_counter()
            found = store.lookup(keys[order])
            ours.append(time.perf_counter() - started)
            assert (found.logits == order.astype(np.float32)).all()
            peer.append(ask_sqlite(database, keys[asked_of_peer]))
        started = time.perf_counter()
        segments = store.compact()
        compaction = time.perf_counter() - started
        started = time.perf_counter()
        store.lookup(keys[order])
        compacted = time.perf_counter() - started
        size = store.size()[2]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    rate = len(keys) / median(ours)
    peer_rate = len(asked_of_peer) / median(peer)
    print(f"{segments[0]} segments: {rate / 1e6:.2f} M lookups/s; SQLite {peer_rate / 1e6:.2f} M/s; {size / 1e6:.0f} MB")
    print(f"compacted in {compaction:.1f} s to {segments[1]}: {len(keys) / compacted / 1e6:.2f} M lookups/s; peak {peak:.0f} MB")
    ratio = round(rate / peer_rate, 2)
    print(json.dumps({"name": "logit_store", "ours": round(rate), "peer": round(peer_rate), "ratio": ratio, "unit": "lookups/s"}))


if __name__ == "__main__":
    main()
