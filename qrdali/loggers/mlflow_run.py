"""Writes a run to MLflow: its tracking server, database or folder, as MLFLOW_TRACKING_URI says."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from qrdali.loggers.interface import LoggedEpoch, LoggedRun

_KEY_TAG = "qrdali.key"
_NOT_IN_NAMES = re.compile(r"[^\w./ :-]", re.ASCII)  # what MLflow refuses in the name of a metric
_BATCH = 500  # metrics, and 100 parameters, of a request: MLflow takes 1,000
_LONGEST_VALUE = 500  # characters of a parameter that every version takes
# MLflow's own defaults keep training waiting for many minutes where there is no network.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


class _Point(NamedTuple):
    name: str
    step: int
    value: float
    time: float


class MlflowLogger:
    """Keeps one run of MLflow, found again by the tag `qrdali.key`.

    MLflow cannot take a figure back: a run that holds more than metrics.jsonl is deleted, as its own page
    would do it, and written anew."""

    def __init__(self, run: Path) -> None:
        self._client: Any = None
        self._id = self._uri = ""

    def place(self) -> str:
        return f"{self._uri}, run {self._id}"

    def begin(self, run: LoggedRun) -> None:
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        import mlflow

        self._client, self._uri = mlflow.MlflowClient(), mlflow.get_tracking_uri()
        experiment = self._experiment()
        wanted = {(point.name, point.step): point for epoch in run.epochs for point in _points(epoch)}
        self._id, known = "", set[tuple[str, int]]()
        for found in self._client.search_runs([experiment], f"tags.`{_KEY_TAG}` = '{run.key}'"):
            there = self._known(found)
            if self._id or len(set(there)) < len(there) or not set(there) <= wanted.keys():
                self._client.delete_run(found.info.run_id)
            else:
                self._id, known = found.info.run_id, set(there)
        if self._id:
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._create(experiment, run)
        self._log([point for key, point in wanted.items() if key not in known])
        previews = {Path(file.path).name for file in self._client.list_artifacts(self._id, "previews")}
        for epoch in run.epochs:
            if epoch.sheet is not None and epoch.sheet.name not in previews:
                self._client.log_artifact(self._id, str(epoch.sheet), "previews")

    def epoch(self, epoch: LoggedEpoch) -> None:
        self._log(list(_points(epoch)))
        if epoch.sheet is not None:
            self._client.log_artifact(self._id, str(epoch.sheet), "previews")

    def end(self, finished: bool) -> None:
        if self._id:
            self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")

    def _experiment(self) -> str:
        """Returns the id of MLFLOW_EXPERIMENT_NAME, or of "qrdali", which is made if it is not there."""
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "qrdali"
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def _create(self, experiment: str, run: LoggedRun) -> None:
        from mlflow.entities import Param

        tags = {_KEY_TAG: run.key, "mlflow.source.name": "qrdali"}
        self._id = self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
        params = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in run.config.items()]
        for first in range(0, len(params), 100):
            self._client.log_batch(self._id, params=params[first : first + 100])
        self._client.log_dict(self._id, dict(run.config), "config.json")

    def _known(self, found: Any) -> list[tuple[str, int]]:
        """Returns (name, step) of every figure that a run of MLflow holds."""
        return [
            (name, metric.step)
            for name in found.data.metrics
            for metric in self._client.get_metric_history(found.info.run_id, name)
        ]

    def _log(self, points: list[_Point]) -> None:
        from mlflow.entities import Metric

        for first in range(0, len(points), _BATCH):
            part = points[first : first + _BATCH]
            metrics = [Metric(point.name, point.value, int(point.time * 1000), point.step) for point in part]
            self._client.log_batch(self._id, metrics=metrics)


def _points(epoch: LoggedEpoch) -> Iterator[_Point]:
    moment = epoch.time or time.time()
    for tag, value in epoch.values.items():
        yield _Point(_NOT_IN_NAMES.sub("_", tag), epoch.number, value, moment)
    for tag, value in epoch.stage_values.items():
        yield _Point(_NOT_IN_NAMES.sub("_", tag), epoch.stage_epoch, value, moment)
