"""Metrics, parameters, images and files of a run in MLflow; the only module that imports it for metrics.

A pipeline's run is one MLflow run, with a child for each stage. The parent has all that runs are held against each other by:
parameters, prompt sets, the curves of training, the results, the report, the model. So MLflow's table shows one line a
pipeline, and its compare view draws the curves of two pipelines over each other, whatever stages there are. A child has what
is the stage's alone: its duration and status, image, machine, and the load of CPU and GPU (``system/...``).

Both are found again by their tags (run_tree.py), so a stage that is restarted, and the next stage, go on in the same ones. Nothing here stops a training or holds it up: after ``start`` every
failure is counted and logged, and metrics and images are sent in the background, metrics in order and as often as it takes.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marble_core.config.redaction import settings_without_secrets
from marble_core.runtime.environment import MLFLOW_DIRECTORY
from marble_core.runtime.files import full_disk
from marble_core.runtime.housekeeping import reason_of
from marble_core.tracking.connection import client_of
from marble_core.tracking.metric_queue import Batch, MetricQueue
from marble_core.tracking.past_runs import PastRun, past_runs
from marble_core.tracking.provenance import pages
from marble_core.tracking.run_tree import log_params, open_runs
from marble_core.types import MarbleError, Outage

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

    from marble_core.config.schema import RunConfig

_PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")  # no answer, or one that says later
_log = logging.getLogger(__name__)


class Tracker:
    """The MLflow run of a pipeline, and of one of its stages below it. Give the server by MLFLOW_TRACKING_URI."""

    def __init__(self, client: MlflowClient, run: Run, stage_run: Run) -> None:
        self._client = client
        self.mlflow_run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.stage_run_id: str = stage_run.info.run_id
        self._failures = 0
        self._logged = 0
        self._sender = MetricQueue(self._send, self._known)
        self._images: list[threading.Thread] = []
        self._one_image = threading.Lock()  # two at once would both add the tag by which MLflow knows of images, and one fail
        self._monitor: Any = None

    @property
    def failures(self) -> int:
        """Attempts that failed."""
        return self._failures + self._sender.failures

    @classmethod
    def start(
        cls,
        experiment: str,
        run_name: str,
        run_id_tag: str,
        stage: str,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Tracker:
        """Opens the run tagged ``run_id_tag`` in the experiment and the stage's run below it, or makes them. Raises MarbleError
        where MLflow does not answer.

        A run's parameters cannot change in MLflow: on a restart only new ones are added, and changed ones become tags
        ``changed.KEY``.
        """
        from mlflow.exceptions import MlflowException

        where = os.environ.get("MLFLOW_TRACKING_URI")
        if not where:  # MLflow would write a file into the working directory, which a container takes with it
            raise MarbleError("MLFLOW_TRACKING_URI is not set: give the address of an MLflow server.")
        try:
            client = client_of(where)
            run, stage_run = open_runs(client, experiment, run_name, run_id_tag, stage, tags or {})
            log_params(client, run, params or {})
        except MlflowException as error:
            kind = Outage if error.error_code in _PASSING else MarbleError
            raise full_disk(os.environ.get(MLFLOW_DIRECTORY)) or kind(
                f"MLflow at {where} cannot be used ({' '.join(str(error).split())[:200]}): check MLFLOW_TRACKING_URI and the server."
            ) from None
        return cls(client, run, stage_run)

    def send_only_if(self, fence: Callable[[], None]) -> None:
        """From now on ``fence`` is asked before metrics are sent; they wait as long as it raises."""
        self._sender.fence = fence

    def abandon(self) -> None:
        """For a process that another one has taken the run from: what has not been sent is dropped, and no status is set."""
        self._sender.close()
        if self._monitor is not None:
            self._attempt("end of the record of the machine's load", self._monitor.finish)

    def watch_machine(self) -> None:
        """From now on the stage's run gets the load of this machine's CPU, memory, disk, network and GPUs (``system/...``)."""

        def begin() -> None:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            where = os.environ["MLFLOW_TRACKING_URI"]
            self._monitor = SystemMetricsMonitor(self.stage_run_id, resume_logging=True, tracking_uri=where)
            self._monitor.start()

        self._attempt("machine's load", begin)

    def log_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """The metrics of all steps behind us; those from an earlier call, or that MLflow has already, are not sent again.

        A step is known by its metric ``skipped``, which every step has.
        """
        for line in history[self._logged :]:
            self._put({"skipped": 0.0, **line["metrics"]}, line["step"], line["time"])
        self._logged = len(history)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """In the background; nothing where the first of them has the same value at this step already."""
        self._put(metrics, step, time.time())

    def last_of(self, key: str) -> tuple[int, float] | None:
        """The step and the value of a metric's last step; (0, 0.0) where it has none yet, None where MLflow does not answer."""
        found: list[tuple[int, float]] = []
        answered = self._attempt(f"question for {key}", lambda: found.extend(self._known(key)))
        return max(found, default=(0, 0.0)) if answered else None

    def flush(self, seconds: float) -> int:
        """Waits for the metrics that are on their way. Returns how many steps' are still not sent after so many seconds."""
        return self._sender.flush(seconds)

    def past_runs(self, model: str) -> list[PastRun]:
        """Earlier runs of the experiment, oldest first; none where MLflow does not answer. ``model`` is the registered one."""
        found: list[PastRun] = []
        self._attempt("question", lambda: found.extend(past_runs(self._client, self.experiment_id, model, self.mlflow_run_id)))
        return found

    def links(self, model: str) -> dict[str, str]:
        """The addresses of the run and of the registered model on MLflow's pages (provenance.pages)."""
        return pages(self._client.tracking_uri, self.experiment_id, self.mlflow_run_id, model)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._attempt("tag", lambda k=key, v=value: self._client.set_tag(self.mlflow_run_id, k, v))  # type: ignore[misc]

    def log_artifact(self, path: Path, directory: str | None = None) -> None:
        """A file, or a directory with all that is in it, below the run's artifact path ``directory``."""
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._attempt(f"artifact {path.name}", lambda: send(self.mlflow_run_id, str(path), directory))

    def log_text(self, text: str, path: str) -> None:
        """A file of this text among the run's artifacts."""
        self._attempt(f"artifact {path}", lambda: self._client.log_text(self.mlflow_run_id, text, path))

    def log_inputs(self, datasets: Sequence[DatasetInput]) -> None:
        """The prompt sets of the run (``lineage.datasets``)."""
        self._attempt("prompt sets", lambda: self._client.log_inputs(self.mlflow_run_id, datasets))

    def log_image(self, image_HWC: np.ndarray, key: str, step: int = 0) -> None:
        """In the background, an image (uint8, RGB) of a series: MLflow shows it with a slider over the steps."""

        def send() -> None:
            with self._one_image:
                self._client.log_image(self.mlflow_run_id, image_HWC, key=_name(key), step=step)

        self._images = [thread for thread in self._images if thread.is_alive()]
        self._images.append(self._in_background(f"image {key}", send))

    def end(self, status: str = "FINISHED", seconds: float = 20.0) -> None:
        """Waits for what is on its way, and sets the status: FINISHED, FAILED, KILLED, or RUNNING where the stage is finished
        and another goes on in the run. For a server that is gone it waits no longer than twice these seconds."""
        deadline = time.monotonic() + 2 * seconds
        if unsent := self._sender.flush(seconds):
            _log.warning("MLflow has not taken the metrics of %d steps", unsent)
        self._sender.close()

        def close() -> None:
            if self._monitor is not None:
                self._monitor.finish()
            self._client.set_terminated(self.stage_run_id, "FINISHED" if status == "RUNNING" else status)
            (self._client.update_run if status == "RUNNING" else self._client.set_terminated)(self.mlflow_run_id, status)

        for thread in (*self._images, self._in_background("status", close)):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _in_background(self, what: str, action: Callable[[], Any]) -> threading.Thread:
        thread = threading.Thread(target=self._attempt, args=(what, action), name=what, daemon=True)
        thread.start()
        return thread

    def _put(self, metrics: Mapping[str, float], step: int, seconds: float) -> None:
        """What is not finite is not sent: MLflow keeps infinity as a huge number, and its page of a run may not open beside a NaN."""
        finite = {_name(k): float(v) for k, v in metrics.items() if math.isfinite(v)}
        if finite:
            self._sender.put(Batch(finite, step, int(1000 * seconds)))

    def _send(self, batches: Sequence[Batch]) -> None:
        from mlflow.entities import Metric

        # MLflow's compare view opens with the metric that came first: a reward, rather than the mark of the batch.
        in_order = [(batch, list(batch.metrics.items())) for batch in batches]
        metrics = [Metric(k, v, batch.time_ms, batch.step) for batch, items in in_order for k, v in (*items[1:], items[0])]
        self._client.log_batch(self.mlflow_run_id, metrics)

    def _known(self, key: str) -> set[tuple[int, float]]:
        return {(metric.step, metric.value) for metric in self._client.get_metric_history(self.mlflow_run_id, key)}

    def _attempt(self, what: str, action: Callable[[], Any]) -> bool:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a tracking server must not end a training
            self._failures += 1
            _log.warning("MLflow did not take the %s: %s", what, reason_of(error))
            return False
        return True


def run_params(config: RunConfig) -> dict[str, str]:
    """The configuration as MLflow parameters."""
    return {_name(key): value for key, value in settings_without_secrets(config.flat()).items()}


def _name(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name)
