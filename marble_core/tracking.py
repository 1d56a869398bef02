"""Metrics, parameters, pictures and files of a run in MLflow; the only module that imports it for metrics.

A run is found again by its tag ``marble.run_id``, so a stage that is restarted, and the next stage, go on in the same one.
Nothing here stops a training: after ``start`` every failure is counted and logged, and metrics are sent in the background.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marble_core.types import MarbleError, StepReport

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run
    from mlflow.utils.async_logging.run_operations import RunOperations

    from marble_core.config import RunConfig

RUN_ID_TAG = "marble.run_id"
# MLflow's own defaults let a call wait for 246 s when the server is gone, and report every use to its makers.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_log = logging.getLogger(__name__)


class Tracker:
    """One MLflow run. Give the server by MLFLOW_TRACKING_URI.

    ``failures`` counts what could not be sent; a batch of metrics that failed is sent once more by ``end``.
    """

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self._client = client
        self.mlflow_run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.failures = 0
        self._sent: list[tuple[list[Metric], RunOperations]] = []

    @classmethod
    def start(
        cls,
        experiment: str,
        run_name: str,
        run_id_tag: str,
        params: Mapping[str, str],
        tags: Mapping[str, str] | None = None,
    ) -> Tracker:
        """Opens the run tagged ``run_id_tag`` in the experiment, or makes it. Raises MarbleError where MLflow does not answer.

        A run's parameters cannot change in MLflow: on a restart only new ones are added, and changed ones become tags
        ``changed.KEY``.
        """
        for key, value in _DEFAULTS.items():
            os.environ.setdefault(key, value)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        where = os.environ.get("MLFLOW_TRACKING_URI")
        if not where:  # MLflow would write a file into the working directory, which a container takes with it
            raise MarbleError("MLFLOW_TRACKING_URI is not set: give the address of an MLflow server.")
        try:
            client = MlflowClient(where)
            experiment_id = _experiment_id(client, experiment)
            run = find_run(client, experiment_id, run_id_tag)
            if run is None:
                run = client.create_run(experiment_id, run_name=run_name, tags={**(tags or {}), RUN_ID_TAG: run_id_tag})
            else:
                client.update_run(run.info.run_id, status="RUNNING")
            _log_params(client, run, params)
        except MlflowException as error:
            raise MarbleError(
                f"MLflow at {where} cannot be used ({' '.join(str(error).split())[:200]}): check MLFLOW_TRACKING_URI and the server."
            ) from None
        return cls(client, run)

    def log_step(self, report: StepReport) -> None:
        """All metrics of one step in one request, in the background. Infinities are sent as NaN, MLflow has no other word."""
        self.log_metrics(report.metrics, report.step)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(_name(key), _finite(value), now, step) for key, value in metrics.items()]
        self._attempt("metrics", lambda: self._submit(batch))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._attempt("tag", lambda k=key, v=value: self._client.set_tag(self.mlflow_run_id, k, v))  # type: ignore[misc]

    def log_artifact(self, path: Path, directory: str | None = None) -> None:
        """A file, or a directory with all that is in it, below the run's artifact path ``directory``."""
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._attempt(f"artifact {path.name}", lambda: send(self.mlflow_run_id, str(path), directory))

    def log_image(self, image_HWC: np.ndarray, key: str, step: int = 0) -> None:
        """A picture (uint8, RGB) of a series: MLflow shows it with a slider over the steps."""
        self._attempt(f"image {key}", lambda: self._client.log_image(self.mlflow_run_id, image_HWC, key=_name(key), step=step))

    def end(self, status: str = "FINISHED") -> None:
        """Waits for what is on its way, sends once more what failed, and sets the status: FINISHED, FAILED, KILLED, or
        RUNNING where another stage goes on in the run."""
        lost = [batch for batch, operation in self._sent if not self._arrived(operation)]
        self._sent = []
        if lost:
            self._attempt("metrics", lambda: self._client.log_batch(self.mlflow_run_id, [m for batch in lost for m in batch]))
        close = self._client.update_run if status == "RUNNING" else self._client.set_terminated
        self._attempt("status", lambda: close(self.mlflow_run_id, status))

    def _submit(self, batch: list[Metric]) -> None:
        operation = self._client.log_batch(self.mlflow_run_id, batch, synchronous=False)
        if operation is not None:
            self._sent.append((batch, operation))

    def _arrived(self, operation: RunOperations) -> bool:
        return self._attempt("metrics", operation.wait)

    def _attempt(self, what: str, action: Callable[[], Any]) -> bool:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a tracking server must not end a training
            self.failures += 1
            _log.warning("MLflow did not take the %s: %s", what, " ".join(str(error).split())[:200])
            return False
        return True


def find_run(client: MlflowClient, experiment_id: str, run_id: str) -> Run | None:
    """The MLflow run that carries the tag ``marble.run_id``; the newest, should there be several."""
    quoted = run_id.replace("'", "")
    runs = client.search_runs([experiment_id], f"tags.`{RUN_ID_TAG}` = '{quoted}'", max_results=1, order_by=["start_time DESC"])
    return runs[0] if runs else None


def run_params(config: RunConfig) -> dict[str, str]:
    """The configuration as MLflow parameters: ``section.key``, and ``rewards.NAME.key`` for the list of rewards."""
    tree = config.model_dump(mode="json")
    tree["rewards"] = {reward.pop("name"): reward for reward in tree["rewards"]}
    return {"reward_names": ",".join(config.reward_names), **_flatten(tree)}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[_name(prefix + key)] = str(value)
    return flat


def _experiment_id(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _log_params(client: MlflowClient, run: Run, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    known = run.data.params
    new = [Param(key, value) for key, value in params.items() if key not in known]
    changed = [RunTag(f"changed.{key}", value) for key, value in params.items() if known.get(key, value) != value]
    for first in range(0, len(new), 100):  # MLflow's limit on one request
        client.log_batch(run.info.run_id, params=new[first : first + 100])
    if changed:
        client.log_batch(run.info.run_id, tags=changed)


def _name(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name)


def _finite(value: float) -> float:
    return math.nan if math.isinf(value) else float(value)
