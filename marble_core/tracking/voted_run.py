"""A run whose files lie in MLflow, for votes on it: what counting needs comes here, and what changed goes back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from marble_core.config.stage_files import CONFIG, DECISION_FILE, EVALUATION, IMAGES, RUN, VOTES
from marble_core.evaluation.results import Votes
from marble_core.tracking.finished_runs import find
from marble_core.tracking.past_runs import vote_metrics
from marble_core.types import MarbleError

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class VotedRun:
    """``run_id`` is the pipeline's, ``mlflow_run`` MLflow's."""

    run_id: str
    mlflow_run: str


def fetch(name: str, client: MlflowClient, scratch: Path) -> VotedRun:
    """Bring evaluation.json, decision.json, config.json, the votes so far and the scores into ``scratch``, laid out as evaluate and
    prepare leave them. Raises MarbleError where MLflow has no such run, or it was not evaluated."""
    run = find(name, client)
    if run is None:
        raise MarbleError(
            f"There is no run {name!r}, neither below .marble/runs nor in MLflow; marble ui shows the runs there are."
        )
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    if lacks := sorted({EVALUATION, DECISION_FILE, CONFIG, "evaluation"} - files):
        raise MarbleError(f"The run {name} has no {lacks[0]} in MLflow: let it finish (marble run --run-id {name}).")
    for path in (EVALUATION, DECISION_FILE, CONFIG, "evaluation", *({VOTES} & files)):
        client.download_artifacts(run.info.run_id, path, str(scratch))
    (scratch / "evaluation").rename(scratch / IMAGES)
    run_id = str(run.data.tags["marble.run_id"])
    (scratch / RUN).write_text(json.dumps({"run_id": run_id}), encoding="utf-8")
    return VotedRun(run_id, run.info.run_id)


def give_back(run: VotedRun, votes: Votes, client: MlflowClient, scratch: Path) -> None:
    """The run gets the votes, evaluation.json and decision.json as they are now, and what the votes come to as metrics."""
    for name in (EVALUATION, DECISION_FILE, VOTES):  # the votes last: without them the same file is added once more
        client.log_artifact(run.mlflow_run, str(scratch / name))
    for name, value in vote_metrics(votes).items():
        client.log_metric(run.mlflow_run, name, value)
