"""The table of a comparison: mean and standard deviation over seeds, and paired p-values over questions.

    python recipes/compare/table.py OUT

Reads the per-question metrics that commands.sh wrote. A p-value is that of the paired randomisation test over the test questions, of the
means over seeds: against the start, and against Hard KD. It knows the chance in the choice of questions, not of seeds: that is the sd.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.metrics import p_floor, randomisation_test, said

NAMES = {
    "start": "start",
    "adam": "ADAM, P~ without p+ (Eq. 9)", "adam_positive": "ADAM, P~ with p+", "hard_kd": "Hard KD",
    "rand_kd": "Rand KD",
    "margin_mse": "MarginMSE", "cl_drd": "CL-DRD", "prod": "PROD (T3)", "prod_selected": "PROD (T3, D)",
}  # fmt: skip
METRICS = ("MRR@10", "nDCG@10")
_PERMUTATIONS = 20_000


def values(out: Path, method: str, where: str, metric: str) -> NDArray[np.float64]:
    """[seeds, questions] of a method; no rows where it was not run."""
    found = []
    for path in sorted(out.glob(f"{method}-[0-9]*.{where}.json")):
        of_query = json.loads(path.read_text())
        found.append([of_query[query_id][metric] for query_id in sorted(of_query)])
    return np.array(found, dtype=np.float64) if found else np.empty((0, 0))


def spread(found: NDArray[np.float64]) -> str:
    """Mean and standard deviation of the seeds' means; nothing where it was not run."""
    if not len(found):
        return ""
    means = found.mean(1)
    return f"{means.mean():.4f}" + (f" ± {means.std(ddof=1):.4f}" if len(means) > 1 else "")


def p_value(found: NDArray[np.float64], other: NDArray[np.float64]) -> str:
    """Of two methods' means over seeds, question by question."""
    if not len(other) or found is other:
        return ""
    differences = found.mean(0) - other.mean(0)
    value, floor = randomisation_test(differences, permutations=_PERMUTATIONS), p_floor(differences, permutations=_PERMUTATIONS)
    return said(value, floor=floor) if value <= floor else f"{value:.2g}" if value < 0.995 else "1"


def main(out: Path) -> None:
    """Print the table."""
    zero_shot = bool(list(out.glob("start-*.other.test.json")))
    heads = [f"{split} {metric}" for split in ("dev", "test") for metric in METRICS]
    heads += ["p, start", "p, Hard KD", *(["zero-shot nDCG@10"] if zero_shot else []), "seeds"]
    print("| method | " + " | ".join(heads) + " |\n|---|" + "---|" * len(heads))
    start, hard_kd = (values(out, name, "test", "MRR@10") for name in ("start", "hard_kd"))
    for method, name in NAMES.items():
        test = values(out, method, "test", "MRR@10")
        if not len(test):
            continue
        cells = [spread(values(out, method, split, metric)) for split in ("dev", "test") for metric in METRICS]
        cells += ["" if method == "start" else p_value(test, start), "" if method in ("start", "hard_kd") else p_value(test, hard_kd)]
        if zero_shot:
            cells.append(spread(values(out, method, "other.test", "nDCG@10")))
        print(f"| {name} | " + " | ".join([*cells, str(len(test))]) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
