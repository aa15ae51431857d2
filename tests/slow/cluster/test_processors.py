"""Hosts whose processors compute different number formats, as the kernel says: who settles a precision, who obeys, who gets no work."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.hosts import Host, Hosts

BF16 = "avx512_bf16"  # as /proc/cpuinfo has it; where this machine's processor lacks it, torch computes the same more slowly


@pytest.fixture
def of_two_kinds(hosts: Hosts) -> Hosts:
    """A head without work and the worker 2 that have bf16, and the worker 3 that has not."""
    flags = re.sub(rf" {BF16}\b", "", Path("/proc/cpuinfo").read_text())
    if "flags\t\t:" not in flags:
        pytest.skip("the kernel does not say what this processor computes")
    (hosts.shared / "lacks").write_text(flags)
    (hosts.shared / "has").write_text(flags.replace("flags\t\t:", f"flags\t\t: {BF16}"))
    for number, kind in ((1, "has"), (2, "has"), (3, "lacks")):
        hosts.boot(number, setup=f"mount --bind {hosts.shared / kind} /proc/cpuinfo")
        hosts.start_ray(number, cpus=0 if number == 1 else 1)
    return hosts


def prep(host: Host, config: Path, *settings: str) -> Any:
    return host.run("prep", "run", f"config={config}", *settings, timeout=600)


def said(done: Any) -> str:
    return " ".join((done.stdout + done.stderr).split())


def test_a_host_without_bf16(
    of_two_kinds: Hosts, tiny_experiment: Callable[..., Path], parquet_files: Callable[[Path], dict[str, bytes]]
) -> None:
    """Prevents: a run that ends since one host's processor is older; a finished store that an older driver, or a queue's next job, would
    embed anew in another precision; vectors of two precisions in one table."""
    one, two, older = (of_two_kinds[number] for number in (1, 2, 3))
    precisions = {"embed.precision": "auto", "teacher.precision": "auto"}
    alone = tiny_experiment(of_two_kinds.shared / "alone", **precisions)
    done = prep(one, alone)
    assert done.returncode == 0, said(done)
    expected = parquet_files(alone.parent / "store")
    settled = [json.loads(path.read_text())["precision"] for path in (alone.parent / "store" / "settled").glob("*.json")]
    assert settled == ["bf16", "bf16"]

    config = tiny_experiment(of_two_kinds.shared / "cluster", **precisions)
    store, cluster = config.parent / "store", ("runner=ray", f"runner.address={of_two_kinds.address()}")
    done = prep(one, config, *cluster)
    assert done.returncode == 0 and f"{older.name} gets no work from here on: its processor does not compute bf16" in said(done), said(done)
    assert parquet_files(store) == expected
    lines = [json.loads(line) for path in store.rglob("journal.jsonl") for line in path.read_text().splitlines()]
    assert {line["host"] for line in lines} <= {one.name, two.name}

    done = prep(older, config)
    assert done.returncode == 0 and "built" not in said(done), said(done)
    for folder in ("embed", "teacher_scores", "teacher_logits"):
        shutil.rmtree(store / folder)
    done = prep(older, config)
    assert done.returncode == 2 and "bf16" in said(done) and "Traceback" not in said(done), said(done)
    done = prep(older, config, *cluster)
    assert done.returncode == 0, said(done)
    assert parquet_files(store) == expected
