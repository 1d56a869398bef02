"""A finished run's files, found again: below ``.marble/runs``, in a directory of one's own, or in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from marble_core.config.loading import read_config
from marble_core.config.redaction import settings_without_secrets
from marble_core.config.stage_files import CONFIG, EVALUATION, HISTORY, IMAGES, SCORES
from marble_core.evaluation.decision_file import read_decision
from marble_core.evaluation.results import Evaluation
from marble_core.tracking.champion import quoted
from marble_core.tracking.step_history import History
from marble_core.types import MarbleError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class FinishedRun:
    """``params`` is the configuration by dotted names; ``images`` the directory of scores.jsonl, or one that is not there."""

    name: str
    params: Mapping[str, str]
    evaluation: Evaluation
    history: History
    images: Path
    verdict: str

    @property
    def rewards(self) -> list[str]:
        return self.params.get("reward_names", "").split(",")


def evaluation_of(name: str, runs: Path) -> tuple[Path, Path] | None:
    """The directory that evaluate wrote, and train's history, of the run of this name below ``runs`` or of the directory of this path;
    None where there is neither. Raises MarbleError where it is there, but was not evaluated (yet)."""
    directory = next((d for d in (runs / name, Path(name)) if d.is_dir()), None)
    if directory is None:
        return None
    newest = sorted(directory.glob("artifacts/*/evaluate/evaluation/evaluation.json"), key=lambda p: p.stat().st_mtime)
    found = newest[-1] if newest else directory / EVALUATION
    if not found.is_file():
        raise MarbleError(f"The run {name} has no evaluation in {directory}: let it finish (marble run --run-id {name}).")
    here = found.parent
    return here, here.parents[1] / "train" / "adapter" / HISTORY if newest else here / HISTORY


def local_run(name: str, runs: Path) -> FinishedRun | None:
    """The run of this name below ``runs``, or the directory of this path; None where there is neither.

    Raises MarbleError where it is there, but was not evaluated (yet).
    """
    place = evaluation_of(name, runs)
    if place is None:
        return None
    here, history = place
    config = read_config(here / CONFIG)
    decision, evaluation, anew = read_decision(here, config.registry)
    assert evaluation is not None, "its file is there"
    params = settings_without_secrets(config.flat())
    verdict = f"{decision.summary} (decided anew)" if anew else decision.summary
    own = name if (runs / name).is_dir() else "/".join(Path(name).resolve().parts[-3:])  # of a study: ARM/seed-N/step-N
    return FinishedRun(own, params, evaluation, History.load(history), here / IMAGES, verdict)


def tracked_run(name: str, client: MlflowClient, scratch: Path) -> FinishedRun:
    """The newest run of this name, or the run of this id, with its files brought into ``scratch``.

    Raises MarbleError where MLflow has none, or it was not evaluated.
    """
    run = find(name, client)
    if run is None:
        raise MarbleError(
            f"There is no run {name!r}, neither below .marble/runs nor in MLflow; marble ui shows the runs there are."
        )
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    if EVALUATION not in files:
        raise MarbleError(f"The run {name} has no evaluation in MLflow: let it finish (marble run --run-id {name}).")
    for path in sorted(files & {EVALUATION, HISTORY, "evaluation"}):
        client.download_artifacts(run.info.run_id, path, str(scratch))
    evaluation, history = Evaluation.load(scratch / EVALUATION), History.load(scratch / HISTORY)
    verdict = run.data.tags.get("marble.decision", "not decided")
    return FinishedRun(str(run.info.run_name), run.data.params, evaluation, history, scratch / "evaluation", verdict)


def find(name: str, client: MlflowClient) -> Run | None:
    """The newest run of MARBLE of this name, or the run of this id."""
    from mlflow.exceptions import MlflowException

    experiments = [e.experiment_id for e in client.search_experiments()]
    wanted = f"attributes.run_name = {quoted(name)} and tags.`marble.run_id` != ''"
    runs = client.search_runs(experiments, wanted, max_results=1, order_by=["start_time DESC"])
    if runs:
        return runs[0]
    try:
        return client.get_run(name)
    except MlflowException:
        return None


def has_images(run: FinishedRun) -> bool:
    return (run.images / SCORES).is_file()
