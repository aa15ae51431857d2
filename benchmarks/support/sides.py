"""What benchmarks share: each side in a process of its own, and tables that no stage made."""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a side is timed with its imports
    import pyarrow as pa


def run_again(*more: object) -> dict[str, float]:
    """This script with the same arguments and some more, in a process of its own; the JSON of its last line."""
    done = subprocess.run([sys.executable, *sys.argv, *map(str, more)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(started: float) -> None:
    """The last line of such a process: seconds since `started` (of time.perf_counter) and peak memory in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": time.perf_counter() - started, "peak": peak}), flush=True)


def compare_peaks(name: str, sizes: list[tuple[str, str]], *, line: str) -> None:
    """Run this script again for few and for many, print a line for each and the JSON line of their peak memory, MB.

    `sizes` are one more argument and what it means, in words; `line` formats the figures of its process.
    """
    peaks = []
    for option, size in sizes:
        figures = run_again(option)
        peaks.append(figures["peak"])
        print(f"{size}: {line.format(**figures)}", flush=True)
    few, many = peaks
    print(json.dumps({"name": name, "ours": round(many), "peer": round(few), "ratio": round(many / few, 3), "unit": "MB"}))


def middle(rounds: dict[str, list[dict[str, float]]], name: str) -> dict[str, float]:
    """The median of a figure over the rounds of each side."""
    return {side: median(one[name] for one in done) for side, done in rounds.items()}


def print_peaks(name: str, unit: str, few: int, many: int) -> None:
    """Peak memory for few and for many of a unit, each in a process of its own with `--one=NUMBER`; then the JSON line."""
    peaks = []
    for count in (few, many):
        figures = run_again(f"--one={count}")
        peaks.append(figures["peak"])
        print(f"{unit} {count:>9,}: peak {figures['peak']:.0f} MB ({figures['before']:.0f} before), {figures['seconds']:.1f} s")
    small, large = peaks
    print(json.dumps({"name": name, "ours": round(large), "peer": round(small), "ratio": round(large / small, 3), "unit": "MB"}))


def write_table(folder: Path, groups: Iterator[pa.Table]) -> Any:
    """A complete table of one shard; its manifest."""
    from data.tables.manifest import Manifest, ShardRecord
    from data.tables.shards import describe, open_shard

    first = next(groups)
    with open_shard(folder / "part.parquet", first.schema, {}) as writer:
        for group in itertools.chain([first], groups):
            writer.write(group)
    manifest = Manifest("", "", "", {}, [ShardRecord("part.parquet", *describe(folder / "part.parquet"))], {})
    manifest.write(folder)
    return manifest
