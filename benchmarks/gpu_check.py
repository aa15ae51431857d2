"""What the paths of a GPU do on a GPU: right, and how fast; a line of JSON a check, in about ten minutes, then one of all.

    python benchmarks/gpu_check.py [--device cuda] [--small] [--only NAME ...] [--folder EMPTY]

Nothing is downloaded: models have the sizes of MiniLM-L12 (teacher) and BERT-base (student) with random weights, texts are random words.
A check that fails is a line with its error, and the others go on; then the command ends with 1. `ok` is false where something must hold and
does not: scores that are not the processor's bits, a bound on errors that is exceeded, a kernel that is not taken. Rates are reported, not
judged: `busy` is the share of samples in which the GPU ran a kernel (nvidia-smi), `gb` its memory in use. `--device cpu --small` only shows
that the script runs.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu import model_checks, run_checks, search_checks
from gpu.made_up import Bench

CHECKS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "environment": model_checks.environment,
    "tf32_bound": search_checks.tf32_bound,
    "search": search_checks.search,
    "unpadded": model_checks.unpadded,
    "batch_invariance": model_checks.batch_invariance,
    "scoring_stage": run_checks.scoring_stage,
    "embedding": run_checks.embedding,
    "training": run_checks.training,
    "gradients_twice": run_checks.gradients_twice,
    "checkpoint": run_checks.checkpoint,
    "peers": model_checks.peers,
}


def checked(check: Callable[[Bench], dict[str, Any]], bench: Bench) -> dict[str, Any]:
    """What a check found, or its error; `ok`, and seconds."""
    started = time.perf_counter()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = {"ok": True, **check(bench)}
    except Exception as error:
        found = {"ok": False, "error": f"{type(error).__name__}: {error}"[:400]}
    with contextlib.suppress(Exception):  # a GPU that a check broke: the next check says so
        gc.collect()
        bench.empty_cache()
    return {**found, "took": round(time.perf_counter() - started, 1)}


def main() -> int:
    """All checks, or some, in their order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models and collections: to see that it runs")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--folder", type=Path, help="an empty place on a fast disk; none: a temporary folder")
    given = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=given.folder, ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), device=given.device, small=given.small)
        for name in CHECKS:
            if name in given.only:
                found[name] = checked(CHECKS[name], bench)
                print(json.dumps({"check": name, **found[name]}), flush=True)
    failed = [name for name, one in found.items() if not one["ok"]]
    seconds = round(sum(one["took"] for one in found.values()), 1)
    print(
        json.dumps(
            {"name": "gpu_check", "device": given.device, "small": given.small, "failed": failed, "seconds": seconds, "checks": found}
        )
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
