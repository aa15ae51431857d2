"""`ray_tasks.py CONFIG FOLDER COUNT SECONDS [key=value ...]`: tasks that sleep and leave a file each, done by the Ray executor.

A file FOLDER/begun/UNIT.PID tells of each begin. The last line is JSON: {unit: node} of the results, in the order of their coming.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, cast

from data.command import exit_codes
from data.config.settings import load


def sleep(models: Any, folder: str, unit: str, seconds: float) -> tuple[str, str]:
    """Runs in a worker."""
    from pipeline.executors.ray.cluster import node_of_this_process

    (Path(folder) / "begun" / f"{unit}.{os.getpid()}").touch()
    if (Path(folder) / f"{unit}.slow").exists():
        time.sleep(10 * seconds)
    time.sleep(seconds)
    return unit, node_of_this_process()


def main() -> None:
    from pipeline.executors.ray.actor import Question
    from pipeline.executors.ray.executor import RayExecutor
    from pipeline.executors.tasks import OwnTasks
    from retrieval.models.resolved import ResolvedModels

    config, folder, number, seconds, *overrides = sys.argv[1:]
    (Path(folder) / "begun").mkdir(parents=True, exist_ok=True)
    experiment = load({"config": config, "runner": "ray", **dict(word.split("=", 1) for word in overrides)})
    models = ResolvedModels(experiment).resolved()
    units = [f"{place:03d}" for place in range(int(number))]
    tasks = [Question(unit, sleep, (models, folder, unit, float(seconds))) for unit in units]
    executor = RayExecutor(experiment)
    results = []
    try:
        for result in executor.run(OwnTasks(cast(Any, tasks)), uses_device=False, report=lambda unit, count: None):
            results.append(result)
            print(*result, flush=True)
    finally:
        executor.close()
    assert sorted(unit for unit, _ in results) == units, "each task once"
    print(json.dumps(dict(cast(Any, results))))


if __name__ == "__main__":
    from support.programs import ray_tasks  # a worker finds the function under this name, not in __main__

    with exit_codes():
        ray_tasks.main()
