"""MLflow: the server, database or folder of MLFLOW_TRACKING_URI. The project is its experiment, the run is found again by a tag."""

from __future__ import annotations

import json
import os
import re
import time
from typing import Any

from trainer.reporting.trackers.base import RunInfo, flat

_TAG = "train.id"
_LAST = "train/loss"  # logged last of a step: where it is, all of the step is
_AT_ONCE = 100  # parameters of a request


class MlflowTracker:
    """One run of MLflow, by its client: the process's own active run is left alone."""

    _client: Any
    _run_id: str

    def start(self, run: RunInfo) -> int:
        """See `Tracker`."""
        # A dead server must not hold the training for the minutes of MLflow's own seven tries.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        experiment = self._client.get_experiment_by_name(run.project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(run.project)
        found = self._client.search_runs([number], f"tags.`{_TAG}` = '{run.id}'", max_results=1)
        if found:
            self._run_id = found[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return max((point.step for point in self._client.get_metric_history(self._run_id, _LAST)), default=0)
        self._run_id = self._client.create_run(number, run_name=run.name, tags={_TAG: run.id}).info.run_id
        self._log_settings(flat(run.config))
        return 0

    def _log_settings(self, settings: dict[str, Any]) -> None:
        from mlflow.entities import Param

        parameters = [Param(_allowed(name), _text(value)) for name, value in settings.items()]
        for start in range(0, len(parameters), _AT_ONCE):
            self._client.log_batch(self._run_id, params=parameters[start : start + _AT_ONCE])

    def log(self, step: int, figures: dict[str, float]) -> None:
        """See `Tracker`. `MRR@10` is `MRR_10` there: its names have no @."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        ordered = sorted(figures.items(), key=lambda item: item[0] == _LAST)
        self._client.log_batch(self._run_id, metrics=[Metric(_allowed(name), value, now, step) for name, value in ordered])

    def finish(self) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._run_id)


def _allowed(name: str) -> str:
    """Without what MLflow refuses, and with one slash at most: a folder keeps a metric in a file, which has nothing below it."""
    group, slash, rest = re.sub(r"[^\w\-. :/]", "_", name).partition("/")
    return f"{group}{slash}{rest.replace('/', '_')}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
